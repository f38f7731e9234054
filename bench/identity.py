"""What it costs to know who asks: CPU of GETs of a record with a known token, beside HTTP basic authentication.

    python -m bench.identity [--requests N] [--times N]

CPU-milliseconds a request of the service's processes alone, medians over rounds in which the ways take turns. With
`remember = 0` each request asks memcached. Needs memcached, and Keystone in `.keystone` (`make .keystone/ready`).
"""

import argparse
import http.client
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from tests.keystone import Keystone, Memcached, TokenClient
from tests.support import Client, Service, running

from bench.__main__ import Figures, cpu
from bench.client import basic


def ask(service: Service, path: str, headers: Mapping[str, str], times: int) -> float:
    """CPU-milliseconds a request."""
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=60)
    before = cpu(service)
    for _ in range(times):
        connection.request("GET", path, headers=dict(headers))
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 200, answer.status
    used = cpu(service) - before
    connection.close()
    return used * 1000 / times


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what it costs to know who asks.")
    parser.add_argument("--requests", type=int, default=1000, help="requests a round, default 1000")
    parser.add_argument("--times", type=int, default=7, help="rounds, default 7")
    options = parser.parse_args()
    with ExitStack() as stack:
        keystone, memcached = Keystone().start(), Memcached()
        stack.callback(memcached.stop)
        stack.callback(keystone.remove)
        state = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        conf = keystone.conf(memcached)
        token = keystone.token("alice")
        ways: dict[str, tuple[Service, Client, Mapping[str, str]]] = {}
        for name, text in (
            ("http_basic", ""),
            ("token, remembered", conf),
            ("token, memcached", conf + "[keystone]\nremember = 0\n"),
        ):
            service = stack.enter_context(running(state / name.replace(", ", "-"), text))
            if text:
                ways[name] = service, TokenClient(service.url, token), {"X-Auth-Token": token}
            else:
                ways[name] = service, service.client("alice"), dict([basic("alice")[0].split(": ", 1)])
        paths = {name: f"/v2/images/{client.queued()}" for name, (_, client, _) in ways.items()}
        figures = Figures()
        for turn in range(options.times + 1):
            for name, (service, _, headers) in ways.items():
                used = ask(service, paths[name], headers, options.requests)
                if turn:  # the first one warms up
                    figures.add(name, used)
        for name in ways:
            more = figures[name] - figures["http_basic"]
            print(f"{name:20} {figures[name]:.3f} CPU-ms a request, {more:+.3f} beside HTTP basic")


if __name__ == "__main__":
    main()
