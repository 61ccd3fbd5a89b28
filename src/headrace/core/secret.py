"""Secrets by reference: a setting says where its password is, ``${env:NAME}`` or ``${file:PATH}``, and not what it is.

The reference is what travels in settings, specs and logs; whoever connects reveals it at that moment.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from headrace.core.errors import InvalidInput

_REFERENCE = re.compile(r"\$\{(env|file):([^}]+)\}")
_PASSWORD = re.compile(r"(://[^/@:]*:)([^@]*)(@)|([?&]password=)([^&]*)")
HIDDEN = "***"


def reveal(text: str, field: str) -> str:
    """The secret that `text` refers to; `text` itself where it is no reference. Raises InvalidInput where there is
    nothing."""
    found = _REFERENCE.fullmatch(text)
    if found is None:
        return text
    kind, name = found.groups()
    if kind == "env":
        if name not in os.environ:
            raise InvalidInput(f"{field}: the variable {name} is not set", field=field)
        return os.environ[name]
    try:
        return Path(name).read_text().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise InvalidInput(f"{field}: the secret's file {name}: {why}", field=field) from None


def variables(url: str) -> frozenset[str]:
    """Environment variables that may hold a database's password: the setting's own, and those that `url` refers to.
    Processes that run models, and all others that do not connect, are started without them."""
    named = {name for kind, name in _REFERENCE.findall(url) if kind == "env"}
    return frozenset({"HEADRACE_DATABASE", *named})


def redacted(url: str) -> str:
    """A URL without its password; a reference to one is shown."""

    def hide(found: re.Match[str]) -> str:
        before, password, after = found[1] or found[4], found[2] or found[5] or "", found[3] or ""
        return f"{before}{password if _REFERENCE.fullmatch(password) else HIDDEN}{after}"

    return _PASSWORD.sub(hide, url)
