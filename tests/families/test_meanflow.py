"""Mean flows: the identity and its derivative, the split of a way in two, guidance, sampling in one call."""

import dataclasses

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import limner
from limner import families
from limner.core import Batch, Condition, ConditionEmbedding, Draws, ImageSpec, LimnerError
from limner.diffusion.paths import expand_dims
from limner.families.meanflow import MeanFlow, MeanFlowSampling
from limner.losses.mean_flow import implied_velocity, split_target
from limner.networks.images.headroom import with_headroom
from limner.networks.transformers.dit import DiTBlocks
from limner.networks.unets.unet import UNet, UNetLevels

TINY = MeanFlow.presets["tiny"].model
PLAIN = ImageSpec(3, 16, 16)
LABELLED = ImageSpec(3, 16, 16, classes=("cat", "dog"))


def meanflow(spec: ImageSpec = PLAIN, **changes) -> MeanFlow:
    """A tiny model that does not draw zeros: what is zero at the start is stirred."""
    torch.manual_seed(0)
    model = MeanFlow(dataclasses.replace(TINY, **changes), spec)
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return model.eval()


def draw(model: MeanFlow, condition: Condition, seeds, **knobs) -> Tensor:
    *_, last = model.sample(condition, MeanFlowSampling(**knobs), Draws(seeds))
    return last.picture()


def pairs_of_times(n: int) -> tuple[Tensor, Tensor]:
    t, s = torch.rand(2, n, dtype=torch.float64).sort(0).values
    return 0.95 * t, s


SIGMA = 0.3  # of data that are N(0, SIGMA^2): x_s = x_t std(s) / std(t) exactly


def std(t: Tensor) -> Tensor:
    return (t.square() * SIGMA**2 + (1 - t).square()).sqrt()


def exact(condition: ConditionEmbedding, sigma_floor: float | None = None):
    """u of such data, in closed form."""

    def u(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        still = s == t
        slope = (t * SIGMA**2 - (1 - t)) / std(t).square()  # of log std: v = x d/dt log std(t)
        mean = (std(s) / std(t) - 1) / torch.where(still, torch.ones_like(t), s - t)
        return expand_dims(torch.where(still, slope, mean), x) * x

    return u


@pytest.mark.parametrize("objective", ["split", "jvp"])
def test_the_exact_average_velocity_of_a_gaussian_has_no_error(monkeypatch, objective):
    """So it is where learning comes to rest; with jvp, v = u - (s - t) du/dt along the flow (Geng 2025, eq. 6)."""
    model = meanflow(objective=objective)
    monkeypatch.setattr(model, "average", exact)
    t, s = pairs_of_times(6)
    x = torch.randn(6, 3, 16, 16, dtype=torch.float64)
    u = exact(ConditionEmbedding())
    velocity = u(x, t, t)
    assert_close(implied_velocity(u, x, t, s, velocity), velocity, rtol=1e-9, atol=1e-9)
    assert_close(split_target(u, x, t, s), u(x, t, s), rtol=1e-9, atol=1e-9)
    error = model.average_error(x, t, s, ConditionEmbedding(), velocity)
    assert_close(error, torch.zeros_like(x), rtol=0, atol=1e-9)


def test_the_exact_average_velocity_draws_a_gaussian_in_any_number_of_calls(monkeypatch):
    model = meanflow()
    monkeypatch.setattr(model, "average", exact)
    one, many = (draw(model, Condition(8), range(8), steps=steps) for steps in (1, 5))
    assert_close(one, many, rtol=1e-4, atol=1e-5)
    noise = Draws(range(8)).normal(3, 16, 16)
    assert_close(one, (SIGMA * noise).clamp(-1, 1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_derivatives_through_the_unet_are_those_of_finite_differences(layout):
    """GroupNorm, patches and attention in forward mode, in float64, with the same values and gradients."""
    torch.manual_seed(0)
    unet = (
        UNet(3, 3, (12, 20), 8, UNetLevels((16, 32), (1, 1), (3,), (), head_width=16))
        .double()
        .to(memory_format=layout)
    )
    for parameter in unet.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    x, dx = torch.randn(2, 2, 3, 12, 20, dtype=torch.float64).to(memory_format=torch.contiguous_format)
    e, de = torch.randn(2, 2, 8, dtype=torch.float64)
    x, dx = x.contiguous(memory_format=layout), dx.contiguous(memory_format=layout)
    value, slope = torch.func.jvp(unet, (x, e), (dx, de))
    step = 1e-5
    with torch.no_grad():
        assert_close(value, unet(x, e))
        difference = (unet(x + step * dx, e + step * de) - unet(x - step * dx, e - step * de)) / (2 * step)
    assert slope.abs().max() > 0.1
    assert_close(slope, difference, rtol=1e-6, atol=1e-7)
    of_pair, of_plain = (
        torch.autograd.grad(made.square().sum(), list(unet.parameters())) for made in (value, unet(x, e))
    )
    assert_close(of_pair, of_plain)


@pytest.mark.parametrize(
    ("objective", "tangent"), [("jvp", "predicted"), ("jvp", "conditional"), ("split", "predicted")]
)
@pytest.mark.parametrize("predict", ["data", "velocity"])
def test_every_objective_learns(objective, tangent, predict):
    torch.manual_seed(0)
    model = MeanFlow(dataclasses.replace(TINY, objective=objective, tangent=tangent, predict=predict), PLAIN)
    batch = Batch(torch.rand(16, 3, 1, 1).expand(16, 3, 16, 16) * 2 - 1, Condition(16))

    def loss() -> Tensor:
        torch.manual_seed(7)
        return lowered(model, batch)[0]

    start = loss()
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(25):
        optimiser.zero_grad()
        (value := loss()).backward()
        optimiser.step()
    assert value < 0.7 * start


def lowered(model: MeanFlow, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """What is lowered, and what is shown."""
    (objective,) = model.objectives()
    terms = objective.loss(batch)
    return objective.total(terms), {name: terms[name] for name in objective.shown}


def shown_and_gradient(batch: Batch, **changes) -> tuple[dict[str, Tensor], Tensor]:
    model = meanflow(**changes)
    torch.manual_seed(3)
    total, shown = lowered(model, batch)
    total.backward()
    return shown, model.network.body.head.weight.grad


def test_without_weights_what_is_lowered_is_the_sum_of_what_is_shown():
    total, shown = lowered(meanflow(), Batch(torch.rand(8, 3, 16, 16) * 2 - 1, Condition(8)))
    assert_close(total, sum(shown.values()))
    assert all(value > 0 and not value.requires_grad for value in shown.values())


def test_the_adaptive_weight_changes_the_gradient_and_not_what_is_shown():
    """With p = 1 each image pulls alike, however wrong it is; the losses that are shown are the plain ones."""
    batch = Batch(torch.rand(8, 3, 16, 16) * 2 - 1, Condition(8))
    plain, adaptive = (
        shown_and_gradient(batch, adaptive_power=power, flow_matching_share=1.0) for power in (0.0, 1.0)
    )
    assert_close(plain[0], adaptive[0])
    assert not torch.allclose(plain[1].norm(), adaptive[1].norm(), rtol=0.05)


def test_the_average_weight_weighs_pairs_apart_alone_and_changes_nothing_that_is_shown():
    batch = Batch(torch.rand(8, 3, 16, 16) * 2 - 1, Condition(8))
    for share, times in ((0.0, 5.0), (1.0, 1.0)):
        one, five = (
            shown_and_gradient(batch, average_weight=weight, flow_matching_share=share)
            for weight in (1.0, 5.0)
        )
        assert_close(one[0], five[0])
        assert_close(five[1], times * one[1], rtol=1e-4, atol=1e-7)


def test_times_are_equal_or_lead_from_noise_to_data_or_in_between():
    torch.manual_seed(0)
    t, s, equal = meanflow(flow_matching_share=0.5, from_noise=0.25, to_data=0.5).times(
        4000, torch.device("cpu")
    )
    assert equal == 2000 and torch.equal(t[:equal], s[:equal])
    assert t[:equal].unique().numel() > 1900
    assert (t[equal:] < s[equal:]).all() and (t >= 0).all() and (s <= 1).all()
    start, end = t[equal:] == 0, s[equal:] == 1
    for share, expected in ((start, 0.25), (end, 0.5), (start & end, 0.125)):
        assert abs(float(share.float().mean()) - expected) < 0.04


def test_the_transformer_in_place_of_the_unet_learns_by_the_derivative():
    body = DiTBlocks(patch=4, width=32, depth=1, heads=2, qk_norm=True, rope=True, swiglu=True, registers=2)
    model = meanflow(LABELLED, network="transformer", body=body, objective="jvp")
    batch = Batch(torch.rand(8, 3, 16, 16) * 2 - 1, Condition(8, label=torch.arange(8) % 2))
    lowered(model, batch)[0].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.network.body.parameters())


def test_guidance_is_learned_as_an_input_and_costs_no_call():
    model = meanflow(LABELLED)
    label = torch.tensor([0, 1])
    calls = []
    model.network.register_forward_hook(lambda *_: calls.append(1))
    plain, guided = (draw(model, Condition(2, label=label), [1, 2], guidance=g) for g in (1.0, 3.0))
    assert len(calls) == 2
    assert not torch.allclose(plain, guided, atol=1e-4)
    with pytest.raises(LimnerError, match=r"from 1 to 3.*guidance"):
        draw(model, Condition(2, label=label), [1, 2], guidance=5.0)


def test_the_guided_velocity_leads_away_from_what_no_label_gives(monkeypatch):
    """v + (1 - 1 / w) (v with - v without); images without guidance keep theirs (Geng 2025b)."""
    model = meanflow(LABELLED)
    x, t = torch.randn(3, 3, 16, 16), torch.tensor([0.2, 0.5, 0.7])
    guidance = torch.tensor([1.0, 2.0, 3.0])
    condition = model.network.embed(Condition(3, label=torch.tensor([0, 1, 0])), guidance=guidance)
    velocity = torch.randn_like(x)
    found = model.guided_velocity(velocity, x, t, condition, guidance)
    with torch.no_grad():
        strong = model.average(condition)(x, t, t)
        weak = model.average(model.network.embed(Condition(3), guidance=torch.ones(3)))(x, t, t)
    assert_close(found, velocity + expand_dims(1 - 1 / guidance, x) * (strong - weak), rtol=1e-4, atol=1e-5)
    assert torch.equal(found[0], velocity[0])


def test_one_call_is_the_networks_own_image():
    model = meanflow()
    noise = Draws([4]).normal(3, 16, 16)
    with torch.no_grad():
        image = model.network(noise, torch.zeros(1), torch.ones(1), ConditionEmbedding())
    assert_close(draw(model, Condition(1), [4]), image.clamp(-1, 1), rtol=1e-4, atol=1e-5)
    point = model.latent(Condition(1), Draws([4]))
    assert_close(model.paint(point, Condition(1)), image.clamp(-1, 1), rtol=1e-4, atol=1e-5)


def test_from_an_image_it_goes_back_a_share_of_the_way_to_noise(monkeypatch):
    model = meanflow()
    monkeypatch.setattr(model, "average", exact)
    image = torch.linspace(-1, 1, 16).expand(2, 3, 16, 16)
    drawn = draw(model, Condition(2, image=image), [1, 2], strength=0.2)
    start = 0.8 * with_headroom(image, model.config.headroom) + 0.2 * Draws([1, 2]).normal(3, 16, 16)
    assert_close(drawn, (start * SIGMA / std(torch.tensor(0.8))).clamp(-1, 1), rtol=1e-4, atol=1e-5)
    with pytest.raises(LimnerError, match="strength"):
        draw(model, Condition(2, image=image), [1, 2], strength=0.0)


def test_many_calls_reach_the_data_as_few_do(monkeypatch):
    """With a network that knows the image, however many steps lie where training takes 1 - t as larger than it is."""
    model, image = meanflow(), torch.linspace(-1, 1, 16).expand(1, 3, 16, 16)
    monkeypatch.setattr(model.network, "forward", lambda x, t, s, condition: image)
    for steps in (1, 4, 128):
        assert_close(draw(model, Condition(1), [0], steps=steps), image, atol=1e-5, rtol=0)


def test_each_step_is_a_canvas():
    canvases = list(meanflow().sample(Condition(2), MeanFlowSampling(steps=3), Draws([0, 1])))
    assert [(c.done, c.total) for c in canvases] == [(i, 3) for i in (1, 2, 3)]


def test_what_it_cannot_take_it_refuses():
    with pytest.raises(LimnerError, match="steps 0"):
        MeanFlowSampling(steps=0)
    with pytest.raises(LimnerError, match=r"meanflow cannot be built.*one number a level"):
        families.build("meanflow", dataclasses.replace(TINY, blocks=(1,)), PLAIN)
    with pytest.raises(LimnerError, match=r"meanflow cannot be built.*heads"):
        odd = dataclasses.replace(TINY, network="transformer", body=DiTBlocks(width=36, heads=5))
        families.build("meanflow", odd, PLAIN)
    for changes, spec in (({"condition": "text"}, PLAIN), ({"condition": "label"}, PLAIN)):
        with pytest.raises(LimnerError, match="meanflow"):
            MeanFlow(dataclasses.replace(TINY, **changes), spec)
    with pytest.raises(LimnerError, match="frames"):
        MeanFlow(TINY, ImageSpec(3, 16, 16, frames=4))


def test_a_training_by_forward_derivatives_begins(images, tmp_path):
    """Its cost is estimated from tensors that the backward pass keeps, some of which torch.func wraps."""
    model = {"objective": "jvp"}
    result = limner.train(
        "meanflow", images, tmp_path / "run", preset="tiny", size=16, budget="16img", model=model,
        quiet=True, training={"samples": 0},
    )  # fmt: skip
    assert result.seen == 16
