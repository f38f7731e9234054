"""Property protections: who reads and writes which custom property, and that nobody else learns of it."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from calotype import config, errors
from calotype.app import App
from calotype.context import Context
from calotype.db import images as db_images
from calotype.images import lifecycle
from calotype.images.lifecycle import NewImage
from calotype.model import Change, Image, Query
from calotype.policy import Policy
from calotype.protections import OPERATIONS, Protections
from tests.inprocess import ADMIN, ALICE, BOB, parts
from tests.support import running, until

#: Billing is its role's alone; of notes members know nothing but may write them; the rest is for everybody.
FILE = """\
[^x_billing]
create = Billing, admin
read = billing,admin
update = billing,admin
delete = billing
[^x_note]
create = admin,member
read = admin
update = admin,member
delete = member
[^x_half_c]
create = @
read = admin
update = admin
delete = !
[^x_half_u]
create = admin
read = admin
update = @
delete = !
[^x_once$]
create = @
read = @
update = !
delete =
[^(?!x_|os_).*]
create = @
read = @
update = @
delete = @
"""
BILLING = replace(ALICE, user="bill", roles=ALICE.roles | {"billing"})
WITH_TOKEN = replace(ALICE, service_roles=frozenset({"billing"}))


def protections(tmp_path: Path, text: str, form: str = "roles", rules: str = "") -> Protections:
    (tmp_path / "p.conf").write_text(text)
    (tmp_path / "policy.yaml").write_text(rules or "{}")
    more = f"property_protection_file = {tmp_path}/p.conf\nproperty_protection_rule_format = {form}\n"
    (tmp_path / "c.conf").write_text(f"[DEFAULT]\n{more}")
    conf = config.load([str(tmp_path / "c.conf")], state_dir=str(tmp_path))
    return Protections(conf, Policy(conf).passes)


def section(name: str, *permitted: str) -> str:
    return f"[{name}]\n" + "\n".join(map(" = ".join, zip(OPERATIONS, permitted * (4 // len(permitted)), strict=True)))


# --- the file --------------------------------------------------------------------------------------------


def test_the_first_section_that_is_found_anywhere_in_a_name_counts(tmp_path: Path) -> None:
    found = protections(tmp_path, "\n".join([section("secret", "admin"), section("^a", "@"), section("b$", "!")]))
    allowed = [
        (ALICE, "my_secret_b", False), (ADMIN, "my_secret_b", True), (ALICE, "a_secret", False),
        (ALICE, "ab", True), (ALICE, "xb", False), (ADMIN, "xb", False), (ADMIN, "nothing", False),
        (ALICE, "os_glance_failed_import", True), (ALICE, "os_glancesecret", True), (ADMIN, "a" * 256, False),
    ]  # fmt: skip
    for ctx, name, passes in allowed:
        for operation in OPERATIONS:
            assert found.allows(ctx, operation, name) is passes, (name, operation)


def test_names_that_no_property_can_have_are_not_remembered(tmp_path: Path) -> None:
    found = protections(tmp_path, section("^a", "@"))
    assert found.allows(ALICE, "read", "a" * 255)
    assert not found.allows(ALICE, "read", "a" * 256)
    assert [len(name) for name in found._section_by_name] == [255]


def test_roles_count_in_any_case_and_from_service_tokens(tmp_path: Path) -> None:
    found = protections(tmp_path, FILE)
    for ctx, operations in ((ALICE, ""), (BILLING, "crud"), (WITH_TOKEN, "crud"), (ADMIN, "cru"), (Context(), "")):
        assert "".join(op[0] for op in OPERATIONS if found.allows(ctx, op, "x_billing_code")) == operations
        assert "".join(op[0] for op in OPERATIONS if found.allows(ctx, op, "x_once")) == "cr"


def test_policies_name_a_rule_for_each_operation(tmp_path: Path) -> None:
    rules = '"payers": "role:billing or project_id:blue"\n'
    text = "\n".join([section("^pay", "payers"), section("^all", "@", "context_is_admin", "!", "@")])
    found = protections(tmp_path, text, "policies", rules)
    for operation in OPERATIONS:
        assert not found.allows(ALICE, operation, "pay")
        assert found.allows(BILLING, operation, "pay")
        assert found.allows(BOB, operation, "pay")
    assert [found.allows(ADMIN, operation, "all") for operation in OPERATIONS] == [True, True, False, True]
    assert [found.allows(ALICE, operation, "all") for operation in OPERATIONS] == [True, False, False, True]


BROKEN = {
    "no section": "create = @",
    "no expression": section("(", "@"),
    "an operation is missing": "[a]\ncreate = @\nread = @\nupdate = @\n",
    "everybody and nobody": section("a", "@,!"),
    "a section twice": "\n".join([section("a", "@"), section("a", "!")]),
    "exponential": section("^(a+)+$", "@"),
    "exponential by alternatives": section("(a|aa)*$", "@"),
    "exponential by options": section("a?" * 40 + "a" * 40, "@"),
    "four times any": section("^(.*){4}$", "@"),
    "many repeats": section(".*a.*b.*c", "@"),
    "no text": "\ud800",
}


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_file_stops_the_start(tmp_path: Path, text: str) -> None:
    protections(tmp_path, FILE)
    (tmp_path / "p.conf").write_bytes(text.encode(errors="surrogatepass"))
    conf = config.load([str(tmp_path / "c.conf")], state_dir=str(tmp_path))
    with pytest.raises(errors.ConfigError, match="property_protection_file"):
        App(conf)
    (tmp_path / "p.conf").unlink()
    with pytest.raises(errors.ConfigError, match="property_protection_file"):
        App(conf)


@pytest.mark.parametrize("rule", ["one,two", "nobody_wrote_this"])
def test_a_list_of_rules_or_a_rule_that_is_not_there_stops_the_start(tmp_path: Path, rule: str) -> None:
    # oslo.policy would ask the rule `default` for it, and that passes everybody.
    with pytest.raises(errors.ConfigError, match="property_protection_file"):
        protections(tmp_path, section("a", rule), "policies", '"one": "@"\n"two": "@"\n')


def test_a_rule_whose_service_is_away_does_not_stop_the_start(tmp_path: Path) -> None:
    text = "\n".join([section("^pay", "payers"), section("^a", "@")])
    found = protections(tmp_path, text, "policies", '"payers": "http://127.0.0.1:1/"\n')
    assert found.allows(ALICE, "read", "a")
    with pytest.raises(errors.Busy):
        found.allows(ALICE, "read", "pay")


def test_a_rule_that_goes_while_the_service_runs_permits_nothing(tmp_path: Path) -> None:
    protections(tmp_path, section("a", "payers"), "policies", '"payers": "@"\n')
    rules = Policy(conf := config.load([str(tmp_path / "c.conf")], state_dir=str(tmp_path)))
    found = Protections(conf, rules.passes)
    assert found.allows(ALICE, "read", "a")
    (tmp_path / "policy.yaml").write_text('"others": "@"\n# longer than before\n')
    rules.reload()
    assert not found.allows(ALICE, "read", "a")


def test_no_name_takes_long_to_search(tmp_path: Path) -> None:
    """The worst expressions that are taken, with names made for them."""
    worst = [".*a.*b", "^.*a.*a.*b", "a?" * 15 + "a" * 15 + "b", "^(x|y|z)(a|b)*$", r"(\w)\1*b"]
    found = protections(tmp_path, "\n".join(section(one, "!") for one in worst))
    before = time.thread_time()
    for name in ("a" * 255, "ab" * 127, "xa" * 127, "x" + "a" * 253 + "!"):
        found.allows(ALICE, "read", name)
    assert time.thread_time() - before < 4


def test_without_a_file_all_is_permitted_and_records_are_not_copied(tmp_path: Path) -> None:
    conf = config.load([], state_dir=str(tmp_path), search=False)
    found = Protections(conf, lambda ctx, rule: pytest.fail("asked"))
    image: Any = object()
    assert found.seen_by(ALICE, image) is image
    assert found.allows(Context(), "delete", "x" * 1000)


# --- use-cases -------------------------------------------------------------------------------------------


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    (tmp_path / "p.conf").write_text(FILE)
    conf = (
        f"[DEFAULT]\nproperty_protection_file = {tmp_path}/p.conf\nenabled_backends = one:memory\n"
        "[glance_store]\ndefault_backend = one\n"
    )
    with parts(tmp_path, f"sqlite:///{tmp_path}/calotype.db", conf) as made:
        yield made


HIDDEN = {"x_billing": "42", "x_note": "hush", "x_half_c": "c", "x_half_u": "u"}


def full(app: App) -> Image:
    """An image of project red with a property of each kind, as its record has it."""
    values = HIDDEN | {"x_once": "1", "free": "f"}
    by = replace(ADMIN, project="red", roles=ADMIN.roles | {"billing"})
    return lifecycle.create(app.service, by, NewImage(visibility="public", properties=values))


def stored(app: App, image_id: str) -> dict[str, str]:
    found = app.db.snapshot(lambda tx: db_images.get(tx, ADMIN, image_id))
    assert found
    return dict(found.properties)


def test_what_may_not_be_read_is_in_no_answer(app: App) -> None:
    svc, image = app.service, full(app)
    seen = {
        ALICE: "x_once free",
        BOB: "x_once free",
        ADMIN: "x_billing x_note x_half_c x_half_u x_once free",
        BILLING: "x_billing x_once free",
    }
    for _ in range(2):  # once more from memory: what one caller was shown, another is not
        for ctx, names in seen.items():
            shown = lifecycle.show(svc, ctx, image.id)
            (listed,) = lifecycle.list_(svc, ctx, Query(limit=5))[0]
            assert set(shown.properties) == set(listed.properties) == set(names.split())
    changed = lifecycle.update(svc, ALICE, image.id, [Change("replace", "name", "new")])
    assert set(changed.properties) == {"x_once", "free"}
    made = lifecycle.create(svc, ALICE, NewImage(properties={"x_note": "blind", "free": ""}))
    assert set(made.properties) == {"free"}
    assert stored(app, made.id) == {"x_note": "blind", "free": ""}


def test_a_save_keeps_what_the_caller_does_not_see(app: App) -> None:
    image = full(app)
    lifecycle.update(app.service, ALICE, image.id, [Change("add", "more", "m"), Change("remove", "free")])
    lifecycle.add_tag(app.service, ALICE, image.id, "tag")
    assert stored(app, image.id) == HIDDEN | {"x_once": "1", "more": "m"}


def test_forbidden_writes_are_refused_and_change_nothing(app: App) -> None:
    svc, image = app.service, full(app)
    before = stored(app, image.id)
    for ctx, change in [
        (ALICE, Change("add", "x_billing", "0")), (ALICE, Change("add", "x_billing_new", "0")),
        (ALICE, Change("replace", "x_once", "2")), (ALICE, Change("add", "x_once", "2")), (ALICE, Change("remove", "x_once")),
        (ADMIN, Change("remove", "x_billing")), (ADMIN, Change("add", "x_unknown", "1")),
    ]:  # fmt: skip
        with pytest.raises(errors.Forbidden):
            lifecycle.update(svc, ctx, image.id, [Change("replace", "name", "new"), change])
    for name in ("x_billing", "x_unknown"):
        with pytest.raises(errors.Forbidden):
            lifecycle.create(svc, ALICE, NewImage(properties={name: "1"}))
    assert stored(app, image.id) == before
    assert lifecycle.show(svc, ADMIN, image.id).name is None
    lifecycle.update(svc, BILLING, image.id, [Change("replace", "x_billing", "43"), Change("remove", "x_billing")])
    assert "x_billing" not in stored(app, image.id)


def told(act: Callable[[], Any]) -> tuple[str, str]:
    try:
        found = act()
    except errors.CalotypeError as exc:
        return type(exc).__name__, str(exc)
    return "", str(sorted(found.properties))


@pytest.mark.parametrize("name", HIDDEN)
@pytest.mark.parametrize("op", ["replace", "remove", "add", "strict add"])
def test_no_answer_tells_whether_there_is_a_property_that_may_not_be_read(app: App, name: str, op: str) -> None:
    there, bare = full(app), lifecycle.create(app.service, ALICE, NewImage(properties={"x_once": "1", "free": "f"}))
    change = Change(op.split()[-1], name, "v", strict_add=op.startswith("strict"))
    with_it, without = (
        told(lambda image=image: lifecycle.update(app.service, ALICE, image.id, [change])) for image in (there, bare)
    )
    assert with_it == without
    # Written blindly it is written, where both rights are there; what was there is not gone otherwise.
    assert stored(app, there.id)[name] == ("v" if (name, change.op) == ("x_note", "add") else HIDDEN[name])


def test_filters_tell_nothing_of_what_may_not_be_read(app: App) -> None:
    image = full(app)

    def found(ctx: Context, **properties: str) -> list[str]:
        return [one.id for one in lifecycle.list_(app.service, ctx, Query(limit=5, properties=properties))[0]]

    assert found(ADMIN, x_billing="42") == found(ALICE, x_once="1") == found(ALICE, free="f", x_once="1") == [image.id]
    assert found(ALICE, x_billing="42") == found(ALICE, x_billing="0") == found(ALICE, x_billing="42", free="f") == []


# --- a running service -----------------------------------------------------------------------------------


def test_the_file_is_read_again_at_sighup_and_a_broken_one_changes_nothing(state: Path) -> None:
    state.mkdir(parents=True)
    file = state / "p.conf"
    file.write_text(section(".*", "@"))

    def hang_up() -> None:
        before = service.log.count("were looked at again")
        assert service.process
        os.kill(service.process.pid, signal.SIGHUP)
        until(lambda: service.log.count("were looked at again") >= before + 2)  # the master and its worker

    with running(state, f"[DEFAULT]\nproperty_protection_file = {file}\n") as service:
        alice, admin = service.client(), service.client("admin")
        image_id = alice.queued(colour="blue", visibility="private")
        assert alice.show(image_id)["colour"] == "blue"
        file.write_text(section("colour", "admin") + "\n" + section(".*", "@"))
        hang_up()
        file.write_text(section("colour", "@,!"))
        hang_up()
        assert "the property protections in force stay" in service.log
        assert "colour" not in alice.show(image_id)
        assert "colour" not in alice.get("/v2/images").text
        assert admin.show(image_id)["colour"] == "blue"
        for path in ("/v2/images?colour=blue", "/v2/images?colour=red"):
            assert alice.get(path).json()["images"] == []
        assert alice.patch(image_id, {"op": "replace", "path": "/colour", "value": "red"}).status_code == 409
        assert alice.patch(image_id, {"op": "add", "path": "/colour", "value": "red"}).status_code == 403
        assert alice.create(colour="red").status_code == 403
        file.write_text(section(".*", "@"))  # sound for the stop
