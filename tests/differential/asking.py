"""Who asks both services, and how a script says what is asked."""

from collections.abc import Callable
from typing import Any, Protocol

ANYBODY, BAD = None, "nobody"  #: without credentials; with wrong ones
PERSONAS = ("admin", "manager", "alice", "reader", "bob", "carol", "service", ANYBODY, BAD)


class Ask(Protocol):
    """Sends one request to both. `data` goes as it is, a list of pieces goes in chunks, `json` is encoded."""

    web: str  #: URL of a web server that both may fetch from: /disk, /qcow2, /empty, and nothing else

    def __call__(
        self,
        who: str | None,
        method: str,
        path: str,
        *,
        json: Any = ...,
        data: bytes | list[bytes] | None = None,
        headers: dict[str, str] = ...,
        keep: str = "",
    ) -> None: ...

    def project(self, user: str) -> str:
        """The id of a user's project."""
        ...

    def until(self, path: str, condition: Callable[[Any], bool]) -> None:
        """Wait until it is true of what each service shows an administrator at a path. That it never is, differs."""
        ...
