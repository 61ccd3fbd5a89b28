"""What a shared deployment may be: checked when it is asked for."""

from __future__ import annotations

from headrace.core.errors import Conflict, InvalidInput
from headrace.core.resources import DeploymentCreate
from headrace.core.specs import Packing
from headrace.registry.store import VersionRow

PACKABLE = ("onnx", "xgboost", "lightgbm", "sklearn")
"""Engines that run data, and not their owner's code: what others' models may stand beside."""
WHY = {
    "python": "its code would run in one process with other tenants' models",
    "pipeline": "its steps may be code, which would run in one process with other tenants' models",
    "torch": "PyTorch alone takes more memory than a shared process has for hundreds of models",
}


def check_shared(asked: DeploymentCreate) -> None:
    """What only replicas of its own have. Raises InvalidInput."""
    if not 0 <= asked.replicas <= 1:
        raise InvalidInput(f"replicas: {asked.replicas}, expected 1: a shared deployment has none", field="replicas")
    if asked.threads != 1:
        raise InvalidInput(f"threads: {asked.threads}, expected 1: shared models run in one thread", field="threads")


def check_packable(version: VersionRow, name: str, asked: DeploymentCreate, limits: Packing) -> None:
    """Raises InvalidInput for a version that never shares a process, Conflict for one that is too large."""
    hint = f"give it replicas of its own: headrace deploy {name} --mode dedicated"
    if version.engine not in PACKABLE:
        why = WHY.get(version.engine, "its engine does not share a process")
        raise InvalidInput(
            f"mode: {asked.mode}, and {name} is a {version.engine} model: {why}", field="mode", hint=hint
        )
    if version.options.trust:
        why = "its artifact may run code when it is loaded (options.trust)"
        raise InvalidInput(f"mode: {asked.mode}, and {name} is trusted: {why}", field="mode", hint=hint)
    most_mb = min(limits.shared_model_memory_mb, limits.shared_memory_mb)
    if asked.mode == "shared" and asked.memory_mb is not None:
        most_mb = asked.memory_mb
    if version.size_bytes > most_mb << 20:
        raise Conflict(
            f"memory_mb: {name} has {version.size_bytes / (1 << 20):.1f} MiB, a shared model may take {most_mb}",
            field="memory_mb",
            hint=hint,
        )
