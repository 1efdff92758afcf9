"""Every family that translates: pictures in tiles equal the whole, so the margin that it declares is far enough."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from limner import families
from limner.core import FitsModel, Model, Translates
from limner.inference.tile_plan import plan
from limner.inference.tiles import Translator
from tests.families.test_contract import build, spec_for

FAMILIES = families.supporting(Translates)


def model_of(name: str) -> Model:
    """Of the tiny preset, with random weights also where training begins at 0."""
    model = build(families.load(name), spec_for(families.load(name), 3, 32, 32)).eval()
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")  # else MicroAST fades to one colour
    return model


def sampling_of(model: Model) -> Any:
    sampling = model.Sampling()
    pictures = {
        f.name: torch.rand(1, 3, 40, 48) * 2 - 1
        for f in dataclasses.fields(sampling)
        if f.metadata.get("picture")
    }
    sampling = sampling.fit(model) if isinstance(sampling, FitsModel) and not pictures else sampling
    return dataclasses.replace(sampling, **pictures)


@pytest.mark.parametrize("name", FAMILIES)
def test_tiles_equal_the_whole(name: str):
    torch.manual_seed(0)
    model = model_of(name)
    assert isinstance(model, Translates)
    translator = Translator(model, sampling_of(model), 10**10)
    margin, factor = model.margin(translator.sampling), model.factor
    if margin is None:
        return
    rounded = -(-margin // factor) * factor
    height, width = 16 * factor, (3 * rounded // factor + 6) * factor
    y, x = np.mgrid[:height, :width, :3][:2] / 20
    noise = np.random.default_rng(0).normal(0, 0.15, (height, width, 3))
    pixels = ((np.sin(3 * x + y) / 4 + 0.5 + noise).clip(0, 1) * 255).astype(np.uint8)
    untiled = translator(pixels)
    tiles = plan(height, width, factor, margin, height * (2 * rounded + 3 * factor))
    assert len(tiles) > 1 and untiled.std() > 5
    with translator.statistics_of(pixels):
        tiled = translator.in_tiles(pixels, tiles)
    assert np.abs(tiled.astype(int) - untiled).max() <= 1
