"""kill -9 of the control plane between a change's commit and its answer: whoever asks again under the same idempotency
key gets the answer, and the change is made once."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from tests import models
from tests.chaos.test_store_killed import die
from tests.integration.control import control

KILLED = """
import os, pathlib, signal, sys
import msgspec
from headrace.controlplane import changes
from headrace.controlplane.publisher import Publisher
from tests.integration.control import Control

folder, moment, method, path, body = sys.argv[1:]
one = Control(pathlib.Path(folder))
die = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
if moment == "before the commit":
    changes.remember = die
elif moment == "before it is published":
    Publisher.publish = die
else:
    changes.complete = die
for version in (1, 2):
    one.fleet.ready("default/echo", version)
one.call(method, path, msgspec.json.decode(body), headers={"idempotency-key": "once"})
"""


@pytest.mark.parametrize("moment", ["before the commit", "before it is published", "before it is answered"])
@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PUT", "/models/echo/traffic", {"weights": {"1": 75, "2": 25}}),
        ("POST", "/deployments", {"model": "echo@2", "replicas": 3}),
        ("POST", "/tenants", {"name": "once"}),
    ],
)
def test_a_change_whose_answer_was_lost_is_answered_to_the_next_and_made_once(
    tmp_path: Path, moment: str, method: str, path: str, body: object
) -> None:
    with control(tmp_path) as one:
        for version, add in ((1, 0.0), (2, 1.0)):
            one.push("echo", models.echo_onnx(add))
            one.do("POST", "/deployments", {"model": f"echo@{version}"})
        before = len(one.do("GET", "/changes?limit=1000")["items"])
    die(KILLED, str(tmp_path), moment, method, path, msgspec.json.encode(body).decode())
    with control(tmp_path) as one:
        for version in (1, 2):
            one.fleet.ready("default/echo", version)
        written = len(one.do("GET", "/changes?limit=1000")["items"]) - before
        assert written == (moment != "before the commit"), "whole or not at all"
        first = one.do(method, path, body, headers={"idempotency-key": "once"})
        again = one.do(method, path, body, headers={"idempotency-key": "once"})
        assert first == again and first["change"]["effective"]
        items = one.do("GET", "/changes?limit=1000")["items"]
        assert len(items) - before == 1 and items[0]["id"] == first["change"]["id"]
