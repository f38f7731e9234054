"""Runs of Schemathesis over the description that a service gives of itself, for one persona each.

No 5xx, and no status, media type, header or body that is not declared. The phases are Schemathesis' own: `coverage` goes
through what each parameter may and may not be, `fuzzing` draws requests, `stateful` follows the links. Each is a run, as
after another one `stateful` draws what makes nothing, and follows next to no link.
"""

import contextlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from tests import warm
from tests.support import PASSWORD, Service

#: An administrator; a member of a project; one who may only read.
PERSONAS = ("admin", "alice", "reader")
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
)
#: Methods that HTTP does not know are 501 here (RFC 9110, 9.1), so that they are left out.
_CONFIG = """\
[phases.coverage]
unexpected-methods = ["get", "put", "post", "delete", "options", "patch", "trace"]
# A walk follows links of what was made, so that it has to be long, and to begin with requests that make something.
[phases.stateful]
max-steps = 25
[phases.stateful.generation]
mode = "positive"
max-examples = {walks}
[phases.stateful.inference]
algorithms = []
# Nothing follows from these.
[[operations]]
include-tag = ["Versions and health", "Discovery", "Tasks"]
phases.stateful.enabled = false
"""


@dataclass(frozen=True, slots=True)
class Found:
    """What came of a run; `code` is 0 when nothing was found."""

    code: int
    said: str

    def count(self, pattern: str) -> int:
        """The number that the only group of a pattern finds in what was said; 0 without it."""
        found = re.search(pattern, self.said)
        return int(found[1]) if found else 0


def run(service: Service, persona: str, directory: Path, *, examples: int, seed: int, phase: str) -> Found:
    """Send `examples` requests to each route in each phase; as many walks along the links, but ten at least."""
    (directory / "schemathesis.toml").write_text(_CONFIG.format(walks=max(examples, 10)))
    arguments = [
        *("--config-file", "schemathesis.toml", "run", f"{service.url}/openapi.json"),
        *("--auth", f"{persona}:{PASSWORD}", "--checks", ",".join(CHECKS), "--phases", phase),
        *("--max-examples", str(examples), "--seed", str(seed), "--generation-database", "none"),
        *("--warnings", "off", "--no-color"),
    ]
    environment = {**os.environ, "SCHEMATHESIS_HOOKS": "tests.schema.hooks"}
    with contextlib.chdir(directory):
        done = warm.run("schemathesis", arguments, env=environment, timeout=24 * 60 * 60)
    return Found(done.returncode, done.stdout + done.stderr)
