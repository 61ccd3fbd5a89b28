"""What a node holds on its machine while it runs: the data folder, a folder for sockets, the ports."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import socket
import stat
import tempfile
from pathlib import Path
from typing import IO

from headrace.core.errors import Conflict

SOCKET_PATH_MAX = 107
"""Bytes of a Unix socket's path (Linux's 108 with its end)."""
SOCKET_NAME_MAX = 18
"""Bytes of what we add below the run folder, with the slash."""
QUOTA_BYTES = 65_536 * 8
RETRY_S = 0.05


def lock(folder: Path) -> IO[str]:
    """Take the data folder for as long as the file stays open. Raises Conflict when another node has it."""
    folder.mkdir(parents=True, exist_ok=True)
    os.chmod(folder, 0o700)
    file = (folder / "lock").open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip() or "unknown"
        file.close()
        raise Conflict(
            f"data: {folder} is in use by another headrace (process {holder})",
            field="data",
            hint="stop that one, or give this one its own folder with --data",
        ) from None
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file


def run_folder(folder: Path) -> Path:
    """Where sockets go: below the data folder, or in the temporary one where its path is too long for a socket.

    Sockets that an earlier node left are removed. Raises Conflict when somebody else has made the folder.
    """
    run = folder / "run"
    if len(os.fsencode(run)) + SOCKET_NAME_MAX > SOCKET_PATH_MAX:
        name = hashlib.sha256(os.fsencode(folder)).hexdigest()[:12]
        run = Path(tempfile.gettempdir()) / f"headrace-{os.getuid()}-{name}"
    run.mkdir(mode=0o700, exist_ok=True)
    # In the temporary folder anybody may have made it before us, as a link to somewhere else.
    found = run.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise Conflict(f"data: {run} is not a folder of this user", field="data", hint="choose a shorter --data")
    os.chmod(run, 0o700)
    clear_sockets(run)
    return run


def clear_sockets(run: Path) -> None:
    """Remove the sockets in the run folder: nobody listens on them."""
    for left in run.iterdir():
        if left.is_socket():
            left.unlink(missing_ok=True)


def new_quota(run: Path) -> Path:
    """The file of arrival times that the routers share: all zero, for those of an earlier boot mean nothing."""
    path = run / "quota"
    path.unlink(missing_ok=True)
    path.write_bytes(bytes(QUOTA_BYTES))
    return path


async def reserve_port(host: str, port: int, option: str, patience_s: float = 0.0) -> tuple[socket.socket, int]:
    """Hold a port so that several processes may listen on it.

    Args:
        host: address to listen on.
        port: 0 lets the system choose.
        option: name of the setting, for the error.
        patience_s: how long to wait for a port that is taken.

    Returns:
        The socket that holds it, and its number.

    Raises:
        Conflict: it cannot be had.
    """
    end = asyncio.get_running_loop().time() + patience_s
    while (why := _taken(host, port)) is not None:
        if asyncio.get_running_loop().time() >= end:
            raise Conflict(
                f"{option}: port {port} on {host} cannot be had: {why}",
                field=option,
                hint=f"choose another with --{option.replace('_', '-')}, 0 lets the system choose",
            )
        await asyncio.sleep(RETRY_S)
    held = socket.socket(_family(host))
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    held.bind((host, port))
    return held, held.getsockname()[1]


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _taken(host: str, port: int) -> str | None:
    """Why a port cannot be listened on; None when it can."""
    if port == 0:
        return None
    with socket.socket(_family(host)) as probe:
        # As a server would: a port in TIME_WAIT is free, one that is listened on is not.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error.strerror or str(error)
    return None
