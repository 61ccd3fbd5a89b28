"""Multi-part uploads that a killed process has left in the bucket: unseen, and paid for.

The one thing that obstore cannot do, so three small requests are signed here (Signature Version 4:
https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html).
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import quote, urlsplit
from xml.etree import ElementTree

import httpx

from headrace.core.errors import Unavailable
from headrace.core.storage import S3Spec

TIMEOUT_S = 30.0
PAGES_MAX = 100
"""Pages of 1,000 uploads that are looked at in one sweep."""
_EMPTY = hashlib.sha256(b"").hexdigest()


@dataclass(frozen=True, slots=True)
class Begun:
    """A multi-part upload that is in progress, or was left."""

    key: str
    id: str
    at: datetime.datetime


def abort_old(spec: S3Spec, age_s: float) -> int:
    """Abort the uploads below the prefix that were begun longer ago than this; how many.

    Nothing is done where credentials come from the machine's role, which is obstore's to ask: a lifecycle rule of the
    bucket (AbortIncompleteMultipartUpload) does it there.

    Raises:
        Unavailable: the storage does not answer, or refuses.
    """
    if not spec.access_key:
        return 0
    before = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=age_s)
    aborted = 0
    try:
        with httpx.Client(timeout=TIMEOUT_S) as client:
            for upload in list(_in_progress(client, spec)):
                if upload.at < before:
                    _send(client, spec, "DELETE", upload.key, {"uploadId": upload.id})
                    aborted += 1
    except httpx.HTTPError as error:
        raise Unavailable(f"the artifact store s3://{spec.bucket} does not answer: {type(error).__name__}") from None
    return aborted


def _in_progress(client: httpx.Client, spec: S3Spec) -> Iterator[Begun]:
    query = {"uploads": "", "prefix": f"{spec.prefix}/sha256/".lstrip("/")}
    for _ in range(PAGES_MAX):
        found = ElementTree.fromstring(_send(client, spec, "GET", "", query).content)
        for item in found.iterfind("{*}Upload"):
            at = datetime.datetime.fromisoformat(item.findtext("{*}Initiated", ""))
            yield Begun(item.findtext("{*}Key", ""), item.findtext("{*}UploadId", ""), at)
        if found.findtext("{*}IsTruncated") != "true":
            return
        query["key-marker"] = found.findtext("{*}NextKeyMarker", "")
        query["upload-id-marker"] = found.findtext("{*}NextUploadIdMarker", "")


def _send(client: httpx.Client, spec: S3Spec, method: str, key: str, query: dict[str, str]) -> httpx.Response:
    region = spec.region or "us-east-1"
    if spec.endpoint:
        base, path = spec.endpoint, f"/{spec.bucket}/{quote(key)}".removesuffix("/")
    else:
        base, path = f"https://{spec.bucket}.s3.{region}.amazonaws.com", f"/{quote(key)}"
    asked = "&".join(f"{quote(name, '')}={quote(value, '')}" for name, value in sorted(query.items()))
    headers = sign(spec, region, method, urlsplit(base).netloc, path, asked)
    response = client.request(method, f"{base}{path}?{asked}", headers=headers)
    if response.status_code not in (200, 204, 404):
        raise Unavailable(f"the artifact store s3://{spec.bucket} answers {response.status_code} to {method}")
    return response


def sign(spec: S3Spec, region: str, method: str, host: str, path: str, query: str) -> dict[str, str]:
    """Headers of a request without a body, signed now."""
    now = datetime.datetime.now(datetime.UTC)
    at, day = now.strftime("%Y%m%dT%H%M%SZ"), now.strftime("%Y%m%d")
    headers = {"host": host, "x-amz-content-sha256": _EMPTY, "x-amz-date": at}
    if spec.session_token:
        headers["x-amz-security-token"] = spec.session_token
    names = ";".join(sorted(headers))
    lines = "".join(f"{name}:{value}\n" for name, value in sorted(headers.items()))
    canonical = f"{method}\n{path}\n{query}\n{lines}\n{names}\n{_EMPTY}"
    scope = f"{day}/{region}/s3/aws4_request"
    text = f"AWS4-HMAC-SHA256\n{at}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    key = b"AWS4" + spec.secret_key.encode()
    for part in (day, region, "s3", "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.digest(key, text.encode(), "sha256").hex()
    credential = f"{spec.access_key}/{scope}"
    headers["authorization"] = f"AWS4-HMAC-SHA256 Credential={credential}, SignedHeaders={names}, Signature={signature}"
    return headers
