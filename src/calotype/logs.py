"""What each line of the log tells beside its message: the request, who sent it, the image that it is about.

oslo.log takes these from oslo.context's context of the thread. Threads serve one request after the other, so whoever
begins also ends.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

from oslo_context import context

from calotype import insides
from calotype.context import Context

#: Where a WSGI environment has the context of its request.
KEY: Final = "calotype.context"

ACCESS: Final = logging.getLogger("calotype.access")


def begin(request_id: str, image_id: str | None = None) -> context.RequestContext:
    """From here on this thread works for a request, or a job."""
    return context.RequestContext(request_id=request_id, resource_uuid=image_id)


def identify(log: context.RequestContext, caller: Context) -> None:
    """Who asks is known."""
    log.user_id, log.project_id = caller.user, caller.project
    log.user_domain_id, log.project_domain_id = caller.user_domain, caller.project_domain
    log.system_scope = caller.system_scope


def end() -> None:
    """What this thread does next is for nobody."""
    insides.forget_log_context()


def answered(access_log: bool) -> Callable[[Mapping[str, Any], str, int, float], None]:
    """For the server, after each answer: environment, status line, bytes of the body, seconds since the head."""

    def tell(env: Mapping[str, Any], status: str, size: int, seconds: float) -> None:
        if access_log and ACCESS.isEnabledFor(logging.INFO):
            path = str(env.get("RAW_URI") or env.get("PATH_INFO") or "").partition("?")[0]  # a query may hold secrets
            facts = (env.get("REMOTE_ADDR") or "-", env.get("REQUEST_METHOD"), ascii(path[:300])[1:-1], status[:3])
            ACCESS.info("%s %s %s %s %d %.3f", *facts, size, seconds, extra={"context": env.get(KEY)})
        end()

    return tell
