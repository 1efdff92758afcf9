"""Settings of format 1 -> of format 2: levels that attend become resolutions, at any size of images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from limner import checkpoint, config, families
from limner.config import preset_run, read_run
from limner.core import Batch, Condition, ImageSpec, LimnerError, Model
from limner.families import _format1
from limner.fields import from_json, to_json
from limner.networks.shape import attention_levels, level_sizes
from limner.networks.unets.diffusion import DiffusionUNet

OLD = {  # family: settings in the words of format 1
    "flow": {"widths": [8, 8, 8], "blocks": [1, 1, 1], "attention": [0, 2], "reading": [1], "patch": 2},
    "meanflow": {"widths": [8, 8], "blocks": [1, 1], "attention": [1], "reading": [0], "patch": 1},
    "drifting": {"widths": [8, 8, 8], "blocks": [1, 1, 1], "attention": [1], "patch": 2},
    "ddpm": {
        "network": "ddpm",
        "multiples": [1, 1, 1],
        "attention": [1, 2],
        "patch": 2,
        "head": 0,
        "width": 8,
    },
    "edm": {"network": "quick", "multiples": [1, 1, 1], "attention": [2], "patch": 2, "width": 8},
}


def migrated(family: str, settings: dict[str, Any], spec: ImageSpec) -> Model:
    """A small model from the tiny preset and settings of format 1."""
    run = _format1.settings({"family": family, "model": settings}, to_json(spec))
    base = to_json(families.load(family).presets["tiny"].model)
    for key, value in run["model"].items():
        base[key] = {**base[key], **value} if isinstance(value, dict) else value
    return families.build(family, from_json(families.load(family).Config, base, "model"), spec)


@pytest.mark.parametrize("size", [(16, 16), (40, 24), (31, 70), (256, 256)])
@pytest.mark.parametrize("family", OLD)
def test_the_levels_that_attend_stay(family: str, size: tuple[int, int]) -> None:
    old, spec = OLD[family], ImageSpec(3, *size, captions=family == "flow")
    with torch.device("meta"):
        names = [name for name, _ in migrated(family, old, spec).named_parameters()]
    depth = len(old.get("widths", old.get("multiples")))
    for level in range(depth):
        attends = level in old["attention"] or (family == "flow" and level in old["reading"])
        keys = (f".attention.down{level}.", f".attention.{level}.", f".down.{level}.attentions.")
        assert attends == any(key in name for name in names for key in keys), level


def test_latent_models_count_from_the_size_of_the_code() -> None:
    codec = {"patch": 2, "multiples": [1, 2], "attention": [1], "width": 8}
    old = {"codec": codec, "network": "ldm", "multiples": [1, 1, 1], "attention": [1], "head": 8, "width": 8}
    with torch.device("meta"):
        model = migrated("latent", old, ImageSpec(3, 96, 64))
    assert isinstance(unet := model.network.body, DiffusionUNet)
    assert [len(level.attentions) for level in unet.down] == [0, 1, 0]
    assert model.config.attention_resolutions == (8,) and model.config.codec.attention_resolutions == (16,)


def test_resolutions_of_biggan_that_nothing_had_are_dropped() -> None:
    for size, expected in ((64, (64, 16)), (32, (16,)), (128, (64, 16))):
        model = {"attention": [64, 16, 2]}  # 2: below the base of 4
        _format1.CHANGED["biggan"](model, {"height": size, "width": size})
        assert tuple(model["attention_resolutions"]) == expected
        levels = attention_levels(expected, level_sizes((size, size), 5))
        assert {size >> level for level in levels} == set(expected)


def test_without_a_checkpoint_of_its_own_the_size_is_that_of_a_parent(tmp_path: Path) -> None:
    """A run that was interrupted while its parent was trained, with images of their own size."""
    parent = preset_run("autoencoder", "tiny")
    header = checkpoint.make_header(parent, ImageSpec(3, 64, 64), seen=0)
    checkpoint.write_model(tmp_path / "autoencoder" / "model.safetensors", {"a": torch.zeros(1)}, header)
    saved = to_json(preset_run("latent", "tiny")) | {"size": None}
    for settings in (saved["model"], saved["model"]["codec"]):
        for name in ("attention_resolutions", "cross_attention_resolutions"):
            settings.pop(name, None)
    saved["model"]["codec"] |= {"patch": 2, "multiples": [1, 2], "attention": [1]}
    config.files.write_json(tmp_path / "config.json", saved)
    assert json.loads((tmp_path / "config.json").read_text()).get("format") is None
    assert read_run(tmp_path).model.codec.attention_resolutions == (16,), "half of 32 patches a side"


@pytest.mark.parametrize(
    "wrong", [{"attention": 3}, {"widths": 3, "attention": [1]}, {"patch": "2", "attention": [1]}]
)
def test_values_of_another_kind_are_refused_by_the_reader(wrong: dict[str, Any]) -> None:
    with pytest.raises(LimnerError, match="model"):
        migrated("flow", wrong, ImageSpec(3, 16, 16))


@pytest.mark.parametrize(
    "family, settings",
    [
        ("flow", {"text_layers": 0}),
        ("flow", {"widths": [8, 8, 8], "blocks": [0, 1, 1], "attention": [2]}),
        ("drifting", {"widths": [8, 8], "blocks": [0, 1], "attention": []}),
        ("ddpm", {"blocks": 0}),
        ("edm", {"blocks": 0}),
        ("mae", {"decoder_depth": 0}),
    ],
)
def test_networks_without_blocks_still_open(family: str, settings: dict[str, Any]) -> None:
    spec = ImageSpec(3, 16, 16, captions=True)
    model = migrated(family, settings, spec)
    batch = Batch(torch.rand(4, 3, 16, 16), Condition(4, text=["a", "b", "c", "d"]))
    for objective in model.objectives():
        assert objective.total(objective.loss(batch)).isfinite()
