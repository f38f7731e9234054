"""`Context`: what is known of the caller of a request. Every use-case receives it."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Context:
    """One caller during one request.

    `project` is a project id. A caller without one has a token for a `domain` or a `system_scope`, or is anonymous.
    `roles` are lower-case, and so are `service_roles`, the roles of a service token that came with the request.
    `is_admin` is the answer of the policy rule `context_is_admin`. A `read_only` caller is anonymous, and may change
    nothing. Contexts of two requests of one caller are equal.
    """

    request_id: str = field(default="", compare=False)
    user: str | None = None
    project: str | None = None
    roles: frozenset[str] = field(default_factory=frozenset)
    is_admin: bool = False
    service_roles: frozenset[str] = field(default_factory=frozenset)
    user_domain: str | None = None
    project_domain: str | None = None
    domain: str | None = None
    system_scope: str | None = None
    read_only: bool = False


#: The service itself, for work that no request asked for: sweeping, repairing, commands.
SERVICE = Context(request_id="req-service", user="calotype", roles=frozenset({"admin"}), is_admin=True)
