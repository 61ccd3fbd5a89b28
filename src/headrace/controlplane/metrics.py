"""Reports merged: rates and quantiles of the last seconds, and the Prometheus exposition.

Counters are summed over all reports since this control plane started; Prometheus knows what a reset is. Buckets of
the histograms are read out of the 2 % log bins, so that they cost nothing on the request path.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from headrace.controlplane.link import Hub
from headrace.controlplane.pack_metrics import PackMetrics
from headrace.core.report import Histogram, ReplicaReport, RouterReport, upper_s
from headrace.core.resources import ModelStatus, PackStatus, RouterStatus
from headrace.core.specs import ReplicaStatus
from headrace.deploy.reconcile import Target
from headrace.deploy.starts import StartTimes
from headrace.deploy.wire import ZygoteStatus

WINDOW_S = 10.0
RECENT_MAX = 1000
"""Reports in the window: 100 routers that report each second."""
BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


@dataclass
class Served:
    """Sums of a version in the replicas."""

    rows: int = 0
    queued: dict[str, int] = field(default_factory=dict)
    batch_rows: dict[int, int] = field(default_factory=dict)
    queue: Histogram = field(default_factory=lambda: Histogram({}, 0.0))
    engine: Histogram = field(default_factory=lambda: Histogram({}, 0.0))
    steps: dict[str, Stepped] = field(default_factory=dict)
    """Of a pipeline, in their order."""


@dataclass
class Stepped:
    """Sums of a pipeline's step in the replicas."""

    rows: int = 0
    failures: int = 0
    durations: Histogram = field(default_factory=lambda: Histogram({}, 0.0))


class Metrics:
    """Implements `ports.Telemetry`.

    Args:
        hub: whose routers are connected.
        tenant_name: index -> name; -1 and unknown ones are "".
        statuses: the fleet's replicas.
        epoch: of the current snapshot.
        starts: how long replicas took to start.
        zygotes: what the node forks replicas from.
    """

    def __init__(
        self,
        tenant_name: Callable[[int], str],
        statuses: Callable[[], Iterable[ReplicaStatus]],
        epoch: Callable[[], int],
        starts: StartTimes | None = None,
        zygotes: Callable[[], Iterable[ZygoteStatus]] = tuple,
        holding: Callable[[], str] = str,
    ) -> None:
        self._starts = starts or StartTimes()
        self._zygotes = zygotes
        self.hub: Hub | None = None
        self._tenant_name = tenant_name
        self._statuses = statuses
        self._epoch = epoch
        self._holding = holding
        self._codes: dict[tuple[str, int, int, int], int] = {}
        self._latency: dict[tuple[str, int, int], Histogram] = {}
        self._served: dict[tuple[str, int], Served] = {}
        self._routers: dict[str, RouterReport] = {}
        self._replicas: dict[str, ReplicaReport] = {}
        self._retries = self._ejections = 0
        self._recent: deque[tuple[float, RouterReport]] = deque(maxlen=RECENT_MAX)
        self.packed = PackMetrics(statuses)
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_Exposition(self))

    # ------------------------------------------------------------------------------------------------ in
    def take(self, report: RouterReport | ReplicaReport) -> None:
        """Merge a report."""
        if isinstance(report, ReplicaReport):
            self._take_replica(report)
            return
        self._routers[report.router] = report
        self._retries += report.retries
        self._ejections += report.ejections
        self._recent.append((time.monotonic(), report))
        for cell in report.cells:
            key = (cell.model, cell.version, cell.tenant)
            if count := cell.latency.count:
                self._codes[*key, 200] = self._codes.get((*key, 200), 0) + count
                self._latency.setdefault(key, Histogram({}, 0.0)).merge(cell.latency)
            for status, count in cell.errors.items():
                self._codes[*key, status] = self._codes.get((*key, status), 0) + count

    def resident_mb(self) -> dict[str, float]:
        """Memory that replicas have resident, by id, as last reported."""
        return {id_: report.rss_bytes / (1 << 20) for id_, report in self._replicas.items()}

    def _take_replica(self, report: ReplicaReport) -> None:
        self._replicas[report.replica] = report
        self.packed.take(report)
        for slot in report.slots:
            served = self._served.setdefault((slot.model, slot.version), Served())
            served.rows += slot.rows
            served.queued[report.replica] = slot.queued
            served.queue.merge(slot.queue)
            served.engine.merge(slot.engine)
            for one in slot.steps:
                stepped = served.steps.setdefault(one.step, Stepped())
                stepped.rows += one.rows
                stepped.failures += one.failures
                stepped.durations.merge(one.durations)
            for rows, count in slot.batch_rows.items():
                served.batch_rows[rows] = served.batch_rows.get(rows, 0) + count

    # ------------------------------------------------------------------------------------------------ out
    def _window(self) -> Iterable[RouterReport]:
        """The reports of the last seconds; none when no router is left to send any."""
        oldest = time.monotonic() - WINDOW_S
        while self._recent and self._recent[0][0] < oldest:
            self._recent.popleft()
        return (report for _, report in self._recent)

    def routers(self) -> list[RouterStatus]:
        """See `ports.Telemetry.routers`."""
        connected = self.hub.routers if self.hub is not None else {}
        rates = dict.fromkeys(connected, 0.0)
        for report in self._window():
            done = sum(cell.latency.count + sum(cell.errors.values()) for cell in report.cells)
            rates[report.router] = rates.get(report.router, 0.0) + done / WINDOW_S
        statuses = []
        for name in sorted(connected.keys() | self._routers.keys()):
            peer = connected.get(name)
            last = self._routers.get(name)
            pid = peer.hello.pid if peer is not None and peer.hello is not None else 0
            rss = last.rss_bytes if last is not None else 0
            epoch = peer.epoch if peer is not None else 0
            statuses.append(RouterStatus(name, pid, peer is not None, epoch, rates.get(name, 0.0), rss))
        return statuses

    def models(self) -> dict[str, ModelStatus]:
        """See `ports.Telemetry.models`."""
        latency: dict[str, Histogram] = {}
        errors: dict[str, int] = {}
        for report in self._window():
            for cell in report.cells:
                latency.setdefault(cell.model, Histogram({}, 0.0)).merge(cell.latency)
                errors[cell.model] = errors.get(cell.model, 0) + sum(cell.errors.values())
        found = {}
        for model, histogram in latency.items():
            tenant, _, name = model.partition("/")
            count = histogram.count
            p50, p99 = (histogram.quantile_s(q) * 1e3 if count else None for q in (0.5, 0.99))
            rate = (count + errors[model]) / WINDOW_S
            found[model] = ModelStatus(name, tenant, {}, 0, rate, errors[model] / WINDOW_S, p50, p99)
        return found

    def residents(self) -> Collection[Target]:
        """See `ports.Telemetry.residents`."""
        return self.packed.residents()

    def packs(self) -> list[PackStatus]:
        """See `ports.Telemetry.packs`."""
        return self.packed.packs()

    def prometheus(self) -> bytes:
        """See `ports.Telemetry.prometheus`."""
        return bytes(generate_latest(self._registry))

    def families(self) -> Iterable[Metric]:
        """Everything that is exposed."""
        requests = CounterMetricFamily(
            "headrace_requests",
            "Inference requests answered, by HTTP status; version 0 and no model where none was decided.",
            labels=["model", "version", "tenant", "code"],
        )
        for (model, version, tenant, code), count in self._codes.items():
            requests.add_metric([model, str(version), self._tenant_name(tenant), str(code)], count)
        yield requests
        duration = HistogramMetricFamily(
            "headrace_request_duration_seconds",
            "From a request's arrival at the router to its answer; successes only.",
            labels=["model", "version", "tenant"],
        )
        for (model, version, tenant), histogram in self._latency.items():
            _add(duration, [model, str(version), self._tenant_name(tenant)], histogram)
        yield duration
        yield from self._served_families()
        yield from self._step_families()
        yield from self._start_families()
        yield from self.packed.families()
        yield from self._process_families()

    def _served_families(self) -> Iterable[Metric]:
        labels = ["model", "version"]
        rows = CounterMetricFamily("headrace_rows", "Rows run by the engines.", labels=labels)
        batches = HistogramMetricFamily("headrace_batch_rows", "Rows in a run of the engine.", labels=labels)
        queue = HistogramMetricFamily(
            "headrace_queue_duration_seconds", "Time a request waited in the replica.", labels=labels
        )
        engine = HistogramMetricFamily(
            "headrace_engine_duration_seconds", "Duration of a run of the engine.", labels=labels
        )
        waiting = GaugeMetricFamily("headrace_queue_length", "Requests waiting in the replicas.", labels=labels)
        for (model, version), served in self._served.items():
            names = [model, str(version)]
            rows.add_metric(names, served.rows)
            _add(queue, names, served.queue)
            _add(engine, names, served.engine)
            waiting.add_metric(names, sum(served.queued.values()))
            counted = {edge: sum(n for size, n in served.batch_rows.items() if size <= edge) for edge in BATCH_BUCKETS}
            total = sum(served.batch_rows.values())
            buckets = [(str(float(edge)), float(n)) for edge, n in counted.items()]
            batches.add_metric(names, [*buckets, ("+Inf", float(total))], served.rows)
        yield from (rows, batches, queue, engine, waiting)

    def _step_families(self) -> Iterable[Metric]:
        labels = ["model", "version", "step"]
        rows = CounterMetricFamily("headrace_step_rows", "Rows run by a step of a pipeline.", labels=labels)
        failures = CounterMetricFamily("headrace_step_failures", "Runs of a step that failed.", labels=labels)
        durations = HistogramMetricFamily(
            "headrace_step_duration_seconds", "Duration of a run of a step.", labels=labels
        )
        for (model, version), served in self._served.items():
            for step, sums in served.steps.items():
                names = [model, str(version), step]
                rows.add_metric(names, sums.rows)
                failures.add_metric(names, sums.failures)
                _add(durations, names, sums.durations)
        yield from (rows, failures, durations)

    def _start_families(self) -> Iterable[Metric]:
        durations = HistogramMetricFamily(
            "headrace_replica_start_duration_seconds",
            "Duration of a stage of a replica's start; total is from the command to the first request it can take.",
            labels=["engine", "origin", "stage"],
        )
        for names, histogram in self._starts.stages.items():
            _add(durations, list(names), histogram)
        yield durations
        idle = GaugeMetricFamily("headrace_idle_processes", "Processes that stand ready.", labels=["runtime"])
        for zygote in self._zygotes():
            idle.add_metric([zygote.runtime], zygote.idle)
        yield idle

    def _process_families(self) -> Iterable[Metric]:
        yield GaugeMetricFamily("headrace_snapshot_epoch", "Epoch of the routing snapshot.", self._epoch())
        yield GaugeMetricFamily(
            "headrace_fleet_holding", "1 while nothing can be started or stopped.", float(bool(self._holding()))
        )
        replicas = GaugeMetricFamily("headrace_replicas", "Replicas by state.", labels=["model", "version", "state"])
        counts: dict[tuple[str, str, str], int] = {}
        for status in self._statuses():
            for served in status.spec.versions:
                key = (served.model, str(served.version), status.state)
                counts[key] = counts.get(key, 0) + 1
        for names, count in counts.items():
            replicas.add_metric(list(names), count)
        yield replicas
        memory = GaugeMetricFamily("headrace_resident_memory_bytes", "Resident memory.", labels=["process"])
        connections = GaugeMetricFamily("headrace_router_connections", "Client connections.", labels=["router"])
        flight = GaugeMetricFamily("headrace_router_in_flight", "Requests at replicas.", labels=["router"])
        for name, router in self._routers.items():
            memory.add_metric([name], router.rss_bytes)
            connections.add_metric([name], router.connections)
            flight.add_metric([name], router.in_flight)
        alive = {status.spec.id for status in self._statuses()}
        self._replicas = {name: report for name, report in self._replicas.items() if name in alive}
        for served_by in self._served.values():
            served_by.queued = {name: n for name, n in served_by.queued.items() if name in alive}
        for name, replica in self._replicas.items():
            memory.add_metric([name], replica.rss_bytes)
        for zygote in self._zygotes():
            memory.add_metric([f"zygote-{zygote.runtime}"], zygote.rss_bytes)
        yield from (memory, connections, flight)
        yield CounterMetricFamily("headrace_retries", "Requests sent to a second replica.", self._retries)
        yield CounterMetricFamily("headrace_ejections", "Replicas taken out of routing for failures.", self._ejections)


def _add(family: HistogramMetricFamily, labels: list[str], histogram: Histogram) -> None:
    """A log-bin histogram in Prometheus's buckets: a bin counts below an edge when it ends there or before."""
    edges = {index: upper_s(index) for index in histogram.bins}
    buckets = [
        (str(edge), float(sum(n for index, n in histogram.bins.items() if edges[index] <= edge))) for edge in BUCKETS_S
    ]
    family.add_metric(labels, [*buckets, ("+Inf", float(histogram.count))], histogram.sum_s)


class _Exposition(Collector):
    """Hands the families to prometheus-client when somebody scrapes."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        """The families as they are now."""
        return self._metrics.families()
