"""Tasks of type `import`: the deprecated way to create an image and import its data in one request (api.md §9)."""

from dataclasses import replace
from typing import Any

from calotype.context import Context
from calotype.db.engine import Tx
from calotype.images import imports, lifecycle, quota, tasks
from calotype.images.imports import Request
from calotype.images.lifecycle import NewImage
from calotype.model import Image, Task
from calotype.service import Service

KIND = "import"


def create(svc: Service, ctx: Context, new: NewImage, uri: str, asked: dict[str, Any]) -> Task:
    """Add an image, and a task that imports its data from a URL. `asked` is the input of the task as it came.

    An image without formats is qcow2 in bare. Raises what `lifecycle.create` and `imports.start` raise.
    """
    tasks.check_access(svc, ctx)
    imports.check_method(svc, imports.WEB_DOWNLOAD)
    request = Request(imports.WEB_DOWNLOAD, asked, uri=uri, task_type=KIND)
    store = svc.stores.for_writing(None)
    imports.check_source(svc, request)
    filled = replace(new, disk_format=new.disk_format or "qcow2", container_format=new.container_format or "bare")
    allowed = quota.allowance(svc, ctx, lifecycle.owner_of(ctx, filled))
    made: list[Task] = []

    def begin(tx: Tx, image: Image) -> None:
        made[:] = [imports.submit(svc, tx, ctx, image, request, [store], allowed)]

    lifecycle.create(svc, ctx, filled, also=begin)
    svc.nudge()
    return made[0]
