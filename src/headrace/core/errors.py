"""The one error tree. Each branch says who must act; each class its HTTP status and stable code.

HeadraceError
├── CallerError              the caller must change the request
│   ├── InvalidInput         400  invalid-input        (names the field)
│   ├── Unauthenticated      401  unauthenticated
│   ├── Forbidden            403  forbidden
│   ├── NotFound             404  not-found
│   ├── Conflict             409  conflict
│   ├── PreconditionFailed   412  precondition-failed
│   ├── TooLarge             413  too-large
│   └── Unprocessable        422  unprocessable        (understood, and refused: an artifact that does not load)
├── RetryLater               the caller may try again later
│   ├── QuotaExceeded        429  quota-exceeded       (the tenant's own limit)
│   ├── Unavailable          503  unavailable          (nothing ready, overload; the reason is stated)
│   ├── Unreachable          503  unreachable          (raised by the client: no answer from the platform)
│   └── DeadlineExceeded     504  deadline-exceeded
└── PlatformFault            500  internal             we must act
"""

from __future__ import annotations


class HeadraceError(Exception):
    """Base of all errors that reach a caller.

    Args:
        message: what went wrong, in a sentence, with the offending value.
        field: path of the field at fault, e.g. ``inputs[0].shape``; None when no single field is.
        hint: what to do or type next.
    """

    status = 500
    code = "internal"

    def __init__(self, message: str, *, field: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.hint = hint


class CallerError(HeadraceError):
    """The caller must change the request."""

    status = 400
    code = "invalid-input"


class InvalidInput(CallerError):
    """A field is missing, of the wrong type, or out of range."""


class Unauthenticated(CallerError):
    """No key, or one that nobody holds."""

    status = 401
    code = "unauthenticated"


class Forbidden(CallerError):
    """The key is good, but its role or tenant does not reach this."""

    status = 403
    code = "forbidden"


class NotFound(CallerError):
    """No such resource."""

    status = 404
    code = "not-found"


class Conflict(CallerError):
    """The resource's state does not allow it."""

    status = 409
    code = "conflict"


class PreconditionFailed(CallerError):
    """`If-Match` names another revision than the current one."""

    status = 412
    code = "precondition-failed"


class TooLarge(CallerError):
    """A body, header or tensor over its limit."""

    status = 413
    code = "too-large"


class Unprocessable(CallerError):
    """Understood, and refused: the artifact does not load, the pickle is not trusted."""

    status = 422
    code = "unprocessable"


class RetryLater(HeadraceError):
    """The same request may succeed later."""

    status = 503
    code = "unavailable"

    def __init__(
        self, message: str, *, retry_after_s: float = 1.0, field: str | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message, field=field, hint=hint)
        self.retry_after_s = retry_after_s


class QuotaExceeded(RetryLater):
    """The tenant's own limit."""

    status = 429
    code = "quota-exceeded"


class Unavailable(RetryLater):
    """Nothing ready, or overload."""


class Unreachable(RetryLater):
    """The platform did not answer (raised by the client)."""

    code = "unreachable"


class DeadlineExceeded(RetryLater):
    """The deadline passed before an answer was ready."""

    status = 504
    code = "deadline-exceeded"


class PlatformFault(HeadraceError):
    """Our fault; the message never carries internals."""


BY_CODE: dict[str, type[HeadraceError]] = {
    cls.code: cls
    for cls in (
        InvalidInput,
        Unauthenticated,
        Forbidden,
        NotFound,
        Conflict,
        PreconditionFailed,
        TooLarge,
        Unprocessable,
        QuotaExceeded,
        Unavailable,
        Unreachable,
        DeadlineExceeded,
        PlatformFault,
    )
}
"""Stable code -> class, for clients that rebuild the error from a problem document."""
