"""Who asks: the facts about a caller that every use-case receives."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Context:
    """One caller during one request.

    `project` is a project id, None for a caller without one; `domain` or `system_scope` is then what the token is for.
    `roles` are lower-case, as are `service_roles`, those of a service token that came along. `is_admin` is what the
    policy rule `context_is_admin` answers, set by `policy.Policy.admit`. A `read_only` caller is anonymous and changes
    nothing. Two requests of one caller have equal contexts.
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


#: The service itself, for work that no request asked for (sweeping, repairing, the command line).
SERVICE = Context(request_id="req-service", user="calotype", roles=frozenset({"admin"}), is_admin=True)
