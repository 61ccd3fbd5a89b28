"""Prometheus' own tool on the metrics of a real platform after traffic of every kind."""

from __future__ import annotations

import os
import shutil
import subprocess

import httpx
import pytest

from headrace.client.client import Client
from headrace.core.errors import HeadraceError
from tests.polling import until


def test_promtool_finds_nothing_on_a_platform_that_has_worked(client: Client, echo: str) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        message = "promtool is not installed (Debian: prometheus)"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    for rows in ([[1.0]], [[1.0], [2.0]]):
        client.predict(echo, rows)
    for model, wrong in ((echo, [[float("nan")]]), (echo, [[1.0, 2.0]]), ("nothing", [[1.0]])):
        with pytest.raises(HeadraceError):
            client.predict(model, wrong)

    def metrics() -> str:
        return httpx.get(f"{client.access.control_url}/metrics").text

    until(lambda: all(f'code="{code}"' in metrics() for code in (200, 400, 404)))
    done = subprocess.run([promtool, "check", "metrics"], input=metrics().encode(), capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
