"""Policy files fail closed: what is missing, cannot be read or means something else than it says stops the start."""

import re
from pathlib import Path

import pytest

from calotype import config, errors, policy
from calotype.policy import RULES, UNUSED, Policy, image_target
from tests.inprocess import ALICE, BOB
from tests.policy.test_policy import IMAGE, look_again

ROOT = Path(__file__).parents[2]


def made(tmp_path: Path, text: str | None, conf: str = "") -> Policy:
    if text is not None:
        (tmp_path / "policy.yaml").write_text(text)
    (tmp_path / "c.conf").write_text(conf)
    return Policy(config.load([str(tmp_path / "c.conf")], state_dir=str(tmp_path)))


def doubts(tmp_path: Path, text: str, others: tuple[str, ...] = ()) -> tuple[str, ...]:
    (tmp_path / "policy.yaml").write_text(text)
    (tmp_path / "c.conf").write_text("")
    found = policy.examine(config.load([str(tmp_path / "c.conf")], state_dir=str(tmp_path)), others)
    assert not found.problems
    return found.doubts


@pytest.mark.parametrize("option", ["policy_file = nope.yaml", "policy_file = /nope/p.yaml", "policy_dirs = nope.d", "policy_file = policy.yaml"])  # fmt: skip
def test_a_file_or_directory_that_was_named_must_be_there(tmp_path: Path, option: str) -> None:
    with pytest.raises(errors.ConfigError, match="there is no such"):
        made(tmp_path, None, f"[oslo_policy]\n{option}\n")


def test_a_file_that_was_not_named_need_not_be_there(tmp_path: Path) -> None:
    assert made(tmp_path, None).allows(ALICE, "modify_image", image_target(IMAGE))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('"context_is_admin": "role:admin or ("', "context_is_admin cannot be read"),
        ('"context_is_admin": "admin"', "context_is_admin cannot be read"),
        ('"get_image": "role:reader or nonsense"', "get_image cannot be read"),
        ('"get_image": "not nonsense"', "get_image cannot be read"),
        ('"get_image": [["role:reader", "nonsense"]]', "get_image cannot be read"),
        ('"get_image": "! or nonsense"', "get_image cannot be read"),
        ('"get_image": "role:reader and"', "get_image cannot be read"),
        ('"get_image":', "get_image says nothing"),
        ('"get_image": 5', "get_image says 5"),
        ('"get_image": true', "get_image says True"),
        ('"get_image": {"a": "b"}', "get_image says"),
        ('"delete_image": "rule:admin_onyl"\n"admin_only": "role:admin"', "did you mean admin_only"),
        ('"delete_image": "not rule:nowhere"', "does not exist"),
        ('"delete_image": "not roel:guest"', "not roel:guest passes everybody; did you mean role"),
        ('"get_image": "http://[::1/x"', "malformed URL: http://[::1/x"),
        ('"get_image": "role:reader or not https://h:port/%(name)s"', "malformed URL"),
        ('"get_image": "http:policy"', "malformed URL"),
        ('"a": "rule:b"\n"b": "@ or not rule:a"', "asks itself"),
        ("- get_image", "must be rules"),
        ("role:admin", "must be rules"),
        ("{", "cannot be used"),
    ],
)  # fmt: skip
def test_a_rule_that_cannot_be_meant_stops_the_start_and_changes_none_later(
    tmp_path: Path, text: str, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(errors.ConfigError, match=re.escape(words)):
        made(tmp_path, text)
    assert not caplog.records  # no traceback of a library beside the sentence
    rules = made(tmp_path, '"delete_image": "!"\n')
    (tmp_path / "policy.yaml").write_text(text)
    rules.reload()
    assert words in caplog.text
    assert not rules.allows(ALICE, "delete_image", image_target(IMAGE))
    assert rules.allows(ALICE, "get_image", image_target(IMAGE))


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(errors.ConfigError) as caught:
        made(tmp_path, '"get_image": "a"\n"add_image": "rule:nowhere"\n"get_images":\n')
    assert all(name in str(caught.value) for name in ("get_image ", "add_image", "get_images"))


@pytest.mark.parametrize(
    "check",
    [
        *("!", "(! or role:reader)", "", "@", "role:reader", "not !", "'shared':%(visibility)s"),
        *("http://policy.example:8080/%(name)s", "https://[2001:db8::7]/check?image=%(image_id)s"),
    ],
)
def test_what_can_be_meant_is_taken(tmp_path: Path, check: str) -> None:
    made(tmp_path, f'"get_image": "{check}"\n"get_images": []\n"add_image": [["role:member"], ["!"]]\n')


def test_directories_are_read_as_files_are(tmp_path: Path) -> None:
    (tmp_path / "policy.d" / "kept").mkdir(parents=True)
    (tmp_path / "policy.d" / "one.yaml").write_text('"get_image": "nonsense"\n')
    with pytest.raises(errors.ConfigError, match="get_image"):
        made(tmp_path, None)
    (tmp_path / "policy.d" / "one.yaml").write_text('"get_image": "@"\n')
    assert made(tmp_path, None).allows(BOB, "get_image", image_target(IMAGE))


def test_what_has_no_effect_is_reported(tmp_path: Path) -> None:
    assert doubts(tmp_path, '"delte_image": "!"\n') == (
        "No rule of this service is named delte_image: it has no effect; did you mean delete_image?",
    )
    (found,) = doubts(tmp_path, '"get_image": "roel:admin or role:reader"\n')
    assert "roel:admin never passes; did you mean role" in found
    (found,) = doubts(tmp_path, '"get_image": "@"\n"get_image": "!"\n')
    assert "more than once" in found


def test_rules_that_others_name_and_those_of_former_releases_are_not_misspelt(tmp_path: Path) -> None:
    assert doubts(tmp_path, '"mine": "role:x"\n"get_image": "rule:mine"\n"copy_from": ""\n') == ()
    assert doubts(tmp_path, '"billing": "role:x"\n', ("billing",)) == ()
    assert doubts(tmp_path, "\n".join(f'"{name}": "role:admin"' for name in RULES)) == ()


def test_a_policy_in_json_beside_the_configuration_is_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / "policy.json").write_text('{"get_image": "!"}')
    (found,) = doubts(tmp_path, "")
    assert "policy.json is not read" in found
    rules = made(tmp_path, None, "[oslo_policy]\npolicy_file = policy.json\n")
    assert not rules.allows(ALICE, "get_image", image_target(IMAGE))


def test_a_named_file_that_goes_away_keeps_the_rules(tmp_path: Path) -> None:
    rules = made(tmp_path, '"delete_image": "!"\n', "[oslo_policy]\npolicy_file = policy.yaml\n")
    (tmp_path / "policy.yaml").unlink()
    look_again(rules)
    assert not rules.allows(ALICE, "delete_image", image_target(IMAGE))


def test_a_file_that_cannot_be_read_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_bytes(b'"get_image": "role:\xff"')
    with pytest.raises(errors.ConfigError, match="cannot be used"):
        made(tmp_path, None)
    (tmp_path / "policy.yaml").unlink()
    (tmp_path / "policy.yaml").mkdir()
    with pytest.raises(errors.ConfigError, match="Is a directory"):
        made(tmp_path, None)


def test_the_rules_that_no_route_asks_are_those() -> None:
    paths = [path for part in ("images", "metadefs") for path in (ROOT / "src" / "calotype" / part).glob("*.py")]
    source = "\n".join(path.read_text() for path in paths)
    base = {"default", "context_is_admin", "service_api", "metadef_default", "metadef_admin"}
    assert {name for name in RULES if f'"{name}"' not in source} - base == UNUSED
