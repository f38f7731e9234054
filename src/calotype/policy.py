"""Who may do what: Glance's policy rules with secure defaults, evaluated by oslo.policy.

`RULES` has every rule with its default; an operator's `policy.yaml` overrides single rules. Below them is a fixed
floor (`_FLOOR`): only an admin or the owner's project may write to an image, whatever a policy file says. A file can
take this right away from them, but give it to nobody else.
"""

import logging
import re
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import lru_cache
from operator import attrgetter
from typing import Any, Final

from oslo_config import cfg
from oslo_policy import policy as oslo_policy

from calotype import errors, policy_files, questions
from calotype.context import Context
from calotype.model import Image, Member, Namespace

LOG = logging.getLogger(__name__)

_ADMIN = "rule:context_is_admin"
_OWN = "project_id:%(project_id)s"
_SEES = (
    f"({_OWN} or project_id:%(member_id)s or 'community':%(visibility)s or 'public':%(visibility)s "
    "or 'shared':%(visibility)s)"
)
_ADMIN_OR_OWNER_MEMBER = f"{_ADMIN} or (role:member and {_OWN})"
_ADMIN_OR_OWNER_READER = f"{_ADMIN} or (role:reader and {_OWN})"
_ADMIN_OR_READER_SEES = f"{_ADMIN} or (role:reader and {_SEES})"
_ADMIN_OR_MEMBER_SEES = f"{_ADMIN} or (role:member and {_SEES})"
_CREATE = "(role:member and project_id:%(project_id)s and project_id:%(owner)s)"
_ADMIN_OR_SHARER = f"{_ADMIN} or role:reader and ({_OWN} or project_id:%(member_id)s)"
_NAMESPACE = f"{_ADMIN} or (role:reader and ({_OWN} or 'public':%(visibility)s))"
_METADEF_ADMIN = "rule:metadef_admin"

#: Every rule and its default, in the order of the contract (policies.md).
RULES: Final[Mapping[str, str]] = {
    "default": "",
    "context_is_admin": "role:admin",
    "service_api": "role:service or role:admin",
    "metadef_default": "",
    "metadef_admin": _ADMIN,
    "add_image": f"{_ADMIN} or {_CREATE}",
    "delete_image": _ADMIN_OR_OWNER_MEMBER,
    "get_image": _ADMIN_OR_READER_SEES,
    "get_images": _ADMIN_OR_OWNER_READER,
    "modify_image": _ADMIN_OR_OWNER_MEMBER,
    "publicize_image": _ADMIN,
    "communitize_image": _ADMIN_OR_OWNER_MEMBER,
    "download_image": _ADMIN_OR_MEMBER_SEES,
    "download_from_store": _ADMIN_OR_MEMBER_SEES,
    "upload_image": _ADMIN_OR_OWNER_MEMBER,
    "delete_image_location": _ADMIN,
    "get_image_location": _ADMIN_OR_OWNER_READER,
    "set_image_location": _ADMIN_OR_OWNER_MEMBER,
    "add_image_location": f"rule:service_api or {_CREATE}",
    "fetch_image_location": "rule:service_api",
    "add_member": _ADMIN_OR_OWNER_MEMBER,
    "delete_member": _ADMIN_OR_OWNER_MEMBER,
    "get_member": _ADMIN_OR_SHARER,
    "get_members": _ADMIN_OR_SHARER,
    "modify_member": f"{_ADMIN} or (role:member and project_id:%(member_id)s)",
    "manage_image_cache": _ADMIN,
    "deactivate": _ADMIN_OR_OWNER_MEMBER,
    "reactivate": _ADMIN_OR_OWNER_MEMBER,
    "copy_image": _ADMIN,
    "list_cached_nodes": _ADMIN,
    "get_task": "rule:default",
    "get_tasks": "rule:default",
    "add_task": "rule:default",
    "modify_task": "rule:default",
    "tasks_api_access": _ADMIN,
    "get_metadef_namespace": _NAMESPACE,
    "get_metadef_namespaces": _ADMIN_OR_OWNER_READER,
    "modify_metadef_namespace": _METADEF_ADMIN,
    "add_metadef_namespace": _METADEF_ADMIN,
    "delete_metadef_namespace": _METADEF_ADMIN,
    "get_metadef_object": _NAMESPACE,
    "get_metadef_objects": _NAMESPACE,
    "modify_metadef_object": _METADEF_ADMIN,
    "add_metadef_object": _METADEF_ADMIN,
    "delete_metadef_object": _METADEF_ADMIN,
    "list_metadef_resource_types": _NAMESPACE,
    "get_metadef_resource_type": _NAMESPACE,
    "add_metadef_resource_type_association": _METADEF_ADMIN,
    "remove_metadef_resource_type_association": _METADEF_ADMIN,
    "get_metadef_property": _NAMESPACE,
    "get_metadef_properties": _NAMESPACE,
    "modify_metadef_property": _METADEF_ADMIN,
    "add_metadef_property": _METADEF_ADMIN,
    "remove_metadef_property": _METADEF_ADMIN,
    "get_metadef_tag": _NAMESPACE,
    "get_metadef_tags": _NAMESPACE,
    "modify_metadef_tag": _METADEF_ADMIN,
    "add_metadef_tag": _METADEF_ADMIN,
    "add_metadef_tags": _METADEF_ADMIN,
    "delete_metadef_tag": _METADEF_ADMIN,
    "delete_metadef_tags": _METADEF_ADMIN,
    "cache_image": _ADMIN,
    "cache_list": _ADMIN,
    "cache_delete": _ADMIN,
    "cache_clean": _ADMIN,
    "cache_prune": _ADMIN,
    "stores_info_detail": f"{_ADMIN} or rule:service_api",
}

#: The defaults before secure defaults. With `[oslo_policy] enforce_new_defaults = false` either of the two suffices.
_FORMER: Final[Mapping[str, str]] = {
    "stores_info_detail": _ADMIN,
    **dict.fromkeys(
        (
            "add_image delete_image get_image get_images modify_image communitize_image download_image upload_image "
            "delete_image_location get_image_location set_image_location add_member delete_member get_member "
            "get_members modify_member deactivate reactivate"
        ).split(),
        "rule:default",
    ),
    **dict.fromkeys(
        (
            "get_metadef_namespace get_metadef_namespaces get_metadef_object get_metadef_objects "
            "list_metadef_resource_types get_metadef_resource_type get_metadef_property get_metadef_properties "
            "get_metadef_tag get_metadef_tags"
        ).split(),
        "rule:metadef_default",
    ),
}
#: Rules that had another name in older releases. A file that has only the old name sets these rules by it.
_ONCE: Final = dict.fromkeys(("cache_image", "cache_list", "cache_delete"), "manage_image_cache")
#: Rules of Glance that no route checks. A file may have them, without effect.
UNUSED: Final = frozenset(
    (
        "set_image_location manage_image_cache list_cached_nodes get_task get_tasks add_task modify_task "
        "cache_image cache_list cache_delete cache_clean cache_prune"
    ).split()
)
#: Rules that other rules refer to. All others have the scope project: a system-scoped token passes none of them.
_BASE: Final = frozenset(("default", "context_is_admin", "service_api", "metadef_default", "metadef_admin"))

#: Actions that change an image. Only an admin or the owner's project may do them, whatever a policy file says.
_FLOOR: Final = frozenset(
    (
        "delete_image modify_image upload_image deactivate reactivate publicize_image communitize_image "
        "add_member delete_member delete_image_location set_image_location add_image_location"
    ).split()
)
#: Those of them that a service may do as well: Nova and Cinder add the locations of data that they made for a user.
_FLOOR_FOR_SERVICES: Final = frozenset({"add_image_location"})

#: Fields of targets that name a project.
_PROJECTS: Final = frozenset(("project_id", "owner", "member_id"))

Target = Mapping[str, Any]
_CHECK_SECONDS = 1.0  #: The policy files are checked for changes at most this often.
_MAX_ANSWERS = 50_000  #: So many answers are cached; they take some 15 MiB.
#: A field with a parenthesis in its name, which `_FIELD` does not find.
_ODD_FIELD = re.compile(r"%\([^)]*\(")
_FIELD = re.compile(r"%\(([^)]*)\)")
#: A rule's name may contain anything but white space. Parentheses at its end close a group instead.
_RULE = re.compile(r"\brule:(\S+?)\)*(?!\S)")


class Policy:
    """The rules in force. Shared by threads."""

    def __init__(self, conf: cfg.ConfigOpts) -> None:
        self._conf = conf
        try:
            self._enforcer = _load(conf)
        except errors.ConfigError:
            raise
        except Exception as exc:  # oslo.policy raises many classes; after any of them it would be unsafe to serve
            raise errors.ConfigError(f"The policy files cannot be used: {exc}") from exc
        self._files = policy_files.stamps(conf)
        self._service_roles = _service_roles(conf)
        self._reading = threading.Lock()
        self._next_check = time.monotonic() + _CHECK_SECONDS
        #: The rules that were loaded; for each the fields that it reads; answers by rule, caller and these fields.
        self._cache: tuple[object, dict[str, tuple[str, ...] | None], dict[tuple[Any, ...], bool]] = (None, {}, {})

    def admit(self, ctx: Context) -> bool:
        """The answer of `context_is_admin`, for `Context.is_admin`."""
        return self._ask("context_is_admin", {}, ctx)

    def serves(self, ctx: Context) -> bool:
        """Whether the caller is a service: by a role, or by a service token that came with a user's request."""
        return "service" in ctx.roles or not self._service_roles.isdisjoint(ctx.service_roles)

    def allows(self, ctx: Context, action: str, target: Target) -> bool:
        """Whether the rule passes, floor included."""
        if action in _FLOOR and not (
            ctx.is_admin
            or (ctx.project and ctx.project == target.get("owner"))
            or (action in _FLOOR_FOR_SERVICES and self.serves(ctx))
        ):
            return False
        return self._ask(action, target, ctx)

    def passes(self, ctx: Context, rule: str) -> bool | None:
        """Whether the caller passes a rule, one of ours or of the operator's; None if there is no such rule."""
        # For a rule that does not exist oslo.policy would use the rule `default`, which passes everybody.
        return self._ask(rule, {}, ctx) if rule in self._enforcer.rules else None

    def check(self, ctx: Context, action: str, target: Target) -> None:
        """Raise `Forbidden` unless the rule passes."""
        if not self.allows(ctx, action, target):
            raise errors.Forbidden(f"You are not authorized to complete {action} action.")

    def check_image(self, ctx: Context, action: str, image: Image) -> None:
        """As `check`, but raise `NotFound` if the caller may not even see the image."""
        target = image_target(image)
        if self.allows(ctx, action, target):
            return
        if action == "get_image" or not self.allows(ctx, "get_image", target):
            raise no_image(image.id)
        raise errors.Forbidden(f"You are not authorized to complete {action} action.")

    def check_namespace(
        self, ctx: Context, action: str, namespace: Namespace | None, *, new: Namespace | None = None
    ) -> None:
        """As `check`, but raise `NotFound` if the caller may not even see the namespace.

        Without a namespace the action is about the whole catalogue: its target has the caller's project as its owner.
        With `new`, a namespace that is about to be made, the rule is checked for that one.
        """
        target = namespace_target(namespace) if namespace else {"project_id": ctx.project, "owner": ctx.project}
        if self.allows(ctx, action, namespace_target(new) if new else target):
            return
        if action == "get_metadef_namespace" or not self.allows(ctx, "get_metadef_namespace", target):
            raise no_namespace(namespace.name) if namespace else errors.NotFound("The resource could not be found.")
        raise errors.Forbidden(f"You are not authorized to complete {action} action.")

    def readable(self, ctx: Context, images: Iterable[Image]) -> Iterator[Image]:
        """The images that `get_image` passes. The rule is evaluated once for images that are equal in what it reads."""
        alike = _attributes(self._plan_and_answers("get_image")[0])
        answers: dict[Any, bool] = {}
        for image in images:
            key = alike(image) if alike else image.id
            if key not in answers:
                answers[key] = self.allows(ctx, "get_image", image_target(image))
            if answers[key]:
                yield image

    def reload(self) -> None:
        """Check the policy files for changes now rather than within a second."""
        self._next_check = 0.0
        self._refresh()

    def _refresh(self) -> None:
        """Load all policy files again if one of them has changed, and replace all rules at once.

        If a file is broken or missing, the rules in force stay: it would be unsafe to serve with half of them.
        """
        if time.monotonic() < self._next_check or not self._reading.acquire(blocking=False):
            return
        try:
            self._next_check = time.monotonic() + _CHECK_SECONDS
            found = policy_files.stamps(self._conf)
            if found == self._files:
                return
            missing = {path for path, *_ in self._files} - {path for path, *_ in found}
            self._files = found
            if missing:
                paths = ", ".join(sorted(missing))
                LOG.error("policy files are gone; the rules in force stay until a restart: %s", paths)
                return
            self._enforcer = _load(self._conf)
            LOG.info("policy files were read again")
        except Exception as exc:  # noqa: BLE001  # oslo.policy raises many classes
            LOG.error("the rules in force stay: %s", errors.reason(exc))
        finally:
            self._reading.release()

    def _ask(self, rule: str, target: Target, ctx: Context) -> bool:
        """Whether the rule passes. The answer is cached by caller and by the values of the fields that the rule reads.

        One evaluation costs 0.3 ms, and a list may need a thousand. The answer of a rule that asks another service is
        not cached: it may depend on every field and change at any time. Such a service is never asked within a
        transaction (`questions.py`).
        """
        fields, answers = self._plan_and_answers(rule)
        if fields is None:
            what = (rule, ctx, repr(sorted(target.items())))
            return questions.ask(rule, what, lambda: self._evaluate(rule, target, ctx))
        # oslo.policy compares values as text, so values of equal text give the same answer.
        values = [target.get(name) for name in fields]
        key = (rule, ctx, *[None if value is None else str(value) for value in values])
        answer = answers.get(key)  # one look-up: comparing two callers is expensive
        if answer is None:
            answer = answers[key] = self._evaluate(rule, target, ctx)
        return answer

    def _plan_and_answers(self, rule: str) -> tuple[tuple[str, ...] | None, dict[tuple[Any, ...], bool]]:
        """The fields that a rule reads, as `_plan` has them, and the answers cached so far."""
        self._refresh()
        rules = self._enforcer.rules
        if self._cache[0] is not rules or len(self._cache[2]) > _MAX_ANSWERS:
            self._cache = (rules, {}, {})
        _, plans, answers = self._cache
        if rule not in plans:
            plans[rule] = self._plan(rule)
        return plans[rule], answers

    def _evaluate(self, rule: str, target: Target, ctx: Context) -> bool:
        credentials = {
            "user_id": ctx.user,
            "project_id": ctx.project,
            "roles": sorted(ctx.roles),
            "is_admin": ctx.is_admin,
            "service_roles": sorted(ctx.service_roles),
            "user_domain_id": ctx.user_domain,
            "project_domain_id": ctx.project_domain,
            "domain_id": ctx.domain,
            "system_scope": ctx.system_scope,
        }
        # oslo.policy would compare a missing owner as the text `None`. A caller without a project would match it.
        target = {name: value for name, value in target.items() if value is not None or name not in _PROJECTS}
        try:
            return bool(self._enforcer.enforce(rule, target, credentials, do_raise=False))
        except Exception as exc:  # a service that the rule asks is not reachable; libraries raise many classes
            raise errors.Busy(f"The rule {rule} cannot be answered now; try again later.") from exc

    def _plan(self, rule: str) -> tuple[str, ...] | None:
        """The target fields that a rule and the rules it refers to read; None if it depends on anything else."""
        rules = self._enforcer.rules
        seen: set[str] = set()
        fields: set[str] = set()
        todo = [rule]
        while todo:
            name = todo.pop()
            if name in seen:
                continue
            seen.add(name)
            try:
                check = rules[name]  # for an unknown name this is the rule `default`
            except KeyError:
                continue
            text = str(check)
            if _looks_elsewhere(check) or _ODD_FIELD.search(text):
                return None
            fields.update(_FIELD.findall(text))
            todo += _RULE.findall(text)
        return tuple(sorted(fields))


def _looks_elsewhere(check: Any) -> bool:
    """Whether a check may depend on more than the caller and the target.

    Checks by HTTP do, and those of other packages may: they come by the entry point `oslo.policy.rule_checks`.
    """
    parts = getattr(check, "rules", None) or [getattr(check, "rule", None)]
    if any(_looks_elsewhere(part) for part in parts if part is not None):
        return True
    return type(check).__module__ != oslo_policy.AndCheck.__module__


def _service_roles(conf: cfg.ConfigOpts) -> frozenset[str]:
    """The roles by which a service token is accepted as one."""
    try:
        return frozenset(role.lower() for role in conf.keystone_authtoken.service_token_roles)
    except (cfg.NoSuchOptError, cfg.NoSuchGroupError):
        return frozenset({"service"})


def rule_defaults() -> list[oslo_policy.RuleDefault]:
    """All rules as oslo.policy takes them. Its tools call this by the entry point `oslo.policy.policies`."""
    found = []
    for name, check in RULES.items():
        former = None
        if name in _FORMER or name in _ONCE:
            former = oslo_policy.DeprecatedRule(
                _ONCE.get(name, name),
                _FORMER.get(name, _ADMIN),
                deprecated_reason="secure defaults",
                deprecated_since="Xena",
            )
        scopes = None if name in _BASE else ["project"]
        found.append(oslo_policy.RuleDefault(name, check, deprecated_rule=former, scope_types=scopes))
    return found


def enforcer(conf: cfg.ConfigOpts = cfg.CONF) -> oslo_policy.Enforcer:
    """An enforcer with the default rules. The command-line tools of oslo.policy call it without `conf`."""
    made = oslo_policy.Enforcer(conf, use_conf=True)
    made.register_defaults(rule_defaults())
    made.suppress_deprecation_warnings = True
    return made


def examine(conf: cfg.ConfigOpts, others: Collection[str] = ()) -> policy_files.Findings:
    """What is wrong with the policy files. `others` are rules that something else uses, such as protections."""
    oslo_policy.Enforcer(conf)  # makes oslo.policy's options known
    return policy_files.examine(conf, RULES, others)


def _load(conf: cfg.ConfigOpts) -> oslo_policy.Enforcer:
    """The default rules and those of the operator's files. Raises `ConfigError` if a file has a problem."""
    made = enforcer(conf)
    if problems := examine(conf).problems:
        raise errors.ConfigError("The policy files cannot be used. " + " ".join(problems))
    made.load_rules()
    made.use_conf = False  # else oslo.policy reads changed files at any check, and changes the rules in place
    return made


class _ImageTarget(Mapping[str, Any]):
    """The fields of an image that rules may read. A custom property never hides an attribute of the same name."""

    __slots__ = ("_image",)
    _ATTRIBUTES: Final = {
        **{
            name: name
            for name in (
                "id name owner visibility status protected os_hidden disk_format container_format size virtual_size "
                "min_disk min_ram checksum os_hash_algo os_hash_value tags"
            ).split()
        },
        "image_id": "id",
        "project_id": "owner",
        "member_id": "member",
    }

    def __init__(self, image: Image) -> None:
        self._image = image

    def __getitem__(self, name: str) -> Any:
        attribute = self._ATTRIBUTES.get(name)
        if attribute is None:
            return self._image.properties[name]
        value = getattr(self._image, attribute)
        return list(value) if name == "tags" else value

    def __iter__(self) -> Iterator[str]:
        yield from self._ATTRIBUTES
        yield from (name for name in self._image.properties if name not in self._ATTRIBUTES)

    def __len__(self) -> int:
        return sum(1 for _ in self)


@lru_cache
def _attributes(fields: tuple[str, ...] | None) -> Callable[[Image], Any] | None:
    """A function that gets these fields of an image; None if one of them is no attribute or the fields are unknown."""
    if fields is None or not set(fields) <= set(_ImageTarget._ATTRIBUTES):
        return None
    return attrgetter(*(_ImageTarget._ATTRIBUTES[name] for name in fields)) if fields else (lambda _image: None)


def image_target(image: Image) -> Target:
    """The fields of an image that rules may read."""
    return _ImageTarget(image)


def member_target(image: Image, member: Member | str) -> Target:
    """The fields of a share that rules may read: those of the image, with this member as `member_id`."""
    return dict(image_target(image)) | {"member_id": member if isinstance(member, str) else member.member}


def namespace_target(namespace: Namespace) -> Target:
    """The fields that rules may read of a namespace, or of a definition in it."""
    return {
        "namespace": namespace.name,
        "project_id": namespace.owner,
        "owner": namespace.owner,
        "visibility": namespace.visibility,
        "protected": namespace.protected,
    }


def no_namespace(name: str) -> errors.NotFound:
    """The error for a namespace that does not exist, and for one that the caller may not see: they look the same."""
    return errors.NotFound(f"No metadata definition namespace found with name {name[:100]}")


def no_image(image_id: str) -> errors.NotFound:
    """The error for an image that does not exist, and for one that the caller may not see: they look the same."""
    return errors.NotFound(f"No image found with ID {image_id}")
