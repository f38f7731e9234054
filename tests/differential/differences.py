"""Which differences are declared. Each belongs to a line of `docs/api/differences.md`, named by its bold words."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.differential.answers import Difference

DOCUMENT = Path(__file__).parents[2] / "docs" / "api" / "differences.md"


@dataclass(frozen=True, slots=True)
class Declared:
    """A line, and what shows it: regular expressions. `request` is searched for, the others match as a whole."""

    line: str
    request: str
    fact: str
    glance: str = ".*"
    calotype: str = ".*"

    def covers(self, found: Difference) -> bool:
        return bool(
            re.search(self.request, found.request)
            and re.fullmatch(self.fact, found.fact)
            and re.fullmatch(self.glance, found.glance)
            and re.fullmatch(self.calotype, found.calotype)
        )


_IMAGE = r"/v2/images/[0-9a-f-]+"

DECLARED: tuple[Declared, ...] = (
    # Protocol
    Declared("Request id", "", "header X-Openstack-Request-Id", "-", "there"),
    Declared("Request id that is too long", r"X-Openstack-Request-ID: x\*65", "status", "200|500", "431"),
    Declared("JSON array as the body of a create", r"POST /v2/images \| \[1?\]$", "status", "500", "400"),
    Declared("JSON that is not strict", r'"name": "a", "name": "b"', "status", "201", "400"),
    Declared("JSON that is not strict", r'"op": "add", "op": "remove"', "status", "409", "400"),
    Declared("JSON that is not strict", "creation: admin DELETE .*20e1", "status", "204", "404"),
    Declared("Property values of more", r"POST /v2/images .* 6\d{4} bytes", "status", "500", "400"),
    Declared("Property values of more", r"PATCH .*/n\*256", "status", "500", "400"),
    Declared("Characters that cannot be stored", "name=%F0|name=%00|tags/%F0|tags/%00", "status", "20[04]", "400"),
    Declared("Characters that cannot be stored", r"metadef_.*(%F0|%00|\\ud83d|\\u0000)", "status", "20.|404", "400"),
    Declared("Characters that cannot be stored", f"tags: alice GET {_IMAGE}$", "body.tags"),
    Declared("Bytes in a path that are no UTF-8", "%ff", "status", "0", "404|400"),
    Declared("JSON that is not strict", 'metadef_bodies: admin POST .*N/tags .*, "name": "b"', "status", "201", "400"),
    Declared("JSON that is not strict", "metadef_bodies: admin GET .*/N$", "body.tags"),
    Declared("JSON bodies in chunks", "POST .* chunks$", "status", "400", "201"),
    Declared("JSON bodies in chunks", "creation: admin DELETE .*20e0", "status", "404", "204"),
    Declared("JSON bodies in chunks", "metadef_bodies: admin DELETE .*pieces", "status", "404", "204"),
    Declared("A body of a list", r"GET /v2/images \| \{\}", "status", "200", "400"),
    Declared("A body of a list", r"metadef_bodies: admin GET .* \| \{\}", "status", "200", "400"),
    Declared("Letter case of media types", "(PATCH|PUT) .*APPLICATION", "status", "415", "20[04]"),
    Declared("Versions document", "", "body.versions", ".*v2.8 v2.17 v2.7.*", "v2.17 v2.15.*"),
    *(
        Declared("Errors without `Accept`", r"errors_by_accept: .* \| Accept: (image/png)?$", *values)
        for values in (
            ("header Content-Type", "text/plain; .*", "text/html; .*"),
            ("body first line", ".*", "-"),
            ("body title", "-"),
        )
    ),
    Declared("204 answers", "", "header Content-Type", "text/html; charset=UTF-8", "-"),
    Declared("Other methods of `/healthcheck`", "(POST|PUT|DELETE) /healthcheck", "status", "200", "405"),
    Declared("`HEAD /healthcheck`", "HEAD /healthcheck", "status", "204", "200"),
    Declared("`/healthcheck`", "GET /healthcheck", "header Content-Type|body.*"),
    Declared("HEAD of data", "HEAD .*/file", "status", "405", "200|403|404"),
    Declared("HEAD of data", "unknown: .*/file", "header Allow", "GET, PUT", "GET, HEAD, PUT"),
    Declared("`OPTIONS`", "OPTIONS", "status", "200", "404|405"),
    # Images
    Declared("Letter case of ids", "ABCD00|abcd00", "body.(id|self|file)|header Location", ".*ABCD.*", ".*abcd.*"),
    Declared("An empty `owner`", 'admin POST .*"owner": ""', "body.owner", '""', "null"),
    Declared("Images without an owner", "creation: bob GET .*20f[01]-", "status", "200", "404"),
    Declared("`os_hash_algo` and `os_hash_value` in a create", 'POST .*"os_hash_', "status", "201", "403"),
    Declared(
        "`os_hash_algo` and `os_hash_value` in a create", "creation: .*(1049|104a|20f8|20f9)-", "status", "20.", "404"
    ),
    Declared("Reserved attributes of a wrong type", 'POST .*"deleted": true', "status", "400", "403"),
    Declared("Tags and members that are", r'creation: alice POST .*"tags": \[""\]', "status", "201", "400"),
    Declared("Tags and members that are", "creation: admin DELETE .*00001027-", "status", "204", "404"),
    Declared("Properties without a name", 'POST .*"": "empty name"', "status", "201", "400"),
    Declared("Properties without a name", "creation: admin DELETE .*1034-", "status", "204", "404"),
    Declared("Properties without a name", 'PATCH .*"path": "(/|//a)"', "status", "200", "400"),
    Declared("A patch whose `path` is no text", 'PATCH .*"path": 1', "status", "500", "400"),
    Declared(
        "A format that a patch replaces by itself", 'PATCH .*"/disk_format", "value": "raw"', "status", "403", "200"
    ),
    Declared("Limits in schemas", "GET /v2/schemas/", r"body\..*\.(minimum|maximum|maxLength)", "-"),
    Declared(
        "`locations` in a patch, and in records", "GET /v2/schemas/images?$", r"body\..*\.locations\..*", ".*", "-"
    ),
    Declared("`/stores` in a patch", 'PATCH .*"/stores"', "status", "200|409", "403"),
    Declared("`/image_id`, `/member`", 'PATCH .*"/(image_id|extra_properties)"', "status", "404|500", "200"),
    Declared("`/image_id`, `/member`", 'PATCH .*"/member"', "body.member", "-"),
    Declared(
        "`OpenStack-image-store-ids` of a create",
        "",
        "header OpenStack-Image-Store-Ids",
        ".*os_glance_tasks_store",
        "fast,cheap",
    ),
    # Lists
    Declared("`next`", "limit=1$", "body.next", ".*", "-"),
    Declared("Repeated parameters in `first` and `next`", "metadef_lists: .*resource_types=T1&", "body.first"),
    Declared("`next`", "metadef_lists: .*limit=", "body.next", ".*", "-"),
    Declared("Attributes without a value", "metadef_lists: .*sort_key=display_name&marker=d", "body.namespaces"),
    Declared("Repeated parameters in `first` and `next`", "(tag|sort_key)=.*(tag|sort_key)=", "body.first"),
    Declared("`limit` twice", "limit=1&limit=2", "body.*"),
    Declared("Filters that make no sense", "size=x|visibility=$", "status", "200", "400"),
    Declared("`foo_min` and `foo_max`", "nothing_min=1", "status", "500", "200"),
    Declared(
        "`properties`, `locations`, `members`, `tags`", "(properties|locations|members|tags)=x", "status", "500", "200"
    ),
    Declared("A marker that you may not see", "marker=", "status", "403|200", "400"),
    # Metadata definitions
    Declared("A body that Glance fails over", "metadef_.*: .* (POST|PUT|DELETE) ", "status", "500", "400"),
    Declared("A parameter that Glance fails over", r"metadef_.*: admin GET .*\?", "status", "500", "400"),
    Declared("A parameter that Glance fails over", r"metadef_.*: admin GET .*\?other=1", "status", "500", "200"),
    Declared("A rename to a name", "metadef_.*: admin PUT ", "status", "500", "409"),
    Declared("A namespace of which a part", "metadef_refusals: admin (GET|DELETE) ", "status", "20.", "404"),
    Declared("Names that are empty", 'metadef_(refusals|names): admin (POST|PUT) .*""', "status", "20.|409", "400"),
    Declared("Names that are empty", 'metadef_names: admin POST .*"namespace": "a/b"', "status", "201", "400"),
    Declared("Names that are empty", "metadef_refusals: admin DELETE ", "status", "404", "204"),
    Declared("Names that are empty", r'metadef_\w+: admin POST .*"name": "a(/|%2F)b"', "status", "201", "400"),
    Declared("Names that are empty", "metadef_names: .*/a%252Fb", "status", "20[04]", "404"),
    Declared("Names that are empty", "metadef_properties: ", r"body\.properties\.(a:)?a/b\..*", ".*", "-"),
    Declared("Names that are empty", "metadef_(tags|associations): ", r"body\.\w+", "(.* )?a/b( .*)?"),
    Declared("`self` and other fields", 'metadef_refusals: admin POST .*"self": "x"', "status", "500", "201"),
    Declared("`self` and other fields", "metadef_refusals: admin GET .*/N$", "body.objects", "-", "a"),
    Declared("A comma in `required`", 'metadef_refusals: admin POST .*"a,b"', "status", "201", "400"),
    Declared("Counts beyond", "metadef_refusals: admin POST .*1099511627776", "status", "201", "400"),
    Declared("Names that are not ASCII", "metadef_names: .*%C3%BC", "status", "404", "20[04]"),
    Declared("Names that are not ASCII", "metadef_tags: .*%C3%BC", "body.name"),
    Declared("Names in `self`", "metadef_(names|objects): ", r"header Location|body.*\.self", ".*", ".*%.*"),
    Declared(
        "`Location` of a part",
        "metadef_.*: admin POST .*/(objects|properties|tags|resource_types)",
        "header Location",
        "-",
    ),
    Declared(
        "What the answer",
        "metadef_.*: admin (POST|PUT) ",
        r"body\.(objects\[.*|resource_type_associations\[.*|required|properties)",
        "-",
    ),
    Declared("What the answer", r'metadef_associations: admin POST .*"name": "t3"', "body.name", '"t3"', '"T3"'),
    Declared("What the answer", "metadef_(namespaces|lists): admin POST ", r"body\.\w+", r"\[\]|{}", "-"),
    Declared("`default`", "metadef_definitions: ", r"body\..*(default|minimum|maximum)(\.x)?"),
    Declared("`name` in a definition", "metadef_.*: ", r"body\.properties\..*\.name", ".*", "-"),
    Declared(
        "A property of a resource type",
        r"metadef_properties: admin GET .*\?resource_type=OS::[BC]$",
        "status",
        "404",
        "200",
    ),
    Declared(
        "Letter case of resource types", "metadef_properties: admin GET .*resource_type=os::a", "status", "200", "404"
    ),
    Declared(
        "Lists of objects", r"metadef_objects: admin GET .*\?.*(limit=1|marker=|sort_)", "body.objects.*|body.next"
    ),
    Declared(
        "Lists of objects", r"metadef_objects: admin GET .*\?(marker|sort_key)=nothing", "status", "200", "404|400"
    ),
    Declared("Links of lists", "metadef_.*: .* GET .*/(objects|tags)", r"body\.(first|next|schema)", '-|"v2/.*'),
    Declared("`visibility` of lists", r"metadef_.*: admin GET .*\?visibility=x", "status", "400", "200"),
    Declared("Empty `limit` and `marker`", r"metadef_tags: admin GET .*\?(limit|marker)=$", "status", "200", "40[04]"),
    Declared("A marker of a namespace", "metadef_lists: .*marker=", "status", "403", "404"),
    Declared("An empty `owner` of a namespace", "metadef_namespaces: ", "body.owner", '""'),
    Declared(
        "Schemas of metadata",
        "/v2/schemas/metadefs/",
        r"body\..*\.(minLength|pattern|additionalProperties|readOnly)",
        "-",
    ),
    Declared("Schemas of metadata", "/v2/schemas/metadefs/", r"body\..*_at\.format", "-", '"date-time"'),
    Declared("Schemas of metadata", "/v2/schemas/metadefs/", r"body\.(.*\.)?type", "-"),
    Declared("Schemas of metadata", "/v2/schemas/metadefs/", r"body\..*\.(default|format|required\..*)", ".*", "-"),
    Declared("Schemas of metadata", "/v2/schemas/metadefs/", r"body\..*\.enum", ".*, null\\]", ".*"),
    Declared("Schemas of metadata", "/v2/schemas/metadefs/", r"body\..*\.required", "-|.*", '.*"name".*|.*"type".*'),
    Declared("Schemas of metadata", "/v2/schemas/metadefs/resource_types", r"body\.(links|properties\.(first|next)).*"),
    # Upload
    Declared("Uploads with a wrong token", "(uploads|staging): nobody PUT ", "status", "401", "403"),
    Declared(
        "After a 415 for the content",
        "uploads: .*GET .*50[8a]-",
        "body.(checksum|os_hash_algo|os_hash_value|stores)",
        ".*",
        "null|-",
    ),
    # Download
    Declared("`HEAD`", "HEAD .*/file", "status", "405"),
    Declared("`ETag`", "", "header ETag", "-"),
    Declared("`ETag`", "If-None-Match", "status", "200", "304"),
    Declared("`Accept-Ranges`", "", "header Accept-Ranges", "-", "bytes"),
    Declared("`Content-MD5` of a 206", "Range: bytes", "header Content-MD5", ".*", "-"),
    Declared("416", "", "header Content-Range", "-", r"bytes \*/10240"),
    Declared("Several ranges", "Range: bytes=0-1,5-6", "status", "400", "206"),
    Declared("`bytes=-0`", "Range: bytes=-0", "status", "206", "416"),
    Declared("Units of `Range` other than bytes", "Range: (items=)?0-1$", "status", "416", "200"),
    Declared("Reserved stores in `prefer`", "prefer=os_glance", "status", "200", "400"),
    # Members
    Declared("A member that is no text", '"member": (1|"m\\*256")', "status", "200|500", "400"),
    Declared("A member that is no text", "GET .*/members$", "body.members", ".* 1 .*"),
    # Tasks
    Declared("The filter `type`", r"/v2/tasks\?type=(location|api_image)_import", "status", "400", "200"),
    Declared("Times in", "/tasks$", r"body\.tasks\[<id>\]\.\w+_at", '"<time.fraction>"', '"<timeZ>"'),
    Declared("Input, result and message", "alice|reader|manager", r"body\.tasks\[.*\.uri", '"<web>.*"', r'"\*\*\*"'),
    Declared("`POST /v2/tasks` of type `import`", 'admin POST .*"image_properties": null', "status", "201", "400"),
    Declared("`POST /v2/tasks` of type `import`", "import_tasks: ", r"body\.image_id", "-", '"<id>"'),
    Declared("Tasks of type `import` with named stores", "import_tasks: ", r"body\..*status", '"failure"', '"success"'),
    Declared(
        "Tasks of type `import` with named stores", "import_tasks: admin GET .*task[0-3]", r"body\.(result.*|message)"
    ),
    Declared("Tasks of type `import` with named stores", "import_tasks: .*name=by", "body.images", r"\[\]"),
    # Import
    Declared("Order of checks", "(import_refusals|import_callers): .*copy-image", "status", "409", "403"),
    Declared("A body of an import that Glance fails over", "import_refusals: ", "status", "500", "400"),
    Declared(
        "A body of an import that Glance fails over", 'import_refusals: .*"glance_region": 1,', "status", "202", "400"
    ),
    Declared(
        "A body of an import that Glance fails over", "import_refusals: .* GET .*402c-", "body.os_glance_.*", ".*", "-"
    ),
    Declared(
        "`stores` that is no list of names", r'import_refusals: .*"stores": ("fast"|\[1\])', "status", "409", "400"
    ),
    Declared("Reserved stores in `stores`", 'import_refusals: .*"os_glance_staging_store"', "status", "202", "409"),
    Declared("Reserved stores in `stores`", "import_refusals: .* GET .*401f-", "body.os_glance_.*", ".*", "-"),
    Declared("An empty list of `stores`", r'import_refusals: .*"stores": \[\]', "status", "202", "400"),
    Declared("Messages of tasks", "", r"body(\.tasks\[<id>\])?\.message", '"Copied 0 MiB"', '""'),
    Declared(
        "Messages of tasks", "", r"body(\.tasks\[<id>\])?\.message", '"Task failed due to Internal Error"', '"..+"'
    ),
    Declared("Another import after one whose data was refused", "imports: alice GET .*5032-", ".*"),
    Declared("What glance-download takes over", "downloads_from_regions: ", "body.(tags|min_ram)"),
    Declared(
        "Stores of a glance-download that failed", "downloads_from_regions: ", "body.os_glance_(failed|importing)_.*"
    ),
    Declared(
        "`verified` in the result", "downloads_from_regions: ", r"body\.tasks\[<id>\]\.result\.verified", "-", "true"
    ),
    Declared(
        "`glance_service_interface` in the input",
        "downloads_from_regions: ",
        r"body\..*\.glance_service_interface",
        '"public"',
        "-",
    ),
    Declared(
        "Methods of `/v2/images/{id}/tasks` other than GET", "(HEAD|POST|PUT|DELETE) .*/tasks$", "status", "404", "405"
    ),
    # Locations
    Declared("The status of an image whose location somebody adds", "POST .*c01-.*/locations", "status", "409", "403"),
    Declared(
        "The body of an added location",
        'POST .*/locations .*("(metadata|validation_data)"|"url": "(nothing)?")',
        "status",
        "403",
        "400",
    ),
    Declared("A body of `GET /v2/images/{id}/locations`", "GET .*/locations .*{}", "status", "500", "400"),
    Declared("`Allow` of `/v2/images/{id}/locations`", ".*/locations$", "header Allow", "POST", "GET, POST"),
    # Stores
    Declared("`stores` of a deactivated image", "actions: ", "body.stores", "-", '"fast"'),
    Declared(
        "`GET /v2/info/stores/detail`",
        "",
        r"body.stores\[\w+\].(capabilities|status|free_bytes|total_bytes|last_error)",
        "-",
    ),
    Declared("`filesystem_store_chunk_size`", "", r"body.stores\[\w+\].properties.chunk_size", "65536", "1048576"),
    Declared("`DELETE /v2/stores/{store}/{image}` of a last copy", "DELETE /v2/stores/cheap", "status", "403", "404"),
    Declared("A store and an image that both do not exist", "DELETE /v2/stores/nothing", "status", "409", "404"),
)


def judge(found: Iterable[Difference], declared: Iterable[Declared]) -> list[str]:
    """What is wrong: differences that nothing declares, and declared ones that are none any more."""
    wrong: list[str] = []
    seen: set[Declared] = set()
    for one in found:
        covering = [other for other in declared if other.covers(one)]
        seen.update(covering)
        if not covering:
            wrong.append(f"not declared: {one}")
    return wrong + [f"no difference any more: {one}" for one in declared if one not in seen]


def line(name: str) -> str:
    """The whole name of the line that is named so, or of the only one that begins so."""
    whole = lines()
    found = [one for one in whole if one == name] or [one for one in whole if one.startswith(name)]
    assert len(found) == 1, f"{DOCUMENT.name} has {len(found)} lines that begin with {name!r}: {found}"
    return found[0]


def lines() -> list[str]:
    """The names of all lines in the document: their bold words, without the full stop."""
    found = re.findall(r"^- \*\*(.+?)\*\*", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
    return [" ".join(name.split()).removesuffix(".") for name in found]
