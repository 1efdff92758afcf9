"""Defaults that follow the images: what is chosen, said, kept by a run and kept on resume."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

import limner
from limner import checkpoint, config, families
from limner.core import ImageSpec
from limner.families import _by_images as by_images
from limner.families.dit import DiTConfig
from limner.families.flow import FlowConfig
from limner.families.video import VideoConfig
from tests.helpers import paint

LARGE, SMALL = by_images.Images(64, 96), by_images.Images(28, 28)
QUICK = {"device": "cpu", "precision": "float32", "samples": 0, "threads": 1}


def test_what_nobody_set_follows_the_size_at_any_depth() -> None:
    assert len(by_images.settle(FlowConfig(), LARGE).widths) > len(
        by_images.settle(FlowConfig(), SMALL).widths
    )
    assert by_images.settle(DiTConfig(), LARGE).body.patch > by_images.settle(DiTConfig(), SMALL).body.patch
    clips = by_images.settle(VideoConfig(), LARGE)
    assert clips.unet.widths == by_images.settle(FlowConfig(), LARGE).widths
    chosen = FlowConfig(widths=(16, 32))
    assert by_images.settle(chosen, LARGE) == chosen
    settled = by_images.settle(FlowConfig(), LARGE)
    assert by_images.settle(settled, SMALL) == settled, "once settled, it stays"


@pytest.mark.parametrize("family", families.names())
def test_a_model_is_built_of_what_was_settled(family: str) -> None:
    """Each preset says in full what it is once the size is known: no default is left to be chosen later."""
    for name, preset in families.load(family).presets.items():
        height, width = preset.size or (64, 64)
        settled = by_images.settle(preset.model, by_images.Images(height, width))
        assert by_images.settle(settled, SMALL) == settled, name
        assert not list(by_images.chosen(settled, by_images.settle(settled, LARGE))), name


@pytest.mark.parametrize("side", [8, 28, 32, 47, 48, 64, 96, 100, 128, 256])
def test_quick_networks_fit_every_size(side: int) -> None:
    for name in ("flow", "meanflow", "edm", "ddpm", "dit", "latent"):
        small = families.load(name).presets["small"].model
        with torch.device("meta"):
            model = families.build(name, small, ImageSpec(4, side, 2 * side))
        assert 1e6 < sum(p.numel() for p in model.parameters()) < 8e6, (name, side)


def test_a_run_says_what_it_chose_and_keeps_it(
    tmp_path: Path, limner, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = paint(tmp_path / "images", 8, (64, 64)), tmp_path / "run"
    fast = ["--training.batch", 4, "--training.samples", 0, "--training.precision", "float32"]
    done = limner("train", "flow", source, "--out", out, "--preset", "small", "--budget", "4img", *fast)
    widths = by_images.settle(FlowConfig(), by_images.Images(64, 64)).widths
    said = f"--model.widths {' '.join(map(str, widths))}"
    assert said in " ".join(done.stderr.split()), done.stderr
    assert config.read_run(out).model.widths == widths
    resumed = limner("train", "flow", "--out", out, "--resume", "--budget", "8img", *fast)
    assert "--model.widths" not in resumed.stderr
    given = limner(
        "train", "flow", source, "--out", tmp_path / "other", "--preset", "tiny", "--budget", "4img", *fast
    )
    assert "--model.widths" not in given.stderr, "the preset names its own"


def test_a_run_goes_on_as_it_began_whatever_the_rule_says_later(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the API, which names no settings on resume, after an update that chooses otherwise."""
    out, settings = tmp_path / "run", {"samples": 0, "precision": "float32", "batch": 4}
    limner.train("flow", images, out, preset="small", budget="4img", training=settings, quiet=True)
    before = checkpoint.load(out).model.config
    fields = {f.name: f for f in dataclasses.fields(FlowConfig)}
    monkeypatch.setattr(fields["widths"], "metadata", {"by_images": lambda images: (16, 32)})
    limner.train(
        "flow", images, out, preset="small", budget="8img", training=settings, quiet=True, resume=True
    )
    loaded = checkpoint.load(out)
    assert loaded.model.config == before and loaded.header["seen"] == 8
