"""`limner sample` of runs that draw clips: one in a file, several in one file, sheets and folders."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from limner import checkpoint, cli, families
from limner.config import Run
from limner.core import Batch, Condition, ImageSpec
from limner.inference.pipeline import Pipeline
from limner.inference.sheets import sample_grid
from limner.pictures.grid import to_pixels
from limner.settings import DataOptions, LimnerError
from tests.helpers import animate

SPEC = ImageSpec(3, 16, 16, frames=5, classes=("cat", "dog"), captions=True, rate=10.0)


@pytest.fixture
def mover(monkeypatch: pytest.MonkeyPatch) -> None:
    """The family in ``tests/toy`` that draws clips."""
    toys = str(Path(__file__).parents[1] / "toy")
    monkeypatch.setattr(families, "__path__", [*families.__path__, toys])


def save_run(folder: Path, spec: ImageSpec) -> Path:
    family = families.load("mover")
    preset = family.presets["tiny"]
    data = DataOptions(frames=spec.frames)
    run = Run("mover", ("clips",), "tiny", (16, 16), "4img", 0, preset.model, preset.training, data)
    weights = family(run.model, spec).state_dict()
    folder.mkdir()
    checkpoint.write_model(folder / "model.safetensors", weights, checkpoint.make_header(run, spec, 4))
    return folder


@pytest.fixture
def run(mover: None, tmp_path: Path) -> Path:
    return save_run(tmp_path / "run", SPEC)


def sample(run: Path, to: Path, *more: object) -> int:
    return cli.run(["sample", str(run), "--to", str(to), *map(str, more)])


def frames_of(path: Path) -> tuple[np.ndarray, list[float]]:
    """RGB frames [T, H, W, 3] and how long each is shown, in milliseconds."""
    with Image.open(path) as image:
        frames = [(np.asarray(f.convert("RGB")), f.info["duration"]) for f in ImageSequence.Iterator(image)]
    return np.stack([f for f, _ in frames]), [d for _, d in frames]


def drawn(run: Path, n: int, **options: object) -> list[np.ndarray]:
    """The clips [T, H, W, 3] that Python draws."""
    clips = Pipeline(run).tensors(n, **options)
    return [np.stack([to_pixels(frame) for frame in clip.unbind(1)]) for clip in clips]


def test_one_clip_in_a_file_at_the_rate_of_the_run(run: Path, tmp_path: Path) -> None:
    assert sample(run, tmp_path / "clip.gif", "--seed", 3) == 0
    frames, shown = frames_of(tmp_path / "clip.gif")
    assert frames.shape == (5, 256, 256, 3) and shown == [100] * 5
    assert np.array_equal(frames[:, 8::16, 8::16], drawn(run, 1, seed=3)[0])


def test_a_rate_by_choice(run: Path, tmp_path: Path) -> None:
    sample(run, tmp_path / "clip.webp", "--rate", 4, "--lossless")
    frames, shown = frames_of(tmp_path / "clip.webp")
    assert shown == [250] * 5 and np.array_equal(frames, drawn(run, 1)[0])


def test_an_unknown_rate_is_8(mover: None, tmp_path: Path) -> None:
    sample(save_run(tmp_path / "run", replace(SPEC, rate=None)), tmp_path / "clip.webp")
    assert frames_of(tmp_path / "clip.webp")[1] == [125] * 5


def test_several_clips_play_side_by_side_in_one_file(run: Path, tmp_path: Path) -> None:
    sample(run, tmp_path / "clips.gif", "--prompt", "a cat", "--prompt", "a dog", "--seed", 1)
    frames, _ = frames_of(tmp_path / "clips.gif")
    assert len(frames) == 5 and frames.shape[2] > 256
    assert len({frame.tobytes() for frame in frames}) == 5


def test_a_sheet_has_frames_across_and_clips_down(run: Path, tmp_path: Path) -> None:
    for name, more, rows in (("one", ["--n", 1], 1), ("three", ["--n", 3], 3), ("all", [], 8)):
        sample(run, tmp_path / f"{name}.png", *more)
        width, height = Image.open(tmp_path / f"{name}.png").size
        assert width == 5 * 128 + 4 * 2 + 24
        assert height == 12 + rows * 140


def test_a_folder_of_one_clip_holds_its_frames(run: Path, tmp_path: Path) -> None:
    sample(run, tmp_path / "clip", "--seed", 2)
    names = sorted(path.name for path in (tmp_path / "clip").iterdir())
    assert names == [f"{i:06d}.png" for i in range(5)]
    frames = np.stack([np.asarray(Image.open(tmp_path / "clip" / name)) for name in names])
    assert np.array_equal(frames, drawn(run, 1, seed=2)[0])


def test_a_folder_of_several_has_a_file_each_with_its_caption(run: Path, tmp_path: Path) -> None:
    to = tmp_path / "clips"
    sample(run, to, "--n", 3, "--prompt", "a cat", "--prompt", "a dog", "--label", "dog")
    lines = [json.loads(line) for line in (to / "metadata.jsonl").read_text().splitlines()]
    assert [line["file_name"] for line in lines] == ["000000.webp", "000001.webp", "000002.webp"]
    assert [line["text"] for line in lines] == ["a cat", "a dog", "a cat"]
    assert {path.name for path in to.iterdir()} == {"metadata.jsonl", *(line["file_name"] for line in lines)}
    for line, clip in zip(lines, drawn(run, 3), strict=True):
        assert np.array_equal(frames_of(to / line["file_name"])[0], clip)


def test_a_folder_in_another_format_replaces_the_earlier_drawing(run: Path, tmp_path: Path) -> None:
    to = tmp_path / "clips"
    sample(run, to, "--n", 2)
    sample(run, to, "--n", 2, "--suffix", "gif")
    assert {path.name for path in to.iterdir()} == {"metadata.jsonl", "000000.gif", "000001.gif"}
    (to / "of mine.txt").write_text("here")
    with pytest.raises(LimnerError, match="other files"):
        sample(run, to, "--n", 2)


def test_a_film_of_how_clips_emerge(run: Path, tmp_path: Path) -> None:
    sample(run, tmp_path / "clip.webp", "--progress-to", tmp_path / "film.gif")
    assert len(frames_of(tmp_path / "film.gif")[0]) == 2


@pytest.mark.parametrize(
    ("to", "more", "words"),
    [
        ("clip.flv", [], "Cannot write"),
        ("clip.mkv", [], "add --lossless"),
        ("clip.gif", ["--rate", 60], "at most 50 frames a second"),
        ("clip.gif", ["--rate", 0], "--rate"),
        ("clip.mp4", ["--lossless"], "loses colours"),
        ("clip.gif", ["--suffix", "mp4"], "leave it out"),
        ("clip.gif", ["--rank", "runs/clip"], "--rank chooses among still images"),
    ],
)
def test_what_cannot_be_written_is_one_sentence_and_draws_nothing(
    run: Path, tmp_path: Path, to: str, more: list[object], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pipeline, "batches", None)
    with pytest.raises(LimnerError, match=words):
        sample(run, tmp_path / to, *more)
    assert not (tmp_path / to).exists()


def test_runs_of_still_images_write_no_clips(mover: None, tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", replace(SPEC, frames=1))
    with pytest.raises(LimnerError, match="this run draws still images"):
        sample(run, tmp_path / "clip.mp4")
    with pytest.raises(LimnerError, match="are of clips"):
        sample(run, tmp_path / "sheet.png", "--rate", 4)


def test_a_folder_with_other_files_is_refused_before_drawing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample(run, tmp_path / "clip")
    monkeypatch.setattr(Pipeline, "batches", None)
    with pytest.raises(LimnerError, match="holds other files, such as 000000"):
        sample(run, tmp_path / "clip")


def test_training_shows_an_eighth_of_the_samples_as_clips(mover: None) -> None:
    family = families.load("mover")
    batch = Batch(torch.zeros(2, *SPEC.shape), Condition(2, label=torch.tensor([0, 1])))
    data = SimpleNamespace(order=lambda seen, n, seed: np.arange(n), batch=lambda rows: batch)
    sheet = sample_grid(family(family.Config(), SPEC), data, 16)
    assert sheet is not None and sheet.width == 5 * 128 + 4 * 2 + 24


def test_a_training_of_clips_speaks_of_clips(
    mover: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(8):
        animate(tmp_path / "films" / f"{i}.png", 4, i)
    out = tmp_path / "run"
    flags = "--data.frames 4 --size 16 --preset tiny --budget 8img --training.batch 4"
    command = ["train", "mover", str(tmp_path / "films"), "--out", str(out), *flags.split()]
    assert cli.run(command) == 0
    assert cli.run(["show", str(out)]) == 0
    said = capsys.readouterr()
    heard = " ".join((said.err + said.out).split())
    assert "of 4 frames of 3x16x16" in heard and "a step of 4 clips" in heard
    assert "clips seen 8 in" in heard
    assert "images seen" not in heard and "images/s" not in heard
