"""Runs in tempest's own environment: its tests of images, one after the other. What came of each is printed as JSON.

An outcome is one of passed, failed, skipped, with a text. A class that could not be set up is one entry.
"""

import json
import re
import sys
import unittest

from tempest.common import image

image.get_non_loopback_ipv4 = lambda: "127.0.0.1"  # where tempest's own web servers listen


class Outcomes(unittest.TestResult):
    """Collects, and tells on standard error what is going on."""

    def __init__(self):
        super().__init__()
        self.found = {}

    def _note(self, test, outcome, text=""):
        name = test.id().partition("[")[0]
        if name.startswith("setUpClass ("):
            name = name[len("setUpClass (") : -1]
        self.found[name] = (outcome, text)
        print(outcome, name, file=sys.stderr, flush=True)

    def addSuccess(self, test):  # noqa: N802
        self._note(test, "passed")

    def addSkip(self, test, reason):  # noqa: N802
        self._note(test, "skipped", reason)

    def addError(self, test, err):  # noqa: N802
        self._note(test, "failed", self._exc_info_to_string(err, test))

    addFailure = addError  # noqa: N815


def chosen(suite, pattern):
    """The tests of a suite whose names match, still by class, for that is how they are set up."""
    for one in suite:
        if isinstance(one, unittest.TestSuite):
            yield type(one)(chosen(one, pattern))
        elif re.search(pattern, one.id()):
            yield one


outcomes = Outcomes()
suite = unittest.TestLoader().discover("tempest.api.image")
unittest.TestSuite(chosen(suite, sys.argv[1])).run(outcomes)
print(json.dumps(outcomes.found))
