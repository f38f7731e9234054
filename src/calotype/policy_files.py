"""The operator's policy files: which ones there are, and what is wrong with them.

oslo.policy accepts mistakes silently. It replaces a rule that it cannot parse by one that passes nobody. For a rule
that does not exist it uses `default`, which passes everybody. A missing file has no rules. Here each of these is a
problem that keeps the service from starting. The rules themselves are in `policy.py`.
"""

import ast
import contextlib
import difflib
import logging
import os
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml
from oslo_config import cfg
from oslo_policy import policy as oslo_policy

from calotype import errors, net

#: The attributes of the caller that a rule may check, as `attribute:value`.
CREDENTIALS: Final = (
    *("user_id", "project_id", "roles", "is_admin", "service_roles", "user_domain_id", "project_domain_id"),
    *("domain_id", "system_scope"),
)
#: Rules of former releases of Glance. Files may still have them; they decide nothing here.
FORMER: Final = frozenset({"copy_from"})


@dataclass(frozen=True, slots=True)
class Findings:
    """What is wrong with the files, as sentences. `problems` keep the service from starting, `doubts` are reported."""

    rules: frozenset[str]  #: the names of the rules in the files
    problems: tuple[str, ...]
    doubts: tuple[str, ...]


def examine(conf: cfg.ConfigOpts, defaults: Mapping[str, str], others: Collection[str] = ()) -> Findings:
    """Check all policy files. `defaults` are the rules of this service; `others` are rules that something else uses.

    It changes nothing and raises nothing: a file that cannot be read is a problem.
    """
    try:
        files = _named(conf)
    except errors.ConfigError as exc:
        return Findings(frozenset(), (str(exc),), ())
    problems: list[str] = []
    doubts: list[str] = []
    texts: dict[str, Any] = {}
    for path in files:
        try:
            found, twice = _read(path)
        except (OSError, ValueError) as exc:
            problems.append(f"{path} cannot be used: {exc}")
            continue
        doubts += [f"{path}: the rule {name} is there more than once; the last one counts." for name in twice]
        texts |= found
    parsed = {name: check for name, text in texts.items() if (check := _parse(name, text, problems)) is not None}
    with _silence():
        checks = oslo_policy.Rules.from_dict(dict(defaults)) | parsed
    known = {*checks, *texts}  # a rule that cannot be parsed exists, and is reported only once
    for name in parsed:
        problems += _unknown_references(name, checks[name], known)
        problems += _never_passes_denied(name, checks[name])
        doubts += _never_passes(name, checks[name])
    problems += _circles(parsed, checks)
    used = {*others, *(one for check in checks.values() for one in _references(check))}
    for name in texts:
        if name not in defaults and name not in used and name not in FORMER:
            doubts.append(f"No rule of this service is named {name}: it has no effect{_suggestion(name, defaults)}")
    if not texts and (stray := conf.find_file("policy.json")) and str(stray) not in map(str, files):
        doubts.append(f"{stray} is not read: put its rules into policy.yaml, or name it as [oslo_policy] policy_file.")
    return Findings(frozenset(texts), tuple(problems), tuple(doubts))


def stamps(conf: cfg.ConfigOpts) -> frozenset[tuple[str, int, int, int]]:
    """The existing policy files: path, and the modification time, inode and size that change with the content."""
    found = set()
    for path in _paths(conf):
        with contextlib.suppress(OSError):
            stat = os.stat(path)
            found.add((str(path), stat.st_mtime_ns, stat.st_ino, stat.st_size))
    return frozenset(found)


# --- files -----------------------------------------------------------------------------------------------


def _paths(conf: cfg.ConfigOpts) -> list[Path]:
    """The existing policy files, in the order of reading: a later one overrides rules of an earlier one."""
    file = conf.find_file(conf.oslo_policy.policy_file)
    paths = [Path(file)] if file else []
    for name in conf.oslo_policy.policy_dirs:
        if directory := conf.find_file(name):
            found = sorted(Path(directory).iterdir())
            paths += [one for one in found if not one.name.startswith(".") and not one.is_dir()]
    return paths


def _named(conf: cfg.ConfigOpts) -> list[Path]:
    """As `_paths`, but raise `ConfigError` if a file or directory that the operator configured is missing."""
    for option, kind in (("policy_file", "file"), ("policy_dirs", "directory")):
        location = conf.get_location(option, group="oslo_policy")
        if location is None or location.location in (cfg.Locations.opt_default, cfg.Locations.set_default):
            continue
        names = conf.oslo_policy[option]
        for name in [names] if isinstance(names, str) else names:
            if not conf.find_file(name):
                raise errors.ConfigError(
                    f"[oslo_policy] {option} = {name}: there is no such {kind}, and without it other rules would be in "
                    "force than those that you wrote."
                )
    try:
        return _paths(conf)
    except OSError as exc:
        raise errors.ConfigError(f"[oslo_policy] policy_dirs: {exc.filename}: {exc.strerror}.") from exc


def _read(path: Path) -> tuple[dict[str, Any], list[str]]:
    """The rules of a file, and the names that occur in it more than once. Raises `OSError` and `ValueError`."""
    text = path.read_text(encoding="utf-8")
    try:
        found = yaml.safe_load(text)
        node = yaml.compose(text, yaml.SafeLoader)
    except yaml.YAMLError as exc:
        raise ValueError(" ".join(str(exc).split())) from exc
    if found is None:
        return {}, []
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise ValueError("it must be rules, each a name and a check.")
    names = [key.value for key, _ in node.value] if isinstance(node, yaml.MappingNode) else []
    return found, sorted({name for name in names if names.count(name) > 1})


# --- rules -----------------------------------------------------------------------------------------------


def _parse(name: str, text: Any, problems: list[str]) -> Any:
    """The parsed check. If it cannot be parsed, add to `problems` and return None."""
    lists = isinstance(text, list) and all(isinstance(one, str | list) for one in text)
    if not (isinstance(text, str) or lists):
        value = "nothing" if text is None else repr(text)
        problems.append(f'The rule {name} says {value}; write "@" if it should pass everybody, "!" if nobody.')
        return None
    with _silence():
        check = oslo_policy.Rules.from_dict({name: text})[name]
    # oslo.policy replaces what it cannot parse by `!`. If there are more of these than in the text, something failed.
    if sum(str(leaf) == "!" for leaf in _leaves(check)) > _words(text).count("!"):
        problems.append(f"The rule {name} cannot be read: {text}")
        return None
    try:
        str(check) % defaultdict[str, int](int)
    except (TypeError, ValueError) as exc:
        problems.append(f"The rule {name} has a field that cannot be filled in ({exc}): {text}")
        return None
    for leaf in _leaves(check):
        if isinstance(leaf, oslo_policy.Check) and leaf.kind in ("http", "https"):
            url = str(leaf) % defaultdict[str, int](int)
            if not net.is_web_url(url):
                problems.append(f"The rule {name} asks a server by a malformed URL: {leaf}")
                return None
    return check


def _words(text: Any) -> list[str]:
    if isinstance(text, str):
        return [word.strip("()") for word in text.split()]
    return [word for one in text for word in _words(one)]


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep oslo.policy from logging a traceback for a rule that it cannot parse: we report it in a sentence."""
    logger = logging.getLogger("oslo_policy._parser")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _leaves(check: Any, *, denied: bool = False) -> Iterator[Any]:
    for leaf, _ in _signed(check, denied):
        yield leaf


def _signed(check: Any, denied: bool = False) -> Iterator[tuple[Any, bool]]:
    """The single checks that a check is made of, each with whether it is negated."""
    if isinstance(check, oslo_policy.NotCheck):
        yield from _signed(check.rule, not denied)
    elif isinstance(check, oslo_policy.AndCheck | oslo_policy.OrCheck):
        for one in check.rules:
            yield from _signed(one, denied)
    else:
        yield check, denied


def _references(check: Any) -> list[str]:
    return [leaf.match for leaf in _leaves(check) if isinstance(leaf, oslo_policy.RuleCheck)]


def _unknown_references(name: str, check: Any, known: Collection[str]) -> Iterator[str]:
    for other in dict.fromkeys(_references(check)):
        if other not in known:
            yield f"The rule {name} asks the rule {other}, which does not exist{_suggestion(other, known)}"


def _circles(names: Iterable[str], checks: Mapping[str, Any]) -> Iterator[str]:
    for name in names:
        seen: set[str] = set()
        todo = _references(checks[name])
        while todo:
            other = todo.pop()
            if other == name:
                yield f"The rule {name} asks itself, by way of other rules."
                break
            if other not in seen and other in checks:
                seen.add(other)
                todo += _references(checks[other])


def _unanswerable(check: Any) -> Iterator[tuple[Any, bool]]:
    """Checks of an attribute that no caller has, such as a misspelt `roel:admin`; each with whether it is negated."""
    for leaf, denied in _signed(check):
        kind = getattr(leaf, "kind", None)
        if type(leaf).__name__ != "GenericCheck" or kind in CREDENTIALS:
            continue
        try:
            ast.literal_eval(str(kind))
        except (ValueError, SyntaxError):
            yield leaf, denied


def _never_passes(name: str, check: Any) -> Iterator[str]:
    for leaf, denied in _unanswerable(check):
        if not denied:
            yield f"The rule {name}: {leaf} never passes{_suggestion(leaf.kind, ('role', 'rule', *CREDENTIALS))}"


def _never_passes_denied(name: str, check: Any) -> Iterator[str]:
    for leaf, denied in _unanswerable(check):
        if denied:
            suggestion = _suggestion(leaf.kind, ("role", "rule", *CREDENTIALS))
            yield f"The rule {name}: not {leaf} passes everybody{suggestion}"


def _suggestion(name: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown name: a suggestion, if a known name is similar."""
    near: Sequence[str] = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else "."
