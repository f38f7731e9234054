"""The exceptions of the service.

A class says what happened. Its message is a sentence that the caller can act on, and never has a location URL, a path
or a credential in it. `api/errors.py` maps classes to HTTP statuses. Errors of other libraries are translated where the
library is called, with `raise … from exc`.
"""


class CalotypeError(Exception):
    """The base class of all errors that this service raises on purpose."""


def reason(exc: BaseException) -> str:
    """An error and its causes in one line, for logs."""
    text = str(exc) or repr(exc)
    cause = exc.__cause__
    while cause is not None:
        text += f" <- {cause!r}"
        cause = cause.__cause__
    return text


# --- what the caller asked -------------------------------------------------------------------------------


class Invalid(CalotypeError):
    """The request is malformed or its values make no sense."""


class UrlRefused(Invalid):
    """The URL is malformed, or leads to a host or port that this service does not connect to."""


class Unauthenticated(CalotypeError):
    """The request has no credentials, or wrong ones."""


class Forbidden(CalotypeError):
    """The caller may see the thing, but may not do this to it."""


class NotFound(CalotypeError):
    """There is no such thing, or the caller may not see it."""


class Conflict(CalotypeError):
    """The state of the thing does not allow this, or another request changed it first."""


class PreconditionFailed(CalotypeError):
    """The caller named a condition, and it does not hold; nothing was changed."""


class Gone(CalotypeError):
    """The thing disappeared while it was being worked on."""


class OverLimit(CalotypeError):
    """A quota, a cap or the free space does not allow this."""


class UnsupportedMedia(CalotypeError):
    """The media type of the request is not one that the route reads."""


class RangeUnsatisfiable(CalotypeError):
    """No byte of the requested range exists. `size` is how many bytes there are."""

    def __init__(self, message: str, size: int) -> None:
        super().__init__(message)
        self.size = size


class HeaderTooLarge(CalotypeError):
    """A request header is longer than is accepted."""


class NotSupported(CalotypeError):
    """The web server that runs the application cannot do what the request needs."""


class Busy(CalotypeError):
    """The service, or one that it needs, is overloaded or unreachable; a retry later will work."""


# --- bytes on their way in -------------------------------------------------------------------------------


class BodyBroken(Invalid):
    """The request body ended early, was malformed, or the client went away."""


class SourceBroken(BodyBroken):
    """A server elsewhere did not give the data that it was asked for. `lasting`: trying again would change nothing."""

    def __init__(self, message: str, *, lasting: bool = False) -> None:
        super().__init__(message)
        self.lasting = lasting


class ContentRejected(CalotypeError):
    """The bytes are not what the image's format says, or are unsafe to hand to a hypervisor."""


class FetchFailed(CalotypeError):
    """A server elsewhere could not be reached, or did not answer as it should."""


class ConnectionCut(FetchFailed):
    """The connection to a server elsewhere ended before the data did; the rest may be had by another one."""


# --- stores ----------------------------------------------------------------------------------------------


class StoreError(CalotypeError):
    """A store failed. `store` is its name; the cause is chained."""

    def __init__(self, message: str, store: str = "") -> None:
        super().__init__(message)
        self.store = store


class Missing(StoreError):
    """The object that a location names is not in the store."""


class Replaced(Missing):
    """The object is gone. Another object has its URL, and was left alone."""


class AlreadyStored(StoreError):
    """The store holds an object of this name; nothing was overwritten."""


class InUse(StoreError):
    """The store will not delete the object because something depends on it."""


class StoreFull(StoreError):
    """There is no room for the object."""


class LocationRefused(StoreError):
    """The location leads where this service does not connect to; asking again changes nothing."""


class StoreReadOnly(StoreError):
    """The store does not take new objects."""


class StoreUnavailable(StoreError):
    """The store cannot be reached or written to just now."""


class Cancelled(StoreUnavailable):
    """The read was ended from elsewhere, as when the service stops."""


class StoreSlow(StoreUnavailable):
    """The store, or the server that has the data, gives it more slowly than is allowed."""


class StoreBusy(StoreUnavailable):
    """Too many requests wait for the store, or for the server that has the data; a retry later will work."""


# --- operators -------------------------------------------------------------------------------------------


class ConfigError(CalotypeError):
    """The configuration cannot be served safely; the message says what to change."""
