"""`limner explore --loop`: a clip of a latent space that ends where it began."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from limner.inference import latents
from limner.inference.loops import save_loop
from limner.inference.options import ExploreOptions, LoopOptions
from limner.networks.interpolation import lerp, slerp
from limner.settings import LimnerError
from tests.helpers import paint, train_beside


@pytest.fixture(scope="module", params=["dcgan", "vae", "stylegan2"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "images"
    for seed, name in enumerate(("cat", "dog")):
        paint(folder / name, 16, seed=seed)
    return train_beside(folder, request.param, "32img")


def frames_of(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.stack([np.asarray(f.convert("RGB"), np.float32) for f in ImageSequence.Iterator(image)])


@pytest.mark.parametrize("interpolate", [lerp, slerp])
@pytest.mark.parametrize("frames", [4, 7, 12, 30])
def test_frames_are_spread_evenly_over_the_way_round(interpolate: latents.Interpolate, frames: int) -> None:
    points = torch.eye(4, dtype=torch.float64)
    way = latents.evenly(points, frames, interpolate)
    assert way.shape == (frames, 4)
    torch.testing.assert_close(way[0], points[0])
    if frames % 4 == 0:
        torch.testing.assert_close(way, latents.loop(points, frames // 4, interpolate))
        steps = (way - way.roll(1, 0)).norm(dim=1)
        if interpolate is slerp:
            torch.testing.assert_close(steps, steps.mean().expand(frames))


def test_a_loop_is_seamless_and_of_its_length(run: Path, tmp_path: Path) -> None:
    to = tmp_path / "loop.webp"
    loop = save_loop(run, to, ExploreOptions(seed=3), LoopOptions(seconds=3, rate=12), quiet=True)
    frames = frames_of(to)
    assert len(frames) == loop.frames == 36 and loop.points == ["seed 3", "seed 4", "seed 5"]
    steps = np.abs(frames - np.roll(frames, 1, 0)).mean((1, 2, 3))  # the first is from the last frame
    assert steps[0] > 0, "the last frame is not the first again"
    assert steps[0] <= 1.5 * steps[1:].max()
    with Image.open(to) as image:
        assert image.info["loop"] == 0
    assert list(tmp_path.iterdir()) == [to]


def test_seed_and_label_choose_the_loop(run: Path, tmp_path: Path) -> None:
    how = LoopOptions(seconds=1, rate=6)
    files = {}
    for name, options in {"first": {}, "again": {}, "other": {"seed": 9}}.items():
        save_loop(run, tmp_path / f"{name}.webp", ExploreOptions(**options), how, quiet=True)
        files[name] = frames_of(tmp_path / f"{name}.webp")
    assert np.array_equal(files["first"], files["again"])
    assert not np.array_equal(files["first"], files["other"])
    with pytest.raises(LimnerError, match="one class"):
        save_loop(run, tmp_path / "two.webp", ExploreOptions(label=("cat", "dog")), how, quiet=True)
    with pytest.raises(LimnerError, match=r"no label 'owl'|not trained on labels"):
        save_loop(run, tmp_path / "owl.webp", ExploreOptions(label=("owl",)), how, quiet=True)


@pytest.mark.process
def test_the_command_writes_the_loop_alone(tmp_path: Path, limner) -> None:
    paint(tmp_path / "images" / "cat", 16)
    paint(tmp_path / "images" / "dog", 16, seed=1)
    run = train_beside(tmp_path / "images", "dcgan", "32img")
    to = tmp_path / "loop.gif"
    options = "--label", "dog", "--seed", 2, "--seconds", 2, "--rate", 10
    told = json.loads(limner("explore", run, "--loop", to, *options, "--json").stdout)
    assert (told["frames"], told["seconds"], told["label"]) == (20, 2.0, "dog")
    assert len(frames_of(to)) == 20 and not (run / "explore").exists()
    assert "dog: 20 frames, 2 seconds, in" in limner("explore", run, "--loop", to, *options).stdout
    for arguments, words in (
        (("--loop", "loop.xyz"), "No clip is written as .xyz"),
        (("--loop", to, "--seconds", 0.1), "too few for a loop"),
        (("--loop", to, "--to", "sheets"), "leave out --to"),
        (("--seconds", 2), "name its file with --loop"),
        (("--loop", to, "--rate", 60), "at most 50 frames a second"),
    ):
        done = limner("explore", run, *arguments, ok=False, cwd=tmp_path)
        assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1
