"""What only BigGAN promises: its paper's arithmetic, its sizes, its truncation; the rest is in test_families.py."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from limner.core import Batch, Condition, Draws, ImageSpec, LimnerError, mix
from limner.families.biggan import (
    BigGAN,
    BigGANConfig,
    BigGANSampling,
    orthogonality,
    truncate,
)
from limner.losses.adversarial import hinge_d, hinge_g
from limner.networks.gans.residual import Attention, ConditionalNorm, DeepDown, DeepUp, Down, Up
from limner.networks.gans.spectral import SpectralConv2d, SpectralEmbedding, SpectralLinear, SpectralNorm
from tests.helpers import golden, paint

TINY = BigGAN.presets["tiny"].model
DEEP = BigGAN.presets["deep"].model
PAPER = BigGAN.presets["paper"].model
WIDTHS_256, WIDTHS_512 = (16, 16, 8, 8, 4, 2, 1), (16, 16, 8, 8, 4, 2, 1, 1)
LABELS = ("cat", "dog", "owl")


def build(spec: ImageSpec | None = None, config: BigGANConfig = TINY, **changes: Any) -> BigGAN:
    torch.manual_seed(0)
    spec = spec or ImageSpec(3, 16, 16, classes=LABELS)
    return BigGAN(dataclasses.replace(config, **changes), spec).requires_grad_(False)


def batch(size: int = 6, labels: bool = True) -> Batch:
    generator = torch.Generator().manual_seed(3)
    image = torch.rand(size, 3, 16, 16, generator=generator) * 2 - 1
    return Batch(image, Condition(size, label=torch.arange(size) % 3 if labels else None))


# ---- spectral norm


def test_spectral_norm_is_one_power_iteration_a_call() -> None:
    given, expected = golden("spectral_norm")
    norm = SpectralNorm(3).double()
    norm.u.copy_(given["u"][0])
    for number in (1, 2):
        torch.testing.assert_close(norm(given["W"]), expected[f"W_sn_iter{number}"], rtol=1e-9, atol=1e-9)
        if number == 1:
            torch.testing.assert_close(norm.u, expected["u_after1"][0], rtol=1e-9, atol=1e-9)
    for _ in range(200):
        found = norm(given["W"])
    torch.testing.assert_close(found, given["W"] / expected["true_sigma"], rtol=1e-9, atol=1e-9)


def test_the_singular_vector_is_updated_in_training_only() -> None:
    norm, weight = SpectralNorm(4), torch.randn(4, 3, 2, 2)
    norm.eval()
    before = norm.u.clone()
    assert torch.equal(norm(weight), norm(weight)) and torch.equal(norm.u, before)
    norm.train()(weight)
    assert not torch.equal(norm.u, before)


def test_gradient_flows_through_the_value_and_not_through_the_singular_vector() -> None:
    """d(W / s)/dW with s = u W v and u, v constant (Miyato 2018, eq. 12)."""
    norm, weight = SpectralNorm(3).double(), torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    ahead = torch.randn(3, 5, dtype=torch.float64)
    w = weight.detach()
    for _ in range(500):  # until the guess stands still
        norm(w)
    (found,) = torch.autograd.grad((norm(weight) * ahead).sum(), weight)
    u, v = norm.u, nn.functional.normalize(norm.u @ w, dim=0)
    sigma = u @ w @ v
    expected = ahead / sigma - (ahead * w).sum() / sigma**2 * torch.outer(u, v)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (SpectralLinear(6, 4), torch.randn(5, 6)),
        (SpectralConv2d(6, 4, 3), torch.randn(5, 6, 8, 8)),
        (SpectralEmbedding(7, 4), torch.arange(7)),
    ],
    ids=["linear", "convolution", "embedding"],
)
def test_layers_use_the_normalised_weight(layer: nn.Module, x: torch.Tensor) -> None:
    with torch.no_grad():
        layer.weight.mul_(10)
        for _ in range(300):
            layer(x)
        scaled = layer(x)
        layer.weight.div_(torch.linalg.matrix_norm(layer.weight.flatten(1), 2))
        plain = type(layer).__mro__[1].forward(layer, x)  # the layer that it derives from
        bias = getattr(layer, "bias", None)
        assert bias is None or bias.abs().max() > 0
    torch.testing.assert_close(scaled, plain, rtol=1e-4, atol=1e-5)


# ---- losses


def test_hinge_sums_real_and_fake() -> None:
    given, expected = golden("gan_losses")
    assert float(hinge_d(given["real"], given["fake"])) == pytest.approx(float(expected["hinge_d_sum"]))
    assert float(hinge_g(given["fake"])) == pytest.approx(float(expected["hinge_g"]))


def test_discriminator_loss_is_the_hinge_of_one_batch_of_real_and_fake() -> None:
    model, given = build().eval(), batch()
    torch.manual_seed(5)
    found = model.discriminator_loss(given)["adversarial"]
    torch.manual_seed(5)
    fake = model.generate_fakes(given)
    real, forged = (model.discriminator(x, given.condition.label) for x in (given.image, fake))
    torch.testing.assert_close(found, hinge_d(real, forged))


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (4, 4), (8, 2, 1, 1), (3, 4, 3, 3)], ids=str)
def test_orthogonality_is_the_squared_overlap_of_filters(shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    filters = weight.flatten(1)
    expected = sum((2 * (a @ b) ** 2 for a, b in combinations(filters, 2)), torch.zeros(()).double())
    torch.testing.assert_close(orthogonality(weight), expected)
    # Brock 2019, eq. 3, differentiated by hand: 4 (W W^T * (1 - I)) W over rows
    overlap = (filters @ filters.T) * (1 - torch.eye(len(filters)))
    (found,) = torch.autograd.grad(orthogonality(weight), weight)
    torch.testing.assert_close(found.flatten(1), 4 * overlap @ filters)


def test_orthogonal_term_counts_the_matrices_but_not_the_embedding() -> None:
    model = build(orthogonal=0.5)
    matrices = [p for n, p in model.generator.named_parameters() if p.ndim > 1 and not n.startswith("shared")]
    expected = 0.5 * sum(float(orthogonality(w)) for w in matrices)
    model.generator.shared.weight.mul_(7)
    found = model.generator_loss(batch())["orthogonal"]
    assert float(found) == pytest.approx(expected, rel=1e-4) and expected > 0.1
    assert "orthogonal" not in build(orthogonal=0.0).generator_loss(batch())


def test_weights_start_orthogonal() -> None:
    model = build()
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear | nn.Embedding):
            w = module.weight.flatten(1)
            gram = w @ w.T if len(w) <= w.shape[1] else w.T @ w
            torch.testing.assert_close(gram, torch.eye(len(gram)), atol=1e-4, rtol=0)


def test_the_generator_may_be_updated_less_often() -> None:
    first, second = build(discriminator_steps=2).objectives()
    assert (first.trains, first.every) == ("discriminator", 1)
    assert (second.trains, second.every) == ("generator", 2)


# ---- layers


def test_attention_by_hand_and_zero_at_initialisation() -> None:
    torch.manual_seed(0)
    layer, x = Attention(16).double().eval(), torch.randn(2, 16, 4, 6, dtype=torch.float64)
    assert torch.equal(layer(x), x), "gamma starts at 0"
    with torch.no_grad():
        layer.gamma.fill_(0.7)
    query, key, value = layer.query(x), layer.key(x), layer.value(x)
    assert (query.shape[1], key.shape[1], value.shape[1]) == (2, 2, 8)
    found = layer(x)
    for row, column in ((0, 0), (3, 5), (1, 4)):
        weights, values = [], []
        for i in range(2):
            for j in range(3):
                area = (slice(None), slice(None), slice(2 * i, 2 * i + 2), slice(2 * j, 2 * j + 2))
                weights.append((query[:, :, row, column] * key[area].amax((2, 3))).sum(1))
                values.append(value[area].amax((2, 3)))
        shares = torch.stack(weights).softmax(0)
        near = (shares[:, :, None] * torch.stack(values)).sum(0)  # [2, 8]
        expected = x[:, :, row, column] + 0.7 * layer.out(near[:, :, None, None])[:, :, 0, 0]
        torch.testing.assert_close(found[:, :, row, column], expected)


def test_gain_is_around_one() -> None:
    layer = ConditionalNorm(4, 3)
    x = torch.randn(8, 4, 5, 5)
    torch.testing.assert_close(layer(x, torch.zeros(8, 3)), nn.BatchNorm2d(4)(x))
    assert layer.gain.bias is None and layer.bias.bias is None


def test_each_block_depends_on_its_own_chunk_and_the_shared_label() -> None:
    model = build().eval()
    z, label = torch.randn(1, 3 * TINY.chunk), torch.tensor([1])
    heard: dict[int, torch.Tensor] = {}
    ups = [block for block in model.generator.blocks if isinstance(block, Up)]
    for i, block in enumerate(ups):
        block.register_forward_pre_hook(lambda module, args, i=i: heard.update({i: args[1]}))
    started: list[torch.Tensor] = []
    model.generator.linear.register_forward_pre_hook(lambda module, args: started.append(args[0]))
    model.generator(z, label)
    first, *others = z.chunk(3, dim=1)
    assert torch.equal(started[0], first)
    shared = model.generator.shared(label)
    for i, chunk in enumerate(others):
        assert torch.equal(heard[i], torch.cat([shared, chunk], dim=1))


def test_unlabelled_it_leaves_the_embedding_out() -> None:
    for model in (build(ImageSpec(3, 16, 16)), build(condition="none")):
        assert model.generator.shared is None and model.discriminator.embed is None
        assert model.generator.blocks[0].norms[0].gain.in_features == TINY.chunk
        assert model.generator(torch.randn(2, model.generator.latent), None).shape == (2, 3, 16, 16)


def test_label_enters_the_logit_by_projection() -> None:
    model, image = build().eval(), batch().image
    d = model.discriminator
    features = d.layers(image).relu().sum((2, 3))
    for label in range(3):
        given = torch.full((6,), label)
        expected = d.head(features).squeeze(1) + features @ d.embed(torch.tensor([label]))[0]
        torch.testing.assert_close(d(image, given), expected)


def test_deep_blocks_drop_and_gain_channels_around_the_bottleneck() -> None:
    x, y = torch.randn(2, 16, 4, 4), torch.randn(2, 5)
    up, down = DeepUp(16, 8, 5, up=True), DeepDown(16, 24, downsample=True)
    for block in (up, down):
        nn.init.zeros_(block.convs[3].weight)
        nn.init.zeros_(block.convs[3].bias)
        block.convs[3].norm = nn.Identity()
    with torch.no_grad():
        torch.testing.assert_close(up(x, y), x[:, :8].repeat_interleave(2, 2).repeat_interleave(2, 3))
        pooled = nn.functional.avg_pool2d(x, 2)
        torch.testing.assert_close(down(x)[:, :16], pooled)
        assert down(x).shape == (2, 24, 2, 2)


@pytest.mark.parametrize("downsample", [True, False])
def test_first_block_does_not_rectify_the_image(downsample: bool) -> None:
    torch.manual_seed(0)
    block, x = Down(3, 4, first=True, downsample=downsample).eval(), torch.randn(1, 3, 8, 8)
    other = copy.deepcopy(block)
    other.first = False
    assert not torch.allclose(block(x), other(x))
    torch.testing.assert_close(block(x.abs()), other(x.abs()))


@pytest.mark.parametrize("classes", [(), LABELS], ids=["plain", "labelled"])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_deep_variant_trains_and_draws(depth: int, classes: tuple[str, ...]) -> None:
    model = build(ImageSpec(3, 16, 16, classes=classes), deep=True, depth=depth)
    ups = [block for block in model.generator.blocks if isinstance(block, DeepUp)]
    assert len(ups) == 2 * depth
    inputs = TINY.latent + (TINY.embedding if classes else 0)
    assert {up.norms[0].gain.in_features for up in ups} == {model.generator.linear.in_features} == {inputs}
    for objective in model.objectives():
        module = model.get_submodule(objective.trains).requires_grad_(True)
        sum(objective.loss(batch(labels=bool(classes))).values()).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())
        module.requires_grad_(False)
    *_, last = model.eval().sample(Condition(2), BigGANSampling(standing=1), Draws([1, 2]))
    assert last.picture().shape == (2, 3, 16, 16)


# ---- sizes


def counts(config: BigGANConfig, side: int) -> tuple[int, int]:
    with torch.device("meta"):
        model = BigGAN(config, ImageSpec(3, side, side, classes=tuple(map(str, range(1000)))))
    generator, discriminator = (sum(p.numel() for p in m.parameters()) for m in model.children())
    return generator, discriminator


@pytest.mark.parametrize(
    ("widths", "side", "millions"),
    [(PAPER.widths, 128, 50.4), (WIDTHS_256, 256, 55.9), (WIDTHS_512, 512, 56.2)],
    ids=["128", "256", "512"],
)
def test_deep_generators_have_the_published_sizes(
    widths: tuple[int, ...], side: int, millions: float
) -> None:
    """Those of the released models, whose last convolution has ``ch`` outputs, of which three are looked at."""
    generator, _ = counts(dataclasses.replace(DEEP, widths=widths), side)
    unused = (128 - 3) * (128 * 9 + 1)
    assert round((generator + unused) / 1e6, 1) == millions


def test_deep_discriminator_has_the_published_size() -> None:
    assert round(counts(DEEP, 128)[1] / 1e6, 1) == 34.6  # Brock 2019, appendix B


@pytest.mark.parametrize(("widths", "side"), [(WIDTHS_256, 256), (WIDTHS_512, 512)], ids=["256", "512"])
def test_other_resolutions_follow_the_papers_tables(widths: tuple[int, ...], side: int) -> None:
    """Tables 5 and 6, summed layer by layer, from another angle than the family builds them."""
    ch, shared, chunk = 96, 128, 20
    maps = [ch * w for w in widths]

    def conv(i: int, o: int, kernel: int) -> int:
        return i * o * kernel**2 + o

    def attend(c: int) -> int:
        return 2 * c * (c // 8) + 2 * c * (c // 2) + 1

    generator = 1000 * shared + (chunk + 1) * maps[0] * 16
    for i, o in pairwise(maps):
        generator += conv(i, o, 3) + conv(o, o, 3) + conv(i, o, 1) + 2 * (shared + chunk) * (i + o)
    generator += attend(maps[4]) + 2 * maps[-1] + conv(maps[-1], 3, 3)  # at 64x64 after four doublings
    critic = [3, *maps[::-1]]
    discriminator = 1001 * maps[0] + 1
    for i, o in pairwise(critic):
        discriminator += conv(i, o, 3) + conv(o, o, 3) + conv(i, o, 1)
    discriminator -= conv(maps[0], maps[0], 1)  # the last block neither halves nor widens
    discriminator += attend(maps[5])  # at 64x64 on the way down
    config = dataclasses.replace(PAPER, widths=widths)
    with torch.device("meta"):
        model = BigGAN(config, ImageSpec(3, side, side, classes=tuple(map(str, range(1000)))))
    assert model.generator.latent == chunk * len(widths), "140 and 160 numbers of noise"
    assert counts(config, side) == (generator, discriminator)


@pytest.mark.parametrize(
    ("size", "times"),
    [
        ((16, 16), 2), ((24, 16), 2), ((12, 20), 2), ((28, 28), 2), ((32, 32), 3), ((48, 64), 4),
        ((128, 128), 5), ((30, 30), 1), ((6, 6), 1), ((8, 40), 1),
        ((1, 1), 0), ((5, 7), 0), ((9, 40), 0), ((5, 5), 0), ((100, 100), 0), ((34, 34), 0),
    ],
    ids=str,
)  # fmt: skip
def test_doublings(size: tuple[int, int], times: int) -> None:
    if times:
        assert sum(isinstance(block, Up) for block in build(ImageSpec(3, *size)).generator.blocks) == times
    else:
        with pytest.raises(LimnerError, match="biggan cannot double"):
            build(ImageSpec(3, *size))


@pytest.mark.parametrize(
    "size", [(1, 1), (5, 7), (9, 40), (100, 100), (77, 130), (34, 33), (3, 500)], ids=str
)
def test_the_error_for_a_size_names_one_that_works(size: tuple[int, int]) -> None:
    with pytest.raises(LimnerError, match="choose --size") as refusal:
        build(ImageSpec(3, *size))
    told = str(refusal.value).rpartition("--size ")[2].rstrip(".")
    height, width = map(int, told.split("x"))
    build(ImageSpec(3, height, width))


def test_condition_label_without_labels_is_refused() -> None:
    with pytest.raises(LimnerError, match="the data has none"):
        build(ImageSpec(3, 16, 16), condition="label")


# ---- sampling


@pytest.mark.parametrize("share", [0.95, 0.5, 0.05])
def test_truncation_draws_from_the_truncated_normal(share: float) -> None:
    normal = torch.distributions.Normal(0.0, 1.0)
    threshold = float(normal.icdf(torch.tensor(0.5 + share / 2, dtype=torch.float64)))
    z = torch.randn(40_000, generator=torch.Generator().manual_seed(0))
    found = truncate(z, share)
    assert found.abs().max() <= threshold + 1e-6
    for x in (-0.8, -0.3, 0.1, 0.6):  # its distribution, which drawing again beyond the threshold has too
        expected = 0.5 + (float(normal.cdf(torch.tensor(x * threshold))) - 0.5) / share
        assert float((found < x * threshold).float().mean()) == pytest.approx(expected, abs=0.01)


def test_truncation_one_is_none_and_zero_the_centre() -> None:
    z = torch.cat([torch.randn(100), torch.tensor([7.0, -9.0])])
    assert torch.equal(truncate(z, 1), z)
    assert not truncate(z, 0).any()
    assert truncate(z, 0.999).isfinite().all()
    torch.testing.assert_close(truncate(z[:100], 0.9999), z[:100], atol=0.05, rtol=0.05)
    model = build().eval()
    *_, last = model.sample(
        Condition(2, label=torch.tensor([1, 1])), BigGANSampling(truncation=0.0), Draws([1, 2])
    )
    torch.testing.assert_close(*last.picture())
    with pytest.raises(LimnerError, match="0 to 1"):
        next(model.sample(Condition(1), BigGANSampling(truncation=1.5), Draws([1])))


def norms(module: nn.Module) -> list[nn.BatchNorm2d]:
    return [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]


def drawn(model: BigGAN, **knobs: Any) -> torch.Tensor:
    with torch.inference_mode():
        *_, last = model.sample(Condition(3), BigGANSampling(**knobs), Draws([1, 2, 3]))
        return last.picture()


def test_standing_statistics_are_the_mean_over_passes_and_leave_the_model_alone() -> None:
    model = build().eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    drawn(model, standing=3)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    (twin,) = model.measured.values()
    for own, shared in zip(model.generator.parameters(), twin.parameters(), strict=True):
        assert own is shared
    # The first norm's input depends on the first chunk only: its mean over 3 x 32 draws is found by hand.
    first, inputs = norms(twin)[0], []
    hook = twin.blocks[0].register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    for i in range(3):
        z = Draws([mix("standing", i, j) for j in range(32)]).normal(model.generator.latent)
        twin(z, torch.zeros(32, dtype=torch.long))
    hook.remove()
    torch.testing.assert_close(first.running_mean, torch.cat(inputs).mean((0, 2, 3)), atol=1e-5, rtol=1e-4)
    variances = torch.stack([x.transpose(0, 1).flatten(1).var(1) for x in inputs]).mean(0)
    torch.testing.assert_close(first.running_var, variances, atol=1e-5, rtol=1e-4)


def test_statistics_are_measured_once_for_each_truncation() -> None:
    model = build().eval()
    canvases = [
        len(list(model.sample(Condition(1), BigGANSampling(t, 2), Draws([1])))) for t in (1.0, 1.0, 0.3)
    ]
    assert canvases == [3, 1, 3]
    assert not torch.equal(drawn(model), drawn(model, standing=0))
    spread = []
    for share in (1.0, 0.3):
        drawn(model, truncation=share)
        spread.append(norms(model.measured[BigGANSampling(share)])[0].running_var.mean())
    assert spread[1] < spread[0] / 4, "less noise, less spread"
    model.train()
    assert not model.measured, "training makes them stale"


def test_without_passes_the_statistics_are_those_of_training() -> None:
    model = build().eval()
    z, label = Draws([1, 2, 3]).normal(model.generator.latent), torch.tensor([0, 1, 2])
    *_, last = model.sample(Condition(3, label=label), BigGANSampling(standing=0), Draws([1, 2, 3]))
    assert torch.equal(last.picture(), model.generator(z, label))


def test_truncation_reduces_variety_with_the_statistics_of_training() -> None:
    """Standing statistics partly undo it where the generator has learnt no picture for the centre yet."""
    model = build().eval()
    label = torch.tensor([1, 1, 1, 1])
    pictures = []
    for share in (1.0, 0.2):
        sampling = BigGANSampling(share, standing=0)
        *_, last = model.sample(Condition(4, label=label), sampling, Draws([1, 2, 3, 4]))
        pictures.append(last.picture())
    assert pictures[1].std(0).mean() < pictures[0].std(0).mean() / 2


def test_paint_equals_sample_and_is_differentiable() -> None:
    model = build().eval()
    condition = Condition(2, label=torch.tensor([0, 2]))
    with torch.inference_mode():  # which must leave nothing behind that gradients cannot pass
        *_, last = model.sample(condition, BigGANSampling(), Draws([4, 5]))
    z = model.latent(condition, Draws([4, 5])).requires_grad_(True)
    picture = model.paint(z, condition)
    torch.testing.assert_close(picture, last.picture().clone())
    picture.square().sum().backward()
    assert z.grad is not None and z.grad.isfinite().all() and z.grad.abs().sum() > 0


def test_truncation_from_the_command_line(limner: Callable[..., Any], tmp_path: Path) -> None:
    for name in LABELS:
        paint(tmp_path / "images" / name, 4)
    data = ("--data.cache", tmp_path / "cache", "--data.holdout", 0)
    limner(
        "train", "biggan", tmp_path / "images", "--out", tmp_path / "run", "--preset", "tiny",
        "--budget", "64img", *data,
    )  # fmt: skip
    spread = []
    for share in (1.0, 0.0):
        out = tmp_path / f"at {share:.0%}"
        limner("sample", tmp_path / "run", "--n", 8, "--label", "cat", "--truncation", share, "--to", out)
        pictures = np.stack([np.asarray(Image.open(file)) for file in sorted(out.glob("*.png"))])
        assert pictures.shape == (8, 16, 16, 3)
        spread.append(pictures.astype(float).std(0).mean())
    assert spread[1] < 1 < spread[0]
    refusal = limner("sample", tmp_path / "run", "--truncation", 2, "--to", tmp_path / "no.png", ok=False)
    assert refusal.returncode == 2 and "choose 0 to 1" in refusal.stderr


def test_players_of_different_widths() -> None:
    """At 64x64 the published discriminator is a step narrower than the generator at each resolution."""
    model = build(ImageSpec(3, 16, 16), widths=(4, 4, 2), discriminator_widths=(4, 2, 1))
    maps = [block.convs[0].weight.shape[0] for block in model.discriminator.layers if isinstance(block, Down)]
    assert maps == [4 * n for n in (1, 2, 4)]
    assert [block.convs[0].weight.shape[0] for block in model.generator.blocks if isinstance(block, Up)] == [
        16,
        8,
    ]
