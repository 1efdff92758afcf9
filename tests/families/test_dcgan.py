"""What only DCGAN promises: every choice that its Config offers; the rest is in test_families.py."""

import dataclasses

import pytest
import torch
from torch import nn

from limner.core import Batch, Condition, Draws, ImageSpec, LimnerError
from limner.families.dcgan import DCGAN, DCGANConfig, DCGANSampling

TINY = DCGAN.presets["tiny"].model


def build(spec: ImageSpec, config: DCGANConfig = TINY, **changes: object) -> DCGAN:
    torch.manual_seed(0)
    return DCGAN(dataclasses.replace(config, **changes), spec)


@pytest.mark.parametrize(
    "changes",
    [
        {"noise": "uniform"},
        {"layers": "linear"},
        {"upsample": "nearest"},
        {"downsample": "max_pool"},
        {"batch_norm": False},
        {"layers": "linear", "batch_norm": False},
        {"loss": "mse"},
        {"loss": "hinge"},
        {"condition": "none"},
        *({"generator_activation": a, "discriminator_activation": a} for a in ("relu", "tanh", "sigmoid")),
    ],
    ids=lambda changes: " ".join(f"{k}={v}" for k, v in changes.items()),
)
@pytest.mark.parametrize("classes", [(), ("cat", "dog")], ids=["plain", "labelled"])
def test_every_variant_trains_and_samples(changes: dict[str, object], classes: tuple[str, ...]) -> None:
    model = build(ImageSpec(1, 14, 22, classes=classes), **changes)
    batch = Batch(
        torch.rand(4, 1, 14, 22), Condition(4, label=torch.tensor([0, 1, 0, 1]) if classes else None)
    )
    for objective in model.objectives():
        model.zero_grad()
        sum(objective.loss(batch).values()).backward()
        own = list(model.get_submodule(objective.trains).parameters())
        assert all(p.grad is not None and p.grad.isfinite().all() for p in own)
        assert any(p.grad.abs().sum() > 0 for p in own)
    (canvas,) = model.eval().sample(Condition(3), DCGANSampling(), Draws([1, 2, 3]))
    assert canvas.picture().shape == (3, 1, 14, 22)
    assert canvas.picture().abs().max() <= 1


@pytest.mark.parametrize("size", [(28, 28), (8, 8), (9, 33), (50, 22), (100, 100)])
def test_any_size_is_generated_and_scored(size: tuple[int, int]) -> None:
    model = build(ImageSpec(3, *size))
    image = model.generator(torch.randn(2, TINY.latent), None)
    assert image.shape == (2, 3, *size)
    assert model.discriminator(image, None).shape == (2,)


def test_layers_are_the_papers() -> None:
    preset = DCGAN.presets["paper"]
    with torch.device("meta"):
        model = DCGAN(preset.model, ImageSpec(3, 64, 64))
    kinds = [type(m) for m in model.discriminator.layers]
    assert kinds[:3] == [nn.Conv2d, nn.LeakyReLU, nn.Conv2d], "no batch norm on the critic's first layer"
    assert kinds.count(nn.BatchNorm2d) == 3
    assert [type(m) for m in model.generator.layers].count(nn.BatchNorm2d) == 4
    assert not any(
        m.bias is not None for m in model.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)
    )


def test_weights_start_as_in_the_paper() -> None:
    model = build(ImageSpec(3, 32, 32), DCGANConfig())
    weight = model.discriminator.layers[2].weight
    assert weight.std().item() == pytest.approx(0.02, rel=0.05)
    norm = next(m for m in model.generator.modules() if isinstance(m, nn.BatchNorm2d))
    assert norm.weight.mean().item() == pytest.approx(1, abs=0.02) and norm.bias.abs().max() == 0


def test_the_discriminator_loss_leaves_the_generator_without_gradient() -> None:
    model = build(ImageSpec(3, 16, 16))
    sum(model.discriminator_loss(Batch(torch.rand(4, 3, 16, 16), Condition(4))).values()).backward()
    assert all(p.grad is None for p in model.generator.parameters())


@pytest.mark.parametrize(("noise", "centre"), [("normal", 0.0), ("uniform", 0.5)])
def test_truncation_zero_samples_the_mean(noise: str, centre: float) -> None:
    model = build(ImageSpec(3, 16, 16), noise=noise).eval()
    (canvas,) = model.sample(Condition(2), DCGANSampling(truncation=0.0), Draws([1, 2]))
    middle = model.generator(torch.full((2, TINY.latent), centre), None)
    torch.testing.assert_close(canvas.picture(), middle)


def test_condition_label_without_labels_is_refused() -> None:
    with pytest.raises(LimnerError, match="the data has none"):
        build(ImageSpec(3, 16, 16), condition="label")


def test_r1_is_the_squared_gradient_at_real_images() -> None:
    """gamma / 2 |grad|^2 (Mescheder 2018, eq. 9), 16 times as strong as it comes once in 16 steps."""
    assert len(build(ImageSpec(1, 8, 8)).objectives()) == 2
    model = build(ImageSpec(1, 8, 8), r1=3.0).eval()
    objective = model.objectives()[-1]
    assert objective.trains == "discriminator" and objective.every == 16
    image = torch.rand(2, 1, 8, 8)
    found = objective.loss(Batch(image, Condition(2)))["r1"]
    with torch.no_grad():
        step = 1e-2 * torch.eye(64).view(64, 1, 8, 8)
        slopes = [
            (model.discriminator(x + step, None) - model.discriminator(x - step, None)) / 2e-2 for x in image
        ]
    expected = 16 * 3 / 2 * torch.stack([slope.square().sum() for slope in slopes]).mean()
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0)
