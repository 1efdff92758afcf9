"""What only dalle promises: its stream, counts, a cache that changes nothing, and an upper part that is given."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limner import families
from limner.core import Batch, Condition, Draws, ImageSpec, LimnerError
from limner.families.dalle import DALLE, PUBLISHED
from limner.networks.transformers.sequence import SequenceBlocks
from limner.networks.transformers.text_image import StreamLayout, TextImageTransformer, pad_texts
from limner.text.vocabulary import VocabularyConfig
from tests.helpers import GOLDENS, golden

TINY = DALLE.presets["tiny"].model
SPEC = ImageSpec(3, 16, 24, captions=True)
TEXTS = ["one", "another and a longer one", "", "four"]


def build(spec: ImageSpec = SPEC, **settings: Any) -> DALLE:
    """Its network in float64, with weights that make tokens differ."""
    torch.manual_seed(0)
    model = families.build("dalle", replace(TINY, **settings), spec)
    assert isinstance(model, DALLE)
    for name, parameter in model.network.named_parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.3 if "head" in name else 0.2)
    model.network.double()
    return model.eval()


def tokens_of(
    model: DALLE, texts: list[str], seeds: list[int], image: Tensor | None = None, **options: Any
) -> Tensor:
    """[B, h w], drawn."""
    condition = Condition(len(texts), text=texts, image=image)
    return list(model.write(condition, DALLE.Sampling(**options), Draws(seeds)))[-1]


# ---- the stream


def test_text_places_and_their_padding_tokens() -> None:
    given, expected = GOLDENS["dalle_layout"]["inputs"], GOLDENS["dalle_layout"]["expected"]
    places, pieces = given["text_length"], given["text_vocabulary"]
    text = pad_texts(given["texts"], places, pieces)
    assert text.tolist() == expected["text_tokens"] == expected["text_targets"]
    blocks = SequenceBlocks(width=8, depth=1, heads=2)
    network = TextImageTransformer(blocks, StreamLayout(), pieces, places, given["image_vocabulary"], (2, 2))
    assert (
        network.text_embedding is not None
        and network.text_embedding.num_embeddings == expected["text_embeddings"]
    )
    image = torch.tensor(given["codes"])
    stream = torch.cat([network.prefix(text), network.image(image[:, :-1])], dim=1)
    assert stream.shape[1] == expected["stream_length"]
    logits = network(text, image)
    assert (
        logits.text is not None and logits.text.shape == (2, places, 22) and logits.image.shape == (2, 4, 8)
    )
    row, column = network.image_positions
    of_zero = network.image(torch.zeros(1, 4, dtype=torch.long)) - network.image_embedding.weight[0]
    wanted = torch.stack([row[i] + column[j] for i, j in zip(*grid_of(expected), strict=True)])
    torch.testing.assert_close(of_zero[0], wanted)


def grid_of(expected: dict[str, Any]) -> tuple[list[int], list[int]]:
    return expected["image_rows"], expected["image_columns"]


@pytest.mark.parametrize("starts", ["both", "text", "none"])
@pytest.mark.parametrize("attention", ["full", "sparse"])
def test_a_token_is_predicted_from_what_stands_before_it_alone(starts: Any, attention: Any) -> None:
    """A token changes the logits of later ones, and neither its own nor those before it."""
    model = build(layout=StreamLayout(attention=attention, kernel=3, starts=starts, positions="each"))
    text, image = model.text_tokens(["abcd"]), torch.arange(24)[None] % 16
    before = model.network(text, image)
    places, count = text.shape[1] - (starts == "none"), image.shape[1]
    assert before.text is not None and before.text.shape[1] == places
    for target in range(places + count):
        one, other = text.clone(), image.clone()
        if target < places:
            one[:, text.shape[1] - places + target] = 7
        else:
            other[:, target - places] = 15 - other[:, target - places]
        after = model.network(one, other)
        moved = torch.cat(
            [(a - b).abs().amax((0, 2)) for a, b in zip(before, after, strict=True)]
        )  # [T + h w]
        assert not moved[: target + 1].any(), f"{target} is seen before it is drawn"
        assert target == places + count - 1 or moved[target + 1 :].any()


def test_loss_is_an_eighth_text_and_seven_eighths_image() -> None:
    given, expected = golden("dalle_loss")
    model = build()

    class Fixed(nn.Module):
        def forward(self, text: Tensor, image: Tensor) -> Any:
            return type("L", (), {"text": given["text_logits"], "image": given["image_logits"]})

    model.network = Fixed()  # type: ignore[assignment]
    model.text_tokens = lambda texts: given["text_targets"].long()  # type: ignore[method-assign]
    model.tokenizer.tokenise = lambda image: given["image_targets"].long()[:, None]  # type: ignore[method-assign]
    terms = model.loss(Batch(torch.zeros(2, 3, 16, 24), Condition(2, text=["a", "b"])))
    assert abs(float(terms["text"]) - expected["text"] / 8) < 1e-9
    assert abs(float(sum(terms.values())) - expected["loss"]) < 1e-9


def test_places_that_no_caption_reaches_are_left_out() -> None:
    captions = ["a b", "abc def"]
    model = build(vocabulary=VocabularyConfig("bytes", length=64))
    model.learn_texts(captions)
    longest = max(map(len, model.vocabulary.encode(captions))) + 8  # room for words that no caption has
    assert model.vocabulary.length == longest
    assert model.text_tokens(["a"]).shape == (1, longest)
    assert (
        model.vocabulary.limit == f"{longest} pieces"
        and model.vocabulary.read("abc def ghi jkl mno") != "abc def ghi jkl mno"
    )
    kept = build(all_positions=True)
    kept.learn_texts(captions)
    assert kept.vocabulary.length == TINY.vocabulary.length
    labelled = build(replace(SPEC, captions=False, classes=("cat", "a very long name indeed")))
    labelled.learn_texts(())
    assert labelled.vocabulary.length == TINY.vocabulary.length


# ---- counts


def count(
    blocks: SequenceBlocks, layout: StreamLayout, pieces: int, places: int, codes: int, side: int
) -> int:
    with torch.device("meta"):
        network = TextImageTransformer(blocks, layout, pieces, places, codes, (side, side))
    return sum(p.numel() for p in network.parameters())


def test_rudalle_by_config() -> None:
    blocks = SequenceBlocks(width=2048, depth=24, heads=16, norms="both")
    layout = StreamLayout(attention="sparse", starts="text", head_bias=True, head_norm=True)
    assert count(blocks, layout, 16_384, 128, 8192, 32) == 1_310_410_880


def test_matrices_of_the_twelve_billion() -> None:
    config = DALLE.presets["paper"].model
    with torch.device("meta"):
        model = families.build("dalle", config, ImageSpec(3, 256, 256, captions=True))
    matrices = sum(p.numel() for p in model.network.transformer.parameters() if p.dim() == 2)
    assert matrices == 12_092_178_432
    assert model.tokenizer.grid == (32, 32) and model.vocabulary.size == 16_384 and PUBLISHED.length == 256


# ---- drawing


@pytest.mark.parametrize("layout", [
    StreamLayout(attention="sparse", kernel=3), StreamLayout(),
    StreamLayout(starts="none", pads="one", positions="each", shared=True),
    StreamLayout(starts="text", head_bias=True, head_norm=True),
])  # fmt: skip
@pytest.mark.parametrize("options", [{}, {"guidance": 1.0, "top_k": 5}, {"top_p": 0.8, "temperature": 0.5}])
def test_the_cache_changes_no_token(layout: StreamLayout, options: dict[str, Any]) -> None:
    model = build(layout=layout)
    image = torch.rand(4, 3, 16, 24) * 2 - 1
    for keep in ({}, {"image": image, "keep": 0.4}):
        with_cache = tokens_of(model, TEXTS, [1, 2, 3, 4], **options, **keep)
        without = tokens_of(model, TEXTS, [1, 2, 3, 4], **options, **keep, cache=False)
        assert torch.equal(with_cache, without)
        assert len(with_cache.unique(dim=0)) == 4


def test_only_the_keys_that_are_seen_are_read() -> None:
    """A cache whose other keys are not numbers gives the same logits."""
    model = build(layout=StreamLayout(attention="sparse", kernel=3))
    network, image = model.network, torch.randint(16, (1, 20))
    text = model.text_tokens(["abc"])
    kept = network.caches(text)
    network.next_logits(text, image[:, :19], kept)
    wanted = network.next_logits(text, image)
    done = kept[0].length
    for cache, mask in zip(kept, network.masks(text.shape[1] + 2), strict=True):
        assert cache.kept is not None
        hidden = ~mask[done, :done]
        assert hidden.any() or cache is kept[-1]
        for part in cache.kept:
            part[:, :, :done][:, :, hidden] = torch.nan
    torch.testing.assert_close(network.next_logits(text, image, kept), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("options", [{}, {"guidance": 1.0, "top_k": 3}, {"top_p": 0.5, "temperature": 0.7}])
def test_an_image_has_the_same_tokens_alone_and_beside_others(options: dict[str, Any]) -> None:
    model = build()
    together = tokens_of(model, TEXTS, [3, 4, 5, 6], **options)
    for i, text in enumerate(TEXTS):
        assert torch.equal(tokens_of(model, [text], [3 + i], **options)[0], together[i])


def test_the_upper_part_of_a_picture_is_kept() -> None:
    model = build()
    image = torch.rand(2, 3, 16, 24) * 2 - 1
    tokens = model.tokenizer.tokenise(image).flatten(1)
    width = model.tokenizer.grid[1]
    for keep, rows in ((None, 2), (0.25, 1), (0.0, 0), (1.0, 4)):
        options = {} if keep is None else {"keep": keep}
        drawn = tokens_of(model, ["a", "a"], [0, 1], image=image, **options)
        assert torch.equal(drawn[:, : rows * width], tokens[:, : rows * width])
        assert (rows == 4) == torch.equal(drawn, tokens)
    with pytest.raises(LimnerError, match="--keep says how much of an --image is kept"):
        tokens_of(model, ["a"], [0], keep=0.5)


def test_a_canvas_after_each_row_of_tokens() -> None:
    model = build()
    canvases = list(model.sample(Condition(2, text=["a", "b"]), DALLE.Sampling(), Draws([0, 1])))
    assert [(c.done, c.total) for c in canvases] == [(row, 4) for row in range(1, 5)]
    for canvas in canvases:
        picture = canvas.picture()
        assert picture.shape == (2, 3, 16, 24) and picture.abs().max() <= 1
        assert not picture[:, :, 4 * canvas.done :].any()


def test_bad_values_are_refused_in_a_sentence() -> None:
    model = build()
    for options, says in (
        ({"top_k": 17}, "--top-k 17 is above the 16 tokens of this run: choose 1 to 16"),
        ({"top_k": 0}, "--top-k 0 is out of range: choose 1 or more"),
        ({"top_p": 0.0}, "--top-p 0.0 is out of range: choose above 0, up to 1"),
        ({"top_p": 1.5}, "--top-p 1.5 is out of range"),
        ({"temperature": -1.0}, "--temperature -1.0 is out of range"),
    ):
        with pytest.raises(LimnerError, match=says):
            tokens_of(model, ["a"], [0], **options)
    with pytest.raises(LimnerError, match="cannot draw with --guidance 3"):
        tokens_of(build(condition_dropout=0.0), ["a"], [0], guidance=3.0)
    greedy = tokens_of(model, ["a", "a"], [0, 1], temperature=0.0)
    assert torch.equal(greedy[0], greedy[1])
    with pytest.raises(LimnerError, match="starts cannot be none"):
        build(replace(SPEC, captions=False), layout=StreamLayout(starts="none"))
    with pytest.raises(LimnerError, match="a kernel of 4 is even"):
        build(layout=StreamLayout(kernel=4))


def test_guidance_is_off_for_the_papers_preset() -> None:
    model = build(condition_dropout=0.0)
    assert DALLE.Sampling().guidance_for(model) == 1
    assert DALLE.Sampling().guidance_for(build()) == DALLE.Sampling.usual_guidance > 1


def test_logits_are_in_float32_under_bf16() -> None:
    model = build()
    model.network.float()
    text, image = model.text_tokens(["ab"]), torch.zeros(1, 24, dtype=torch.long)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model.network(text, image)
    assert logits.text is not None and logits.text.dtype == logits.image.dtype == torch.float32


def test_without_captions_there_is_no_text() -> None:
    model = build(replace(SPEC, captions=False), vocabulary=VocabularyConfig("bytes"))
    assert model.text_tokens([""]).shape == (1, 0)
    terms = model.loss(Batch(torch.zeros(2, 3, 16, 24), Condition(2)))
    assert set(terms) == {"image"}
    assert list(model.write(Condition(2), DALLE.Sampling(), Draws([0, 1])))[-1].shape == (2, 24)
