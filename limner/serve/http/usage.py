"""What a client has used: images, evaluations of networks and seconds, by model."""

from __future__ import annotations

import time
from typing import Any

from limner.serve.http.metrics import Meters


class Usage:
    """Of each token's name since the server began; without tokens all have one name."""

    def __init__(self, meters: Meters):
        self.meters, self.since = meters, int(time.time())

    def of(self, name: str) -> dict[str, Any]:
        """The answer of /v1/usage."""
        meters = self.meters
        mine = sorted(key for key in meters.images if key[1] == name)
        data = [
            {
                "model": key[0],
                "images": meters.images[key],
                "evaluations": meters.evaluations[key],
                "seconds": round(meters.seconds.get(key, 0.0), 4),
            }
            for key in mine
        ]
        return {
            "object": "usage",
            "client": name,
            "since": self.since,
            "data": data,
            "images": sum(meters.images[key] for key in mine),
            "evaluations": sum(meters.evaluations[key] for key in mine),
            "seconds": round(sum(meters.seconds.get(key, 0.0) for key in mine), 4),
        }
