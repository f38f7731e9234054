"""`Service`: the parts that a use-case may use, as one typed bundle. `app.py` makes it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from oslo_config import cfg

from calotype.db.engine import Database
from calotype.db.leases import Leases
from calotype.events import Events
from calotype.limits import Limits
from calotype.net import Net
from calotype.policy import Policy
from calotype.protections import Protections
from calotype.stores.registry import Stores
from calotype.transfers import Transfers


@dataclass(frozen=True, slots=True)
class Service:
    """Everything that use-cases work with. `now` is naive UTC; `nudge` wakes the job runner of this process.

    `tokens` has the tokens of callers that jobs of this process need, by keys that the jobs know. Nothing writes them.
    """

    conf: cfg.ConfigOpts
    db: Database
    policy: Policy
    protections: Protections
    limits: Limits
    stores: Stores
    leases: Leases
    events: Events
    transfers: Transfers
    net: Net
    now: Callable[[], datetime]
    nudge: Callable[[], None] = lambda: None
    tokens: dict[str, str] = field(default_factory=dict, repr=False)
