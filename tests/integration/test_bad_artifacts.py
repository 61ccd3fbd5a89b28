"""Artifacts that go bad after they were registered, and models that break only when they are deployed: the reason is
told, the version before goes on serving, and so does everybody else's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from headrace.client import calls
from headrace.client.client import Client
from headrace.client.serve import Platform
from headrace.core.errors import HeadraceError
from headrace.core.resources import Quota, TenantUpdate
from tests import models
from tests.integration.wire import Wire, answering_throughout
from tests.polling import until


@pytest.fixture(autouse=True)
def neighbour(client: Client, echo: str) -> Iterator[None]:
    client.call(calls.update_tenant("default", TenantUpdate(None, 1e6, 1e6, 1_000_000)))
    with answering_throughout(Wire(client), f"/v2/models/{echo}/infer"):
        yield


def truncated(content: bytes) -> bytes:
    return content[: len(content) // 2]


def tampered(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


def told(client: Client, reference: str) -> str:
    """Why a deployment does not become ready."""
    reasons: list[str] = []

    def failed() -> bool:
        found = client.call(calls.show_deployment(reference))
        assert found.ready == 0
        reasons[:] = [found.detail] if found.state == "failed" or "crash" in found.detail else []
        return bool(reasons)

    until(failed, 60)
    return reasons[0]


@pytest.mark.parametrize("spoil", [truncated, tampered, lambda content: b""], ids=["truncated", "tampered", "emptied"])
def test_an_artifact_that_changed_on_disk_is_never_served(
    client: Client, platform: Platform, spoil: Callable[[bytes], bytes], request: pytest.FixtureRequest
) -> None:
    name = f"spoilt-{request.node.callspec.id}"
    good = client.push(name, models.echo_onnx(1.0).content).result
    client.deploy(f"{name}@{good.version}", traffic=100)
    artifact = models.echo_onnx(2.0 + len(name))
    bad = client.push(name, artifact.content).result
    (stored,) = (platform.folder / "artifacts" / "sha256").rglob(artifact.digest)
    stored.chmod(0o600)
    stored.write_bytes(spoil(stored.read_bytes()))
    client.deploy(f"{name}@{bad.version}", wait_s=None)
    reason = told(client, f"{name}@{bad.version}")
    assert "digest" in reason.lower() or "sha-256" in reason.lower(), reason
    assert str(platform.folder) not in reason
    assert client.predict(name, [[1.0]]).array.tolist() == [[2.0]]
    with pytest.raises(HeadraceError):
        client.set_traffic(name, {bad.version: 100})
    client.undeploy(f"{name}@{bad.version}")


@pytest.mark.parametrize("when", ["load", "predict"])
@pytest.mark.parametrize("how", ["os._exit(9)", "raise RuntimeError('no weights')", "os.kill(os.getpid(), 11)"])
def test_a_model_that_breaks_only_when_it_is_deployed(client: Client, tmp_path: Path, when: str, how: str) -> None:
    """Sound while it was examined; `predict` breaks at the warm-up."""
    marker = tmp_path / "broken"
    name = f"late-{when}-{abs(hash(how)) % 10**6}"
    good = client.push(name, models.echo_onnx(1.0).content).result
    client.deploy(f"{name}@{good.version}", traffic=100)
    artifact = models.python_echo(**{when: f"if os.path.exists({str(marker)!r}): {how}"})
    bad = client.push(name, artifact.named(tmp_path)).result
    marker.touch()
    client.deploy(f"{name}@{bad.version}", wait_s=None)
    reason = told(client, f"{name}@{bad.version}")
    assert "Traceback" not in reason
    assert client.predict(name, [[1.0]]).array.tolist() == [[2.0]]
    with pytest.raises(HeadraceError):
        client.set_traffic(name, {bad.version: 100})
    client.undeploy(f"{name}@{bad.version}")


def test_another_tenant_cannot_touch_a_model(client: Client, echo: str) -> None:
    client.call(calls.create_tenant("elsewhere", Quota(1e6, 1e6, 1000)))
    key = client.call(calls.create_key("operator", "elsewhere")).result.text
    with Client(client.access.url, key, client.access.control_url) as stranger:
        for ask in (
            lambda: stranger.predict(echo, [[1.0]]),
            lambda: stranger.call(calls.show_model(echo)),
            lambda: stranger.call(calls.show_model(f"default/{echo}")),
            lambda: stranger.rollback(f"default/{echo}"),
            lambda: stranger.undeploy(f"default/{echo}@1"),
            lambda: stranger.set_traffic(f"default/{echo}", {1: 100}),
        ):
            with pytest.raises(HeadraceError) as caught:
                ask()
            assert caught.value.status in (403, 404)
