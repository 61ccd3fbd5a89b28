"""Arguments and options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

import headrace
from headrace.core.names import did_you_mean


def qualified(model: str, tenant: str | None) -> str:
    """``tenant/model``, where a tenant is named."""
    return f"{tenant}/{model}" if tenant else model


def complete_model(incomplete: str) -> list[str]:
    """Models' names, for the shell; nothing when the platform does not answer."""
    try:
        with headrace.Client(timeout_s=1.0) as client:
            return [model.name for model in client.models.list() if model.name.startswith(incomplete)]
    except Exception:  # completion must never disturb what a person types
        return []


def complete_reference(incomplete: str) -> list[str]:
    """Versions, ``churn@4``, once the model's name is typed; models' names before."""
    name, at, _ = incomplete.partition("@")
    if not at:
        return complete_model(incomplete)
    try:
        with headrace.Client(timeout_s=1.0) as client:
            found = [f"{name}@{version.version}" for version in client.models.versions(name).items]
    except Exception:
        return []
    return [reference for reference in found if reference.startswith(incomplete)]


Json = Annotated[bool, typer.Option("--json", help="The API's reply as JSON.")]
Why = Annotated[str | None, typer.Option("--why", help="Reason, kept in the audit.")]
Force = Annotated[bool, typer.Option("--force", help="Even while it has traffic: its requests are refused.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
Tenant = Annotated[str | None, typer.Option("--tenant", help="Another tenant's (admins).")]
Model = Annotated[str, typer.Argument(help="For example churn.", autocompletion=complete_model)]
Reference = Annotated[str, typer.Argument(help="For example churn@4.", autocompletion=complete_reference)]


def one_of(*choices: str) -> Callable[[str | None], str | None]:
    """Checks an option that takes one of a few words."""

    def check(value: str | None) -> str | None:
        if value is None or value in choices:
            return value
        near = did_you_mean(value, choices)
        raise typer.BadParameter(f"{value!r}, expected {', '.join(choices)}{f'; {near}' if near else ''}")

    return check


def pairs(items: list[str] | None, option: str) -> dict[str, str]:
    """``NAME=TEXT`` options. Raises typer.BadParameter."""
    found = {}
    for item in items or []:
        name, equals, value = item.partition("=")
        if not equals or not name:
            raise typer.BadParameter(f"{item!r}, expected NAME=VALUE", param_hint=option)
        found[name] = value
    return found


def numbers(items: list[str] | None, option: str) -> dict[str, float]:
    """``NAME=NUMBER`` options. Raises typer.BadParameter."""
    found = {}
    for name, text in pairs(items, option).items():
        try:
            found[name] = float(text)
        except ValueError:
            raise typer.BadParameter(f"{name}={text!r}, expected a number", param_hint=option) from None
    return found
