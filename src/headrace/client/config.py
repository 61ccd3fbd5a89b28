"""Where the platform is and who we are: arguments, environment, config file, the local platform's credentials."""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass
from pathlib import Path

from headrace.core.config import default_data_folder
from headrace.core.errors import Unauthenticated

DEFAULT_URL = "http://127.0.0.1:8000"
DEFAULT_CONTROL_URL = "http://127.0.0.1:8002"


@dataclass(frozen=True, slots=True)
class Access:
    """A platform's addresses and the key to it."""

    url: str
    control_url: str
    api_key: str


def resolve(url: str | None = None, api_key: str | None = None, control_url: str | None = None) -> Access:
    """The first that says something: argument, ``HEADRACE_*`` variable, ``~/.config/headrace/config.toml``, then
    ``credentials.toml`` in the data folder of a platform on this machine.

    Raises:
        Unauthenticated: there is no key anywhere.
    """
    data = Path(os.environ.get("HEADRACE_DATA") or default_data_folder())
    config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "headrace" / "config.toml"
    sources: list[dict[str, str | None]] = [
        {"url": url, "api_key": api_key, "control_url": control_url},
        {name: os.environ.get(f"HEADRACE_{name.upper()}") for name in ("url", "api_key", "control_url")},
        _read(config),
        _read(data / "credentials.toml"),
    ]

    def first(name: str) -> str | None:
        return next((source[name] for source in sources if source.get(name)), None)

    key = first("api_key")
    if key is None:
        raise Unauthenticated(
            "no API key",
            hint="set HEADRACE_API_KEY, or start a platform on this machine: headrace up",
        )
    return Access(
        (first("url") or DEFAULT_URL).rstrip("/"), (first("control_url") or DEFAULT_CONTROL_URL).rstrip("/"), key
    )


def _read(path: Path) -> dict[str, str | None]:
    try:
        return tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError):
        return {}
