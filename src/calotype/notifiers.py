"""Notification drivers: they send events to where `[oslo_messaging_notifications] driver` says.

`log` and `noop` are ours. `messagingv2` and `messaging` need oslo.messaging, which is imported only if one of them is
configured. One thread calls the drivers, outside of requests (`jobs/sender.py`).
"""

import json
import logging
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

from oslo_config import cfg

from calotype import config, errors, insides

Message = Mapping[str, Any]


class Notifier(Protocol):
    """A driver. `message` has the fields of OpenStack notifications: message_id, publisher_id, event_type, priority,
    payload, timestamp."""

    def send(self, message: Message) -> None:
        """Return once the message is accepted. Raise any exception if it may not have been."""
        ...


def build(conf: cfg.ConfigOpts) -> list[Notifier]:
    """The configured drivers, not yet connected to anything. Raises `ConfigError`."""
    found = []
    for name in config.notification_drivers(conf):
        if name not in _DRIVERS:
            raise errors.ConfigError(
                f"[oslo_messaging_notifications] driver = {name} is not known; these are: "
                f"{', '.join([*_DRIVERS, 'noop'])}."
            )
        found.append(_DRIVERS[name](conf))
    return found


class Log:
    """Writes a line of JSON to the log, with the priority as its level, through the logger that oslo.messaging uses."""

    def __init__(self, _conf: cfg.ConfigOpts) -> None:
        pass

    def send(self, message: Message) -> None:
        logger = logging.getLogger(f"oslo.messaging.notification.{message['event_type']}")
        logger.log(getattr(logging, message["priority"]), "%s", json.dumps(message))


class Bus:
    """Sends to a message bus, usually RabbitMQ, through oslo.messaging, which reads its options from the same files.

    RabbitMQ confirms what it has accepted. oslo.messaging's own notifier logs a failure and loses the message. So this
    uses its transport directly.
    """

    def __init__(self, conf: cfg.ConfigOpts, version: float) -> None:
        try:
            with warnings.catch_warnings(action="ignore"):  # of eventlet, which comes with it and is not used
                import oslo_messaging
        except ImportError as exc:
            raise errors.ConfigError(
                "Notifications by messaging need oslo.messaging: pip install 'calotype[notifications]', or set "
                "[oslo_messaging_notifications] driver = log"
            ) from exc
        insides.check("oslo.messaging")
        own = cfg.ConfigOpts()  # a separate configuration: some of its options have our names and other defaults
        own([], project="calotype", default_config_files=conf.config_file, default_config_dirs=conf.config_dir)
        oslo_messaging.set_transport_defaults("glance")
        try:
            self._transport = oslo_messaging.get_notification_transport(own)
        except Exception as exc:
            # The text of the error may quote the URL, which has a password in it.
            raise errors.ConfigError(
                f"[oslo_messaging_notifications] transport_url cannot be used ({type(exc).__name__})."
            ) from exc
        self._target: Callable[..., Any] = oslo_messaging.Target
        self._topics = list(conf.oslo_messaging_notifications.topics)
        self._version = version

    def send(self, message: Message) -> None:
        for topic in self._topics:
            target = self._target(topic=f"{topic}.{message['priority'].lower()}")
            insides.send_notification(self._transport, target, dict(message), self._version)


_DRIVERS: Final[dict[str, Callable[[cfg.ConfigOpts], Notifier]]] = {
    "messagingv2": lambda conf: Bus(conf, 2.0),
    "messaging": lambda conf: Bus(conf, 1.0),
    "log": Log,
}
