"""The states of a version and the steps between them, in one table.

`registered`: its artifact loads and runs, its signature tests failed; it takes no traffic. `validated`: they pass, or
it has none. `approved`: somebody who may, said that it may take traffic. `retired`: nobody may deploy it any more; only
then it can be deleted. That a version is deployed is no state of it: it follows from the deployments.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from headrace.core.resources import JobState, VersionState

VERSION: Final[Mapping[VersionState, tuple[VersionState, ...]]] = {
    "registered": ("validated", "retired"),
    "validated": ("registered", "approved", "retired"),  # registered again: later tests, which it fails
    "approved": ("retired",),
    "retired": (),
}

JOB: Final[Mapping[JobState, tuple[JobState, ...]]] = {
    "queued": ("running", "failed", "cancelled"),
    "running": ("done", "failed", "cancelled"),
    "done": (),
    "failed": (),
    "cancelled": (),
}
"""A job that was `running` when its control plane ended is run again, and stays in that state."""
