"""The samples and the manual page in `etc/`, and the description of the API, made from the code.

`python -m tests.docs.samples` writes them, `test_docs.py` compares. In both samples, a line that does something is commented out, so that a sample that is used as it is changes nothing.
"""

import json
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from oslo_config import cfg

from calotype import config
from calotype.api import openapi
from calotype.api.schemas import Schemas
from calotype.policy import RULES
from calotype.stores.registry import COMMON, DRIVERS
from tests.docs import manual, reference

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "etc" / "calotype.conf.sample"
POLICY = ROOT / "etc" / "policy.yaml.sample"
MANUAL = ROOT / "etc" / "man" / "calotype.1"
OPENAPI = ROOT / "docs" / "api" / "openapi.json"

_WIDTH = 100


def kinds() -> dict[str, list[cfg.Opt]]:
    """The types of stores with their options; other names of the same driver are left out."""
    found: dict[int, tuple[str, list[cfg.Opt]]] = {}
    for kind, driver in DRIVERS.items():
        found.setdefault(id(driver), (kind, list(driver.options)))
    return dict(found.values())


def default(option: cfg.Opt) -> str:
    """A default as it is written in a configuration file; `<unset>` where there is none."""
    value = option.default
    if value is None or value == {}:
        return "<unset>"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ",".join(map(str, value))
    return str(value)


def config_sample() -> str:
    """Every option of ours with its help and default."""
    lines = [
        *_comment(
            "Sample configuration of Calotype, made by `make samples`. Each option stands with its default; take away "
            "the # to change it. `calotype config show` prints what is in force, `calotype config check` tells "
            "whether it can be served."
        ),
    ]
    for section, options in config.GROUPS.items():
        lines += ["", "", f"[{section}]", *_options(options)]
    lines += ["", ""]
    lines += _comment(
        "Each store in enabled_backends has a section of its own, named as the store. An option of its driver that is "
        "not set there is taken from [backend_defaults]."
    )
    for kind, options in kinds().items():
        lines += ["", "", f"# A store of type {kind}:", f"#[my_{kind}_store]", *_options([*COMMON, *options])]
    return "\n".join(lines) + "\n"


def policy_sample() -> str:
    """Every rule with its default."""
    lines = [
        *_comment(
            "Sample policy of Calotype, made by `make samples`. Each rule stands with its default; take away the # to "
            "change it. Whatever is written here, a change to an image needs an administrator or the project that "
            "owns it: see docs/operate/policy.md, which also tells which rules this release asks."
        ),
        "",
    ]
    for name, check in RULES.items():
        lines.append(f'#"{name}": "{check}"')
    return "\n".join(lines) + "\n"


def openapi_document() -> str:
    """The description of the API of a service that nobody has configured."""
    formats = config.load(search=False).image_format
    return json.dumps(openapi.document(Schemas(formats.disk_formats, formats.container_formats)), indent=1) + "\n"


def _options(options: Sequence[cfg.Opt]) -> Iterator[str]:
    for option in options:
        yield ""
        yield from _comment(option.help or "")
        yield f"#{option.dest} = {default(option)}".rstrip()


def _comment(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)


def main() -> None:
    CONFIG.parent.mkdir(exist_ok=True)
    CONFIG.write_text(config_sample())
    POLICY.write_text(policy_sample())
    MANUAL.parent.mkdir(exist_ok=True)
    MANUAL.write_text(manual.page())
    OPENAPI.write_text(openapi_document())
    reference.DIRECTORY.mkdir(exist_ok=True)
    for path, text in reference.pages(json.loads(openapi_document())).items():
        path.write_text(text)


if __name__ == "__main__":
    main()
