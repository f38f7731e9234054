"""What can go wrong, in our own words.

No HTTP here: `api/errors.py` holds the one table that turns each class into a status. A class says what
happened; its message is a sentence the person who asked can act on, and never holds a location URL, a path
or a credential. Foreign errors are translated where the foreign library is called, with `raise … from exc`.
"""


class CalotypeError(Exception):
    """Anything that this service reports on purpose."""


def reason(exc: BaseException) -> str:
    """An error and what caused it, in one line, for logs."""
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
    """The URL is malformed, or leads where this service does not connect to."""


class Unauthenticated(CalotypeError):
    """Nobody, or somebody with wrong credentials, is asking."""


class Forbidden(CalotypeError):
    """The caller may know of the thing, but may not do this to it."""


class NotFound(CalotypeError):
    """There is no such thing, or the caller may not know that there is."""


class Conflict(CalotypeError):
    """The thing is not in a state that allows this, or somebody else was quicker."""


class Gone(CalotypeError):
    """The thing disappeared while it was being worked on."""


class OverLimit(CalotypeError):
    """A quota, a cap or the room that is left does not allow this."""


class UnsupportedMedia(CalotypeError):
    """The media type of the request is not one that the route reads."""


class RangeUnsatisfiable(CalotypeError):
    """No byte of the wanted range exists; `size` is how many there are."""

    def __init__(self, message: str, size: int) -> None:
        super().__init__(message)
        self.size = size


class HeaderTooLarge(CalotypeError):
    """A request header is longer than is accepted."""


class NotSupported(CalotypeError):
    """The server in front cannot do what the request needs."""


class Busy(CalotypeError):
    """Too much of this is going on; asking again later will work."""


# --- bytes on their way in -------------------------------------------------------------------------------


class BodyBroken(Invalid):
    """The request body ended early, was malformed, or the client went away."""


class ContentRejected(CalotypeError):
    """The bytes are not what the image's format says, or are unsafe to hand to a hypervisor."""


class FetchFailed(CalotypeError):
    """A server elsewhere could not be reached, or did not answer as it should."""


# --- stores ----------------------------------------------------------------------------------------------


class StoreError(CalotypeError):
    """A store failed. `store` is its name; the cause is chained."""

    def __init__(self, message: str, store: str = "") -> None:
        super().__init__(message)
        self.store = store


class Missing(StoreError):
    """The object that a location names is not in the store."""


class Replaced(Missing):
    """The object is gone, and another one, which was left alone, has its URL."""


class AlreadyStored(StoreError):
    """The store holds an object of this name; nothing was overwritten."""


class InUse(StoreError):
    """The store will not delete the object because something depends on it."""


class StoreFull(StoreError):
    """There is no room for the object."""


class StoreReadOnly(StoreError):
    """The store does not take new objects."""


class StoreUnavailable(StoreError):
    """The store cannot be reached or written to just now."""


class StoreBusy(StoreUnavailable):
    """Too many wait for the store, or for the server that the data is on; asking again later will work."""


# --- operators -------------------------------------------------------------------------------------------


class ConfigError(CalotypeError):
    """The configuration cannot be served safely; the message says what to change."""
