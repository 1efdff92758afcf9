"""How fast and how steadily `limner serve` answers: beside one image a time, and beside whole requests.

    python benchmarks/serving.py start --run runs/demo
    python benchmarks/serving.py clients --run runs/demo
    python benchmarks/serving.py waiting --run runs/demo
    python benchmarks/serving.py flood --run runs/demo

Each writes its rows with --record. Servers that are compared run beside each other and are asked in turns, since an
idle one takes no processor time.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from itertools import count
from statistics import median
from typing import Any

from record import record
from serving_tools import Client, Server, metric, processor_seconds, resident

PROMPTS = "a red circle left of a blue square", "a green triangle above a yellow circle", "two blue circles"
FEW = {"figure": "figure", "value": "value", "n": "n"}


def body_for(number: int, steps: int = 16, stream: bool = False, n: int = 1) -> dict[str, Any]:
    asked: dict[str, Any] = {"prompt": PROMPTS[number % len(PROMPTS)], "seed": number, "steps": steps, "n": n}
    return asked | ({"stream": True, "partial_images": 1} if stream else {})


def spread(values: Sequence[float], digits: int = 3) -> list[float]:
    """[median, least, most]"""
    return [round(x, digits) for x in (median(values), min(values), max(values))]


def share(values: Sequence[float], part: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


# Starting -----------------------------------------------------------------------------------------------------


def start(run: str, times: int = 5) -> list[dict[str, Any]]:
    health, ready, front, idle = [], [], [], []
    for _ in range(times):
        began = time.perf_counter()
        with Server([run]) as server:
            while server.get("/health")[0] != 200:
                time.sleep(0.005)
            health.append(time.perf_counter() - began)
            ready.append(server.wait_ready())
            front.append(resident(server.process.pid))
            pids = server.process.pid, server.engine
            before = sum(map(processor_seconds, pids))
            time.sleep(10)
            idle.append((sum(map(processor_seconds, pids)) - before) / 10)
    return [
        {"figure": "seconds to /health", "value": spread(health), "n": times},
        {"figure": "seconds to /ready", "value": spread(ready), "n": times},
        {"figure": "MB of the front", "value": spread(front, 1), "n": times},
        {"figure": "cores when idle", "value": spread(idle, 4), "n": times},
    ]


# Images a second ------------------------------------------------------------------------------------------------


async def rate(port: int, clients: int, seconds: float, steps: int = 16) -> float:
    """Images a second of so many clients, each of which asks again when it has its image."""
    end, done, numbers = time.perf_counter() + seconds, 0, count()

    async def one() -> None:
        nonlocal done
        client = Client(port)
        while time.perf_counter() < end:
            answer = await client.ask("POST", "/v1/images/generations", body_for(next(numbers), steps))
            assert answer.status == 200, answer.body[:300]
            done += 1
        client.close()

    began = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(clients)))
    return done / (time.perf_counter() - began)


def in_turn(
    stack: contextlib.ExitStack, run: str, kinds: Sequence[str], options: Sequence[str], threads: int
) -> dict[str, Server]:
    """Servers by their way of batching, started one after another: each measures its calls at the start."""
    servers = {}
    for kind in kinds:
        servers[kind] = stack.enter_context(Server([run], "--batching", kind, *options, threads=threads))
        servers[kind].wait_ready()
        print(kind, *servers[kind].lines[1:2], flush=True)
    return servers


LOOP = """
import sys, time, limner
pipeline = limner.load(sys.argv[1])
print('ready', flush=True)
for line in sys.stdin:
    end, number, began = time.perf_counter() + float(line), 0, time.perf_counter()
    while time.perf_counter() < end:
        pipeline.sample(1, prompt=sys.argv[2], seed=number, steps=16)
        number += 1
    print(number / (time.perf_counter() - began), flush=True)
"""


@contextlib.contextmanager
def painter(run: str, checkout: str):  # type: ignore[no-untyped-def]
    """``limner.load(run).sample(1)`` in a loop, as the code in ``checkout`` does it (empty: this one)."""
    process = subprocess.Popen(
        [sys.executable, "-c", LOOP, run, PROMPTS[0]], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True, cwd=checkout or None,
    )  # fmt: skip
    assert process.stdin and process.stdout
    process.stdout.readline()

    def measure(seconds: float) -> float:
        assert process.stdin and process.stdout
        process.stdin.write(f"{seconds}\n")
        process.stdin.flush()
        return float(process.stdout.readline())

    yield measure
    process.stdin.close()
    process.wait()


def clients(
    run: str, precision: str, threads: int, checkout: str, numbers: Sequence[int], seconds: float, turns: int
) -> list[dict[str, Any]]:
    rows = []
    kinds = ("single", "exact", "quick")
    with contextlib.ExitStack() as stack:
        options = "--precision", precision, "--max-client", "1024", "--max-queue", "1024"
        servers = in_turn(stack, run, kinds, options, threads)
        alone = stack.enter_context(painter(run, checkout))
        for server in servers.values():
            asyncio.run(rate(server.port, max(numbers), 2))  # warm
        alone(2)
        for number in numbers:
            found: dict[str, list[float]] = {kind: [] for kind in (*kinds, "loop")}
            for _ in range(turns):
                for kind, server in servers.items():
                    found[kind].append(asyncio.run(rate(server.port, number, seconds)))
                found["loop"].append(alone(seconds))
            ratios = {
                f"{kind} / {other}": spread([a / b for a, b in zip(found[kind], found[other], strict=True)])
                for kind, other in (
                    ("exact", "single"),
                    ("quick", "single"),
                    ("exact", "loop"),
                    ("single", "loop"),
                )
            }
            row = {"clients": number, "precision": precision, "threads": threads}
            row |= {kind: spread(values, 2) for kind, values in found.items()}
            rows.append(row | ratios | {"n": turns})
            print(rows[-1], flush=True)
    return rows


# Waiting --------------------------------------------------------------------------------------------------------


def arrivals(n: int, per_second: float, seed: int) -> list[tuple[float, int]]:
    """When each request comes, and its steps: 10, 16 and 50 as 6 : 3 : 1."""
    chance, at, found = random.Random(seed), 0.0, []
    for _ in range(n):
        at += chance.expovariate(per_second)
        found.append((at, chance.choices((10, 16, 50), (6, 3, 1))[0]))
    return found


async def replay(port: int, plan: Sequence[tuple[float, int]]) -> list[tuple[float, float]]:
    """Seconds to the first picture and to the last one of each request, from when it was due."""
    began = time.perf_counter()
    idle: list[Client] = []

    async def one(number: int, at: float, steps: int) -> tuple[float, float]:
        await asyncio.sleep(max(at - (time.perf_counter() - began), 0))
        client = idle.pop() if idle else Client(port)
        late = time.perf_counter() - began - at
        answer = await client.ask("POST", "/v1/images/generations", body_for(number, steps, stream=True))
        assert answer.status == 200, answer.body[:300]
        idle.append(client)
        return late + answer.first, late + answer.seconds

    return await asyncio.gather(*(one(i, at, steps) for i, (at, steps) in enumerate(plan)))


async def capacity(port: int, n: int = 60) -> float:
    """Requests of the mixture a second, one after another."""
    client, began = Client(port), time.perf_counter()
    for number, (_, steps) in enumerate(arrivals(n, 1.0, 7)):
        await client.ask("POST", "/v1/images/generations", body_for(number, steps, stream=True))
    client.close()
    return n / (time.perf_counter() - began)


def waiting(run: str, precision: str, threads: int, n: int) -> list[dict[str, Any]]:
    rows = []
    with contextlib.ExitStack() as stack:
        options = "--precision", precision, "--max-client", "100000", "--max-queue", "100000"
        servers = in_turn(stack, run, ("single", "whole", "exact"), options, threads)
        for server in servers.values():
            asyncio.run(capacity(server.port, 10))
        most = asyncio.run(capacity(servers["single"].port))
        for load in (0.95, 1.5):
            for kind, server in servers.items():
                if load > 1 and kind == "single":
                    continue
                times = asyncio.run(replay(server.port, arrivals(n, load * most, 1)))
                first, whole = zip(*times, strict=True)
                half = len(whole) // 2
                row = {"load": load, "batching": kind, "arrivals a second": round(load * most, 2)}
                row |= {f"p{round(100 * p)}": round(1000 * share(whole, p)) for p in (0.5, 0.99)}
                row |= {f"first p{round(100 * p)}": round(1000 * share(first, p)) for p in (0.5, 0.99)}
                row |= {
                    "p50 of the second half / first": round(median(whole[half:]) / median(whole[:half]), 2)
                }
                for other in rows:
                    if other["load"] == load:
                        row |= {
                            f"{p} / {other['batching']}": round(row[p] / other[p], 3) for p in ("p50", "p99")
                        }
                rows.append(row | {"n": n})
                print(rows[-1], flush=True)
    return rows


# A flood ----------------------------------------------------------------------------------------------------------


def flood(run: str, n: int = 10_000, connections: int = 200) -> list[dict[str, Any]]:
    with Server([run], "--max-client", "64", "--max-queue", "64") as server:
        server.wait_ready()
        asyncio.run(rate(server.port, 8, 3))
        memory = [resident(server.process.pid)]
        found = asyncio.run(_flood(server, n, connections))
        for _ in range(2):  # memory after the first flood is the level that the next ones must keep
            memory.append(resident(server.process.pid))
            asyncio.run(_flood(server, n, connections))
        memory.append(resident(server.process.pid))
    statuses = [status for status, _, _ in found["answers"]]
    refused = [seconds for status, seconds, _ in found["answers"] if status == 429]
    with_advice = sum(status == 429 and "retry-after" in headers for status, _, headers in found["answers"])
    return [
        {
            "figure": "answers 200 and 429",
            "value": f"{statuses.count(200)} and {statuses.count(429)}",
            "n": n,
        },
        {"figure": "429 with Retry-After", "value": with_advice, "n": statuses.count(429)},
        {"figure": "seconds to a 429, p99", "value": round(share(refused, 0.99), 3), "n": len(refused)},
        {"figure": "most images queued", "value": found["most"], "n": len(found["health"])},
        {
            "figure": "ms of /health, p99",
            "value": round(1000 * share(found["health"], 0.99), 1),
            "n": len(found["health"]),
        },
        {
            "figure": "MB of the front, before and after each",
            "value": " ".join(f"{m:.0f}" for m in memory),
            "n": 3,
        },
    ]


async def _flood(server: Server, n: int, connections: int) -> dict[str, Any]:
    answers: list[tuple[int, float, Any]] = []
    health: list[float] = []
    most, over, numbers = 0, asyncio.Event(), iter(range(n))

    async def one() -> None:
        client = Client(server.port)
        for number in numbers:
            answer = await client.ask("POST", "/v1/images/generations", body_for(number))
            answers.append((answer.status, answer.seconds, answer.headers))
        client.close()

    async def watch() -> None:
        nonlocal most
        client = Client(server.port)
        while not over.is_set():
            health.append((await client.ask("GET", "/health")).seconds)
            text = (await client.ask("GET", "/metrics")).body.decode()
            most = max(most, int(metric(text, "limner_queue_images")))
            await asyncio.sleep(0.02)
        client.close()

    watching = asyncio.create_task(watch())
    await asyncio.gather(*(one() for _ in range(connections)))
    over.set()
    await watching
    return {"answers": answers, "health": health, "most": most}


# ------------------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("what", choices=("start", "clients", "waiting", "flood"))
    parser.add_argument("--run", default="runs/demo")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--before", default="", help="checkout whose code draws in a loop")
    parser.add_argument("--clients", default="1,2,4,8,16,32")
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--n", type=int, default=400, help="requests that wait")
    parser.add_argument("--record", action="store_true")
    given = parser.parse_args()
    numbers = [int(n) for n in given.clients.split(",")]
    made: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "start": lambda: start(given.run),
        "clients": lambda: clients(
            given.run, given.precision, given.threads, given.before, numbers, given.seconds, given.turns
        ),
        "waiting": lambda: waiting(given.run, given.precision, given.threads, given.n),
        "flood": lambda: flood(given.run),
    }
    rows = made[given.what]()
    for row in rows:
        print(row)
    if given.record:
        columns = FEW if "figure" in rows[0] else {name: name for row in rows for name in row}
        record(f"serving_{given.what}", columns, rows, threads=given.threads)


if __name__ == "__main__":
    main()
