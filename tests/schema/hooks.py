"""What Schemathesis has to be told: how bodies of media types are written that are JSON by another name."""

import json
from typing import Any

import schemathesis

from calotype.api import patch


@schemathesis.serializer(patch.V21, patch.V20)
def as_json(_context: Any, value: Any) -> bytes:
    return json.dumps(value).encode()
