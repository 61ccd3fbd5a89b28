"""The control plane's web application."""

from __future__ import annotations

from litestar import Litestar
from litestar.datastructures import State
from litestar.di import Provide
from litestar.exceptions import HTTPException
from litestar.openapi import OpenAPIConfig
from litestar.openapi.spec import Components, SecurityScheme

from headrace import __version__
from headrace.controlplane import problems
from headrace.controlplane.platform import Platform
from headrace.controlplane.routes import HANDLERS, authenticate
from headrace.core.errors import HeadraceError

BODY_MAX = 1 << 20
"""Bytes of any body but an artifact's, which has a limit of its own."""


def create_app(platform: Platform, artifact_max_bytes: int) -> Litestar:
    """The API over a platform.

    Args:
        platform: the use cases.
        artifact_max_bytes: largest artifact; other bodies may have 1 MiB.
    """
    return Litestar(
        route_handlers=HANDLERS,
        dependencies={
            "platform": Provide(lambda: platform, sync_to_thread=False),
        },
        signature_namespace={"Platform": Platform},
        exception_handlers={
            HeadraceError: problems.of_ours,
            HTTPException: problems.of_http,
            Exception: problems.of_any,
        },
        guards=[authenticate],
        state=State({"platform": platform}),
        request_max_body_size=BODY_MAX,
        openapi_config=OpenAPIConfig(
            title="Headrace control plane",
            version=__version__,
            render_plugins=[],
            components=Components(security_schemes={"key": SecurityScheme(type="http", scheme="bearer")}),
            security=[{"key": []}],
        ),
        logging_config=None,
    )
