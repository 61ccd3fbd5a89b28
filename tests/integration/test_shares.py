"""What a deployment gets of the traffic once it is ready, over the real application and store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.controlplane.routing_state import NOTHING, read
from headrace.controlplane.settle import settle
from tests import models
from tests.integration.control import Control, control


@pytest.fixture
def served(tmp_path: Path, url: str) -> Iterator[Control]:
    """A control plane with three versions of ``echo``, not deployed."""
    with control(tmp_path, url) as one:
        for add in (0.0, 1.0, 2.0):
            one.push("echo", models.echo_onnx(add))
        yield one


def ready(served: Control, version: int, percent: float | None = None) -> dict[str, float]:
    """Deploy a version, have it be ready and the platform settle; the weights then."""
    served.do("POST", "/deployments", {"model": f"echo@{version}", "traffic_percent": percent})
    served.fleet.ready("default/echo", version)
    served.run(served.store.run(lambda c: settle(c, NOTHING, read(c).models, served.fleet.standings)))
    weights: dict[str, float] = served.do("GET", "/models/echo/traffic")["weights"]
    return weights


def test_the_first_takes_all_and_a_later_one_what_was_asked_for_it(served: Control) -> None:
    assert ready(served, 1) == {"1": 100.0}
    assert ready(served, 2) == {"1": 100.0}
    assert ready(served, 3, 10) == {"1": 90.0, "3": 10.0}
    changes = served.do("GET", "/models/echo/traffic/history")["items"]
    assert [(c["actor"], c["reason"]) for c in changes] == [
        ("platform", "echo@3 is ready"),
        ("platform", "echo@1 is ready"),
    ]


def test_a_share_that_cannot_be_scaled_down_does_not_hold_up_the_platform(served: Control) -> None:
    ready(served, 1)
    assert ready(served, 2, 0.01) == {"1": 99.99, "2": 0.01}
    assert ready(served, 3, 60) == {"1": 40.0, "3": 60.0}


def test_a_replayed_deployment_of_the_latest_is_of_the_latest_then(served: Control) -> None:
    headers = {"idempotency-key": "latest"}
    first = served.do("POST", "/deployments", {"model": "echo"}, headers=headers)
    served.push("echo", models.echo_onnx(9.0))
    again = served.do("POST", "/deployments", {"model": "echo"}, headers=headers)
    assert (first["result"]["version"], again) == (3, first | {"change": again["change"]})
    assert again["change"]["id"] == first["change"]["id"]


def test_the_traffic_history_is_not_crowded_out_by_other_changes(served: Control) -> None:
    ready(served, 1)
    for replicas in (2, 3, 4):
        served.do("PATCH", "/deployments/echo@1", {"replicas": replicas})
    found = served.do("GET", "/models/echo/traffic/history?limit=1")["items"]
    assert [change["action"] for change in found] == ["traffic.set"]
