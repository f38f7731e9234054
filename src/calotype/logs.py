"""The context of log lines: the request or job, its caller, and its image.

oslo.log takes them from oslo.context's context of the thread. A thread serves one request after the other, so every
`begin` needs an `end`.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

from oslo_context import context

from calotype import insides
from calotype.context import Context

#: The key of a WSGI environment under which the log context of the request is.
KEY: Final = "calotype.context"

ACCESS: Final = logging.getLogger("calotype.access")


def begin(request_id: str, image_id: str | None = None) -> context.RequestContext:
    """Set the log context of this thread: from here on it works for this request or job."""
    return context.RequestContext(request_id=request_id, resource_uuid=image_id)


def identify(log: context.RequestContext, caller: Context) -> None:
    """Add the caller to a log context."""
    log.user_id, log.project_id = caller.user, caller.project
    log.user_domain_id, log.project_domain_id = caller.user_domain, caller.project_domain
    log.system_scope = caller.system_scope


def end() -> None:
    """Clear the log context of this thread."""
    insides.forget_log_context()


def follow() -> Callable[[], None]:
    """A function that sets this thread's log context in the thread that calls it."""
    log = context.get_current()
    return log.update_store if log else lambda: None


def answered(access_log: bool) -> Callable[[Mapping[str, Any], str, int, float], None]:
    """The function for the server to call after each answer: it writes the access log and clears the log context.

    Its arguments are the environment, the status line, the bytes of the body, and the seconds since the head.
    """

    def tell(env: Mapping[str, Any], status: str, size: int, seconds: float) -> None:
        if access_log and ACCESS.isEnabledFor(logging.INFO):
            path = str(env.get("RAW_URI") or env.get("PATH_INFO") or "").partition("?")[0]  # a query may hold secrets
            facts = (env.get("REMOTE_ADDR") or "-", env.get("REQUEST_METHOD"), ascii(path[:300])[1:-1], status[:3])
            ACCESS.info("%s %s %s %s %d %.3f", *facts, size, seconds, extra={"context": env.get(KEY)})
        end()

    return tell
