"""What each handler does, for its callers: summary, parameters, bodies, answers.

`openapi.py` makes the OpenAPI document from this, the routes and the schemas. It adds the statuses that all routes of
a kind may answer.
"""

from collections.abc import Mapping
from typing import Final

from calotype.api import (
    discovery,
    health,
    image_data,
    images,
    imports,
    listing,
    locations,
    members,
    metadef_schemas,
    metadefs,
    patch,
    tasks,
    versions,
)
from calotype.api.operation import Answer, Operation, Parameter
from calotype.api.request import Handler
from calotype.db.metadefs import PART_SORT_KEYS, SORT_KEYS

_DONE: Final = {204: Answer("It is done")}
_OCTETS: Final = "application/octet-stream"
_INTEGER: Final = {"type": "integer", "minimum": 0}


def _shows(schema: str, what: str) -> Mapping[int, Answer]:
    return {200: Answer(what, schema)}


def _makes(schema: str, what: str, *headers: str) -> Mapping[int, Answer]:
    return {201: Answer(what, schema, headers=("Location", *headers))}


_VERSIONS: Final[Mapping[Handler, Operation]] = {
    versions.choices: Operation(
        "Find the versions of the API",
        {300: Answer("The versions; choose one of them", "Versions")},
        "Paths that begin with a version that is not offered are answered so as well.",
    ),
    versions.show: Operation("List the versions of the API", _shows("Versions", "The versions")),
    versions.to_v2: Operation("Go to version 2", {302: Answer("It is at `/v2/`", headers=("Location",))}),
    health.show: Operation(
        "Ask whether the service is well",
        {
            200: Answer("It is", "Health", media=("text/plain",)),
            503: Answer("It is not; the body says why", "Health", media=("text/plain",)),
        },
        "For load balancers. With `Accept: application/json` the answer is JSON.",
        refuses=(404,),
    ),
    discovery.openapi: Operation("Read this document", _shows("Document", "The description of this service's API")),
}

_IMAGES: Final[Mapping[Handler, Operation]] = {
    images.index: Operation(
        "List images",
        _shows("Images", "A page of images"),
        "Lists the images that you may see: your project's, public ones, and those shared with you that you accepted. "
        "Any other parameter is a property that has exactly that value.",
        query=listing.PARAMETERS,
        refuses=(403,),
    ),
    images.create: Operation(
        "Create an image",
        _makes(
            "Image",
            "The image, which waits for data",
            "OpenStack-image-store-ids",
            "OpenStack-image-import-methods",
        ),
        "Creates the record; its status is queued until its data is there. Names that the service does not know are "
        "properties of your own.",
        body="NewImage",
        provides={"image_id": "$response.body#/id"},
    ),
    images.show: Operation("Show an image", _shows("Image", "The image")),
    images.update: Operation(
        "Change an image",
        _shows("Image", "The image as it is now"),
        "Applies the operations in their order, all or none: add, replace and remove of attributes and properties.",
        body={patch.V21: "Patch21", patch.V20: "Patch20"},
        refuses=(415,),
    ),
    images.delete: Operation(
        "Delete an image", _DONE, "Deletes the record and all copies of its data.", refuses=(500,)
    ),
    image_data.upload: Operation(
        "Upload data",
        {204: Answer("The data is stored and the image is active")},
        "The data is verified before any of it counts: its length, and whether it is of the image's format. "
        "What fails leaves the image queued.",
        headers=(
            Parameter("x-openstack-image-size", "How many bytes will come; 0 is unknown", _INTEGER),
            Parameter("x-image-meta-store", "Store to write to, in place of the default one"),
        ),
        body={_OCTETS: None},
        refuses=(410, 413, 415, 500),
        is_data=True,
    ),
    image_data.stage: Operation(
        "Stage data",
        {204: Answer("The data is kept until it is imported")},
        "The first half of an import by glance-direct. The image is uploading until `POST …/import`.",
        headers=(Parameter("x-openstack-image-size", "How many bytes will come; 0 is unknown", _INTEGER),),
        body={_OCTETS: None},
        refuses=(413, 415, 500),
        is_data=True,
    ),
    imports.start: Operation(
        "Import data",
        {202: Answer("The import has begun; the image's tasks tell how far it is")},
        "Writes the data into stores, all at once and by one read, and makes the image active. With copy-image the "
        "image is active already, and gets further copies.",
        headers=(Parameter("x-image-meta-store", "Store to write to, in place of the default one"),),
        body="NewImport",
        refuses=(410, 413),
    ),
    imports.cancel: Operation("Cancel an import", {202: Answer("The import is about to end; its task will say so")}),
    image_data.download: Operation(
        "Download data",
        {
            200: Answer("All bytes", media=(_OCTETS,), headers=("ETag", "Accept-Ranges", "Content-MD5")),
            204: Answer("The image has no data"),
            206: Answer(
                "The bytes that `Range` names",
                media=(_OCTETS, "multipart/byteranges"),
                headers=("ETag", "Accept-Ranges", "Content-Range"),
            ),
            304: Answer("You have these bytes already", headers=("ETag", "Accept-Ranges")),
        },
        query=(
            Parameter("prefer", "Stores to read from, if they have a copy; with commas between them", repeated=True),
        ),
        headers=(
            Parameter("Range", "Bytes that are wanted, `bytes=first-last`, up to 32 ranges"),
            Parameter("If-Range", "ETag of the bytes that you have; if it is another now, you get all"),
            Parameter("If-Match", "ETags of which the bytes must have one"),
            Parameter("If-None-Match", "ETags of the bytes that you have"),
        ),
        refuses=(403, 409, 410, 416, 500),
    ),
    images.add_tag: Operation(
        "Add a tag",
        _DONE,
        refuses=(413,),
        provides={"image_id": "$request.path.image_id", "tag": "$request.path.tag"},
    ),
    images.remove_tag: Operation("Remove a tag", _DONE),
    images.deactivate: Operation(
        "Deactivate an image", _DONE, "From now on nobody but administrators downloads its data."
    ),
    images.reactivate: Operation("Reactivate an image", _DONE),
}

_SHARING: Final[Mapping[Handler, Operation]] = {
    members.index: Operation(
        "List members", _shows("Members", "The projects that the image is shared with"), refuses=(403,)
    ),
    members.add: Operation(
        "Share an image with a project",
        _shows("Member", "The new member, which has not answered yet"),
        body="NewMember",
        provides={"image_id": "$request.path.image_id", "member_id": "$response.body#/member_id"},
    ),
    members.show: Operation("Show a member", _shows("Member", "The member")),
    members.update: Operation(
        "Answer to sharing", _shows("Member", "The member as it is now"), "For the member itself.", body="MemberStatus"
    ),
    members.remove: Operation("Stop sharing with a project", _DONE),
}

_LOCATIONS: Final[Mapping[Handler, Operation]] = {
    locations.index: Operation(
        "List where data lies", _shows("Locations", "The copies of the data"), "For services.", refuses=(403,)
    ),
    locations.add: Operation(
        "Take over data that lies in a store",
        {202: Answer("The image has its data, or will have it once that is hashed")},
        body="NewLocation",
        refuses=(410, 413, 415, 500),
    ),
}

_TASKS: Final[Mapping[Handler, Operation]] = {
    tasks.of_image: Operation("List the tasks of an image", _shows("ImageTasks", "The tasks")),
    tasks.index: Operation(
        "List tasks", _shows("Tasks", "A page of tasks"), "Deprecated.", query=tasks.PARAMETERS, refuses=(403,)
    ),
    tasks.create: Operation(
        "Create an image and import its data",
        _makes("Task", "The task, which tells how far the import is"),
        "Deprecated. Only tasks of type `import` are created. `input` has `import_from`, a URL. Its `image_properties` "
        "describe the image as `POST /v2/images` does.",
        body="NewTask",
        refuses=(410,),
    ),
    tasks.show: Operation("Show a task", _shows("Task", "The task"), "Deprecated.", refuses=(403,)),
}

_DISCOVERY: Final[Mapping[Handler, Operation]] = {
    discovery.import_info: Operation("List import methods", _shows("ImportInfo", "The methods")),
    discovery.stores_info: Operation("List stores", _shows("Stores", "The stores")),
    discovery.stores_detail: Operation(
        "List stores with their settings and health", _shows("StoresDetail", "The stores"), refuses=(403,)
    ),
    discovery.usage_info: Operation(
        "Show what your project uses",
        _shows("Usage", "Usage and limits by their names; sizes are MiB"),
        "Nothing where limits are not Keystone's.",
    ),
    discovery.remove_copy: Operation(
        "Remove one copy of the data", _DONE, "Refused for the last copy.", refuses=(500,)
    ),
    discovery.schema: Operation(
        "Show a schema",
        _shows("JsonSchema", "The schema"),
        names=("image", "images", "member", "members", "task", "tasks"),
    ),
    discovery.metadef_schema: Operation(
        "Show a schema of metadata definitions", _shows("JsonSchema", "The schema"), names=tuple(metadef_schemas.SERVED)
    ),
}

_FOR_TYPE: Final = Parameter("resource_type", "Tell properties by the names that they have with this resource type")


def _paging(what: str, keys: tuple[str, ...], direction: str, *, least: int = 0) -> tuple[Parameter, ...]:
    return (
        Parameter("limit", f"Most {what} on a page", {"type": "integer", "minimum": least}),
        Parameter("marker", "Name of the one after which the page begins"),
        Parameter("sort_key", "Attribute to sort by", {"type": "string", "enum": [*keys]}, default="created_at"),
        Parameter("sort_dir", "Direction", {"type": "string", "enum": ["asc", "desc"]}, default=direction),
    )


_NAMESPACE: Final = {"namespace": "$request.path.namespace"}

_METADEFS: Final[Mapping[Handler, Operation]] = {
    metadefs.index: Operation(
        "List namespaces",
        _shows("MetadefNamespaces", "A page of namespaces with their associations"),
        query=(
            *_paging("namespaces", SORT_KEYS, "desc"),
            Parameter("visibility", "Only such namespaces", {"type": "string", "enum": ["public", "private"]}),
            Parameter("resource_types", "Only namespaces for one of these types; with commas between them"),
        ),
        refuses=(403, 404),
    ),
    metadefs.create: Operation(
        "Create a namespace",
        _makes("MetadefNamespace", "The namespace with all that is in it"),
        "Adds it with all parts that the body names, or nothing.",
        body="NewMetadefNamespace",
        refuses=(404,),
        provides={"namespace": "$response.body#/namespace"},
    ),
    metadefs.show: Operation(
        "Show a namespace",
        _shows("MetadefNamespace", "The namespace with all that is in it"),
        query=(_FOR_TYPE,),
        refuses=(403,),
    ),
    metadefs.update: Operation(
        "Replace what a namespace says of itself",
        _shows("MetadefNamespaceHead", "The namespace as it is now"),
        "What is not said gets its default; what is in the namespace stays. It may get another name.",
        body="NewMetadefNamespace",
        provides={"namespace": "$response.body#/namespace"},
    ),
    metadefs.delete: Operation("Delete a namespace", _DONE, "And all that is in it."),
    #
    metadefs.objects: Operation(
        "List objects",
        _shows("MetadefObjects", "The objects; all unless a limit is given"),
        query=_paging("objects", PART_SORT_KEYS, "asc", least=1),
        refuses=(403,),
    ),
    metadefs.add_object: Operation(
        "Add an object",
        _makes("MetadefObject", "The object"),
        body="NewMetadefObject",
        provides={**_NAMESPACE, "object_name": "$response.body#/name"},
    ),
    metadefs.remove_objects: Operation("Remove all objects", _DONE),
    metadefs.show_object: Operation("Show an object", _shows("MetadefObject", "The object"), refuses=(403,)),
    metadefs.change_object: Operation(
        "Replace an object", _shows("MetadefObject", "The object as it is now"), body="NewMetadefObject"
    ),
    metadefs.remove_object: Operation("Remove an object", _DONE),
    #
    metadefs.properties: Operation(
        "List properties", _shows("MetadefProperties", "Definitions by the names of their properties"), refuses=(403,)
    ),
    metadefs.add_property: Operation(
        "Add a property",
        _makes("MetadefProperty", "The property"),
        body="NewMetadefProperty",
        provides={**_NAMESPACE, "property_name": "$response.body#/name"},
    ),
    metadefs.remove_properties: Operation("Remove all properties", _DONE),
    metadefs.show_property: Operation(
        "Show a property",
        _shows("MetadefProperty", "The property"),
        "With `resource_type` the path has the name with the prefix, and the answer the one without.",
        query=(_FOR_TYPE,),
        refuses=(403,),
    ),
    metadefs.change_property: Operation(
        "Replace a property", _shows("MetadefProperty", "The property as it is now"), body="NewMetadefProperty"
    ),
    metadefs.remove_property: Operation("Remove a property", _DONE),
    #
    metadefs.tags: Operation(
        "List tags",
        _shows("MetadefTags", "The tags; all unless a limit is given"),
        query=_paging("tags", PART_SORT_KEYS, "desc"),
        refuses=(403,),
    ),
    metadefs.add_tags: Operation(
        "Replace all tags, or add some",
        {201: Answer("The tags that were given", "MetadefTagNames")},
        "An empty list changes nothing.",
        headers=(Parameter("X-Openstack-Append", "`true` adds the tags to those that there are", {"type": "string"}),),
        body="NewMetadefTags",
    ),
    metadefs.remove_tags: Operation("Remove all tags", _DONE),
    metadefs.show_tag: Operation("Show a tag", _shows("MetadefTag", "The tag"), refuses=(403,)),
    metadefs.add_tag: Operation(
        "Add a tag",
        _makes("MetadefTag", "The tag"),
        provides={**_NAMESPACE, "tag_name": "$response.body#/name"},
    ),
    metadefs.change_tag: Operation("Rename a tag", _shows("MetadefTag", "The tag as it is now"), body="NewMetadefTag"),
    metadefs.remove_tag: Operation("Remove a tag", _DONE),
    #
    metadefs.resource_types: Operation(
        "List resource types", _shows("ResourceTypes", "All resource types"), refuses=(403, 404)
    ),
    metadefs.associations: Operation(
        "List the resource types of a namespace", _shows("Associations", "The associations"), refuses=(403,)
    ),
    metadefs.associate: Operation(
        "Associate a namespace with a resource type",
        _makes("Association", "The association"),
        "A type that is not known is added.",
        body="NewAssociation",
        provides={**_NAMESPACE, "resource_type": "$response.body#/name"},
    ),
    metadefs.dissociate: Operation("End an association", _DONE, "The resource type stays."),
}

#: The operations of each chapter of the API.
CHAPTERS: Final[Mapping[str, Mapping[Handler, Operation]]] = {
    "Versions and health": _VERSIONS,
    "Images": _IMAGES,
    "Sharing": _SHARING,
    "Locations": _LOCATIONS,
    "Tasks": _TASKS,
    "Discovery": _DISCOVERY,
    "Metadata definitions": _METADEFS,
}
