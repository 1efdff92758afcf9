"""What only DDPM promises: its papers' numbers, its losses, its knobs; the rest is in test_contract.py."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from limner.core import Batch, Condition, ConditionEmbedding, Denoised, Draws, ImageSpec, LimnerError
from limner.diffusion import paths, solvers
from limner.diffusion.bound import step_bound
from limner.diffusion.objectives import split_variance
from limner.diffusion.paths import CLEAN, NoiseLevel, expand_dims
from limner.diffusion.sampling import Call, evaluate
from limner.families.ddpm import DDPM, DDPMConfig, DDPMSampling
from limner.networks.unets.diffusion import Attention, DiffusionUNet
from tests.helpers import golden

TINY = DDPM.presets["tiny"].model
SPEC = ImageSpec(3, 8, 8)
PETS = ImageSpec(3, 8, 8, classes=("cat", "dog"))


def build(spec: ImageSpec = SPEC, stir: bool = True, **changes: Any) -> DDPM:
    """A tiny model that does not guess zeros."""
    torch.manual_seed(0)
    model = DDPM(replace(TINY, **changes), spec)
    for p in model.parameters() if stir else ():
        if not p.any():
            nn.init.normal_(p, std=0.05)
    return model.eval()


def sample(model: DDPM, condition: Condition, seeds: list[int], **knobs: Any) -> Tensor:
    *_, last = model.sample(condition, DDPMSampling(**{"steps": 4, **knobs}), Draws(seeds))
    return last.picture()


def denoised(model: DDPM, x: Tensor, level: NoiseLevel) -> Denoised:
    """The model's guess without a condition, clipped as in sampling."""
    ((data, variance),) = evaluate([Call(model, x, level, ConditionEmbedding())])
    return Denoised(data.clamp(-1, 1), variance)


class Stub(nn.Module):
    """A network with a fixed answer."""

    def __init__(self, answer: Any):
        super().__init__()
        self.answer, self.classes = answer, 0

    def forward(self, x: Tensor, t: Tensor, label: None) -> Tensor:
        return self.answer(x, t)


# ---- the papers' numbers


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_schedules(schedule: Any) -> None:
    given, expected = golden(f"schedule_{schedule}_1000")
    betas = paths.betas(schedule, int(given["T"]))
    path, times = paths.Discrete(betas), given["t"].long().tolist()
    assert_close(betas[times], expected["betas"], rtol=1e-9, atol=0)
    assert_close(path.alphas_cumprod[times], expected["alphas_cumprod"], rtol=1e-9, atol=0)
    for i, t in enumerate(times):
        now, then = path.level(t), path.level(t - 1) if t else CLEAN
        of_x, of_data, variance = solvers.posterior(now, then)
        found = {
            "sqrt_one_minus_alphas_cumprod": now.sigma,
            "alphas_cumprod_prev": then.alpha**2,
            "posterior_variance": variance,
            "posterior_mean_coef1": of_data,
            "posterior_mean_coef2": of_x,
            "sqrt_recip_alphas_cumprod": 1 / now.alpha,
            "sqrt_recipm1_alphas_cumprod": now.ratio,
        }
        for name, number in found.items():
            assert number == pytest.approx(expected[name][i].item(), rel=1e-8, abs=1e-12), (name, t)


def test_the_bound_takes_the_next_variance_where_there_is_none() -> None:
    """At t = 0 the posterior's is 0: a guess that is right but for a spread of 0 is as likely as the golden says."""
    given, expected = golden("schedule_linear_1000")
    path = paths.Discrete(paths.betas("linear", 1000))
    std = torch.exp(0.5 * expected["posterior_log_variance_clipped"][0])
    data = torch.zeros(1, 1, 1, 1)
    found = step_bound(path, data, data, torch.tensor([0]), data, torch.zeros(1, 1, 1, 1))
    inside = torch.special.ndtr(1 / 255 / std) - torch.special.ndtr(-1 / 255 / std)
    assert found.item() == pytest.approx(-inside.log2().item(), rel=1e-4)
    assert given["t"][0] == 0


@pytest.mark.parametrize("kind", ["fixed_small", "fixed_large", "learned_range"])
def test_noise_in_and_a_step_back(kind: str) -> None:
    """x0 is clipped before the mean; the variance is one of three."""
    given, expected = golden("ddpm_q_and_p")
    spec = ImageSpec(1, 2, 2)
    model = build(spec, learn_variance=kind == "learned_range")
    times, wanted = given["t"].long(), expected["p"][kind]
    x = paths.noised(model.path, given["x0"], given["eps"], times)
    assert_close(x, expected["x_t"], rtol=1e-6, atol=1e-6)
    for i, t in enumerate(times.tolist()):
        out = torch.cat([given["model_eps"], given["model_var_raw"]], dim=1)[i : i + 1]
        out = out if model.config.learn_variance else out[:, :1]
        model.network = Stub(lambda x, t, out=out: out)  # type: ignore[assignment]
        levels = [model.path.level(t), model.path.level(t - 1)]
        start, variance = expected["x_t"][i : i + 1], {"fixed_small": 0.0}.get(kind, 1.0)

        def step(noise: Tensor, start=start, levels=levels, variance=variance) -> Tensor:
            problem = solvers.Problem(start, levels, model.path, lambda: noise)
            solver = solvers.ancestral(problem, variance)
            (found,) = solvers.drive(solver, lambda x, level: denoised(model, x, level))
            return found.x[0]

        assert_close(
            denoised(model, start, levels[0]).data[0], wanted["pred_xstart"][i], rtol=1e-7, atol=1e-8
        )
        mean, moved = step(torch.zeros(1, 1, 2, 2)), step(torch.ones(1, 1, 2, 2))
        assert_close(mean, wanted["mean"][i], rtol=1e-7, atol=1e-8)
        assert_close((moved - mean).square(), wanted["variance"][i], rtol=1e-6, atol=0)


def test_a_step_of_ddim_derives_the_noise_from_the_clipped_image() -> None:
    given, expected = golden("ddim_single_step_openai")
    model = build(ImageSpec(1, 2, 2))
    model.network = Stub(lambda x, t: given["model_eps"])  # type: ignore[assignment]
    t = int(given["t"])
    levels = [model.path.level(t), model.path.level(t - 1)]
    assert_close(denoised(model, given["x"], levels[0]).data, expected["pred_xstart"])
    solver = solvers.ddim(solvers.Problem(given["x"], levels, model.path))
    (found,) = solvers.drive(solver, lambda x, level: denoised(model, x, level))
    assert_close(found.x, expected["sample"], rtol=1e-8, atol=1e-8)


def test_which_steps_are_kept() -> None:
    _, expected = golden("respacing_openai")

    def same(found: list[int], name: str) -> bool:
        return found == expected[name].long().tolist()

    assert same(paths.spaced_times(1000, 10, "even"), "10")
    assert same(paths.sectioned_times(1000, [10, 15, 20]), "10,15,20")
    assert same(paths.spaced_times(1000, 250, "even")[:10], "250_first10")
    assert same(paths.spaced_times(1000, 250, "even")[-3:], "250_last3")
    for n in (10, 25, 50):
        assert same(paths.spaced_times(1000, n, "ddim"), f"ddim{n}")
    _, expected = golden("ddim_timesteps")
    assert same(paths.spaced_times(1000, 10, "ddim"), "uniform")
    assert same(paths.spaced_times(1000, 10, "quadratic"), "quad")


def test_the_average_halves_as_the_papers_decay_does() -> None:
    average = DDPM.presets["paper"].training.average
    assert 0.9999 ** (average / 128) == pytest.approx(0.5)


def test_the_paper_presets_network() -> None:
    with torch.device("meta"):
        model = DDPM(DDPM.presets["paper"].model, ImageSpec(3, 32, 32))
    unet = model.network.unet
    assert isinstance(unet, DiffusionUNet) and unet.original
    assert {part.heads for part in unet.modules() if isinstance(part, Attention)} == {1}
    assert {part.p for part in unet.modules() if isinstance(part, nn.Dropout)} == {0.1}


# ---- its losses


@pytest.mark.parametrize("predict", ["noise", "velocity", "data"])
@pytest.mark.parametrize("schedule", ["linear", "cosine", "scaled_linear"])
def test_who_knows_the_answer_has_no_loss_and_draws_it(predict: Any, schedule: Any) -> None:
    model = build(predict=predict, schedule=schedule)
    data = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(3)) * 2 - 1
    path = model.path

    def answer(x: Tensor, t: Tensor) -> Tensor:
        levels = [path.level(float(time)) for time in t]
        alpha, sigma = (
            expand_dims(torch.tensor([getattr(at, part) for at in levels]), x) for part in ("alpha", "sigma")
        )
        noise = (x - alpha * data) / sigma
        if predict == "data":
            return data.expand_as(x)
        return noise if predict == "noise" else alpha * noise - sigma * data

    model.network = Stub(answer)  # type: ignore[assignment]
    terms = model.loss(Batch(data.expand(16, -1, -1, -1), Condition(16)))
    assert terms.keys() == {"noise" if predict == "noise" else "velocity"}
    assert sum(terms.values()) < 1e-4
    for solver in ("ancestral", "ddim", "dpm2m", "heun", "unipc"):
        drawn = sample(model, Condition(2), [1, 2], solver=solver)
        assert_close(drawn, data.expand_as(drawn), rtol=0, atol=1e-3)


def test_the_bound_moves_the_variance_alone() -> None:
    """The gradient of the guess is that of L_simple (Nichol 2021, section 3.1)."""
    model = build(learn_variance=True)
    batch = Batch(torch.rand(8, 3, 8, 8) * 2 - 1, Condition(8))
    head = next(p for name, p in model.network.named_parameters() if name.endswith("head.weight"))

    def slopes(*names: str) -> Tensor:
        torch.manual_seed(5)
        terms = model.loss(batch)
        assert terms.keys() == {"noise", "bound"}
        loss = torch.stack([terms[name] for name in names]).sum()
        # The quick network's channels lie patch by patch: four rows of the head make one channel.
        return torch.autograd.grad(loss, head)[0].unflatten(0, (6, 4))

    simple, bound, both = slopes("noise"), slopes("bound"), slopes("noise", "bound")
    assert not bound[:3].any() and bound[3:].any()
    assert not simple[3:].any()
    assert_close(both[:3], simple[:3])


def test_the_bounds_weight_is_for_all_steps_together() -> None:
    model = build(learn_variance=True)
    batch = Batch(torch.rand(8, 3, 8, 8) * 2 - 1, Condition(8))

    def bound(**changes: Any) -> float:
        model.config = replace(model.config, **changes)
        torch.manual_seed(5)
        return model.loss(batch)["bound"].item()

    assert bound(bound_weight=0.002) == pytest.approx(2 * bound(bound_weight=0.001))
    out = torch.tensor([0.0, -1.0, 1.0]).reshape(3, 1, 1, 1).expand(3, 2, 1, 1)
    _, variance = split_variance(out, 1)
    assert variance is not None and variance.flatten().tolist() == [0.5, 0.0, 1.0]
    assert split_variance(out, 2)[1] is None


def test_a_network_of_the_papers_is_told_thousands_whatever_the_number_of_steps() -> None:
    """Nichol 2021 takes 4000 steps, and its network sees times up to 1000."""
    model = build(network="adm", steps=4000)
    seen: list[Tensor] = []
    model.network.unet.register_forward_pre_hook(lambda _, given: seen.append(given[1]))
    model.network(torch.zeros(2, 3, 8, 8), torch.tensor([0, 3999]), None)
    assert_close(seen[0], torch.tensor([0.0, 999.75]))
    model = build(steps=4000)
    model.network.unet.register_forward_pre_hook(lambda _, given: seen.append(given[1]))
    model.network(torch.zeros(2, 3, 8, 8), torch.tensor([0, 3999]), None)
    assert_close(seen[1], torch.tensor([0.0, 0.99975]))


# ---- its networks and knobs

NETWORKS: dict[str, dict[str, Any]] = {
    "quick": {},
    "ddpm": {"network": "ddpm", "head_width": 0},
    "adm": {"network": "adm", "learn_variance": True, "schedule": "cosine"},
    "nichol": {"network": "adm", "resample_blocks": False, "learn_variance": True, "steps": 4000},
    "latent": {"network": "adm", "resample_blocks": False, "scale_shift": False},
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_every_network_learns_and_draws(kind: str) -> None:
    model = build(PETS, stir=False, **NETWORKS[kind]).train()
    batch = Batch(torch.rand(8, 3, 1, 1).expand(8, 3, 8, 8) * 2 - 1, Condition(8, label=torch.arange(8) % 2))

    def loss() -> Tensor:
        torch.manual_seed(7)
        return torch.stack(list(model.loss(batch).values())).sum()

    start = loss().item()
    optimiser = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(15):
        optimiser.zero_grad()
        (value := loss()).backward()
        optimiser.step()
    assert value < 0.9 * start
    model.eval()
    labels = Condition(2, label=torch.tensor([0, 1]))
    for solver in ("dpm2m", "ancestral"):
        drawn = sample(model, labels, [1, 2], solver=solver)
        assert drawn.isfinite().all() and drawn.abs().max() <= 1
        assert_close(sample(model, labels[1:2], [2], solver=solver)[0], drawn[1], rtol=1e-4, atol=1e-4)


def test_the_variance_knob_and_the_learned_variance() -> None:
    model = build()
    small, large = (sample(model, Condition(1), [1], solver="ancestral", variance=v) for v in (0.0, 1.0))
    assert not torch.allclose(small, large, atol=1e-3)
    assert_close(sample(model, Condition(1), [1], variance=0.0), sample(model, Condition(1), [1]))  # dpm2m
    model = build(learn_variance=True)
    small, large = (sample(model, Condition(1), [1], solver="ancestral", variance=v) for v in (0.0, 1.0))
    assert_close(small, large)
    with torch.no_grad():
        model.network.unet.unet.head.bias[12:].fill_(2.0)  # type: ignore[operator, index, union-attr]
    assert not torch.allclose(sample(model, Condition(1), [1], solver="ancestral"), small, atol=1e-3)


def test_spacing_and_steps_say_which_times_are_asked_for() -> None:
    model = build()
    seen: list[float] = []
    model.network.register_forward_pre_hook(lambda _, given: seen.append(float(given[1][0])))
    sample(model, Condition(1), [1], steps=5)
    assert seen == [999, 749, 500, 250, 0]
    seen.clear()
    sample(model, Condition(1), [1], steps=5, spacing="ddim")
    assert seen == [800, 600, 400, 200, 0]


def test_guidance_doubles_the_rows_and_labels_are_dropped() -> None:
    model = build(PETS)
    label = Condition(2, label=torch.tensor([0, 1]))
    seen: list[Tensor] = []
    model.network.register_forward_pre_hook(lambda _, given: seen.append(given[2]))
    sample(model, label, [1, 2], guidance=1.0)
    assert [rows.tolist() for rows in seen] == [[0, 1]] * 4
    seen.clear()
    sample(model, label, [1, 2], guidance=3.0)
    assert [rows.tolist() for rows in seen] == [[0, 1, -1, -1]] * 4
    seen.clear()
    sample(model, Condition(2), [1, 2], guidance=3.0)  # no condition to guide to
    assert [rows.tolist() for rows in seen] == [[-1, -1]] * 4
    seen.clear()
    torch.manual_seed(0)
    pairs = Batch(torch.zeros(512, 3, 8, 8), Condition(512, label=torch.arange(512) % 2))
    with torch.no_grad():
        model.loss(pairs)
    dropped = (seen[0] == -1).float().mean().item()
    assert dropped == pytest.approx(0.1, abs=0.04)
    kept = seen[0] >= 0
    assert torch.equal(seen[0][kept], pairs.condition.label[kept])  # type: ignore[index]


def test_autoguidance_needs_a_run_with_the_same_noise_and_the_same_labels() -> None:
    model, label = build(PETS), Condition(1, label=torch.tensor([1]))
    more = replace(PETS, classes=(*PETS.classes, "bird"))
    for other, says in (
        (build(PETS, steps=100), "noise"),
        (build(PETS, schedule="scaled_linear"), "noise"),
        (build(more), "labels"),
    ):
        with pytest.raises(LimnerError, match=f"autoguidance.*{says}"):
            sample(model, label, [0], autoguidance=other, guidance=2.0)
    assert sample(model, label, [0], autoguidance=build(PETS), guidance=2.0).isfinite().all()


@pytest.mark.parametrize("steps", [7, 30, 501, 999])
def test_spacing_by_so_manyth_times_reaches_the_noise_whatever_the_number(steps: int) -> None:
    times = paths.spaced_times(1000, steps, "ddim")
    assert len(times) == steps and times[0] == 0 and 1000 - times[-1] <= 1000 / steps + 1


def test_refusals() -> None:
    for wrong in ({"steps": 0}, {"repaints": 0}, {"eta": 1.5}):
        with pytest.raises(LimnerError, match=f"--{next(iter(wrong))} "):
            DDPMSampling(**wrong)
    with pytest.raises(LimnerError, match=r"ddpm.*video"):
        build(ImageSpec(3, 8, 8, frames=4))
    with pytest.raises(LimnerError, match=r"ddpm.*labels"):
        build(condition="label")
    with pytest.raises(LimnerError, match=r"--model.steps 1 .*ddpm needs 2"):
        build(steps=1)
    assert build(PETS, condition="none").network.classes == 0
    assert build(PETS).network.classes == 2
    assert isinstance(DDPM.presets["paper"].model, DDPMConfig)
