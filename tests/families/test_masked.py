"""What only masked promises: what is hidden in training, the order of drawing, and repainting."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from limner import families
from limner.core import Batch, Condition, Draws, ImageSpec
from limner.families.masked import Masked

TINY = Masked.presets["tiny"].model
SPEC = ImageSpec(3, 16, 24, captions=True)


def build(spec: ImageSpec = SPEC, **settings: Any) -> Masked:
    torch.manual_seed(0)
    model = families.build("masked", replace(TINY, **settings), spec)
    assert isinstance(model, Masked)
    return model.eval()


def images(count: int, spec: ImageSpec = SPEC) -> Tensor:
    return torch.rand(count, *spec.shape, generator=torch.Generator().manual_seed(1)) * 2 - 1


class Watched:
    """The tokens that a model's network was called with, and its logits."""

    def __init__(self, model: Masked):
        self.calls: list[Tensor] = []
        self.logits: list[Tensor] = []
        forward = model.network.forward

        def watched(tokens: Tensor, rows: Any) -> Tensor:
            self.calls.append(tokens)
            self.logits.append(forward(tokens, rows))
            return self.logits[-1]

        model.network.forward = watched  # type: ignore[method-assign]


def test_the_loss_counts_hidden_tokens_alone_and_at_least_one_is_hidden() -> None:
    model = build(condition_dropout=0.0)
    watched, image = Watched(model), images(64)
    batch = Batch(image, Condition(64, text=["a"] * 64))
    loss = model.loss(batch)["tokens"]
    seen, logits = watched.calls[0], watched.logits[0]
    true, hidden = model.tokenizer.tokenise(image).flatten(1), seen == model.hidden
    assert torch.equal(seen[~hidden], true[~hidden]) and hidden.sum(1).min() >= 1
    assert 0.5 < hidden.float().mean() < 0.8, "2 / pi on average"
    log = logits.log_softmax(-1)
    one = 0.9 * log.gather(-1, true[..., None])[..., 0] + 0.1 * log.mean(-1)
    torch.testing.assert_close(loss, -one[hidden].mean())


@pytest.mark.parametrize("order", ["confidence", "halton"])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_each_call_keeps_what_is_known_and_the_last_leaves_none_hidden(order: str, guidance: float) -> None:
    model = build()
    watched = Watched(model)
    sampling = Masked.Sampling(order=order, guidance=guidance, steps=5)
    canvases = list(model.sample(Condition(3, text=["a", "b", ""]), sampling, Draws([0, 1, 2])))
    calls = [tokens[:3] for tokens in watched.calls]  # guidance asks for the same tokens again, without text
    assert [(c.done, c.total) for c in canvases] == [(i, 5) for i in range(1, 6)] and len(calls) == 5
    left = [(tokens == model.hidden).sum(1).tolist() for tokens in calls]
    assert left == [[24] * 3, *[[math.floor(24 * math.cos(math.pi * k / 10))] * 3 for k in range(1, 5)]]
    for before, after in pairwise(calls):
        known = before != model.hidden
        assert torch.equal(after[known], before[known])
    last = canvases[-1].picture.args[0]  # type: ignore[attr-defined]
    assert last.max() < model.tokenizer.codes and not canvases[-1].picture.args[1].any()  # type: ignore[attr-defined]
    assert canvases[0].picture().eq(0).any() and not canvases[0].preview().eq(0).all(1).any()


def test_without_noise_the_most_confident_tokens_are_kept() -> None:
    model = build()
    watched = Watched(model)
    options = {"order": "confidence", "choice_temperature": 0.0, "temperature": 0.0, "guidance": 1.0}
    list(model.sample(Condition(1, text=["a"]), Masked.Sampling(**options), Draws([0])))
    confidence = watched.logits[0].log_softmax(-1).amax(-1)[0]
    kept = watched.calls[1][0] != model.hidden
    assert confidence[kept].min() >= confidence[~kept].max()


def test_haltons_order_is_followed() -> None:
    model = build()
    watched = Watched(model)
    list(model.sample(Condition(1, text=["a"]), Masked.Sampling(order="halton", guidance=1.0), Draws([0])))
    kept = (watched.calls[1][0] != model.hidden).nonzero().flatten()
    assert set(kept.tolist()) == set(model.order[: len(kept)].tolist())


@pytest.mark.parametrize("order", ["confidence", "halton"])
def test_an_image_has_the_same_tokens_alone_and_beside_others(order: str) -> None:
    model = build().double()
    texts, sampling = ["one", "another and longer", ""], Masked.Sampling(order=order)

    def tokens(rows: slice) -> Tensor:
        canvases = list(model.sample(Condition(3, text=texts)[rows], sampling, Draws([5, 6, 7][rows])))
        return canvases[-1].picture.args[0]  # type: ignore[attr-defined, no-any-return]

    together = tokens(slice(None))
    for i in range(3):
        assert torch.equal(tokens(slice(i, i + 1))[0], together[i])


def test_in_double_precision_an_image_may_be_given() -> None:
    model, image = build().double(), images(1).double()
    condition = Condition(1, text=["one"], image=image, mask=torch.ones(1, 1, 16, 24))
    assert list(model.sample(condition, Masked.Sampling(), Draws([0])))[-1].picture().shape == image.shape


def test_outside_the_mask_a_repainted_image_keeps_its_pixels_and_tokens() -> None:
    model = build()
    watched, image = Watched(model), images(2)
    mask = torch.zeros(2, 1, 16, 24)
    mask[0, :, 3:9, 5:11] = 1  # parts of cells count as a whole
    mask[1, :, :, 23:] = 1
    condition = Condition(2, text=["a", "b"], image=image, mask=mask)
    canvases = list(model.sample(condition, Masked.Sampling(guidance=1.0), Draws([0, 1])))
    for canvas in canvases:
        outside = (mask == 0).expand_as(image)
        assert torch.equal(canvas.picture()[outside], image[outside])
        assert torch.equal(canvas.preview()[outside], image[outside])
    assert not torch.equal(canvases[-1].picture(), image)
    cells = (watched.calls[0] == model.hidden).unflatten(1, (4, 6))
    wanted = torch.zeros(2, 4, 6, dtype=torch.bool)
    wanted[0, 0:3, 1:3] = True
    wanted[1, :, 5] = True
    assert torch.equal(cells, wanted)
    true = model.tokenizer.tokenise(image)
    assert torch.equal(watched.calls[0].unflatten(1, (4, 6))[~wanted], true[~wanted])


def test_an_empty_mask_changes_nothing() -> None:
    model, image = build(), images(1)
    condition = Condition(1, text=["a"], image=image, mask=torch.zeros(1, 1, 16, 24))
    assert torch.equal(list(model.sample(condition, Masked.Sampling(), Draws([0])))[-1].picture(), image)


@pytest.mark.parametrize(("strength", "count"), [(1.0, 24), (0.5, 12), (0.001, 1)])
def test_strength_says_how_many_tokens_are_drawn_anew(strength: float, count: int) -> None:
    model = build()
    watched = Watched(model)
    condition = Condition(2, text=["a", "b"], image=images(2))
    list(model.sample(condition, Masked.Sampling(strength=strength, guidance=1.0), Draws([0, 1])))
    hidden = watched.calls[0] == model.hidden
    assert hidden.sum(1).tolist() == [count, count]
    assert count in (1, 24) or not torch.equal(hidden[0], hidden[1])


def test_classes_are_a_condition_as_well_as_text() -> None:
    """And with TiTok's settings the network has its numbers."""
    spec = ImageSpec(3, 16, 16, classes=("cat", "dog"))
    model = build(spec)
    assert model.follows >= {"label"} and "text" not in model.follows
    rows = model.embed(Condition(2, label=torch.tensor([1, 0])))
    assert rows.tokens is None and torch.equal(rows.embedding, model.network.embedder.label.weight[[1, 0]])
    paper = Masked.presets["paper"].model
    titok = replace(paper, tokenizer=replace(paper.tokenizer, codes=4096))
    with torch.device("meta"):
        large = families.build("masked", titok, ImageSpec(3, 64, 128, classes=tuple(map(str, range(1000)))))
    assert large.tokenizer.grid == (4, 8)
    assert sum(p.numel() for p in large.network.parameters()) == 177_202_432
