"""`GET /healthcheck`, for load balancers: no credentials, no version in the path."""

from pathlib import Path

import falcon

from calotype.api.request import service


def show(req: falcon.Request, resp: falcon.Response) -> None:
    """GET /healthcheck: 200 `OK`, or 503 while the operator keeps a `disable_by_file` file in place."""
    path = service(req).conf.healthcheck.disable_by_file_path
    down = path is not None and Path(path).exists()
    resp.status = 503 if down else 200
    resp.content_type = "text/plain; charset=UTF-8"
    resp.text = "DISABLED BY FILE" if down else "OK"
