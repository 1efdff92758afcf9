"""/metrics in the text format of Prometheus, with few labels and no surprises in them."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from limner.serve.http.jobs_store import Store
from limner.serve.http.metrics import Histogram, Meters, Page, engine_page, front_page, route_of
from limner.serve.http.usage import Usage
from limner.serve.messages import Event, Report
from tests.serve.server.running import DRAW, Running, wait_for

LINE = re.compile(r'([a-z_]+)(?:\{((?:[a-z]+="(?:[^"\\\n]|\\[\\n"])*",?)*)\})? (-?[0-9.e+-]+|\+Inf)')


def read(text: str) -> dict[tuple[str, str], float]:
    """Name and labels -> value. Each line must be as the format says, and each name have its help and type."""
    found, types = {}, {}
    assert text.endswith("\n")
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            types[line.split()[2]] = line.split()[3]
        elif not line.startswith("# HELP "):
            match = LINE.fullmatch(line)
            assert match, line
            name = re.sub("_(bucket|sum|count)$", "", match[1])
            assert (types.get(name) == "histogram") or match[1] in types, line
            assert (match[1], match[2] or "") not in found, line
            found[match[1], match[2] or ""] = float(match[3])
    return found


def test_of_a_server(tmp_path: Path) -> None:
    with Running(tmp_path / "state") as running:
        running.engine.reports = {
            "plain": Report("plain", 7, {1: 3, 6: 2, 40: 1, 2000: 1}, 0.5, 9, 1, 2, 1, 4, 0),
            'a"b\\c\nd': Report('a"b\\c\nd', calls=1),
        }  # fmt: skip
        running.engine.restarts = 3
        running.ask("POST", "/v1/images/generations", {**DRAW, "n": 2, "steps": 5})
        running.ask("GET", "/v1/jobs/anything")
        for number in range(30):
            running.ask("GET", f"/random/{number}")
        answer = running.ask("GET", "/metrics")
        assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        found = read(answer.body.decode())
    assert found["limner_requests_total", 'route="/v1/images/generations",method="POST",status="200"'] == 1
    assert found["limner_requests_total", 'route="/v1/jobs/ID",method="GET",status="404"'] == 1
    assert found["limner_requests_total", 'route="other",method="GET",status="404"'] == 30
    assert found["limner_images_total", 'model="plain",client=""'] == 2
    assert found["limner_evaluations_total", 'model="plain",client=""'] == 10
    assert found["limner_queue_images", 'model="plain"'] == 0 and found["limner_ready", ""] == 1
    assert found["limner_queue_seconds_count", 'model="plain"'] == 1
    assert found["limner_engine_restarts_total", ""] == 3
    assert (
        found["limner_calls_total", 'model="plain"'] == 7
        and found["limner_mismatches_total", 'model="plain"'] == 1
    )
    assert found["limner_out_of_memory_total", 'model="plain"'] == 2
    rows = [
        found["limner_call_rows_bucket", f'model="plain",le="{bound}"']
        for bound in (1, 4, 8, 32, 64, 512, "+Inf")
    ]
    assert (
        rows == [3, 3, 5, 5, 6, 6, 7] and found["limner_call_rows_sum", 'model="plain"'] == 3 + 12 + 40 + 2000
    )
    assert found["limner_calls_total", r'model="a\"b\\c\nd"'] == 1


def test_who_leaves_while_sending_is_no_mistake_of_ours(tmp_path: Path) -> None:
    with Running(tmp_path / "state") as running:
        for path in ("/v1/images/generations", "/v1/jobs"):
            with contextlib.closing(running.client()) as client:
                client.ask_only("POST", path, b"{", Content_Length="100")
                wait_for(lambda: running.server.server_state.tasks)
            wait_for(lambda: not running.server.server_state.tasks)
            assert running.front.meters.requests[path, "POST", 499] == 1


def test_labels_are_few() -> None:
    """Whatever is asked for, and however."""
    meters = Meters()
    for number in range(1000):
        meters.answered(f"/v1/models/{number}", "GET", 404, 0.1)
        meters.answered(f"/{number}", f"M{number}", 404, 0.1)
        meters.answered(f"/v1/jobs/{number}/events/x", "GET", 0, 0.1)
    assert meters.requests == {
        ("/v1/models/ID", "GET", 404): 1000, ("other", "other", 404): 1000, ("/v1/jobs/ID", "GET", 499): 1000,
    }  # fmt: skip
    assert route_of("/v1/images/edits") == "/v1/images/edits" and route_of("/v1/images/edits/") == "other"


def test_histograms() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 9.0):
        histogram.add(value)
    page = Page()
    page.histogram("h", "help", [({}, histogram)])
    found = read(page.text())
    assert [found["h_bucket", f'le="{bound}"'] for bound in (1, 2, "+Inf")] == [2, 4, 5]
    assert found["h_sum", ""] == 14 and found["h_count", ""] == 5


def test_nothing_yet() -> None:
    page = Page()
    front_page(page, Meters())
    engine_page(page, {}, 0)
    assert read(page.text()) == {("limner_engine_restarts_total", ""): 0}


def test_usage_by_name_and_model(tmp_path: Path) -> None:
    meters, store = Meters(), Store(tmp_path / "state")
    for name, model in (("ann", "one"), ("ann", "two"), ("ann", "two"), ("bob", "one")):
        meters.made(model, name, Event(1, "image", evaluations=8, seconds=0.25))
    usage = Usage(meters, store)
    said = usage.of("ann")
    assert [(entry["model"], entry["images"], entry["evaluations"], entry["seconds"]) for entry in said["data"]] == [
        ("one", 1, 8, 0.25), ("two", 2, 16, 0.5),
    ]  # fmt: skip
    assert (said["images"], said["evaluations"], said["seconds"]) == (3, 24, 0.75)
    assert usage.of("eve")["images"] == 0 and usage.of("eve")["data"] == []
    store.close()
