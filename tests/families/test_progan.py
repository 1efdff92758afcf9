"""What only ProGAN promises: growing, its layers and losses by the paper's arithmetic, its knobs."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import limner as api
from limner import checkpoint, families
from limner.core import Batch, Condition, Draws, ImageSpec, LimnerError
from limner.families import progan
from limner.families.progan import (
    DownConv2d,
    Growth,
    ProGAN,
    ProGANSampling,
    UpConv2d,
    at_growth,
    downsample,
    growth,
    upsample,
)
from tests.helpers import golden

TINY = ProGAN.presets["tiny"].model
PAPER = ProGAN.presets["paper"].model
LATE = 10**9  # images, long after growth has ended


def build(spec: ImageSpec | None = None, **changes: Any) -> ProGAN:
    torch.manual_seed(0)
    model = families.build("progan", dataclasses.replace(TINY, **changes), spec or ImageSpec(3, 16, 16))
    assert isinstance(model, ProGAN)
    return model.requires_grad_(False)


def batch(model: ProGAN, size: int = 6) -> Batch:
    torch.manual_seed(1)
    label = torch.arange(size) % len(model.spec.classes) if model.spec.classes else None
    return Batch(torch.rand(size, *model.spec.shape) * 2 - 1, Condition(size, label=label))


# ---- growing


def test_growth_alternates_between_standing_and_fading() -> None:
    paper = {0: (0, 1), 600_000: (0, 1), 900_000: (1, 0.5), 1_200_000: (1, 1), 1_800_000: (1, 1)}
    paper |= {2_250_000: (2, 0.75), 9_599_999: (8, 599_999 / 600_000), 9_600_000: (8, 1), LATE: (8, 1)}
    for seen, expected in paper.items():
        assert growth(seen, 8, 600_000, 600_000) == pytest.approx(expected), seen
    reached = [growth(seen, 3, 7, 5) for seen in range(60)]
    depth = [level - 1 + alpha for level, alpha in reached]
    assert depth == sorted(depth) and depth[0] == 0 and depth[-1] == 3
    assert all(0 < alpha <= 1 for _, alpha in reached)
    assert max(b - a for a, b in pairwise(depth)) <= 1 / 5 + 1e-9, "in small steps"


def test_growth_without_a_phase() -> None:
    assert growth(0, 4, 0, 0) == (4, 1), "all levels at once"
    assert [growth(s, 2, 4, 0) for s in (0, 3, 4, 8)] == [(0, 1), (0, 1), (1, 1), (2, 1)], "no fading"
    assert [growth(s, 1, 0, 4) for s in (0, 1, 4)] == [(0, 1), (1, 0.25), (1, 1)], "no standing"


def test_real_images_have_the_resolution_and_blending_of_fakes() -> None:
    image = torch.rand(2, 3, 16, 16, dtype=torch.float64)
    assert torch.equal(at_growth(image, 2, Growth(2, 1.0)), image)
    torch.testing.assert_close(at_growth(image, 2, Growth(0, 1.0)), downsample(downsample(image)))
    found = at_growth(image, 2, Growth(2, 0.25))
    coarse = image.reshape(2, 3, 8, 2, 8, 2).mean((3, 5)).repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(found, 0.75 * coarse + 0.25 * image)


def test_a_level_fades_in_continuously() -> None:
    """Both networks just after fading begins are what they were before it, and at its end what comes after."""
    model = build().double()
    noise = torch.randn(5, TINY.latent, dtype=torch.float64)
    image = torch.rand(5, 3, 8, 8, dtype=torch.float64)
    before = model.generator(noise, None, Growth(0, 1.0))
    torch.testing.assert_close(
        model.generator(noise, None, Growth(1, 1e-12)), upsample(before).float(), atol=1e-6, rtol=0
    )
    torch.testing.assert_close(
        model.discriminator(image, None, Growth(1, 1e-12)),
        model.discriminator(downsample(image), None, Growth(0, 1.0)),
    )
    after, nearly = Growth(1, 1.0), Growth(1, 1 - 1e-12)
    for network, x in ((model.generator, noise), (model.discriminator, image)):
        torch.testing.assert_close(network(x, None, nearly), network(x, None, after), atol=1e-6, rtol=0)


@pytest.mark.parametrize("classes", [(), ("cat", "dog")], ids=["plain", "labelled"])
@pytest.mark.parametrize("loss", ["wgan_gp", "non_saturating", "hinge"])
def test_each_loss_trains_at_every_point_of_growth(loss: Any, classes: tuple[str, ...]) -> None:
    """Only what has grown is moved, and either player's turn leaves the other alone; also in bf16."""
    model = build(ImageSpec(1, 12, 20, classes=classes), loss=loss, stable=10, fade=10)
    assert model.last == 2
    for seen, level, fading in ((0, 0, False), (15, 1, True), (20, 1, False), (33, 2, True), (40, 2, False)):
        model.advance(seen)
        assert (model.grown.level, model.grown.alpha < 1) == (level, fading)
        for objective in model.objectives():
            own = model.get_submodule(objective.trains).requires_grad_(True)
            for precision in (torch.float32, torch.bfloat16):
                model.zero_grad()
                with torch.autocast("cpu", precision, enabled=precision != torch.float32):
                    terms = objective.loss(batch(model))
                torch.stack(list(terms.values())).sum().backward()
                moved = {n for n, p in own.named_parameters() if p.grad is not None}
                assert all(p.grad.isfinite().all() for p in own.parameters() if p.grad is not None)
                ends = {int(n.split(".")[1]) for n in moved if "rgb" in n}
                assert ends == ({level, level - 1} if fading else {level})
                assert {int(n.split(".")[1]) for n in moved if n.startswith("conv.")} == set(range(level))
            own.requires_grad_(False)
            for name, p in model.named_parameters():
                assert name.startswith(objective.trains) or p.grad is None, name


def test_samples_are_enlarged_from_the_level_that_training_reached() -> None:
    model = build(stable=10, fade=10).eval()
    for seen, block in ((0, 4), (15, 2), (20, 2), (35, 1), (LATE, 1)):
        model.advance(seen)
        (canvas,) = model.sample(Condition(2), ProGANSampling(), Draws([1, 2]))
        picture = canvas.picture()
        assert picture.shape == (2, 3, 16, 16)
        small = picture[..., ::block, ::block]
        assert torch.equal(small.repeat_interleave(block, 2).repeat_interleave(block, 3), picture)
        assert not torch.equal(picture[..., 0::2, :], picture[..., 1::2, :]) or block > 1


def train(images: Path, out: Path, budget: str, resume: bool = False) -> None:
    training = {"batch": 8, "samples": 2, "save_every": "1h", "sample_every": "1h", "evaluate_every": "1h"}
    training["schedule"] = "constant"  # any other looks at the budget
    data = {"cache": str(images.parent / "cache"), "holdout": 0.0}
    growing = {"stable": 24, "fade": 40}  # 16x16 is reached at 128 images
    options = {"budget": budget, "quiet": True, "training": training, "data": data, "model": growing}
    api.train("progan", images, out, preset="tiny", resume=resume, **options)


def test_resuming_while_fading_equals_not_stopping(images: Path, tmp_path: Path) -> None:
    train(images, tmp_path / "unbroken", "120img")
    for budget in ("40img", "72img", "120img"):  # stopped fading to 8x8, then standing there
        train(images, tmp_path / "stopped", budget, resume=budget != "40img")
        pipeline = api.load(tmp_path / "stopped")
        assert int(pipeline.model.generator.seen) == int(budget.removesuffix("img")) - 8, "as it was averaged"
        assert pipeline.model.grown == growth(int(pipeline.model.generator.seen), 2, 24, 40)
    one, other = (checkpoint.resume(tmp_path / run) for run in ("unbroken", "stopped"))
    assert one and other and one.state["seen"] == 120
    for found, expected in ((other.model_tensors, one.model_tensors), (other.live_tensors, one.live_tensors)):
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


# ---- the paper's arithmetic


def nf(stage: int) -> int:
    return min(8192 // 2**stage, 512)


@pytest.mark.parametrize("size", [128, 256, 512, 1024])
def test_parameters_by_the_published_formula(size: int) -> None:
    """Layer by layer as in the paper's table 2, at any resolution by the size of the images alone."""
    with torch.device("meta"):
        model = ProGAN(PAPER, ImageSpec(3, size, size))
    stages = range(2, size.bit_length() - 1)  # of every doubling: maps nf(stage), twice the size
    generator = 512 * nf(1) * 16 + nf(1) + (9 * nf(1) + 1) * nf(1)
    generator += sum((9 * nf(s - 1) + 1) * nf(s) + (9 * nf(s) + 1) * nf(s) for s in stages)
    generator += sum((nf(s) + 1) * 3 for s in [1, *stages])
    critic = sum((3 + 1) * nf(s) for s in [1, *stages])
    critic += sum((9 * nf(s) + 1) * nf(s) + (9 * nf(s) + 1) * nf(s - 1) for s in stages)
    critic += (9 * (nf(1) + 1) + 1) * nf(1) + (16 * nf(1) + 1) * nf(0) + nf(0) + 1
    found = [sum(p.numel() for p in m.parameters()) for m in (model.generator, model.discriminator)]
    assert found == [generator, critic]
    if size == 1024:
        assert found == [23_079_115, 23_087_249]  # tkarras/progressive_growing_of_gans


def test_fused_kernels_are_resizing_and_a_convolution() -> None:
    x = torch.randn(2, 3, 6, 10, dtype=torch.float64)
    up, down = UpConv2d(3, 5, 3).double(), DownConv2d(3, 5, 3).double()
    for layer in (up, down):
        torch.nn.init.normal_(layer.bias)
    plain = F.conv2d(upsample(x), up.weight * up.scale, up.bias, padding=1)
    torch.testing.assert_close(up(x), plain, rtol=1e-10, atol=1e-10)
    plain = downsample(F.conv2d(x, down.weight * down.scale, down.bias, padding=1))
    torch.testing.assert_close(down(x), plain, rtol=1e-10, atol=1e-10)


def test_equalised_layers_have_the_papers_gains() -> None:
    model = build()
    for layer in (*model.generator.up, *model.generator.conv, *model.discriminator.down):
        assert layer.scale == pytest.approx((2 / layer.weight[0].numel()) ** 0.5)
    for layer in model.generator.to_rgb:
        assert layer.scale == pytest.approx((1 / layer.weight[0].numel()) ** 0.5)
    assert model.generator.dense.scale == pytest.approx((2 / 16 / TINY.latent) ** 0.5)
    assert model.discriminator.head.scale == pytest.approx((1 / TINY.widest) ** 0.5)
    weights = torch.cat([p.flatten() for n, p in model.named_parameters() if "weight" in n])
    assert weights.std().item() == pytest.approx(1, abs=0.02), "N(0, 1), whatever the layer"
    assert not any(p.any() for n, p in model.named_parameters() if "bias" in n)


def test_generator_normalises_latents_and_every_pixel() -> None:
    """Both have mean square 1 over the channels."""
    model = build().double()
    noise = model.latent(Condition(3), Draws([1, 2, 3])).double()
    torch.testing.assert_close(noise.square().mean(1), torch.ones(3).double(), atol=1e-5, rtol=0)
    kept: list[torch.Tensor] = []
    model.generator.to_rgb[2].register_forward_pre_hook(lambda _, given: kept.append(given[0]))
    model.generator(noise, None, Growth(2, 1.0))
    torch.testing.assert_close(kept[0].square().mean(1), torch.ones(3, 16, 16).double(), atol=1e-5, rtol=0)


def test_discriminator_has_the_standard_deviation_within_a_group() -> None:
    model = build().double()
    image = torch.rand(1, 3, 16, 16, dtype=torch.float64).repeat(4, 1, 1, 1)
    alike = model.discriminator(image, None, Growth(2, 1.0))
    torch.testing.assert_close(alike, alike[:1].expand(4))
    varied = image.clone()
    varied[1:] = torch.rand(3, 3, 16, 16, dtype=torch.float64)
    assert model.discriminator(varied, None, Growth(2, 1.0))[0] != alike[0], "the first image did not change"


def scripted(model: ProGAN, critic: Callable[[torch.Tensor], torch.Tensor]) -> None:
    model.discriminator.forward = lambda image, label, grown: critic(image)  # type: ignore[method-assign]


def test_losses_are_the_papers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The golden scores, then the golden penalty, in float64."""
    given, expected = golden("gan_losses")
    model = build(penalty=0.0)
    model.advance(LATE)
    scores = iter([given["real"], given["fake"], given["fake"]])
    scripted(model, lambda _: next(scores))
    terms = model.discriminator_loss(batch(model, 4))
    assert terms.keys() == {"adversarial", "drift"}
    assert sum(terms.values()).item() == pytest.approx(expected["progan_d_no_gp"], rel=1e-10)  # type: ignore[union-attr]
    assert model.generator_loss(batch(model, 4))["adversarial"].item() == pytest.approx(expected["wgan_g"])

    given, expected = golden("gradient_penalties")
    real, fake, grown = given["real"], given["fake"], Growth(2, 1.0)

    def critic(image: torch.Tensor) -> torch.Tensor:
        return ((image * given["w"]) + 0.5 * image.square()).flatten(1).sum(1)

    monkeypatch.setattr(torch, "rand", lambda *_, **__: given["mix_alpha"][:, None, None, None])
    model = build()
    scripted(model, critic)
    found = model.penalty(real, fake, None, grown)
    assert found.item() == pytest.approx(expected["wgangp_lambda10"], rel=1e-9)
    for loss in ("non_saturating", "hinge"):
        model = build(loss=loss)
        scripted(model, critic)
        found = model.penalty(real, fake, None, grown)
        assert found.item() == pytest.approx(expected["stylegan2_r1_gamma10"], rel=1e-9)


def test_a_level_fades_in_where_autocast_enlarges_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, where convolutions beside it are in bf16."""
    enlarge = progan.upsample
    monkeypatch.setattr(progan, "upsample", lambda x: enlarge(x).float())
    model = build(stable=10, fade=10)
    model.advance(15)
    assert model.grown.alpha < 1
    with torch.autocast("cpu", torch.bfloat16):
        assert model.generate_fakes(batch(model), model.grown).dtype == torch.float32


def test_held_out_losses_include_the_penalty() -> None:
    model = build()
    with torch.no_grad():
        held_out = model.discriminator_loss(batch(model))
    assert held_out["penalty"] > 0 and not held_out["adversarial"].requires_grad
    with torch.autocast("cpu", torch.bfloat16):
        rough = model.penalty(*torch.rand(2, 6, 3, 4, 4), None, model.grown)
    assert rough.dtype == torch.float32


def test_penalty_moves_the_gradient_norm_towards_one() -> None:
    model = build(ImageSpec(1, 16, 16))
    model.advance(LATE)
    optimiser = torch.optim.Adam(model.discriminator.requires_grad_(True).parameters(), 3e-3, (0.0, 0.99))
    real, fake = torch.rand(2, 8, 1, 16, 16)
    first = last = 0.0
    for step in range(40):
        torch.manual_seed(step)
        optimiser.zero_grad()
        loss = model.penalty(real, fake, None, model.grown)
        loss.backward()
        optimiser.step()
        first, last = first or loss.item(), loss.item()
    assert last < 0.2 * first


# ---- its knobs


def test_truncation_makes_images_more_alike() -> None:
    model = build(ImageSpec(3, 16, 16, classes=("cat", "dog")))
    model.generator.bias.normal_()
    model.advance(LATE)
    condition = Condition(8, label=torch.tensor([0] * 8))

    def spread(psi: float, label: int = 0) -> torch.Tensor:
        condition = Condition(8, label=torch.full((8,), label))
        (canvas,) = model.sample(condition, ProGANSampling(truncation=psi), Draws(range(8)))
        return canvas.picture()

    whole, half, none = (spread(psi) for psi in (1.0, 0.5, 0.0))
    (plain,) = model.sample(condition, ProGANSampling(), Draws(range(8)))
    assert torch.equal(plain.picture(), whole)
    assert whole.std(0).mean() > half.std(0).mean() > 0.01
    torch.testing.assert_close(none, none[:1].expand_as(none))
    assert (spread(0.0, 1) - none).abs().max() > 0.01, "the label is still drawn"


def test_labels_can_be_left_out() -> None:
    spec = ImageSpec(3, 16, 16, classes=("cat", "dog"))
    assert build(spec).generator.embed is not None
    model = build(spec, condition="none")
    assert model.generator.embed is None and model.discriminator.embed is None
    plain = build()
    assert [p.shape for p in model.parameters()] == [p.shape for p in plain.parameters()]


def test_score_depends_on_the_label_by_projection() -> None:
    model = build(ImageSpec(3, 16, 16, classes=("cat", "dog", "owl")))
    image, label = torch.rand(3, 3, 16, 16), torch.tensor([0, 1, 2])
    assert (model.discriminator(image, label, Growth(2, 1.0)) != model.discriminator(
        image, label.roll(1), Growth(2, 1.0)
    )).all()  # fmt: skip
    blind = copy.deepcopy(model)
    blind.discriminator.embed.weight.zero_()  # type: ignore[union-attr, operator]
    one, other = (blind.discriminator(image, at, Growth(2, 1.0)) for at in (label, label.roll(1)))
    assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((1024, 1024), ((4, 4), 8)),
        ((16, 16), ((4, 4), 2)),
        ((24, 16), ((6, 4), 2)),
        ((12, 20), ((3, 5), 2)),
        ((96, 48), ((6, 3), 4)),
        ((28, 28), ((7, 7), 2)),
        ((8, 64), None),
        ((16, 256), None),
        ((50, 50), None),
        ((5, 7), None),
        ((9, 40), None),
        ((4, 4), None),
    ],
)
def test_sizes_are_a_small_base_times_a_power_of_two(size: tuple[int, int], expected: Any) -> None:
    if expected is None:
        with pytest.raises(LimnerError, match="progan cannot double"):
            build(ImageSpec(3, *size))
    else:
        model = build(ImageSpec(3, *size))
        assert (model.generator.shape[1:], model.last) == expected


@pytest.mark.parametrize(
    ("spec", "changes", "words"),
    [
        (ImageSpec(3, 9, 40), {}, "9x40"),
        (ImageSpec(3, 16, 16, frames=4), {}, "data.frames"),
        (ImageSpec(3, 16, 16), {"condition": "label"}, "model.condition none"),
    ],
)
def test_refusals(spec: ImageSpec, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(LimnerError, match=words) as refusal:
        build(spec, **changes)
    assert "progan" in str(refusal.value)


def test_a_negative_fade_is_refused() -> None:
    with pytest.raises(LimnerError, match=r"--model.fade -1 is out of range: choose 0 or more"):
        build(ImageSpec(3, 16, 16), fade=-1)


def test_the_command_trains_and_samples(limner: Any, images: Path, tmp_path: Path) -> None:
    options = ["--preset", "tiny", "--budget", "64img", "--data.cache", tmp_path / "cache"]
    limner("train", "progan", images, "--out", tmp_path / "run", *options)
    limner("sample", tmp_path / "run", "--n", 2, "--truncation", 0.7, "--to", tmp_path / "new.png")
    assert (tmp_path / "new.png").exists()
    refused = limner(
        "train", "progan", images, "--out", tmp_path / "no", "--size", "9x40", *options, ok=False
    )
    assert refused.returncode == 2 and "9x40" in refused.stderr


def test_a_bounded_generator_stays_within_black_and_white() -> None:
    """At every level, and while one fades in."""
    model = ProGAN(dataclasses.replace(ProGAN.presets["tiny"].model, bounded=True), ImageSpec(3, 16, 16))
    with torch.no_grad():
        for p in model.generator.to_rgb.parameters():
            p.mul_(30).add_(30)
    for seen in (0, 8, 100):
        model.advance(seen)
        image = model.paint(model.latent(Condition(2), Draws([0, 1])), Condition(2))
        raw = model.generate_fakes(Batch(torch.zeros(2, 3, 16, 16), Condition(2)), model.grown)
        assert raw.abs().max() <= 1 and image.shape == (2, 3, 16, 16)


def test_labels_as_the_papers_code_has_them() -> None:
    """One-hot labels are appended to the latent, both are normalised, and the discriminator tells the class."""
    spec = ImageSpec(3, 1024, 1024, classes=tuple("abcdefghij"))
    paper = ProGAN.presets["paper"].model
    with torch.device("meta"):
        counted = ProGAN(paper, spec)
    sizes = [sum(p.numel() for p in net.parameters()) for net in (counted.generator, counted.discriminator)]
    assert sizes == [
        23_079_115 + 10 * 512 * 16,
        23_087_249 + 10 * (512 + 1),
    ]  # G_paper, D_paper with label_size 10

    model = build(ImageSpec(3, 16, 16, classes=("a", "b", "c")), labels="classifier").double()
    model.advance(LATE)
    kept: list[torch.Tensor] = []
    model.generator.dense.register_forward_pre_hook(lambda module, inputs: kept.append(inputs[0]))
    latent, label = torch.randn(2, TINY.latent, dtype=torch.float64), torch.tensor([0, 2])
    model.generator(latent, label, model.grown)
    both = torch.cat([latent, torch.eye(3, dtype=torch.float64)[label]], 1)
    torch.testing.assert_close(kept[0], both / (both.square().mean(1, keepdim=True) + 1e-8).sqrt())


def test_the_auxiliary_classifiers_loss_is_the_papers() -> None:
    model = build(ImageSpec(3, 16, 16, classes=("a", "b", "c")), labels="classifier", penalty=0.0, drift=0.0)
    model.advance(LATE)
    given = batch(model, 6)
    torch.manual_seed(1)
    with torch.no_grad():
        fake = model.generate_fakes(given, model.grown)
        outputs = [model.discriminator.outputs(x, None, model.grown) for x in (given.image, fake)]
    torch.manual_seed(1)
    terms = model.discriminator_loss(given)
    wanted = [F.nll_loss(classes.log_softmax(1), given.condition.label) for _, classes in outputs]
    torch.testing.assert_close(terms["class"], wanted[0] + wanted[1])
    torch.testing.assert_close(terms["adversarial"], outputs[1][0].mean() - outputs[0][0].mean())
    torch.manual_seed(1)
    terms = model.generator_loss(given)
    torch.testing.assert_close(terms["class"], wanted[1])
    torch.testing.assert_close(terms["adversarial"], -outputs[1][0].mean())
