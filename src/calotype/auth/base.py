"""`Authenticator`: the interface of what finds out who the caller of a request is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from calotype.context import Context


@dataclass(frozen=True, slots=True)
class Delegation:
    """What lets the service act for a caller: the token, and the catalog that Keystone sent with it.

    It stays in this process, and is never written anywhere.
    """

    token: str = field(repr=False)
    catalog: Sequence[Mapping[str, Any]] = field(repr=False)

    def endpoint(self, kind: str, region: str, interface: str) -> str | None:
        """The URL of a service in a region, letter case aside; None if the catalog has none."""
        for service in self.catalog:
            for one in service.get("endpoints", ()) if service.get("type") == kind else ():
                if str(one.get("region", "")).lower() == region.lower() and (url := one.get(f"{interface}URL")):
                    return str(url)
        return None


class Authenticator(Protocol):
    """Finds the caller of a request. Threads share one."""

    challenge: str  #: the value of `WWW-Authenticate` in an answer 401

    def caller(self, environ: Mapping[str, Any]) -> Context:
        """The caller behind a WSGI environment, without `request_id` and `is_admin`.

        Raises `Unauthenticated`; `Busy` when the caller cannot be determined now.
        """

    def delegation(self, environ: Mapping[str, Any]) -> Delegation | None:
        """What lets the service act for this caller elsewhere; None if nothing does. Raises as `caller`."""
