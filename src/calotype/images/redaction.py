"""Removes secrets and locations from texts and JSON that were recorded earlier, such as messages of tasks.

Nobody is shown credentials: passwords, tokens, and of a URL the part before the host and the query. Callers who may not
see locations are shown no word that could be a URL or a path.
"""

import re
from typing import Any, Final

from oslo_utils import strutils

#: The replacement for what is removed.
HIDDEN: Final = "***"
_SECRET_NAMES: Final = re.compile(
    r"pass|token|secret|credential|auth|signature|private|access_?key|api_?key", re.IGNORECASE
)
_LOCATION_NAMES: Final = re.compile(r"ur[il]s?$|path|location|director|import_from$|_from$|host", re.IGNORECASE)
_TOKENS: Final = re.compile(r"\b(?:gAAAA|eyJ)[\w.=-]{16,}|\bBearer\s+\S+")
_ASSIGNED_SECRETS: Final = re.compile(  # `… = secret`, beyond the names that oslo.utils knows
    r"((?:pass(?:word|wd|phrase)?|token|secret|credential|private_?key|access_?key|api_?key)s?['\"]?\s?[:=]\s?)\S+",
    re.IGNORECASE,
)
_WORD: Final = re.compile(r"\S+")


def redacted(value: Any, *, locations: bool) -> Any:
    """A JSON value without secrets; and without locations, unless the caller may see `locations`."""
    if isinstance(value, str):
        return _text(value, locations)
    if isinstance(value, list):
        return [redacted(one, locations=locations) for one in value]
    if isinstance(value, dict):
        return {_text(name, locations): _entry(name, one, locations) for name, one in value.items()}
    return value


def _entry(name: str, value: Any, locations: bool) -> Any:
    if _SECRET_NAMES.search(name) and value is not None and not isinstance(value, bool):
        return HIDDEN
    if _LOCATION_NAMES.search(name) and isinstance(value, str):
        return _url(_masked(value)) if locations else HIDDEN  # the whole value: a path may have blanks in it
    return redacted(value, locations=locations)


def _masked(text: str) -> str:
    return _ASSIGNED_SECRETS.sub(rf"\1{HIDDEN}", _TOKENS.sub(HIDDEN, strutils.mask_password(text, secret=HIDDEN)))


def _text(text: str, locations: bool) -> str:
    return _WORD.sub(lambda found: _word(found[0], locations), _masked(text))


def _word(word: str, locations: bool) -> str:
    if locations:
        return _url(word) if "//" in word else word
    return HIDDEN if any(sign in word for sign in "/@\\") else word


def _url(text: str) -> str:
    """The URL without credentials and query. It may remove more than that, never less."""
    before, slashes, rest = text.partition("//")
    rest = re.split(r"[?#]", rest, maxsplit=1)[0]
    return before + slashes + rest.rpartition("@")[2]
