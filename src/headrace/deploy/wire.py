"""What the control plane and a node's agent say to each other: a JSON object a line, over the node's Unix socket."""

from __future__ import annotations

from typing import Literal

import msgspec

from headrace.core.devices import Device
from headrace.core.specs import CatalogOrder, ReplicaSpec, ReplicaStatus


class NodeCommand(msgspec.Struct):
    """Control plane -> node."""

    verb: Literal["lead", "start", "stop", "forget", "catalog"]
    """`lead`: the control plane named in `replica` leads from now on; `catalog`: of a pack changes."""
    replica: str
    spec: ReplicaSpec | None = None
    token: int = 0
    """The leader's fencing token: the node does nothing for one below the highest that it has seen."""
    catalog: CatalogOrder | None = None


class ZygoteStatus(msgspec.Struct, frozen=True):
    """A zygote as its node sees it."""

    runtime: str
    pid: int
    ready: bool
    rss_bytes: int
    """Of it; what its replicas share with it is in theirs too."""
    idle: int
    """Processes that stand ready."""
    detail: str = ""
    """Why there is none, where there cannot be one."""


class NodeState(msgspec.Struct):
    """Node -> control plane, at connection and after every change."""

    replicas: list[ReplicaStatus]
    routers: list[str]
    """Ids of the router processes that run."""
    zygotes: list[ZygoteStatus] = []
    devices: tuple[Device, ...] = ()
    """Where replicas may run."""
    holding: str = ""
    """Why nothing can be started or stopped now; empty where it can."""
