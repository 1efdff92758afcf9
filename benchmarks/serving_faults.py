"""Is an image of `limner serve` the same whatever happens around it, and is no accepted job lost?

    python benchmarks/serving_faults.py bytes
    python benchmarks/serving_faults.py cancels
    python benchmarks/serving_faults.py kills
    python benchmarks/serving_faults.py soak --minutes 30

Tiny runs of eight families are made in --to first. Each writes its rows with --record.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import io
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from record import record
from serving_tools import Client, Server, handles, metric, resident, thread_count

# Family, source, and whether it starts from pictures.
RUNS = {
    "flow": "shapes", "dit": "shapes", "ddpm": "digits", "edm": "digits", "latent": "shapes", "meanflow": "digits",
    "drifting": "digits", "dcgan": "digits",
}  # fmt: skip
EDITS = "flow", "ddpm", "edm", "latent"  # families that start from a picture
SOLVERS = "ancestral", "ddim", "euler", "heun", "dpm2m", "dpm2m_sde", "dpm3m", "unipc"
FEW = {"figure": "figure", "value": "value", "n": "n"}
BOUNDARY = "----limner"


def make_runs(to: Path) -> list[Path]:
    for family, source in RUNS.items():
        if not (to / family / "model.safetensors").exists():
            call = [
                sys.executable,
                "-m",
                "limner.cli",
                "train",
                family,
                source,
                "--preset",
                "tiny",
                "--size",
                "24",
            ]
            call += ["--budget", "256img", "--out", str(to / family), "--training.samples", "0"]
            subprocess.run(call, check=True, stdout=subprocess.DEVNULL)
    return [to / family for family in RUNS]


# Requests -------------------------------------------------------------------------------------------------------


def form(fields: dict[str, Any], files: dict[str, bytes]) -> tuple[bytes, dict[str, str]]:
    """A multipart body, and its header."""
    parts = [
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    ]
    for name, content in files.items():
        head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"; filename="upload"\r\n\r\n'
        parts.append(head.encode() + content + b"\r\n")
    parts.append(f"--{BOUNDARY}--\r\n".encode())
    return b"".join(parts), {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}


def png(chance: random.Random, mask: bool = False) -> bytes:
    rng, out = np.random.default_rng(chance.randrange(2**32)), io.BytesIO()
    pixels = rng.integers(0, 256, (24, 24, 4), dtype=np.uint8)
    pixels[..., 3] = 255
    if mask:
        pixels[4:12, 4 : 4 + chance.randrange(4, 12), 3] = 0
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def request(number: int) -> tuple[str, Any, dict[str, str]]:
    """A path, a body and its headers: any family with solvers, guidance, strength, masks, n, labels and long texts."""
    chance = random.Random(number)
    family = list(RUNS)[number % len(RUNS)]
    asked: dict[str, Any] = {
        "model": family,
        "seed": chance.randrange(2**40),
        "n": chance.choice((1, 1, 1, 2, 4)),
    }
    if RUNS[family] == "shapes":
        words = "a red circle left of a blue square and a small green triangle above them".split()
        asked["prompt"] = " ".join(words[: chance.randrange(2, len(words))]) * chance.choice((1, 1, 3))
    else:
        asked["prompt"] = str(chance.randrange(10))
    if family not in ("drifting", "dcgan", "meanflow"):
        asked["steps"] = chance.randrange(2, 12)
        asked["guidance"] = chance.choice((1.0, 1.5, 3.0))
        asked["solver"] = chance.choice(SOLVERS)
    elif family == "meanflow":
        asked["steps"] = chance.randrange(1, 4)
    if family in EDITS and chance.random() < 0.5:
        files = {"image": png(chance)}
        if chance.random() < 0.5:
            files["mask"] = png(chance, mask=True)
            asked |= {"solver": "ancestral", "repaints": 2}
        else:
            asked["strength"] = round(chance.uniform(0.2, 1.0), 2)
        return "/v1/images/edits", *form(asked, files)
    return "/v1/images/generations", asked, {}


def digest(answer: Any) -> str:
    images = "".join(entry["b64_json"] for entry in answer["data"])
    return hashlib.sha256(images.encode()).hexdigest()[:16]


async def draw(port: int, numbers: Sequence[int], company: int, quitters: int = 0) -> dict[int, str]:
    """The digest of each request, ``company`` of them at a time; ``quitters`` others leave while they are drawn."""
    found: dict[int, str] = {}
    waiting = iter(numbers)
    chance = random.Random(1)

    async def one() -> None:
        client = Client(port)
        for number in waiting:
            path, body, headers = request(number)
            answer = await client.ask("POST", path, body, headers)
            if answer.status != 200:
                raise SystemExit(f"{answer.status} {answer.body.decode()[:500]} for {path} {body!r:.300}")
            found[number] = digest(answer.json)
        client.close()

    async def leave() -> None:
        while len(found) < len(numbers):
            client = Client(port)
            path, body, headers = request(chance.randrange(10**6, 2 * 10**6))
            await client.send("POST", path, body, headers)
            await asyncio.sleep(chance.uniform(0.0, 0.3))
            client.close()

    leaving = [asyncio.create_task(leave()) for _ in range(quitters)]
    await asyncio.gather(*(one() for _ in range(company)))
    for task in leaving:
        task.cancel()
    return found


def same_bytes(to: Path, thread_counts: Sequence[int] = (1, 2), n: int = 200) -> list[dict[str, Any]]:
    runs, numbers, rows = make_runs(to), list(range(n)), []

    def shuffled(seed: int) -> list[int]:
        return random.Random(seed).sample(numbers, n)

    def row(figure: str, one: dict[int, str], other: dict[int, str]) -> None:
        differ = sorted(k for k in one if one[k] != other[k])
        rows.append({"figure": figure, "value": n - len(differ), "n": n})
        print(rows[-1], Counter(list(RUNS)[k % len(RUNS)] for k in differ), differ[:20], flush=True)

    for threads in thread_counts:
        with Server(runs, threads=threads) as server:
            server.wait_ready()
            alone = asyncio.run(draw(server.port, numbers, 1))
            among = asyncio.run(draw(server.port, shuffled(1), 16))
            row(f"exact, {threads} threads: among 15 others as alone", alone, among)
            left = asyncio.run(draw(server.port, shuffled(2), 16, quitters=4))
            row(f"exact, {threads} threads: beside clients that leave", alone, left)
            text = server.get("/metrics")[1].decode()
            print("mismatches", metric(text, "limner_mismatches_total"))
        with Server(runs, threads=threads) as server:
            server.wait_ready()
            again = asyncio.run(draw(server.port, shuffled(3), 16))
            row(f"exact, {threads} threads: after a restart, among others", alone, again)
    with Server(runs, "--batching", "quick", threads=1) as server:
        server.wait_ready()
        alone = asyncio.run(draw(server.port, numbers, 1))
        among = asyncio.run(draw(server.port, shuffled(1), 16))
        row("quick, 1 thread: among 15 others as alone", alone, among)
    return rows


# Cancels --------------------------------------------------------------------------------------------------------


def cancels(to: Path, n: int = 2000, cancelled: int = 1000) -> list[dict[str, Any]]:
    runs = make_runs(to)
    with Server(runs, "--max-client", "4096", "--max-queue", "4096", threads=1) as server:
        server.wait_ready()
        usual = asyncio.run(draw(server.port, range(200), 8))
        found = asyncio.run(_cancels(server.port, n, cancelled, usual))
        time.sleep(3)
        text = server.get("/metrics")[1].decode()
        left = metric(text, "limner_queue_images"), metric(text, "limner_flights")
    return [
        {"figure": "others drawn with the same bytes", "value": found["same"], "n": n - cancelled},
        {
            "figure": "jobs that DELETE ended as cancelled, or that were done before",
            "value": found["ended"],
            "n": found["jobs"],
        },
        {"figure": "sockets closed", "value": found["closed"], "n": cancelled - found["jobs"]},
        {
            "figure": "images of jobs written after their DELETE was answered",
            "value": found["late"],
            "n": found["jobs"],
        },
        {
            "figure": "images waiting and flying at the end",
            "value": f"{left[0]:.0f} and {left[1]:.0f}",
            "n": 1,
        },
    ]


async def _cancels(port: int, n: int, cancelled: int, usual: dict[int, str]) -> dict[str, int]:
    chance = random.Random(5)
    which = set(chance.sample(range(n), cancelled))
    plan, found = iter(range(n)), Counter[str]()
    deleted: list[tuple[str, int]] = []

    async def one() -> None:
        client = Client(port)
        for number in plan:
            path, body, headers = request(number % 200)
            if number not in which:
                answer = await client.ask("POST", path, body, headers)
                found["same"] += answer.status == 200 and digest(answer.json) == usual[number % 200]
            elif number % 2 and path.endswith("generations"):
                found["jobs"] += 1
                job = (await client.ask("POST", "/v1/jobs", {"type": "generation", **body})).json
                await asyncio.sleep(chance.uniform(0, 0.4))
                answer = await client.ask("DELETE", f"/v1/jobs/{job['id']}")
                found["ended"] += answer.status == 200 and answer.json["status"] in ("cancelled", "completed")
                deleted.append((job["id"], drawn_in(answer.json)))
            else:
                found["closed"] += 1
                leaver = Client(port)
                await leaver.send("POST", path, body, headers)
                await asyncio.sleep(chance.uniform(0, 0.4))
                leaver.close()
        client.close()

    await asyncio.gather(*(one() for _ in range(24)))
    await asyncio.sleep(2)
    client = Client(port)
    for name, drawn in deleted:
        found["late"] += drawn_in((await client.ask("GET", f"/v1/jobs/{name}")).json) > drawn
    client.close()
    return found


def drawn_in(job: Any) -> int:
    """Images that a job has."""
    return int(job["images_done"])


# Kills ----------------------------------------------------------------------------------------------------------


def kills(to: Path, of_engine: int = 20, of_all: int = 50) -> list[dict[str, Any]]:
    """Jobs are sent all the time, while the engine or all is killed at random moments; each must end the same."""
    runs, chance = make_runs(to), random.Random(3)
    state = tempfile.mkdtemp()
    accepted: dict[str, int] = {}  # job -> its request
    options = "--state", state, "--max-client", "100000", "--max-queue", "100000"
    server = Server(runs, *options, threads=1)
    server.wait_ready()
    usual = asyncio.run(draw(server.port, [k for k in range(200) if is_generation(k)], 8))
    port, answers = server.port, dict[str, set[str]]()
    for kill in range(of_engine + of_all):
        asyncio.run(send_jobs(port, accepted, chance, 6))
        time.sleep(chance.uniform(0, 1.0))
        asyncio.run(look(port, accepted, answers))
        if kill < of_engine:
            with contextlib.suppress(ProcessLookupError):
                os.kill(server.engine, signal.SIGKILL) if server.engine else None
            continue
        server.kill()
        server = Server(runs, *options, threads=1, port=port)
        if chance.random() < 0.5:
            server.wait_ready()
        print("killed", kill + 1, "accepted", len(accepted), flush=True)
    server.wait_ready()
    end = time.time() + 300
    while time.time() < end and len(answers) < len(accepted):
        asyncio.run(look(port, accepted, answers))
        time.sleep(0.5)
    right = sum(answers.get(job) == {usual[number]} for job, number in accepted.items())
    twice = sum(len(found) > 1 for found in answers.values())
    server.stop()
    return [
        {"figure": "SIGKILLs of the engine", "value": of_engine, "n": of_engine},
        {"figure": "SIGKILLs of all", "value": of_all, "n": of_all},
        {
            "figure": "accepted jobs done with the bytes of an undisturbed server",
            "value": right,
            "n": len(accepted),
        },
        {"figure": "jobs answered with two different results", "value": twice, "n": len(accepted)},
    ]


def is_generation(number: int) -> bool:
    return request(number)[0].endswith("generations")


async def send_jobs(port: int, accepted: dict[str, int], chance: random.Random, n: int) -> None:
    client = Client(port)
    for _ in range(n):
        number = chance.choice([k for k in range(200) if is_generation(k)])
        with contextlib.suppress(OSError, EOFError):
            answer = await client.ask("POST", "/v1/jobs", {"type": "generation", **request(number)[1]})
            if answer.status == 202:
                accepted[answer.json["id"]] = number
            else:
                print(answer.status, answer.body[:200])
    client.close()


async def look(port: int, accepted: dict[str, int], answers: dict[str, set[str]]) -> None:
    """Note the digest of every job that is done: it must stay what it is."""
    client = Client(port)
    for job in accepted:
        with contextlib.suppress(OSError, EOFError):
            answer = await client.ask("GET", f"/v1/jobs/{job}")
            if answer.status != 200:
                print(job, answer.status, answer.body[:200])
            elif answer.json["status"] == "completed":
                answers.setdefault(job, set()).add(digest(answer.json["result"]))
            elif answer.json["status"] == "failed":
                print(answer.body[:300])
    client.close()


# Soak -----------------------------------------------------------------------------------------------------------


def soak(to: Path, minutes: float) -> list[dict[str, Any]]:
    runs, seen = make_runs(to), list[tuple[float, float, float, int, int]]()
    server = Server(runs, threads=1)
    server.wait_ready()
    began = time.time()

    def note() -> None:
        front, engine = server.process.pid, server.engine
        seen.append(
            (time.time() - began, resident(front), resident(engine), handles(front), thread_count(engine))
        )
        print(seen[-1], flush=True)

    asyncio.run(_soak(server.port, 60 * minutes, note))
    time.sleep(3)
    note()
    code = server.stop()
    early = max((row for row in seen if row[0] >= min(300, 10 * minutes)), key=lambda row: -row[0])
    last = seen[-1]
    both = early[1] + early[2], last[1] + last[2]
    return [
        {"figure": "MB of the front", "value": _from_to(early[1], last[1]), "n": 1},
        {"figure": "MB of the engine", "value": _from_to(early[2], last[2]), "n": 1},
        {
            "figure": "percent that the memory of both grew",
            "value": round(100 * (both[1] / both[0] - 1), 1),
            "n": 1,
        },
        {
            "figure": "file handles of the front, at first and at the end",
            "value": f"{seen[0][3]} and {last[3]}",
            "n": 1,
        },
        {
            "figure": "threads of the engine, at first and at the end",
            "value": f"{seen[0][4]} and {last[4]}",
            "n": 1,
        },
        {"figure": "exit code", "value": code, "n": 1},
        {
            "figure": "lines with Traceback",
            "value": sum("Traceback" in line for line in server.lines),
            "n": 1,
        },
    ]


def _from_to(early: float, last: float) -> str:
    return f"{early:.0f} after 5 minutes, {last:.0f} at the end"


BAD: list[tuple[str, str, Any, dict[str, str]]] = [
    ("POST", "/v1/images/generations", {"model": "flow", "prompt": "x", "steps": 10**9}, {}),
    ("POST", "/v1/images/generations", {"model": "nothing", "prompt": "x"}, {}),
    ("POST", "/v1/images/generations", b'{"prompt": "x", "guidance": NaN}', {}),
    ("POST", "/v1/images/generations", b"[" * 10_000, {}),
    ("POST", "/v1/images/generations", b'{"prompt": ', {}),
    ("POST", "/v1/images/edits", *form({"prompt": "x"}, {"image": b"<svg/>"})),
    ("POST", "/v1/images/generations", b"x", {"Content-Type": "text/plain"}),
    ("GET", "/v1/jobs/../../etc/passwd", None, {}),
    ("GET", "/v1/models/%2e%2e%2f", None, {}),
    ("POST", "/v1/images/generations", {"prompt": "x"}, {"Host": "evil.example"}),
]  # fmt: skip


async def _soak(port: int, seconds: float, note: Callable[[], None]) -> None:
    end, chance = time.time() + seconds, random.Random(9)
    counts = Counter[int]()

    async def good() -> None:
        client = Client(port)
        while time.time() < end:
            path, body, headers = request(chance.randrange(10**6))
            counts[(await client.ask("POST", path, body, headers)).status] += 1
        client.close()

    async def leaving() -> None:
        while time.time() < end:
            client = Client(port)
            await client.send("POST", *request(chance.randrange(10**6)))
            await asyncio.sleep(chance.uniform(0, 0.5))
            client.close()

    async def bad() -> None:
        while time.time() < end:
            client = Client(port)
            with contextlib.suppress(OSError, EOFError):
                answer = await client.ask(*chance.choice(BAD))
                counts[answer.status] += 1
                assert answer.status >= 400
            client.close()
            await asyncio.sleep(0.05)

    async def slow() -> None:
        """Reads nothing for a while of a stream."""
        while time.time() < end:
            client = Client(port)
            body = {"model": "flow", "prompt": "x", "n": 4, "stream": True, "partial_images": 3}
            await client.send("POST", "/v1/images/generations", body)
            await asyncio.sleep(chance.uniform(1, 8))
            client.close()

    async def jobs() -> None:
        client = Client(port)
        while time.time() < end:
            body = {"type": "generation", "model": "dcgan", "prompt": "3", "n": 2}
            answer = await client.ask("POST", "/v1/jobs", body)
            counts[answer.status] += 1
            if answer.status == 202 and chance.random() < 0.5:
                await client.ask("DELETE", f"/v1/jobs/{answer.json['id']}")
            await asyncio.sleep(0.5)
        client.close()

    async def watch() -> None:
        while time.time() < end:
            note()
            await asyncio.sleep(min(60, seconds / 10))

    tasks = [good() for _ in range(6)] + [leaving(), leaving(), bad(), bad(), slow(), slow(), jobs(), watch()]
    await asyncio.gather(*tasks)
    print(dict(counts), flush=True)


# ----------------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("what", choices=("bytes", "cancels", "kills", "soak"))
    parser.add_argument("--to", type=Path, default=Path("runs/serving"))
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--record", action="store_true")
    given = parser.parse_args()
    made: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "bytes": lambda: same_bytes(given.to), "cancels": lambda: cancels(given.to), "kills": lambda: kills(given.to),
        "soak": lambda: soak(given.to, given.minutes),
    }  # fmt: skip
    rows = made[given.what]()
    for row in rows:
        print(row)
    if given.record:
        record(f"serving_{given.what}", FEW, rows, threads=1)


if __name__ == "__main__":
    main()
