"""Rules: the table is the contract's, a file can change lines of it, the floor stands above any file."""

import ast
import json
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

import calotype.images
import calotype.metadefs
from calotype import config, errors
from calotype.context import Context
from calotype.images import lifecycle, sharing
from calotype.images.lifecycle import NewImage
from calotype.model import Image
from calotype.policy import RULES, Policy, image_target
from tests.inprocess import ADMIN, ALICE, BOB, parts
from tests.policy import rules as rules_of_glance

IMAGE = Image("i", "n", "active", "private", "red", datetime(2026, 1, 1), datetime(2026, 1, 1))
READER = Context("r", "ray", "red", frozenset({"reader"}))


def policy(tmp_path: Path, text: str = "") -> Policy:
    (tmp_path / "policy.yaml").write_text(text)
    (tmp_path / "c.conf").write_text("")
    return Policy(config.load([str(tmp_path / "c.conf")], state_dir=str(tmp_path)))


@pytest.mark.parametrize(
    ("ctx", "visibility", "action", "passes"),
    [
        (ALICE, "private", "get_image", True), (READER, "private", "get_image", True), (BOB, "private", "get_image", False),
        (BOB, "public", "get_image", True), (BOB, "community", "download_image", True), (READER, "private", "download_image", False),
        (ALICE, "private", "modify_image", True), (READER, "private", "modify_image", False), (BOB, "public", "modify_image", False),
        (ADMIN, "private", "modify_image", True), (ALICE, "private", "publicize_image", False), (ADMIN, "private", "publicize_image", True),
        (ALICE, "private", "communitize_image", True), (ALICE, "private", "delete_image_location", False),
        (Context(), "public", "get_image", False), (Context("r", "s", "x", frozenset({"service"})), "private", "fetch_image_location", True),
    ],
)  # fmt: skip
def test_the_defaults(tmp_path: Path, ctx: Context, visibility: str, action: str, passes: bool) -> None:
    assert policy(tmp_path).allows(ctx, action, image_target(replace(IMAGE, visibility=visibility))) == passes


def test_a_file_changes_single_rules_and_is_read_again_when_it_changes(tmp_path: Path) -> None:
    rules = policy(tmp_path, '"delete_image": "rule:context_is_admin"\n')
    assert not rules.allows(ALICE, "delete_image", image_target(IMAGE))
    assert rules.allows(ALICE, "modify_image", image_target(IMAGE))
    (tmp_path / "policy.yaml").write_text('"delete_image": "role:member"\n"context_is_admin": "role:boss"\n')
    import os

    os.utime(tmp_path / "policy.yaml", (2**31, 2**31))
    look_again(rules)
    assert rules.allows(ALICE, "delete_image", image_target(IMAGE))
    assert not rules.admit(replace(ADMIN, is_admin=False))
    assert rules.admit(Context("r", "b", "x", frozenset({"boss"})))


def test_a_file_that_breaks_or_goes_keeps_the_rules(tmp_path: Path) -> None:
    rules = policy(tmp_path, '"delete_image": "!"\n')
    (tmp_path / "policy.yaml").write_text("{")
    look_again(rules)
    assert not rules.allows(ALICE, "delete_image", image_target(IMAGE))
    assert rules.allows(ALICE, "modify_image", image_target(IMAGE))
    (tmp_path / "policy.yaml").unlink()
    look_again(rules)
    assert rules.allows(ALICE, "modify_image", image_target(IMAGE))


def look_again(rules: Policy) -> None:
    """As after the second that passes between two looks at the files."""
    rules._next_check = 0.0


def test_no_file_hands_an_image_to_another_project(tmp_path: Path) -> None:
    open_to_all = "\n".join(f'"{name}": "@"' for name in RULES if name not in ("context_is_admin",))
    rules = policy(tmp_path, open_to_all)
    for action in ("delete_image", "modify_image", "upload_image", "deactivate", "reactivate", "add_member", "delete_member",
                   "publicize_image", "communitize_image", "delete_image_location", "set_image_location"):  # fmt: skip
        assert not rules.allows(BOB, action, image_target(replace(IMAGE, visibility="public"))), action
        assert rules.allows(ALICE, action, image_target(IMAGE)), action
        assert not rules.allows(Context(), action, image_target(replace(IMAGE, owner=None))), action
    assert rules.allows(BOB, "download_image", image_target(IMAGE))


def test_refusals_tell_of_no_image_that_cannot_be_seen(tmp_path: Path) -> None:
    rules = policy(tmp_path)
    with pytest.raises(errors.NotFound):
        rules.check_image(BOB, "modify_image", IMAGE)
    with pytest.raises(errors.Forbidden):
        rules.check_image(BOB, "modify_image", replace(IMAGE, visibility="public"))
    with pytest.raises(errors.NotFound):
        rules.check_image(BOB, "get_image", IMAGE)


def test_a_list_asks_once_for_each_set_of_the_fields_that_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = policy(tmp_path)
    asked: list[str] = []
    evaluate = rules._evaluate

    def watched(rule: str, target: object, ctx: Context) -> bool:
        asked.append(rule)
        return evaluate(rule, target, ctx)  # type: ignore[arg-type]

    monkeypatch.setattr(rules, "_evaluate", watched)
    many = [replace(IMAGE, id=str(n), name=str(n), visibility=("private", "public")[n % 2]) for n in range(100)]
    many += [replace(IMAGE, id=str(n), owner="blue") for n in range(100, 200)]
    assert {image.id for image in rules.readable(ALICE, many)} == {str(n) for n in range(100)}
    assert len(asked) == 3


def test_a_rule_on_other_fields_is_asked_for_each_of_their_values(tmp_path: Path) -> None:
    rules = policy(tmp_path, '"get_image": "\'secret\':%(name)s or rule:deep"\n"deep": "\'7\':%(min_disk)s"\n')
    many = [replace(IMAGE, id=str(n), name=("secret", "other")[n % 2], min_disk=n) for n in range(10)]
    assert [image.id for image in rules.readable(BOB, many)] == ["0", "2", "4", "6", "7", "8"]


@pytest.mark.parametrize(
    "text",
    [
        '"get_image": "(role:none or rule:own-or.any:one)"\n"own-or.any:one": "\'secret\':%(name)s"\n',
        '"get_image": "rule:default"\n"default": "\'secret\':%(name)s"\n',
        '"get_image": "\'secret\':%(a(b))s"\n',
    ],
)
def test_whatever_rules_and_fields_are_called_no_answer_is_taken_for_another_image(tmp_path: Path, text: str) -> None:
    rules = policy(tmp_path, text)
    secret = [
        replace(IMAGE, id=str(n), name=name, properties={"a(b)": name}) for n, name in enumerate(("secret", "no"))
    ]
    assert [image.id for image in rules.readable(BOB, secret)] == ["0"]
    assert [rules.allows(BOB, "get_image", image_target(image)) for image in secret] == [True, False]


def test_rules_that_look_elsewhere_are_always_asked(tmp_path: Path) -> None:
    rules = policy(tmp_path, '"get_image": "rule:far"\n"far": "http://127.0.0.1:1/%(name)s"\n')
    assert rules._plan("get_image") is None
    assert rules._plan("delete_image") == ("project_id",)


def test_a_rule_that_cannot_be_answered_now_is_neither_yes_nor_no(tmp_path: Path) -> None:
    rules = policy(tmp_path, '"get_image": "http://127.0.0.1:1/%(name)s or %(name)s:%(size)d"\n')
    with pytest.raises(errors.Busy, match="get_image"):
        rules.allows(ALICE, "get_image", image_target(IMAGE))


@pytest.mark.parametrize("check", ["'a':%(name", "role:100% or @"])
def test_a_rule_that_nobody_could_answer_stops_the_start_and_changes_none_later(tmp_path: Path, check: str) -> None:
    text = json.dumps({"get_image": check})
    with pytest.raises(errors.ConfigError):
        policy(tmp_path, text)
    rules = policy(tmp_path)
    (tmp_path / "policy.yaml").write_text(text)
    rules.reload()
    assert rules.allows(ALICE, "get_image", image_target(IMAGE))


def test_an_answer_is_remembered_for_the_same_caller_and_values_only(tmp_path: Path) -> None:
    rules = policy(tmp_path)
    for _ in range(2):
        assert rules.allows(ALICE, "modify_image", image_target(IMAGE))
        assert not rules.allows(READER, "modify_image", image_target(IMAGE))
        assert not rules.allows(replace(ALICE, project="blue"), "get_image", image_target(IMAGE))
        assert rules.allows(replace(ALICE, project="blue"), "get_image", image_target(replace(IMAGE, member="blue")))
        assert rules.allows(replace(READER, is_admin=True), "modify_image", image_target(IMAGE)) is False


def functions_of(file: Path) -> dict[str, ast.FunctionDef]:
    return {node.name: node for node in ast.parse(file.read_text()).body if isinstance(node, ast.FunctionDef)}


def test_every_use_case_asks_the_policy() -> None:
    """Each public function that gets a service and a caller asks, itself or by a private helper that does."""
    exempt = {
        "removal.carry_out": "finishes what a use-case began",
        "locations.direct_urls": "come with records, whose use-case asked; asks whether the caller is a service",
        "data.open_": "takes what `prepare` returned, which asked",
        "data.sent": "tells what became of what `open_` gave",
        "quota.allowance": "says what a project may have to use-cases that ask",
        "quota.report": "tells callers of their own project alone, as Glance does",
        "lifecycle.fetch": "fetches for use-cases that ask next",
        "tasks.begin": "writes down what a use-case that asked began",
        "import_tasks.create": "calls `tasks.check_access` and `lifecycle.create`, which ask",
        "imports.submit": "writes down what a use-case that asked begins",
    }
    checked = 0
    packages = [Path(part.__file__ or "").parent for part in (calotype.images, calotype.metadefs)]
    for file in sorted(path for package in packages for path in package.glob("*.py")):
        functions = functions_of(file)
        for node in ast.parse(file.read_text()).body:  # helpers that several modules of a package share
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"calotype.{file.parent.name}."):
                module = file.parent / f"{'/'.join(str(node.module).split('.')[2:])}.py"
                shared = functions_of(module) if module.exists() else {}
                functions |= {one.name: shared[one.name] for one in node.names if one.name in shared}

        def asks(name: str, functions: dict[str, ast.FunctionDef] = functions) -> bool:
            calls = [node for node in ast.walk(functions[name]) if isinstance(node, ast.Call)]
            for call in calls:
                if isinstance(call.func, ast.Attribute) and call.func.attr in (
                    "check",
                    "check_image",
                    "check_namespace",
                    "allows",
                ):
                    return True
                if (
                    isinstance(call.func, ast.Name)
                    and call.func.id in functions
                    and call.func.id != name
                    and asks(call.func.id)
                ):
                    return True
            return False

        for name, node in functions_of(file).items():
            arguments = [argument.arg for argument in node.args.args]
            public = not name.startswith("_") and {"svc", "ctx"} <= set(arguments)
            if public and f"{file.stem}.{name}" not in exempt:
                assert asks(name), f"{file.stem}.{name} never asks the policy"
                checked += 1
    assert checked >= 15


def test_a_broken_file_in_the_directory_changes_no_answer(tmp_path: Path) -> None:
    (tmp_path / "policy.d").mkdir()
    rules = policy(tmp_path, '"default": ""\n')
    boring = replace(ALICE, is_admin=False)
    for broken in (False, True, False):
        (tmp_path / "policy.d" / "b.yaml").write_text("{" if broken else '"delete_image": "!"\n')
        (tmp_path / "policy.yaml").write_text(f'"default": ""\n# {broken}\n')
        look_again(rules)
        for _ in range(2):
            assert not rules.admit(boring)
            assert rules.admit(replace(ADMIN, is_admin=False))
            assert rules.allows(ALICE, "modify_image", image_target(IMAGE))
            assert not rules.allows(ALICE, "delete_image", image_target(IMAGE))


# --- the table -------------------------------------------------------------------------------------------


def test_every_rule_has_the_default_of_the_contract() -> None:
    wanted = {name: check for check, names in rules_of_glance.DEFAULTS.items() for name in names.split()}
    assert len(wanted) == 67
    assert dict(RULES) == wanted


@pytest.mark.parametrize("new_defaults", [True, False])
def test_former_defaults_count_only_where_an_operator_asks_for_them(tmp_path: Path, new_defaults: bool) -> None:
    (tmp_path / "c.conf").write_text(f"[oslo_policy]\nenforce_new_defaults = {new_defaults}\n")
    rules = Policy(config.load([str(tmp_path / "c.conf")], state_dir=str(tmp_path)))
    former = {name: check for check, names in rules_of_glance.FORMER.items() for name in names.split()}
    for name, check in RULES.items():
        old = former.get(name, check)
        if new_defaults or old in (check, "rule:manage_image_cache", "rule:context_is_admin"):
            continue
        assert str(rules._enforcer.rules[name]).endswith(f" or {old})"), name
    without_roles = replace(ALICE, roles=frozenset())
    assert rules.allows(without_roles, "get_image", image_target(IMAGE)) is not new_defaults
    assert rules.allows(without_roles, "modify_image", image_target(IMAGE)) is not new_defaults
    # The floor stands under the former rules as well.
    assert not rules.allows(BOB, "modify_image", image_target(IMAGE))
    assert not rules.allows(without_roles, "publicize_image", image_target(IMAGE))
    assert not rules.allows(without_roles, "copy_image", image_target(IMAGE))


def test_a_rule_that_had_another_name_once_follows_it(tmp_path: Path) -> None:
    rules = policy(tmp_path, '"manage_image_cache": "role:member"\n"cache_list": "!"\n')
    assert rules.allows(ALICE, "cache_image", {})
    assert rules.allows(ALICE, "cache_delete", {})
    assert not rules.allows(ADMIN, "cache_list", {})
    assert not rules.allows(ALICE, "cache_clean", {})


def test_a_token_of_the_system_passes_no_rule_of_projects(tmp_path: Path) -> None:
    rules = policy(tmp_path)
    system = replace(ADMIN, project=None, system_scope="all")
    assert rules.admit(replace(system, is_admin=False))
    for name in RULES:
        base = name in ("default", "context_is_admin", "service_api", "metadef_default", "metadef_admin")
        assert rules.allows(system, name, image_target(replace(IMAGE, visibility="public"))) is base, name
    with pytest.raises(errors.Forbidden):
        rules.check(system, "get_images", {})


def test_who_has_no_project_does_not_own_what_is_nobodys(tmp_path: Path) -> None:
    """Nor does a project that is called as the text of nothing is."""
    rules = policy(tmp_path, '"get_image": "project_id:%(project_id)s"\n"get_member": "project_id:%(member_id)s"')
    for ctx in (Context(roles=frozenset({"reader"})), Context(project="None")):
        for image in (replace(IMAGE, owner=None), replace(IMAGE, owner="")):
            assert not rules.allows(ctx, "get_image", image_target(image))
            assert not rules.allows(ctx, "get_member", image_target(image))
    assert rules.allows(Context(project="None"), "get_image", image_target(replace(IMAGE, owner="None")))


def test_what_is_nobodys_is_shared_with_those_to_whom_an_administrator_gave_it(tmp_path: Path) -> None:
    permit = {"get_image": "@", "get_members": "@", "get_member": "@"}
    (tmp_path / "policy.yaml").write_text(json.dumps(permit))
    nobody = Context(read_only=True)
    with parts(tmp_path, f"sqlite:///{tmp_path}/one.db") as app:
        image = lifecycle.create(app.service, ADMIN, NewImage(owner="", visibility="shared"))
        sharing.add(app.service, ADMIN, image.id, "blue")
        for stranger in (nobody, ALICE):
            with pytest.raises(errors.NotFound):
                lifecycle.show(app.service, stranger, image.id)
            with pytest.raises(errors.NotFound):
                sharing.list_(app.service, stranger, image.id)
            with pytest.raises(errors.NotFound):
                sharing.show(app.service, stranger, image.id, "blue")
        assert lifecycle.show(app.service, BOB, image.id).member == "blue"
        assert [member.member for member in sharing.list_(app.service, BOB, image.id)] == ["blue"]
        assert [member.member for member in sharing.list_(app.service, ADMIN, image.id)] == ["blue"]
