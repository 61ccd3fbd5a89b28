"""KServe's v2 REST client, unchanged, against a real platform."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from headrace.client.client import Client
from tests.conformance.clients import fetched


def test_kserves_client_gets_what_it_expects(client: Client, echo: str) -> None:
    python = fetched("kserve") / "bin" / "python"
    script = Path(__file__).parent / "clients" / "kserve_talk.py"
    command = [python, "-I", script, client.access.url, client.access.api_key or ""]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert (seen["live"], seen["ready"], seen["model ready"]) == (True, True, True)
    for way in ("binary True", "binary False"):
        assert seen[way] == [echo, "7", "y", [[1.5], [-2.5]]]
    assert seen["plain"] == [[4.0]]
    for case, status, says in (
        ("wrong datatype", 400, "datatype 'FP64', expected FP32"),
        ("no such model", 404, "model 'nothing' does not exist"),
        ("no key", 401, "no API key"),
    ):
        assert seen[case][0] == status and says in seen[case][1], seen[case]
