"""Each guide for operators can be followed: its commands are typed as they stand there, on a machine of the test's own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs import console, samples

HERE = Path(__file__).parent
GUIDES = {
    path.name: steps
    for path in sorted((samples.ROOT / "docs/operate").glob("*.md"))
    if (steps := console.steps(path.read_text()))
}
_UNSHARE = ("unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc")


#: A trial as the README begins it, with an image and two users; it is over.
TRIAL = """
calotype serve --state-dir .state & trial=$!
until curl -fs http://127.0.0.1:9292/healthcheck; do sleep 0.1; done
(
    export OS_CLIENT_CONFIG_FILE=.state/clouds.yaml OS_CLOUD=calotype
    openstack image create --file disk.raw --disk-format raw --container-format bare first
    echo secret | calotype user add alice --project red --state-dir .state
) && kill $trial && wait $trial
"""
#: A Glance, played by another Calotype, with its files; and a Calotype that was installed and not started.
GLANCE = """
mkdir -p /etc/glance /var/lib/glance
cat > /etc/glance/glance-api.conf <<END
[DEFAULT]
enabled_backends = fast:file
enabled_import_methods = [glance-direct,web-download]
[glance_store]
default_backend = fast
[fast]
filesystem_store_datadir = /var/lib/glance/images
[database]
connection = mysql+pymysql://glance:secret@db.example.org/glance
END
echo '"publicize_image": "role:admin"' > /etc/glance/policy.yaml
echo secret | calotype user add admin --project admin --role admin --state-dir /var/lib/glance
calotype serve --state-dir /var/lib/glance --bind 127.0.0.1:9393 &
until curl -fs http://127.0.0.1:9393/healthcheck; do sleep 0.1; done
cat > clouds.yaml <<END
clouds:
  old: {auth_type: http_basic, image_endpoint_override: "http://127.0.0.1:9393",
        auth: {endpoint: "http://127.0.0.1:9393", username: admin, password: secret}}
  new: {auth_type: http_basic, image_endpoint_override: "http://127.0.0.1:9292",
        auth: {endpoint: "http://127.0.0.1:9292", username: admin, password: secret}}
END
OS_CLIENT_CONFIG_FILE=clouds.yaml openstack --os-cloud old image create \
    --file disk.raw --disk-format raw --container-format bare first
install -D -m 644 -t /etc/sysusers.d etc/sysusers.d/calotype.conf && systemd-sysusers
install -D -m 644 -t /etc/tmpfiles.d etc/tmpfiles.d/calotype.conf && systemd-tmpfiles --create
install -D -m 644 -t /etc/systemd/system etc/systemd/calotype.service
echo secret | runuser -u calotype -- /opt/calotype/bin/calotype \
    user add admin --project admin --role admin --state-dir /var/lib/calotype
"""
#: What there is before, and the guides that are followed one after the other.
WAYS = {
    "a trial": (TRIAL, ["trial-to-service.md", "lost-password.md", "tls.md", "second-store.md", "uninstall.md"]),
    "Glance": (GLANCE, ["from-glance.md"]),
}


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """The directory in which a guide's commands are typed: the source's `etc`, and a disk."""
    if (os.geteuid() != 0 or subprocess.run([*_UNSHARE, "true"], capture_output=True).returncode) and (
        "CI" not in os.environ
    ):
        pytest.skip("it takes root, and namespaces of the kernel, to be a machine of its own")
    (tmp_path / "etc").symlink_to(samples.ROOT / "etc")
    (tmp_path / "disk.raw").write_bytes(bytes(1 << 20))
    return tmp_path


@pytest.mark.needs("root", "unshare", "curl", "jq", "openssl", "nginx", "haproxy")
@pytest.mark.parametrize("start", WAYS)
def test_the_guides_can_be_followed(start: str, machine: Path) -> None:
    before, names = WAYS[start]
    (machine / "before.sh").write_text(before)
    programs = Path(sys.executable).parent
    environment = {
        "HOME": str(machine),
        "LANG": "C.UTF-8",
        "PATH": os.environ["PATH"],
        "PROGRAMS": str(programs),
        "READABLE": " ".join([str(programs), sys.base_prefix, *filter(os.path.exists, sys.path)]),
    }
    shell = [*_UNSHARE, "bash", str(HERE / "machine.sh"), str(machine / "before.sh")]
    steps = [(name, step) for name in names for step in GUIDES[name]]
    outputs = console.play([step for _, step in steps], machine, environment, shell, seconds=600)
    for (name, step), got in zip(steps, outputs, strict=True):
        assert not (found := console.differences(step.shown, got)), f"{name}: $ {step.command}\n{found}"


def test_every_guide_is_followed() -> None:
    assert sorted(name for _, names in WAYS.values() for name in names) == sorted(GUIDES)
