"""What the control plane and a node's agent say to each other: a JSON object a line, over the node's Unix socket."""

from __future__ import annotations

from typing import Literal

import msgspec

from headrace.core.devices import Device
from headrace.core.specs import ReplicaSpec, ReplicaStatus


class NodeCommand(msgspec.Struct):
    """Control plane -> node."""

    verb: Literal["lead", "start", "stop", "forget"]
    """`lead`: the control plane named in `replica` leads from now on."""
    replica: str
    spec: ReplicaSpec | None = None
    token: int = 0
    """The leader's fencing token: the node does nothing for one below the highest that it has seen."""


class NodeState(msgspec.Struct):
    """Node -> control plane, at connection and after every change."""

    replicas: list[ReplicaStatus]
    routers: list[str]
    """Ids of the router processes that run."""
    holding: str = ""
    """Why nothing can be started or stopped now; empty where it can."""
    devices: list[Device] = []
    """Where replicas may run, of a fleet of several nodes."""
