"""Images that are answered by a path: kept in memory for a while."""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict

from starlette.requests import Request
from starlette.responses import Response

from limner.serve.http.errors import ApiError
from limner.serve.messages import Format

PATH = "/v1/images/drawn"
SECONDS = 3600.0
LARGEST = 2**28  # bytes of all; beyond it the oldest go


class Links:
    """Name -> image, until it expires."""

    def __init__(self, seconds: float = SECONDS, largest: int = LARGEST):
        self.seconds, self.largest, self.size = seconds, largest, 0
        self.kept: OrderedDict[str, tuple[bytes, Format, float]] = OrderedDict()

    def keep(self, data: bytes, format: Format) -> str:
        """The path at which the image can be read for an hour."""
        name = f"{secrets.token_urlsafe(18)}.{format}"
        self.kept[name] = data, format, time.monotonic() + self.seconds
        self.size += len(data)
        self.forget()
        return f"{PATH}/{name}"

    def forget(self) -> None:
        """What has expired, and the oldest while there are too many bytes."""
        now = time.monotonic()
        while self.kept:
            data, _, end = next(iter(self.kept.values()))
            if end > now and self.size <= self.largest:
                return
            self.kept.popitem(last=False)
            self.size -= len(data)

    async def get(self, request: Request) -> Response:
        """The handler of the paths."""
        self.forget()
        found = self.kept.get(request.path_params["name"])
        if found is None:
            raise ApiError(404, "This image is not here any more: draw it again by its seed.", "not_found")
        return Response(found[0], media_type=f"image/{found[1]}")
