from __future__ import annotations

import asyncio
import os
import shutil
import socket
import tempfile
from pathlib import Path

import pytest

from headrace.core.errors import Conflict
from headrace.deploy import place


def test_a_folder_is_held_once_and_the_holder_is_named(tmp_path: Path) -> None:
    with place.lock(tmp_path / "data"):
        assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700
        with pytest.raises(Conflict, match=rf"in use by another headrace \(process {os.getpid()}\)") as refused:
            place.lock(tmp_path / "data")
        assert "--data" in (refused.value.hint or "")
    place.lock(tmp_path / "data").close()


@pytest.mark.parametrize("length", [20, 85, 89, 90, 200])
def test_sockets_fit_wherever_the_data_is(length: int) -> None:
    top = Path(tempfile.mkdtemp(prefix="hr-"))
    folder = top / "x".ljust(max(length - len(str(top)) - 1, 1), "x")
    folder.mkdir()
    try:
        run = place.run_folder(folder)
        assert run.stat().st_mode & 0o777 == 0o700
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(str(run / ("s" * (place.SOCKET_NAME_MAX - 1))))
        assert place.run_folder(folder) == run
        assert list(run.iterdir()) == [], "a socket that was left is removed"
        run.rmdir()
    finally:
        shutil.rmtree(top)


def test_a_run_folder_that_somebody_made_before_us_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Conflict, match="not a folder of this user"):
        place.run_folder(tmp_path)


def test_a_taken_port_is_refused_with_the_option_that_changes_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(Conflict, match=f"port {port} on 127.0.0.1 cannot be had") as refused:
            asyncio.run(place.reserve_port("127.0.0.1", port, "http_port"))
        assert refused.value.field == "http_port"
        assert "--http-port" in (refused.value.hint or "")


def test_a_port_that_is_about_to_be_free_is_waited_for() -> None:
    async def wait(other: socket.socket) -> int:
        port: int = other.getsockname()[1]
        waiting = asyncio.get_running_loop().create_task(place.reserve_port("127.0.0.1", port, "http_port", 10.0))
        done, _ = await asyncio.wait([waiting], timeout=3 * place.RETRY_S)
        assert not done
        other.close()
        held, number = await waiting
        held.close()
        return number - port

    assert asyncio.run(wait(socket.create_server(("127.0.0.1", 0)))) == 0


def test_several_processes_may_listen_on_a_reserved_port() -> None:
    held, port = asyncio.run(place.reserve_port("127.0.0.1", 0, "http_port"))
    address = ("127.0.0.1", port)
    with (
        held,
        socket.create_server(address, reuse_port=True) as one,
        socket.create_server(address, reuse_port=True) as two,
    ):
        assert one.getsockname() == two.getsockname() == address
