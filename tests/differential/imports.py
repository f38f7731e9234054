"""What is asked of both services about imports: staged data, each method and what is refused, and their tasks.

As in `script.py`, from which these sections are run. An import goes on after its answer: `imported` waits for its end.
"""

from collections.abc import Callable
from typing import Any

from tests.differential.asking import PERSONAS, Ask
from tests.differential.script import DATA, OCTETS, QCOW2, create, image, patch, path, replace

COPY = {"method": {"name": "copy-image"}}
DIRECT = {"method": {"name": "glance-direct"}}


def web(ask: Ask, where: str = "/disk", **more: Any) -> dict[str, Any]:
    return {"method": {"name": "web-download", "uri": ask.web + where}, **more}


def region(ask: Ask, number: int, **more: Any) -> dict[str, Any]:
    """An image of Glance's own, by its entry in the catalog."""
    method = {"name": "glance-download", "glance_region": "RegionOne", "glance_image_id": image(number)}
    return {"method": method | more}


def post(ask: Ask, who: str | None, number: int, body: Any, **headers: str) -> None:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    ask(who, "POST", path(number, "/import"), json=body, headers=named)


def stage(ask: Ask, who: str | None, number: int, data: bytes | list[bytes] = DATA, **headers: str) -> None:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    ask(who, "PUT", path(number, "/stage"), data=data, headers=OCTETS | named)


def imported(ask: Ask, number: int, *, of: str = "alice") -> None:
    """Wait for the end of an import; then the image, its data and its tasks are as they are."""
    ask.until(path(number), lambda found: "os_glance_import_task" not in found)
    ask(of, "GET", path(number))
    ask(of, "GET", path(number, "/file"))
    ask(of, "GET", path(number, "/tasks"))


def staging(ask: Ask) -> None:
    for number, who in enumerate(PERSONAS, 0xD00):
        create(ask, "alice", number)
        stage(ask, who, number)
        ask("alice", "GET", path(number))
    create(ask, "alice", 0xD10, name="staged", disk_format=None, container_format=None)
    stage(ask, "alice", 0xD10, [DATA[:5000], DATA[5000:]])
    ask("alice", "GET", path(0xD10))
    ask("alice", "GET", path(0xD10, "/file"))
    stage(ask, "alice", 0xD10)
    ask("alice", "PUT", path(0xD10, "/file"), data=DATA, headers=OCTETS)
    patch(ask, "alice", 0xD10, replace("/disk_format", "raw"), replace("/container_format", "bare"))
    ask("alice", "DELETE", path(0xD10))
    create(ask, "alice", 0xD11)
    stage(ask, "alice", 0xD11, b"")
    ask("alice", "GET", path(0xD11))
    create(ask, "alice", 0xD12)
    for media in ("application/json", "text/plain", ""):
        ask("alice", "PUT", path(0xD12, "/stage"), data=DATA, headers={"Content-Type": media})
    for value in ("1", "x", "-1"):
        stage(ask, "alice", 0xD12, x_openstack_image_size=value)
        ask("alice", "GET", path(0xD12))
    create(ask, "alice", 0xD13, DATA)
    stage(ask, "alice", 0xD13)
    stage(ask, "alice", 0xDEAD)
    ask("alice", "PUT", "/v2/images/no-uuid/stage", data=DATA, headers=OCTETS)
    for method in ("GET", "HEAD", "POST", "DELETE", "PATCH"):
        ask("alice", method, path(0xD12, "/stage"))


def bodies(ask: Ask) -> tuple[Any, ...]:
    """Bodies of an import of a queued image that are refused, or look odd."""
    return (
        {}, [], None, 1, "x",
        {"method": None}, {"method": "web-download"}, {"method": []}, {"method": {}}, {"method": {"name": None}},
        {"method": {"name": 1}}, {"method": {"name": "nothing"}}, {"method": {"name": "Web-Download"}},
        {"method": {"name": "web-download"}}, {"method": {"name": "web-download", "uri": None}},
        {"method": {"name": "web-download", "uri": 1}}, {"method": {"name": "web-download", "uri": ""}},
        {"method": {"name": "web-download", "uri": "disk"}}, {"method": {"name": "web-download", "uri": "file:///etc/passwd"}},
        {"method": {"name": "web-download", "uri": "ftp://127.0.0.3/x"}},
        {"method": {"name": "web-download", "uri": "http://127.0.0.2/x"}},
        {"method": {"name": "web-download", "uri": "http://[::1]/x"}},
        {"method": {"name": "web-download", "uri": "http://2130706435/x"}},
        {"method": {"name": "web-download", "uri": "http://"}},
        {"method": {"name": "web-download", "uri": "http://169.254.169.254/x"}},
        web(ask, stores=["nothing"]), web(ask, stores=["fast", "nothing"]), web(ask, stores="fast"),
        web(ask, stores=[1]), web(ask, stores=None), web(ask, stores=["os_glance_staging_store"]),
        web(ask, all_stores=1), web(ask, all_stores="true"), web(ask, all_stores=None),
        web(ask, all_stores_must_succeed="no"), web(ask, all_stores_must_succeed=None), web(ask, all_stores_must_succeed=0),
        web(ask, all_stores=True, stores=["fast"]), web(ask, all_stores=True, stores=[]),
        DIRECT, COPY,
        region(ask, 0xE10, glance_image_id="x"), region(ask, 0xE10, glance_image_id=1), region(ask, 0xE10, glance_region=1),
        {"method": {"name": "glance-download"}}, {"method": {"name": "glance-download", "glance_region": "RegionOne"}},
        {"method": {"name": "glance-download", "glance_image_id": image(0xE10)}},
    )  # fmt: skip


def import_refusals(ask: Ask) -> None:
    number = 0x4000
    for body in bodies(ask):
        number += 1
        create(ask, "alice", number)
        post(ask, "alice", number, body)
        ask.until(path(number), lambda found: "os_glance_import_task" not in found)
        ask("alice", "GET", path(number))
        ask("admin", "DELETE", path(number))
    create(ask, "alice", 0x40F0)
    for data in (b"", b"x", b"\xff"):
        ask("alice", "POST", path(0x40F0, "/import"), data=data)
    for media in ("text/plain", ""):
        ask("alice", "POST", path(0x40F0, "/import"), data=b'{"method": {}}', headers={"Content-Type": media})
    for store in ("nothing", "", "os_glance_tasks_store"):
        post(ask, "alice", 0x40F0, {"method": {"name": "nothing"}}, x_image_meta_store=store)
    post(ask, "alice", 0x40F0, web(ask, stores=[]))  # Glance never drops its lock
    create(ask, "alice", 0x40F1)
    post(ask, "alice", 0x40F1, web(ask), x_image_meta_store="nothing")
    post(ask, "alice", 0x40F1, web(ask, all_stores=True), x_image_meta_store="fast")
    post(ask, "alice", 0x40F1, web(ask, stores=["fast"]), x_image_meta_store="cheap")
    for method in ("GET", "HEAD", "PUT", "DELETE", "PATCH"):
        ask("alice", method, path(0x40F1, "/import"))
    post(ask, "alice", 0xDEAD, web(ask))
    ask("alice", "POST", "/v2/images/no-uuid/import", json=web(ask))


def import_callers(ask: Ask) -> None:
    """Who may import, and into which images."""
    for number, who in enumerate(PERSONAS, 0x4100):
        create(ask, "alice", number)
        post(ask, who, number, web(ask))
        imported(ask, number)
    for number, who in enumerate(PERSONAS, 0x4110):
        create(ask, "alice", number, DATA)
        post(ask, who, number, COPY | {"stores": ["cheap"]})
        imported(ask, number)
    for number, visibility in enumerate(("private", "shared", "community", "public"), 0x4120):
        create(ask, "admin", number, owner=ask.project("alice"), visibility=visibility)
        post(ask, "bob", number, web(ask))
    methods: tuple[Any, ...] = (DIRECT, web(ask), region(ask, 0x4110), COPY)
    for number, values in enumerate(({"disk_format": None}, {"container_format": None}), 0x4130):
        create(ask, "alice", number, **values)
        for body in methods:
            if body is not methods[2]:
                post(ask, "alice", number, body)
    create(ask, "alice", 0x4140, DATA)
    create(ask, "alice", 0x4141)
    stage(ask, "alice", 0x4141)
    create(ask, "alice", 0x4142, DATA)
    ask("admin", "POST", path(0x4142, "/actions/deactivate"))
    for number in (0x4140, 0x4141, 0x4142):
        for body in (
            (DIRECT, web(ask), region(ask, 0x4110)) if number != 0x4141 else (web(ask), region(ask, 0x4110), COPY)
        ):
            post(ask, "alice", number, body)
    for body in (COPY, COPY | {"all_stores": True}):
        post(ask, "admin", 0x4142, body)


def imports(ask: Ask) -> None:
    """What each method makes of an image, by the options for stores."""
    options: tuple[dict[str, Any], ...] = (
        {}, {"stores": ["cheap"]}, {"stores": ["cheap", "fast"]}, {"all_stores": True},
        {"all_stores": True, "all_stores_must_succeed": False}, {"stores": ["fast"], "unknown": 1},
    )  # fmt: skip
    for number, values in enumerate(options, 0x5000):
        create(ask, "alice", number, name=str(values))
        post(ask, "alice", number, web(ask, **values))
        imported(ask, number)
    for number, values in enumerate(options[:5], 0x5010):
        create(ask, "alice", number)
        stage(ask, "alice", number)
        post(ask, "alice", number, DIRECT | values)
        imported(ask, number)
        post(ask, "alice", number, DIRECT | values)
    for number, values in enumerate(options[:5], 0x5020):
        create(ask, "alice", number, DATA)
        post(ask, "admin", number, COPY | values)
        imported(ask, number)
        post(ask, "admin", number, COPY | values)
        post(ask, "admin", number, COPY | {"stores": ["nothing"]})
        post(ask, "admin", number, COPY | {"all_stores": True, "stores": ["fast"]})
        ask.until(path(number), lambda found: "os_glance_import_task" not in found)
        ask("alice", "GET", path(number))
    create(ask, "alice", 0x5030)
    post(ask, "alice", 0x5030, web(ask), x_image_meta_store="cheap")
    imported(ask, 0x5030)
    create(ask, "alice", 0x5031, disk_format="qcow2")
    post(ask, "alice", 0x5031, web(ask, "/qcow2"))
    imported(ask, 0x5031)
    create(ask, "alice", 0x5032, disk_format="qcow2")
    post(ask, "alice", 0x5032, web(ask))
    imported(ask, 0x5032)
    post(ask, "alice", 0x5032, web(ask, "/qcow2"))
    imported(ask, 0x5032)
    create(ask, "alice", 0x5033)
    post(ask, "alice", 0x5033, web(ask, "/nothing"))
    imported(ask, 0x5033)
    create(ask, "alice", 0x5034)
    post(ask, "alice", 0x5034, web(ask, "/empty"))
    imported(ask, 0x5034)
    create(ask, "alice", 0x5035, disk_format="qcow2")
    stage(ask, "alice", 0x5035, QCOW2)
    post(ask, "alice", 0x5035, DIRECT)
    imported(ask, 0x5035)
    create(ask, "alice", 0x5036)
    stage(ask, "alice", 0x5036, QCOW2)
    post(ask, "alice", 0x5036, DIRECT)
    imported(ask, 0x5036)
    create(ask, "alice", 0x5037)
    post(ask, "alice", 0x5037, {"method": {"name": "web-download", "uri": f"{ask.web}/disk?key=secret"}})
    imported(ask, 0x5037)


def downloads_from_regions(ask: Ask) -> None:
    """The image there is one of Glance's; alice makes it with the others."""
    create(
        ask,
        "alice",
        0x6000,
        QCOW2,
        disk_format="qcow2",
        os_distro="debian",
        hw_disk_bus="scsi",
        own="x",
        tags=["a"],
        min_ram=5,
    )
    create(ask, "alice", 0x6001)
    create(ask, "bob", 0x6002, DATA, visibility="private")
    for number, (source, more) in enumerate(
        (
            (0x6000, {}), (0x6000, {"glance_service_interface": "internal"}), (0x6000, {"glance_region": "regionone"}),
            (0x6001, {}), (0x6002, {}), (0xDEAD, {}), (0x6000, {"glance_region": "nothing"}),
            (0x6000, {"glance_service_interface": "nothing"}),
        ), 0x6010,
    ):  # fmt: skip
        create(ask, "alice", number, os_distro="old", disk_format="iso", container_format="ovf")
        post(ask, "alice", number, region(ask, source, **more))
        imported(ask, number)


def import_tasks(ask: Ask) -> None:
    """Tasks of type import, which are for administrators; and the lists of tasks, now that there are some."""
    given = {"import_from": ask.web + "/disk", "import_from_format": "raw"}
    plain = {"disk_format": "raw", "container_format": "bare", "name": "by a task"}
    inputs: tuple[Any, ...] = (
        given | {"image_properties": plain},
        given | {"image_properties": plain, "import_from": ask.web + "/qcow2", "import_from_format": "qcow2"},
        given | {"image_properties": plain | {"disk_format": "qcow2"}, "import_from": ask.web + "/qcow2"},
        given,
        given | {"image_properties": plain, "import_from": ask.web + "/nothing"},
    )  # fmt: skip
    for number, value in enumerate(inputs):
        ask("admin", "POST", "/v2/tasks", json={"type": "import", "input": value}, keep=f"task{number}")
        ask.until(f"/v2/tasks/{{task{number}}}", lambda found: found["status"] in ("success", "failure"))
        for who in ("admin", "alice", "service", "reader"):
            ask(who, "GET", f"/v2/tasks/{{task{number}}}")
    ask("admin", "GET", "/v2/images?name=by+a+task")
    for who in PERSONAS:
        ask(who, "GET", "/v2/tasks?type=import")
    for query in ("type=api_image_import", "type=import&status=processing", "type=import&limit=1"):
        ask("admin", "GET", f"/v2/tasks?{query}")
    for value in (
        None,
        "x",
        1,
        {},
        given | {"image_properties": None},
        {"import_from_format": "raw", "image_properties": plain},
    ):
        ask("admin", "POST", "/v2/tasks", json={"type": "import", "input": value})
    create(ask, "alice", 0x7000)
    post(ask, "alice", 0x7000, web(ask))
    imported(ask, 0x7000)
    for who in PERSONAS:
        ask(who, "GET", path(0x7000, "/tasks"))


SECTIONS: tuple[Callable[[Ask], None], ...] = (
    staging, import_refusals, import_callers, imports, downloads_from_regions, import_tasks,
)  # fmt: skip
