"""An object becomes an endpoint in one line: an embedded platform for notebooks and scripts."""

from __future__ import annotations

import atexit
import contextlib
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path
from typing import Any

from headrace.client.client import Client
from headrace.core.errors import Unavailable

START_S = 60.0


class Platform:
    """A platform of our own on free ports, stopped with us.

    Args:
        data: its folder; a temporary one, removed at the end, when left out.
        grpc: whether it serves gRPC too, at `grpc_url`.
    """

    def __init__(self, data: str | None = None, *, grpc: bool = False) -> None:
        self._temporary = data is None
        self.grpc_url = ""
        self.folder = Path(data or tempfile.mkdtemp(prefix="headrace-"))
        self.folder.mkdir(parents=True, exist_ok=True)
        self._log = (self.folder / "up.log").open("w+")
        command = [sys.executable, "-m", "headrace.cli.main", "up", "--data", str(self.folder)]
        ports = ["--http-port", "0", "--grpc-port", "0" if grpc else "-1", "--control-port", "0"]
        self._process = subprocess.Popen(
            [*command, *ports, "--with-parent"],
            stdin=subprocess.PIPE,  # ends with this process, however it ends
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )
        atexit.register(self.stop)
        try:
            self.client = self._connect()
        except BaseException:
            self.stop()
            raise

    def _connect(self) -> Client:
        end = time.monotonic() + START_S
        while True:
            text = (self.folder / "up.log").read_text()
            if "headrace is up" in text:
                break
            if self._process.poll() is not None or time.monotonic() > end:
                raise Unavailable(f"the embedded platform does not start: {text[-500:]}")
            time.sleep(0.02)
        found = tomllib.loads((self.folder / "credentials.toml").read_text())
        self.grpc_url = found["grpc_url"]
        return Client(found["url"], found["api_key"], found["control_url"])

    def stop(self) -> None:
        """Stop everything; safe to call again."""
        atexit.unregister(self.stop)
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._log.close()
        with contextlib.suppress(AttributeError):
            self.client.close()
        if self._temporary:
            shutil.rmtree(self.folder, ignore_errors=True)


class Endpoint:
    """A served object."""

    def __init__(self, platform: Platform, name: str) -> None:
        self._platform = platform
        self.name = name
        self.client = platform.client
        self.url = f"{platform.client.access.url}/v2/models/{name}/infer"

    def predict(self, rows: object, **options: Any) -> Any:
        """See `Client.predict`."""
        return self.client.predict(self.name, rows, **options)

    def stop(self) -> None:
        """Stop the endpoint and its platform."""
        self._platform.stop()

    def __enter__(self) -> Endpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"Endpoint({self.url!r})"


def serve(model: object, name: str = "model", *, data: str | None = None, **options: Any) -> Endpoint:
    """Serve an object - estimator, booster, ONNX model, function, path - on this machine.

    Args:
        model: see `Client.push`.
        name: of the model.
        data: folder of the platform; a temporary one when left out.
        options: of `Client.push`.
    """
    platform = Platform(data)
    try:
        version = platform.client.push(name, model, **options).result
        platform.client.deploy(f"{name}@{version.version}", traffic=100)
    except BaseException:
        platform.stop()
        raise
    return Endpoint(platform, name)


def push(model: object, name: str, **options: Any) -> Any:
    """Ship the same object to the configured platform; returns the version."""
    with Client() as client:
        return client.push(name, model, **options).result
