"""The control plane's REST API: thin handlers over the use cases of `platform`, a module per kind of resource."""

from headrace.controlplane.routes import (
    accounts,
    artifacts,
    audit,
    deployments,
    jobs,
    placement,
    quarantine,
    registry,
    traffic,
    versions,
    whole,
)

HANDLERS = [
    *whole.HANDLERS,
    *audit.HANDLERS,
    *accounts.HANDLERS,
    *artifacts.HANDLERS,
    *registry.HANDLERS,
    *versions.HANDLERS,
    *jobs.HANDLERS,
    *deployments.HANDLERS,
    *placement.HANDLERS,
    *traffic.HANDLERS,
    *quarantine.HANDLERS,
]
