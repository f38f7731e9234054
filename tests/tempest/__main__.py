"""`make tempest`: tempest's tests of images against Calotype with a real Keystone, and an account of those that fail.

    python -m tests.tempest [REGEX]

Two nodes of Calotype, one worker each, share a database on MariaDB and three file stores, and each has a staging
directory of its own; tempest knows the second one as another endpoint. Some tests need what is not the default, and are
run again with it. It is red when a test fails that `expected.py` does not name, and when one passes that it does.
"""

import argparse
import gzip
import http.server
import json
import os
import re
import secrets
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path

from tests import databases
from tests.images import samples
from tests.keystone import REGION, Keystone, Memcached
from tests.support import PASSWORD, Service
from tests.tempest.expected import FAIL, SKIP

#: Where `make tempest` installs it.
HOME = Path(os.environ.get("CALOTYPE_TEMPEST") or Path(__file__).parents[2] / ".tempest")
_CALOTYPE = """\
[DEFAULT]
enabled_backends = {stores}, web:http
enabled_import_methods = glance-direct, web-download, glance-download, copy-image
do_secure_hash = {hash}
[glance_store]
default_backend = fast
# tempest compares the stores of an image with a sorted list, so the heaviest comes first in the alphabet.
[brief]
filesystem_store_datadir = {root}/brief
weight = 300
[cheap]
filesystem_store_datadir = {root}/cheap
weight = 200
[fast]
filesystem_store_datadir = {root}/fast
weight = 100
[import_filtering_opts]
allowed_ports =
private_hosts = 127.0.0.1
[image_format]
require_image_format_match = {match}
"""
_TEMPEST = """\
[DEFAULT]
log_dir = {root}
log_file = tempest.log
[oslo_concurrency]
lock_path = {root}/lock
[auth]
use_dynamic_credentials = true
admin_username = admin
admin_password = {password}
admin_project_name = admin
admin_domain_name = Default
create_isolated_networks = false
[identity]
uri_v3 = {keystone}
auth_version = v3
region = {region}
[identity-feature-enabled]
api_v3 = true
[service_available]
cinder = false
glance = true
horizon = false
neutron = false
nova = false
swift = false
[image]
region = {region}
alternate_image_endpoint = image_remote
http_image = {web}/image.tar.gz
http_qcow2_image = {web}/image.qcow2
image_caching_enabled = true
container_formats = bare,ami,ari,aki,ovf,ova,docker,compressed
disk_formats = qcow2,raw,ami,ari,aki,vhd,vmdk,vdi,iso,vhdx,ploop
build_interval = 1
build_timeout = 60
hashing_algorithm = sha512
[image-feature-enabled]
import_image = true
os_glance_reserved = true
manage_locations = false
image_conversion = false
image_format_enforcement = {match}
do_secure_hash = {hash}
http_store_enabled = true
store_weight_enabled = true
[enforce_scope]
glance = true
"""
_SITE = {"resource_type_associations": [{"name": "OS::Glance::Image"}, {"name": "OS::Nova::Flavor"}]}
#: What is run again with other settings, and counts as it goes then.
AGAIN = (
    # tempest leaves these tests out itself unless it is told that made-up data is taken, or none is hashed.
    ("ListUserImagesTest", {"match": "false"}),
    ("do_secure_hash_false", {"hash": "false"}),
    # tempest waits until an image is in all stores, although the import was into the default one.
    (r"test_images\.ImportImagesTest", {"stores": "fast:file"}),
)
_DEFAULTS = {"match": "true", "hash": "true", "stores": "brief:file, cheap:file, fast:file"}


def web(directory: Path) -> str:
    """Serve a directory on loopback until the process ends; the URL."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(directory)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}"


def run(root: Path, pattern: str) -> dict[str, tuple[str, str]]:
    """Tests → what came of them: passed, failed or skipped, and a text."""
    keystone, memcached = Keystone().start(), Memcached()
    try:
        found = once(root / "0", pattern, keystone, memcached)
        for number, (part, settings) in enumerate(AGAIN, 1):
            if again := [name for name in found if re.search(part, name)]:
                for name in again:
                    del found[name]
                print(f"again, {settings}: {part}", file=sys.stderr)
                found |= once(root / str(number), part, keystone, memcached, **settings)
        return found
    finally:
        memcached.stop()
        keystone.remove()


def once(
    root: Path, pattern: str, keystone: Keystone, memcached: Memcached, **settings: str
) -> dict[str, tuple[str, str]]:
    """One run. `match`: whether data must match its format; `hash`: whether that of added locations is computed;
    `stores`: those that take data.
    """
    (root / "www").mkdir(parents=True)
    (root / "www" / "image.qcow2").write_bytes(samples.qcow2())
    (root / "www" / "image.tar.gz").write_bytes(gzip.compress(secrets.token_bytes(3 << 20)))
    values = {"root": str(root)} | _DEFAULTS | settings
    conf = _CALOTYPE.format(**values) + keystone.conf(memcached)
    values |= {"password": PASSWORD, "keystone": keystone.url, "region": REGION, "web": web(root / "www")}
    (root / "tempest.conf").write_text(_TEMPEST.format(**values))
    database = databases.for_service("mariadb")
    nodes = [Service(root / name, conf, database=database, users=False) for name in ("one", "two")]
    try:
        for node, kind in zip(nodes, ("image", "image_remote"), strict=True):
            keystone.offer(node.start().url, kind)
        _load_metadefs(root, nodes[0])
        done = subprocess.run(
            [HOME / "venv/bin/python", Path(__file__).with_name("inside.py"), pattern],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            env={**os.environ, "TEMPEST_CONFIG_DIR": str(root), "TEMPEST_CONFIG": "tempest.conf", "PYTHONPATH": ""},
            cwd=root,
            check=True,
        )
        return dict(json.loads(done.stdout))
    finally:
        for node in nodes:
            if node.process:
                node.stop()


def _load_metadefs(root: Path, node: Service) -> None:
    """What operators load from files: tempest wants to find resource types."""
    (root / "metadefs.json").write_text(json.dumps({"namespace": "Site::Images", "visibility": "public", **_SITE}))
    command = [sys.executable, "-m", "calotype.cli.main", "db", "load-metadefs", root / "metadefs.json", *node.place]
    subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)


def judge(found: dict[str, tuple[str, str]], *, whole: bool) -> list[str]:
    """What is not as it is expected."""
    wrong = []
    for name, (outcome, text) in sorted(found.items()):
        expected = "failed" if _named(name, FAIL) else "skipped" if _named(name, SKIP) else "passed"
        if outcome != expected:
            last = " | ".join(text.strip().splitlines()[-3:])
            wrong.append(f"{name}: {outcome}, not {expected}: {last}")
    for part in (*FAIL, *SKIP) if whole else ():
        if not any(part in name for name in found):
            wrong.append(f"{part}: there is no such test")
    return wrong


def _named(name: str, parts: dict[str, str]) -> list[str]:
    return [part for part in parts if part in name]


def main() -> None:
    parser = argparse.ArgumentParser(description="Run tempest's tests of images against Calotype.")
    parser.add_argument("pattern", nargs="?", default="", help="a regular expression; all tests if it is left out")
    options = parser.parse_args()
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="calotype-tempest-") as name:
        found = run(Path(name), options.pattern)
    for outcome, reasons in (("failed", FAIL), ("skipped", SKIP)):
        for test in sorted(test for test, (what, _) in found.items() if what == outcome):
            why = "; ".join(reasons[part] for part in _named(test, reasons))
            print(f"{outcome} {test}: {why or found[test][1].strip()[-1500:]}")
    wrong = judge(found, whole=not options.pattern)
    print("\n".join(f"NOT AS EXPECTED {one}" for one in wrong))
    counts = {what: sum(outcome == what for outcome, _ in found.values()) for what in ("passed", "failed", "skipped")}
    print(
        f"{', '.join(f'{count} {what}' for what, count in counts.items())} in {time.monotonic() - begin:.0f} s; "
        f"{len(wrong)} not as expected"
    )
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
