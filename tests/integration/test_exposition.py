"""What Prometheus reads: the families, their numbers, and that promtool finds nothing to say."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from headrace.controlplane.metrics import BUCKETS_S, Metrics
from headrace.core.report import (
    Histogram,
    PackReport,
    ReplicaReport,
    RequestCell,
    RouterReport,
    SlotReport,
    StepReport,
    bin_of,
)
from headrace.core.specs import CatalogEntry, PackSpec, ReplicaSpec, ReplicaStatus
from headrace.deploy.starts import StartTimes
from headrace.deploy.wire import ZygoteStatus
from tests.unit.test_reconcile import status
from tests.unit.test_starts import status as start_status

SHARED = ReplicaStatus(
    ReplicaSpec("shared-0", "unix:/x", (), pack=PackSpec(0, 128, 64)),
    "ready",
    catalog=(
        CatalogEntry("default/cold", 2, 1, 0, "ready", "", 4_000_000),
        CatalogEntry("default/colder", 1, 1, 1, "ready", "", 4_000_000),
    ),
)


def histogram(*seconds: float) -> Histogram:
    made = Histogram({}, sum(seconds))
    for one in seconds:
        made.bins[bin_of(one)] = made.bins.get(bin_of(one), 0) + 1
    return made


@pytest.fixture
def metrics() -> Iterator[Metrics]:
    starts = StartTimes()
    starts.observe([start_status("r", 0.3)])
    zygote = ZygoteStatus("onnx", 1, True, 60_000_000, 2)
    names = {0: "default", -1: ""}.__getitem__
    made = Metrics(names, lambda: [status("r", "ready"), SHARED], lambda: 7, starts, lambda: [zygote])
    good = RequestCell("default/m", 1, 0, histogram(0.002, 0.02, 0.2), {503: 2})
    lost = RequestCell("", 0, -1, histogram(), {404: 1})
    for _ in range(2):  # the second report adds to the first
        made.take(RouterReport("router-0", 7, (good, lost), 3, 4, 1, 1, 50_000_000))
        slot = SlotReport(
            "default/m",
            1,
            3,
            5,
            2,
            0,
            6,
            {1: 1, 4: 1},
            histogram(0.001, 0.001, 0.001),
            histogram(0.01, 0.01),
            (StepReport("decode", 5, 1, histogram(0.002, 0.004)),),
        )
        made.take(ReplicaReport("r", (slot,), 70_000_000))
        cold = SlotReport("default/cold", 2, 0, 0, 0, 0, 0, {}, histogram(), histogram(), (), 2, 1, 0.06)
        pack = PackReport(0, (0,), 4_000_000, 128 << 20, 8, 2, 1, 3, histogram(0.02, 0.04))
        made.take(ReplicaReport("shared-0", (cold,), 80_000_000, pack))
    yield made


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], Sample]:
    families = text_string_to_metric_families(metrics.prometheus().decode())
    return {(s.name, tuple(sorted(s.labels.items()))): s for family in families for s in family.samples}


def value(metrics: Metrics, name: str, **labels: str) -> float:
    return float(samples(metrics)[name, tuple(sorted(labels.items()))].value)


def test_what_packs_say_is_told_of_the_process_its_number_and_its_versions(metrics: Metrics) -> None:
    gauges = {"versions": 2, "resident_versions": 1, "resident_bytes": 4e6, "memory_bytes": 8e7, "waiting_versions": 3}
    for name, expected in gauges.items():
        assert value(metrics, f"headrace_pack_{name}", pack="shared-0") == expected
    for name, expected in {"hits": 16, "misses": 4, "refused": 2}.items():
        assert value(metrics, f"headrace_pack_{name}_total", pack="0") == expected
    for name, total in {"loads": 4.0, "evictions": 2.0, "load_seconds": 0.12}.items():
        found = value(metrics, f"headrace_pack_{name}_total", model="default/cold", version="2")
        assert math.isclose(found, total)
    assert value(metrics, "headrace_pack_load_duration_seconds_count", pack="0") == 4
    assert metrics.residents() == {("default/cold", 2)}
    (shown,) = metrics.packs()
    assert (shown.versions, shown.resident, shown.loads, shown.evictions, shown.hits) == (2, 1, 4, 2, 16)


def test_promtool_has_nothing_to_say(metrics: Metrics) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian: prometheus)")
    done = subprocess.run([promtool, "check", "metrics"], input=metrics.prometheus(), capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_every_family_has_help_and_the_prefix(metrics: Metrics) -> None:
    families = list(text_string_to_metric_families(metrics.prometheus().decode()))
    assert len(families) >= 14
    for family in families:
        assert family.documentation.endswith("."), family.name
        assert family.name.startswith("headrace_")


def test_starts_and_what_stands_ready(metrics: Metrics) -> None:
    name = "headrace_replica_start_duration_seconds"
    assert value(metrics, f"{name}_count", engine="onnx", origin="zygote", stage="total") == 1
    assert value(metrics, f"{name}_sum", engine="onnx", origin="zygote", stage="load") == 0.1
    assert value(metrics, f"{name}_bucket", engine="onnx", origin="zygote", stage="total", le="0.25") == 0
    assert value(metrics, f"{name}_bucket", engine="onnx", origin="zygote", stage="total", le="0.5") == 1
    assert value(metrics, "headrace_idle_processes", runtime="onnx") == 2
    assert value(metrics, "headrace_resident_memory_bytes", process="zygote-onnx") == 60_000_000


def test_the_page_has_every_metric_with_its_kind_and_labels_and_no_other(metrics: Metrics) -> None:
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    rows = re.findall(r"^\| `(headrace_\w+)` \| (\w+) \| ([^|]*) \| .+\.\s*\|$", page, flags=re.MULTILINE)
    told = {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    found = {}
    for family in text_string_to_metric_families(metrics.prometheus().decode()):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = {label for sample in family.samples for label in sample.labels}
        found[name] = (family.type, labels - {"le"})
    assert told == found
    for name in set(re.findall(r"headrace_\w+", page)):
        assert re.sub(r"_(bucket|sum|count)$", "", name) in found, name


def test_requests_are_counted_by_status(metrics: Metrics) -> None:
    of_model = {"model": "default/m", "version": "1", "tenant": "default"}
    assert value(metrics, "headrace_requests_total", code="200", **of_model) == 6
    assert value(metrics, "headrace_requests_total", code="503", **of_model) == 4
    assert value(metrics, "headrace_requests_total", code="404", model="", version="0", tenant="") == 2


def test_steps_are_counted_each(metrics: Metrics) -> None:
    step = {"model": "default/m", "version": "1", "step": "decode"}
    assert value(metrics, "headrace_step_rows_total", **step) == 10
    assert value(metrics, "headrace_step_failures_total", **step) == 2
    assert value(metrics, "headrace_step_duration_seconds_count", **step) == 4
    assert value(metrics, "headrace_step_duration_seconds_bucket", le="0.0025", **step) == 2


def test_histograms_count_up_to_infinity(metrics: Metrics) -> None:
    found = [
        (float(s.labels["le"]), s.value)
        for (name, _), s in samples(metrics).items()
        if name == "headrace_request_duration_seconds_bucket"
    ]
    assert [edge for edge, _ in found] == [*BUCKETS_S, math.inf]
    counts = dict(found)
    assert [counts[0.001], counts[0.0025], counts[0.025], counts[0.25], counts[math.inf]] == [0, 2, 4, 6, 6]
    of_model = {"model": "default/m", "version": "1"}
    total = value(metrics, "headrace_request_duration_seconds_sum", tenant="default", **of_model)
    assert math.isclose(total, 2 * 0.222)
    assert value(metrics, "headrace_batch_rows_bucket", le="2.0", **of_model) == 2
    assert value(metrics, "headrace_batch_rows_count", **of_model) == 4
    assert value(metrics, "headrace_batch_rows_sum", **of_model) == 10
    assert value(metrics, "headrace_queue_duration_seconds_count", **of_model) == 6
    assert value(metrics, "headrace_engine_duration_seconds_count", **of_model) == 4


def test_gauges_tell_of_now(metrics: Metrics) -> None:
    assert value(metrics, "headrace_queue_length", model="default/m", version="1") == 6
    assert value(metrics, "headrace_replicas", model="default/m", version="1", state="ready") == 1
    assert value(metrics, "headrace_snapshot_epoch") == 7
    assert value(metrics, "headrace_resident_memory_bytes", process="router-0") == 50_000_000
    assert value(metrics, "headrace_resident_memory_bytes", process="r") == 70_000_000


def test_a_model_at_a_glance(metrics: Metrics) -> None:
    found = metrics.models()["default/m"]
    assert (found.model, found.tenant) == ("m", "default")
    assert math.isclose(found.requests_per_s, 1.0) and math.isclose(found.errors_per_s, 0.4)
    assert found.p50_ms is not None and math.isclose(found.p50_ms, 20, rel_tol=0.03)
    assert found.p99_ms is not None and math.isclose(found.p99_ms, 200, rel_tol=0.03)
