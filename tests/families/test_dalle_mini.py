"""What only dalle_mini promises: super conditioning, what is never drawn, and one stream of random numbers an image."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from limner import families
from limner.core import Condition, Draws, ImageSpec, LimnerError
from limner.families._writing import TextReader
from limner.families.dalle_mini import DalleMini
from limner.networks.logits import guide
from limner.text.vocabulary import VocabularyConfig
from tests.helpers import golden

TINY = DalleMini.presets["tiny"].model
SPEC = ImageSpec(3, 16, 24, captions=True)


def build(**settings: object) -> DalleMini:
    torch.manual_seed(0)
    model = families.build("dalle_mini", replace(TINY, **settings), SPEC)
    assert isinstance(model, DalleMini)
    return model.eval()


def tokens_of(model: DalleMini, texts: list[str], seeds: list[int], **options: object) -> torch.Tensor:
    """[B, h w], those of the last canvas."""
    drawn: list[torch.Tensor] = []
    detokenise = model.tokenizer.detokenise
    sampling = DalleMini.Sampling(**options)
    canvas = list(model.sample(Condition(len(texts), text=texts), sampling, Draws(seeds)))[-1]
    model.tokenizer.detokenise = lambda tokens: (drawn.append(tokens), detokenise(tokens))[1]  # type: ignore[method-assign]
    canvas.picture()
    model.tokenizer.detokenise = detokenise  # type: ignore[method-assign]
    return drawn[-1].flatten(1)


def test_super_conditioning_matches_the_golden_numbers() -> None:
    given, expected = golden("super_conditioning")
    logits = guide(given["conditional"], given["unconditional"], given["scale"])
    torch.testing.assert_close(logits, expected["logits"], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(logits.softmax(-1), expected["probabilities"], rtol=1e-9, atol=1e-9)


def test_the_empty_text_is_its_start_and_end() -> None:
    reader = TextReader(VocabularyConfig("bytes", length=4))
    ids, mask = reader(["", "ab", "abcdef"])
    assert ids[0].tolist() == [257, 258, 256, 256, 256, 256] and mask[0].sum() == 2
    assert ids[1, 0] == 257 and mask.sum(1).tolist() == [2, 2 + len(reader.vocabulary.encode(["ab"])[0]), 6]
    assert ids[2, -1] == 258, "a text that is cut keeps its end"
    assert ids.max() < reader.rows and ids.shape[1] <= reader.positions


def test_the_start_of_an_image_and_rows_of_no_code_are_never_drawn() -> None:
    model = build(image_rows=24)
    with torch.no_grad():
        model.network.head.weight[16:] *= 100  # the likeliest half of the time
    tokens = tokens_of(model, ["a"] * 16, list(range(16)), temperature=5.0)
    assert tokens.shape == (16, 24) and int(tokens.max()) < model.tokenizer.codes == 16
    assert model.network.start == 23


@pytest.mark.parametrize("options", [{}, {"guidance": 1.0, "top_k": 3}, {"top_p": 0.5, "temperature": 0.7}])
def test_an_image_has_the_same_tokens_alone_and_beside_others(options: dict[str, float]) -> None:
    model = build().double()
    texts = ["one", "another and a longer one", "", "four"]
    together = tokens_of(model, texts, [3, 4, 5, 6], **options)
    for i, text in enumerate(texts):
        assert torch.equal(tokens_of(model, [text], [3 + i], **options)[0], together[i])
    assert len(together.unique(dim=0)) == 4


def test_temperature_zero_takes_the_most_probable_token() -> None:
    model = build().double()
    tokens = tokens_of(model, ["a", "a"], [1, 2], temperature=0.0, guidance=1.0)
    assert torch.equal(tokens[0], tokens[1])
    with torch.no_grad():
        logits = model.network(*model.reader(["a"]), tokens[:1])[..., :16]
    assert torch.equal(logits.argmax(-1)[0], tokens[0])


def test_there_is_a_canvas_after_each_row_and_what_is_not_drawn_is_grey() -> None:
    model = build()
    canvases = list(model.sample(Condition(2, text=["a", "b"]), DalleMini.Sampling(), Draws([0, 1])))
    assert [(c.done, c.total) for c in canvases] == [(i, 4) for i in range(1, 5)]
    for canvas in canvases:
        assert (canvas.picture()[:, :, 4 * canvas.done :] == 0).all()
    assert canvases[1].picture()[:, :, :8].abs().min() > 0


def test_what_does_not_fit_is_refused_in_a_sentence() -> None:
    with pytest.raises(LimnerError, match=r"--top-k 17 is above the 16 tokens of this run"):
        list(build().sample(Condition(1), DalleMini.Sampling(top_k=17), Draws([0])))
    with pytest.raises(LimnerError, match="dalle_mini cannot be built: 9 text_rows are fewer than the 259"):
        build(text_rows=9)
    with pytest.raises(LimnerError, match="never left its condition out in training"):
        list(build(condition_dropout=0.0).sample(Condition(1), DalleMini.Sampling(guidance=2.0), Draws([0])))
