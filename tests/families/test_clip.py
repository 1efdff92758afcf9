"""CLIP's counts, published numbers, and what is read of texts."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from limner import families
from limner.core import Batch, Compares, Condition, ImageSpec
from limner.data.sources import shapes
from limner.families._clip import B16, CLIP, L14, PUBLISHED, ClipConfig, end_of, frame, quick
from limner.families.clip import Clip
from limner.losses.contrastive import LARGEST, START, symmetric_cross_entropy
from limner.networks.transformers.towers import Patches
from limner.text.negatives import with_another_word
from limner.text.vocabulary import VocabularyConfig
from limner.training.optim import make_optimiser
from tests.helpers import golden

SMALLEST = replace(
    PUBLISHED, embedding=64, patches=Patches(8, embed="fold"), image=quick(64, 2, 1), text=quick(64, 2, 1),
    vocabulary=VocabularyConfig(kind="bytes", length=14),
)  # fmt: skip
TEXT = (
    "tower.body",
    "tower.embedding",
    "tower.norm",
    "projection",
)  # of the text tower, beside its positions
PUBLISHED_COUNTS = [
    (PUBLISHED, 224, 151_277_313, 87_849_216, (37_828_608, 25_296_896, 1_024, 262_144)),
    (B16, 224, 149_620_737, 86_192_640, (37_828_608, 25_296_896, 1_024, 262_144)),
    (L14, 224, 427_616_513, 303_966_208, (85_054_464, 37_945_344, 1_536, 589_824)),
    (SMALLEST, 32, 239_489, 117_760, (99_968, 16_512, 128, 4_096)),
]


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(("config", "size", "total", "image", "text"), PUBLISHED_COUNTS)
def test_has_the_published_parameters(config, size, total, image, text):
    with torch.device("meta"):
        model = families.build("clip", config, ImageSpec(3, size, size, captions=True))
    network = model.comparer
    assert (count(model), count(network.image)) == (total, image)
    assert tuple(count(network.text.get_submodule(name)) for name in TEXT) == text
    assert network.text.tower.position.numel() == total - image - sum(text) - 1
    assert isinstance(model, Compares) and CLIP.find(model) is network


def build(config: ClipConfig = Clip.presets["tiny"].model, **spec) -> Clip:
    torch.manual_seed(0)
    return families.build("clip", config, ImageSpec(3, 16, 16, captions=True, **spec)).eval()


def test_the_scale_starts_and_ends_as_published():
    given, expected = golden("clip_scale")
    assert math.isclose(START, expected["start_log"]) and math.isclose(math.exp(START), expected["start"])
    assert build().scale == pytest.approx(expected["start"])
    model = build().double()
    for step, clamped in zip(given["steps"].tolist(), expected["clamped"].tolist(), strict=True):
        model.comparer.log_scale.data.fill_(step)
        assert math.isclose(model.scale, math.exp(clamped)), "what draws and measures never sees more"
        model.advance(8)
        assert float(model.comparer.log_scale.detach()) == pytest.approx(clamped, abs=1e-9)
    assert math.log(100) == LARGEST


@pytest.mark.parametrize("name", ["adamw", "sgd", "muon"])
def test_weight_decay_leaves_the_scale_the_biases_and_the_norms(name):
    network = build().comparer
    settings = replace(Clip.presets["tiny"].training.optimisers["comparer"], name=name, decay=0.5, lr=0.1)
    optimiser, before = (
        make_optimiser(network, settings),
        {n: p.clone() for n, p in network.named_parameters()},
    )
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step()
    for n, parameter in network.named_parameters():
        moved = not torch.equal(parameter, before[n])
        assert moved == (parameter.ndim >= 2 and bool(before[n].any())), n


def test_a_text_is_read_at_its_end_and_keeps_it_when_it_is_cut():
    given, expected = golden("clip_text_place")
    start, end, length = (given[name] for name in ("start", "end", "length"))
    assert end_of(given["ids"]).tolist() == expected["place"].tolist()
    assert frame([given["long"].tolist()[1:-1]], start, end, length).tolist() == [expected["cut"].tolist()]
    assert frame([[3, 4], [7, 2, 5, 6], []], start, end, length).tolist() == given["ids"].tolist()
    text = build().comparer.text
    long, end = "very " * 40, text.end
    assert text.pieces([long, ""])[:, -1].tolist() == [end, 0] and text.pieces([long]).shape[1] == text.length
    assert text.pieces([text.read(long)]).tolist() == text.pieces([long]).tolist()


def test_a_text_is_the_same_alone_and_in_a_batch():
    """Attention is causal, so nothing after the end, of which longer texts have more, is seen."""
    model = build().double()
    texts = ["a", "a red circle above a blue square", "一只猫", ""]
    with torch.no_grad():
        together = model.embed_texts(texts)
        for text, row in zip(texts, together, strict=True):
            torch.testing.assert_close(model.embed_texts([text])[0], row)
        encoded = model.comparer.encode_texts(texts)
    assert torch.equal(encoded.pooled, together)
    assert encoded.mask.sum(1).tolist() == [len(model.comparer.text.pieces([text])[0]) for text in texts]
    torch.testing.assert_close(together.norm(dim=1), torch.ones(4, dtype=together.dtype))


def test_the_loss_is_the_mean_of_both_cross_entropies():
    generator = torch.Generator().manual_seed(0)
    images, texts = (F.normalize(torch.randn(n, 4, generator=generator), dim=1) for n in (3, 5))
    scale = torch.tensor(7.0)
    logits = 7 * images @ texts.T
    by_text = logits[:, :3].log_softmax(0).diagonal().mean()
    expected = -(logits[:, :3].log_softmax(1).diagonal().mean() + by_text) / 2
    torch.testing.assert_close(symmetric_cross_entropy(images, texts[:3], scale), expected)
    expected = -(logits.log_softmax(1).diagonal().mean() + by_text) / 2
    torch.testing.assert_close(symmetric_cross_entropy(images, texts, scale), expected)


def test_the_same_caption_is_no_negative():
    images, texts = torch.eye(3), torch.eye(3)[[0, 0, 1]]
    alone = symmetric_cross_entropy(images[:2], texts[:2], torch.tensor(5.0), torch.tensor([1, 1]))
    assert float(alone) == 0, "each is the only candidate"
    model, image = build(), torch.rand(2, 3, 16, 16)
    assert float(model.loss(Batch(image, Condition(2, text=["a", "a"])))["contrast"].detach()) == 0


def test_hard_negatives_differ_in_one_word():
    captions = [scene.caption for scene in shapes.scenes(64, seed=0)]
    torch.manual_seed(0)
    for own, other in zip(captions, with_another_word(captions), strict=True):
        pairs = list(zip(own.split(), other.split(), strict=True))
        assert sum(one != two for one, two in pairs) == 1
    assert with_another_word(["一个红色圆形", "一个蓝色圆形"]) in (
        ["一个蓝色圆形", "一个红色圆形"], ["一个蓝色圆形", "一个蓝色圆形"], ["一个红色圆形", "一个红色圆形"],
        ["一个红色圆形", "一个蓝色圆形"],
    )  # fmt: skip
    assert with_another_word(["alone", "", "two words"]) == ["alone", "", "two words"]


def test_a_negative_that_says_what_an_image_shows_does_not_count():
    images, texts = torch.eye(2), torch.eye(2)[[0, 1, 0, 0]]
    groups = torch.tensor([5, 6, 5, 7])
    scale = torch.tensor(3.0)
    found = symmetric_cross_entropy(images, texts, scale, groups)
    expected = F.cross_entropy(
        3 * torch.tensor([[1.0, 0, 1], [0, 1, 0]]), torch.tensor([0, 1]), reduction="none"
    )
    second = F.cross_entropy(torch.tensor([[0.0, 3, 0, 0]]), torch.tensor([1]))
    plain = F.cross_entropy(3 * torch.eye(2), torch.tensor([0, 1]))
    torch.testing.assert_close(found, ((expected[0] + second) / 2 + plain) / 2)


def test_images_without_captions_are_refused():
    with pytest.raises(families.LimnerError, match=r"clip needs images with captions: put a \.txt"):
        families.build("clip", ClipConfig(), ImageSpec(3, 16, 16))
