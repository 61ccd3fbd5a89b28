"""A node's devices: its processors as cgroups and affinity let it use them, and its accelerators as NVML lists them."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from headrace.core.config import OwnDevice
from headrace.core.devices import PROCESSORS, Device, Tier

log = logging.getLogger("headrace.deploy.inventory")
CGROUPS = Path("/sys/fs/cgroup")


class Accelerators(Protocol):
    """What lists a machine's accelerators."""

    def list(self) -> Sequence[tuple[str, int]]:
        """Product name and memory in MiB of each, by index."""


class Nvml:
    """NVIDIA's management library, by the package ``nvidia-ml-py``; empty where either is missing."""

    def list(self) -> Sequence[tuple[str, int]]:
        """See `Accelerators.list`."""
        try:
            import pynvml  # an optional dependency, in its one adapter
        except ImportError:
            return ()
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:  # no driver, or no right to speak with it
            log.info("no accelerators: %s", error)
            return ()
        try:
            found = []
            for index in range(pynvml.nvmlDeviceGetCount()):
                handle = pynvml.nvmlDeviceGetHandleByIndex(index)
                name = pynvml.nvmlDeviceGetName(handle)
                total = pynvml.nvmlDeviceGetMemoryInfo(handle).total
                found.append((name.decode() if isinstance(name, bytes) else str(name), int(total) >> 20))
            return found
        except pynvml.NVMLError as error:
            log.error("accelerators cannot be listed: %s", error)
            return ()
        finally:
            pynvml.nvmlShutdown()


def devices(
    node: str, own: Iterable[OwnDevice], tiers: Mapping[str, Tier], accelerators: Accelerators | None = None
) -> tuple[Device, ...]:
    """All devices of this machine.

    Args:
        node: its name.
        own: what the settings say that it has; where they say nothing, it is looked.
        tiers: by name, of which accelerators' product names are to be found.
        accelerators: who lists them; NVML when left out.
    """
    named = tuple(Device(f"{node}/{d.name}", node, d.tier, d.memory_mb, d.compute, d.spot) for d in own)
    if named:
        return named
    found = [Device(f"{node}/cpu", node, PROCESSORS, memory_mb(), cores())]
    for index, (name, memory) in enumerate((accelerators or Nvml()).list()):
        found.append(Device(f"{node}/gpu{index}", node, tier_named(name, tiers), memory, 1.0))
    return tuple(found)


def visible(device: str) -> dict[str, str]:
    """Environment of a process that shall see its accelerator only."""
    index = re.search(r"/gpu(\d+)$", device)
    return {"CUDA_VISIBLE_DEVICES": index[1]} if index else {}


def tier_named(product: str, tiers: Iterable[str]) -> str:
    """The tier of a product name: ``NVIDIA A100-SXM4-80GB`` is an ``a100``, ``NVIDIA L40S`` an ``l40`` unless there is
    a tier ``l40s``; one that no tier is named after is called by its own first word."""
    words = [
        word for word in re.split(r"[^a-z0-9]+", product.lower()) if word not in ("", "nvidia", "tesla", "geforce")
    ]
    for tier in sorted(tiers, key=len, reverse=True):
        if any(word.startswith(tier) and not word[len(tier) :].isdigit() for word in words):
            return tier
    return words[0] if words else "gpu"


def cores() -> float:
    """Cores that processes of this machine, or container, may use."""
    count = float(len(os.sched_getaffinity(0)))
    for folder in _own_cgroups():
        quota = _words(folder / "cpu.max")
        if len(quota) == 2 and quota[0] != "max":
            count = min(count, int(quota[0]) / int(quota[1]))
        one, period = _words(folder / "cpu.cfs_quota_us"), _words(folder / "cpu.cfs_period_us")
        if one and period and int(one[0]) > 0:
            count = min(count, int(one[0]) / int(period[0]))
    return count


def memory_mb() -> int:
    """Memory that they may use, in MiB."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for folder in _own_cgroups():
        for name in ("memory.max", "memory.limit_in_bytes"):
            limit = _words(folder / name)
            if limit and limit[0].isdigit():
                total = min(total, int(limit[0]))
    return total >> 20


def _own_cgroups() -> list[Path]:
    """Folders of this process's control groups, and of those that they are in: all limit it."""
    found: list[Path] = []
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return found
    for line in lines:
        _, controllers, path = line.split(":", 2)
        root = CGROUPS / controllers if controllers and (CGROUPS / controllers).is_dir() else CGROUPS
        folder = root / path.lstrip("/")
        found += [one for one in (folder, *folder.parents) if one.is_relative_to(root)]
    return found


def _words(file: Path) -> list[str]:
    try:
        return file.read_text().split()
    except OSError:
        return []
