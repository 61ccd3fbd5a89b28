"""What packs report: which versions are in memory, loads and evictions, for the API and for Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from headrace.core.report import Histogram, PackReport, ReplicaReport, upper_s
from headrace.core.resources import PackStatus
from headrace.core.specs import ReplicaStatus
from headrace.deploy.reconcile import Target

BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


@dataclass
class Sums:
    """Of one pack's number, over all its processes."""

    loads: int = 0
    evictions: int = 0
    hits: int = 0
    misses: int = 0
    refused: int = 0
    durations: Histogram = field(default_factory=lambda: Histogram({}, 0.0))


@dataclass
class Loads:
    """Of a version."""

    loads: int = 0
    evictions: int = 0
    seconds: float = 0.0


class PackMetrics:
    """All packs'.

    Args:
        statuses: the fleet's replicas.
    """

    def __init__(self, statuses: Callable[[], Iterable[ReplicaStatus]]) -> None:
        self._statuses = statuses
        self._sums: dict[int, Sums] = {}
        self._versions: dict[Target, Loads] = {}
        self._last: dict[str, tuple[PackReport, int]] = {}
        """Pack's id -> its last report, and its resident bytes."""

    def take(self, report: ReplicaReport) -> None:
        """Merge a report; one that is not of a pack says nothing here."""
        pack = report.pack
        if pack is None:
            return
        self._last[report.replica] = pack, report.rss_bytes
        sums = self._sums.setdefault(pack.number, Sums())
        sums.hits += pack.hits
        sums.misses += pack.misses
        sums.refused += pack.refused
        sums.durations.merge(pack.loads)
        for slot in report.slots:
            if slot.loads or slot.evictions:
                version = self._versions.setdefault((slot.model, slot.version), Loads())
                version.loads += slot.loads
                version.evictions += slot.evictions
                version.seconds += slot.load_s
                sums.loads += slot.loads
                sums.evictions += slot.evictions

    def _packs(self) -> list[ReplicaStatus]:
        found = [status for status in self._statuses() if status.spec.pack is not None]
        alive = {status.spec.id for status in found}
        self._last = {id_: last for id_, last in self._last.items() if id_ in alive}
        return found

    def residents(self) -> set[Target]:
        """See `ports.Telemetry.residents`."""
        found = set()
        for status in self._packs():
            if status.spec.id in self._last:
                resident = set(self._last[status.spec.id][0].resident)
                found |= {(entry.model, entry.version) for entry in status.catalog if entry.slot in resident}
        return found

    def packs(self) -> list[PackStatus]:
        """See `ports.Telemetry.packs`."""
        found = []
        for status in self._packs():
            assert status.spec.pack is not None
            number, limit = status.spec.pack.number, status.spec.pack.memory_mb << 20
            sums = self._sums.get(number, Sums())
            report, rss = self._last.get(status.spec.id, (None, 0))
            found.append(
                PackStatus(
                    status.spec.id,
                    number,
                    status.state,
                    status.pid,
                    len(status.catalog),
                    len(report.resident) if report is not None else 0,
                    report.resident_bytes if report is not None else 0,
                    rss,
                    limit,
                    sums.loads,
                    sums.evictions,
                    sums.hits,
                    sums.misses,
                )
            )
        return sorted(found, key=lambda pack: (pack.number, pack.id))

    def families(self) -> Iterable[Metric]:
        """For Prometheus."""
        gauges = {
            name: GaugeMetricFamily(f"headrace_pack_{name}", text, labels=["pack"])
            for name, text in (
                ("versions", "Versions in a shared process's catalog."),
                ("resident_versions", "Of these, in memory."),
                ("resident_bytes", "Memory that these take."),
                ("memory_bytes", "Resident memory of a shared process."),
                ("memory_limit_bytes", "Its limit."),
                ("waiting_versions", "Versions that wait to be loaded."),
            )
        }
        for status in self._packs():
            assert status.spec.pack is not None
            if status.spec.id in self._last:
                report, rss = self._last[status.spec.id]
                values = {
                    "versions": len(status.catalog),
                    "resident_versions": len(report.resident),
                    "resident_bytes": report.resident_bytes,
                    "memory_bytes": rss,
                    "memory_limit_bytes": report.limit_bytes,
                    "waiting_versions": report.waiting,
                }
                for name, value in values.items():
                    gauges[name].add_metric([status.spec.id], value)
        yield from gauges.values()
        yield from self._counters()

    def _counters(self) -> Iterable[Metric]:
        hits = CounterMetricFamily("headrace_pack_hits", "Requests whose version was in memory.", labels=["pack"])
        misses = CounterMetricFamily("headrace_pack_misses", "Requests that waited for a load.", labels=["pack"])
        refused = CounterMetricFamily("headrace_pack_refused", "Requests refused: too many loads.", labels=["pack"])
        durations = HistogramMetricFamily("headrace_pack_load_duration_seconds", "Duration of a load.", labels=["pack"])
        for number, sums in self._sums.items():
            name = [str(number)]
            hits.add_metric(name, sums.hits)
            misses.add_metric(name, sums.misses)
            refused.add_metric(name, sums.refused)
            edges = {index: upper_s(index) for index in sums.durations.bins}
            counts = [(e, sum(n for k, n in sums.durations.bins.items() if edges[k] <= e)) for e in BUCKETS_S]
            buckets = [(str(edge), float(count)) for edge, count in counts]
            durations.add_metric(name, [*buckets, ("+Inf", float(sums.durations.count))], sums.durations.sum_s)
        yield from (hits, misses, refused, durations)
        labels = ["model", "version"]
        loads = CounterMetricFamily("headrace_pack_loads", "Loads because somebody asked.", labels=labels)
        evictions = CounterMetricFamily("headrace_pack_evictions", "Evictions to make room.", labels=labels)
        seconds = CounterMetricFamily("headrace_pack_load_seconds", "Seconds that its loads took.", labels=labels)
        for (model, version), one in self._versions.items():
            names = [model, str(version)]
            loads.add_metric(names, one.loads)
            evictions.add_metric(names, one.evictions)
            seconds.add_metric(names, one.seconds)
        yield from (loads, evictions, seconds)
