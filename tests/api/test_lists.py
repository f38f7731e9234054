"""`GET /v2/images`: visibility, filters, order and pages. A project of its own keeps other tests' images out."""

import uuid
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from calotype.api import listing
from calotype.db import tables
from calotype.db.engine import Database, now
from tests.support import Client, Service, write_users

NAMES = ["delta", "alpha", "", "charlie", "bravo", "bravo"]


@pytest.fixture(scope="module")
def owner(service: Service) -> Iterator[Client]:
    from tests.support import USERS

    write_users(service.state / "users.json", {**USERS, "liz": ("lists", ("member",))})
    yield service.client("liz")
    write_users(service.state / "users.json")


@pytest.fixture(scope="module")
def images(service: Service, owner: Client) -> list[dict[str, Any]]:
    """Six images with differing names, sizes, tags and properties, in the order of their creation."""
    ids = []
    for number, name in enumerate(NAMES):
        values: dict[str, Any] = {"min_ram": number, "tags": ["all", f"t{number % 2}"], "number": str(number)}
        if name:
            values["name"] = name
        if number % 3 == 0:
            ids.append(owner.queued(**values))
        else:
            ids.append(owner.active(b"x" * (10 - number), **values))
    # A second apart, whatever the database makes of fractions of one.
    database, begin = Database(service.database_url), now() - timedelta(hours=1)
    with database.write_once() as tx:
        for place, image_id in enumerate(ids):
            when = begin + timedelta(seconds=place)
            which = tables.images.c.id == image_id
            tx.execute(sa.update(tables.images).where(which).values(created_at=when, updated_at=when))
    database.close()
    return [owner.show(image_id) for image_id in ids]


def ids(client: Client, query: str = "") -> list[str]:
    answer = client.get(f"/v2/images?{query}")
    assert answer.status_code == 200, answer.text
    return [image["id"] for image in answer.json()["images"]]


def places(client: Client, images: list[dict[str, Any]], query: str) -> list[int]:
    """Which of the images a list shows, as their places in `images`, in the list's order."""
    known = [image["id"] for image in images]
    return [known.index(image_id) for image_id in ids(client, "owner=lists&" + query) if image_id in known]


def test_the_newest_comes_first(owner: Client, images: list[dict[str, Any]]) -> None:
    assert places(owner, images, "") == [5, 4, 3, 2, 1, 0]
    listed = owner.get("/v2/images?owner=lists").json()
    assert listed["images"] == images[::-1]
    assert listed["first"] == "/v2/images?owner=lists"
    assert listed["schema"] == "/v2/schemas/images"
    assert "next" not in listed


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("name=bravo", [5, 4]), ("name=in:alpha,charlie", [3, 1]), ('name=in:"alpha","x,y"', [1]), ("status=active", [5, 4, 2, 1]),
        ("status=in:queued,saving", [3, 0]), ("size=9", [1]), ("size_min=6&size_max=8", [4, 2]), ("size_min=9", [1]),
        ("min_ram_min=4", [5, 4]), ("min_ram=3", [3]), ("tag=t1", [5, 3, 1]), ("tag=t1&tag=all", [5, 3, 1]),
        ("tag=t1&tag=t0", []), ("number=2", [2]), ("number=2&name=x", []), ("nonsense=1", []), ("visibility=shared", [5, 4, 3, 2, 1, 0]),
        ("visibility=private", []), ("visibility=all", [5, 4, 3, 2, 1, 0]), ("protected=true", []), ("protected=false", [5, 4, 3, 2, 1, 0]),
        ("os_hidden=TRUE", []), ("disk_format=raw", [5, 4, 3, 2, 1, 0]), ("disk_format=in:qcow2,iso", []), ("container_format=bare&name=delta", [0]),
        ("created_at=gt:2001-01-01T00:00:00Z", [5, 4, 3, 2, 1, 0]), ("created_at=lt:2001-01-01T00:00:00", []),
        ("updated_at=gte:2001-01-01T00:00:00%2B02:00", [5, 4, 3, 2, 1, 0]), ("created_at=2001-01-01T00:00:00Z", []),
        ("created_at=neq:2001-01-01", [5, 4, 3, 2, 1, 0]), ("limit=0", []), ("limit=2", [5, 4]), ("deleted=true", [5, 4, 3, 2, 1, 0]),
        ("sort=name", [0, 3, 5, 4, 1, 2]), ("sort=name:asc", [2, 1, 4, 5, 3, 0]), ("sort=name:asc,created_at:desc", [2, 1, 5, 4, 3, 0]),
        ("sort_key=name&sort_dir=asc", [2, 1, 4, 5, 3, 0]), ("sort_key=name&sort_key=id&sort_dir=asc&sort_dir=asc&limit=1", [2]),
        ("sort_key=size&sort_dir=asc", [0, 3, 5, 4, 2, 1]), ("sort_key=status&sort_key=created_at&sort_dir=asc", [1, 2, 4, 5, 0, 3]),
        ("sort_dir=asc", [0, 1, 2, 3, 4, 5]), ("sort=updated_at:asc,id:asc", [0, 1, 2, 3, 4, 5]),
    ],
)  # fmt: skip
def test_filters_and_orders(owner: Client, images: list[dict[str, Any]], query: str, expected: list[int]) -> None:
    assert places(owner, images, query) == expected


def test_digests_and_ids_are_filters_too(owner: Client, images: list[dict[str, Any]]) -> None:
    one = images[1]
    for name in ("id", "checksum", "os_hash_value"):
        assert places(owner, images, f"{name}={one[name]}") == [1]
    assert places(owner, images, f"id=in:{images[1]['id']},{images[4]['id']}") == [4, 1]


def test_a_name_with_a_colon_is_found_in_quotes(owner: Client) -> None:
    image_id = owner.queued(name='a:"b",c')
    assert ids(owner, 'name=in:"a:\\"b\\",c"') == [image_id]
    assert owner.get("/v2/images?name=a:b").status_code == 400
    owner.delete(image_id)


@pytest.mark.parametrize(
    "query",
    [
        "limit=-1", "limit=x", "limit=", "limit=9" * 30, "marker=nope", f"marker={uuid.uuid4()}", "sort=nope", "sort=name:up",
        "sort_key=nope", "sort_dir=up", "sort=name&sort_key=name", "sort_key=name&sort_dir=asc&sort_dir=asc", "visibility=x",
        "member_status=x", "os_hidden=x", "protected=True", "size_min=x", "size=x", "created_at=x", "created_at=xx:2001-01-01",
        "changes-since=2001-01-01", 'name=in:"a', "name=x:y", "name=%F0%9F%98%80", "name=%ff", "name=%00",
        "&".join(f"a{n}=1" for n in range(300)),
    ],
)  # fmt: skip
@pytest.mark.any_database
def test_what_is_wrong_with_a_query_is_said(owner: Client, query: str) -> None:
    assert owner.get(f"/v2/images?{query}").status_code == 400


@pytest.mark.parametrize("query", ["foo_min=1", "members=x", "properties=x", "locations=x", "tags=x", "is_public=x"])
def test_unknown_filters_are_properties_and_never_a_failure(owner: Client, query: str) -> None:
    assert ids(owner, query) == []


@pytest.mark.parametrize(
    "sort", ["", "sort=name:asc", "sort=name:desc,size:asc", "sort_key=size", "sort=container_format"]
)
@pytest.mark.parametrize("limit", [1, 2, 5, 6])
def test_pages_follow_each_other_without_gap_or_repetition(
    owner: Client, images: list[dict[str, Any]], sort: str, limit: int
) -> None:
    known = [image["id"] for image in images]
    whole = ids(owner, f"owner=lists&tag=all&tag=all&{sort}")
    path, found = f"/v2/images?owner=lists&limit={limit}&tag=all&{sort}", []
    for _ in range(len(known) + 1):
        page = owner.get(path).json()
        assert len(page["images"]) <= limit
        found += [image["id"] for image in page["images"]]
        if "next" not in page:
            break
        assert f"limit={limit}" in page["next"]
        path = page["next"]
    assert found == whole
    assert sorted(found) == sorted(known)


def test_next_keeps_every_parameter(owner: Client, images: list[dict[str, Any]]) -> None:
    page = owner.get("/v2/images?tag=all&tag=all&tag=t1&limit=1&name=in:bravo,charlie,alpha").json()
    assert page["next"].count("tag=") == 3
    assert "name=in:bravo,charlie,alpha" in page["next"]


# --- who sees what ---------------------------------------------------------------------------------------


def test_lists_show_what_the_rules_of_visibility_say(
    owner: Client, bob: Client, service: Service, admin: Client
) -> None:
    carol = service.client("carol")
    made = {
        visibility: (admin if visibility == "public" else owner).create(
            visibility=visibility, name=f"see-{visibility}", **({"owner": "lists"} if visibility == "public" else {})
        ).json()["id"]
        for visibility in ("public", "private", "shared", "community")
    }  # fmt: skip
    hidden = owner.create(os_hidden=True, name="see-hidden").json()["id"]
    admin.patch(made["public"], {"op": "replace", "path": "/os_hidden", "value": False})
    assert owner.request("POST", f"/v2/images/{made['shared']}/members", json={"member": "blue"}).status_code == 200

    def seen(client: Client, query: str = "") -> set[str]:
        listed = client.get(f"/v2/images?limit=1000&{query}").json()["images"]
        return {image["name"][4:] for image in listed if (image["name"] or "").startswith("see-")}

    assert seen(owner) == {"public", "private", "shared", "community"}
    assert seen(owner, "os_hidden=true") == {"hidden"}
    assert seen(bob) == {"public"}
    assert seen(bob, "member_status=pending") == {"public", "shared"}
    assert seen(bob, "member_status=all") == {"public", "shared"}
    assert seen(bob, "member_status=rejected") == {"public"}
    assert seen(bob, "visibility=shared&member_status=all") == {"shared"}
    assert seen(bob, "visibility=community") == {"community"}
    assert seen(bob, "visibility=all") == {"public", "community"}
    assert seen(bob, "visibility=all&member_status=all") == {"public", "shared", "community"}
    assert seen(carol, "visibility=all&member_status=all") == {"public", "community"}
    assert seen(admin) == {"public", "private", "shared"}
    assert seen(admin, "visibility=all") == {"public", "private", "shared", "community"}
    assert seen(admin, "visibility=private") == {"private"}
    bob.request("PUT", f"/v2/images/{made['shared']}/members/blue", json={"status": "accepted"})
    assert seen(bob) == {"public", "shared"}

    # What a list shows in its widest form is what can be got, one by one (I4).
    for client in (owner, bob, carol, admin):
        listed = set()
        for flag in ("true", "false"):
            listed |= seen(client, f"visibility=all&member_status=all&os_hidden={flag}")
        names = {**made, "hidden": hidden}
        gettable = {name for name, image_id in names.items() if client.get(f"/v2/images/{image_id}").status_code == 200}
        assert listed == gettable
    for image_id in made.values():
        admin.delete(image_id)


def test_a_marker_that_cannot_be_seen_is_as_unknown_as_one_that_is_not_there(owner: Client, bob: Client) -> None:
    private = owner.queued(visibility="private")
    answers = {
        each: bob.get(f"/v2/images?marker={each}").text.replace(each, "ID") for each in (private, str(uuid.uuid4()))
    }
    assert len(set(answers.values())) == 1
    owner.delete(private)


def test_a_sort_key_that_comes_again_changes_nothing() -> None:
    found = listing.query({"sort": ["name:asc,size:asc,name:desc"]}, default_limit=25, most=100)
    assert found.sort == (("name", "asc"), ("size", "asc"))
