"""The diffusion transformer: its parts by known numbers, its three targets by their inverse, and the bound."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from limner import families
from limner.core import Batch, Condition, ConditionEmbedding, Draws, ImageSpec, LimnerError
from limner.diffusion.bound import log_level, step_bound
from limner.families._conditioning import ConditionEmbedder
from limner.families.dit import DISCRETE, TIME_SCALE, DiT, DiTConfig, DiTSampling
from limner.networks.attention import apply_rope, rope_angles, sincos
from limner.networks.layers import sinusoids
from limner.networks.transformers.dit import Block, DiffusionTransformer, DiTBlocks, TimeEmbedder
from limner.text.encoder import TextConfig
from tests.helpers import golden

TINY: DiTConfig = DiT.presets["tiny"].model
SPEC = ImageSpec(3, 16, 16)


def dit(spec: ImageSpec = SPEC, body: dict | None = None, **changes) -> DiT:
    """A tiny model that does not draw zeros: what is zero at the start is stirred."""
    torch.manual_seed(0)
    model = DiT(
        dataclasses.replace(TINY, body=dataclasses.replace(TINY.body, **(body or {})), **changes), spec
    )
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return model.eval()


def draw(model: DiT, condition: Condition, seeds, **knobs) -> Tensor:
    *_, last = model.sample(condition, DiTSampling(**{"steps": 4, **knobs}), Draws(seeds))
    return last.picture()


# ---- the network


@pytest.mark.parametrize(
    ("size", "width", "depth", "heads", "parameters"),
    [("B", 768, 12, 12, 130_315_808), ("XL", 1152, 28, 16, 675_129_632 - 256 * 1152)],
)
def test_published_sizes(size: str, width: int, depth: int, heads: int, parameters: int) -> None:
    """On latents of 32x32x4 with 1000 classes; the number published for XL counts the fixed positions."""
    spec = ImageSpec(4, 32, 32, classes=tuple(map(str, range(1000))))
    body = DiTBlocks(patch=2, width=width, depth=depth, heads=heads)
    with torch.device("meta"):
        model = DiT(DiTConfig(body=body, predict="noise"), spec)
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_times_and_places_match_the_golden_numbers() -> None:
    given, expected = golden("timestep_embedding_openai")
    assert_close(sinusoids(given["t"], given["dim"]).double(), expected["emb"], rtol=1e-5, atol=1e-5)
    given, expected = golden("sincos_2d")
    assert_close(sincos(given["dim"], (given["grid"],) * 2), expected["pos_embed"][1:], rtol=1e-6, atol=1e-6)
    assert TimeEmbedder(12)(torch.tensor([0.0, 999.0])).shape == (2, 12)


@pytest.mark.parametrize("predict", ["noise", "velocity", "data"])
def test_a_new_network_gives_exactly_nothing(predict: str) -> None:
    spec = dataclasses.replace(SPEC, classes=("a", "b"))
    network = DiT(dataclasses.replace(TINY, predict=predict), spec).network
    out = network(torch.randn(2, 3, 16, 16), torch.tensor([3.0, 7.0]), network.embedder(Condition(2)))
    assert out.shape == (2, 6 if predict == "noise" else 3, 16, 16) and not out.any()


@pytest.mark.parametrize("changes", [{}, {"qk_norm": True, "rope": True, "swiglu": True}])
def test_a_new_block_does_nothing_and_every_weight_is_used(changes: dict) -> None:
    config = DiTBlocks(width=16, depth=1, heads=2, registers=3, **changes)
    block = Block(config)
    x, embedding = torch.randn(2, 5, 16), torch.randn(2, 16)
    assert torch.equal(block(x, embedding, None, []), x)
    body = DiffusionTransformer(config, 2, 2, (8, 12), 6)
    for parameter in body.parameters():
        nn.init.normal_(parameter, std=0.3)
    mask = torch.ones(2, 4, dtype=torch.bool)
    out = body(torch.randn(2, 2, 8, 12), embedding, torch.randn(2, 4, 6), mask)
    assert out.shape == (2, 2, 8, 12)
    (out * torch.randn_like(out)).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in body.parameters())


def test_a_patch_is_laid_where_it_was_cut() -> None:
    """Without blocks nothing mixes places, whatever the sides."""
    body = DiffusionTransformer(DiTBlocks(patch=4, width=8, depth=0, heads=1), 1, 2, (10, 23))
    nn.init.normal_(body.head.weight)
    nn.init.normal_(body.modulation.weight)
    x, embedding = torch.randn(1, 1, 10, 23), torch.randn(1, 8)
    other = x.clone()
    other[0, 0, 5, 9] += 1
    moved = (body(other, embedding) - body(x, embedding)).abs().sum(1)[0] > 0
    assert moved[4:8, 8:12].all() and moved.sum() == 16
    with torch.no_grad():
        body.head.weight.zero_()
        body.head.bias.copy_(torch.arange(32.0))
    out = body(x, embedding)[0]
    assert out.shape == (2, 10, 23)
    assert out[1, 6, 9] == (2 * 4 + 1) * 2 + 1  # row, column, channel


def test_rotary_positions_tell_how_far_not_where() -> None:
    angles = rope_angles((4, 5), 8)
    q, k = torch.randn(2, 1, 1, 1, 8)
    q, k = q.expand(1, 1, 21, 8), k.expand(1, 1, 21, 8)
    scores = (apply_rope(q, angles.cos(), angles.sin()) @ apply_rope(k, angles.cos(), angles.sin()).mT)[0, 0]
    at = scores[1:, 1:].reshape(4, 5, 4, 5)
    assert_close(at[0, 1, 2, 3], at[1, 2, 3, 4])
    assert_close(at[3, 0, 1, 1], at[2, 3, 0, 4])
    assert abs(at[0, 0, 0, 1] - at[0, 0, 1, 0]) > 1e-4
    assert_close(scores[0, 0], (q[0, 0, 0] * k[0, 0, 0]).sum())  # what is no patch is not turned


def test_a_gated_perceptron_has_as_many_weights() -> None:
    plain, gated = (Block(DiTBlocks(width=96, swiglu=gated)) for gated in (False, True))
    one, other = (
        sum(p.numel() for part in (b.up, b.down) for p in part.parameters()) for b in (plain, gated)
    )
    assert other == pytest.approx(one, rel=0.01)


@pytest.mark.parametrize("body", [{}, {"qk_norm": True, "rope": True, "swiglu": True, "registers": 2}])
def test_an_image_does_not_see_a_neighbours_longer_text(body: dict) -> None:
    model = dit(dataclasses.replace(SPEC, captions=True), body)
    texts = ["red", "a large blue square to the left of a small one", ""]
    together = draw(model, Condition(3, text=texts), [5, 6, 7])
    for i, text in enumerate(texts):
        assert_close(draw(model, Condition(1, text=[text]), [5 + i])[0], together[i], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(draw(model, Condition(1, text=["blue"]), [5])[0], together[0], atol=1e-3)


def test_guidance_leads_away_from_no_condition() -> None:
    model = dit(dataclasses.replace(SPEC, classes=("a", "b")))
    one = Condition(2, label=torch.tensor([0, 1]))
    dropped = model.network.embedder(one, torch.zeros(2, dtype=torch.bool))
    assert_close(dropped.embedding, model.network.embedder(Condition(2)).embedding)
    rows: list[int] = []
    model.network.register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
    draw(model, one, [1, 2], guidance=1.0)
    draw(model, one, [1, 2], guidance=3.0)
    assert rows == [2] * 4 + [4] * 4, "both guesses in one call"


# ---- what it predicts


class Known(nn.Module):
    """In a network's place: the right answer."""

    def __init__(self, predict: str, data: Tensor, spread: float | None):
        super().__init__()
        self.predict, self.data, self.spread = predict, data, spread
        self.embedder = ConditionEmbedder("none", 0, 1, TextConfig())

    def forward(self, x: Tensor, t: Tensor, condition: ConditionEmbedding) -> Tensor:
        data = self.data.expand_as(x)
        if self.predict == "data":
            return data
        t = t[:, None, None, None]
        if self.predict == "velocity":
            return (data - x) / (1 - t / TIME_SCALE)
        alphas_cumprod = DISCRETE.alphas_cumprod[t.long()].float()
        noise = (x - alphas_cumprod.sqrt() * data) / (1 - alphas_cumprod).sqrt()
        return noise if self.spread is None else torch.cat([noise, torch.full_like(noise, self.spread)], 1)


@pytest.mark.parametrize(
    ("predict", "spread"), [("data", None), ("velocity", None), ("noise", None), ("noise", -1.0)]
)
@pytest.mark.parametrize("solver", ["dpm2m", "heun", "ddim", "ancestral"])
def test_who_knows_the_answer_has_no_loss_and_draws_it(
    predict: str, spread: float | None, solver: str
) -> None:
    data = torch.rand(1, 3, 16, 16) * 2 - 1
    model = dit(predict=predict, learn_variance=spread is not None)
    model.network = Known(predict, data, spread)  # type: ignore[assignment]
    torch.manual_seed(1)
    terms = model.objectives()[0].loss(Batch(data.expand(64, -1, -1, -1), Condition(64)))
    bound = terms.pop("bound", torch.zeros(()))
    assert all(value < 1e-5 for value in terms.values())
    # Only the first of the 64 parts of the 1000 steps may have met the last step, which is never free.
    assert bound < 0.2
    assert_close(
        draw(model, Condition(2), [0, 1], solver=solver, steps=20),
        data.expand(2, -1, -1, -1),
        atol=1e-2,
        rtol=0,
    )


def test_the_bound_moves_the_variance_alone() -> None:
    model = dit(predict="noise").requires_grad_()
    batch = Batch(torch.rand(8, 3, 16, 16) * 2 - 1, Condition(8))
    model.loss(batch)["bound"].backward()
    of_noise, of_variance = model.network.body.head.bias.grad.unflatten(0, (4, 4, 6)).split(3, dim=2)
    assert not of_noise.any() and of_variance.abs().min() > 0


def test_the_variance_is_drawn_with() -> None:
    """Two networks that know the data but not how sure they may be."""
    data = torch.zeros(1, 3, 16, 16)
    drawn = []
    for spread in (-1.0, 1.0):
        model = dit(predict="noise")
        model.network = Known("noise", data, spread)  # type: ignore[assignment]
        first, *_ = model.sample(Condition(1), DiTSampling(steps=4, solver="ancestral"), Draws([0]))
        drawn.append(first)
    small, large = (canvas.picture().std() for canvas in drawn)
    assert small < large


def test_the_bounds_terms() -> None:
    torch.manual_seed(0)
    data, x_t, guess = (torch.randn(3, 2, 4, 4).clamp(-1, 1) for _ in range(3))
    t = torch.tensor([1, 400, 999])
    shares = torch.rand(3, 2, 4, 4)
    found = step_bound(DISCRETE, data, x_t, t, guess, shares)
    for i, at in enumerate(t.tolist()):
        beta, now, before = DISCRETE.betas[at], DISCRETE.alphas_cumprod[at], DISCRETE.alphas_cumprod[at - 1]
        small = beta * (1 - before) / (1 - now)

        def mean(of: Tensor, i=i, beta=beta, now=now, before=before) -> Tensor:
            ahead = (1 - beta).sqrt() * (1 - before) / (1 - now) * x_t[i]
            return before.sqrt() * beta / (1 - now) * of[i] + ahead

        wide = torch.exp(shares[i] * beta.log() + (1 - shares[i]) * small.log()).sqrt()
        true, ours = (
            torch.distributions.Normal(mean(data), small.sqrt()),
            torch.distributions.Normal(mean(guess), wide),
        )
        expected = torch.distributions.kl_divergence(true, ours).mean() / math.log(2)
        assert_close(found[i].double(), expected, rtol=1e-3, atol=1e-6)
    assert_close(step_bound(DISCRETE, data, x_t, t, data, torch.zeros(())), torch.zeros(3), atol=1e-6, rtol=0)


def test_levels_have_probabilities_that_add_up() -> None:
    levels = torch.arange(256) / 127.5 - 1
    for mean, std in ((0.3, 0.02), (-1.2, 0.5), (0.99, 0.004)):
        total = (
            log_level(levels.double(), torch.tensor(mean).double(), torch.tensor(std).double()).exp().sum()
        )
        assert total == pytest.approx(1, abs=1e-6)
    last = step_bound(
        DISCRETE, *(levels[None] for _ in "ab"), torch.tensor([0]), levels[None], torch.zeros(())
    )
    assert 0 < last.item() < 8, "less than eight bits a pixel, for the noise is of the levels' size"


# ---- the family


@pytest.mark.parametrize("predict", ["noise", "velocity", "data"])
def test_each_target_learns_an_image(predict: str) -> None:
    torch.manual_seed(0)
    model = DiT(dataclasses.replace(TINY, predict=predict), SPEC)
    batch = Batch(torch.linspace(-1, 1, 16).expand(16, 3, 16, 16), Condition(16))
    optimiser = torch.optim.Adam(model.parameters(), 4e-3)
    losses = []
    for step in range(60):
        optimiser.zero_grad()
        torch.manual_seed(step)
        loss = model.objectives()[0].loss(batch)["noise" if predict == "noise" else "velocity"]
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])


def test_refusals() -> None:
    with pytest.raises(LimnerError, match=r"dit .*label"):
        DiT(dataclasses.replace(TINY, condition="label"), SPEC)
    with pytest.raises(LimnerError, match=r"dit .*text"):
        DiT(dataclasses.replace(TINY, condition="text"), SPEC)
    with pytest.raises(LimnerError, match=r"dit .*heads"):
        families.build("dit", dataclasses.replace(TINY, body=DiTBlocks(width=36, heads=4)), SPEC)
    with pytest.raises(LimnerError, match="autoguidance"):
        draw(dit(), Condition(1), [0], autoguidance=dit(predict="noise"))
    assert draw(dit(), Condition(1), [0], autoguidance=dit(), guidance=2.0).isfinite().all()
