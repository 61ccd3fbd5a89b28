"""Where artifacts are kept, as settings say it: ``s3://bucket/prefix``, endpoint, and credentials by reference."""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from pathlib import Path

import msgspec

from headrace.core.config import Settings
from headrace.core.errors import InvalidInput


class S3Spec(msgspec.Struct, frozen=True):
    """A bucket and how to reach it. Goes to processes on their standard input; its text shows no secret."""

    bucket: str
    prefix: str = ""
    endpoint: str = ""
    """URL of the server; empty: Amazon's."""
    region: str = ""
    access_key: str = ""
    """With `secret_key`; both empty: what the machine's role gives."""
    secret_key: str = ""
    session_token: str = ""

    def __repr__(self) -> str:
        return f"S3Spec({self.bucket}/{self.prefix}, endpoint={self.endpoint!r}, region={self.region!r})"


class PullSpec(msgspec.Struct, frozen=True):
    """An artifact to bring into the node's cache, for the process that does it."""

    source: S3Spec
    digest: str
    size_bytes: int
    folder: str
    """The cache."""
    cache_max_bytes: int


class PullEvent(msgspec.Struct, frozen=True):
    """A line that such a process writes."""

    state: str
    """``pulling``; then ``ready``, ``failed`` (for good) or ``unavailable`` (another time it may work)."""
    bytes_done: int = 0
    detail: str = ""


def s3_of(settings: Settings, environment: MutableMapping[str, str]) -> S3Spec | None:
    """Where artifacts are kept, unless in the data folder. Raises InvalidInput."""
    if not settings.artifacts:
        return None
    references = (settings.s3_access_key, settings.s3_secret_key, settings.s3_session_token)
    return parse_s3(settings.artifacts, settings.s3_endpoint, settings.s3_region, references, environment)


def parse_s3(
    url: str, endpoint: str, region: str, references: tuple[str, str, str], environment: MutableMapping[str, str]
) -> S3Spec:
    """The bucket that the settings name. Raises InvalidInput.

    Args:
        url: ``s3://bucket`` or ``s3://bucket/prefix``.
        endpoint: ``http://host:port``, or empty.
        region: or empty.
        references: to access key, secret key and session token, see `secret`.
        environment: where ``env:`` references are looked up, and taken out of.
    """
    scheme, _, rest = url.partition("://")
    bucket, _, prefix = rest.partition("/")
    if scheme != "s3" or not bucket:
        raise InvalidInput(f"artifacts: {url!r}, expected s3://BUCKET or s3://BUCKET/PREFIX", field="artifacts")
    if endpoint and not endpoint.startswith(("http://", "https://")):
        raise InvalidInput(f"s3_endpoint: {endpoint!r}, expected http://... or https://...", field="s3_endpoint")
    names = ("s3_access_key", "s3_secret_key", "s3_session_token")
    access, hidden, token = (secret(r, n, environment) for r, n in zip(references, names, strict=True))
    if bool(access) != bool(hidden):
        missing, source = ("s3_secret_key", references[1]) if access else ("s3_access_key", references[0])
        raise InvalidInput(f"{missing}: {source} holds nothing, and its pair is given", field=missing)
    return S3Spec(bucket, prefix.strip("/"), endpoint.rstrip("/"), region, access, hidden, token)


def secret(reference: str, field: str, environment: MutableMapping[str, str]) -> str:
    """What a reference names: ``env:NAME`` (empty where it is not set; and taken out of the environment, so that no
    model's code inherits it) or ``file:/path``. Raises InvalidInput, which never shows a secret written in its place.
    """
    kind, _, where = reference.partition(":")
    if kind == "env" and where:
        return environment.pop(where, "")
    if kind == "file" and os.path.isabs(where):
        try:
            return Path(where).read_text().strip()
        except OSError as error:
            raise InvalidInput(f"{field}: {where}: {error.strerror}", field=field) from None
    raise InvalidInput(f"{field}: expected a reference, env:NAME or file:/PATH, not the secret itself", field=field)
