"""What the server counts, and /metrics, which tells it in the text format of Prometheus."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from limner.serve.http.tables import TABLES
from limner.serve.messages import Event, Report

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0
ROWS = 1, 2, 4, 8, 16, 32, 64, 128, 256, 512
FIXED = {table.path for table in TABLES.values()} | {
    "/v1/models", "/v1/jobs", "/v1/usage", "/health", "/ready", "/metrics", "/openapi.json",
}  # fmt: skip
PREFIXES = "/v1/models/", "/v1/jobs/", "/v1/images/drawn/"

Labels = Mapping[str, object]


def route_of(path: str) -> str:
    """The route of a path; there are few of them, whatever is asked for."""
    if path in FIXED:
        return path
    return next((f"{prefix}ID" for prefix in PREFIXES if path.startswith(prefix)), "other")


@dataclass
class Histogram:
    bounds: tuple[float, ...] = SECONDS
    counts: list[int] = field(default_factory=list)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = self.counts or [0] * (len(self.bounds) + 1)

    def add(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times


@dataclass
class Meters:
    """Counts since the start; keys are (model, token name) unless said otherwise."""

    requests: Counter[tuple[str, str, int]] = field(default_factory=Counter)  # route, method, status
    request_seconds: dict[str, Histogram] = field(default_factory=dict)  # by route
    refused: Counter[str] = field(default_factory=Counter)  # by code
    images: Counter[tuple[str, str]] = field(default_factory=Counter)
    evaluations: Counter[tuple[str, str]] = field(default_factory=Counter)
    seconds: dict[tuple[str, str], float] = field(default_factory=dict)
    cancelled: Counter[tuple[str, str]] = field(default_factory=Counter)
    joined: Counter[tuple[str, str]] = field(default_factory=Counter)
    queue_seconds: dict[str, Histogram] = field(default_factory=dict)  # by model

    def answered(self, path: str, method: str, status: int, seconds: float) -> None:
        """An answer was sent; status 0: none was, since the client had gone."""
        route = route_of(path)
        known = method if method in ("GET", "HEAD", "POST", "DELETE") else "other"
        self.requests[route, known, status or 499] += 1
        self.request_seconds.setdefault(route, Histogram()).add(seconds)

    def begun(self, model: str, seconds: float) -> None:
        """Work of a model began after so many seconds in the queue."""
        self.queue_seconds.setdefault(model, Histogram()).add(seconds)

    def made(self, model: str, client: str, event: Event) -> None:
        """An image was drawn, or a picture described."""
        self.images[model, client] += 1
        self.evaluations[model, client] += event.evaluations
        self.seconds[model, client] = self.seconds.get((model, client), 0.0) + event.seconds


class Page:
    """The lines of /metrics."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(self, name: str, kind: str, help: str, values: Iterable[tuple[Labels, float]]) -> None:
        self._head(name, kind, help)
        for labels, value in values:
            self._line(name, labels, value)

    def histogram(self, name: str, help: str, found: Iterable[tuple[Labels, Histogram]]) -> None:
        self._head(name, "histogram", help)
        for labels, histogram in found:
            count = 0
            for bound, number in zip((*histogram.bounds, math.inf), histogram.counts, strict=True):
                count += number
                self._line(f"{name}_bucket", {**labels, "le": _number(bound)}, count)
            self._line(f"{name}_sum", labels, histogram.total)
            self._line(f"{name}_count", labels, count)

    def _head(self, name: str, kind: str, help: str) -> None:
        self.lines += [f"# HELP {name} {help}", f"# TYPE {name} {kind}"]

    def _line(self, name: str, labels: Labels, value: float) -> None:
        inside = ",".join(f'{key}="{_escaped(str(said))}"' for key, said in labels.items())
        self.lines.append(f"{name}{{{inside}}} {_number(value)}" if inside else f"{name} {_number(value)}")

    def text(self) -> str:
        return "\n".join(self.lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _number(value: float) -> str:
    return "+Inf" if value == math.inf else str(value) if isinstance(value, int) else f"{value:.10g}"


def front_page(page: Page, meters: Meters) -> None:
    """What the front counts."""

    def by_client(counts: Mapping[tuple[str, str], float]) -> Iterable[tuple[Labels, float]]:
        return [({"model": model, "client": client}, value) for (model, client), value in counts.items()]

    page.add("limner_requests_total", "counter", "Answers by route, method and status; 499: the client had gone.", [
        ({"route": route, "method": method, "status": status}, count)
        for (route, method, status), count in meters.requests.items()
    ])  # fmt: skip
    page.histogram("limner_request_seconds", "From a request's headers to the end of its answer.", [
        ({"route": route}, histogram) for route, histogram in meters.request_seconds.items()
    ])  # fmt: skip
    page.add("limner_refused_total", "counter", "Work that was not taken, by code.", [
        ({"code": code}, count) for code, count in meters.refused.items()
    ])  # fmt: skip
    page.add(
        "limner_images_total", "counter", "Images drawn and pictures described.", by_client(meters.images)
    )
    page.add("limner_evaluations_total", "counter", "Of networks, for these.", by_client(meters.evaluations))
    page.add("limner_image_seconds_total", "counter", "From an image's first network call to its last.",
             by_client(meters.seconds))  # fmt: skip
    page.add("limner_cancelled_total", "counter", "Images asked for and no longer wanted.",
             by_client(meters.cancelled))  # fmt: skip
    page.add("limner_joined_total", "counter", "Requests sent again that joined their first.",
             by_client(meters.joined))  # fmt: skip
    page.histogram("limner_queue_seconds", "From a work's arrival to its beginning.", [
        ({"model": model}, histogram) for model, histogram in meters.queue_seconds.items()
    ])  # fmt: skip


def engine_page(page: Page, reports: Mapping[str, Report], restarts: int) -> None:
    """What the engine counts, and what those before it did."""

    def each(name: str) -> Iterable[tuple[Labels, float]]:
        return [({"model": model}, getattr(report, name)) for model, report in reports.items()]

    page.add("limner_engine_restarts_total", "counter", "Engines that took the place of one that died.",
             [({}, restarts)])  # fmt: skip
    for name, field_name, kind, help in (
        ("limner_calls_total", "calls", "counter", "Network calls."),
        ("limner_call_seconds_total", "seconds", "counter", "Seconds within network calls."),
        (
            "limner_out_of_memory_total",
            "out_of_memory",
            "counter",
            "Calls that were too large for the memory.",
        ),
        (
            "limner_mismatches_total",
            "mismatches",
            "counter",
            "Calls done again in other company that differed.",
        ),
        ("limner_flying_images", "flying", "gauge", "Images that are being drawn."),
    ):
        page.add(name, kind, help, each(field_name))
    rows = []
    for model, report in reports.items():
        histogram = Histogram(tuple(map(float, ROWS)))
        for number, times in report.rows.items():
            histogram.add(number, times)
        rows.append(({"model": model}, histogram))
    page.histogram("limner_call_rows", "Rows of a network call.", rows)
