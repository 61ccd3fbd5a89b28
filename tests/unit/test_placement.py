"""Placement by tables: which device, and why; what a replica takes; a node's devices."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest

from headrace.core.config import OwnDevice, load
from headrace.core.devices import TIERS, Device, price_per_h
from headrace.core.errors import InvalidInput
from headrace.core.schema import Signature
from headrace.core.specs import EngineOptions, ReplicaSpec, ReplicaStatus, ServedVersion
from headrace.deploy.demand import BASE_MB, Terms, demand_of
from headrace.deploy.inventory import cores, devices, memory_mb, tier_named, visible
from headrace.deploy.placement import Demand, Packing
from headrace.deploy.reconcile import Memory, Want, reconcile

GIB = 1024
ONE = '{"name": "a", "memory_mb": 1, "compute": 1}'


def device(name: str, tier: str = "t4", gib: int = 16, compute: float = 1.0, spot: bool = False) -> Device:
    return Device(name, name.partition("/")[0], tier, gib * GIB, compute, spot)


def demand(gib: float, *tiers: str, group: str = "m", **options: object) -> Demand:
    return Demand(group, gib * GIB, tiers=tiers or ("t4",), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fleet", "asked", "chosen"),
    [
        ([device("n/gpu0"), device("n/gpu1", "l40", 48)], demand(4, "l40"), "n/gpu1"),
        ([device("n/gpu0"), device("n/gpu1", spot=True)], demand(4), "n/gpu0"),
        ([device("n/gpu0"), device("n/gpu1", spot=True)], demand(4, spot=True), "n/gpu1"),  # the cheaper
        ([device("n/gpu0"), device("n/gpu1", "l40", 48)], demand(15, "t4", "l40"), "n/gpu1"),  # 90 % of 16 GiB is less
        ([device("n/gpu0"), device("n/gpu1", "l40", 48)], demand(1, "t4", "l40", compute=0.9), "n/gpu1"),
        ([device("n/gpu0", "a100", 80), device("n/gpu1", "l40", 48)], demand(9, "a100", "l40"), "n/gpu1"),
    ],
)
def test_a_replica_goes_where_it_may_and_is_cheapest(fleet: list[Device], asked: Demand, chosen: str) -> None:
    choice = Packing(fleet, TIERS).place(asked)
    assert choice.device is not None and choice.device.id == chosen
    assert choice.reason.startswith(f"{chosen} (") and "the cheapest for what it gives" in choice.reason


@pytest.mark.parametrize(
    ("fleet", "there", "asked", "reason"),
    [
        ([], [], demand(1), "no device of tier t4: the fleet has no devices"),
        ([device("n/gpu0")], [], demand(1, "a100"), "no device of tier a100: the fleet has t4"),
        ([device("n/gpu0", spot=True)], [], demand(1), "all devices of tier t4 are spot, which the deployment does"),
        ([device("n/gpu0")], [], demand(15), "no device of tier t4 is large enough for 15.0 GiB: n/gpu0 gives 14.4"),
        ([device("n/gpu0")], [demand(6)], demand(12, group="o"), "has 12.0 GiB free: n/gpu0 has 8.4 GiB"),
        (
            [device("n/gpu0")],
            [demand(1, compute=0.6)],
            demand(1, group="o", compute=0.5),
            "has 1.0 GiB and compute of 0.5 free: n/gpu0 has compute of 0.2",
        ),
        (
            [device("n/gpu0"), device("n/gpu1")],
            [demand(1, replicas=2), demand(14, group="o")],
            demand(1, replicas=2),
            "n/gpu0 has a replica of it",
        ),
    ],
)  # fmt: skip
def test_no_room_is_told_with_the_reason(fleet: list[Device], there: list[Demand], asked: Demand, reason: str) -> None:
    packing = Packing(fleet, TIERS)
    for k, one in enumerate(there):
        packing.take(fleet[k].id, one)
    choice = packing.place(asked)
    assert choice.device is None and reason in choice.reason


def test_replicas_share_a_device_only_where_there_are_more_of_them_than_devices() -> None:
    packing = Packing([device("n/gpu0"), device("n/gpu1")], TIERS)
    chosen = [packing.place(demand(1, replicas=3)).device for _ in range(3)]
    assert sorted(d.id for d in chosen if d is not None)[::2] == ["n/gpu0", "n/gpu1"]


def test_the_second_replica_goes_to_another_node() -> None:
    packing = Packing([device("a/gpu0"), device("a/gpu1"), device("b/gpu0")], TIERS)
    packing.take("a/gpu1", demand(5, group="o"))  # in use already, and would fit better
    nodes = [d.node for _ in range(2) if (d := packing.place(demand(1, replicas=2)).device) is not None]
    assert sorted(nodes) == ["a", "b"]


def spec(memory_mb: int | None = None, size: int = 0, compute: float | None = None) -> ReplicaSpec:
    served = ServedVersion(0, "t/m", 1, "onnx", "", "", Signature((), ()), EngineOptions(), size)
    return ReplicaSpec("r", "unix:r", (served,), memory_mb=memory_mb, compute=compute)


@pytest.mark.parametrize(
    ("one", "tiers", "measured", "takes"),
    [
        (spec(500, 1 << 30), (), 90.0, 500),
        (spec(None, 1 << 30), (), 90.0, 90),
        (spec(None, 100 << 20), (), None, BASE_MB + 150),
        (spec(None, 100 << 20), ("t4",), 90.0, BASE_MB + 150),
    ],
)
def test_what_a_replica_takes(one: ReplicaSpec, tiers: tuple[str, ...], measured: float | None, takes: float) -> None:
    assert demand_of(one, ("t/m", 1), Terms(tiers), measured).memory_mb == takes


def test_without_a_reservation_processors_are_shared_and_accelerators_as_their_memory() -> None:
    fleet = [device("n/cpu", "cpu", 10, 4.0), device("n/gpu0")]
    packing = Packing(fleet, TIERS)
    assert packing.compute_of(demand(7.2, "cpu", "t4")).tolist() == pytest.approx([0.0, 0.4])
    assert packing.compute_of(demand(7.2, "cpu", "t4", compute=0.1)).tolist() == [0.1, 0.1]
    assert price_per_h(fleet[0], TIERS) == pytest.approx(0.16)


class Inventory:
    """Accelerators that a machine might have: NVML itself has none to list here."""

    def list(self) -> Sequence[tuple[str, int]]:
        return [("NVIDIA A100-SXM4-80GB", 81_920), ("Tesla T4", 15_360)]


def test_a_nodes_devices_are_its_processors_and_its_accelerators() -> None:
    found = devices("n", (), TIERS, Inventory())
    assert found == (
        Device("n/cpu", "n", "cpu", memory_mb(), cores()),
        Device("n/gpu0", "n", "a100", 81_920, 1.0),
        Device("n/gpu1", "n", "t4", 15_360, 1.0),
    )
    assert found[0].memory_mb > 0 and found[0].compute > 0
    assert devices("n", (OwnDevice("x", 100, 1.0),), TIERS, Inventory()) == (Device("n/x", "n", "cpu", 100, 1.0),)
    assert visible("n/gpu1") == {"CUDA_VISIBLE_DEVICES": "1"} and not visible("n/cpu")


@pytest.mark.parametrize(
    ("product", "tier"),
    [
        ("NVIDIA L40S", "l40"),
        ("NVIDIA L40", "l40"),
        ("NVIDIA A100-PCIE-40GB", "a100"),
        ("NVIDIA H100 PCIe", "h100"),
        ("NVIDIA T400 4GB", "t400"),
        ("", "gpu"),
    ],
)
def test_a_product_belongs_to_a_tier(product: str, tier: str) -> None:
    assert tier_named(product, TIERS) == tier


@pytest.mark.parametrize(
    ("setting", "text", "says"),
    [
        ("tiers", "{", "tiers: not JSON"),
        ("tiers", '{"t4": {"price": 1}}', "unknown field `price`"),
        ("tiers", '{"t4": {"price_per_h": -1}}', "tiers: t4: expected prices of 0 to"),
        ("tiers", '{"t4": {"speed": 0}}', "a speed above 0"),
        ("tiers", '{"T 4": {}}', "expected letters, digits and -"),
        ("devices", '[{"name": "a", "memory_mb": 0, "compute": 1}]', "devices: a: expected memory_mb of 1 to"),
        ("devices", f"[{ONE},{ONE}]", "each name once"),
        ("devices", '[{"name": "a"}]', "missing required field"),
    ],
)  # fmt: skip
def test_bad_tiers_and_devices_are_refused(setting: str, text: str, says: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        load(None, {f"HEADRACE_{setting.upper()}": text})
    assert says in caught.value.message and (caught.value.field or "").startswith(setting)


def test_prices_go_over_those_that_are_built_in() -> None:
    tiers = load(None, {"HEADRACE_TIERS": '{"h100": {"price_per_h": 3, "speed": 12}, "t4": {"price_per_h": 1}}'})
    assert set(tiers.settings.tiers) == {*TIERS, "h100"} and tiers.settings.tiers["t4"].price_per_h == 1


def test_a_successor_that_cannot_serve_elsewhere_does_not_fail_those_that_serve() -> None:
    def status(name: str, state: str) -> ReplicaStatus:
        return ReplicaStatus(msgspec.structs.replace(spec(), id=name), state, 1, "no such library")  # type: ignore[arg-type]

    target, memory = ("t/m", 1), {("t/m", 1): Memory(1)}
    fleet = [status("old", "ready"), status("new", "failed")]
    moving = reconcile([Want(target, 1, 1, leaving=frozenset({"old"}))], fleet, (), memory, 1.0)
    assert moving.standings[target].state == "ready" and memory[target].crashes == 1
    rests = reconcile([Want(target, 1, 1)], fleet[:1], (), memory, 2.0)
    assert not rests.start and not rests.stop
