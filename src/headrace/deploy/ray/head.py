"""A head of Ray on this machine: ``python -m headrace.deploy.ray.head``, its RayHeadSpec as the first line of standard
input. It lives as long as its node does."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys

import msgspec

from headrace.core.process import Events, watch_stop
from headrace.core.specs import ProcessEvent
from headrace.deploy.ray.wire import RayHeadSpec

PROBE_S = 0.2
LEAVE_S = 10.0
"""How long Ray's own processes may take to end."""


async def serve(spec: RayHeadSpec, events: Events) -> int:
    """Run Ray's head until told to stop; its exit code where it ends by itself."""
    loop = asyncio.get_running_loop()
    stop = watch_stop(loop)
    command = ["-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"]
    command += [f"--node-ip-address={spec.host}", f"--port={spec.port}", "--include-dashboard=false"]
    child = await asyncio.create_subprocess_exec(sys.executable, *command, stdin=asyncio.subprocess.DEVNULL)
    announcing = loop.create_task(announce(spec, events))
    stopping, ended = loop.create_task(stop.wait()), loop.create_task(child.wait())
    await asyncio.wait({stopping, ended}, return_when=asyncio.FIRST_COMPLETED)
    announcing.cancel()
    if not ended.done():
        child.terminate()  # it ends what it started
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(ended), LEAVE_S)
        return 0
    events.send(ProcessEvent("failed", detail=f"ray start ended with {child.returncode}"))
    return 1


async def announce(spec: RayHeadSpec, events: Events) -> None:
    """Say that it is ready once it can be connected to."""
    while True:
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection(spec.host, spec.port)
            writer.close()
            events.send(ProcessEvent("ready", spec.port))
            return
        await asyncio.sleep(PROBE_S)


def main() -> int:
    """Entry point of the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    events = Events()
    return asyncio.run(serve(msgspec.json.decode(sys.stdin.buffer.readline(), type=RayHeadSpec), events))


if __name__ == "__main__":
    sys.exit(main())
