"""What becomes of each option that somebody set, in a file or in the environment: none is passed over without a word.

`calotype config check` prints the whole account. A start refuses by it what would weaken a protection, and tells the
log the rest. The options themselves stand in `config.py`, in the drivers of stores and in libraries; those of Glance
that mean nothing here, or something else, in `glance_options.py`.
"""

import copy
import difflib
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from oslo_config import cfg, iniparser

from calotype import config, errors, glance_options
from calotype.glance_options import Fate, Verdict
from calotype.stores import registry

LOG = logging.getLogger(__name__)

_USED: Final = Fate(Verdict.USED)
_VARIABLE: Final = re.compile(r"OS_([A-Z0-9_.-]+?)__([A-Z0-9_-]+)")


@dataclass(frozen=True, slots=True)
class Setting:
    """An option as somebody set it; `source` is a file, or a variable of the environment."""

    source: str
    section: str
    option: str
    value: str = field(repr=False)  # it may be a secret


@dataclass(frozen=True, slots=True)
class Finding:
    """What becomes of a setting, and why."""

    source: str
    section: str
    option: str
    verdict: Verdict
    words: str

    def __str__(self) -> str:
        return f"[{self.section}] {self.option}" + (f": {self.words}" if self.words else "")


@dataclass(frozen=True, slots=True)
class Account:
    """All findings, in the order of the settings, and `doubts`: sentences about what does not look as it was meant."""

    findings: tuple[Finding, ...]
    doubts: tuple[str, ...]

    def of(self, verdict: Verdict) -> list[Finding]:
        return [finding for finding in self.findings if finding.verdict is verdict]


def account(conf: cfg.ConfigOpts, found: Sequence[Setting] | None = None) -> Account:
    """Account for the settings, by default all those that a configuration was made of. Reads files, changes nothing."""
    if found is None:
        found = [one for path in files(conf.config_file, conf.config_dir) for one in settings(path)[0]]
    known = _Known(conf)
    found = [*found, *_environment(known)]
    findings = tuple(known.finding(one) for one in found)
    return Account(findings, (*known.doubts(found), *_misspelt(known)))


def refuse(found: Account) -> None:
    """Raise `ConfigError` for options whose protection there is not, all of them."""
    if refused := found.of(Verdict.REFUSED):
        raise errors.ConfigError(
            "The configuration asks for what this release does not do: " + "; ".join(map(str, refused)) + ". Remove it."
        )


def check_libraries(conf: cfg.ConfigOpts) -> None:
    """Raise `ConfigError` for the options of libraries that have invalid values, all of them.

    The libraries would find these only when they use them: some during a start, some during a request.
    """
    own = config.Options()  # not `conf`: there the libraries register their options themselves
    known: dict[str, dict[str, cfg.Opt]] = {}
    for section, options in _libraries(conf):
        some = {option.dest: copy.copy(option) for option in options}
        for option in some.values():
            option.required = False  # What is missing is said by the library that wants it.
        known[section] = some | known.get(section, {})
    for section, found in known.items():
        own.register_opts(list(found.values()), group=None if section == "DEFAULT" else section)
    own([], project="calotype", default_config_files=conf.config_file, default_config_dirs=conf.config_dir)
    if wrong := config.wrong_among(own, [(section, found.values()) for section, found in known.items()]):
        raise errors.ConfigError("\n".join(wrong))


def tell(found: Account, doubts: Iterable[str] = ()) -> None:
    """Tell the log what has no effect, in one line of each kind; `doubts` are further sentences."""
    for verdict, words in (
        (Verdict.UNKNOWN, "nobody knows these options"),
        (Verdict.REPLACED, "these options are read under other names only"),
    ):
        if some := found.of(verdict):
            LOG.warning("%s: %s", words, "; ".join(map(str, some)))
    if some := found.of(Verdict.WITHOUT_EFFECT):
        names = ", ".join(f"[{one.section}] {one.option}" for one in some)
        LOG.warning("these options have no effect (calotype config check tells why): %s", names)
    for doubt in (*found.doubts, *doubts):
        LOG.warning("%s", doubt)


# --- settings --------------------------------------------------------------------------------------------


def files(names: Sequence[str], directories: Sequence[str]) -> list[Path]:
    """The files of a configuration, in the order in which they are read."""
    return [Path(name) for name in names] + [
        path for directory in directories for path in sorted(Path(directory).glob("*.conf"))
    ]


def read_text(path: Path) -> str:
    """What is in a configuration file. Raises `ConfigError` with its name; oslo.config would not tell it."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as exc:
        raise errors.ConfigError(f"The configuration file {path} cannot be read: {exc.strerror}.") from exc
    except UnicodeDecodeError as exc:
        raise errors.ConfigError(f"The configuration file {path} is not text in UTF-8: {exc.reason} in it.") from exc
    if "\0" in text:
        raise errors.ConfigError(f"The configuration file {path} is not text: there are null bytes in it.")
    if text.startswith("\ufeff"):
        raise errors.ConfigError(f"The configuration file {path} begins with a byte order mark: save it without.")
    return text


def settings(path: Path) -> tuple[list[Setting], list[str]]:
    """What a file sets, in its order, and a sentence for each line that cannot be read. Raises nothing."""
    try:
        lines = read_text(path).splitlines()
    except errors.ConfigError as exc:
        return [], [str(exc)]
    wrong: list[str] = []
    while True:
        parser = _Parser(str(path))
        try:
            parser.parse(lines)
        except iniparser.ParseError as exc:
            place = exc.lineno - 1
            wrong.append(f"{path}, line {exc.lineno}: {exc.msg}.")
            if not lines[place].strip():
                return parser.found, wrong
            lines[place] = ""  # and on with the rest, to tell all at once
            continue
        return parser.found, wrong + parser.astray


class _Parser(iniparser.BaseParser):
    def __init__(self, source: str) -> None:
        super().__init__()
        self.found: list[Setting] = []
        self.astray: list[str] = []
        self._source = source
        self._section = ""

    def new_section(self, section: str) -> None:
        self._section = section

    def assignment(self, key: str, value: list[str]) -> None:
        if self._section:
            self.found.append(Setting(self._source, self._section, key, "\n".join(value)))
        else:
            self.astray.append(f"{self._source}: {key} stands before any section.")


def _environment(known: "_Known") -> Iterator[Setting]:
    """Variables that oslo.config looks at: OS_SECTION__OPTION. Others that look like these are somebody else's."""
    sections = {name.upper(): name for name in known.sections}
    for name, value in sorted(os.environ.items()):
        match = _VARIABLE.fullmatch(name)
        if match and (match[1] in sections or difflib.get_close_matches(match[1], sections)):
            yield Setting(name, sections.get(match[1], match[1]), match[2].lower(), value)


def _misspelt(known: "_Known") -> Iterator[str]:
    """Sentences about variables that name an option and are not read: with _ for __, or with small letters."""
    meant: dict[str, str] = {}
    for section, here in known.sections.items():
        for option in (option for option, fate in here.items() if fate.verdict is Verdict.USED):
            variable = f"OS_{section}__{option}".upper()
            meant |= {variable: variable, f"OS_{section}_{option}".upper(): variable}
    for name in sorted(os.environ):
        variable = meant.get(name.upper(), name)
        if variable != name:
            yield f"The environment variable {name} is not read; did you mean {variable}?"


# --- what is known ---------------------------------------------------------------------------------------


class _Known:
    """Every option that there is, in each section, with what becomes of it in this configuration."""

    def __init__(self, conf: cfg.ConfigOpts) -> None:
        self.sections: dict[str, dict[str, Fate]] = {"DEFAULT": {}}
        self._several: set[tuple[str, str]] = set()
        self._older: dict[tuple[str, str], tuple[str, str]] = {}
        self._backends: Mapping[str, str] = conf.enabled_backends or {}
        for section, options in [*config.GROUPS.items(), *_libraries(conf)]:
            self._add(section, options)
        for name, kind in (*self._backends.items(), *([] if self._backends else [("glance_store", "file")])):
            self._add_store(name, kind)
        self._add(registry.STAGING, registry.options_of("file") or ())
        for kind in dict.fromkeys(self._backends.values()):
            self._add("backend_defaults", registry.options_of(kind) or ())
        for section, fates in glance_options.sections().items():
            here = self.sections.setdefault(section, {})
            for option, fate in fates.items():
                here.setdefault(option, fate)
        if self._backends:
            fate = Fate(Verdict.WITHOUT_EFFECT, "enabled_backends names the stores")
            self.sections["glance_store"] |= {"filesystem_store_datadir": fate, "default_store": fate}
        if "keystone" not in (conf.paste_deploy.flavor or ""):
            words = "[paste_deploy] flavor does not name keystone: users are those of the users file"
            self.sections["keystone_authtoken"] = {"*": Fate(Verdict.WITHOUT_EFFECT, words)}
        if not conf.use_keystone_limits:
            self.sections["oslo_limit"] = {"*": Fate(Verdict.WITHOUT_EFFECT, "use_keystone_limits is not set")}

    def _add(self, section: str, options: Iterable[cfg.Opt]) -> None:
        here = self.sections.setdefault(_normal(section), {})
        for option in options:
            for name in {option.dest, option.name}:
                here[name] = _USED
                if option.multi:
                    self._several.add((_normal(section), name))
            for older in option.deprecated_opts:
                group, name = _normal(older.group or section), older.name or option.dest
                fate = replace(_USED, words=f"read as [{section}] {option.dest}")
                self.sections.setdefault(group, {}).setdefault(name, fate)
                self._older.setdefault((group, name), (_normal(section), option.dest))

    def _add_store(self, name: str, kind: str) -> None:
        options = registry.options_of(kind)
        if options is None:
            words = f"this release has no stores of type {kind}"
            self.sections[_normal(name)] = {"*": Fate(Verdict.WITHOUT_EFFECT, words)}
            return
        self._add(name, options)
        for option, fate in glance_options.STORE.items():
            self.sections[_normal(name)].setdefault(option, fate)

    def finding(self, setting: Setting) -> Finding:
        fate = self._fate(setting)
        if fate.harmless is not None and fate.harmless(setting.value):
            fate = Fate(Verdict.WITHOUT_EFFECT, "so written, it asks for nothing")
        words = fate.words
        if fate.verdict is Verdict.REPLACED:
            words = f"now {words}"
        return Finding(setting.source, setting.section, setting.option, fate.verdict, words)

    def _fate(self, setting: Setting) -> Fate:
        section, option = _normal(setting.section), setting.option
        here = self.sections.get(section)
        if here is None:
            return Fate(Verdict.UNKNOWN, self._unknown_section(setting))
        for name in (option, option.replace("-", "_"), "*"):
            if name in here:
                return here[name]
        stores = {"glance_store", "backend_defaults", *map(_normal, self._backends)}
        if section in stores and option.startswith(glance_options.STORE_PREFIXES):
            return glance_options.NO_SUCH_STORE_OPTION
        return Fate(Verdict.UNKNOWN, self._homes(option) or _meant(option, here))

    def _unknown_section(self, setting: Setting) -> str:
        if setting.option in _STORE_OPTIONS or setting.option.startswith(glance_options.STORE_PREFIXES):
            meant = _or_else(setting.section, self._backends)
            return f"[DEFAULT] enabled_backends names no store {setting.section}{meant}"
        others = [f"[{name}]" for name in self.sections]
        home = self._homes(setting.option)
        return "there is no such section" + (f"; {home}" if home else _or_else(f"[{setting.section}]", others))

    def _homes(self, option: str) -> str:
        """Where an option belongs that stands in the wrong section."""
        homes = [name for name, here in self.sections.items() if here.get(option) is _USED]
        return f"it belongs in [{homes[0]}]" if len(homes) == 1 else ""

    def doubts(self, found: Sequence[Setting]) -> Iterator[str]:
        """What is set twice in one place."""
        counted: dict[tuple[str, tuple[str, str]], list[str]] = {}
        for one in found:
            key = _normal(one.section), one.option.replace("-", "_")
            names = counted.setdefault((one.source, self._older.get(key, key)), [])
            names.append(f"[{one.section}] {one.option}")
        for (source, key), names in counted.items():
            if len(set(names)) > 1:
                yield f"{source}: {' and '.join(dict.fromkeys(names))} are the same option; set one of them."
            elif len(names) > 1 and key not in self._several:
                yield f"{source}: {names[0]} is set {len(names)} times; the last one counts."


_STORE_OPTIONS: Final = frozenset(option.dest for option in registry.COMMON)


def _libraries(conf: cfg.ConfigOpts) -> Iterator[tuple[str, Iterable[cfg.Opt]]]:
    """Options that libraries register which this configuration uses, by section."""
    yield from config.library_options("oslo.log")
    yield from config.library_options("oslo.policy")
    if "keystone" in (conf.paste_deploy.flavor or ""):
        yield from config.library_options("keystonemiddleware.auth_token")
        from calotype.auth import keystone

        keystone.register(conf)
        section = conf.keystone_authtoken.auth_section or "keystone_authtoken"
        yield from _credentials(conf, section)
    if conf.use_keystone_limits:
        from keystoneauth1 import loading

        yield "oslo_limit", loading.get_session_conf_options()
        yield "oslo_limit", loading.get_adapter_conf_options(include_deprecated=False)
        yield from _credentials(conf, "oslo_limit")
    if {"messaging", "messagingv2"} & set(config.notification_drivers(conf)):
        yield from config.library_options("oslo.messaging")


def _credentials(conf: cfg.ConfigOpts, section: str) -> Iterator[tuple[str, Iterable[cfg.Opt]]]:
    """keystoneauth's options for an account, which depend on its kind."""
    from keystoneauth1 import exceptions, loading

    yield section, loading.get_auth_common_conf_options()
    loading.register_auth_conf_options(conf, section)
    try:
        yield section, loading.get_auth_plugin_conf_options(conf[section].auth_type or "password")
    except exceptions.ClientException:
        return  # there is no such kind; the start says so


def list_opts() -> list[tuple[str, list[cfg.Opt]]]:
    """Every option of ours for oslo.config's generator and validator (the entry point `oslo.config.opts`).

    Those of stores are in backend_defaults: their own sections have the names of the stores.
    """
    stores: dict[str, cfg.Opt] = {}
    for kind in registry.DRIVERS:
        stores |= {option.dest: option for option in registry.options_of(kind) or ()}
    return [*config.GROUPS.items(), ("backend_defaults", list(stores.values()))]


def _normal(section: str) -> str:
    """A section as oslo.config compares them."""
    return section if section == "DEFAULT" else section.lower()


def _meant(name: str, known: Iterable[str]) -> str:
    by_lower = {one.lower(): one for one in known if one != "*"}
    near = difflib.get_close_matches(name.lower(), by_lower, n=1)
    return f"did you mean {by_lower[near[0]]}?" if near else ""


def _or_else(name: str, known: Iterable[str]) -> str:
    meant = _meant(name, known)
    return f"; {meant}" if meant else ""
