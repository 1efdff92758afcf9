"""What only R3GAN promises: its paper's arithmetic, its schedule, its knobs; the rest is in test_families.py."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limner.core import Batch, Condition, Draws, ImageSpec, LimnerError
from limner.families.r3gan import GAIN, R3GAN, Block, Down, R3GANConfig, R3GANSampling, Up, cosine_ramp
from limner.networks.gans import convolve
from limner.networks.images.resample import downsample2d, kernel, upsample2d

TINY = R3GAN.presets["tiny"].model
CLASSES = ("cat", "dog")


def build(spec: ImageSpec, config: R3GANConfig = TINY, **changes: object) -> R3GAN:
    torch.manual_seed(0)
    return R3GAN(dataclasses.replace(config, **changes), spec)


def batch_of(size: int = 4, classes: int = 0) -> Batch:
    image = torch.rand(size, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return Batch(image, Condition(size, label=torch.arange(size) % classes if classes else None))


def stir(model: nn.Module) -> None:
    """Weights that no longer start at zero, so that every layer counts."""
    for p in model.parameters():
        nn.init.normal_(p, 0.0, 0.3)


# ---- size


def parameters(config: R3GANConfig, spec: ImageSpec) -> tuple[int, int]:
    with torch.device("meta"):
        model = R3GAN(config, spec)
    generator, discriminator = (
        sum(p.numel() for p in player.parameters()) for player in (model.generator, model.discriminator)
    )
    return generator, discriminator


def residual(maps: int) -> int:
    """Two blocks: 1x1 to twice the maps, 3x3 in groups of 16 channels, 1x1 back, an offset before each activation."""
    inner = 2 * maps
    return 2 * (maps * inner + inner * 16 * 9 + inner * maps + 2 * inner)


def test_other_published_sizes_follow_from_the_config_alone() -> None:
    """FFHQ-256 has two more stages, of 192 and 96 maps; CIFAR-10 is 768 maps throughout, with ten classes."""
    paper = R3GAN.presets["paper"].model
    stages = 4 * residual(768) + residual(384) + residual(192) + residual(96)
    changes = 768 * 384 + 384 * 192 + 192 * 96
    ffhq = parameters(dataclasses.replace(paper, width=96), ImageSpec(3, 256, 256))
    assert ffhq[0] == stages + changes + 768 * (16 + 64) + 96 * 3 == 23_057_952
    assert ffhq[1] == stages + changes + 768 * (16 + 1) + 96 * 3 == 23_009_568
    stages = 4 * residual(768)
    spec = ImageSpec(3, 32, 32, classes=tuple("0123456789"))
    cifar = parameters(dataclasses.replace(paper, width=768), spec)
    assert cifar[0] == stages + 768 * (16 + 2 * 64) + 768 * 3 + 10 * 64
    assert cifar[1] == stages + 768 * (16 + 768) + 768 * 3 + 10 * 768


@pytest.mark.parametrize(
    ("size", "found"),
    [
        ((32, 32), ((4, 4), 3)),
        ((24, 16), ((6, 4), 2)),
        ((12, 20), ((3, 5), 2)),
        ((28, 28), ((7, 7), 2)),
        ((256, 64), ((16, 4), 4)),
        ((512, 64), None),
        ((100, 100), None),
        ((5, 7), None),
        ((1, 1), None),
    ],
)
def test_a_size_is_a_small_base_times_a_power_of_two(size: tuple[int, int], found: Any) -> None:
    if found is None:
        with pytest.raises(LimnerError, match="r3gan cannot double a small base up to"):
            build(ImageSpec(3, *size))
    else:
        layers = build(ImageSpec(3, *size)).generator
        assert (layers.basis.shape[1:], sum(isinstance(part, Up) for part in layers.layers)) == found


def test_other_sizes_are_refused_by_the_command(
    limner: Callable[..., Any], images: Path, tmp_path: Path
) -> None:
    refused = limner("train", "r3gan", images, "--size", "30x17", "--out", tmp_path / "run", ok=False)
    assert refused.returncode == 2 and "r3gan cannot double a small base up to" in refused.stderr
    assert not (tmp_path / "run").exists()


def test_condition_label_without_labels_is_refused() -> None:
    with pytest.raises(LimnerError, match="the data has none"):
        build(ImageSpec(3, 16, 16), condition="label")


# ---- how it starts


def test_weights_start_as_in_the_paper() -> None:
    model = build(ImageSpec(3, 32, 32), R3GANConfig(width=64, widest=256))
    blocks = [m for m in model.modules() if isinstance(m, Block)]
    assert len(blocks) == 2 * 2 * 4, "two at each of four sizes, in each player"
    assert all(block.project.weight.abs().max() == 0 for block in blocks)
    assert all(block.project.bias is None for block in blocks)
    x = torch.randn(2, 256, 4, 4)
    assert torch.equal(model.generator.layers[0](x), x), "a block begins as the identity"
    toned = GAIN * 8**-0.25  # eight blocks of three layers add up
    for layer, inputs in ((blocks[0].expand, 256), (blocks[0].mix, 16 * 9)):
        assert layer.weight.std().item() == pytest.approx(toned / math.sqrt(inputs), rel=0.02)
        assert layer.bias is not None and layer.bias.abs().max() == 0
    assert model.generator.basis.std().item() == pytest.approx(1, rel=0.05)
    assert model.generator.weigh.weight.std().item() == pytest.approx(1 / 8, rel=0.05)
    assert model.discriminator.basis.std().item() == pytest.approx(1 / 4, rel=0.05)


def test_the_gain_keeps_the_variance() -> None:
    x = torch.randn(200_000, dtype=torch.float64)
    assert (GAIN * F.leaky_relu(x, 0.2)).square().mean().item() == pytest.approx(1, rel=0.02)


@pytest.mark.parametrize(("group", "groups"), [(4, 4), (0, 1), (16, 1), (3, 16)])
def test_groups_have_that_many_channels_if_it_divides(group: int, groups: int) -> None:
    assert Block(8, dataclasses.replace(TINY, group=group), 1).mix.groups == groups


def test_resampling_uses_the_filter_of_stylegan() -> None:
    x = torch.randn(2, 3, 6, 10, dtype=torch.float64)
    torch.testing.assert_close(Up(3, 3)(x), upsample2d(x, kernel(like=x)))
    torch.testing.assert_close(Down(3, 3)(x), downsample2d(x, kernel(like=x)))


# ---- what it lowers


@pytest.mark.parametrize("classes", [(), CLASSES], ids=["plain", "labelled"])
def test_losses_and_their_gradients_are_the_papers(
    classes: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64, against PyTorch's own second derivatives image by image."""
    model = build(ImageSpec(3, 16, 16, classes=classes)).double()
    stir(model)
    model.advance(30)
    batch = batch_of(3, len(classes))
    batch = Batch(batch.image.double(), batch.condition)
    noise = torch.randn(3, TINY.latent, dtype=torch.float64)
    monkeypatch.setattr(torch, "randn", lambda *shape, device: noise)
    terms = model.discriminator_loss(batch)
    sum(terms.values()).backward()
    found = [p.grad.clone() for p in model.discriminator.parameters()]
    assert all(p.grad is None for p in model.generator.parameters())

    def plain(
        x: Tensor, weight: Tensor, bias: Any = None, stride: int = 1, padding: int = 0, groups: int = 1
    ):
        return F.conv2d(x, weight, bias, stride, padding, 1, groups)

    monkeypatch.setattr(convolve, "conv2d", plain)
    monkeypatch.setattr("limner.families.r3gan.conv2d", plain)
    label = batch.condition.label
    fake = model.generator.double().layers(model.generator.basis * model.generator.weigh(
        noise if label is None else torch.cat([noise, model.generator.embed(label)], 1)  # type: ignore[misc]
    )[:, :, None, None]).detach()  # fmt: skip
    gamma = cosine_ramp(30, TINY.gamma, TINY.gamma_end, TINY.burn_in)
    adversarial = torch.zeros((), dtype=torch.float64)
    penalty = {"r1": adversarial.clone(), "r2": adversarial.clone()}
    for i in range(3):
        scores = []
        for name, images in (("r1", batch.image), ("r2", fake)):
            image = images[i : i + 1].detach().requires_grad_()
            score = model.discriminator(image, None if label is None else label[i : i + 1])
            (slope,) = torch.autograd.grad(score.sum(), image, create_graph=True)
            penalty[name] = penalty[name] + gamma / 2 * slope.square().sum() / 3
            scores.append(score)
        adversarial = adversarial - F.logsigmoid(scores[0] - scores[1]).sum() / 3
    expected = {"adversarial": adversarial, **penalty}
    for name, value in expected.items():
        # the scores leave the networks in float32
        torch.testing.assert_close(terms[name], value.to(terms[name].dtype), rtol=1e-5, atol=1e-7)
    model.discriminator.zero_grad()
    sum(expected.values()).backward()
    for p, gradient in zip(model.discriminator.parameters(), found, strict=True):
        torch.testing.assert_close(gradient, p.grad, rtol=1e-4, atol=1e-6)


def test_the_generators_loss_is_the_discriminators_with_both_swapped() -> None:
    model = build(ImageSpec(3, 16, 16))
    stir(model)
    model.discriminator.requires_grad_(False)
    batch = batch_of()
    torch.manual_seed(5)
    terms = model.generator_loss(batch)
    torch.manual_seed(5)
    real, fake = (
        model.discriminator(batch.image, None),
        model.discriminator(model.generate_fakes(batch), None),
    )
    torch.testing.assert_close(terms["adversarial"], F.softplus(real - fake).mean())
    terms["adversarial"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.generator.parameters())


def test_lazy_penalties_are_scaled_by_their_interval() -> None:
    """All in one step or apart: the same terms of the same images and noise."""
    tiny = R3GAN.presets["tiny"].model
    found = []
    for lazy in (1, 8):
        torch.manual_seed(0)
        model = R3GAN(dataclasses.replace(tiny, lazy=lazy), ImageSpec(3, 16, 16))
        batch, terms = Batch(torch.rand(4, 3, 16, 16), Condition(4)), {}
        for objective in model.objectives():
            if objective.trains == "discriminator":
                torch.manual_seed(1)
                terms |= {
                    f"{k} of {objective.every}": float(v.detach()) for k, v in objective.loss(batch).items()
                }
        found.append(terms)
    one, lazy = found
    assert one.keys() == {"adversarial of 1", "r1 of 1", "r2 of 1"}
    assert lazy.keys() == {"adversarial of 1", "r1 of 8", "r2 of 8"}
    assert lazy["adversarial of 1"] == pytest.approx(one["adversarial of 1"], rel=1e-5)
    assert lazy["r1 of 8"] == pytest.approx(8 * one["r1 of 1"], rel=1e-5)
    assert lazy["r2 of 8"] == pytest.approx(8 * one["r2 of 1"], rel=1e-5)


def test_held_out_losses_need_no_gradient() -> None:
    model = build(ImageSpec(3, 16, 16)).requires_grad_(False)
    stir(model)
    torch.manual_seed(5)
    trained = model.discriminator_loss(batch_of())
    torch.manual_seed(5)
    with torch.no_grad():
        held_out = model.discriminator_loss(batch_of())
    for name, value in held_out.items():
        assert not value.requires_grad and value.item() == pytest.approx(trained[name].item(), rel=1e-6)


def test_gamma_falls_along_a_cosine_and_then_stays() -> None:
    assert [cosine_ramp(seen, 2.0, 0.2, 1000) for seen in (0, 500, 1000, 5000)] == pytest.approx(
        [2, 1.1, 0.2, 0.2]
    )
    assert cosine_ramp(250, 2.0, 0.2, 1000) == pytest.approx(0.2 + 0.9 * (1 + math.sqrt(0.5)))
    assert cosine_ramp(0, 2.0, 0.2, 0) == 0.2
    model = build(ImageSpec(3, 16, 16))
    stir(model)
    terms: list[dict[str, Tensor]] = []
    for seen in (0, 50, 100):
        model.advance(seen)
        torch.manual_seed(5)
        terms.append(model.discriminator_loss(batch_of()))
    assert model.state_dict()["discriminator.gamma"].item() == pytest.approx(TINY.gamma_end), "it is saved"
    for name in ("r1", "r2"):
        ratio = (terms[2][name] / terms[0][name]).item()
        assert ratio == pytest.approx(TINY.gamma_end / TINY.gamma, rel=1e-4)
    assert terms[0]["adversarial"] == terms[2]["adversarial"]


# ---- what it draws


def test_truncation_scales_the_latent() -> None:
    model = build(ImageSpec(3, 16, 16)).eval()

    def paint(psi: float) -> Tensor:
        (canvas,) = model.sample(Condition(4), R3GANSampling(truncation=psi), Draws([1, 2, 3, 4]))
        return canvas.picture()

    spread = [paint(psi).std(0).mean().item() for psi in (0.0, 0.3, 1.0)]
    assert spread[0] == 0 and spread[0] < spread[1] < spread[2]


def test_directions_are_those_that_the_first_layer_stretches_most() -> None:
    model = build(ImageSpec(3, 16, 16, classes=CLASSES), width=16, widest=16)
    found = model.directions()
    assert found.shape == (TINY.latent, TINY.latent)
    torch.testing.assert_close(found @ found.T, torch.eye(TINY.latent))
    stretched = (found @ model.generator.weigh.weight[:, : TINY.latent].T).norm(dim=1)
    assert torch.equal(stretched.argsort(descending=True), torch.arange(TINY.latent))


def test_without_a_condition_labels_change_nothing() -> None:
    model = build(ImageSpec(3, 16, 16, classes=CLASSES), condition="none")
    assert model.generator.embed is None and model.discriminator.embed is None
    torch.manual_seed(5)
    one = model.discriminator_loss(batch_of(4, 2))
    torch.manual_seed(5)
    assert one == model.discriminator_loss(batch_of(4))


# ---- its convolution

SHAPES = pytest.mark.parametrize(
    ("side", "stride", "padding", "groups"), [(3, 1, 1, 1), (3, 1, 1, 2), (1, 1, 0, 1), (4, 2, 1, 4), (3, 2, 0, 2)]
)  # fmt: skip


@SHAPES
def test_a_convolution_and_both_its_derivatives(side: int, stride: int, padding: int, groups: int) -> None:
    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    def convolved(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return convolve.conv2d(x, weight, bias, stride, padding, groups)

    inputs = draw(2, 4, 6, 5), draw(4, 4 // groups, side, side), draw(4)
    torch.testing.assert_close(convolved(*inputs), F.conv2d(*inputs, stride, padding, 1, groups))
    assert torch.autograd.gradcheck(convolved, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(convolved, inputs, fast_mode=True)


def test_gradients_by_images_only_are_the_same_and_skip_weights() -> None:
    layer = convolve.Conv2d(2, 3, 3, padding=1)
    x = torch.randn(2, 2, 5, 5, requires_grad=True)

    def penalised() -> tuple[Tensor, Tensor]:
        layer.zero_grad()
        (slope,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
        slope.square().sum().backward()
        return slope.detach(), layer.weight.grad.clone()

    usual = penalised()
    y = layer(x).square().sum()
    with convolve.no_weight_gradients():
        (slope,) = torch.autograd.grad(y, x, create_graph=True)
        assert torch.autograd.grad(layer(x).sum(), layer.weight, allow_unused=True) == (None,)
    layer.zero_grad()
    slope.square().sum().backward()
    torch.testing.assert_close((slope.detach(), layer.weight.grad), usual)


def test_under_autocast_it_is_a_convolution_in_bf16() -> None:
    layer, x = convolve.Conv2d(2, 3, 3, padding=1), torch.randn(2, 2, 5, 5)
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = layer(x), F.conv2d(x, layer.weight, layer.bias, padding=1)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected)
    found.float().square().sum().backward()
    assert layer.weight.grad is not None and layer.weight.grad.dtype == torch.float32


def test_a_bounded_generator_stays_within_black_and_white() -> None:
    spec = ImageSpec(3, 16, 16)
    config = dataclasses.replace(R3GAN.presets["tiny"].model, bounded=True)
    model = R3GAN(config, spec)
    with torch.no_grad():
        for p in model.generator.parameters():
            p.mul_(30)
    assert model.generate_fakes(Batch(torch.zeros(2, 3, 16, 16), Condition(2))).abs().max() <= 1


def test_augmentation_rises_over_the_burn_in_and_only_in_training() -> None:
    config = dataclasses.replace(R3GAN.presets["tiny"].model, augment_probability=0.8, burn_in=100)
    model, images = R3GAN(config, ImageSpec(3, 16, 16)), torch.rand(16, 3, 16, 16)
    model.advance(0)
    assert model.augment_probability == 0 and torch.equal(model.augmented(images), images)
    model.advance(50)
    assert model.augment_probability == pytest.approx(0.4)
    model.advance(1000)
    assert model.augment_probability == pytest.approx(0.8) and not torch.equal(
        model.augmented(images), images
    )
    assert torch.equal(model.eval().augmented(images), images)
