"""What only CycleGAN and CUT promise."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from limner import families
from limner.core import Batch, Condition, Draws, ImageSpec, LimnerError, Training
from limner.data.images.whole import WholePicture
from limner.families.cyclegan import TINY, CycleGAN, CycleGANConfig, CycleGANSampling, change
from limner.inference.tiles import Translator
from limner.inference.whole_pictures import translate_picture
from limner.losses.contrastive import patch_nce
from limner.training.loop import learning_rate_factor
from tests.helpers import golden

SPEC = ImageSpec(3, 16, 16, given=ImageSpec(3, 16, 16))
TINY_CUT = dataclasses.replace(TINY, kind="cut", places=16, features=8)


def build(config: CycleGANConfig = TINY, spec: ImageSpec = SPEC) -> CycleGAN:
    torch.manual_seed(0)
    model = families.build("cyclegan", config, spec)
    assert isinstance(model, CycleGAN)
    return model


class Affine(nn.Module):
    def __init__(self, factor: float, offset: float):
        super().__init__()
        self.factor, self.offset = factor, offset

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x + self.offset


def test_the_public_losses():
    inputs, expected = golden("cyclegan_losses")
    model = build()
    model.generators = nn.ModuleDict({"to_wanted": Affine(0.9, 0.1), "to_given": Affine(0.8, -0.2)})
    model.discriminators = nn.ModuleDict({"wanted": Affine(2.0, 0.5), "given": Affine(-1.0, 0.3)})
    model.pools = nn.ModuleDict()
    batch = Batch(inputs["B"], Condition(1, image=inputs["A"]))
    made = {name: float(value) for name, value in model.cycle_loss(batch).items()}
    public = {
        "adversarial_wanted": "G_A", "adversarial_given": "G_B", "cycle_given": "cycle_A", "cycle_wanted": "cycle_B",
        "identity_wanted": "idt_A", "identity_given": "idt_B",
    }  # fmt: skip
    assert made == pytest.approx({name: expected[theirs] for name, theirs in public.items()}, rel=1e-9)
    assert sum(made.values()) == pytest.approx(expected["G_total"], rel=1e-9)
    judged = {name: float(value) for name, value in model.discriminator_loss(batch).items()}
    assert judged == pytest.approx(
        {"adversarial_wanted": expected["D_A"], "adversarial_given": expected["D_B"]}, rel=1e-9
    )


def test_a_picture_may_be_asked_to_change_no_more_than_it_takes():
    model = build(dataclasses.replace(TINY, keep=2.0))
    model.generators = nn.ModuleDict({"to_wanted": Affine(0.9, 0.1), "to_given": Affine(0.8, -0.2)})
    given, wanted = (torch.rand(2, 3, 16, 16) for _ in range(2))
    terms = model.cycle_loss(Batch(wanted, Condition(2, image=given)))
    assert_close(terms["kept_wanted"], 2 * (0.1 - 0.1 * given).abs().mean())
    assert_close(terms["kept_given"], 2 * (0.2 * wanted + 0.2).abs().mean())


def test_patch_nce():
    inputs, expected = golden("patch_nce")
    query, key = inputs["query"].requires_grad_(), inputs["key"].requires_grad_()
    loss = patch_nce(query, key, inputs["temperature"])
    assert_close(loss[0], expected["loss"], rtol=1e-6, atol=1e-9)
    assert_close(loss.mean(), torch.tensor(expected["mean"], dtype=torch.float64), rtol=1e-6, atol=1e-9)
    loss.mean().backward()
    assert query.grad is not None and key.grad is None, "keys carry no gradient"
    rows = torch.cat([inputs["query"], inputs["key"]]), torch.cat([inputs["key"], inputs["key"]])
    assert_close(patch_nce(*rows, inputs["temperature"])[0], expected["loss"], rtol=1e-6, atol=1e-9)


def test_the_heads_of_cut_have_the_papers_size():
    with torch.device("meta"):
        model = families.build("cyclegan", CycleGAN.presets["cut"].model, SPEC)
    assert sum(p.numel() for p in model.generators["heads"].parameters()) == 560_384


def test_the_rate_falls_as_published_to_a_hundredth():
    inputs, expected = golden("linear_decay")
    paper = CycleGAN.presets["paper"].training
    assert paper.optimisers["generators"].lr == inputs["lr"] and paper.batch == 1
    run: Any = dataclasses.replace(toy_run_of_nothing(), training=dataclasses.replace(paper, warmup=0))
    for epoch, lr in zip(inputs["updates_so_far"].tolist(), expected["lr"].tolist(), strict=True):
        ours = inputs["lr"] * learning_rate_factor(run, 0, epoch / 200)
        assert ours == pytest.approx(lr, abs=0.01 * inputs["lr"])


def toy_run_of_nothing() -> Any:
    @dataclasses.dataclass(frozen=True)
    class Rates:
        training: Training

    return Rates(Training())


def test_each_direction_has_its_own_generator():
    model, image = build().eval(), torch.rand(2, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        for direction, name in (("forward", "to_wanted"), ("backward", "to_given")):
            made = model.translate(image, Condition(2), CycleGANSampling(direction), Draws([0, 1]))
            assert_close(made, model.generators[name](image))


def test_domains_of_other_channels():
    spec = ImageSpec(3, 16, 16, given=ImageSpec(1, 16, 16))
    for config in (TINY, TINY_CUT):
        model = build(config, spec)
        batch = Batch(torch.rand(2, 3, 16, 16), Condition(2, image=torch.rand(2, 1, 16, 16)))
        for objective in model.objectives():
            assert objective.total(objective.loss(batch)).isfinite()
        image = torch.rand(1, 1, 16, 16)
        made = model.translate(image, Condition(1), CycleGANSampling(), Draws([0]))
        assert made.shape == (1, 3, 16, 16)


def test_backward_it_takes_the_channels_of_the_other_domain():
    model = build(spec=ImageSpec(3, 16, 16, given=ImageSpec(1, 16, 16))).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    translator = Translator(model, CycleGANSampling("backward"), 10**10)
    made, _ = translate_picture(translator, WholePicture(pixels), (255, 255, 255))
    wanted = translator(pixels)
    assert translator.channels == 3 and np.array_equal(made.pixels, wanted)
    assert Translator(model, CycleGANSampling(), 10**10).channels == 1


def test_colours_stay_below_their_alpha():
    model = build(spec=ImageSpec(4, 16, 16, given=ImageSpec(3, 16, 16))).eval()
    made = model.translate(torch.rand(2, 3, 16, 16), Condition(2), CycleGANSampling(), Draws([0, 1]))
    assert (made[:, :3] <= made[:, 3:]).all()


def test_cut_learns_one_direction():
    model = build(TINY_CUT)
    assert {*model.generators} == {"to_wanted", "heads"} and {*model.discriminators} == {"wanted"}
    assert not model.pools
    with pytest.raises(LimnerError, match="kind cut, which learns one direction"):
        CycleGANSampling("backward").fit(model)
    assert CycleGANSampling("backward").fit(build()).direction == "backward"


def test_cut_trains_its_generator_and_heads_together():
    model = build(TINY_CUT)
    batch = Batch(torch.rand(2, 3, 16, 16), Condition(2, image=torch.rand(2, 3, 16, 16)))
    terms = model.contrastive_loss(batch)
    assert {*terms} == {"adversarial_wanted", "places", "identity"}
    torch.stack([*terms.values()]).sum().backward()
    assert all(p.grad is not None for p in model.generators.parameters())


def test_cut_computes_its_keys_without_gradients(monkeypatch: pytest.MonkeyPatch):
    """And its gradients are those of computing them with gradients, under autocast too."""
    model = build(TINY_CUT)
    generator, asked = model.generators["to_wanted"], []
    source, made = (torch.rand(2, 3, 16, 16) for _ in range(2))
    features = generator.features

    def noting(image: Tensor) -> list[Tensor]:
        found = features(image)
        asked.append(found[-1].requires_grad)
        return found

    monkeypatch.setattr(generator, "features", noting)

    def gradients() -> list[Tensor]:
        model.zero_grad()
        torch.manual_seed(0)
        with torch.autocast("cpu"):
            loss = model.compare_places(source, made)
        loss.backward()
        return [p.grad.clone() for p in generator.stem.parameters()]

    found = gradients()
    assert sorted(asked) == [False, True]
    monkeypatch.setattr(torch, "no_grad", torch.enable_grad)
    assert_close(found, gradients(), atol=1e-4, rtol=0.05)
    assert all(gradient.abs().sum() > 0 for gradient in found)


def test_the_pools_move_in_training_alone():
    model = build()
    batch = Batch(torch.rand(3, 3, 16, 16), Condition(3, image=torch.rand(3, 3, 16, 16)))
    before = {name: value.clone() for name, value in model.pools.state_dict().items()}
    model.eval().discriminator_loss(batch)
    model.train().cycle_loss(batch)
    assert all(torch.equal(value, before[name]) for name, value in model.pools.state_dict().items())
    model.discriminator_loss(batch)
    assert int(model.pools["wanted"].held) == int(model.pools["given"].held) == 3
    floats = [name for name, value in model.named_buffers() if value.is_floating_point()]
    assert not floats, "which would be averaged over processes"


@pytest.mark.parametrize("given", [ImageSpec(3, 8, 16), ImageSpec(3, 32, 32)])
def test_domains_have_one_size(given: ImageSpec):
    with pytest.raises(LimnerError, match="both domains in one size"):
        build(spec=ImageSpec(3, 16, 16, given=given))
    with pytest.raises(LimnerError, match="name two sources, the given pictures first"):
        build(spec=ImageSpec(3, 16, 16))


def test_what_a_change_costs() -> None:
    """Small differences cost as their square, large ones hardly more than each other."""
    given = torch.zeros(1, 3, 2, 2)
    made = given.clone()
    made[..., 0, 0], made[..., 1, 1] = 1.0, -2.0
    assert change(made, given, 0.0).item() == pytest.approx(3 / 4)
    assert change(made, given, 0.5).item() == pytest.approx((1 / 1.25 + 4 / 4.25) / 4)


def test_the_penalty_is_of_the_mean_scores_at_real_and_drawn_images() -> None:
    """Of scores that are linear in the image, whose gradient is known."""
    config = CycleGANConfig(width=4, blocks=1, discriminator_width=4, discriminator_norm="none", penalty=3.0)
    model = CycleGAN(config, ImageSpec(3, 16, 16, given=ImageSpec(3, 16, 16)))
    for name in model.discriminators:
        model.discriminators[name] = nn.Conv2d(3, 1, 1)
        nn.init.constant_(model.discriminators[name].weight, 0.5)
    image = torch.rand(2, 3, 16, 16) * 2 - 1
    terms = model.discriminator_loss(Batch(image, Condition(2, image=image.flip(0))))
    slope = 3 * 16 * 16 * (0.5 / 16**2) ** 2  # of the mean of all scores
    assert terms["penalty_wanted"].item() == pytest.approx(2 * 3.0 / 2 * slope)
