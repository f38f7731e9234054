"""Every path and method on one screen."""

from dataclasses import dataclass
from typing import Final

from calotype.api import discovery, health, image_data, images, imports, locations, members, metadefs, tasks, versions
from calotype.api.request import Handler


@dataclass(frozen=True, slots=True)
class Route:
    """`handler(req, resp, **variables of the path)` answers `method path`; `open` routes ask for no credentials."""

    method: str
    path: str
    handler: Handler
    open: bool = False


_IMAGE: Final = "/v2/images/{image_id}"
_NAMESPACES: Final = "/v2/metadefs/namespaces"
_NAMESPACE: Final = _NAMESPACES + "/{namespace}"

ROUTES: Final = (
    Route("GET", "/", versions.choices, open=True),
    Route("GET", "/versions", versions.show, open=True),
    Route("GET", "/v2", versions.to_v2, open=True),
    Route("GET", "/healthcheck", health.show, open=True),
    Route("HEAD", "/healthcheck", health.show, open=True),
    Route("GET", "/openapi.json", discovery.openapi, open=True),
    #
    Route("GET", "/v2/images", images.index),
    Route("POST", "/v2/images", images.create),
    Route("GET", _IMAGE, images.show),
    Route("PATCH", _IMAGE, images.update),
    Route("DELETE", _IMAGE, images.delete),
    #
    Route("PUT", _IMAGE + "/file", image_data.upload),
    Route("GET", _IMAGE + "/file", image_data.download),
    Route("HEAD", _IMAGE + "/file", image_data.download),
    #
    Route("PUT", _IMAGE + "/stage", image_data.stage),
    Route("POST", _IMAGE + "/import", imports.start),
    Route("POST", _IMAGE + "/actions/cancel_import", imports.cancel),
    #
    Route("PUT", _IMAGE + "/tags/{tag}", images.add_tag),
    Route("DELETE", _IMAGE + "/tags/{tag}", images.remove_tag),
    Route("POST", _IMAGE + "/actions/deactivate", images.deactivate),
    Route("POST", _IMAGE + "/actions/reactivate", images.reactivate),
    #
    Route("GET", _IMAGE + "/members", members.index),
    Route("POST", _IMAGE + "/members", members.add),
    Route("GET", _IMAGE + "/members/{member_id}", members.show),
    Route("PUT", _IMAGE + "/members/{member_id}", members.update),
    Route("DELETE", _IMAGE + "/members/{member_id}", members.remove),
    #
    Route("GET", _IMAGE + "/locations", locations.index),
    Route("POST", _IMAGE + "/locations", locations.add),
    Route("GET", _IMAGE + "/tasks", tasks.of_image),
    Route("GET", "/v2/tasks", tasks.index),
    Route("POST", "/v2/tasks", tasks.create),
    Route("GET", "/v2/tasks/{task_id}", tasks.show),
    #
    Route("GET", "/v2/info/import", discovery.import_info),
    Route("GET", "/v2/info/stores", discovery.stores_info),
    Route("GET", "/v2/info/stores/detail", discovery.stores_detail),
    Route("GET", "/v2/info/usage", discovery.usage_info),
    Route("DELETE", "/v2/stores/{store_id}/{image_id}", discovery.remove_copy),
    Route("GET", "/v2/schemas/{name}", discovery.schema),
    Route("GET", "/v2/schemas/metadefs/{name}", discovery.metadef_schema),
    #
    Route("GET", _NAMESPACES, metadefs.index),
    Route("POST", _NAMESPACES, metadefs.create),
    Route("GET", _NAMESPACE, metadefs.show),
    Route("PUT", _NAMESPACE, metadefs.update),
    Route("DELETE", _NAMESPACE, metadefs.delete),
    #
    Route("GET", _NAMESPACE + "/objects", metadefs.objects),
    Route("POST", _NAMESPACE + "/objects", metadefs.add_object),
    Route("DELETE", _NAMESPACE + "/objects", metadefs.remove_objects),
    Route("GET", _NAMESPACE + "/objects/{object_name}", metadefs.show_object),
    Route("PUT", _NAMESPACE + "/objects/{object_name}", metadefs.change_object),
    Route("DELETE", _NAMESPACE + "/objects/{object_name}", metadefs.remove_object),
    #
    Route("GET", _NAMESPACE + "/properties", metadefs.properties),
    Route("POST", _NAMESPACE + "/properties", metadefs.add_property),
    Route("DELETE", _NAMESPACE + "/properties", metadefs.remove_properties),
    Route("GET", _NAMESPACE + "/properties/{property_name}", metadefs.show_property),
    Route("PUT", _NAMESPACE + "/properties/{property_name}", metadefs.change_property),
    Route("DELETE", _NAMESPACE + "/properties/{property_name}", metadefs.remove_property),
    #
    Route("GET", _NAMESPACE + "/tags", metadefs.tags),
    Route("POST", _NAMESPACE + "/tags", metadefs.add_tags),
    Route("DELETE", _NAMESPACE + "/tags", metadefs.remove_tags),
    Route("GET", _NAMESPACE + "/tags/{tag_name}", metadefs.show_tag),
    Route("POST", _NAMESPACE + "/tags/{tag_name}", metadefs.add_tag),
    Route("PUT", _NAMESPACE + "/tags/{tag_name}", metadefs.change_tag),
    Route("DELETE", _NAMESPACE + "/tags/{tag_name}", metadefs.remove_tag),
    #
    Route("GET", "/v2/metadefs/resource_types", metadefs.resource_types),
    Route("GET", _NAMESPACE + "/resource_types", metadefs.associations),
    Route("POST", _NAMESPACE + "/resource_types", metadefs.associate),
    Route("DELETE", _NAMESPACE + "/resource_types/{resource_type}", metadefs.dissociate),
)
