"""What outlives an engine, a server and a kill: jobs that were accepted meanwhile, and what was used."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest

from limner.serve.http import jobs_database, usage
from limner.serve.http.jobs_store import Store, disk_error
from tests.serve.fake_engine import FakeEngine, picture
from tests.serve.server.running import DRAW, Child, Running, wait_for
from tests.serve.server.test_jobs import JOB, create, finished, pictures


def test_a_job_waits_for_an_engine_that_is_started_again(tmp_path: Path) -> None:
    """It is on the disk, so nobody need ask again."""
    with Running(tmp_path / "state") as running:
        running.engine.stops = True
        assert running.ask("POST", "/v1/images/generations", DRAW).error["code"] == "engine_starting"
        path = create(running, {**JOB, "n": 2, "seed": 5})
        time.sleep(0.15)
        assert running.ask("GET", path).json["status"] == "queued"
        running.engine.stops = False
        assert pictures(finished(running, path)) == [picture(seed, 8, 12) for seed in (5, 6)]


def test_what_a_job_says_is_checked_meanwhile(tmp_path: Path) -> None:
    with Running(tmp_path / "state") as running:
        running.engine.stops = True
        assert running.ask("POST", "/v1/jobs", {**JOB, "n": 11}).error["param"] == "n"
        running.do(lambda: setattr(running.front.admission, "draining", True))
        assert running.ask("POST", "/v1/jobs", JOB).error["code"] == "shutting_down"


def test_before_the_first_engine_there_is_nothing_to_check_by(tmp_path: Path) -> None:
    with Running(tmp_path / "state", engine=FakeEngine(cards=())) as running:
        answer = running.ask("POST", "/v1/jobs", JOB)
        assert (
            answer.status == 503
            and answer.error["code"] == "engine_starting"
            and answer.headers["retry-after"]
        )


# Usage ------------------------------------------------------------------------------------------------------


def used(running: Running | Child) -> dict[str, Any]:
    return running.ask("GET", "/v1/usage").json


def drawn(running: Running | Child, n: int) -> None:
    assert running.ask("POST", "/v1/images/generations", {**DRAW, "n": n, "steps": 5}).status == 200


def kept(state: Path) -> int:
    """Images that are in the database."""
    with contextlib.closing(sqlite3.connect(f"file:{state / 'jobs.sqlite'}?mode=ro", uri=True)) as database:
        return int(database.execute("SELECT coalesce(sum(images), 0) FROM used").fetchone()[0])


def test_usage_goes_on_in_the_next_server(tmp_path: Path) -> None:
    """It is kept at the end at the latest, and nothing is added twice."""
    state = tmp_path / "state"
    with Running(state) as running:
        drawn(running, 2)
        first = used(running)
        assert (first["images"], first["evaluations"]) == (2, 10) and abs(first["since"] - time.time()) < 60
    with Running(state) as running:
        drawn(running, 3)
        finished(running, create(running, {**JOB, "steps": 5}))
        said = used(running)
        assert (said["images"], said["evaluations"], said["since"]) == (6, 30, first["since"])
        assert [entry["model"] for entry in said["data"]] == ["plain"]
        assert b'limner_images_total{model="plain",client=""} 4\n' in running.ask("GET", "/metrics").body
    assert kept(state) == 6
    with Running(state) as running:
        assert used(running)["images"] == 6


def test_usage_is_kept_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each batch once, and what a full disk did not take with the next one."""
    monkeypatch.setattr(usage, "EVERY", 0.01)
    with Running(tmp_path / "state") as running:
        for images in (2, 4):
            drawn(running, 2)
            wait_for(lambda: kept(tmp_path / "state") == images)  # noqa: B023
        tried = []

        async def full(more: object) -> None:
            tried.append(more)
            raise disk_error(OSError("No space left"))

        running.do(lambda: setattr(running.front.store, "add_used", full))
        drawn(running, 3)
        wait_for(lambda: len(tried) > 1)
        assert kept(tmp_path / "state") == 4 and used(running)["images"] == 7
        running.do(lambda: delattr(running.front.store, "add_used"))
        wait_for(lambda: kept(tmp_path / "state") == 7)


def test_usage_waits_until_it_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Running(tmp_path / "state") as running:
        drawn(running, 2)
    running, read = Running(tmp_path / "state"), Store.used
    answers: list[asyncio.Task[dict[str, Any]]] = []

    async def late(store: Store) -> Any:
        answers.append(asyncio.create_task(asyncio.to_thread(used, running)))
        await asyncio.sleep(0.3)
        return await read(store)

    monkeypatch.setattr(Store, "used", late)
    with running:
        wait_for(lambda: answers[0].done())
        assert answers[0].result()["images"] == 2


def test_a_kill_loses_little(tmp_path: Path) -> None:
    child = Child(tmp_path / "state").wait_ready()
    drawn(child, 4)
    wait_for(lambda: kept(tmp_path / "state") == 4, 2 * usage.EVERY)
    child.end(signal.SIGKILL)
    child = Child(tmp_path / "state").wait_ready()
    assert used(child)["images"] == 4
    child.end(signal.SIGTERM)


def test_a_database_of_the_first_version_is_brought_up_to_date(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the jobs that it holds."""
    with monkeypatch.context() as before:
        before.setattr(jobs_database, "MIGRATIONS", jobs_database.MIGRATIONS[:1])
        store = Store(tmp_path / "state")
        store._database.execute(
            "INSERT INTO jobs VALUES ('job-1', '', 'c', NULL, 'd', 'generation', 'plain', 1, 'png', 'completed', "
            "1e9, 1e9, 9e9, '{}', NULL)"
        )
        store._database.commit()
        store.close()
    with Running(tmp_path / "state") as running:
        assert used(running)["images"] == 0
        assert b'limner_jobs{status="completed"} 1\n' in running.ask("GET", "/metrics").body


def test_a_job_keeps_what_the_server_gave_when_it_was_accepted(tmp_path: Path) -> None:
    """Whatever the options of the next one: its images have one size, and say as little as was promised."""
    said = {
        **JOB,
        "model": "text",
        "prompt": "a secret",
        "size": "16x16",
        "response_format": "url",
        "n": 2,
        "seed": 3,
    }
    with Running(tmp_path / "state", {"resize": True}) as running:
        running.engine.held = running.do(asyncio.Event)
        path = create(running, said)
        plain = create(running, {**JOB, "seed": 4})
    with Running(tmp_path / "state", {"metadata": "on"}) as running:
        result = finished(running, path)["result"]
        assert result["size"] == "16x16" and [entry["seed"] for entry in result["data"]] == [3, 4]
        for entry in result["data"]:
            assert running.ask("GET", entry["url"]).body == picture(entry["seed"], 16, 16)
        assert pictures(finished(running, plain)) == [picture(4, 8, 12)]
        assert [work.form.metadata for work in running.engine.works] == ["", ""]
        finished(running, create(running, JOB))
        assert running.engine.works[-1].form.metadata
