"""Latent diffusion: the scale of latents, predictions, levels, conditions, pictures to start from."""

import dataclasses

import pytest
import torch
from torch.testing import assert_close

from limner import families
from limner.core import Batch, Condition, ConditionEmbedding, Draws, ImageSpec, LimnerError
from limner.diffusion.paths import STRAIGHT, noised
from limner.diffusion.sampling import Call, evaluate, shrink_mask
from limner.families.latent import DISCRETE, LatentDiffusion, LatentSampling, ddim_levels
from limner.networks.transformers.dit import DiTBlocks
from limner.text.encoder import TextConfig
from tests.helpers import golden

TINY = LatentDiffusion.presets["tiny"].model
SPEC = ImageSpec(3, 16, 16)
SMALL_BODY = DiTBlocks(patch=1, width=32, depth=2, heads=2)


def latent(spec: ImageSpec = SPEC, **changes) -> LatentDiffusion:
    """A tiny model that does not draw zeros: what is zero at the start is stirred."""
    torch.manual_seed(0)
    model = LatentDiffusion(dataclasses.replace(TINY, **changes), spec)
    for parameter in model.network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return model.eval()


def batch(size: int = 8, spec: ImageSpec = SPEC) -> Batch:
    torch.manual_seed(1)
    coarse = torch.rand(size, spec.channels, 4, 4) * 2 - 1
    image = torch.nn.functional.interpolate(coarse, (spec.height, spec.width), mode="bilinear")
    return Batch(image, Condition(size))


def draw(model: LatentDiffusion, condition: Condition, seeds, **knobs) -> torch.Tensor:
    *_, last = model.sample(condition, LatentSampling(**{"steps": 3, **knobs}), Draws(seeds))
    return last.picture()


# ---- the paper's numbers


def test_the_schedule_is_the_published_one():
    inputs, expected = golden("schedule_ldm_default")
    t = inputs["t"].long()
    assert_close(DISCRETE.betas[t], expected["betas"], rtol=1e-10, atol=1e-10)
    assert_close(DISCRETE.alphas_cumprod[t], expected["alphas_cumprod"], rtol=1e-10, atol=1e-10)


def test_ddim_takes_its_steps_one_later_and_ends_at_step_0():
    inputs, expected = golden("ddim_timesteps")
    levels = ddim_levels(int(inputs["S"]))
    assert [level.time for level in reversed(levels[:-1])] == expected["ldm_uniform"].int().tolist()
    assert (
        levels[-1].alpha ** 2 == pytest.approx(float(DISCRETE.alphas_cumprod[0])) and levels[-1].sigma > 0.03
    )
    assert len(ddim_levels(1000)) == 1001 and ddim_levels(5000)[0].time == 999
    assert ddim_levels(1)[0].time == 999, "from noise, in one step too"


def test_the_class_conditional_network_has_the_published_size():
    """ImageNet at 256x256: 400.92 million, with the class as a token that is looked at."""
    config = dataclasses.replace(
        LatentDiffusion.presets["paper"].model, width=192, multiples=(1, 2, 3, 5), text=TextConfig(width=512)
    )
    spec = ImageSpec(3, 256, 256, classes=tuple(map(str, range(1000))))
    with torch.device("meta"):
        network = LatentDiffusion(config, spec).network
    assert sum(p.numel() for p in network.body.parameters()) / 1e6 == pytest.approx(400.92, abs=0.01)
    assert network.embedder.label.weight.shape == (1001, 512)


# ---- latents


@pytest.mark.parametrize("channelwise", [True, False])
def test_the_first_batch_sets_the_scale_of_latents(channelwise):
    model, shown = latent(channelwise=channelwise), batch(32)
    raw = model.autoencoder.posterior(shown.image)[0]
    assert_close(
        model.training_latents(shown.image).mean(), raw.mean(), atol=0.05, rtol=0
    )  # not measured: as they are
    assert not model.latent_scale.any(), "measuring is for training"
    model.train()
    latents = model.training_latents(shown.image)
    if channelwise:
        assert_close(latents.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
        assert_close(latents.std((0, 2, 3)), torch.ones(3))
    else:
        assert_close(latents.std(), torch.tensor(1.0)) and not model.latent_mean.any()
        assert len(model.latent_scale.unique()) == 1
    before = model.latent_scale.clone()
    model.training_latents(3 * batch(8).image)
    assert torch.equal(model.latent_scale, before), "once for all"
    twin = latent(channelwise=channelwise)
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin.eval().encode(shown.image), model.eval().encode(shown.image)), "it is saved"


def test_encoding_and_decoding_are_the_autoencoders():
    model, image = latent(), batch().image
    model.train().training_latents(image)
    model.eval()
    raw = model.autoencoder.posterior(image)[0]
    assert not torch.allclose(model.encode(image), raw, atol=0.1)
    assert_close(model.decode(model.encode(image)), model.autoencoder.decode(raw).clamp(-1, 1))


def test_the_loss_moves_no_weight_of_the_autoencoder():
    model = latent().train()
    model.requires_grad_(True)
    model.loss(batch())["velocity"].backward()
    assert all(p.grad is None for p in model.autoencoder.parameters())
    assert any(p.grad is not None for p in model.network.parameters())


# ---- what is predicted


@pytest.mark.parametrize("predict", ["noise", "velocity", "data"])
def test_whatever_is_predicted_a_perfect_network_finds_the_code(predict, monkeypatch):
    model = latent(predict=predict)
    data, noise = torch.randn(2, 4, 3, 4, 4).unbind(0)
    path = DISCRETE if predict == "noise" else STRAIGHT
    level = DISCRETE.level(400) if predict == "noise" else STRAIGHT.at(0.7)
    target = {"noise": noise, "velocity": data - noise, "data": data}[predict]
    heard = []

    def perfect(x, t, told):
        heard.append(t)
        return target

    monkeypatch.setattr(model.network, "forward", perfect)
    x = level.alpha * data + level.sigma * noise
    (guess,) = evaluate([Call(model, x, level, ConditionEmbedding())])
    assert_close(guess.data, data, atol=1e-5, rtol=1e-5)
    assert_close(heard[0], torch.full((4,), 0.4 if predict == "noise" else level.time))
    assert model.path == path


@pytest.mark.parametrize("predict", ["noise", "velocity", "data"])
def test_the_loss_of_a_perfect_network_is_zero(predict, monkeypatch):
    model, shown = latent(predict=predict), batch()
    path = DISCRETE if predict == "noise" else STRAIGHT
    data = model.encode(shown.image)
    monkeypatch.setattr(model, "training_latents", lambda image: data)

    def perfect(x, t, told):
        t = (t * 1000).round().long() if predict == "noise" else t
        zero, one = torch.zeros_like(x), torch.ones_like(x)
        alpha, sigma = noised(path, one, zero, t), noised(path, zero, one, t)
        noise = (x - alpha * data) / sigma
        return {"noise": noise, "velocity": data - noise, "data": data}[predict]

    monkeypatch.setattr(model.network, "forward", perfect)
    (loss,) = model.objectives()[0].loss(shown).values()
    assert loss < 1e-6
    monkeypatch.setattr(model.network, "forward", lambda x, t, told: torch.zeros_like(x))
    (loss,) = model.objectives()[0].loss(shown).values()
    assert loss > 0.1


def test_latents_are_not_clipped_and_the_picture_is(monkeypatch):
    model = latent()
    monkeypatch.setattr(model.network, "forward", lambda x, t, told: torch.full_like(x, 5.0))
    canvases = list(model.sample(Condition(2), LatentSampling(steps=3, solver="euler"), Draws([0, 1])))
    far = model.autoencoder.decode(torch.full((2, 3, 4, 4), 5.0))
    assert_close(canvases[-1].picture(), far.clamp(-1, 1), atol=1e-4, rtol=0)
    monkeypatch.setattr(model.autoencoder, "decode", lambda code: code)
    assert canvases[-1].picture().max() == 1


@pytest.mark.parametrize("predict", ["noise", "velocity", "data"])
@pytest.mark.parametrize(
    "solver", ["ancestral", "ddim", "euler", "heun", "dpm2m", "dpm2m_sde", "dpm3m", "unipc"]
)
def test_every_solver_draws(predict, solver):
    drawn = draw(latent(predict=predict), Condition(2), [0, 1], solver=solver, eta=0.5, steps=4)
    assert drawn.shape == (2, 3, 16, 16) and drawn.isfinite().all() and drawn.abs().max() <= 1
    assert not torch.allclose(drawn[0], drawn[1])


# ---- conditions

NETWORKS = {
    "quick": {},
    "ldm": {"network": "ldm", "width": 16, "attention_resolutions": (4,), "multiples": (1, 2)},
    "dit": {"network": "dit", "body": SMALL_BODY},
}


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("condition", ["none", "label", "text"])
def test_each_network_with_each_condition(network, condition):
    spec = dataclasses.replace(SPEC, classes=("cat", "dog"), captions=True)
    model = latent(spec, condition=condition, **NETWORKS[network])
    shown = Batch(batch().image, Condition(8, torch.arange(8) % 2, ["a cat", "two dogs"] * 4))
    loss = model.objectives()[0].loss(shown)["velocity"]
    loss.backward()
    assert loss.isfinite() and all(p.grad is not None for p in model.network.body.parameters())
    asked = {
        "none": [Condition(1), Condition(1)],
        "label": [Condition(1, torch.tensor([i])) for i in (0, 1)],
        "text": [Condition(1, text=[word]) for word in ("cat", "dog")],
    }[condition]
    one, other, nothing = (draw(model, c, [5]) for c in (*asked, Condition(1)))
    same = torch.allclose(one, other, atol=1e-5)
    assert same == (condition == "none") and torch.allclose(one, nothing, atol=1e-5) == (condition == "none")
    together = draw(model, Condition(2, torch.tensor([0, 1]), ["cat", "dog"]), [5, 6])
    assert_close(together[:1], one, atol=1e-4, rtol=0)


@pytest.mark.parametrize("network", NETWORKS)
def test_dropping_the_condition_is_having_none(network):
    spec = dataclasses.replace(SPEC, classes=("cat", "dog"))
    model = latent(spec, **NETWORKS[network])
    x, t = torch.randn(2, *model.shape), torch.tensor([0.3, 0.8])
    labels = Condition(2, torch.tensor([0, 1]))
    dropped = model.network.embedder(labels, keep=torch.zeros(2, dtype=torch.bool))
    assert_close(model.network(x, t, dropped), model.network(x, t, model.network.embedder(Condition(2))))


def test_guidance_doubles_the_rows_of_a_call():
    model = latent(dataclasses.replace(SPEC, classes=("cat", "dog")))
    rows = []
    model.network.register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
    labels = Condition(2, torch.tensor([0, 1]))
    draw(model, labels, [1, 2], guidance=1.0)
    draw(model, labels, [1, 2], guidance=3.0)
    assert rows == [2, 2, 2] + [4, 4, 4]


@pytest.mark.parametrize("network", NETWORKS)
def test_times_are_told_apart(network):
    model = latent(**NETWORKS[network])
    x = torch.randn(1, *model.shape).expand(3, -1, -1, -1)
    out = model.network(x, torch.tensor([0.1, 0.5, 0.9]), ConditionEmbedding())
    assert min((out[0] - out[1]).std(), (out[1] - out[2]).std()) > 1e-4


# ---- pictures to start from


def test_a_little_noise_gives_the_picture_back_nearly(monkeypatch):
    """With a network that always guesses the picture's own code."""
    model, image = latent(), batch(2).image
    monkeypatch.setattr(model.network, "forward", lambda x, t, told: model.encode(image))
    asked = Condition(2, image=image)
    assert_close(
        draw(model, asked, [0, 1], strength=0.3), model.decode(model.encode(image)), atol=1e-3, rtol=0
    )


def test_only_what_is_masked_is_drawn_anew():
    model, image = latent(), batch(2).image
    mask = torch.zeros(2, 1, 16, 16)
    mask[..., :8] = 1
    drawn = draw(model, Condition(2, image=image, mask=mask), [0, 1])
    assert torch.equal(drawn[..., 8:], image[..., 8:])
    other = draw(model, Condition(2, image=image, mask=mask), [2, 3])
    assert not torch.allclose(drawn[..., :8], other[..., :8], atol=1e-3)


def test_a_masked_pixel_marks_the_code_that_it_lies_in():
    """Where sides do not divide by a code's places, the last places reach beyond the image."""
    mask = torch.zeros(1, 1, 30, 30)
    mask[..., 3, 27] = 1
    assert shrink_mask(mask, (8, 8), 4).gt(0).nonzero().tolist() == [[0, 0, 0, 6]]
    mask[..., 3, 29] = 1  # the last column, repeated
    assert shrink_mask(mask, (8, 8), 4).gt(0).nonzero().tolist() == [[0, 0, 0, 6], [0, 0, 0, 7]]
    assert torch.equal(shrink_mask(mask, (30, 30), 1), mask)
    row = torch.zeros(1, 1, 9, 9)
    row[..., 3, :] = 1  # of three places of 4 pixels that cover 9: the first
    assert shrink_mask(row, (3, 3), 4)[0, 0, :, 0].gt(0).tolist() == [True, False, False]


# ---- what it refuses


def test_what_it_refuses():
    with pytest.raises(LimnerError, match=r"latent .* 8x8"):
        latent(ImageSpec(3, 7, 20))
    with pytest.raises(LimnerError, match=r"latent .* video"):
        latent(ImageSpec(3, 16, 16, frames=4))
    for condition in ("label", "text"):
        with pytest.raises(LimnerError, match=f"latent .*condition {condition}"):
            latent(condition=condition)
    with pytest.raises(LimnerError, match=r"latent cannot be built.*--model"):
        config = dataclasses.replace(TINY, network="dit", body=DiTBlocks(width=30, heads=4))
        families.build("latent", config, SPEC)
    model, another, scaled = latent(), latent(), latent()
    another.autoencoder.decoder.last.bias.data += 1
    scaled.latent_scale += 1
    for other in (latent(predict="noise"), another, scaled):
        with pytest.raises(LimnerError, match="same noise schedule and the same autoencoder"):
            list(model.sample(Condition(1), LatentSampling(steps=2, autoguidance=other), Draws([0])))
    list(model.sample(Condition(1), LatentSampling(steps=2, autoguidance=latent()), Draws([0])))


def test_some_latent_channels_may_go_unguided(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the code of Peebles 2023 draws: of four channels the last follows the condition as it was trained to."""
    model = latent(dataclasses.replace(SPEC, classes=("a", "b")))
    monkeypatch.setattr(model, "decode", lambda code: code / 100)  # far from the ends of an image's range
    one = Condition(1, label=torch.tensor([0]))
    step = {"steps": 1, "solver": "euler"}
    plain, led, part = (
        draw(model, one, [0], **step, **knobs)
        for knobs in ({"guidance": 1.0}, {"guidance": 3.0}, {"guidance": 3.0, "guided_channels": 2})
    )
    assert (led - plain).abs().amin() > 0
    assert_close(part[:, :2], led[:, :2])
    assert_close(part[:, 2:], plain[:, 2:])
