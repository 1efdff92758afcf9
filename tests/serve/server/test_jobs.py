"""Jobs: kept before they are promised, drawn whatever dies, and removed with all that they hold."""

from __future__ import annotations

import base64
import contextlib
import errno
import json
import os
import re
import signal
import sqlite3
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from limner import files
from limner.serve.http import jobs_run
from limner.serve.http.jobs_store import Store
from limner.serve.messages import Event
from limner.settings import LimnerError
from tests.serve.fake_engine import FakeEngine, picture
from tests.serve.server.running import DRAW, Answer, Child, Running, wait_for
from tests.serve.server.test_admission import Held, let_go

JOB = {**DRAW, "type": "generation"}
BOUNDARY = "limits"


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Running]:
    with Running(tmp_path / "state", engine=Held(seconds=0.01)) as running:
        yield running


def create(running: Running | Child, said: dict[str, Any], **headers: str) -> str:
    answer = running.ask("POST", "/v1/jobs", said, **headers)
    assert answer.status == 202, answer.body
    path = answer.headers["location"]
    assert path == f"/v1/jobs/{answer.json['id']}" and answer.json["object"] == "job"
    return path


def finished(running: Running | Child, path: str, status: str = "completed") -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        said = running.ask("GET", path).json
        return said if said["status"] not in ("queued", "in_progress") else None

    job = wait_for(look)
    assert job["status"] == status, job
    return job


def events(answer: Answer) -> list[tuple[int, str, dict[str, Any]]]:
    found = re.findall(rb"id: (\d+)\nevent: (\S+)\ndata: (.*)\n\n", answer.body)
    return [(int(number), name.decode(), json.loads(data)) for number, name, data in found]


def pictures(job: dict[str, Any]) -> list[bytes]:
    return [base64.b64decode(entry["b64_json"]) for entry in job["result"]["data"]]


def test_from_beginning_to_end(held: Running) -> None:
    path = create(held, {**JOB, "n": 3, "seed": 40})
    job = held.ask("GET", path).json
    assert (job["type"], job["model"], job["status"], job["images"], job["images_done"]) == (
        "generation", "plain", "queued", 3, 0,
    )  # fmt: skip
    assert job["result"] is job["error"] is job["finished_at"] is None
    let_go(held)
    job = finished(held, path)
    assert [entry["seed"] for entry in job["result"]["data"]] == [40, 41, 42]
    assert pictures(job) == [picture(seed, 8, 12) for seed in (40, 41, 42)]
    assert job["images_done"] == 3 and job["expires_at"] == job["finished_at"] + 86400
    same = held.ask("POST", "/v1/images/generations", {**DRAW, "n": 3, "seed": 40}).json
    ignored = {"created": 0, "usage": 0}
    assert same | ignored == job["result"] | ignored
    for index in range(3):
        image = held.ask("GET", f"{path}/images/{index}")
        assert image.headers["content-type"] == "image/png" and image.body == pictures(job)[index]
    assert held.ask("GET", f"{path}/images/3").status == 404


def test_it_is_on_the_disk_before_it_is_promised(held: Running) -> None:
    path = create(held, JOB)
    with contextlib.closing(
        sqlite3.connect(f"file:{held.state / 'jobs.sqlite'}?mode=ro", uri=True)
    ) as database:
        (settings,) = database.execute("SELECT data FROM requests").fetchone()
        assert database.execute("SELECT id, status FROM jobs").fetchall() == [(path[9:], "queued")]
        assert database.execute("PRAGMA user_version").fetchone() == (2,)
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert json.loads(settings[4:])["body"]["seed"] >= 0  # chosen when it was accepted
    assert stat.S_IMODE(held.state.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("said", "status", "param"),
    [
        (DRAW, 400, "type"), ({**JOB, "type": "nothing"}, 400, "type"), ({**JOB, "type": None}, 400, "type"),
        ({**JOB, "type": ["edit"]}, 400, "type"), ({**JOB, "n": 11}, 400, "n"),
        ({**JOB, "model": "none"}, 404, "model"),
        ({**JOB, "type": "edit"}, 415, None), ({**JOB, "nonsense": 1}, 400, "nonsense"),
    ],
)  # fmt: skip
def test_what_is_refused_is_not_kept(held: Running, said: dict, status: int, param: str | None) -> None:
    answer = held.ask("POST", "/v1/jobs", said)
    assert answer.status == status and answer.error["param"] == param
    assert held.do(lambda: not held.front.jobs.runs and not held.front.admission.places.waiting)


def form(**said: str) -> tuple[bytes, str]:
    parts = [
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{text}\r\n'
        for name, text in said.items()
    ]
    file = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="upload"\r\n\r\n'
    data = "".join(parts).encode() + file.encode() + picture(3, 8, 12) + f"\r\n--{BOUNDARY}--\r\n".encode()
    return data, f"multipart/form-data; boundary={BOUNDARY}"


def test_forms_and_other_routes(held: Running) -> None:
    let_go(held)
    for said in ({"type": "edit", "model": "plain", "prompt": "x"}, {"type": "variation", "model": "plain"},
                 {"type": "classify", "model": "eyes"}, {"type": "apply", "model": "upscale"}):  # fmt: skip
        data, kind = form(**said)
        answer = held.ask("POST", "/v1/jobs", data, Content_Type=kind)
        assert answer.status == 202, answer.body
        job = finished(held, answer.headers["location"])
        assert len(job["result"]["data"]) == 1 and job["type"] == said["type"]
    assert job["result"]["data"][0]["size"] == "24x16"
    url = f"data:image/png;base64,{base64.b64encode(picture()).decode()}"
    job = finished(held, create(held, {"type": "embedding", "model": "eyes", "input": [url, url]}))
    assert [entry["embedding"] for entry in job["result"]["data"]] == [[0.5, -1, 0.25, 3], [1, -1, 0.25, 3]]


def test_what_has_no_effect_is_told(held: Running) -> None:
    answer = held.ask("POST", "/v1/jobs", {**JOB, "prompt": "x", "style": "vivid"})
    assert answer.status == 202 and answer.headers["x-limner-ignored"] == "prompt, style"
    assert "x-limner-ignored" not in held.ask("POST", "/v1/jobs", JOB).headers


def test_urls_last_as_long_as_the_job(held: Running) -> None:
    let_go(held)
    path = create(held, {**JOB, "n": 2, "response_format": "url"})
    urls = [entry["url"] for entry in finished(held, path)["result"]["data"]]
    assert urls == [f"{path}/images/0", f"{path}/images/1"] and not held.front.links.kept


def test_events_go_on_from_any_number(held: Running) -> None:
    path = create(held, {**JOB, "n": 2, "partial_images": 2})
    with contextlib.closing(held.client()) as client:
        client.ask_only("GET", f"{path}/events")
        wait_for(lambda: held.do(lambda: held.front.jobs.changed))
        let_go(held)
        live = client.read()
    assert live.headers["content-type"].startswith("text/event-stream")
    whole = events(live)
    assert [number for number, _, _ in whole] == [1, 2, 3, 4, 5]
    assert [name for _, name, _ in whole] == [
        "job.queued",
        "job.in_progress",
        "job.image",
        "job.image",
        "job.completed",
    ]
    assert [said["index"] for _, name, said in whole if name == "job.image"] == [0, 1]
    assert live.body.count(b"event: image_generation.partial_image\n") >= 1  # under way, without a number
    for last in range(5):
        assert events(held.ask("GET", f"{path}/events", Last_Event_ID=str(last))) == whole[last:]
    assert held.ask("GET", f"{path}/events", Last_Event_ID="5").status == 204
    assert not held.do(lambda: dict(held.front.jobs.changed))  # nobody waits any more
    for wrong in ("-1", "x", "1e3", "9" * 30):
        assert held.ask("GET", f"{path}/events", Last_Event_ID=wrong).status == 400


def test_who_follows_may_leave(held: Running) -> None:
    path = create(held, JOB)
    with contextlib.closing(held.client()) as client:
        client.ask_only("GET", f"{path}/events")
        client.read_head()
    let_go(held)
    finished(held, path)


def test_cancel_twice(held: Running) -> None:
    path = create(held, {**JOB, "n": 4})
    wait_for(lambda: held.engine.works)
    for _ in range(2):
        answer = held.ask("DELETE", path)
        assert answer.status == 200 and answer.json["status"] == "cancelled"
    wait_for(lambda: held.engine.cancelled == [held.engine.works[0].id])
    let_go(held)
    assert events(held.ask("GET", f"{path}/events"))[-1][1] == "job.cancelled"
    done = create(held, JOB)
    assert finished(held, done) and held.ask("DELETE", done).json["status"] == "completed"
    assert all(work != held.engine.works[0].id for work, _ in held.engine.drawn)


def test_idempotency(held: Running) -> None:
    path = create(held, JOB, Idempotency_Key="one")
    again = held.ask("POST", "/v1/jobs", dict(reversed(JOB.items())), Idempotency_Key="one")
    assert again.status == 202 and again.headers["location"] == path
    other = held.ask("POST", "/v1/jobs", {**JOB, "n": 2}, Idempotency_Key="one")
    assert other.status == 422 and other.error["code"] == "idempotency_key_reused"
    assert create(held, JOB, Idempotency_Key="two") != path and create(held, JOB) != create(held, JOB)
    let_go(held)
    finished(held, path)
    done = held.ask("POST", "/v1/jobs", JOB, Idempotency_Key="one")
    assert done.status == 200 and done.json["status"] == "completed"
    assert held.ask("POST", "/v1/jobs", JOB, Idempotency_Key="x" * 256).status == 400
    held.do(lambda: setattr(held.front.admission, "draining", True))
    assert held.ask("POST", "/v1/jobs", JOB, Idempotency_Key="one").status == 200
    held.do(lambda: setattr(held.front.admission, "draining", False))


def test_what_fails_is_told(held: Running) -> None:
    held.engine.fails = Event(
        0, "failed", status=400, code="invalid_value", param="guidance", message="Choose 1 to 4."
    )
    let_go(held)
    path = create(held, JOB)
    job = finished(held, path, "failed")
    assert job["error"]["message"] == "Choose 1 to 4." and job["error"]["param"] == "guidance"
    assert events(held.ask("GET", f"{path}/events"))[-1][1:] == (
        "job.failed", {"type": "job.failed", "job": path[9:], "error": job["error"]},
    )  # fmt: skip


class Dying(FakeEngine):
    """Dies after each ``after`` images of a work, ``deaths`` times."""

    def __init__(self, deaths: int, after: int) -> None:
        super().__init__()
        self.deaths, self.after = deaths, after

    async def draw(self, work, put) -> None:
        if self.deaths and len(work.seeds) > self.after:
            self.deaths -= 1
            for index in range(self.after):
                await self._one(work, index, 1, put)
            put(Event(work.id, "failed", status=503, code="engine_died", message="The engine ended."))
            put(Event(work.id, "ended"))
        else:
            await super().draw(work, put)


@pytest.mark.parametrize("between", [None, [3, 9]])
def test_an_engine_that_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, between: list[int] | None
) -> None:
    """What was drawn is not drawn again, unless an image depends on how many there are; then it stays as it was."""
    monkeypatch.setattr(jobs_run, "WAIT", (0.01, 0.02))
    engine = Dying(4, 1)
    with Running(tmp_path / "state", engine=engine) as running:
        said = {**JOB, "n": 5} | ({"between": between} if between else {"seed": 7})
        job = finished(running, create(running, said))
    assert len(pictures(job)) == 5 and len(engine.works) == 5
    if not between:
        assert [work.seeds for work in engine.works] == [tuple(range(first, 12)) for first in range(7, 12)]
        assert pictures(job) == [picture(seed, 8, 12) for seed in range(7, 12)] and len(engine.drawn) == 5


def test_an_engine_that_always_dies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs_run, "WAIT", (0.01, 0.02))
    engine = Dying(99, 0)
    with Running(tmp_path / "state", engine=engine) as running:
        job = finished(running, create(running, JOB), "failed")
    assert job["error"]["code"] == "engine_died" and len(engine.works) == jobs_run.LOSSES


def test_a_disk_that_fills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No job is promised, an image that is drawn waits for room, and the server lives."""
    monkeypatch.setattr(jobs_run, "WAIT", (0.01, 0.02))
    with Running(tmp_path / "state", engine=Held()) as running:
        path = create(running, {**JOB, "n": 2})
        full = True

        def fsync(descriptor: int, real=os.fsync) -> None:
            if full:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            real(descriptor)

        monkeypatch.setattr(os, "fsync", fsync)
        let_go(running)
        time.sleep(0.2)
        assert (
            running.ask("GET", path).json["images_done"] == 0 and running.ask("GET", "/health").status == 200
        )
        full = False
        job = finished(running, path)
        assert len(pictures(job)) == 2 and len(running.engine.works) == 1

        def accept(*_: object) -> None:
            raise sqlite3.OperationalError("database or disk is full")

        with monkeypatch.context() as patched:
            patched.setattr("limner.serve.http.jobs_store._event", accept)
            answer = running.ask("POST", "/v1/jobs", JOB)
            assert (
                answer.status == 507 and answer.error["code"] == "disk_full" and answer.headers["retry-after"]
            )
            patched.setattr("limner.serve.http.jobs_store._event", lambda *_: 1 / 0)
            assert running.ask("POST", "/v1/jobs", JOB).status == 500
        assert running.ask("GET", "/metrics").body.decode().count('limner_jobs{status="completed"} 1') == 1
        assert running.do(lambda: running.front.idle and not running.front.admission.places.waiting)
        assert finished(running, create(running, JOB))
    assert not list((tmp_path / "state" / "jobs").glob(".*"))


def test_old_jobs_are_removed_with_all_that_they_hold(tmp_path: Path) -> None:
    secret = "a word that nobody else may read"
    with Running(tmp_path / "state", {"keep": "0.5s"}, engine=FakeEngine(seconds=0.01)) as running:
        path = create(running, {"model": "text", "type": "generation", "prompt": secret})
        finished(running, path)
        folder = tmp_path / "state" / "jobs"
        assert len(list(folder.iterdir())) == 1
        wait_for(lambda: running.ask("GET", path).status == 404)
        assert (
            running.ask("GET", f"{path}/events").status == 404 and running.ask("DELETE", path).status == 404
        )
        wait_for(lambda: not list(folder.iterdir()))
        wait_for(
            lambda: (
                not any(
                    secret.encode() in file.read_bytes() for file in (tmp_path / "state").glob("jobs.sqlite*")
                )
            )
        )


def test_what_a_kill_left_is_removed(tmp_path: Path) -> None:
    with Running(tmp_path / "state") as running:
        done = create(running, JOB)
        finished(running, done)
    orphan = tmp_path / "state" / "jobs" / f"job-00000000-{'0' * 32}"
    orphan.mkdir()
    (orphan / "0.png").write_bytes(b"x")
    mine = tmp_path / "state" / "jobs" / "mine.txt"
    mine.write_text("mine")
    with Running(tmp_path / "state") as running:
        assert not orphan.exists() and mine.exists() and finished(running, done)


def test_one_server_at_a_time(tmp_path: Path) -> None:
    store = Store(tmp_path / "state")
    with pytest.raises(LimnerError, match="Another server keeps its jobs"):
        Store(tmp_path / "state")
    replica = store.replica
    store.close()
    store = Store(tmp_path / "state")
    assert store.replica == replica and store.new_id().startswith(f"job-{replica}-")
    store.close()


def test_folders_that_are_refused(tmp_path: Path) -> None:
    other, new, damaged = tmp_path / "other", tmp_path / "new", tmp_path / "damaged"
    other.mkdir()
    (other / "mine.txt").write_text("mine")
    with pytest.raises(LimnerError, match=r"other files, such as mine\.txt"):
        Store(other)
    Store(new).close()
    with contextlib.closing(sqlite3.connect(new / "jobs.sqlite")) as database:
        database.execute("PRAGMA user_version = 99")
    with pytest.raises(LimnerError, match="newer Limner"):
        Store(new)
    damaged.mkdir()
    (damaged / "jobs.sqlite").write_bytes(b"no database at all" * 99)
    with pytest.raises(LimnerError, match="cannot be opened"):
        Store(damaged)
    with pytest.raises(LimnerError, match="is not a folder"):
        Store(damaged / "jobs.sqlite")
    assert not files._runs(2**22 + 1)


def test_a_model_that_is_served_no_more(tmp_path: Path) -> None:
    """A finished job keeps its result; a queued one fails with a sentence."""
    with Running(tmp_path / "state") as running:
        done = create(running, JOB)
        finished(running, done)
        running.engine.held = running.do(lambda: __import__("asyncio").Event())
        queued = create(running, JOB)
    cards = [card for card in FakeEngine().cards.values() if card.id != "plain"]
    with Running(tmp_path / "state", engine=FakeEngine(cards)) as running:
        assert len(pictures(finished(running, done))) == 1
        assert finished(running, queued, "failed")["error"]["code"] == "model_not_found"


def test_kills_at_any_moment(tmp_path: Path) -> None:
    """The front is killed again and again; each job ends with the seeds that it had, and every image once."""
    state, paths, seeds = tmp_path / "state", [], {}
    child = Child(state, 0.02).wait_ready()
    for number in range(5):
        for n in (1, 3):
            paths.append(create(child, {**JOB, "n": n}, Idempotency_Key=f"{number}-{n}"))
        time.sleep(0.02 * number)
        assert child.end(signal.SIGKILL)[0] == -signal.SIGKILL
        with contextlib.closing(sqlite3.connect(state / "jobs.sqlite")) as database:
            for id, data in database.execute("SELECT job, data FROM requests"):
                (length,) = (int.from_bytes(data[:4], "big"),)
                seed = json.loads(data[4 : 4 + length])["body"]["seed"]
                assert seeds.setdefault(id, seed) == seed
        child = Child(state, 0.02).wait_ready()
    for path in paths:
        job = finished(child, path)
        first = seeds[path[9:]]
        assert pictures(job) == [picture(first + i, 8, 12) for i in range(job["images"])]
        told = events(child.ask("GET", f"{path}/events"))
        assert [number for number, _, _ in told] == list(range(1, len(told) + 1))
        names = [name for _, name, _ in told]
        assert names.count("job.image") == job["images"] and names.count("job.completed") == 1
    assert create(child, {**JOB, "n": 5}, Idempotency_Key="new")
    code, _, errors = child.end(signal.SIGTERM)
    assert code == 128 + signal.SIGTERM and "Traceback" not in errors
