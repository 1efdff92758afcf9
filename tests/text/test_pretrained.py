"""Frozen text encoders of transformers: tiny random ones, saved to a folder."""

from __future__ import annotations

import shutil
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from limner import api, checkpoint
from limner.core import LimnerError
from limner.text.encoder import TextConfig, TextEncoder, encoder_of, unread
from limner.text.pretrained import PretrainedEncoder, settle, text_encoder
from tests.training.test_follows import described

transformers = pytest.importorskip("transformers")
WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "a",
    "red",
    "blue",
    "circle",
    "thing",
    "red circle",
    *map(str, range(20)),
]
SMALL = {"num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": len(WORDS)}


def clip():
    text = transformers.CLIPTextConfig(
        hidden_size=16,
        intermediate_size=16,
        max_position_embeddings=9,
        eos_token_id=3,
        pad_token_id=0,
        **SMALL,
    )
    vision = transformers.CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
    )
    both = transformers.CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict())
    network = transformers.CLIPModel(both)
    return network, network.text_model


def t5():
    config = transformers.T5Config(
        d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, vocab_size=len(WORDS)
    )
    network = transformers.T5ForConditionalGeneration(config)
    return network, network.get_encoder()


def bert():
    config = transformers.BertConfig(
        hidden_size=16, intermediate_size=16, max_position_embeddings=40, **SMALL
    )
    network = transformers.BertModel(config)
    return network, network


def saved(folder: Path, make) -> tuple[Path, torch.nn.Module]:
    """The folder of a random network with a tokenizer, and the part of it that reads texts."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    torch.manual_seed(1)
    whole, text = make()
    whole.save_pretrained(folder)
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", eos_token="[SEP]"
    ).save_pretrained(folder)
    return folder, text.eval()


@pytest.mark.parametrize("make", [clip, t5, bert])
def test_an_encoder_gives_what_the_pretrained_network_gives(make, tmp_path):
    folder, text = saved(tmp_path / "encoder", make)
    config = settle(TextConfig(width=24, length=8, pretrained=str(folder)))
    encoder = text_encoder(config)
    assert isinstance(encoder, PretrainedEncoder) and isinstance(encoder, TextEncoder)
    encoder.learn(())
    shutil.rmtree(folder)
    pieces = encoder.pieces(["a red circle", "", "one 红 \ud800"])
    assert pieces[0, :, 0].tolist() == [2, 4, 5, 7, 3] and pieces[:, :, 1].sum(1).tolist() == [5, 2, 5]
    with torch.no_grad():
        wanted = text(input_ids=pieces[..., 0], attention_mask=pieces[..., 1]).last_hidden_state
        found = encoder.frozen(input_ids=pieces[..., 0], attention_mask=pieces[..., 1]).last_hidden_state
    assert_close(found, wanted)
    encoded = encoder(pieces)
    assert encoded.tokens.shape == (3, 5, 24) and encoded.pooled.shape == (3, encoder.pooled_width)
    assert not encoded.tokens[1, 2:].any() and not encoded.mask[1, 2:].any()
    encoded.pooled.sum().backward()
    assert encoder.project.weight.grad is not None
    assert all(p.grad is None and not p.requires_grad for p in encoder.frozen.parameters())
    assert not encoder.train().frozen.training

    long = "a red circle a blue circle red blue"
    assert encoder_of(encoder) is encoder and encoder.read(long) == "a red circle a blue circle"
    assert unread(encoder, long) == "red blue" and "8 tokens" in encoder.limit
    assert not unread(encoder, "a red") and encoder.read("\ud800" * 3) == "\ud800" * 3


@pytest.mark.parametrize("family", ["flow", "dit"])
def test_a_run_stands_alone_and_leaves_the_encoder_as_it_was(family, tmp_path):
    folder, text = saved(tmp_path / "encoder", bert)
    described(tmp_path / "data", [{"text": f"a {'red' if i % 2 else 'blue'} thing"} for i in range(20)])
    options = {"preset": "tiny", "quiet": True, "model": {"text": {"pretrained": str(folder), "width": 16}}}
    api.train(family, tmp_path / "data", tmp_path / "run", budget="32img", **options)
    shutil.rmtree(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipeline = api.load(tmp_path / "run", "cpu")
        one, other = pipeline.tensors(2, prompt=["a red thing", "a blue thing"], steps=2)
    assert torch.isfinite(one).all() and one.shape == other.shape
    weights = {k: v for k, v in pipeline.model.state_dict().items() if ".frozen.network." in k}
    wanted = text.state_dict()
    assert len(weights) == len(wanted)
    for name, value in weights.items():
        assert_close(value, wanted[name.split(".frozen.network.")[1]], rtol=0, atol=0)
    run = checkpoint.run_of(tmp_path / "run")
    assert run.model.text.pretrained == str(folder) and run.model.text.pretrained_settings


def test_what_is_no_text_encoder_is_refused(tmp_path, monkeypatch):
    with pytest.raises(LimnerError, match=r"There is no folder .*hf:owner/name to fetch one"):
        settle(TextConfig(pretrained="openai/clip-vit-base-patch32"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(LimnerError, match="cannot be read as a text encoder of transformers"):
        settle(TextConfig(pretrained=str(tmp_path / "empty")))
    folder, _ = saved(tmp_path / "encoder", bert)
    (folder / "model.safetensors").unlink()
    with pytest.raises(LimnerError, match="cannot be read"):
        text_encoder(settle(TextConfig(pretrained=str(folder)))).learn(())
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(LimnerError, match=r"limner\[hf\]"):
        settle(TextConfig(pretrained=str(folder)))
