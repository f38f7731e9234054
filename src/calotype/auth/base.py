"""What the service wants of whoever tells it who is asking."""

from collections.abc import Mapping
from typing import Any, Protocol

from calotype.context import Context


class Authenticator(Protocol):
    """Shared by threads."""

    challenge: str  #: `WWW-Authenticate` of a refusal

    def caller(self, environ: Mapping[str, Any]) -> Context:
        """The caller behind a WSGI environment, without `request_id` and `is_admin`.

        Raises `Unauthenticated`, and `Busy` when that cannot be found out now.
        """
