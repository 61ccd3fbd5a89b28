"""What the benches share: processes that always end, pinning, wrk, memory, medians, the closing JSON line."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import platform
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, Any, NoReturn

CORES = sorted(os.sched_getaffinity(0))
FRONT = {CORES[0]}
"""The core of the process that clients speak with."""
BACK = {CORES[1 % len(CORES)]}
"""The core of the process that runs the model."""
ALL = set(CORES)
PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


# ------------------------------------------------------------------------------------------------ processes
def _child_setup(cores: set[int]) -> Callable[[], None]:
    """Runs in the child before it becomes the server: pinned, and told to stop when the bench dies."""

    def setup() -> None:
        os.sched_setaffinity(0, cores)
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)

    return setup


@contextlib.contextmanager
def process(
    command: Sequence[str],
    *,
    cores: set[int] = ALL,
    environment: Mapping[str, str] | None = None,
    log: Path | None = None,
    cwd: Path | None = None,
    stop_s: float = 20.0,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server for the length of the block, in a process group of its own that is gone afterwards."""
    with contextlib.ExitStack() as stack:
        output: IO[bytes] | int = subprocess.DEVNULL if log is None else stack.enter_context(log.open("ab"))
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=cwd,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
            preexec_fn=_child_setup(cores),
        )
        try:
            yield child
        finally:
            _stop(child, stop_s)


def _stop(child: subprocess.Popen[bytes], stop_s: float) -> None:
    family = descendants(child.pid)
    if child.poll() is None:
        child.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(stop_s)
    for pid, birth in (family | descendants(child.pid)).items():
        if _birth(pid) == birth:  # a number may meanwhile name a process that is none of ours
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    child.wait()


def _birth(pid: int) -> str:
    """When a process started, in ticks since boot; "" for one that has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]


def descendants(pid: int) -> dict[int, str]:
    """A process and all that it started and that still lives, each with its `_birth`."""
    found: dict[int, str] = {}
    todo = [pid]
    while todo:
        one = todo.pop()
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{one}/task").iterdir():
                todo += [int(text) for text in (task / "children").read_text().split()]
        if birth := _birth(one):
            found[one] = birth
    return found


def pin(pid: int, cores: set[int]) -> None:
    """Move a process with all its threads, but not its children, to these cores."""
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                os.sched_setaffinity(int(task.name), cores)


def rss_mb(pid: int) -> float:
    """Resident memory of one process, in MB (10^6 bytes)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024 / 1e6
    return 0.0


def free_port() -> int:
    """A port that the system says is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(ready: Callable[[], bool], what: str, timeout_s: float = 60.0, pause_s: float = 0.05) -> None:
    """Poll until `ready`, or end the bench with what it waited for."""
    end = time.monotonic() + timeout_s
    while not ready():
        if time.monotonic() > end:
            fail(f"waited {timeout_s:.0f} s in vain for {what}")
        time.sleep(pause_s)


def wait_for_port(port: int, child: subprocess.Popen[bytes], log: Path | None = None, timeout_s: float = 60.0) -> None:
    """Until `child` listens on `port`; ends the bench with the child's last words when it dies first."""

    def listening() -> bool:
        if child.poll() is not None:
            words = log.read_text(errors="replace")[-2000:] if log is not None and log.exists() else ""
            fail(f"{child.args!r} ended with {child.returncode}\n{words}")
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    wait_until(listening, f"port {port}", timeout_s)


def fail(why: str) -> NoReturn:
    """End the bench: it could not measure."""
    raise SystemExit(f"bench: {why}")


# ------------------------------------------------------------------------------------------------ wrk
WRK_SCRIPT = """local requests = {%s}
local at = %d
request = function() at = at %% #requests + 1; return requests[at] end
done = function(summary, latency)
  local e = summary.errors
  io.write(string.format("RESULT %%.3f %%.4f %%.4f %%.4f %%.4f %%.4f %%d %%d %%d\\n",
    summary.requests / (summary.duration / 1e6), latency:percentile(50) / 1e3, latency:percentile(90) / 1e3,
    latency:percentile(99) / 1e3, latency:percentile(99.9) / 1e3, latency.max / 1e3,
    e.status, e.connect + e.read + e.write + e.timeout, summary.requests))
end
"""


@dataclass(frozen=True)
class Load:
    """What wrk saw. Latencies in ms; `refused` counts answers that are not 2xx, `broken` those that never came."""

    rps: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float
    refused: int
    broken: int
    requests: int


def wrk_script(path: Path, requests: Sequence[bytes]) -> Path:
    """A script that sends `requests` (whole, as they go over the wire) in turn."""
    # Every byte escaped in decimal: Lua strings hold any byte, and the script stays ASCII.
    texts = ",\n".join('"' + _lua_escape(request) + '"' for request in requests)
    path.write_text(WRK_SCRIPT % (texts, 0), encoding="latin-1")
    return path


_ESCAPES = {b: (chr(b) if 32 <= b < 127 and chr(b) not in '"\\' else f"\\{b:03d}") for b in range(256)}


def _lua_escape(data: bytes) -> str:
    return data.decode("latin-1").translate(_ESCAPES)


def wrk(
    port: int, script: Path, *, connections: int, seconds: float, cores: set[int] = ALL, strict: bool = True
) -> Load:
    """One run of wrk, one thread. Ends the bench when an answer was no 2xx or a connection broke, unless not strict."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", "10s", "-s", str(script)]
    done = subprocess.run(
        [*command, f"http://127.0.0.1:{port}"],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=_child_setup(cores),
        stdin=subprocess.DEVNULL,
    )
    line = next((line for line in done.stdout.splitlines() if line.startswith("RESULT ")), None)
    if line is None:
        fail(f"wrk failed: {done.stdout}{done.stderr}")
    rps, p50, p90, p99, p999, top, refused, broken, count = line.split()[1:]
    load = Load(
        float(rps), float(p50), float(p90), float(p99), float(p999), float(top), int(refused), int(broken), int(count)
    )
    if strict and (load.refused or load.broken or not load.requests):
        fail(f"port {port}: {load.refused} answers not 2xx, {load.broken} broken connections of {load.requests}")
    return load


def need_wrk() -> None:
    """End the bench clearly where there is no wrk."""
    if shutil.which("wrk") is None:
        fail("wrk is not installed (Debian: apt-get install wrk)")


# ------------------------------------------------------------------------------------------------ results
@dataclass(frozen=True)
class Bar:
    """What a figure shall reach."""

    figure: str
    at_least: float | None = None
    at_most: float | None = None

    def judge(self, value: float | None) -> dict[str, Any]:
        """The bar with its verdict; a figure that was not measured meets nothing."""
        met = value is not None
        if value is not None and self.at_least is not None:
            met = met and value >= self.at_least
        if value is not None and self.at_most is not None:
            met = met and value <= self.at_most
        bar = {"at_least": self.at_least} if self.at_least is not None else {"at_most": self.at_most}
        return {**bar, "value": value, "met": met}


def median(values: Sequence[float]) -> float:
    """Median, of at least one value."""
    return float(statistics.median(values))


def percentile(values: Sequence[float], q: float) -> float:
    """The q-quantile by nearest rank, of at least one value."""
    ordered = sorted(values)
    return float(ordered[min(len(ordered) - 1, max(0, -(-int(q * 1000) * len(ordered) // 1000) - 1))])


def rounded(value: float) -> float:
    """Four significant figures: more would pretend."""
    return float(f"{value:.4g}")


def report(
    bench: str, figures: Mapping[str, float | None], context: Mapping[str, Any], bars: Sequence[Bar]
) -> dict[str, Any]:
    """Print a table for people and, as the last line, the JSON object for machines."""
    shown = {name: None if value is None else rounded(value) for name, value in figures.items()}
    judged = {bar.figure: bar.judge(figures.get(bar.figure)) for bar in bars}
    width = max(map(len, shown))
    for name, value in shown.items():
        verdict = ""
        if name in judged:
            limit = judged[name].get("at_least", judged[name].get("at_most"))
            sign = ">=" if "at_least" in judged[name] else "<="
            verdict = f"   bar {sign} {limit:g}  {'met' if judged[name]['met'] else 'NOT MET'}"
        print(f"  {name:<{width}}  {'not measured' if value is None else format(value, '>12,.10g')}{verdict}")
    machine = {"cores": len(CORES), "python": platform.python_version(), "load_before": list(LOAD_BEFORE)}
    line = {"bench": bench, "figures": shown, "context": {**context, "machine": machine, "bars": judged}}
    print(json.dumps(line), flush=True)
    return line


LOAD_BEFORE = os.getloadavg()
"""Read before the bench does anything: a busy machine shows in the context."""


def say(text: str) -> None:
    """A line of progress, on standard error."""
    print(text, file=sys.stderr, flush=True)


# ------------------------------------------------------------------------------------------------ main
def parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser with what every bench takes."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--quick", action="store_true", help="fewer and shorter rounds: a look, not a measurement")
    return made


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder that goes with the block; SIGTERM ends the block as Ctrl-C does, so nothing is left running."""

    def terminated(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, terminated)
    folder = Path(tempfile.mkdtemp(prefix="hrb-"))
    try:
        yield folder
    except KeyboardInterrupt:
        # A second Ctrl-C must not cut the clean-up short.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise SystemExit("bench: interrupted") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        signal.signal(signal.SIGTERM, before)


ROOT = Path(__file__).resolve().parent.parent
