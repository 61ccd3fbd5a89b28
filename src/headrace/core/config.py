"""Settings: one TOML file and `HEADRACE_*` variables, read once, validated, handed down whole.

Precedence: command line > environment > file > default. `origins` remembers where each value came from.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from headrace.core.devices import PROCESSORS, TIERS, Tier
from headrace.core.errors import InvalidInput
from headrace.core.names import did_you_mean
from headrace.core.secret import redacted
from headrace.core.zygote import RUNTIMES, Runtime


def default_data_folder() -> str:
    """``$XDG_DATA_HOME/headrace`` or ``~/.local/share/headrace``."""
    return str(Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "headrace")


class OwnDevice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A device that the settings say this node has."""

    name: str
    """Unique on the node: ``cpu0``, ``gpu1``."""
    memory_mb: int
    compute: float
    """Cores of processors; 1 for an accelerator."""
    tier: str = PROCESSORS
    spot: bool = False


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All settings of a node. Units are in the names."""

    data: str = msgspec.field(default_factory=default_data_folder)
    """Folder that holds everything: database, artifacts, sockets, logs."""
    database: str = ""
    """The control plane's store: empty for SQLite in the data folder, or postgresql+psycopg://USER:PASSWORD@HOST/NAME,
    where PASSWORD may be ${env:VARIABLE} or ${file:PATH}."""
    control_planes: int = 1
    """Control planes on this node, of which one leads; more than one needs PostgreSQL."""
    host: str = "127.0.0.1"
    """Address that the three ports listen on."""
    http_port: int = 8000
    """Inference over HTTP. 0: chosen by the system."""
    grpc_port: int = 8001
    """Inference over gRPC. 0: chosen by the system; -1: off."""
    control_port: int = 8002
    """Control-plane API and metrics. 0: chosen by the system."""
    routers: int = 1
    """Router processes sharing the HTTP port."""
    anonymous_tenant: str = ""
    """Tenant of inference requests that bring no key; empty refuses them with 401."""
    timeout_s: float = 30.0
    """Longest that a request may take where neither it nor its model says otherwise."""
    idle_timeout_s: float = 75.0
    """An HTTP connection with nothing to do for so long is closed."""
    header_timeout_s: float = 10.0
    """A request whose headers do not arrive whole in so long, or of whose body nothing comes for so long, gets 408."""
    max_connections: int = 10_000
    """HTTP connections per router process, or calls at once over gRPC; more are refused."""
    artifacts: str = ""
    """Where artifacts are kept: `s3://BUCKET/PREFIX`; empty: below the data folder."""
    artifact_max_bytes: int = 8 << 30
    """Largest artifact that may be put."""
    artifact_grace_s: float = 86_400.0
    """An artifact that no version needs is removed so long after it was last put or asked for."""
    cache_max_bytes: int = 32 << 30
    """Artifacts that a node keeps of a store elsewhere; those that live replicas use are never evicted."""
    s3_endpoint: str = ""
    """URL of the S3-compatible storage; empty: Amazon's."""
    s3_region: str = ""
    """Its region; empty: us-east-1."""
    s3_access_key: str = "env:AWS_ACCESS_KEY_ID"
    """Reference to the access key: `env:NAME` or `file:/PATH`. Holds it nothing: the machine's role."""
    s3_secret_key: str = "env:AWS_SECRET_ACCESS_KEY"
    """Reference to the secret key, likewise."""
    s3_session_token: str = "env:AWS_SESSION_TOKEN"
    """Reference to the session token, likewise."""
    forms_max_bytes: int = 32 << 30
    """Serving forms that a node keeps of large ONNX models, so that their replicas start quickly. 0: none."""
    fleet: str = "local"
    """What runs the replicas: `local`, processes of this machine, or `ray`, actors of a Ray cluster."""
    ray_address: str = ""
    """`HOST:PORT` of the head of a Ray cluster that this machine is a node of; empty: one is started here."""
    ray_port: int = 6379
    """Of the head that is started here."""
    ray_folder: str = ""
    """Folder on each of Ray's nodes, for replicas' logs and the cache; empty: one in the temporary folder."""
    fleet_host: str = ""
    """Address of this machine as the other nodes reach it; empty: of the interface towards Ray's head."""
    fleet_port: int = 8003
    """On which replicas of other nodes report. 0: chosen by the system at each start, and earlier replicas lose us."""
    unlinked_s: float = 300.0
    """A replica of another node that no router has been connected to for so long leaves."""
    replicas_max: int = 256
    """Replicas that all deployments together may want: each is a process."""
    zygotes: str = "onnx"
    """Runtimes whose zygote starts with the node, by commas: python, onnx, xgboost, lightgbm, sklearn, torch. Others
    start with their first replica. off: replicas are processes of their own."""
    idle_processes: int = 0
    """Processes that stand ready for replicas to come, per runtime in use."""
    shared_replicas: int = 2
    """Processes that shared deployments have in common; with two or more, the end of one costs nobody a request."""
    shared_memory_mb: int = 1024
    """Most resident memory of each of them, in MiB: models are evicted to stay below it."""
    shared_model_memory_mb: int = 256
    """Most memory of a model in them whose deployment sets no `memory_mb`, in MiB."""
    promote_per_s: float = 50.0
    """An `auto` deployment with so many requests a second gets replicas of its own."""
    promote_after_s: float = 10.0
    """For so long it must have had them."""
    demote_per_s: float = 5.0
    """One with no more than so many goes back to the shared processes."""
    demote_after_s: float = 300.0
    """For so long it must have had no more."""
    tiers: dict[str, Tier] = {}
    """Prices and speeds of hardware, by tier, over those that are built in; as JSON where it is not in the file."""
    devices: tuple[OwnDevice, ...] = ()
    """What this node has, as JSON where it is not in the file; empty: what is found on the machine."""
    rebalance_s: float = 600.0
    """How often it is looked whether fewer or cheaper devices would do; 0: never."""
    drain_s: float = 30.0
    """How long a replica or router finishes what it has after being told to stop."""
    log_level: str = "info"
    """debug, info, warning or error."""


LIMITS: dict[str, tuple[float, float]] = {
    "http_port": (0, 65535),
    "grpc_port": (-1, 65535),
    "control_port": (0, 65535),
    "control_planes": (1, 16),
    "routers": (1, 256),
    "timeout_s": (0.001, 86_400),
    "idle_timeout_s": (0.1, 86_400),
    "header_timeout_s": (0.1, 86_400),
    "max_connections": (1, 1_000_000),
    "artifact_max_bytes": (1, 1 << 50),
    "artifact_grace_s": (0, 1e9),
    "cache_max_bytes": (1, 1 << 50),
    "forms_max_bytes": (0, 1 << 50),
    "ray_port": (1, 65535),
    "fleet_port": (0, 65535),
    "unlinked_s": (1, 86_400),
    "replicas_max": (1, 1_000_000),
    "idle_processes": (0, 1000),
    "shared_replicas": (1, 64),
    "shared_memory_mb": (128, 1 << 24),
    "shared_model_memory_mb": (1, 1 << 24),
    "promote_per_s": (0.001, 1e9),
    "promote_after_s": (0, 86_400),
    "demote_per_s": (0, 1e9),
    "demote_after_s": (0, 1e9),
    "rebalance_s": (0, 1e9),
    "drain_s": (0, 86_400),
}
"""Least and most of each setting that is a number."""
NEAR = 0.88
"""Likeness from which a variable is taken for one of ours with a slip in it."""
FLEETS = ("local", "ray")
_RAY_ADDRESS = re.compile(r"[^\s/:]+:\d{1,5}")
_DATABASE = re.compile(r"postgresql\+psycopg://(.*@)?[^/@]*/[^/?]+(\?.*)?$")
_TIER = re.compile(r"[a-z0-9][a-z0-9-]{0,31}$")
NUMBER_MAX = 1e9
CLIENT_VARIABLES = ("HEADRACE_URL", "HEADRACE_CONTROL_URL", "HEADRACE_API_KEY")
"""Read by clients, not by the platform."""


class Loaded(msgspec.Struct, frozen=True):
    """Settings and, per field, where the value came from."""

    settings: Settings
    origins: dict[str, str]


def load(file: Path | None, environment: Mapping[str, str], command_line: Mapping[str, Any] | None = None) -> Loaded:
    """Read the settings.

    Args:
        file: TOML file, or None; one that is named and missing is an error.
        environment: of which the ``HEADRACE_<FIELD>`` variables are taken.
        command_line: fields given as options; None values count as not given.

    Raises:
        InvalidInput: an unknown field (with the nearest name), or a value of the wrong type or out of its limits.
    """
    values: dict[str, Any] = {}
    origins = dict.fromkeys(Settings.__struct_fields__, "default")
    if file is not None:
        try:
            values = tomllib.loads(file.read_text())
        except FileNotFoundError:
            raise InvalidInput(f"config file {file}: not found", field="config") from None
        except OSError as error:
            raise InvalidInput(f"config file {file}: {error.strerror}", field="config") from None
        except UnicodeDecodeError:
            raise InvalidInput(f"config file {file}: not UTF-8 text", field="config") from None
        except tomllib.TOMLDecodeError as error:
            raise InvalidInput(f"config file {file}: {error}", field="config") from None
        for name in values:
            _check_known(name, str(file))
            origins[name] = str(file)
    _check_variables(environment)
    for name in Settings.__struct_fields__:
        variable = f"HEADRACE_{name.upper()}"
        if variable in environment:
            values[name] = environment[variable]
            origins[name] = variable
    for name, value in (command_line or {}).items():
        _check_known(name, "command line")
        if value is not None:
            values[name] = value
            origins[name] = "command line"
    for name in ("tiers", "devices"):
        values |= {name: _json(name, values[name], origins[name])} if isinstance(values.get(name), str) else {}
    try:
        settings = msgspec.convert(values, Settings, strict=False)
    except msgspec.ValidationError as error:
        text, _, path = str(error).partition(" - at `$.")
        field = path.rstrip("`") or None
        origin = f" ({origins[field]})" if field in origins else ""
        raise InvalidInput(f"{field or 'settings'}: {text}{origin}", field=field) from None
    for name, (least, most) in LIMITS.items():
        if not least <= (value := getattr(settings, name)) <= most:  # NaN is not either
            expected = f"{name}: {value}, expected {least:.15g} to {most:.15g} ({origins[name]})"
            raise InvalidInput(expected, field=name)
    if not settings.demote_per_s < settings.promote_per_s:
        expected = f"expected less than promote_per_s, which is {settings.promote_per_s:g}"
        raise InvalidInput(f"demote_per_s: {settings.demote_per_s:g}, {expected}", field="demote_per_s")
    _check_database(settings, origins["database"])
    _check_zygotes(settings.zygotes, origins["zygotes"])
    _check_devices(settings, origins)
    _check_fleet(settings, origins)
    return Loaded(msgspec.structs.replace(settings, tiers=TIERS | settings.tiers), origins)


def shown(loaded: Loaded) -> Loaded:
    """The settings as people may see them: without passwords."""
    settings = msgspec.structs.replace(loaded.settings, database=redacted(loaded.settings.database))
    return Loaded(settings, loaded.origins)


def _check_database(settings: Settings, origin: str) -> None:
    url = settings.database
    if url and not _DATABASE.match(url):
        expected = "expected nothing, or postgresql+psycopg://USER:PASSWORD@HOST/NAME"
        raise InvalidInput(f"database: {redacted(url)!r}, {expected} ({origin})", field="database")
    if settings.control_planes > 1 and not url:
        raise InvalidInput(
            f"control_planes: {settings.control_planes}, and SQLite takes one",
            field="control_planes",
            hint="set database to a PostgreSQL server",
        )


def runtimes_of(zygotes: str) -> tuple[Runtime, ...]:
    """The runtimes that the setting names, in the order of `RUNTIMES`."""
    named = {name.strip() for name in zygotes.split(",")}
    return tuple(name for name in RUNTIMES if name in named)


def _check_zygotes(text: str, origin: str) -> None:
    for name in text.split(",") if text.strip() not in ("", "off") else ():
        if name.strip() not in RUNTIMES:
            expected = f"expected off, or some of {', '.join(RUNTIMES)} by commas"
            hint = did_you_mean(name.strip(), RUNTIMES)
            raise InvalidInput(f"zygotes: {name.strip()!r}, {expected} ({origin})", field="zygotes", hint=hint)


def _check_devices(settings: Settings, origins: Mapping[str, str]) -> None:
    for name, tier in settings.tiers.items():
        if not _TIER.match(name):
            raise InvalidInput(f"tiers: {name!r}, expected letters, digits and - ({origins['tiers']})", field="tiers")
        numbers = (tier.price_per_h, tier.speed, tier.spot_price_per_h or 0.0)
        if not all(0 <= number <= NUMBER_MAX for number in numbers) or not tier.speed:
            expected = f"expected prices of 0 to {NUMBER_MAX:g} and a speed above 0"
            raise InvalidInput(f"tiers: {name}: {expected} ({origins['tiers']})", field="tiers")
    names = [device.name for device in settings.devices]
    for device in settings.devices:
        if not _TIER.match(device.name) or names.count(device.name) > 1:
            expected = "expected letters, digits and -, each name once"
            raise InvalidInput(f"devices: {device.name!r}, {expected} ({origins['devices']})", field="devices")
        if not (1 <= device.memory_mb <= NUMBER_MAX and 0 <= device.compute <= NUMBER_MAX):
            expected = f"expected memory_mb of 1 to {NUMBER_MAX:g} and compute of 0 to {NUMBER_MAX:g}"
            raise InvalidInput(f"devices: {device.name}: {expected} ({origins['devices']})", field="devices")


def _json(name: str, text: str, origin: str) -> object:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise InvalidInput(f"{name}: not JSON: {error} ({origin})", field=name) from None


def _check_fleet(settings: Settings, origins: Mapping[str, str]) -> None:
    if settings.fleet not in FLEETS:
        expected = f"fleet: {settings.fleet!r}, expected {' or '.join(FLEETS)} ({origins['fleet']})"
        raise InvalidInput(expected, field="fleet", hint=did_you_mean(settings.fleet, FLEETS))
    address = settings.ray_address
    if address and not _RAY_ADDRESS.fullmatch(address):
        hint = "of the head, as `ray start` was given it; Ray's client protocol (ray://) does not reach actors' nodes"
        expected = f"ray_address: {address!r}, expected HOST:PORT ({origins['ray_address']})"
        raise InvalidInput(expected, field="ray_address", hint=hint)
    if address and settings.fleet != "ray":
        raise InvalidInput("ray_address: given, and the fleet is local", field="ray_address", hint="set fleet to ray")


def _check_known(name: str, origin: str) -> None:
    if name not in Settings.__struct_fields__:
        hint = did_you_mean(name, Settings.__struct_fields__)
        raise InvalidInput(f"{origin}: no setting {name!r}", field=name, hint=hint)


def _check_variables(environment: Mapping[str, str]) -> None:
    """Refuse a variable that nearly is one of ours. Others with our prefix may be anybody's: Kubernetes, for one, sets
    ``HEADRACE_SERVICE_HOST`` and more in every container beside a service of that name."""
    known = [*(f"HEADRACE_{name.upper()}" for name in Settings.__struct_fields__), *CLIENT_VARIABLES]
    for name in environment:
        if name.startswith("HEADRACE_") and name not in known and (hint := did_you_mean(name, known, NEAR)):
            raise InvalidInput(f"environment: no setting {name!r}", field=name, hint=hint)
