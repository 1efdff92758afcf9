"""What all families that draw tokens share: how they read, draw and refuse."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import limner
from limner import families
from limner.core import Batch, Condition, Draws, ImageSpec, LimnerError
from limner.data import open_data
from limner.families._tokens import ConfiguredTokenizer, TokensConfig
from limner.families._writing import picture_of_rows
from limner.fields import check
from limner.inference.pipeline import Pipeline
from limner.networks.logits import choose
from limner.networks.transformers.text_image import StreamLayout
from limner.text.vocabulary import VocabularyConfig
from limner.training.follows import refuse_collapsed
from limner.training.journal import read_log
from tests.helpers import paint

NAMES = ("dalle", "dalle_mini", "masked")
SPEC = ImageSpec(3, 16, 16, captions=True)


def build(name: str, spec: ImageSpec = SPEC, **settings: Any) -> Any:
    torch.manual_seed(0)
    return families.build(name, replace(families.load(name).presets["tiny"].model, **settings), spec).eval()


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_no_numbers_of_bf16_under_bf16(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss sees them as the last layer makes them."""
    model, seen = build(name), []
    module = __import__(families.load(name).__module__, fromlist=["x"])
    for where, loss in (("token_loss", lambda logits, targets: seen.append(logits) or logits.sum()),):
        if hasattr(module, where):
            monkeypatch.setattr(module, where, loss)
    if name == "masked":
        monkeypatch.setattr(
            module.F, "cross_entropy", lambda logits, *_, **__: seen.append(logits) or logits.sum()
        )
    for parameter in model.network.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    with torch.autocast("cpu", torch.bfloat16):
        model.loss(Batch(torch.rand(2, 3, 16, 16), Condition(2, text=["a", "b"])))
    assert seen and all(logits.dtype == torch.float32 for logits in seen)
    assert all((logits != logits.bfloat16().float()).any() for logits in seen)


@pytest.mark.parametrize("kind", ["vqvae", "vqgan", "dvae", "fsq"])
def test_a_picture_has_the_same_tokens_under_bf16(kind: Any) -> None:
    torch.manual_seed(0)
    network = ConfiguredTokenizer(
        TokensConfig(kind=kind, width=8, hidden=4, latent=4, codes=64, initial=8), ImageSpec(3, 16, 16)
    ).eval()
    image = torch.rand(8, 3, 16, 16) * 2 - 1
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(network.tokenise(image), network.float().tokenise(image))
        under = network.tokenise(image)
    assert torch.equal(under, network.tokenise(image))


@pytest.mark.parametrize("name", NAMES)
def test_guidance_without_a_condition_says_that_there_is_none(name: str) -> None:
    model = build(name, ImageSpec(1, 16, 16))
    assert model.Sampling().guidance_for(model) == 1
    with pytest.raises(
        LimnerError, match="follows neither prompts nor labels, so --guidance 3 has nothing to guide by"
    ):
        model.Sampling(guidance=3.0).fit(model)
    with pytest.raises(LimnerError, match="never left its condition out"):
        model.Sampling(guidance=3.0).fit(build(name, condition_dropout=0.0))


@pytest.mark.parametrize("name", [*NAMES, "flow", "edm", "ddpm"])
def test_no_more_than_all_conditions_are_left_out(name: str) -> None:
    with pytest.raises(LimnerError, match="condition-dropout"):
        check(replace(families.load(name).presets["tiny"].model, condition_dropout=1.5), "--model.")


@pytest.mark.parametrize("name", NAMES)
def test_they_do_not_draw_in_one_call(name: str) -> None:
    assert not families.describe(name).one_call


@pytest.mark.parametrize("name", ["dalle", "dalle_mini"])
def test_names_of_classes_are_learnt_as_captions_are(name: str) -> None:
    spec = ImageSpec(3, 16, 16, classes=("tabby cat", "tabby dog"))
    model = build(name, spec, vocabulary=VocabularyConfig(merges=16))
    model.learn_texts(())
    vocabulary = next(m for m in model.modules() if hasattr(m, "learnt"))
    assert vocabulary.learnt > 0


def test_a_text_of_one_piece_without_a_start_has_no_loss() -> None:
    spec = ImageSpec(3, 16, 16, classes=("cat", "dog"))
    model = build("dalle", spec, layout=StreamLayout(starts="none"), vocabulary=VocabularyConfig(length=1))
    terms = model.loss(Batch(torch.zeros(2, 3, 16, 16), Condition(2, label=torch.tensor([0, 1]))))
    assert set(terms) == {"image"} and terms["image"].isfinite()


def test_the_coldest_temperatures_take_the_most_probable() -> None:
    logits = torch.tensor([[1.0, 5.0, 2.0]]).expand(6, 3)
    assert choose(logits, Draws(range(6)), 1e-38).tolist() == [1] * 6


def test_rows_of_an_unfinished_picture_are_as_high_as_a_token() -> None:
    network = ConfiguredTokenizer(TokensConfig(width=8, hidden=4, latent=4), ImageSpec(3, 17, 23)).eval()
    assert network.cell == 4 and network.grid == (5, 6)
    with torch.no_grad():
        for rows, high in ((1, 4), (4, 16), (5, 17)):
            picture = picture_of_rows(network, torch.zeros(1, 6 * rows, dtype=torch.long))
            assert picture.shape == (1, 3, 17, 23)
            assert picture[0].abs().sum((0, 2)).count_nonzero() == high


def test_an_image_is_repainted_alike_beside_one_with_a_larger_mask() -> None:
    model = build("masked", ImageSpec(3, 24, 16, captions=True))
    image, mask = torch.rand(2, 3, 24, 16) * 2 - 1, torch.ones(2, 1, 24, 16)
    mask[0, :, 8:] = 0
    sampling = model.Sampling(choice_temperature=4.5)
    for seed in range(6):
        both = Condition(2, text=["a", "b"], image=image, mask=mask)
        together = list(model.sample(both, sampling, Draws([seed, 9])))[-1].picture()
        alone = list(model.sample(both[:1], sampling, Draws([seed])))[-1].picture()
        torch.testing.assert_close(together[:1], alone, atol=1e-5, rtol=0)


# ---- through runs


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return paint(tmp_path_factory.mktemp("images"), 24, (16, 16))


@pytest.fixture(scope="module")
def run(images: Any) -> Any:
    limner.train(
        "dalle", images, images.parent / "dalle", preset="tiny", budget="32img", quiet=True,
        training={"samples": 0},
    )  # fmt: skip
    return images.parent / "dalle"


def test_nothing_lies_between_the_tokens_of_two_seeds(run: Any) -> None:
    with pytest.raises(LimnerError, match="Runs of dalle draw tokens, and nothing lies between"):
        Pipeline(run).sample(3, between=(1, 2))


def test_settings_that_do_not_fit_are_refused_before_anything_is_written(run: Any) -> None:
    pipeline = Pipeline(run)
    with pytest.raises(LimnerError, match="--top-k 99999 is above"):
        pipeline.named_sampling({"top_k": 99999})
    assert pipeline.named_sampling({}).guidance == pipeline.model.Sampling().guidance_for(pipeline.model)


def test_a_tokenizer_is_looked_at_one_image_at_a_time(images: Any) -> None:
    model, data, sizes = build("dalle"), open_data(str(images), size=(16, 16), progress=False), []
    tokenise = model.tokenizer.tokenise
    model.tokenizer.tokenise = lambda image: (sizes.append(len(image)), tokenise(image))[1]
    refuse_collapsed(model, data)
    assert sizes and set(sizes) == {1}


def test_a_remark_of_an_earlier_end_is_dropped(images: Any) -> None:
    def train(budget: str, resume: bool) -> list[str]:
        limner.train(
            "tokens", images, images.parent / "tokens", preset="tiny", budget=budget, resume=resume, quiet=True,
            model={"kind": "fsq", "levels": [10, 10, 10, 10]}, training={"samples": 0},
        )  # fmt: skip
        return [line["remark"] for line in read_log(images.parent / "tokens") if "remark" in line]

    assert len(train("16img", False)) == 1
    assert len(train("32img", True)) == 1
