"""Schemathesis over the description of the API; the long form is `make schema`."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from calotype.api.openapi import document, statuses
from calotype.api.operations import CHAPTERS
from calotype.api.routes import ROUTES
from calotype.api.schemas import Schemas
from tests.conftest import CONF
from tests.schema.runs import run
from tests.support import Service, running

DOCUMENT = document(Schemas(["raw"], ["bare"]))


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service whose database makes no difference, with formats of its own."""
    state = tmp_path_factory.mktemp("described")
    with running(state, CONF.format(state=state) + "[image_format]\ndisk_formats = raw,qcow2,punched\n") as started:
        yield started


@pytest.mark.parametrize(
    ("persona", "phase", "links"),
    # Who may make namespaces gets on to what is in them; a reader makes nothing that could be followed.
    [
        ("admin", "coverage", 0),
        ("admin", "stateful", 4),
        ("alice", "stateful", 2),
        ("reader", "fuzzing", 0),
    ],
)
@pytest.mark.slow
def test_whatever_is_sent_the_answer_is_as_described(
    described: Service, tmp_path: Path, persona: str, phase: str, links: int
) -> None:
    found = run(described, persona, tmp_path, examples=1, seed=1, phase=phase)
    assert found.code == 0, found.said
    assert found.count(r"Operations: +(\d+) selected") == len(ROUTES), found.said
    assert found.count(r"API Links: +(\d+) covered") >= links, found.said


def test_a_service_describes_its_own_configuration(described: Service) -> None:
    for user in ("alice", None):
        found = described.client(user).get("/openapi.json")
        assert (found.status_code, found.headers["Content-Type"]) == (200, "application/json")
        formats = found.json()["components"]["schemas"]["NewImage"]["properties"]["disk_format"]["enum"]
        assert formats == [None, "raw", "qcow2", "punched"]


def test_the_description_is_one_of_openapi_3_1() -> None:
    OpenAPIV31SpecValidator(DOCUMENT).validate()


def test_each_handler_is_described_and_nothing_else_is() -> None:
    described = [handler for some in CHAPTERS.values() for handler in some]
    assert len(set(described)) == len(described)
    assert set(described) == {route.handler for route in ROUTES}


def test_no_route_may_fail_of_itself_and_each_refuses_who_is_not_known() -> None:
    """What is declared is what is allowed: 500 is for stores that fail, and nobody may leave 401 out."""
    for route in ROUTES:
        declared = set(statuses(route))
        assert (401 in declared) is not route.open
        if 500 in declared:
            assert any(word in route.path for word in ("/file", "/locations", "{store_id}")) or route.method == "DELETE"


def test_each_link_leads_to_an_operation_whose_path_has_its_variables() -> None:
    by_id = {
        operation["operationId"]: {one["name"] for one in operation["parameters"] if one["in"] == "path"}
        for methods in DOCUMENT["paths"].values()
        for operation in methods.values()
    }
    links = [
        link
        for methods in DOCUMENT["paths"].values()
        for operation in methods.values()
        for answer in operation["responses"].values()
        for link in answer.get("links", {}).values()
    ]
    assert len(links) > 50
    for link in links:
        assert set(link["parameters"]) <= by_id[link["operationId"]], link
