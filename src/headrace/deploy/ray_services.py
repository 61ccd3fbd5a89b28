"""What a node runs for a fleet on Ray: the agent that speaks with it, and its head where there is none to join."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import socket
import tempfile
from pathlib import Path

import msgspec

from headrace.core.addresses import parse_tcp
from headrace.core.config import Settings
from headrace.core.errors import InvalidInput
from headrace.core.specs import RayLink
from headrace.core.storage import S3Spec
from headrace.deploy.ray.wire import RayAgentSpec, RayHeadSpec, Site, read_secret

ELSEWHERE = ("192.0.2.1", 9)
"""An address that is nobody's: the way to it is the way to other machines. Nothing is sent."""


def host_of(settings: Settings) -> str:
    """This machine's address as the other nodes of the fleet reach it."""
    if settings.fleet_host:
        return settings.fleet_host
    towards = parse_tcp(settings.ray_address) if settings.ray_address else ELSEWHERE
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(towards)
        except OSError:
            return "127.0.0.1"  # there is no network
        return str(probe.getsockname()[0])


def address_of(settings: Settings) -> str:
    """``host:port`` of Ray's head."""
    return settings.ray_address or f"{host_of(settings)}:{settings.ray_port}"


def link(settings: Settings, folder: Path, run: Path, port: int) -> RayLink:
    """What the control planes are told. Raises InvalidInput where Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        hint = "pip install 'headrace[ray]'"
        raise InvalidInput("fleet: ray, and Ray is not installed", field="fleet", hint=hint)
    return RayLink(f"unix:{run}/ray.sock", f"tcp:{host_of(settings)}:{port}", read_secret(folder))


def services(
    settings: Settings, link: RayLink, folder: Path, run: Path, store: S3Spec | None
) -> dict[str, tuple[str, msgspec.Struct]]:
    """Name -> (module, spec) of the processes."""
    name = hashlib.sha256(os.fsencode(folder)).hexdigest()[:12]
    there = settings.ray_folder or f"{tempfile.gettempdir()}/headrace-ray-{os.getuid()}-{name}"
    site = Site(link.reports, there, store, settings.cache_max_bytes, settings.unlinked_s, settings.log_level)
    address, state = address_of(settings), str(folder / "ray.json")
    agent = RayAgentSpec(address, link.agent, state, link.secret, site, settings.drain_s)
    found: dict[str, tuple[str, msgspec.Struct]] = {"ray-agent": ("headrace.deploy.ray.agent", agent)}
    if not settings.ray_address:
        found["ray-head"] = ("headrace.deploy.ray.head", RayHeadSpec(*parse_tcp(address)))
    return found
