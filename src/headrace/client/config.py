"""Where the platform is and who we are: arguments, environment, config file, the local platform's credentials."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from headrace.core.config import default_data_folder
from headrace.core.errors import InvalidInput, Unauthenticated

DEFAULT_URL = "http://127.0.0.1:8000"
CONTROL_PORT = 8002
ADDRESSES = ("url", "control_url")


@dataclass(frozen=True, slots=True)
class Access:
    """A platform's addresses and the key to it."""

    url: str
    control_url: str
    api_key: str

    def __repr__(self) -> str:
        return f"Access({self.url!r}, {self.control_url!r})"


def resolve(url: str | None = None, api_key: str | None = None, control_url: str | None = None) -> Access:
    """The first that says something: argument, ``HEADRACE_*`` variable, ``~/.config/headrace/config.toml``, then
    ``credentials.toml`` in the data folder of a platform on this machine.

    Raises:
        InvalidInput: an address or a file that cannot be read as one.
        Unauthenticated: there is no key anywhere.
    """
    data = Path(os.environ.get("HEADRACE_DATA") or default_data_folder()).expanduser()
    config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "headrace" / "config.toml"
    found = choose(
        {"url": url, "api_key": api_key, "control_url": control_url},
        {name: os.environ.get(f"HEADRACE_{name.upper()}") for name in (*ADDRESSES, "api_key")},
        _read(config),
        _read(data / "credentials.toml"),
    )
    if "api_key" not in found:
        raise Unauthenticated(
            "no API key", hint="set HEADRACE_API_KEY, or start a platform on this machine: headrace up"
        )
    inference = found.get("url", DEFAULT_URL)
    return Access(inference, found.get("control_url") or _beside(inference), found["api_key"])


def choose(*sources: Mapping[str, str | None]) -> dict[str, str]:
    """What the sources say, the earlier first. A source that names another platform than those before it is passed
    over whole: its key must not go there, nor may a request meant for one platform reach the other."""
    found: dict[str, str] = {}
    for source in sources:
        given = {name: value.rstrip("/") for name, value in source.items() if isinstance(value, str) and value}
        if all(given.get(name, value) == value for name, value in found.items() if name in ADDRESSES):
            found = {**given, **found}
    for name in ADDRESSES:
        if name in found and urlsplit(found[name]).scheme not in ("http", "https"):
            raise InvalidInput(f"{name}: {found[name]!r}, expected an address like {DEFAULT_URL}", field=name)
    return found


def _beside(url: str) -> str:
    """The control plane of a platform of which only the inference address is known: same host, its usual port."""
    parts = urlsplit(url)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return urlunsplit((parts.scheme, f"{host}:{CONTROL_PORT}", "", "", ""))


def _read(path: Path) -> dict[str, str | None]:
    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise InvalidInput(f"{path}: {error}", field=path.name) from None
