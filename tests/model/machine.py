"""A state machine that makes random calls of the API, in this process, and compares with the reference model."""

import base64
import json
import uuid
from pathlib import Path

import falcon.testing
import hypothesis
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from calotype.app import App
from tests.inprocess import parts
from tests.model.reference import Answer, Call, World, told
from tests.support import OCTETS, PASSWORD, PATCH_21, write_users

LENGTH = 50  #: steps from an empty service to the comparison of everything
PEOPLE = ("alice", "bob", "carol", "reader", "admin")

users = st.sampled_from(PEOPLE)
owners = st.sampled_from(("alice", "alice", "admin", "bob", "carol", "reader"))
projects = st.sampled_from(("blue", "green", "red"))
visibilities = st.sampled_from(("private", "shared", "shared", "community", "public"))
words = st.sampled_from(("a", "b", "c"))
places = st.integers(0, 3)
patches = st.one_of(
    st.builds(lambda value: {"op": "replace", "path": "/name", "value": value}, words),
    st.builds(lambda value: {"op": "replace", "path": "/visibility", "value": value}, visibilities),
    st.builds(
        lambda name, value: {"op": "replace", "path": f"/{name}", "value": value},
        st.sampled_from(("protected", "os_hidden")),
        st.booleans(),
    ),
    st.builds(
        lambda op, name, value: {"op": op, "path": f"/{name}"} | ({} if op == "remove" else {"value": value}),
        st.sampled_from(("add", "add", "replace", "remove")),
        st.sampled_from(("p", "q", "r")),
        words,
    ),
)
queries = st.lists(
    st.one_of(
        st.builds("visibility={}".format, st.sampled_from(("private", "shared", "community", "public", "all"))),
        st.builds("member_status={}".format, st.sampled_from(("pending", "accepted", "rejected", "all"))),
        st.sampled_from(("os_hidden=true", "os_hidden=false", "status=active", "status=queued", "p=a", "tag=a")),
    ),
    max_size=3,
    unique_by=lambda part: part.partition("=")[0],
).map("&".join)
calls = st.one_of(
    st.tuples(st.just("upload"), st.sampled_from((b"", b"one", b"another"))),
    st.tuples(st.just("patch"), patches),
    st.tuples(st.sampled_from(("tag", "untag")), words),
    st.tuples(st.sampled_from(("share", "share", "unshare")), projects),
    st.tuples(st.just("answer"), st.tuples(projects, st.sampled_from(("pending", "accepted", "rejected")))),
    st.tuples(st.sampled_from(("download", "show", "deactivate", "reactivate", "delete")), st.none()),
)


class Http:
    """The WSGI application of a service in this process, asked as one of the tests' users."""

    def __init__(self, app: App) -> None:
        self._client = falcon.testing.TestClient(app.wsgi)
        self.steps = 0

    def send(self, call: Call) -> Answer:
        self.steps += 1
        method, path, body = call.request()
        headers = {"Authorization": "Basic " + base64.b64encode(f"{call.user}:{PASSWORD}".encode()).decode()}
        headers |= OCTETS if isinstance(body, bytes) else PATCH_21 if method == "PATCH" else {}
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        path, _, query = path.partition("?")
        answer = self._client.simulate_request(method, path, query_string=query, headers=headers, body=data)
        is_json = answer.headers.get("content-type", "").startswith("application/json")
        return told(call, answer.status_code, answer.content, answer.json if is_json else None)


def machine(http: Http) -> type[RuleBasedStateMachine]:
    class Walk(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.world = World()
            self.ids: list[str] = []

        def compare(self, call: Call) -> Answer:
            expected, answer = self.world.once(call), http.send(call)
            assert answer == expected, f"{call}: {answer}, and the model says {expected}"
            return answer

        @rule(user=owners, visibility=visibilities, hidden=st.booleans())
        def create(self, user: str, visibility: str, hidden: bool, **more: None) -> None:
            image_id, values = str(uuid.uuid4()), {"visibility": visibility, "os_hidden": hidden, **more}
            if self.compare(Call(user, "create", image_id, values))[0] == 201:
                self.ids.append(image_id)

        @rule(user=st.sampled_from(("admin", "admin", "alice")), visibility=visibilities)
        def create_of_nobody(self, user: str, visibility: str) -> None:
            self.create(user, visibility, False, owner=None)

        @rule(user=owners, place=places)
        def create_again(self, user: str, place: int) -> None:
            if self.ids:
                self.compare(Call(user, "create", self.ids[-1 - place % len(self.ids)], {"visibility": "shared"}))

        # Three times, as most calls should be of this kind.
        def call(self, user: str, place: int, call: tuple[str, object]) -> None:
            if not self.ids:
                self.create("alice", "shared", False)
            self.compare(Call(user, call[0], self.ids[-1 - place % len(self.ids)], call[1]))

        call_by_owner = rule(user=owners, place=places, call=calls)(call)
        call_by_anyone = rule(user=users, place=places, call=calls)(call)
        call_by_admin_or_owner = rule(user=st.sampled_from(("alice", "admin")), place=places, call=calls)(call)

        @rule(user=users, query=queries)
        def list_(self, user: str, query: str) -> None:
            self.compare(Call(user, "list", "", query))

        def teardown(self) -> None:
            """Everybody's lists are what everybody can get; then all goes, for the next walk."""
            for user in PEOPLE:
                every = "visibility=all&member_status=all&os_hidden="
                listed = [self.compare(Call(user, "list", "", every + hidden))[1] for hidden in ("true", "false")]
                gettable = {key for key in self.ids if self.compare(Call(user, "show", key))[0] == 200}
                assert listed[0] | listed[1] == gettable
            for image_id in list(self.world.images):
                http.send(Call("admin", "patch", image_id, {"op": "replace", "path": "/protected", "value": False}))
                http.send(Call("admin", "delete", image_id))

    return Walk


def walk(path: Path, database_url: str, *, steps: int, seed: int) -> int:
    """Make at least so many calls, and return how many; `AssertionError` with the shortest walk that differs."""
    write_users(path / "users.json")
    with parts(path, database_url) as app:
        http = Http(app)
        settings = hypothesis.settings(
            max_examples=-(-steps // LENGTH),
            stateful_step_count=LENGTH,
            deadline=None,
            database=None,
            phases=(hypothesis.Phase.generate, hypothesis.Phase.shrink),
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        walks = 0
        while http.steps < steps:
            run_state_machine_as_test(hypothesis.seed(seed + walks)(machine(http)), settings=settings)
            walks += 1
        return http.steps
