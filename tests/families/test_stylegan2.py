"""What only StyleGAN2 promises: its layers and losses against formulas, its knobs; the rest is in test_families.py."""

from __future__ import annotations

import dataclasses
import json
import signal
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import limner as package
from limner import checkpoint
from limner.core import Batch, Condition, Draws, ImageSpec, LimnerError
from limner.families import stylegan2
from limner.families.stylegan2 import PathLength, StyleGAN2, StyleGAN2Config, StyleGAN2Sampling
from limner.networks.gans.styled import Down, Mapping, modulated_conv2d
from limner.networks.images.resample import kernel, upfirdn2d
from tests.helpers import golden

TINY = StyleGAN2.presets["tiny"].model


@pytest.fixture(autouse=True)
def few_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def build(spec: ImageSpec | None = None, config: StyleGAN2Config = TINY, **changes: object) -> StyleGAN2:
    torch.manual_seed(0)
    return StyleGAN2(dataclasses.replace(config, **changes), spec or ImageSpec(3, 16, 16))


def batch_of(n: int, channels: int = 3, label: Tensor | None = None) -> Batch:
    generator = torch.Generator().manual_seed(1)
    image = torch.rand(n, channels, 16, 16, generator=generator) * 2 - 1
    return Batch(image, Condition(n, label=label))


def paint(model: StyleGAN2, seeds: list[int], label: Tensor | None = None, **knobs: float) -> Tensor:
    condition = Condition(len(seeds), label=label)
    (canvas,) = model.eval().sample(condition, StyleGAN2Sampling(**knobs), Draws(seeds))
    return canvas.picture()


# ---- the layers


def test_modulated_convolution() -> None:
    given, expected = golden("modulated_conv2d")
    x, weight, styles = given["x"], given["weight"], given["styles"]
    filter = kernel(given["filter"].tolist(), like=x)
    found = {
        "demod": modulated_conv2d(x, weight, styles),
        "nodemod": modulated_conv2d(x, weight, styles, demodulate=False),
        "up2": modulated_conv2d(x, weight, styles, up=filter),
    }
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-8, atol=1e-8)


def test_scaling_inputs_and_outputs_equals_a_weight_for_each_image() -> None:
    torch.manual_seed(0)
    x, weight, styles = torch.randn(3, 4, 6, 5), torch.randn(2, 4, 3, 3), torch.randn(3, 4)
    one, other = ([t.double().requires_grad_() for t in (x, weight, styles)] for _ in range(2))
    found = modulated_conv2d(*one)
    own = other[1][None] * other[2][:, None, :, None, None]
    own = own * (own.square().sum((2, 3, 4), keepdim=True) + 1e-8).rsqrt()
    expected = torch.cat([F.conv2d(other[0][i : i + 1], own[i], padding=1) for i in range(3)])
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    for a, b in zip(
        torch.autograd.grad(found.square().sum(), one),
        torch.autograd.grad(expected.square().sum(), other),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_features_have_unit_variance_for_any_style() -> None:
    torch.manual_seed(0)
    x = modulated_conv2d(torch.randn(4, 64, 16, 16), torch.randn(32, 64, 3, 3), 5 * torch.randn(4, 64))
    assert x[:, :, 1:-1, 1:-1].std((2, 3)).mean().item() == pytest.approx(1, abs=0.1)


def test_mapping_normalises_the_noise_and_the_label() -> None:
    torch.manual_seed(0)
    mapping = Mapping(8, 3, 16, 2)
    z, label = torch.randn(4, 8), torch.tensor([0, 1, 2, 0])
    torch.testing.assert_close(mapping(10 * z, label), mapping(z, label), atol=1e-5, rtol=1e-5)
    assert mapping.layers[0].weight.shape == (16, 24)
    assert mapping.layers[0].weight.std().item() == pytest.approx(100, rel=0.1), "learns at a hundredth"
    same = mapping(z[:1].expand(3, -1), torch.tensor([0, 1, 2]))
    assert (same[0] - same[1]).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("side", "base", "counts"),
    [(1024, 32768, (30_370_060, 29_012_513)), (256, 16384, (24_767_458, 24_001_089))],
)
def test_published_sizes_by_config_alone(side: int, base: int, counts: tuple[int, int]) -> None:
    config = dataclasses.replace(StyleGAN2.presets["paper"].model, channel_base=base)
    with torch.device("meta"):
        model = StyleGAN2(config, ImageSpec(3, side, side))
    found = [sum(p.numel() for p in m.parameters()) for m in (model.generator, model.discriminator)]
    assert tuple(found) == counts


@pytest.mark.parametrize(
    ("size", "base", "doublings"),
    [
        ((32, 32), (4, 4), 3),
        ((24, 16), (6, 4), 2),
        ((12, 20), (3, 5), 2),
        ((28, 28), (7, 7), 2),
        ((48, 48), (3, 3), 4),
    ],
)
def test_a_small_base_is_doubled(size: tuple[int, int], base: tuple[int, int], doublings: int) -> None:
    model = build(ImageSpec(1, *size))
    assert model.generator.synthesis.first.shape[1:] == base
    assert len(model.generator.synthesis.before) == len(model.discriminator.blocks) == doublings
    assert model.generator.synthesis.layers == 2 * doublings + 2
    w = torch.randn(2, model.generator.synthesis.layers, TINY.style)
    image = model.generator.synthesis(w, None)
    assert image.shape == (2, 1, *size) and model.discriminator(image, None).shape == (2,)


@pytest.mark.parametrize("size", [(33, 32), (100, 100), (5, 7), (16, 272), (2, 2)])
def test_other_sizes_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(LimnerError, match=f"stylegan2 .*{size[0]}x{size[1]}.*--size"):
        build(ImageSpec(3, *size))


def test_condition_label_without_labels_is_refused() -> None:
    with pytest.raises(LimnerError, match="the data has none"):
        build(condition="label")


# ---- the losses


def test_path_length_against_its_formula() -> None:
    """For an image that is linear in its styles the Jacobian is at hand."""
    torch.manual_seed(0)
    path = PathLength().double()
    path.mean.fill_(2.0)
    jacobian = torch.randn(2, 3, 5, 1 * 4 * 6).double()  # [B, L, style, pixels]
    w = torch.randn(2, 3, 5).double().requires_grad_()
    image = torch.einsum("blsp,bls->bp", jacobian, w).reshape(2, 1, 4, 6)
    torch.manual_seed(3)
    found = path(image, w)
    torch.manual_seed(3)
    y = torch.randn_like(image).flatten(1) / 24**0.5
    slope = torch.einsum("blsp,bp->bls", jacobian, y)
    length = (slope.square().sum(2).sum(1) / 3).sqrt()
    mean = 0.99 * 2.0 + 0.01 * length.mean()
    torch.testing.assert_close(found, ((length - mean) ** 2).mean(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(path.mean, mean, rtol=1e-9, atol=1e-9)
    path.eval()(image, w)
    assert path.mean == mean, "only training moves it"


def test_r1_against_finite_differences() -> None:
    """gamma / 2 |grad|^2, gamma 10 at 1024x1024 as published, times the steps between its turns."""
    model = build(ImageSpec(1, 8, 8), r1=10 / 1024**2).double().requires_grad_(False)
    image = torch.rand(1, 1, 8, 8, dtype=torch.float64) * 2 - 1
    batch = Batch(image, Condition(1))
    squared, step = 0.0, 1e-4
    for i in range(64):
        ends = []
        for sign in (1, -1):
            moved = image.clone()
            moved.view(-1)[i] += sign * step
            ends.append(float(model.discriminator(moved, None)))
        squared += ((ends[0] - ends[1]) / (2 * step)) ** 2
    found = model.r1_loss(batch)["r1"].item()
    assert found == pytest.approx(16 * 10 * 64 / 1024**2 / 2 * squared, rel=1e-3)


def test_lazy_regularisers_and_their_corrected_optimisers() -> None:
    model = build()
    assert [(o.trains, o.every) for o in model.objectives()] == [
        ("discriminator", 1), ("generator", 1), ("discriminator", 16), ("generator", 4),
    ]  # fmt: skip
    assert len(build(path=0.0, r1=0.0).objectives()) == 2
    optimisers = StyleGAN2.presets["paper"].training.optimisers
    d, g = optimisers["discriminator"], optimisers["generator"]
    assert d.lr == pytest.approx(0.002 * 16 / 17) and g.lr == pytest.approx(0.002 * 4 / 5)
    assert d.betas == pytest.approx((0.0, 0.99 ** (16 / 17))) and g.betas == pytest.approx((0.0, 0.99**0.8))
    plain = StyleGAN2.presets["small"].training.optimisers["generator"]
    assert plain.lr == 0.0025 and plain.betas == (0.0, 0.99), "small has no path length"


def test_each_loss_leaves_the_other_network_without_gradient() -> None:
    model = build().requires_grad_(False)
    for objective in model.objectives():
        own = model.get_submodule(objective.trains).requires_grad_(True)
        sum(objective.loss(batch_of(4)).values()).backward()
        for name, p in model.named_parameters():
            assert p.grad is None or name.startswith(f"{objective.trains}.")
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in own.parameters())
        model.zero_grad()
        own.requires_grad_(False)


@pytest.mark.parametrize("size", [1, 3, 5])
def test_any_batch_size_can_be_scored(size: int) -> None:
    model = build(augment_probability=0.9, augment="fixed")
    for objective in model.objectives():
        assert all(value.isfinite() for value in objective.loss(batch_of(size)).values())


# ---- styles


@pytest.mark.parametrize("mixing", [0.0, 1.0])
def test_mixing_takes_the_finer_layers_from_a_second_style(mixing: float) -> None:
    w = build(mixing=mixing).styles(32, None, torch.zeros(1))
    kinds = [len(torch.unique(one.detach(), dim=0)) for one in w]
    assert set(kinds) == {2 if mixing else 1}
    if mixing:
        changes = (w[:, 1:] != w[:, :-1]).any(2)  # [B, L - 1]
        assert (changes.sum(1) == 1).all() and len(changes.nonzero()[:, 1].unique()) > 1


def test_the_mean_style_is_updated_by_the_generator_loss_in_training() -> None:
    model = build()
    model.discriminator_loss(batch_of(4))
    model.r1_loss(batch_of(4))
    model.eval()
    model.generator_loss(batch_of(4))
    assert not model.generator.mean.any()
    model.train()
    for _ in range(10):
        model.generator.update_mean(torch.tensor([[1.0] * TINY.style, [3.0] * TINY.style]))
    followed = 2 * (1 - 0.995**10)  # w_avg_beta of NVlabs/stylegan2-ada-pytorch
    torch.testing.assert_close(model.generator.mean, torch.full((TINY.style,), followed))


def test_truncation_moves_styles_towards_their_mean() -> None:
    model = build()
    model.generator.mean.normal_()
    middle = model.draw(model.generator.mean[None], None)
    pictures = paint(model, [1, 2], truncation=0.0, noise=0.0)
    torch.testing.assert_close(pictures, middle.expand(2, -1, -1, -1))

    def spread(truncation: float) -> float:
        drawn = paint(model, list(range(16)), truncation=truncation)
        return drawn.std(0).mean().item()

    assert spread(0.0) < spread(0.5) < spread(1.0)


def test_noise_scales_details() -> None:
    model = build()
    for name, p in model.generator.named_parameters():
        if name.endswith("strength"):
            p.data.fill_(0.5)
    without, some, full = (paint(model, [1], noise=n) for n in (0.0, 0.5, 1.0))
    assert 0 < (some - without).abs().mean() < (full - without).abs().mean()
    latent = model.latent(Condition(1), Draws([1]))
    torch.testing.assert_close(model.paint(latent, Condition(1)), without)


def test_paint_is_differentiable_and_takes_a_style_for_each_layer() -> None:
    model = build(ImageSpec(3, 16, 16, classes=("a", "b"))).eval()
    w = model.latent(Condition(2), Draws([3, 4])).detach().requires_grad_()
    model.paint(w, Condition(2)).sum().backward()
    assert w.shape == (2, TINY.style) and w.grad is not None and w.grad.abs().sum() > 0
    mixed = w.detach()[:, None].repeat(1, model.generator.synthesis.layers, 1)
    mixed[0, 3:] = mixed[1, 3:]
    one, other = model.paint(mixed, Condition(2))
    assert not torch.equal(one, other)
    torch.testing.assert_close(other, model.paint(w.detach(), Condition(2))[1])


def test_the_discriminator_uses_labels_by_projection() -> None:
    model = build(ImageSpec(3, 16, 16, classes=("a", "b"))).eval()
    image = batch_of(2).image
    scores = [model.discriminator(image, torch.full((2,), i)) for i in range(2)]
    assert (scores[0] - scores[1]).abs().min() > 1e-4
    assert build(ImageSpec(3, 16, 16, classes=("a", "b")), condition="none").discriminator.mapping is None


def test_the_discriminator_has_a_mapping_network_of_its_own_depth() -> None:
    """Eight layers, whatever the generator has (NVlabs/stylegan2-ada-pytorch, whose map=2 is the generator's alone)."""
    assert StyleGAN2Config().discriminator_mapping == 8
    model = build(ImageSpec(3, 16, 16, classes=("a", "b")), mapping=3, discriminator_mapping=5)
    assert len(model.generator.mapping.layers) == 3 and len(model.discriminator.mapping.layers) == 5


def test_the_discriminator_for_cifar_has_no_shortcuts() -> None:
    cifar = StyleGAN2.presets["cifar"]
    with torch.device("meta"):
        model = StyleGAN2(cifar.model, ImageSpec(3, 32, 32))
    assert sum(p.numel() for p in model.discriminator.parameters()) == 20_720_641  # without labels
    assert sum(p.numel() for p in model.generator.parameters()) == 19_947_539
    assert {objective.trains for objective in model.objectives()[2:]} == {"discriminator"}, "no path length"
    down = Down(4, 6, residual=False).double()
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    h = F.leaky_relu(F.conv2d(x, down.same.weight * down.same.scale, padding=1), 0.2) * 2**0.5
    h = upfirdn2d(h, kernel(like=x), pad=(2, 2, 2, 2))
    h = F.leaky_relu(F.conv2d(h, down.halve.weight * down.halve.scale, stride=2), 0.2) * 2**0.5
    torch.testing.assert_close(down(x), h)


# ---- augmentation


def test_only_the_discriminator_sees_augmented_images(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []

    def watch(x: Tensor, chance: float, mirror: bool) -> Tensor:
        seen.append(chance)
        return x

    monkeypatch.setattr(stylegan2, "augment", watch)
    model = build(augment_probability=0.25)
    counts = []
    for objective in model.objectives():
        seen.clear()
        objective.loss(batch_of(2))
        counts.append(len(seen))
        assert set(seen) <= {0.25}
    assert counts == [2, 1, 1, 0], "real and fake, fake, real, none for the path length"
    seen.clear()
    model.eval().discriminator_loss(batch_of(2))
    build(augment="none").discriminator_loss(batch_of(2))
    assert not seen


@pytest.mark.parametrize("how", ["adaptive", "fixed"])
def test_only_the_adaptive_probability_changes_and_only_in_training(how: str) -> None:
    model = build(augment=how, augment_probability=0.1, ada_target=-2.0)  # always overfitting
    for _ in range(4):
        model.discriminator_loss(batch_of(4))
    assert (float(model.augment.chance) > 0.1001) == (how == "adaptive")
    kept = float(model.augment.chance)
    model.eval()
    for _ in range(4):
        model.discriminator_loss(batch_of(4))
    assert float(model.augment.chance) == kept


def test_the_augmentation_probability_survives_a_resume(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two looks of the controller, too: the sums are kept."""
    options = {"training": {"batch": 8, "samples": 2}, "model": {"ada_target": -2.0, "ada_images": 100.0}}

    def train(out: str, resume: bool = False) -> None:
        package.train(
            "stylegan2",
            images,
            tmp_path / out,
            preset="tiny",
            budget="80img",
            quiet=True,
            resume=resume,
            **options,
        )

    train("unbroken")
    advance = StyleGAN2.advance

    def stop_at_40(self: StyleGAN2, seen: int) -> None:
        if seen == 40:
            signal.raise_signal(signal.SIGTERM)
        advance(self, seen)

    with monkeypatch.context() as patch:
        patch.setattr(StyleGAN2, "advance", stop_at_40)
        train("stopped")
    train("stopped", resume=True)
    one, other = (checkpoint.resume(tmp_path / run) for run in ("unbroken", "stopped"))
    assert one and other and one.live_tensors.keys() == other.live_tensors.keys()
    assert all(torch.equal(value, other.live_tensors[name]) for name, value in one.live_tensors.items())
    assert float(one.live_tensors["model/augment.chance"]) == pytest.approx(0.64)
    assert float(one.live_tensors["model/augment.batches"]) == 2
    assert float(one.live_tensors["model/path.mean"]) > 0 and one.live_tensors["model/generator.mean"].any()


def test_by_command(limner, images: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    limner(
        "train", "stylegan2", images, "--out", run, "--preset", "tiny", "--budget", "64img",
        "--training.samples", 2, "--model.augment", "fixed", "--model.augment-probability", "0.5",
    )  # fmt: skip
    assert json.loads((run / "config.json").read_text())["model"]["augment"] == "fixed"
    limner("sample", run, "--n", 2, "--truncation", "0.5", "--noise", "0", "--to", tmp_path / "two.png")
    assert (tmp_path / "two.png").exists()
    done = limner(
        "train", "stylegan2", images, "--size", "33", "--out", tmp_path / "no", "--budget", "8img", ok=False
    )
    assert done.returncode == 2 and "--size" in done.stderr and "Traceback" not in done.stderr


def test_layers_take_styles_of_their_own() -> None:
    """What explore's mixing sheet and project's --each-layer ask of a pipeline."""
    from limner.core import Condition, Draws, Layered

    torch.manual_seed(0)
    model = StyleGAN2(StyleGAN2.presets["tiny"].model, ImageSpec(3, 16, 16)).eval()
    assert isinstance(model, Layered)
    condition = Condition(2)
    w = model.latent(condition, Draws([0, 1]))
    each = w[:, None].repeat(1, model.layers, 1)
    torch.testing.assert_close(model.paint(each, condition), model.paint(w, condition))
    each[:, -1] = w.flip(0)
    assert not torch.allclose(model.paint(each, condition), model.paint(w, condition))
