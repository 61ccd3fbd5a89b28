"""One model version inside a replica: its queue, its engine, its numbers.

A batch runs in the event loop's thread while the engine is quick (handing it to another thread and back would cost
more than the run), and in a thread of its own once none of the last few runs was quicker than `INLINE_S`, so that
frames, deadlines and cancellations are served meanwhile. The quickest of them counts: one that was long because the
machine gave the core to somebody else says nothing of the engine.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from headrace.core import frames, meta
from headrace.core.errors import DeadlineExceeded, HeadraceError, InvalidInput, PlatformFault
from headrace.core.report import SlotReport, StepReport
from headrace.core.specs import ServedVersion
from headrace.core.telemetry import Durations
from headrace.server.batcher import BatchPolicy, Run, WorkConserving, plan_runs
from headrace.server.codec import Codec, Part
from headrace.server.compression import deflate
from headrace.server.engines.port import Composed, Engine
from headrace.server.tensors import Array

if TYPE_CHECKING:
    from headrace.server.link import RouterLink

INLINE_S = 0.002
"""Runs shorter than this stay in the event loop's thread."""
RECENT = 3
"""Runs that are remembered to judge by."""
COMPRESS_MIN = 4096
"""Bytes. Smaller replies leave as they are: most clients accept gzip by habit, and it would only cost."""

ACCEPTS = frames.ACCEPT_GZIP | frames.ACCEPT_DEFLATE

# request id, deadline (monotonic s), tenant, meta, body, arrival, link, flags
Job = tuple[int, float, int, bytes, memoryview, float, "RouterLink", int]
Result = list[Array] | HeadraceError
log = logging.getLogger("headrace.server")
monotonic = time.monotonic


@dataclass(slots=True)
class Totals:
    """What Triton's statistics extension tells, since the version was loaded. Durations in ns."""

    requests: int = 0
    failures: int = 0
    rows: int = 0
    batches: int = 0
    queue_ns: int = 0
    input_ns: int = 0
    infer_ns: int = 0
    output_ns: int = 0
    last_ms: int = 0
    batch_sizes: dict[int, list[int]] = field(default_factory=dict)
    """Rows -> [runs, ns of input, infer, output]."""


class Slot:
    """A loaded version.

    Args:
        served: the version.
        engine: its loaded engine; None: `equip` brings it.
        run_s: how long it ran when it was warm.
        wake: asks the replica to call `pump` and to send what was answered, soon; called from the loop's thread.
        call_soon: hands a function to the loop's thread from another one.
    """

    def __init__(
        self,
        served: ServedVersion,
        engine: Engine | None,
        run_s: float,
        wake: Callable[[], None],
        call_soon: Callable[[Callable[[], None]], object],
    ) -> None:
        self.served = served
        self.waiting: deque[Job] = deque()
        self.trials: deque[Job] = deque()
        """Each runs alone, once its router has said so."""
        self.began = 0.0
        """When the run under way began; 0 while there is none. What the watchdog looks at."""
        self.running: list[Job] = []
        """Whose run it is, or was."""
        self.policy: BatchPolicy = WorkConserving(max(served.options.batch_max, 1))
        self.busy = False
        self.totals = Totals()
        self._wake = wake
        self._call_soon = call_soon
        self._runs: deque[Run[Job]] = deque()
        self._standing: Job | None = None  # a trial whose router was asked
        self._recent_s: deque[float]  # durations of the last runs
        self._thread: ThreadPoolExecutor | None = None
        self._queue_s = Durations()
        self._engine_s = Durations()
        self._batch_rows: dict[int, int] = {}
        self._reported = Totals()
        if engine is not None:
            self.equip(engine, run_s)

    def equip(self, engine: Engine, run_s: float) -> None:
        """Run by this engine from now on."""
        self.engine = engine
        name = self.served.model.rpartition("/")[2]
        self.codec = Codec(name, self.served.version, engine.signature, finite=self.served.options.nan == "reject")
        self._recent_s = deque([run_s] * RECENT, RECENT)

    @property
    def idle(self) -> bool:
        """Nothing waits and nothing runs."""
        return not (self.waiting or self.trials or self._runs or self.busy)

    @property
    def rests(self) -> bool:
        """There is nothing to pump until something happens to it."""
        return self.idle

    def pump(self) -> None:
        """Start what can be started: decode what waits, run one batch."""
        if self.busy:
            return
        if self.trials and not self._runs:
            return self._stand_by(self.trials.popleft())
        if not self._runs and self.waiting:
            self._decode(self.policy.take(self.waiting, monotonic()))
        if self._runs:
            self._start(self._runs.popleft())
        if (self._runs or self.waiting) and not self.busy:
            self._wake()

    def _stand_by(self, job: Job) -> None:
        """Tell a trial's router that it is next, and run nothing until that says GO, or that nobody waits any more."""
        self._wake()
        rid, link = job[0], job[6]
        if rid in link.gone:
            link.gone.discard(rid)
        elif not link.lost:
            self.busy, self._standing = True, job
            link.out.append(frames.frame(frames.STANDBY, body=rid.to_bytes(4, "little")))

    def go(self, link: RouterLink, rid: int) -> None:
        """Run the trial that stands by."""
        if (job := self._dismiss(link, rid)) is not None:
            self._decode([job])
            self._wake()

    def cancel(self, link: RouterLink, rid: int | None = None) -> None:
        """Nobody waits for this request of the link any more, or (None) for any of them."""
        if self._dismiss(link, rid) is not None:
            self._wake()

    def _dismiss(self, link: RouterLink, rid: int | None) -> Job | None:
        """The trial that stood by, if it is this one; the slot is free again."""
        job = self._standing
        if job is None or job[6] is not link or rid not in (None, job[0]):
            return None
        self.busy, self._standing = False, None
        return job

    def _decode(self, jobs: list[Job]) -> None:
        """Decode and check each request by itself: what is wrong with one is told to that one."""
        now = monotonic()
        decode = self.codec.decode
        good: list[Job] = []
        parts: list[Part] = []
        count_wait = self._queue_s.add
        waited_s = 0.0
        for job in jobs:
            rid, deadline, _, context, body, arrival, link, flags = job
            if rid in link.gone:
                link.gone.discard(rid)
                continue
            if deadline < now:
                self.fail(job, DeadlineExceeded("the deadline passed in the replica's queue"))
                continue
            try:
                parts.append(decode(body, flags, meta.decode(context).json_length if flags & frames.BINARY else -1))
            except HeadraceError as error:
                self.fail(job, error)
                continue
            except Exception:  # our fault; its neighbours shall not pay for it
                log.exception("a request to %s@%d was not read", self.served.model, self.served.version)
                self.fail(job, PlatformFault("internal error"))
                continue
            good.append(job)
            count_wait(now - arrival)
            waited_s += now - arrival
        self.totals.input_ns += int((monotonic() - now) * 1e9)
        self.totals.queue_ns += int(waited_s * 1e9)
        if parts:
            self._runs.extend(plan_runs(good, parts, self.served.options.batch_max, self.codec.batchable))

    def _start(self, run: Run[Job]) -> None:
        self.running = run[0]
        if min(self._recent_s) < INLINE_S:
            self.began = start = monotonic()
            results = self._execute(run[1], run[2])
            self._finish(run, results, monotonic() - start)
            return
        self.busy = True
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "engine")

        def work() -> None:
            self.began = start = monotonic()
            results = self._execute(run[1], run[2])
            taken = monotonic() - start
            self._call_soon(lambda: done(results, taken))

        def done(results: list[Result], taken: float) -> None:
            self.busy = False
            self._finish(run, results, taken)
            self._wake()

        self._thread.submit(work)

    def _execute(self, parts: list[Part], rows: int) -> list[Result]:
        """Outputs of the whole batch as the only item; or one item per part when it had to be split."""
        try:
            return [self._run(self.codec.batch(parts), rows)]
        except Exception:  # whatever a model raises; the split finds whose fault it is
            return self._split(parts)

    def _split(self, parts: list[Part]) -> list[Result]:
        """Run halves until the requests at fault stand alone."""
        self.began = monotonic()
        if len(parts) == 1:
            try:
                return [self._run(self.codec.isolate(parts[0]), parts[0].rows)]
            except HeadraceError as error:
                return [error]
            except Exception as error:
                first_line = (str(error).splitlines() or [""])[0][:500]
                return [PlatformFault(f"the model failed: {type(error).__name__}: {first_line}")]
        middle = len(parts) // 2
        results: list[Result] = []
        for half in (parts[:middle], parts[middle:]):
            self.began = monotonic()
            try:
                outputs = self._run(self.codec.batch(half), sum([part.rows for part in half]))
            except Exception:
                results += self._split(half)
                continue
            at = 0
            for part in half:
                results.append([output[at : at + part.rows] for output in outputs])
                at += part.rows
        return results

    def _run(self, inputs: list[Array], rows: int) -> list[Array]:
        outputs = self.engine.run(inputs)
        if self.codec.batchable:
            for spec, output in zip(self.engine.signature.outputs, outputs, strict=True):
                if output.shape[0] != rows:
                    raise PlatformFault(f"the model gave {output.shape[0]} rows of {spec.name!r} for {rows}")
        return outputs

    def _finish(self, run: Run[Job], results: list[Result], taken: float) -> None:
        """Encode and answer; count."""
        start = monotonic()
        self.began = 0.0
        jobs, parts, rows = run
        self._recent_s.append(taken)
        whole = results[0]
        if len(results) == 1 and not isinstance(whole, HeadraceError):
            self._answer(jobs, parts, whole)
        else:
            for job, part, result in zip(jobs, parts, results, strict=True):
                if isinstance(result, HeadraceError):
                    self.fail(job, result)
                else:
                    self._answer([job], [part], result)
        output_ns = int((monotonic() - start) * 1e9)
        totals, taken_ns = self.totals, int(taken * 1e9)
        totals.rows += rows
        totals.batches += 1
        totals.infer_ns += taken_ns
        totals.output_ns += output_ns
        totals.last_ms = time.time_ns() // 1_000_000
        size = totals.batch_sizes.setdefault(rows, [0, 0, 0, 0])
        size[0] += 1
        size[2] += taken_ns
        size[3] += output_ns
        self._engine_s.add(taken)
        self._engine_s.trim()
        self._queue_s.trim()
        power = 1 << (rows - 1).bit_length()
        self._batch_rows[power] = self._batch_rows.get(power, 0) + 1

    def _answer(self, jobs: list[Job], parts: list[Part], outputs: list[Array]) -> None:
        pack, kind = frames.HEADER.pack, frames.REPLY
        for job, reply in zip(jobs, self.codec.encode(parts, outputs), strict=True):
            link, flags = job[6], job[7]
            if type(reply) is bytes and (len(reply) < COMPRESS_MIN or not flags & ACCEPTS):
                link.out += (pack(len(reply), job[0], kind, 0, 200, 0, 0, 0), reply)
            elif isinstance(reply, InvalidInput):
                self.fail(job, reply)
            else:
                self._answer_packed(job, reply)
        self.totals.requests += len(jobs)

    def _answer_packed(self, job: Job, reply: bytes | tuple[int, bytes]) -> None:
        """Answer with binary tensors, or compressed."""
        flag, context = 0, b""
        if isinstance(reply, tuple):
            flag, context, reply = frames.BINARY, reply[0].to_bytes(4, "little"), reply[1]
        if len(reply) >= COMPRESS_MIN and job[7] & ACCEPTS:
            reply, coding = deflate(reply, job[7])
            flag |= coding
        head = frames.HEADER.pack(len(context) + len(reply), job[0], frames.REPLY, flag, 200, 0, 0, len(context))
        job[6].out += (head, context, reply)

    def fail(self, job: Job, error: HeadraceError) -> None:
        """Answer one request with an error."""
        self.totals.failures += 1
        body = error.message.encode()
        job[6].out += (frames.HEADER.pack(len(body), job[0], frames.ERROR, 0, error.status, 0, 0, 0), body)

    def report(self) -> SlotReport:
        """What happened since the last report."""
        now, then = self.totals, self._reported
        report = SlotReport(
            self.served.model,
            self.served.version,
            now.requests - then.requests,
            now.rows - then.rows,
            now.batches - then.batches,
            now.failures - then.failures,
            len(self.waiting),
            self._batch_rows,
            self._queue_s.take(),
            self._engine_s.take(),
            self._take_steps(),
        )
        self._reported = Totals(now.requests, now.failures, now.rows, now.batches)
        self._batch_rows = {}
        return report

    def _take_steps(self) -> tuple[StepReport, ...]:
        return self.engine.take_steps() if isinstance(self.engine, Composed) else ()

    def statistics(self) -> bytes:
        """Triton's statistics extension, one `model_stats` entry as JSON."""
        return encode_statistics(self.served, self.totals)


def encode_statistics(served: ServedVersion, t: Totals) -> bytes:
    """The statistics of one version as OIP's statistics extension has them."""

    def duration(count: int, ns: int) -> dict[str, int]:
        return {"count": count, "ns": ns}

    return msgspec.json.encode(
        {
            "name": served.model.rpartition("/")[2],
            "version": str(served.version),
            "last_inference": t.last_ms,
            "inference_count": t.rows,
            "execution_count": t.batches,
            "inference_stats": {
                "success": duration(t.requests, t.queue_ns + t.input_ns + t.infer_ns + t.output_ns),
                "fail": duration(t.failures, 0),
                "queue": duration(t.requests, t.queue_ns),
                "compute_input": duration(t.requests, t.input_ns),
                "compute_infer": duration(t.requests, t.infer_ns),
                "compute_output": duration(t.requests, t.output_ns),
                "cache_hit": duration(0, 0),
                "cache_miss": duration(0, 0),
            },
            "batch_stats": [
                {
                    "batch_size": rows,
                    "compute_input": duration(runs, input_ns),
                    "compute_infer": duration(runs, infer_ns),
                    "compute_output": duration(runs, output_ns),
                }
                for rows, (runs, input_ns, infer_ns, output_ns) in sorted(t.batch_sizes.items())
            ],
        }
    )
