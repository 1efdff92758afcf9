"""What is pure in the data stays pure in what is drawn."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from limner import families
from limner.core import Batch, Condition, Draws, ImageSpec
from limner.networks.images.headroom import with_headroom

DENOISE_PIXELS = ("ddpm", "dit", "edm", "flow", "meanflow", "video")


def test_pure_pixels_move_out_and_come_back() -> None:
    image = torch.tensor([-1.0, -0.999, 0.0, 0.5, 0.999, 1.0])
    wide = with_headroom(image, 0.1)
    assert wide.tolist() == pytest.approx([-1.1, -0.999, 0.0, 0.5, 0.999, 1.1])
    assert torch.equal(wide.clamp(-1, 1), image)
    assert torch.equal(with_headroom(wide, 0.1), wide), "twice is once"
    assert with_headroom(image, 0.0) is image


def build(name: str, **changes: Any) -> Any:
    """A tiny model for black and white pictures, or clips of them."""
    preset = families.load(name).presets["tiny"].model
    torch.manual_seed(0)
    spec = ImageSpec(1, 16, 16, frames=4 if name == "video" else 1)
    return families.build(name, dataclasses.replace(preset, **changes), spec)


@pytest.mark.parametrize("name", DENOISE_PIXELS)
def test_training_sees_pure_pixels_beyond_the_range(name: str) -> None:
    """A network that has learned nothing is further off black where that lies further away."""
    losses = []
    for room in (0.0, 0.5):
        model = build(
            name, headroom=room, **({"predict": "velocity"} if name == "ddpm" else {})
        )  # of noise: no other
        torch.manual_seed(1)
        batch = Batch(-torch.ones(8, *model.spec.shape), Condition(8))
        losses.append(sum(float(value.detach()) for value in model.loss(batch).values()))
    assert losses[1] > 1.2 * losses[0]


@pytest.mark.parametrize("name", ["autoencoder", "tokens"])
def test_an_autoencoder_is_shown_pure_pixels_beyond_the_range(name: str) -> None:
    """And what it gives back is in range."""
    errors = []
    for room in (0.0, 0.5):
        model = build(name, headroom=room)
        batch = Batch(-torch.ones(4, *model.spec.shape), Condition(4))
        torch.manual_seed(1)
        loss = model.autoencoder_loss if name == "autoencoder" else model.tokenizer_loss
        errors.append(
            float(loss(batch)["pixels"].detach()) / (model.spec.height**2 if name == "autoencoder" else 1)
        )
    assert errors[0] + 0.45 < errors[1] <= errors[0] + 0.5 + 1e-6  # float32 rounds either way


@pytest.mark.parametrize("name", sorted({*DENOISE_PIXELS} - {"meanflow"}))  # which has no plan
def test_a_given_picture_is_placed_as_training_has_it(name: str) -> None:
    model = build(name)
    plan = model.plan(model.Sampling(steps=2))
    assert model.config.headroom > 0
    assert float(plan.encode(-torch.ones(1, 1, 16, 16))[0, 0, 0, 0]) == pytest.approx(
        -1 - model.config.headroom
    )
    assert not plan.clip or plan.clip >= 1 + model.config.headroom


def test_given_frames_are_shown_beyond_the_range_and_come_back_exactly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, seen = build("video").eval(), []
    denoise = model.denoise_frames

    def watch(x: Tensor, *rest: Any, **options: Any) -> Tensor:
        seen.append(x)
        return denoise(x, *rest, **options)

    monkeypatch.setattr(model, "denoise_frames", watch)
    clip = torch.rand(1, *model.spec.shape) * 2 - 1
    clip[:, :, 0] = -1
    mask = torch.ones(1, 1, 4, 1, 1)
    mask[:, :, 0] = 0
    *_, last = model.sample(Condition(1, image=clip, mask=mask), model.Sampling(steps=2), Draws([0]))
    assert all(float(x[:, :, 0].max()) == pytest.approx(-1 - model.config.headroom) for x in seen)
    assert torch.equal(last.picture()[:, :, 0], clip[:, :, 0])
