"""The server as a Ray Serve application: a replica by itself, and, where Ray is installed, behind Ray's proxy."""

from __future__ import annotations

import asyncio
import base64
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from limner.serve import ray as adapter
from limner.serve.http.jobs_store import Store
from limner.serve.options import ServeOptions
from limner.settings import LimnerError
from tests.serve.test_command import address, asked, lives, served, until
from tests.test_frozen import unpack

BODY = {"model": "me/flow", "prompt": "cat", "n": 2, "seed": 5, "steps": 3}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack("flow-label", tmp_path_factory.mktemp("flow"))


def engines(state: Path) -> list[int]:
    """The processes that draw for servers whose jobs lie there."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            line = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if str(state).encode() in line and b"process.run(" in line:
            found.append(int(entry.name))
    return found


def decoded(made: Any) -> list[bytes]:
    return [base64.b64decode(image["b64_json"]) for image in made["data"]]


def options(state: Path) -> dict[str, Any]:
    return {"state": str(state), "threads": 1, "device": "cpu", "precision": "float32"}


# A replica by itself ----------------------------------------------------------------------------------------


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ray", "ray.serve"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(LimnerError, match=r"pip install 'limner\[ray\]'"):
        adapter.app("runs/x")


def within(seconds: float, act: Callable[[], Any]) -> None:
    async def run() -> None:
        async with asyncio.timeout(seconds):
            await act()

    asyncio.run(run())


def test_a_replica(run: Path, tmp_path: Path) -> None:
    """It answers once it is started, refuses foreign names, outlives its engine's death, and ends with its engine."""

    async def act() -> None:
        replica = adapter.Replica(
            ServeOptions(runs=(f"me/flow={run}",), port=8123, batching="quick", **options(tmp_path))
        )
        transport = httpx2.ASGITransport(app=await replica.start(1))
        async with httpx2.AsyncClient(
            transport=transport, base_url="http://localhost:8123", timeout=60
        ) as client:
            first = await client.post("/v1/images/generations", json=BODY)
            assert first.status_code == 200, first.text
            assert (await client.get("/health", headers={"Host": "localhost:8124"})).status_code == 403
            assert (
                await client.get("/health", headers={"Origin": "http://other.example"})
            ).status_code == 403
            (engine,) = engines(tmp_path)
            os.kill(engine, signal.SIGKILL)
            while replica.engine.ready:
                await asyncio.sleep(0.01)
            while not replica.engine.ready:
                await replica.check_health()
                await asyncio.sleep(0.01)
            again = await client.post("/v1/images/generations", json=BODY)
            assert again.json()["data"] == first.json()["data"]
        assert len(engines(tmp_path)) == 1 and (tmp_path / "replica-1").is_dir()
        await replica.stack.aclose()
        assert not engines(tmp_path)

    within(120, act)


def test_a_run_that_cannot_be_opened(tmp_path: Path) -> None:
    """Nothing is left of the replica, so the next one can have its jobs."""
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/model.safetensors").write_bytes(b"nothing")
    given = options(tmp_path / "state")

    async def act() -> None:
        replica = adapter.Replica(ServeOptions(runs=(str(tmp_path / "bad"),), **given))
        with pytest.raises(LimnerError, match=r"model\.safetensors"):
            await replica.start(0)
        await replica.stack.aclose()
        assert not engines(tmp_path) and len(asyncio.all_tasks()) == 1
        Store(tmp_path / "state" / "replica-0").close()

    within(60, act)


# Behind Ray -------------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.mark.slow
def test_on_a_local_ray(run: Path, tmp_path: Path) -> None:
    """Through its proxy the real client gets the bytes that `limner serve` gives; nothing is left at the end."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'limner[ray]'")
    from ray import serve

    given = options(tmp_path / "state")
    flags = ("--precision", "float32", "--state", tmp_path / "own")
    with served(f"me/flow={run}", *flags) as process:
        url = address(process)
        until(lambda: asked(f"{url}/ready")[0] == 200)
        wanted = decoded(asked(f"{url}/v1/images/generations", BODY)[1])
    port = free_port()
    try:
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(adapter.app(f"me/flow={run}", port=port, **given))
        with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0) as client:
            assert [model.id for model in client.models.list()] == ["me/flow"]
            extra = {"seed": BODY["seed"], "steps": BODY["steps"]}
            for _ in range(2):
                made = client.images.generate(model="me/flow", prompt="cat", n=2, extra_body=extra)
                assert decoded(made.to_dict()) == wanted
            events = list(
                client.images.generate(model="me/flow", prompt="cat", stream=True, extra_body=extra)
            )
            assert base64.b64decode(events[-1].b64_json) == wanted[0]
            job = client.post("/jobs", body={**BODY, "type": "generation"}, cast_to=object)
            assert job["id"].startswith("job-")
            until(lambda: client.get(f"/jobs/{job['id']}", cast_to=object)["status"] == "completed")
            assert decoded(client.get(f"/jobs/{job['id']}", cast_to=object)["result"]) == wanted
            with pytest.raises(openai.PermissionDeniedError) as foreign:
                client.with_options(default_headers={"Host": f"evil.example:{port}"}).models.list()
            assert foreign.value.code == "foreign_host"
        (engine,) = engines(tmp_path / "state")
        replica = int(Path(f"/proc/{engine}/stat").read_text().rpartition(")")[2].split()[1])  # its parent
    finally:
        serve.shutdown()
        ray.shutdown()
    until(lambda: not lives(replica) and not lives(engine) and not engines(tmp_path), 20)
