"""A demo removes what a demo wrote, and nothing of a person's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from limner import config, families, files
from limner.commands import demo
from limner.settings import LimnerError
from tests.test_files import DAMAGED

FILES = (
    "checkpoints/000000000/model.safetensors", "checkpoints/000000000/live.safetensors",
    "checkpoints/000000000/state.json", "samples/000000000064.png", "config.json", "log.jsonl", "model.safetensors",
    "samples.png", "report.html",
)  # fmt: skip


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """The folder of a finished demo, and a person's own files where no demo writes."""
    out = tmp_path / "demo"
    for name in FILES:
        files.write_text(out / name, name)
    result = demo.Result(256, 0.5, 1.0, 3.0, 64, 20.0, 100.0, 300, {}, 0, demo.hashes(out))
    files.write_json(out / "demo.json", result.to_json())
    for name in ("mine.txt", "evaluation/evaluation.json", ".lock"):
        files.write_text(out / name, "mine")
    return out


def contents(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()}


def test_a_finished_demo_is_set_aside_and_put_back(finished: Path) -> None:
    before = contents(finished)
    demo.set_aside(finished)
    left = {path.name for path in finished.iterdir()}
    assert left == {"mine.txt", "evaluation", ".lock", demo.EARLIER}
    (finished / "config.json").write_text("of the next, which could not begin")
    demo.restore(finished)
    assert contents(finished) == before and not (finished / demo.EARLIER).exists()


@pytest.mark.parametrize(
    "name",
    ["checkpoints/mine.txt", "samples/mine.png", "samples/000000000128.png", "checkpoints/000000064/state.json",
     "checkpoints/000000000/mine", *FILES],
)  # fmt: skip
def test_a_persons_own_file_at_a_demos_place_is_refused(name: str, finished: Path) -> None:
    files.write_text(finished / name, "mine")
    before = contents(finished)
    with pytest.raises(LimnerError, match=rf"{name} was not written by the demo, or has changed since"):
        demo.set_aside(finished)
    assert contents(finished) == before


@pytest.mark.parametrize("content", [*DAMAGED.values(), b"{}", b'{"prompts": 256}'])
def test_another_demo_json_is_refused(content: bytes, finished: Path) -> None:
    (finished / "demo.json").write_bytes(content)
    with pytest.raises(LimnerError, match=r"demo\.json was not written by this version's demo"):
        demo.set_aside(finished)
    assert (finished / "model.safetensors").exists()


def test_a_list_that_names_other_files_moves_none_of_them(finished: Path) -> None:
    told = files.read_json(finished / "demo.json")
    told["written"] |= {"mine.txt": "", "../other": "", "evaluation/evaluation.json": ""}
    files.write_json(finished / "demo.json", told)
    demo.set_aside(finished)
    assert (finished / "mine.txt").exists() and (finished / "evaluation/evaluation.json").exists()


def test_another_run_is_not_resumed_as_a_demo(tmp_path: Path) -> None:
    run = config.preset_run(families.DEFAULT, "small")
    config.write_run(tmp_path, run)
    demo.refuse_other_run(tmp_path, run)
    with pytest.raises(LimnerError, match=r"holds another run than this demo's"):
        demo.refuse_other_run(tmp_path, config.preset_run("vae", "small"))
