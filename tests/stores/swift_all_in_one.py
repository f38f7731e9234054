"""Swift in one process: proxy, account, container and object server. Run by the Python of an environment with Swift.

`python swift_all_in_one.py DIRECTORY PORT SETTINGS`, where SETTINGS is JSON: `max_file_size` in bytes, `segments`, the most
that a manifest may list, and for Keystone `keystone`, the options of `authtoken`. One device and one replica. What Swift
keeps in memcached is in a dictionary here.
"""

import copy
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path

import eventlet
from eventlet import wsgi

eventlet.monkey_patch()

from swift.common import constraints, utils  # noqa: E402

SWIFT_CONF = """\
[swift-hash]
swift_hash_path_prefix = test
swift_hash_path_suffix = test
[storage-policy:0]
name = gold
default = yes
[swift-constraints]
max_file_size = {max_file_size}
"""

PROXY_CONF = """\
[DEFAULT]
swift_dir = {directory}
[pipeline:main]
pipeline = catch_errors gatekeeper healthcheck listing_formats bulk {auth} copy container-quotas account-quotas slo dlo proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
allow_account_management = true
recheck_account_existence = 0
recheck_container_existence = 0
conn_timeout = 5
[filter:tempauth]
use = egg:swift#tempauth
user_glance_glance = secret .admin .reseller_admin
user_alice_alice = secret .admin
user_bob_bob = secret .admin
[filter:authtoken]
paste.filter_factory = keystonemiddleware.auth_token:filter_factory
delay_auth_decision = true
cache = swift.cache
include_service_catalog = false
{keystone}
[filter:keystoneauth]
use = egg:swift#keystoneauth
operator_roles = admin, member, service
reseller_admin_role = service
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:gatekeeper]
use = egg:swift#gatekeeper
[filter:healthcheck]
use = egg:swift#healthcheck
[filter:listing_formats]
use = egg:swift#listing_formats
[filter:bulk]
use = egg:swift#bulk
[filter:copy]
use = egg:swift#copy
[filter:container-quotas]
use = egg:swift#container_quotas
[filter:account-quotas]
use = egg:swift#account_quotas
[filter:slo]
use = egg:swift#slo
max_manifest_segments = {segments}
[filter:dlo]
use = egg:swift#dlo
"""

SERVER_CONF = """\
[DEFAULT]
swift_dir = {directory}
devices = {directory}/node
mount_check = false
fallocate_reserve = 0
[pipeline:main]
pipeline = {kind}-server
[app:{kind}-server]
use = egg:swift#{kind}
"""


class Cache:
    """What Swift asks of memcached, in a dictionary."""

    def __init__(self, app):
        self.app = app
        self.kept = {}

    def __call__(self, env, start_response):
        env["swift.cache"] = self
        return self.app(env, start_response)

    def get(self, key, raise_on_error=False):
        value, until = self.kept.get(key, (None, 0))
        return None if until and until < time.time() else value

    def set(self, key, value, serialize=True, time=0, **_):
        if not key.startswith(("account/", "container/")):  # how much is in one changes all the time
            self.kept[key] = (copy.deepcopy(value), _until(time))

    def incr(self, key, delta=1, time=0):
        value = max(0, int(self.get(key) or 0) + int(delta))
        self.kept[key] = (value, _until(time))
        return value

    def decr(self, key, delta=1, time=0):
        return self.incr(key, -int(delta), time)

    def delete(self, key, server_key=None):
        self.kept.pop(key, None)

    def set_multi(self, mapping, server_key, serialize=True, time=0, **_):
        for key, value in mapping.items():
            self.set(key, value, time=time)

    def get_multi(self, keys, server_key):
        return [self.get(key) for key in keys]


def _until(seconds):
    return time.time() + seconds if seconds else 0


class Silent:
    """A log that nobody reads."""

    def write(self, text):
        pass


def main(directory, port, settings):
    parent = os.getppid()
    base = Path(directory)
    (base / "node/d1").mkdir(parents=True, exist_ok=True)
    (base / "swift.conf").write_text(SWIFT_CONF.format(**settings))
    utils.SWIFT_CONF_FILE = constraints.SWIFT_CONF_FILE = str(base / "swift.conf")
    constraints.reload_constraints()
    from swift.common.ring import RingBuilder  # not before the limits are read
    from swift.common.utils.logs import SwiftLogAdapter
    from swift.common.wsgi import SwiftHttpProtocol, loadapp

    utils.validate_hash_conf()
    SwiftLogAdapter.exception = lambda *_: traceback.print_exc()  # else they would go to syslog
    pool = eventlet.GreenPool(2000)

    def serve(sock, app):
        eventlet.spawn(wsgi.server, sock, app, Silent(), custom_pool=pool, protocol=SwiftHttpProtocol, log_output=False)

    for kind in ("object", "container", "account"):
        sock = eventlet.listen(("127.0.0.1", 0))
        ring = RingBuilder(1, 1, 1)
        device = {"region": 1, "zone": 1, "ip": "127.0.0.1", "port": sock.getsockname()[1], "device": "d1", "weight": 1}
        ring.add_dev({"id": 0, "replication_ip": "127.0.0.1", "replication_port": device["port"], "meta": "", **device})
        ring.rebalance()
        ring.get_ring().save(str(base / f"{kind}.ring.gz"))
        conf = base / f"{kind}-server.conf"
        conf.write_text(SERVER_CONF.format(kind=kind, directory=base))
        serve(sock, loadapp(str(conf)))
    keystone = settings.get("keystone")
    conf = base / "proxy-server.conf"
    conf.write_text(
        PROXY_CONF.format(
            directory=base,
            auth="authtoken keystoneauth" if keystone else "tempauth",
            keystone="\n".join(f"{name} = {value}" for name, value in (keystone or {}).items()),
            segments=settings["segments"],
        )
    )
    front = eventlet.listen(("127.0.0.1", port), reuse_port=False)
    cache = Cache(loadapp(str(conf)))
    signal.signal(signal.SIGUSR1, lambda *_: cache.kept.clear())
    serve(front, cache)
    print("ready", flush=True)
    while os.getppid() == parent:  # whoever started it may be killed
        eventlet.sleep(1)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3]))
