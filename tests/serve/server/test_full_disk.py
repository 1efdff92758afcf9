"""A disk that is truly full, where the machine lets this user mount a small one."""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serve.server.running import DRAW, Child
from tests.serve.server.test_jobs import JOB, create, finished


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "limner-test", disk], capture_output=True
    )
    if not mounted or mounted.returncode:
        pytest.skip("NO SMALL DISK: this user may not mount a tmpfs, so a truly full disk is not tested")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def fill(disk: Path) -> Path:
    with open(disk / "filler", "wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        while True:
            file.write(bytes(4096))
    return disk / "filler"


def test_no_job_is_promised_and_none_is_lost(small_disk: Path) -> None:
    child = Child(small_disk / "state", 0.01).wait_ready()
    before = create(child, JOB)
    finished(child, before)
    under_way = create(child, {**JOB, "n": 10})
    filler = fill(small_disk)
    refused = [child.ask("POST", "/v1/jobs", JOB) for _ in range(3)]
    assert {answer.status for answer in refused} == {507} and refused[0].error["code"] == "disk_full"
    assert (
        child.ask("GET", "/health").status == 200 and child.ask("GET", before).json["status"] == "completed"
    )
    assert child.ask("POST", "/v1/images/generations", DRAW).status == 200  # needs no disk
    filler.unlink()
    assert len(finished(child, under_way)["result"]["data"]) == 10 and finished(child, create(child, JOB))
    code, _, errors = child.end(signal.SIGTERM)
    assert code == 128 + signal.SIGTERM and errors == ""
