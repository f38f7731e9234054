"""`calotype serve`: checks the configuration, sets up what is missing, and runs the service.

First it checks everything that can be checked, then it binds the address, and only then it creates anything. So a
failed start leaves nothing behind, and files for clients never name an address that is not served.
"""

import argparse
import fcntl
import logging
import os
import secrets
import shutil
import socket
import sys
import time
from contextlib import closing, suppress
from pathlib import Path

from oslo_config import cfg

from calotype import app, config, errors, insides, logs
from calotype.auth import basic
from calotype.cli import clouds
from calotype.cli.common import load, make_database, make_state, require_database, require_owner, set_up_log
from calotype.cli.env import exports
from calotype.cli.listening import address, check_listening, url
from calotype.db import schema
from calotype.durable import open_private

LOG = logging.getLogger(__name__)

#: The lock of the service that uses a state directory. The file may stay: the kernel releases the lock.
_LOCK = ".serve.lock"


def run(options: argparse.Namespace) -> int:
    conf = load(options)
    if options.bind:
        conf.set_override("bind", options.bind, group="server")
    if options.workers is not None:
        conf.set_override("workers", options.workers, group="server")
    if options.allow_plain_http:
        conf.set_override("allow_plain_http", True, group="server")
    check_listening(conf)
    endpoint = url(conf)
    _check_state(conf)
    # Imported here, because it is the slowest import, and no other command needs it.
    insides.check("gunicorn", "Linux")
    from calotype import server

    with closing(server.listen(*address(conf.server.bind))) as listener:
        set_up_log(conf)
        built = app.App(conf)
        lock = _prepared(conf, built)
        _serve(conf, built, listener, lock, endpoint)
    return 0


def _prepared(conf: cfg.ConfigOpts, built: app.App) -> int:
    """Make what is missing in the state directory, and return its lock. What was made is removed if this fails."""
    state = config.state_path(conf, "")
    if app.database_file(conf) is None:
        with closing(built.db):
            built.wait()
    missing = [one for one in (state, *state.parents) if not one.exists()]
    make_state(conf)
    new = [path for path in _files(conf) if not path.exists()]
    lock = _locked(conf)
    try:
        make_database(conf)
        if conf.database.connection is None:
            with closing(app.database(conf)) as database:
                schema.sync(database)
        built.prepare()
    except BaseException:
        for path in new:
            path.unlink(missing_ok=True)
        with suppress(OSError):  # Others may have put something there.
            for directory in missing:
                directory.rmdir()
        os.close(lock)  # last: until then nobody else starts here
        raise
    return lock


def _files(conf: cfg.ConfigOpts) -> list[Path]:
    """The files that a start makes before it serves."""
    lock, database = config.state_path(conf, _LOCK), app.database_file(conf)
    return [lock] + ([Path(f"{database}{suffix}") for suffix in ("", "-wal", "-shm")] if database else [])


def _serve(conf: cfg.ConfigOpts, built: app.App, listener: socket.socket, lock: int, endpoint: str) -> None:
    """Run the server. Raises `SystemExit` at its end."""
    from calotype import server

    def start() -> None:
        os.close(lock)  # Only the master holds it: workers that outlive the master must not keep the lock.
        built.start()

    server.run(
        lambda: built.wsgi,
        listener=listener,
        workers=conf.server.workers,
        threads=conf.server.threads,
        state_dir=config.state_path(conf, ""),
        on_worker_start=start,
        on_worker_exit=built.stop,
        on_reload=built.reload,
        on_grace_over=built.service.stores.cancel_reads,
        on_answered=logs.answered(conf.server.access_log),
        on_ready=lambda: _greet(conf, endpoint, first=_has_users(conf) and _first_admin(conf, endpoint)),
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


def _check_state(conf: cfg.ConfigOpts) -> None:
    """Check the state that an earlier start has left. Raises if the service could not start with it."""
    require_owner(config.state_path(conf, ""))
    if serving(conf):
        raise _served(conf)
    if _has_users(conf):
        users = app.users_file(conf)
        basic.read_users(users)  # Now rather than at the first request. It must be valid and private.
        if users.parent != config.state_path(conf, "") and not users.parent.is_dir():
            raise errors.ConfigError(f"[http_basic] users_file: there is no directory {users.parent}; make it.")
    path = app.database_file(conf)
    if path is not None and path.exists():
        require_database(conf)
        with closing(app.database(conf)) as database:
            schema.pending(database)


def serving(conf: cfg.ConfigOpts) -> bool:
    """Whether `calotype serve` runs on the state directory, on this host."""
    try:
        number = os.open(config.state_path(conf, _LOCK), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(number, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(number)
    return False


def _locked(conf: cfg.ConfigOpts) -> int:
    """Lock the state directory. Raises `Conflict` if another service uses it."""
    path = config.state_path(conf, _LOCK)
    number = open_private(path, os.O_RDWR)
    until = time.monotonic() + 1.0  # `serving` in another process holds it for a moment.
    while True:
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and path.samefile(f"/proc/self/fd/{number}"):
                return number
            os.close(number)  # A start that failed has removed the file.
            number = open_private(path, os.O_RDWR)
        except BlockingIOError as exc:
            if time.monotonic() > until:
                os.close(number)
                raise _served(conf) from exc
            time.sleep(0.02)


def _served(conf: cfg.ConfigOpts) -> errors.Conflict:
    return errors.Conflict(
        f"Another `calotype serve` runs on {conf.state_dir}: stop it first, or name another --state-dir."
    )


def _has_users(conf: cfg.ConfigOpts) -> bool:
    """Whether the users are in our users file, and not in Keystone."""
    return "keystone" not in config.flavor(conf)


def _first_admin(conf: cfg.ConfigOpts, endpoint: str) -> bool:
    """Create an admin with a random password if there is no user yet. Returns whether one was created."""
    users, cloud = app.users_file(conf), config.state_path(conf, "clouds.yaml")
    if users.exists():
        clouds.move(cloud, endpoint)
        return False
    password = secrets.token_urlsafe(18)
    # In this order: otherwise a crash in between would leave an admin whose password nobody knows.
    clouds.write(cloud, endpoint, "admin", password)
    admin = basic.make_user("admin", "admin", ("admin",), password)
    basic.write_users(users, {admin.name: admin})
    return True


def _greet(conf: cfg.ConfigOpts, endpoint: str, *, first: bool) -> None:
    if conf.use_json:  # the log is read by programs
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
    with suppress(OSError):  # The service must run even if the output is on a full disk.
        print("\n".join(lines), file=sys.stderr, flush=True)
