"""How long starts take: each counted once, whatever is seen how often."""

from __future__ import annotations

from headrace.core.schema import Signature
from headrace.core.specs import EngineOptions, ReplicaSpec, ReplicaStatus, ServedVersion
from headrace.deploy.starts import StartTimes, p95


def status(name: str, total: float | None, version: int = 1, engine: str = "onnx") -> ReplicaStatus:
    served = ServedVersion(0, "default/m", version, engine, "", "", Signature((), ()), EngineOptions())
    timings = {"start": 0.01, "load": 0.1} | ({} if total is None else {"total": total})
    return ReplicaStatus(ReplicaSpec(name, "", (served,)), "ready", 1, timings_s=timings, origin="zygote")


def test_each_start_counts_once() -> None:
    starts = StartTimes()
    for _ in range(3):
        starts.observe([status("a", 1.0), status("b", None)])
    starts.observe([status("a", 1.0), status("b", 3.0)])
    starts.observe([])
    starts.observe([status("c", 2.0)])
    assert starts.stages["onnx", "zygote", "total"].count == 3
    assert starts.stages["onnx", "zygote", "total"].sum_s == 6.0
    assert starts.stages["onnx", "zygote", "load"].count == 3
    assert starts.p95_s(("default/m", 1)) == 3.0


def test_a_version_without_starts_is_judged_by_its_engine() -> None:
    starts = StartTimes()
    starts.observe([status("a", 1.0, version=1)])
    assert starts.p95_s(("default/m", 2), "onnx") == 1.0
    assert starts.p95_s(("default/m", 2), "xgboost") is None
    starts.observe([status("b", 5.0, version=2)])
    assert starts.p95_s(("default/m", 2), "onnx") == 5.0
    assert starts.p95_s(("default/m", 1), "onnx") == 1.0


def test_p95_is_the_nearest_rank() -> None:
    assert p95([1.0]) == 1.0
    assert p95([float(k) for k in range(1, 101)]) == 95.0
    assert p95([float(k) for k in range(1, 21)]) == 19.0
