"""Every path and method on one screen."""

from dataclasses import dataclass
from typing import Final

from calotype.api import discovery, health, image_data, images, locations, members, tasks, versions
from calotype.api.request import Handler


@dataclass(frozen=True, slots=True)
class Route:
    """`handler(req, resp, **variables of the path)` answers `method path`; `open` routes ask for no credentials."""

    method: str
    path: str
    handler: Handler
    open: bool = False


_IMAGE: Final = "/v2/images/{image_id}"

ROUTES: Final = (
    Route("GET", "/", versions.choices, open=True),
    Route("GET", "/versions", versions.show, open=True),
    Route("GET", "/v2", versions.to_v2, open=True),
    Route("GET", "/healthcheck", health.show, open=True),
    Route("HEAD", "/healthcheck", health.show, open=True),
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
)
