"""The frames that a person gives: first, last, a whole beginning; and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import limner
from limner.core import ImageSpec, LimnerError
from limner.data.clips.whole import open_clip
from limner.settings import DataOptions
from tests.helpers import animate, paint

FRAMES = 4


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run of `video` that has hardly begun."""
    top = tmp_path_factory.mktemp("video")
    for i in range(12):
        animate(top / "clips" / f"{i}.png", FRAMES, i)
    limner.train(
        "video", top / "clips", top / "run", preset="tiny", budget="16img", quiet=True,
        data={"frames": FRAMES, "cache": str(top / "cache")}, training={"samples": 0},
    )  # fmt: skip
    return limner.load(top / "run")


def pixels(clip: torch.Tensor) -> np.ndarray:
    """[C, T, H, W] -> [T, H, W, C]"""
    return ((clip + 1) * 127.5).round().byte().movedim(0, -1).numpy()


def test_a_picture_comes_back_as_the_first_frame(run: Any, tmp_path: Path) -> None:
    first, last = (paint(tmp_path / name, 1, seed=seed) / "000.png" for name, seed in (("a", 1), ("b", 2)))
    wanted = [np.asarray(Image.open(path)) for path in (first, last)]
    alive = pixels(run.tensors(1, image=str(first), steps=2)[0])
    assert alive.shape == (FRAMES, 16, 16, 3) and (alive[0] == wanted[0]).all()
    between = pixels(run.tensors(2, image=str(first), last=str(last), steps=2, frames=5)[1])
    assert len(between) == 5 and (between[0] == wanted[0]).all() and (between[-1] == wanted[1]).all()
    backwards = pixels(run.tensors(1, last=str(last), steps=2)[0])
    assert (backwards[-1] == wanted[1]).all() and (backwards[0] != wanted[1]).any()


@pytest.mark.parametrize("kind", ["animation", "numbered"])
def test_a_clip_goes_on(run: Any, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "start.png"
    begun = animate(path, 3, seed=20)
    if kind == "numbered":
        path = tmp_path / "start"
        path.mkdir()
        for i, picture in enumerate(begun):
            Image.fromarray(picture).save(path / f"{i:03d}.png")
    longer = pixels(run.tensors(1, video=str(path), frames=10, steps=2)[0])
    assert len(longer) == 10 and (longer[:3] == np.stack(begun)).all()
    assert len(run.tensors(1, video=str(path), steps=2)[0][0]) == 5, "half of a window more"


def test_a_clip_is_read_at_the_runs_rate(tmp_path: Path) -> None:
    begun = animate(tmp_path / "a.png", 6, seed=3)  # 8 frames a second
    spec = ImageSpec(3, 16, 16, frames=4, rate=4.0)
    clip = open_clip(tmp_path / "a.png", spec, DataOptions(frames=4))
    assert (pixels(clip[0]) == np.stack(begun)[::2]).all()


def test_a_longer_clip_from_nothing(run: Any) -> None:
    assert run.tensors(1, frames=9, steps=2).shape == (1, 3, 9, 16, 16)
    assert run.tensors(1, frames=2, steps=2).shape == (1, 3, 2, 16, 16)


def test_a_picture_of_another_shape_is_said(run: Any, tmp_path: Path) -> None:
    path = paint(tmp_path / "wide", 1, (16, 32)) / "000.png"
    with pytest.warns(UserWarning, match="has 16x32 pixels, and .* of 16x16: it is cropped at its sides"):
        run.tensors(1, image=str(path), steps=1)


def test_what_cannot_be_drawn_is_one_sentence(run: Any, tmp_path: Path) -> None:
    picture = paint(tmp_path / "a", 1) / "000.png"
    animate(tmp_path / "long.png", 7)
    for asked, words in (
        ({"image": "none.png"}, "There is no picture none.png"),
        ({"video": "none.mp4"}, "There is no clip none.mp4"),
        ({"video": str(tmp_path / "long.png"), "frames": 7}, "already gives 7 of the 7 frames"),
        ({"video": str(tmp_path / "long.png"), "image": str(picture)}, "name one of them"),
        ({"image": str(picture), "frames": 1}, "already gives 1 of the 1 frames"),
        ({"image": str(picture), "mask": str(picture)}, "--mask marks a part of a still image"),
        ({"video": str(picture)}, "is a still picture and no clip: name it with --image"),
    ):
        with pytest.raises(LimnerError, match=words) as refusal:
            run.tensors(1, steps=1, **asked)
        assert str(refusal.value).endswith(".") and "\n" not in str(refusal.value)


def test_a_run_of_images_takes_no_frames(tmp_path: Path) -> None:
    paint(tmp_path / "stills", 12)
    limner.train(
        "flow", tmp_path / "stills", tmp_path / "run", preset="tiny", budget="16img", quiet=True,
        data={"cache": str(tmp_path / "cache")}, training={"samples": 0},
    )  # fmt: skip
    run = limner.load(tmp_path / "run")
    for asked, flag in (
        ({"frames": 4}, "--frames"),
        ({"last": "a.png"}, "--last"),
        ({"video": "a.mp4"}, "--video"),
    ):
        with pytest.raises(LimnerError, match=f"^{flag} is for clips"):
            run.tensors(1, **asked)


def test_a_run_of_flow_is_taken_over(tmp_path: Path) -> None:
    """By --model.pretrained: one frame then gives that run's output bit for bit, and training goes on from there."""
    for i in range(12):
        animate(tmp_path / "clips" / f"{i}.png", FRAMES, i)
    paint(tmp_path / "stills", 12)
    quiet: Any = {"quiet": True, "preset": "tiny"}
    cache = str(tmp_path / "cache")
    limner.train("flow", tmp_path / "stills", tmp_path / "flow", budget="64img", data={"cache": cache},
                 training={"samples": 0}, **quiet)  # fmt: skip
    data = {"frames": FRAMES, "cache": cache}

    def begin(budget: str, out: str, size: Any = None) -> Any:
        limner.train("video", tmp_path / "clips", tmp_path / out, budget=budget, data=data, size=size,
                     model={"pretrained": str(tmp_path / "flow")}, training={"samples": 0}, **quiet)  # fmt: skip
        return limner.load(tmp_path / out).model

    flow = limner.load(tmp_path / "flow").model
    taken: dict[str, torch.Tensor] = {}
    from limner.families.video import Video

    with pytest.MonkeyPatch.context() as patch:
        advance = Video.advance

        def first(self: Any, seen: int) -> None:
            if not taken:
                taken.update({k: v.clone() for k, v in self.network.frame.state_dict().items()})
                x, t = torch.randn(2, 3, 16, 16), torch.tensor([0.3, 0.8])
                rows = self.embed(limner.core.Condition(2))
                with torch.no_grad():
                    image = flow.network(x, t, flow.embed(limner.core.Condition(2)))
                    assert torch.equal(self.network(x[:, :, None], t[:, None], rows)[:, :, 0], image)
                assert image.abs().max() > 0
            advance(self, seen)

        patch.setattr(Video, "advance", first)
        model = begin("16img", "video")
    assert taken.keys() == flow.network.state_dict().keys()
    assert model.config.pretrained and model.config.unet == flow.network.config
    with pytest.raises(LimnerError, match="was trained on 3x16x16"):
        begin("16img", "other", (24, 24))
