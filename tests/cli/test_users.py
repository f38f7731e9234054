"""`calotype user` and `calotype env`: the way of a second user to a first list, and what is asked before it is done."""

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from calotype.auth import basic
from calotype.cli import clouds
from tests import warm
from tests.cli.conftest import Run, Said
from tests.support import PASSWORD, Service, running


@pytest.fixture
def place(tmp_path: Path) -> tuple[object, ...]:
    """A state directory with one administrator."""
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    admin = basic.make_user("root", "admin", ("admin",), PASSWORD)
    basic.write_users(state / "users.json", {"root": admin})
    return ("--state-dir", state)


def _file(place: tuple[object, ...]) -> Path:
    return Path(str(place[1])) / "users.json"


def _names(place: tuple[object, ...]) -> list[str]:
    return sorted(basic.read_users(_file(place)))


def test_it_says_which_file_it_changed(run: Run, place: tuple[object, ...]) -> None:
    said = run("user", "add", "ann", "--project", "red", "--generate", *place)
    assert f"Added user ann (project red, role member) in {_file(place)}" in said.err
    said = run("user", "remove", "ann", *place)
    assert f"Removed user ann from {_file(place)}" in said.out


def test_a_user_is_replaced_only_by_who_says_so(run: Run, place: tuple[object, ...]) -> None:
    run("user", "add", "ann", "--project", "red", *place, stdin="first\n")
    before = _file(place).read_bytes()
    said = run("user", "add", "ann", "--project", "blue", *place, stdin="second\n", code=2)
    assert "has a user ann (project red, role member): replace it?" in said.err
    assert "--yes" in said.err
    assert _file(place).read_bytes() == before
    run("user", "add", "ann", "--project", "blue", "--yes", *place, stdin="second\n")
    assert basic.read_users(_file(place))["ann"].project == "blue"


@pytest.mark.parametrize(
    "arguments", [("remove", "root"), ("add", "root", "--project", "red", "--generate", "--role", "manager")]
)
def test_the_last_administrator_stays_unless_it_is_said(
    run: Run, place: tuple[object, ...], arguments: tuple[str, ...]
) -> None:
    before = _file(place).read_bytes()
    said = run("user", *arguments, *place, code=2)
    assert "--yes" in said.err
    assert _file(place).read_bytes() == before
    run("user", *arguments, *place, "--yes")
    assert "admin" not in {role for user in basic.read_users(_file(place)).values() for role in user.roles}


def test_one_of_two_administrators_may_go(run: Run, place: tuple[object, ...]) -> None:
    run("user", "add", "ann", "--project", "red", "--role", "admin", "--generate", *place)
    run("user", "remove", "root", *place)
    assert _names(place) == ["ann"]


def test_who_is_asked_at_a_terminal_may_say_no(place: tuple[object, ...], tmp_path: Path) -> None:
    for answer, code, remaining in (("n", 2, ["root"]), ("", 2, ["root"]), ("y", 0, [])):
        leader, follower = os.openpty()
        os.write(leader, f"{answer}\n".encode())
        with (tmp_path / "said").open("w") as said:
            command = ["user", "remove", "root", *map(str, place)]
            ended = warm.start("calotype", command, stdin=follower, stdout=said, stderr=said).wait(60)
        os.close(leader)
        os.close(follower)
        asked = (tmp_path / "said").read_text()
        assert ended == code, asked
        assert "last administrator" in asked
        assert "[y/N]" in asked
        assert _names(place) == remaining


def test_a_service_without_an_administrator_is_told_of(run: Run, tmp_path: Path) -> None:
    said = run("user", "add", "ann", "--project", "red", "--generate", "--state-dir", tmp_path)
    assert "no administrator yet" in said.err


def test_a_users_file_elsewhere_is_the_one_that_counts(run: Run, tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "c.conf").write_text(f"[http_basic]\nusers_file = {tmp_path}/etc/people.json\n")
    place = ("--config-file", tmp_path / "c.conf", "--state-dir", tmp_path / "state")
    assert f"{tmp_path}/etc/people.json" in run("user", "add", "ann", "--project", "red", "--generate", *place).err
    assert "ann" in run("user", "list", *place).out
    assert not (tmp_path / "state").exists()


def test_a_password_that_was_typed_is_shown_to_nobody(run: Run, place: tuple[object, ...]) -> None:
    assert "secret" not in run("user", "add", "ann", "--project", "red", *place, stdin="secret\n")


def test_a_clouds_file_is_the_persons_alone_and_replaces_no_other(
    run: Run, place: tuple[object, ...], tmp_path: Path
) -> None:
    file = tmp_path / "ann.yaml"
    said = run("user", "add", "ann", "--project", "red", "--generate", "--clouds-file", file, *place)
    assert file.stat().st_mode & 0o777 == 0o600
    secret = yaml.safe_load(file.read_text())["clouds"]["calotype"]["auth"]["password"]
    assert secret not in said
    before = file.read_bytes()
    said = run("user", "add", "ben", "--project", "red", "--generate", "--clouds-file", file, *place, code=2)
    assert f"{file} exists" in said.err
    assert file.read_bytes() == before
    assert _names(place) == ["ann", "root"]


@pytest.mark.parametrize(
    ("content", "words"),
    [("clouds:\n  devstack:\n    region_name: x\n", "other clouds in it (devstack)"), ("[", "no clouds.yaml of ours"), ("# mine\n", "ours")],
)  # fmt: skip
def test_a_file_with_something_else_is_never_replaced(
    run: Run, place: tuple[object, ...], tmp_path: Path, content: str, words: str
) -> None:
    file = tmp_path / "clouds.yaml"
    file.write_text(content)
    said = run("user", "add", "ann", "--project", "red", "--generate", "--clouds-file", file, "--yes", *place, code=2)
    assert f"{file} " in said.err
    assert words in said.err
    assert file.read_text() == content
    assert _names(place) == ["root"]
    assert "no clouds.yaml" in run("user", "add", "ann", "--project", "red", "--clouds-file", tmp_path, *place, code=2)


def test_a_user_whose_password_cannot_be_handed_over_is_not_added(
    run: Run, place: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "ann.yaml")

    monkeypatch.setattr(clouds, "write", full)
    file = tmp_path / "ann.yaml"
    assert "No space" in run(
        "user", "add", "ann", "--project", "red", "--generate", "--clouds-file", file, *place, code=1
    )
    assert _names(place) == ["root"]


def test_a_clouds_file_that_says_nothing_is_not_exported(run: Run, tmp_path: Path) -> None:
    for content in ("", "[", "clouds: {other: {}}"):
        (tmp_path / "clouds.yaml").write_text(content)
        said = run("env", "--state-dir", tmp_path, code=2)
        assert f"{tmp_path}/clouds.yaml has no cloud calotype" in said.err
        assert said.out == ""


def test_exports_are_given_to_who_knows_the_password_alone(run: Run, place: tuple[object, ...]) -> None:
    run("user", "add", "ann", "--project", "red", *place, stdin="it's secret\n")
    said = run("env", "--user", "ann", *place, stdin="it's secret\n")
    shell = subprocess.run(
        ["bash", "-c", f"{said.out}\nenv"], capture_output=True, text=True, timeout=60, env={"OS_CLOUD": "x"}
    )
    found = dict(line.split("=", 1) for line in shell.stdout.splitlines() if line.startswith("OS_"))
    assert found == {
        "OS_AUTH_TYPE": "http_basic",
        "OS_ENDPOINT": "http://127.0.0.1:9292",
        "OS_IMAGE_ENDPOINT_OVERRIDE": "http://127.0.0.1:9292",
        "OS_USERNAME": "ann",
        "OS_PASSWORD": "it's secret",
    }
    assert "not the password" in run("env", "--user", "ann", *place, stdin="guess\n", code=1).err
    assert "no user 'bob'" in run("env", "--user", "bob", *place, stdin="guess\n", code=1).err


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Service]:
    with running(tmp_path / "state", users=False) as service:
        yield service


def test_a_second_user_has_a_first_list_in_two_commands(run: Run, started: Service, tmp_path: Path) -> None:
    """As the operator hands it over: by the lines that were printed, or by a file; and as the first administrator."""
    image_id = _admin(started, run)
    said = run("user", "add", "ann", "--project", "red", "--generate", *started.place)
    assert f"OS_PASSWORD={said.out.strip()}\n" in said.err  # the password alone is for scripts
    printed = _indented(said)
    file = tmp_path / "ben.yaml"
    handed = run("user", "add", "ben", "--project", "admin", "--generate", "--clouds-file", file, *started.place)
    assert image_id not in _openstack(printed, tmp_path)
    assert image_id in _openstack(_indented(handed), tmp_path)


def _indented(said: Said) -> str:
    """The two commands that are for the person."""
    lines = [line.strip() for line in said.err.splitlines() if line.startswith("  ")]
    assert len(lines) == 2
    return "\n".join(lines)


def _admin(service: Service, run: Run) -> str:
    """The id of an image that the first administrator made."""
    clouds = yaml.safe_load((service.state / "clouds.yaml").read_text())
    auth = clouds["clouds"]["calotype"]["auth"]
    exported = run("env", *service.place).out
    image_id = service.client(auth["username"], auth["password"]).queued()
    assert image_id in _openstack(f"{exported}\nopenstack image list\n", service.state)
    return image_id


def _openstack(commands: str, directory: Path) -> str:
    """What two lines of shell say in a directory, of somebody who has the client and nothing else."""
    # The shell tells what the client is started with.
    script = f"""openstack() {{ printf '%s\\0' "$@" > {directory}/arguments; env -0 > {directory}/environment; }}\n{commands}"""
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(directory)}
    subprocess.run(["bash", "-ec", script], cwd=directory, timeout=60, env=environment, check=True)
    arguments, variables = ((directory / name).read_text().split("\0")[:-1] for name in ("arguments", "environment"))
    assert arguments == ["image", "list"]
    with contextlib.chdir(directory):
        env = dict(variable.split("=", 1) for variable in variables)
        done = warm.run("openstack", [*arguments, "-f", "json"], env=env, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.dumps(json.loads(done.stdout))
