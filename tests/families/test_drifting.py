"""Drifting: the field and its normalisation, guidance, and the generators that learn from it."""

import dataclasses
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from limner import families
from limner.core import Batch, Condition, Draws, ImageSpec, LimnerError
from limner.families.drifting import Drifting, DriftingSampling
from limner.losses.drift import (
    EXCLUDED,
    drift,
    drift_loss,
    kernel_weights,
    pairs_by_class,
    pairs_by_similarity,
)
from limner.networks.random_features import RandomFeatures
from limner.networks.transformers.dit import DiTBlocks
from limner.networks.transformers.patch import PatchConfig
from tests.helpers import paint

TINY = Drifting.presets["tiny"].model
PLAIN = ImageSpec(3, 16, 16)
CAPTIONED = ImageSpec(3, 16, 16, captions=True)
LABELLED = ImageSpec(3, 16, 16, classes=("cat", "dog"))
ONE = torch.zeros(200, dtype=torch.long)  # all of one class
NO_BIAS = torch.zeros(())


def field(
    x: Tensor, positive: Tensor, negative: Tensor, temperature: float, bias: Tensor = NO_BIAS
) -> Tensor:
    """V(x) [..., N, D]: towards ``positive`` [..., P, D], away from ``negative`` [..., M, D]."""
    others = torch.cat([positive, negative], dim=-2)
    return kernel_weights(torch.cdist(x, others), positive.shape[-2], temperature, bias) @ others


def by_the_formula(x: Tensor, positive: Tensor, negative: Tensor, temperature: float) -> Tensor:
    """Deng 2026, eq. 11 with both normalisations, one pair of pairs at a time; nothing is left out."""
    others = torch.cat([positive, negative])
    logits = torch.stack([torch.stack([-(a - b).norm() / temperature for b in others]) for a in x])
    kernel = torch.sqrt(logits.softmax(1) * logits.softmax(0))
    found = torch.zeros_like(x)
    for i in range(len(x)):
        for j in range(len(positive)):
            for k in range(len(negative)):
                found[i] += kernel[i, j] * kernel[i, len(positive) + k] * (positive[j] - negative[k])
    return found


def test_the_field_is_that_of_the_formula():
    torch.manual_seed(0)
    x, positive, negative = (torch.randn(n, 3, dtype=torch.float64) for n in (4, 5, 6))
    for temperature in (0.3, 2.0):
        assert_close(
            field(x, positive, negative, temperature), by_the_formula(x, positive, negative, temperature)
        )


def test_the_field_turns_round_when_both_sides_are_exchanged():
    """Antisymmetric, so that it is 0 where both are the same (Deng 2026, eq. 7)."""
    torch.manual_seed(0)
    x, one, other = (torch.randn(n, 3) for n in (4, 5, 5))
    assert_close(field(x, one, other, 0.5), -field(x, other, one, 0.5))
    assert_close(field(x, one, one, 0.5), torch.zeros_like(x), atol=1e-6, rtol=0)
    assert_close(
        kernel_weights(torch.rand(4, 10), 5, 0.5, torch.zeros(4, 10)).sum(1),
        torch.zeros(4),
        atol=1e-6,
        rtol=0,
    )


def test_it_points_to_the_data_and_away_from_other_samples():
    x, data = torch.zeros(2, 2, 1), torch.ones(2, 2, 1)  # all samples at 0, all data at 1
    assert (drift(x, data, pairs_by_class(ONE[:2], ONE[:2]), [0.1]).field > 0).all()
    x = torch.tensor([[[-1.0], [-0.5]]])  # both to one side of the data, which is nearer to the second
    assert (drift(x, torch.zeros(1, 2, 1), pairs_by_class(ONE[:2], ONE[:2]), [0.2]).field > 0).all()


def test_only_its_own_class_moves_a_sample():
    torch.manual_seed(0)
    label = torch.tensor([0, 0, 1, 1, 0])
    bias = pairs_by_class(label, label).bias
    assert bias.shape == (5, 10)
    counts = bias > EXCLUDED / 2
    assert torch.equal(counts[:, :5], label[:, None] == label)
    assert counts[:, 5:].sum() == 3 * 2 + 2 * 1, "a sample is no rival of its own"
    x, data = torch.randn(2, 3, 5, 4)
    moved = data.clone()
    moved[:, label == 1] += 100
    one, other = (field(x, y, x, 1.0, bias) for y in (data, moved))
    assert_close(one[:, label == 0], other[:, label == 0])
    assert not torch.allclose(one[:, label == 1], other[:, label == 1])


def test_a_sample_without_rivals_does_not_break():
    among = pairs_by_class(torch.arange(3), torch.arange(3))
    found = drift(torch.randn(2, 3, 4), torch.randn(2, 3, 4), among, [0.02, 0.2])
    assert found.field.isfinite().all() and found.energy_distance.isfinite()


def test_texts_that_are_the_same_or_nothing_alike_are_classes():
    torch.manual_seed(0)
    label = torch.tensor([0, 1, 0, 1, 1])
    sample = torch.tensor([4, 0, 2])
    one = pairs_by_class(label[sample], label)
    same = (label[:, None] == label).float()
    other = pairs_by_similarity(same, sample, torch.ones(3, dtype=torch.bool), 1e-3)
    assert_close(one.bias.exp(), other.bias.exp())
    assert_close(one.images.float(), other.images)
    x, real = torch.randn(2, 3, 4), torch.randn(2, 5, 4)
    assert_close(drift(x, real, one, [0.2]), drift(x, real, other, [0.2]))


def test_a_sample_without_its_text_has_all_images_and_others_without():
    keep = torch.tensor([True, False, False])
    counts = pairs_by_similarity(torch.eye(3), torch.arange(3), keep, 1e-3).bias.exp()
    wanted = torch.tensor([[1.0, 0, 0, 0, 0, 0], [1, 1, 1, 0, 0, 1], [1, 1, 1, 0, 1, 0]])
    assert_close(counts, wanted)


def test_samples_of_each_text_come_to_lie_as_its_images_do():
    """Points whose conditions lie on a line: a sample goes near to where images of its condition are."""
    torch.manual_seed(0)
    condition = torch.rand(64)
    alike = 1 - (condition[:, None] - condition).abs()
    data = (4 * condition + 0.05 * torch.randn(64))[None, :, None]
    x = 2 + 0.1 * torch.randn(1, 64, 1)
    among = pairs_by_similarity(alike, torch.arange(64), torch.ones(64, dtype=torch.bool), 0.02)
    for step in range(300):
        found = drift(x, data, among, [0.05, 0.2])
        x = x + 0.05 * (1 - step / 300) * (x / found.features).median() * found.field
    assert (x[0, :, 0] - 4 * condition).abs().mean() < 0.3, "from about 1"


def test_guidance_weighs_the_other_classes_as_the_paper_has_it():
    """alpha = ((N - 1) + M w) / (N - 1) for N - 1 rivals and M images of others (Deng 2026, A.7)."""
    label = torch.tensor([0, 0, 0, 1, 1])
    alpha = torch.tensor([1.0, 2.0, 3.0, 1.0, 2.0])
    away = pairs_by_class(label, label, alpha).bias[:, 10:]
    rivals, others = torch.tensor([2.0, 2, 2, 1, 1]), torch.tensor([2.0, 2, 2, 3, 3])
    w = torch.where(away > EXCLUDED / 2, away.exp(), 0.0)
    assert_close((rivals + w.sum(1)) / rivals, alpha)
    assert_close(w.amax(1) * others, w.sum(1))


def test_the_normalised_field_does_not_depend_on_scale_or_shift():
    torch.manual_seed(0)
    x, data = torch.randn(2, 3, 6, 4)
    among = pairs_by_class(ONE[:6], ONE[:6])
    one, other = drift(x, data, among, [0.05, 0.2]), drift(100 * x + 7, 100 * data + 7, among, [0.05, 0.2])
    assert_close(one.field, other.field, rtol=1e-2, atol=1e-2)
    assert_close(drift(x, data, among, [0.05]).field.square().mean(), torch.tensor(1.0))


def test_the_energy_distance_is_how_far_apart_both_are_and_the_gradient_is_the_fields():
    torch.manual_seed(0)
    x = torch.randn(1, 64, 2).requires_grad_()
    among = pairs_by_class(ONE[:64], ONE[:64])
    near, far = torch.randn(1, 64, 2), torch.randn(1, 64, 2) + 3
    close, found = (drift(x, data, among, [0.2]) for data in (near, far))
    assert close.energy_distance.abs() < 0.1 < found.energy_distance
    assert not found.energy_distance.requires_grad
    gradient = torch.autograd.grad(drift_loss(found), x)[0]
    assert_close(gradient / gradient.norm(), -found.field / found.field.norm())


def test_points_that_drift_come_to_lie_as_the_data_do():
    """Two clusters from one, by plain steps along the field (Deng 2026, fig. 3)."""
    torch.manual_seed(0)
    x = 0.1 * torch.randn(1, 200, 2)
    among = pairs_by_class(ONE[:200], ONE[:200])
    for _ in range(150):
        side = 2.0 * (torch.rand(1, 200, 1) < 0.5) - 1
        data = side * torch.tensor([2.0, 0.0]) + 0.2 * torch.randn(1, 200, 2)
        found = drift(x, data, among, [0.05, 0.2])
        scale = (x / found.features).median()
        x = x + 0.1 * scale * found.field
    left = (x[0, :, 0] < 0).float().mean()
    assert 0.4 < left < 0.6
    assert_close(x[0, :, 0].abs().mean(), torch.tensor(2.0), atol=0.2, rtol=0)


def test_a_step_draws_a_few_classes_one_sample_more_than_images():
    torch.manual_seed(0)
    model = Drifting(
        dataclasses.replace(TINY, samples_per_step=8, classes_per_step=2),
        ImageSpec(3, 16, 16, classes=tuple("abcde")),
    )
    label = torch.tensor([0, 0, 1, 4, 4, 4, 4, 4])
    seen = set()
    for _ in range(60):
        rows, sample = model.choose_samples(label)
        assert rows.unique().numel() == len(rows) and len(sample) <= 8
        counts = {c: (int((label[rows] == c).sum()), int((sample == c).sum())) for c in (0, 1, 4)}
        assert all(drawn == images + 1 for images, drawn in counts.values() if drawn)
        seen.add(tuple(drawn for _, drawn in counts.values()))
    assert seen == {(3, 2, 3), (3, 0, 4), (2, 2, 4)}
    assert model.choose_samples(torch.tensor([3] * 20))[1].tolist() == [3] * 8, "one class alone has all"
    assert len(model.choose_samples(torch.tensor([3] * 20))[0]) == 7
    few = Drifting(dataclasses.replace(TINY, samples_per_step=1, classes_per_step=9), PLAIN)
    assert [len(x) for x in few.choose_samples(torch.tensor([3, 4, 5]))] == [1, 2], "a sample needs a rival"


@torch.no_grad()
def test_features_see_patterns_of_single_pixels():
    """Stripes beside a change of the whole image's grey of the same size: well above what plain filters see."""
    stripes = 0.1 * (1 - 2.0 * (torch.arange(16)[:, None] % 2)).expand(1, 3, 16, 16)

    def sees(edge_gain: float) -> float:
        torch.manual_seed(0)
        encoder = RandomFeatures(3, (32, 64), edge_gain)
        none, striped, lighter = (
            encoder(x)[1] for x in (0 * stripes, stripes, torch.full_like(stripes, 0.1))
        )
        return float((striped - none).norm() / (lighter - none).norm())

    assert sees(4.0) > 1.8 * sees(1.0)


def test_the_generator_draws_every_pixel_alike():
    """From places that are all alike, the pixels within the borders are: no pattern of patches or levels."""
    torch.manual_seed(0)
    generator = Drifting(TINY, ImageSpec(3, 32, 32)).generator
    x = torch.randn(2, TINY.decoder.widths[0], 1, 1).expand(2, -1, 16, 16)
    x = F.interpolate(generator.body.head(x), scale_factor=2.0, mode="bilinear")
    inside = generator.body.refine(x)[..., 8:-8, 8:-8]
    assert_close(inside, inside[..., :1, :1].expand_as(inside))


@pytest.mark.parametrize("network", ["decoder", "transformer"])
@pytest.mark.parametrize("spec", [PLAIN, LABELLED, CAPTIONED, ImageSpec(1, 7, 13)])
def test_generators_learn_and_draw(network, spec):
    torch.manual_seed(0)
    body = DiTBlocks(patch=4, width=32, depth=1, heads=2)
    model = Drifting(
        dataclasses.replace(TINY, network=network, body=body, style_tokens=4, style_codes=8), spec
    )
    shape = (8, spec.channels, spec.height, spec.width)
    label = torch.arange(8) % 2 if spec.classes else None
    text = list("abcdefgh") if spec.captions else None
    model.loss(Batch(torch.rand(shape) * 2 - 1, Condition(8, label=label, text=text)))[
        "squared_drift"
    ].backward()
    assert all(p.grad is None for p in model.random_features.parameters()), "the features stay as they are"
    assert any(p.grad is not None and p.grad.any() for p in model.generator.parameters())
    *_, last = model.sample(Condition(2), DriftingSampling(), Draws([0, 1]))
    assert last.picture().shape == (2, *shape[1:]) and last.total == 1


def test_guidance_and_truncation_are_knobs_of_one_call():
    torch.manual_seed(0)
    model = Drifting(TINY, LABELLED)
    condition = Condition(2, label=torch.tensor([0, 1]))

    def draw(**knobs) -> Tensor:
        *_, last = model.sample(condition, DriftingSampling(**knobs), Draws([0, 1]))
        return last.picture()

    assert not torch.allclose(draw(), draw(guidance=3.0), atol=1e-5)
    one, other = draw(truncation=0.0)
    assert not torch.allclose(one, other, atol=1e-4), "their labels differ still"
    with pytest.raises(LimnerError, match=r"from 1 to 3"):
        draw(guidance=4.0)
    with pytest.raises(LimnerError, match=r"from 1 to 1,"):  # strengths are learned by labels alone
        list(
            Drifting(TINY, CAPTIONED).sample(
                Condition(1, text=["a"]), DriftingSampling(guidance=2.0), Draws([0])
            )
        )


def test_truncation_leaves_the_transformers_styles_as_they_are():
    generator = Drifting(
        dataclasses.replace(TINY, network="transformer", style_tokens=4, style_codes=8), PLAIN
    ).generator
    noise = torch.randn(2, generator.latent)
    less = generator.truncate(noise, 0.5)
    assert_close(less[:, :-4], 0.5 * noise[:, :-4])
    assert torch.equal(less[:, -4:], noise[:, -4:])


@pytest.mark.parametrize("power", [1.0, 3.0])
def test_strong_guidance_is_trained_rarely(power):
    """p(alpha) ~ alpha^-power on [1, 3]: its distribution at 2 (Deng 2026, table 8)."""
    alpha = Drifting(dataclasses.replace(TINY, guidance_power=power), LABELLED).guidance_scales(
        torch.linspace(0, 1, 4001)
    )
    assert_close(alpha[[0, -1]], torch.tensor([1.0, 3.0]))
    below = math.log(2) / math.log(3) if power == 1 else (1 - 2**-2) / (1 - 3**-2)
    assert abs(float((alpha < 2).float().mean()) - below) < 1e-3


def test_what_it_cannot_take_it_refuses():
    with pytest.raises(LimnerError, match="drifting"):
        Drifting(dataclasses.replace(TINY, condition="label"), PLAIN)
    with pytest.raises(LimnerError, match=r"drifting cannot be built.*one number a level"):
        decoder = dataclasses.replace(TINY.decoder, widths=(16,))
        families.build("drifting", dataclasses.replace(TINY, decoder=decoder), PLAIN)
    with pytest.raises(LimnerError, match="frames"):
        Drifting(TINY, ImageSpec(3, 16, 16, frames=4))


def test_what_another_run_has_learnt_is_one_more_way_to_compare(limner, tmp_path: Path):
    paint(tmp_path / "images", 20)
    tiny = ("--preset", "tiny", "--training.samples", 4, "--budget")
    limner("train", "mae", tmp_path / "images", "--out", tmp_path / "mae", *tiny, "64img")
    run, pretrained = tmp_path / "run", ("--model.pretrained", tmp_path / "mae")
    limner("train", "drifting", tmp_path / "images", "--out", run, *tiny, "48img", *pretrained)
    from limner import load

    first, drawn = load(tmp_path / "mae"), load(run)
    image = torch.rand(2, *first.spec.shape) * 2 - 1
    assert_close(
        drawn.model.feature_encoder(image), first.model.body(image), msg="taken over, and never moved"
    )
    parents = json.loads(limner("show", run, "--json").stdout)["parents"]
    assert parents == {"pretrained": first.loaded.header["digest"]}
    assert len(drawn.model.maps(image)) == len(TINY.feature_widths) + 2, "both of its layers"

    shutil.rmtree(tmp_path / "mae")  # what was taken over is part of the run
    limner("train", "drifting", "--out", run, "--resume", "--budget", "96img")
    later = load(run).model
    assert all(
        torch.equal(v, later.feature_encoder.state_dict()[n])
        for n, v in drawn.model.feature_encoder.state_dict().items()
    )
    assert not torch.equal(later.generator.mapping[0].weight, drawn.model.generator.mapping[0].weight)


def test_its_features_move_the_samples():
    torch.manual_seed(0)
    model = Drifting(
        dataclasses.replace(TINY, pretrained="mae", feature_encoder=PatchConfig(width=32, depth=2, heads=2)),
        PLAIN,
    )
    batch = Batch(torch.rand(12, 3, 16, 16) * 2 - 1, Condition(12))

    def slope() -> Tensor:
        torch.manual_seed(1)
        model.zero_grad()
        model.loss(batch)["squared_drift"].backward()
        return torch.cat([p.grad.flatten() for p in model.generator.parameters() if p.grad is not None])

    assert all(not p.requires_grad for p in model.feature_encoder.parameters())
    with_it = slope()
    model.feature_encoder = None
    assert (with_it - slope()).norm() > 0.1 * with_it.norm()
    small = dataclasses.replace(TINY, pretrained="mae", feature_encoder=PatchConfig(patch=5))
    with pytest.raises(LimnerError, match="drifting cannot be built: images of 16x16"):
        families.build("drifting", small, PLAIN)


def test_it_learns_from_no_run_without_a_transformer(limner, tmp_path: Path):
    paint(tmp_path / "images", 20)
    tiny = ("--preset", "tiny", "--training.samples", 4, "--budget", "32img")
    limner("train", "vae", tmp_path / "images", "--out", tmp_path / "vae", *tiny)
    vae = ("--model.pretrained", tmp_path / "vae")
    done = limner("train", "drifting", tmp_path / "images", "--out", tmp_path / "run", *tiny, *vae, ok=False)
    assert done.returncode == 2 and "dino, mae or vit" in done.stderr
