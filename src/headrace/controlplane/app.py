"""The control plane's web application."""

from __future__ import annotations

from litestar import Litestar
from litestar.datastructures import MutableScopeHeaders, State
from litestar.di import Provide
from litestar.exceptions import HTTPException
from litestar.openapi import OpenAPIConfig
from litestar.openapi.spec import Components, SecurityScheme
from litestar.types import Message, Scope

from headrace import __version__
from headrace.controlplane import problems
from headrace.controlplane.platform import Platform
from headrace.controlplane.routes import HANDLERS
from headrace.controlplane.routes.asked import authenticate
from headrace.core.errors import HeadraceError

BODY_MAX = 1 << 20
"""Bytes of any body but an artifact's, which has a limit of its own."""


async def tell_methods(message: Message, scope: Scope) -> None:
    """Have OPTIONS tell all methods of a path: the framework tells those of the path's first handler."""
    if message["type"] == "http.response.start" and scope.get("method") == "OPTIONS":
        template = scope.get("path_template")
        found = {m for route in scope["litestar_app"].routes if route.path_format == template for m in route.methods}
        MutableScopeHeaders.from_message(message)["allow"] = ", ".join(sorted(found | {"OPTIONS"}))


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
            UnicodeDecodeError: problems.of_encoding,
            Exception: problems.of_any,
        },
        guards=[authenticate],
        before_send=[tell_methods],
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
