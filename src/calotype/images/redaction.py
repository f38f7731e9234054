"""What a text that somebody wrote down earlier may tell to whom.

Credentials are for nobody: passwords and tokens, the part of a URL before the host, its query. URLs and paths are for
those who may see locations; others read a text without each word that could be one.
"""

import re
from typing import Any, Final

from oslo_utils import strutils

#: Stands for what is not told.
HIDDEN: Final = "***"
_SECRETS: Final = re.compile(r"pass|token|secret|credential|auth|signature|private|access_?key|api_?key", re.IGNORECASE)
_PLACES: Final = re.compile(r"ur[il]s?$|path|location|director|import_from$|_from$|host", re.IGNORECASE)
_TOKENS: Final = re.compile(r"\b(?:gAAAA|eyJ)[\w.=-]{16,}|\bBearer\s+\S+")
_SAID: Final = re.compile(  # `… = secret`, beyond the names that oslo.utils knows
    r"((?:pass(?:word|wd|phrase)?|token|secret|credential|private_?key|access_?key|api_?key)s?['\"]?\s?[:=]\s?)\S+",
    re.IGNORECASE,
)
_WORD: Final = re.compile(r"\S+")


def redacted(value: Any, *, locations: bool) -> Any:
    """A JSON value as it may be told to somebody; `locations` tells whether that one may see those."""
    if isinstance(value, str):
        return _text(value, locations)
    if isinstance(value, list):
        return [redacted(one, locations=locations) for one in value]
    if isinstance(value, dict):
        return {_text(name, locations): _entry(name, one, locations) for name, one in value.items()}
    return value


def _entry(name: str, value: Any, locations: bool) -> Any:
    if _SECRETS.search(name) and value is not None and not isinstance(value, bool):
        return HIDDEN
    if _PLACES.search(name) and isinstance(value, str):
        return _url(_masked(value)) if locations else HIDDEN  # as a whole: what is in it may hold blanks
    return redacted(value, locations=locations)


def _masked(text: str) -> str:
    return _SAID.sub(rf"\1{HIDDEN}", _TOKENS.sub(HIDDEN, strutils.mask_password(text, secret=HIDDEN)))


def _text(text: str, locations: bool) -> str:
    return _WORD.sub(lambda found: _word(found[0], locations), _masked(text))


def _word(word: str, locations: bool) -> str:
    if locations:
        return _url(word) if "//" in word else word
    return HIDDEN if any(sign in word for sign in "/@\\") else word


def _url(text: str) -> str:
    """Without what stands before an @, and without a query; more may be cut off than would have to be."""
    before, slashes, rest = text.partition("//")
    rest = re.split(r"[?#]", rest, maxsplit=1)[0]
    return before + slashes + rest.rpartition("@")[2]
