"""What only EDM promises: its paper's formulas, its augmentation, its knobs; the rest is in test_contract.py."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from limner.core import Batch, Condition, Draws, ImageSpec, LimnerError
from limner.diffusion import paths
from limner.families.edm import EDM, EDMSampling, preconditioning, weight
from limner.networks.images import augment_conditioning
from limner.networks.unets.song import SongUNet
from tests.helpers import golden

TINY = EDM.presets["tiny"].model
SPEC = ImageSpec(3, 8, 8)
PETS = ImageSpec(3, 8, 8, classes=("cat", "dog"))


def build(spec: ImageSpec = SPEC, stir: bool = True, **changes: Any) -> EDM:
    """A tiny model that does not guess zeros."""
    torch.manual_seed(0)
    model = EDM(replace(TINY, **changes), spec)
    for p in model.parameters() if stir else ():
        if not p.any():
            nn.init.normal_(p, std=0.05)
    return model.eval()


def sample(model: EDM, condition: Condition, seeds: list[int], **knobs: Any) -> Tensor:
    *_, last = model.sample(condition, EDMSampling(**{"steps": 3, **knobs}), Draws(seeds))
    return last.picture()


# ---- the paper's formulas


def test_preconditioning_and_the_losss_weight() -> None:
    given, expected = golden("edm_precond")
    found = preconditioning(given["sigma"], given["sigma_data"])
    for name, number in zip(("c_skip", "c_out", "c_in", "c_noise"), found, strict=True):
        assert_close(number, expected[name], rtol=1e-10, atol=1e-14)
    assert_close(weight(given["sigma"], given["sigma_data"]), expected["loss_weight"], rtol=1e-10, atol=0)
    assert (given["P_mean"], given["P_std"], given["sigma_data"]) == (
        TINY.noise_mean,
        TINY.noise_std,
        TINY.sigma_data,
    )


def test_input_and_target_have_variance_one_at_every_level_of_noise() -> None:
    """So that the network itself never sees the noise's size (Karras 2022, appendix B.6)."""
    torch.manual_seed(0)
    data, noise = 0.5 * torch.randn(20_000), torch.randn(20_000)
    for sigma in (0.01, 0.3, 2.0, 50.0):
        skip, out, into, _ = (float(c) for c in preconditioning(torch.tensor(sigma), 0.5))
        x = data + sigma * noise
        target = (data - skip * x) / out
        assert (into * x).std().item() == pytest.approx(1, abs=0.02)
        assert target.std().item() == pytest.approx(1, abs=0.02)
        assert weight(torch.tensor(sigma), 0.5).item() == pytest.approx(1 / out**2, rel=1e-4)


def test_noise_in_training_is_log_normal() -> None:
    model = build(noise_mean=-0.5, noise_std=0.7)
    seen: list[Tensor] = []
    model.network.register_forward_pre_hook(lambda _, given: seen.append(given[1]))
    torch.manual_seed(0)
    with torch.no_grad():
        model.loss(Batch(torch.zeros(512, 3, 8, 8), Condition(512)))
    assert seen[0].log().mean().item() == pytest.approx(-0.5, abs=0.02)
    assert seen[0].log().std().item() == pytest.approx(0.7, abs=0.02)


def test_an_untrained_network_guesses_the_scaled_image_and_has_a_loss_of_one() -> None:
    model = build(stir=False)
    x, sigma = torch.randn(2, 3, 8, 8), torch.tensor([0.1, 3.0])
    skip = preconditioning(sigma, 0.5)[0]
    assert_close(model.network(x, sigma, None), skip[:, None, None, None] * x)
    torch.manual_seed(0)
    batch = Batch((torch.rand(256, 3, 8, 8) - 0.5) * 12**0.5 / 2, Condition(256))  # variance 1/4
    assert model.loss(batch)["image"].item() == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("solver", ["heun", "dpm2m", "ancestral"])
def test_who_knows_the_answer_draws_it(solver: Any) -> None:
    model = build()
    data = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(3)) * 2 - 1
    model.network.forward = lambda x, sigma, label, augmented=None: data.expand_as(x)  # type: ignore[method-assign]
    assert model.loss(Batch(data.expand(8, -1, -1, -1), Condition(8)))["image"] < 1e-8
    drawn = sample(model, Condition(2), [1, 2], solver=solver)
    assert_close(drawn, data.expand_as(drawn), rtol=0, atol=1e-4)


def test_levels_and_calls_of_the_default_sampler() -> None:
    """18 steps of Heun are 35 calls, from 80 down to 0.002 and back up for none."""
    _, expected = golden("edm_sigmas")
    model = build()
    seen: list[float] = []
    model.network.register_forward_pre_hook(lambda _, given: seen.append(float(given[1][0])))
    sample(model, Condition(1), [1], steps=18)
    assert len(seen) == 35
    assert seen[::2] == pytest.approx(expected["n18"].tolist(), rel=1e-5)
    seen.clear()
    sample(model, Condition(1), [1], steps=3, sigma_max=10.0, sigma_min=0.1)
    assert (max(seen), min(seen)) == pytest.approx((10.0, 0.1))


def test_churn_adds_noise() -> None:
    model = build()
    plain, again, churned = (sample(model, Condition(1), [1], steps=6, churn=c) for c in (0.0, 0.0, 4.0))
    assert_close(plain, again)
    assert not torch.allclose(plain, churned, atol=1e-3)


# ---- its augmentation


def smooth(n: int, size: int = 16) -> Tensor:
    coarse = torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return nn.functional.interpolate(coarse, (size, size), mode="bilinear")


def test_without_chance_images_are_mirrored_at_most() -> None:
    torch.manual_seed(0)
    x = smooth(64)
    found, numbers = augment_conditioning.augment(x, 0.0)
    assert numbers.shape == (64, augment_conditioning.FEATURES) and not numbers[:, 1:].any()
    mirrored = numbers[:, 0] > 0
    assert 16 < mirrored.sum() < 48
    assert torch.equal(found[mirrored], x[mirrored].flip(3)) and torch.equal(found[~mirrored], x[~mirrored])


def test_the_numbers_tell_what_was_done() -> None:
    """What a number says is looked for in the image: its middle moves, grows, turns."""
    torch.manual_seed(0)
    n, size = 400, 33
    down, right = torch.meshgrid(*[torch.arange(size) - size // 2.0] * 2, indexing="ij")
    blob = torch.exp(-((right / 3) ** 2 + (down / 1.5) ** 2) / 2).expand(n, 1, -1, -1)
    found, numbers = augment_conditioning.augment(blob, 0.4)
    mass = found.sum((2, 3))[:, 0]

    def moment(a: Tensor) -> Tensor:
        return (found[:, 0] * a).sum((1, 2)) / mass

    middle = torch.stack([moment(right), moment(down)], dim=1)  # [n, 2]
    moved = numbers[:, 7:] * size / 8
    # A translation comes last, on images at their new size and angle: those alone that stay near.
    near = moved.abs().amax(1) < 4
    plain = near & (numbers[:, 2:7] == 0).all(1)
    assert plain.sum() > 20
    assert_close(middle[plain], moved[plain], rtol=0, atol=0.15)
    still = (numbers[:, 7:] == 0).all(1) & (numbers[:, 5:7] == 0).all(1)
    scaled = still & (numbers[:, 2] != 0) & (numbers[:, 2].abs() < 1.5)
    growth = (mass / blob[0].sum())[scaled]
    assert scaled.sum() > 20
    assert_close(growth, (0.4 * numbers[:, 2]).exp2()[scaled], rtol=0.03, atol=0)
    turned = still & (numbers[:, 2] == 0) & (numbers[:, 4] != 0)
    across = moment(right * down)[
        turned
    ]  # of an ellipse turned by a: (9 - 2.25) sin(2 a) / 2, its sign by the way
    cos, sin = numbers[turned, 3] + 1, numbers[turned, 4]
    assert turned.sum() > 20
    assert_close(across.abs(), (6.75 * sin * cos).abs(), rtol=0.1, atol=0.1)
    ways = (across * sin * cos)[(sin * cos).abs() > 0.1].sign()
    assert len(ways.unique()) == 1


def test_the_network_is_told_in_training_and_held_out_images_stay_as_they_are() -> None:
    model = build(augment=0.5)
    seen: list[Any] = []
    model.network.register_forward_pre_hook(lambda _, given: seen.append(given[3]))
    batch = Batch(smooth(8, 8), Condition(8))
    model.loss(batch)
    model.train().loss(batch)
    assert seen[0] is None and seen[1].any()
    model = build(augment=0.0)
    assert model.network.unet.augment is None  # type: ignore[union-attr]


# ---- its networks and labels


@pytest.mark.parametrize("network", ["quick", "song", "ncsnpp"])
def test_every_network_learns_and_draws(network: Any) -> None:
    model = build(PETS, stir=False, network=network, augment=0.0)
    batch = Batch(torch.rand(8, 3, 1, 1).expand(8, 3, 8, 8) * 2 - 1, Condition(8, label=torch.arange(8) % 2))

    def loss() -> Tensor:
        torch.manual_seed(7)
        return model.loss(batch)["image"]

    start = loss().item()
    optimiser = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(15):
        optimiser.zero_grad()
        (value := loss()).backward()
        optimiser.step()
    assert value < 0.8 * start
    labels = Condition(2, label=torch.tensor([0, 1]))
    drawn = sample(model, labels, [1, 2])
    assert drawn.isfinite().all() and drawn.abs().max() <= 1
    assert_close(sample(model, labels[1:2], [2])[0], drawn[1], rtol=1e-4, atol=1e-4)


def test_the_paper_presets_network() -> None:
    with torch.device("meta"):
        model = EDM(EDM.presets["paper"].model, ImageSpec(3, 32, 32))
    unet = model.network.unet
    assert isinstance(unet, SongUNet) and unet.augment is not None
    assert {part.p for part in unet.modules() if isinstance(part, nn.Dropout)} == {0.13}


def test_guidance_doubles_the_rows_and_labels_are_dropped() -> None:
    model = build(PETS)
    label = Condition(2, label=torch.tensor([0, 1]))
    seen: list[Any] = []
    model.network.register_forward_pre_hook(lambda _, given: seen.append(given[2]))
    sample(model, label, [1, 2], guidance=1.0)
    assert [rows.tolist() for rows in seen] == [[0, 1]] * 5
    seen.clear()
    sample(model, label, [1, 2], guidance=3.0)
    assert [rows.tolist() for rows in seen] == [[0, 1, -1, -1]] * 5
    seen.clear()
    sample(model, Condition(2), [1, 2], guidance=3.0)
    assert [rows.tolist() for rows in seen] == [[-1, -1]] * 5
    torch.manual_seed(0)
    pairs = Batch(torch.zeros(512, 3, 8, 8), Condition(512, label=torch.arange(512) % 2))
    with torch.no_grad():
        model.loss(pairs)
    kept = seen[-1] >= 0
    assert 1 - kept.float().mean().item() == pytest.approx(0.1, abs=0.04)
    assert torch.equal(seen[-1][kept], pairs.condition.label[kept])  # type: ignore[index]


def test_refusals() -> None:
    with pytest.raises(LimnerError, match=r"edm.*video"):
        build(ImageSpec(3, 8, 8, frames=4))
    with pytest.raises(LimnerError, match=r"edm.*labels"):
        build(condition="label")
    with pytest.raises(LimnerError, match="--sigma-min 2"):
        sample(build(), Condition(1), [1], sigma_min=2.0, sigma_max=1.0)
    assert isinstance(paths.Exploding().levels(2), list)
