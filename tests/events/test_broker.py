"""A real RabbitMQ that goes and comes: no request waits for it, and in the end it has everything, in order."""

import statistics
from pathlib import Path

import pytest

from tests.events.test_service import Changes, left, once
from tests.rabbitmq import Broker
from tests.support import running, until

pytestmark = pytest.mark.needs("rabbitmq-server")

#: Queues live as long as their broker unless they are told to be durable; oslo.messaging reads that itself.
CONF = """\
[oslo_messaging_notifications]
driver = messagingv2
transport_url = {url}
[oslo_messaging_rabbit]
amqp_durable_queues = true
"""


def test_what_happens_while_the_broker_is_away_arrives_in_order_when_it_is_back(state: Path) -> None:
    broker, changes = Broker().start(), Changes()
    with running(state, CONF.format(url=broker.url), "--workers", "2") as service:

        def change(images: int) -> list[float]:
            begin = len(changes.seconds)
            with changes.going_on(service, clients=2):
                until(lambda: len(changes.names) >= images, 60)
            return changes.seconds[begin:]

        there = change(10)
        until(lambda: left(service) == 0, 90)
        # Killed while events are on their way.
        with changes.going_on(service, clients=2):
            until(lambda: len(changes.names) >= 20, 60)
            broker.kill()
        away = change(40)
        waited = left(service)
        broker.start()
        until(lambda: left(service) == 0, 90)
        assert "guest:guest" not in service.log
    received = broker.received("notifications.info")
    broker.remove()
    first = once(received)
    print(
        f"{len(changes.seconds)} requests, medians {statistics.median(there) * 1000:.1f} ms with the broker and "
        f"{statistics.median(away) * 1000:.1f} ms without; {waited} events waited; {len(received)} messages, "
        f"{len(received) - len(first)} repeats"
    )
    assert waited >= 20
    assert all(message["publisher_id"] == "image.localhost" for message in first)
    changes.check(first)
    # To fail once takes oslo.messaging two seconds; no request waited for that.
    assert statistics.median(away) < 0.5
