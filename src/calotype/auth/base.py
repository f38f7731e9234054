"""`Authenticator`: the interface of what finds out who the caller of a request is."""

from collections.abc import Mapping
from typing import Any, Protocol

from calotype.context import Context


class Authenticator(Protocol):
    """Finds the caller of a request. Threads share one."""

    challenge: str  #: the value of `WWW-Authenticate` in an answer 401

    def caller(self, environ: Mapping[str, Any]) -> Context:
        """The caller behind a WSGI environment, without `request_id` and `is_admin`.

        Raises `Unauthenticated`; `Busy` when the caller cannot be determined now.
        """
