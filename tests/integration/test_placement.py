"""Placement on a real platform: a node that the settings say has several devices."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner

from headrace.cli.main import app
from headrace.client.client import Client
from headrace.client.serve import Platform
from headrace.core.config import OwnDevice
from headrace.core.errors import InvalidInput
from headrace.core.resources import Deployment
from tests import models
from tests.polling import until

pytest.importorskip("ortools")
DEVICES = (
    OwnDevice("cpu0", 2000, 2.0),
    OwnDevice("cpu1", 2000, 2.0),
    OwnDevice("gpu0", 16_000, 1.0, "t4"),
    OwnDevice("gpu1", 48_000, 1.0, "l40", spot=True),
)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEADRACE_DEVICES", msgspec.json.encode(DEVICES).decode())
        patch.setenv("HEADRACE_REBALANCE_S", "0.5")
        platform = Platform(str(tmp_path_factory.mktemp("placement")))
    for name in ("a", "b", "c", "d", "e"):
        platform.client.push(name, models.echo_onnx().content)
    yield platform.client
    platform.stop()


def device_of(deployment: Deployment) -> list[str]:
    return sorted(one.device.rpartition("/")[2] for one in deployment.instances if one.state == "ready")


def test_a_replica_goes_to_the_tier_that_it_was_deployed_on(client: Client) -> None:
    made = client.deploy("d@1", tiers=["t4"], compute=0.25, memory_mb=1000)
    assert (made.tiers, made.compute, device_of(made)) == (["t4"], 0.25, ["gpu0"])
    row = next(d for d in client.devices() if d.id.endswith("/gpu0"))
    assert (row.tier, row.memory_used_mb, row.compute_used, row.replicas) == ("t4", 1000.0, 0.25, 1)
    assert row.price_per_h == 0.35
    assert client.predict("d", {"x": np.ones((1, 1), np.float32)})
    # On other hardware it is another deployment: the replica is replaced there, and the old one then drains.
    client.deployments.create("d@1", tiers=["l40"], spot=True, wait=False)
    until(lambda: device_of(client.deployments.show("d@1")) == ["gpu1"])
    client.undeploy("d@1", force=True)


def test_without_room_it_waits_and_says_why_and_starts_when_there_is_some(client: Client) -> None:
    client.deployments.create("a@1", tiers=["t4"], memory_mb=10_000)
    client.deployments.create("b@1", tiers=["t4"], memory_mb=10_000, wait=False)
    until(lambda: "no device of tier t4 has 9.8 GiB free" in client.deployments.show("b@1").detail)
    assert client.deployments.show("b@1").state == "requested"
    client.undeploy("a@1", force=True)
    until(lambda: client.deployments.show("b@1").state == "ready")
    client.undeploy("b@1", force=True)


@pytest.mark.parametrize(
    ("tier", "options", "says"),
    [
        ("l40", {}, "all devices of tier l40 are spot, which the deployment does not allow"),
        ("a100", {}, "no device of tier a100: the fleet has cpu, l40, t4"),
        ("t4", {"memory_mb": 15_000}, "no device of tier t4 is large enough for 14.6 GiB"),
    ],
)
def test_what_the_fleet_cannot_give_is_requested_with_the_reason(
    client: Client, tier: str, options: dict[str, int], says: str
) -> None:
    client.deployments.create("c@1", tiers=[tier], memory_mb=options.get("memory_mb"), wait=False)
    until(lambda: says in client.deployments.show("c@1").detail)
    assert client.deployments.show("c@1").state == "requested"
    client.undeploy("c@1", force=True)


def test_replicas_go_to_distinct_devices(client: Client) -> None:
    assert device_of(client.deploy("c@1", replicas=2)) == ["cpu0", "cpu1"]
    client.undeploy("c@1", force=True)


def test_bad_terms_are_refused_by_name(client: Client) -> None:
    with pytest.raises(InvalidInput, match=r"tiers: 'a10', expected any of a100, cpu, l40, t4") as caught:
        client.deployments.create("a@1", tiers=["a10"])
    assert caught.value.field == "tiers" and "a100" in (caught.value.hint or "")
    for options in ({"compute": -1.0}, {"compute": 1e6}):
        with pytest.raises(InvalidInput, match="compute") as caught:
            client.deployments.create("a@1", **options)
        assert caught.value.field == "compute"


def test_a_replica_moves_where_that_frees_a_device_once_a_day_and_nobody_notices(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """a and b fill cpu0, so c is on cpu1; without b, one device would do for a and c."""
    until(lambda: not any(d.replicas for d in client.devices()))
    for name, memory_mb in (("a", 700), ("b", 1000), ("c", 1000)):
        client.deployments.create(f"{name}@1", memory_mb=memory_mb)
    x = {"x": np.ones((1, 1), np.float32)}
    client.undeploy("b@1", force=True)

    def together() -> bool:
        assert client.predict("a", x) and client.predict("c", x)
        return sum(d.replicas > 0 for d in client.devices()) == 1

    until(together, 60)
    moves = [one for one in client.changes().items if one.action == "replica.move"]
    assert len(moves) == 1 and moves[0].actor == "platform"
    until(lambda: not client.placement().moves)
    plan = client.placement()
    assert plan.detail.startswith("looks every 0.5 s") and plan.at is not None
    monkeypatch.setenv("HEADRACE_URL", client.access.url)
    monkeypatch.setenv("HEADRACE_CONTROL_URL", client.access.control_url)
    monkeypatch.setenv("HEADRACE_API_KEY", client.access.api_key)
    shown = CliRunner().invoke(app, ["devices"]).output
    assert shown.count("cpu") >= 4 and "l40 spot" in shown and "PRICE/H" in shown
    assert "no moves to be made" in CliRunner().invoke(app, ["placement"]).output
    assert CliRunner().invoke(app, ["placement", "--json"]).exit_code == 0
