"""Tokenizers: published numbers, ramps, what each kind trains, and what other families stand on."""

import dataclasses
import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import limner
from limner.config import preset_run
from limner.core import Autoencodes, Batch, Condition, ImageSpec, LimnerError, Tokenises
from limner.data import open_data
from limner.distributed import ALONE
from limner.families._tokens import DVAE, TOKENIZER, ConfiguredTokenizer, TokensConfig
from limner.families.autoencoder import Autoencoder
from limner.families.tokens import Tokens
from limner.losses.tokens import dvae_loss, kl_uniform, logit_laplace, ramp
from limner.training.follows import refuse_collapsed
from limner.training.journal import read_log
from limner.training.loop import Loop
from tests.helpers import golden, paint

TINY = Tokens.presets["tiny"].model
SPEC = ImageSpec(3, 16, 16)
KINDS = ["vqvae", "vqgan", "dvae", "fsq"]


def model(spec: ImageSpec = SPEC, **changes) -> Tokens:
    torch.manual_seed(0)
    return Tokens(dataclasses.replace(TINY, **changes), spec)


def batch(spec: ImageSpec = SPEC, size: int = 8) -> Batch:
    torch.manual_seed(1)
    coarse = torch.rand(size, spec.channels, 4, 4) * 2 - 1
    image = nn.functional.interpolate(coarse, (spec.height, spec.width), mode="bilinear")
    return Batch(image, Condition(size))


def trained(one: Tokens, steps: int, shown: Batch, first: int = 0, lr: float = 3e-3) -> Tokens:
    """As the loop does it, with Adam."""
    objective = one.objectives()[0]
    optimiser = torch.optim.Adam(one.tokenizer.parameters(), lr)
    for step in range(first, first + steps):
        one.advance(step * len(shown.image))
        torch.manual_seed(step)
        optimiser.zero_grad()
        objective.total(objective.loss(shown)).backward()
        optimiser.step()
    return one


# ---- published numbers


def test_the_terms_of_a_discrete_autoencoder_agree():
    inputs, expected = golden("dvae_loss")
    kl = kl_uniform(inputs["code_probabilities"].log())
    assert_close(kl, expected["kl_by_place"], rtol=1e-9, atol=1e-9)
    terms = dvae_loss(inputs["pixel_nll"], kl, inputs["kl_weight"])
    assert float(terms["pixels"]) == pytest.approx(expected["pixels"], rel=1e-9)
    assert float(terms["kl"]) == pytest.approx(expected["kl"], rel=1e-9)
    assert float(sum(terms.values())) == pytest.approx(expected["loss"], rel=1e-9)
    whole = dvae_loss(torch.zeros(2, 3, 256, 256), torch.ones(2, 32, 32), 6.6)
    assert float(whole["kl"]) == pytest.approx(expected["weight_of_mean_kl_256"], rel=1e-6)


@pytest.mark.parametrize(("mu", "b"), [(0.4, 0.7), (-1.0, 0.2), (0.0, 1.5)])
def test_the_density_of_pixels_integrates_to_one(mu, b):
    edges = torch.linspace(-30, 30, 400_001, dtype=torch.float64)  # of the logit
    x = torch.sigmoid(edges)
    middle = torch.sigmoid((edges[1:] + edges[:-1]) / 2)
    loss = logit_laplace(torch.tensor(mu).double(), torch.tensor(math.log(b)).double(), middle)
    assert float((torch.exp(-loss) * x.diff()).sum()) == pytest.approx(1, abs=1e-5)


def test_the_ramps_agree():
    inputs, expected = golden("dvae_schedules")
    assert (DVAE.kl, DVAE.coldest, DVAE.slowest) == (6.6, 1 / 16, 1.25e-6 / 1e-4)
    for i, update in enumerate(inputs["updates"].int().tolist()):
        seen = 512 * update
        values = {
            "kl_weight": ramp(seen, DVAE.kl_ramp, 0.0, DVAE.kl),
            "temperature": ramp(seen, DVAE.temperature_ramp, 1.0, DVAE.coldest),
            "learning_rate": 1e-4 * ramp(seen, DVAE.rate_ramp, 1.0, DVAE.slowest),
        }
        for name, value in values.items():
            assert value == pytest.approx(float(expected[name][i]), rel=1e-9, abs=1e-12), (name, update)


def test_the_model_is_where_the_ramps_say():
    one = model(kind="dvae", kl_ramp=100, temperature_ramp=200, rate_ramp=400)
    rate = one.objectives()[0].rate
    one.advance(0)
    assert (one.kl_weight, one.temperature, rate()) == (0, 1, 1)
    one.advance(100)
    assert float(one.kl_weight) == pytest.approx(6.6) and float(one.temperature) == pytest.approx(17 / 32)
    one.advance(10_000)
    assert float(one.temperature) == 1 / 16 and rate() == pytest.approx(1 / 80)
    constant = model()
    constant.advance(10_000)
    assert constant.objectives()[0].rate() == 1


# ---- every kind


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize(("height", "width"), [(16, 16), (10, 23)])
def test_any_channels_and_sides(kind, channels, height, width):
    spec = ImageSpec(channels, height, width)
    one, shown = model(spec, kind=kind), batch(spec)
    tokens = one.tokenise(shown.image)
    assert one.tokenizer.grid == (-(-height // 4), -(-width // 4))
    assert tokens.shape == (8, *one.tokenizer.grid) and tokens.dtype == torch.int64
    assert tokens.min() >= 0 and tokens.max() < one.codes == len(one.codebook())
    assert one.detokenise(tokens).shape == shown.image.shape and one.detokenise(tokens).abs().max() <= 1
    for objective in one.objectives():
        loss = objective.total(objective.loss(shown))
        assert loss.isfinite()
        loss.backward()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_learns_to_give_back_its_pictures(kind):
    halvings = {"patch": 1, "multiples": (1, 2, 2)} if kind == "dvae" else {}
    one = model(kind=kind, width=16, temperature_ramp=1200, kl=0.0, codes=32, adversarial=0.0, **halvings)
    shown = batch()

    def error() -> float:
        one.eval()
        with torch.no_grad():
            found = (one.decode(one.encode(shown.image)) - shown.image).abs().mean()
        one.train()
        return float(found)

    trained(one, 1, shown)
    before = error()
    trained(one, 200, shown, first=1, lr=1e-2)
    assert error() < 0.75 * before


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_has_the_same_tokens_alone_and_in_a_batch(kind):
    one, shown = trained(model(kind=kind), 3, batch()).eval(), batch()
    tokens = one.tokenise(shown.image)
    assert isinstance(one, Tokenises) and isinstance(one, Autoencodes)
    for i in (0, 5):
        assert torch.equal(one.encode(shown.image[i : i + 1])[0], tokens[i])


@pytest.mark.parametrize("kind", KINDS)
def test_codes_in_use_are_counted_in_training_alone(kind):
    one, shown = model(kind=kind), batch()
    with torch.no_grad():
        one.eval().tokenizer_loss(shown)
        assert not one.use.uses.any()
        one.train().tokenizer_loss(shown)
    assert one.use.uses.sum() == shown.image.shape[0] * math.prod(one.tokenizer.grid)
    one.advance(8)
    terms = one.tokenizer_loss(shown)
    assert terms["codes_used"] == (one.use.recent > 0).sum() > 1
    assert 1 < terms["perplexity"] <= terms["codes_used"]
    objective = one.objectives()[0]
    assert objective.total(terms) < terms["codes_used"] + terms["perplexity"], "they are shown, not minimised"


def test_moving_averages_follow_the_codes_and_a_copy_of_the_state_goes_on_alike():
    one, shown = model(kind="vqvae"), batch()
    trained(one, 4, shown)
    other = model(kind="vqvae")
    other.load_state_dict(one.state_dict())
    for each in (one, other):
        torch.manual_seed(9)
        each.advance(32)
        each.tokenizer_loss(shown)
        each.advance(40)
    assert all(
        torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    )
    book = one.tokenizer.network.codebook
    assert isinstance(book.entries, torch.Tensor) and not book.entries.requires_grad


def test_the_commitment_term_uses_the_entries_before_the_update():
    one, shown = trained(model(kind="vqvae"), 3, batch()), batch()
    one.advance(24)
    coded = one.tokenizer.network(shown.image)
    terms = one.tokenizer_loss(shown)
    assert_close(terms["commitment"], 0.25 * (coded.mean - coded.entry).square().mean(), rtol=0.05, atol=1e-6)


@pytest.mark.parametrize("kind", ["vqvae", "dvae", "fsq"])
def test_only_vqgan_has_a_discriminator(kind):
    one = model(kind=kind, adversarial_from=0)
    one.advance(100)
    assert "adversarial" not in one.tokenizer_loss(batch())
    assert one.discriminator_loss(batch())["adversarial"] == 0
    assert sum(p.numel() for p in one.discriminator.parameters()) < 200
    judged = model(kind="vqgan", adversarial_from=0)
    judged.advance(100)
    assert "adversarial" in judged.tokenizer_loss(batch())


def test_vqgan_is_the_autoencoder_of_kind_vq():
    """The same networks and the same losses, from the same weights."""
    one = model(kind="vqgan")
    shared = {
        f.name: getattr(TINY, f.name)
        for f in dataclasses.fields(Autoencoder.presets["tiny"].model)
        if hasattr(TINY, f.name)
    }
    other = Autoencoder(
        dataclasses.replace(Autoencoder.presets["tiny"].model, **{**shared, "kind": "vq", "kl": 1e-6}), SPEC
    )
    other.autoencoder.load_state_dict(one.tokenizer.network.state_dict())
    other.discriminator.load_state_dict(one.discriminator.state_dict())
    mine, its = one.tokenizer_loss(batch()), other.autoencoder_loss(batch())
    for name, value in its.items():
        assert_close(mine[name], value)
    assert_close(one.discriminator_loss(batch()), other.discriminator_loss(batch()))


# ---- what stands on tokens


def test_an_autoencoder_of_kind_vq_is_a_tokenizer_and_one_of_kind_kl_is_not():
    autoencoder = Autoencoder(dataclasses.replace(Autoencoder.presets["tiny"].model, kind="vq"), SPEC).eval()
    found = TOKENIZER.find(autoencoder)
    assert isinstance(found, Tokenises) and found.network is autoencoder.autoencoder
    own = ConfiguredTokenizer(found.config, SPEC).eval()
    own.load_state_dict(found.state_dict())
    image = batch().image
    tokens = own.tokenise(image)
    assert torch.equal(tokens, found.tokenise(image)) and own.grid == (4, 4) and own.codes == 16
    assert_close(own.detokenise(tokens), autoencoder.decode(autoencoder.encode(image)))
    assert TOKENIZER.find(Autoencoder(Autoencoder.presets["tiny"].model, SPEC)) is None


@pytest.mark.parametrize("kind", KINDS)
def test_a_frozen_copy_has_the_same_tokens_and_little_more_than_the_network(kind):
    one = trained(model(kind=kind), 2, batch()).eval()
    found = TOKENIZER.find(one)
    assert found is one.tokenizer and found.config == one.config
    own = ConfiguredTokenizer(found.config, SPEC).eval()
    own.load_state_dict(found.state_dict())
    assert torch.equal(own.tokenise(batch().image), one.tokenise(batch().image))
    buffers = sum(b.numel() for b in own.buffers())
    assert buffers <= own.codes * 4 + 16, "what only training needs stays behind"


def test_few_codes_in_use_are_said_in_words():
    one = model(kind="fsq", levels=(8, 8, 8))
    one.use.idle[:20] = 0
    assert one.remarks() == [
        "Only 20 of the 512 codes are in use, 3.9%: a codebook that has collapsed says little of an image; train "
        "longer, or lower --model.levels."
    ]
    one.use.uses[20:60] = 1  # of the last step, which the next would take in
    assert not one.remarks()
    one.use.uses.zero_()
    one.use.idle[:60] = 0
    assert not one.remarks()


def stands_on_tokens(**changes) -> Tokens:
    """A model of a family with a tokenizer as parent, which is not trained yet."""
    one = model(**changes)
    one.parents = {"tokens": TOKENIZER}  # type: ignore[misc]
    return one


def test_a_collapsed_tokenizer_is_refused_by_what_builds_on_it(tmp_path):
    data = open_data(str(paint(tmp_path, 20, (16, 16))), size=(16, 16), progress=False)
    one = stands_on_tokens(kind="dvae")
    refuse_collapsed(one, data)  # several codes
    with torch.no_grad():
        one.tokenizer.network.encoder.last.bias[3] = 1e4
    with pytest.raises(
        LimnerError, match=r"has collapsed: it gives all places of 20 images the same one of its 16"
    ):
        refuse_collapsed(one, data)


# ---- bad input


def test_small_images_are_refused():
    with pytest.raises(LimnerError, match=r"tokens needs images of at least 8x8 pixels, not 4x9: choose"):
        Tokens(TokensConfig(), ImageSpec(3, 4, 9))


# ---- training


def test_a_resumed_training_equals_an_unbroken_one(tmp_path):
    """With codes that are restarted in every step."""
    images, options = paint(tmp_path / "images", 24, (16, 16)), {"kind": "vqvae", "unused": 16, "codes": 64}
    for out, budgets in (("whole", ["64img"]), ("parts", ["24img", "64img"])):
        for budget in budgets:
            limner.train(
                "tokens", images, tmp_path / out, preset="tiny", budget=budget, resume=budget != budgets[0],
                quiet=True, model=options, training={"schedule": "constant"},
            )  # fmt: skip
    one, other = (limner.load(tmp_path / out).model.state_dict() for out in ("whole", "parts"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_log_has_the_codes_in_use_and_the_end_says_when_they_are_few(tmp_path, capsys):
    images = paint(tmp_path / "images", 24, (16, 16))
    limner.train(
        "tokens", images, tmp_path / "run", preset="tiny", budget="32img",
        model={"kind": "fsq", "levels": [10, 10, 10, 10]}, training={"log_every": 1},
    )  # fmt: skip
    lines = read_log(tmp_path / "run")
    last = [line for line in lines if "step" in line][-1]
    assert 1 <= last["tokenizer/perplexity"] <= last["tokenizer/codes_used"] <= 32 * 16
    remark = next(line["remark"] for line in lines if "remark" in line)
    assert remark.startswith("Only ") and "of the 10,000 codes are in use" in remark
    assert "of the 10,000 codes are in use" in " ".join(capsys.readouterr().err.split())


def test_a_rate_of_the_objective_is_a_factor_of_the_learning_rate(tmp_path):
    run = preset_run("tokens", "tiny")
    run = dataclasses.replace(
        run, model=dataclasses.replace(run.model, rate_ramp=16, slowest=0.25),
        training=dataclasses.replace(run.training, schedule="constant"),
    )  # fmt: skip
    data = open_data(str(paint(tmp_path, 8, (16, 16))), size=(16, 16), progress=False)
    loop = Loop(run, Tokens(run.model, data.spec), data, torch.device("cpu"), ALONE)
    peak, rates = loop.players[0].peaks[0], []
    for _ in range(3):  # of 8 images
        loop.take_step(0.5)
        rates.append(loop.optimisers["tokenizer"].param_groups[0]["lr"] / peak)
    assert rates == pytest.approx([1, 0.625, 0.25])
    assert loop.optimisers["discriminator"].param_groups[0]["lr"] == loop.players[1].peaks[0]
