"""``headrace replicas``: a deployment's processes, and how long each took to start."""

from __future__ import annotations

import headrace
from headrace.cli import output
from headrace.cli.options import Json, Reference, Tenant, qualified

STAGES = ("pull", "start", "import", "verify", "load", "warm", "total")


@output.guarded
def replicas(reference: Reference, tenant: Tenant = None, json: Json = False) -> None:
    """A version's replicas: state, process, and the ms that each stage of their start took."""
    with headrace.Client() as client:
        found = client.deployments.show(qualified(reference, tenant))
    if json:
        return output.json(found)
    rows = (
        (
            one.id,
            one.state,
            str(one.pid or "-"),
            one.origin or "-",
            *(f"{one.timings_s[stage] * 1e3:.0f}" if stage in one.timings_s else "-" for stage in STAGES),
        )
        for one in found.instances
    )
    output.table(("REPLICA", "STATE", "PID", "ORIGIN", *(stage.upper() for stage in STAGES)), rows, "no replicas")
    if not json and found.start_p95_s is not None:
        output.console.print(f"95 % of starts within {found.start_p95_s * 1e3:.0f} ms")
