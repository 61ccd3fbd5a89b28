"""The control plane's REST API: thin handlers over the use cases of `platform`, a module per kind of resource."""

from headrace.controlplane.routes import accounts, artifacts, deployments, quarantine, registry, traffic, whole

HANDLERS = [
    *whole.HANDLERS,
    *accounts.HANDLERS,
    *artifacts.HANDLERS,
    *registry.HANDLERS,
    *deployments.HANDLERS,
    *traffic.HANDLERS,
    *quarantine.HANDLERS,
]
