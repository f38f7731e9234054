"""`calotype serve`: from nothing to a running service."""

import argparse
import ipaddress
import logging
import os
import secrets
import shutil
import sys
from contextlib import closing, suppress
from pathlib import Path

from oslo_config import cfg
from oslo_log import log

from calotype import app, config, errors, insides, logs
from calotype.auth import basic
from calotype.cli import clouds
from calotype.cli.common import Commands, load
from calotype.cli.env import exports
from calotype.db import schema
from calotype.durable import make_directory

LOG = logging.getLogger(__name__)


def register(commands: Commands, common: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "serve",
        parents=[common],
        help="start the service; the first start makes database, store, admin and clouds.yaml",
        description="Start the service and stay in the foreground. Without a configuration everything that is "
        "missing (database, store, first admin, clouds.yaml) is made in the state directory; with Keystone no admin.",
    )
    parser.add_argument("--bind", metavar="HOST:PORT", help="default 127.0.0.1:9292")
    parser.add_argument("--workers", metavar="N", type=int, help="worker processes, default 1")
    parser.add_argument(
        "--allow-plain-http", action="store_true", help="listen beyond loopback although there is no TLS"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    conf = load(options)
    if options.bind:
        conf.set_override("bind", options.bind, group="server")
    if options.workers is not None:
        if options.workers < 1:
            raise errors.Invalid("--workers must be at least 1.")
        conf.set_override("workers", options.workers, group="server")
    if options.allow_plain_http:
        conf.set_override("allow_plain_http", True, group="server")
    endpoint = check_listening(conf)
    log.setup(conf, "calotype")
    os.umask(0o077)  # Whatever is made from here on is nobody else's business.
    make_directory(config.state_path(conf, ""))
    if conf.database.connection is None:
        with closing(app.database(conf)) as database:
            schema.sync(database)
    first = _has_users(conf) and _first_admin(conf, endpoint)
    built = app.build(conf)

    # Imported last: the most expensive of all imports, which no other command needs.
    insides.check("gunicorn", "Linux")
    from calotype import server

    server.run(
        lambda: built.wsgi,
        bind=[conf.server.bind],
        workers=conf.server.workers,
        threads=conf.server.threads,
        state_dir=config.state_path(conf, ""),
        on_worker_start=built.start,
        on_worker_exit=built.stop,
        on_reload=built.reload,
        on_grace_over=built.service.stores.cancel_reads,
        on_answered=logs.answered(conf.server.access_log),
        on_ready=lambda: _greet(conf, endpoint, first=first),
        timeouts=server.Timeouts(
            head=conf.server.header_timeout,
            idle=conf.server.keepalive_timeout,
            body=conf.server.client_timeout,
            send=conf.server.send_timeout,
            rate=conf.server.min_rate,
        ),
        graceful_timeout=conf.server.graceful_timeout,
        certfile=conf.server.tls_cert,
        keyfile=conf.server.tls_key,
    )
    return 0


def check_listening(conf: cfg.ConfigOpts) -> str:
    """The URL of the service. Raises `ConfigError` for an address or certificate that should not be used."""
    tls = _tls(conf)
    host, port = _address(conf.server.bind)
    if not (tls or conf.server.allow_plain_http or _loopback(host)):
        raise errors.ConfigError(
            f"Listening on {host} without TLS would send passwords in the clear. Put a TLS proxy in front and "
            "listen on 127.0.0.1, set [server] tls_cert and tls_key, or insist with --allow-plain-http."
        )
    return f"{'https' if tls else 'http'}://{_reachable(host)}:{port}"


def _has_users(conf: cfg.ConfigOpts) -> bool:
    """Whether the users are our own, in the users file, and not Keystone's."""
    return "keystone" not in config.flavor(conf)


def _first_admin(conf: cfg.ConfigOpts, endpoint: str) -> bool:
    """Make an admin with a password of their own where there is no user yet; whether one was made."""
    users, cloud = app.users_file(conf), config.state_path(conf, "clouds.yaml")
    if users.exists():
        basic.read_users(users)  # Rather now than at the first request: it must be sound and private.
        clouds.move(cloud, endpoint)
        return False
    password = secrets.token_urlsafe(18)
    # In this order: were it the other way round, a crash in between would leave an admin whose password nobody knows.
    clouds.write(cloud, endpoint, "admin", password)
    admin = basic.make_user("admin", "admin", ("admin",), password)
    basic.write_users(users, {admin.name: admin})
    return True


def _greet(conf: cfg.ConfigOpts, endpoint: str, *, first: bool) -> None:
    if conf.use_json:  # whoever reads that is no person
        LOG.info("Calotype serves on %s", endpoint)
        return
    cloud = config.state_path(conf, "clouds.yaml")
    lines = [f"Calotype serves on {endpoint} (state in {conf.state_dir})"]
    if cloud.exists() and _has_users(conf):
        if first:
            lines.append(f"The first admin's password is in {cloud}, readable by you alone.")
        lines += [
            "",
            "Your first image, in another terminal:",
            f"  {exports(cloud)}",
            "  openstack image create --file disk.raw --disk-format raw --container-format bare first",
            "  openstack image save --file copy.raw first",
        ]
        if shutil.which("openstack") is None:
            lines.append("(`openstack` comes with: pip install python-openstackclient)")
    with suppress(OSError):  # A full disk under the log is no reason not to serve.
        print("\n".join(lines), file=sys.stderr, flush=True)


def _tls(conf: cfg.ConfigOpts) -> bool:
    files = [conf.server.tls_cert, conf.server.tls_key]
    if any(files) and not all(files):
        raise errors.ConfigError("[server] tls_cert and tls_key go together.")
    for name in filter(None, files):
        if not Path(name).is_file():
            raise errors.ConfigError(f"[server] {name} does not exist.")
    return all(files)


def _address(bind: str) -> tuple[str, int]:
    host, colon, port = bind.rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise errors.ConfigError(f"{bind!r} is no HOST:PORT to listen on.")
    return host.strip("[]"), int(port)


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _reachable(host: str) -> str:
    """The address that a client on this machine uses."""
    if host == "0.0.0.0":  # noqa: S104  # compared with, not listened on
        return "127.0.0.1"
    if host == "::":
        return "[::1]"
    return f"[{host}]" if ":" in host else host
