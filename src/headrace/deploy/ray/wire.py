"""What the agent of a fleet on Ray is told, and what it tells the actors."""

from __future__ import annotations

import hashlib
import secrets
from pathlib import Path

import msgspec

from headrace.core.specs import ReplicaSpec
from headrace.core.storage import S3Spec

SECRET_BYTES = 32


class Site(msgspec.Struct, frozen=True):
    """What all replicas of a platform share, on whichever node."""

    reports: str
    """``tcp:host:port`` of the control plane."""
    folder: str
    """On each node, for logs and the cache of artifacts."""
    store: S3Spec | None = None
    """Where artifacts are pulled from; None: all nodes see the same files."""
    cache_max_bytes: int = 32 << 30
    unlinked_s: float = 300.0
    """See `ReplicaSpec`."""
    log_level: str = "info"


class RayAgentSpec(msgspec.Struct, frozen=True):
    """The process that speaks with Ray, to run; read from the first line of its standard input."""

    address: str
    """``host:port`` of Ray's head."""
    listen: str
    """``unix:/path`` on which control planes command it."""
    state_path: str
    """Where it keeps what it knows of the replicas, for when Ray does not answer."""
    secret: str
    """The cluster's (hex)."""
    site: Site
    drain_s: float = 30.0


class RayHeadSpec(msgspec.Struct, frozen=True):
    """A head of Ray to run on this machine."""

    host: str
    port: int


class Launch(msgspec.Struct, frozen=True):
    """What an actor is told. By a call, not at its creation: what actors are created with, Ray's head keeps."""

    spec: ReplicaSpec
    token: int
    key: str
    """The replica's (hex)."""
    site: Site


def read_secret(folder: Path) -> str:
    """The cluster's secret (hex) in the data folder, made at the first time."""
    path = folder / "cluster.key"
    if not path.exists():
        temporary = folder / ".cluster.key"
        temporary.unlink(missing_ok=True)
        temporary.touch(0o600)
        temporary.write_text(secrets.token_hex(SECRET_BYTES) + "\n")
        temporary.rename(path)
    return path.read_text().strip()


def namespace_of(secret: str) -> str:
    """Ray's namespace of a platform: who has the same secret is the same platform."""
    return f"headrace-{hashlib.sha256(bytes.fromhex(secret)).hexdigest()[:12]}"
