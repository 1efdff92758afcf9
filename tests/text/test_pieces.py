"""Texts as pieces."""

import pytest
import torch

from limner.config import migrate_run
from limner.core import ImageSpec
from limner.families.flow import Flow
from limner.fields import from_json, to_json
from limner.text.pieces import PAD, PIECE, START, to_pieces
from limner.text.words import words


def spelled(row: torch.Tensor) -> list[str]:
    """Each piece of a text; raises an error for half a character."""
    return [
        bytes(b for b in piece if b < 256).decode() for piece in row.tolist() if piece[0] not in (PAD, START)
    ]


def read(text: str) -> list[str]:
    return spelled(to_pieces([text], 256)[0])


def test_any_text_becomes_pieces_cut_between_characters():
    pieces = to_pieces(["", "ab  c", "héé", "图像", "\ud800"], length=4)
    assert pieces.shape == (5, 2, PIECE)
    assert (pieces[:, 0, 0] == START).all()
    assert [spelled(row) for row in pieces] == [[], ["ab"], ["hé"], ["图"], ["?"]]
    assert read("ab  c") == ["ab", "c"] and read("internationalisation") == ["internat", "ionalisa", "tion"]
    assert to_pieces(["x" * 1000], length=64).shape == (1, 9, PIECE)


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("一个小的红色圆形", "一 个 小 的 红 色 圆 形"),
        ("赤い、大きな丸が", "赤 い 、 大 き な 丸 が"),
        ("วงกลมสีแดงที่นี่", "ว ง ก ล ม สี แ ด ง ที ่ นี ่"),
        ("빨간 원이 있다", "빨 간 원 이 있 다"),
        ("красный круг", "крас ный круг"),
        ("लाल हिन्दी", "ला ल हि न् दी"),
        ("a well-known (red) kite, don't", "a well - known ( red ) kite , don ' t"),
        ("long_hair, 2girls", "long _ hair , 2girls"),
        ("größeren Kreisen", "größer en Kreisen"),
        ("👩‍🔬❤️🇩🇪", "👩‍ 🔬 ❤️ 🇩 🇪"),
        ("a 红色 kite红", "a 红 色 kite 红"),
    ],
)
def test_a_piece_is_a_word_or_a_character_of_a_script_without_spaces(text, pieces):
    assert read(text) == pieces.split(" ")


@pytest.mark.parametrize(
    ("word", "texts"),
    [
        ("红色", ["一个红色的圆", "红色圆", "在红色左边", "小的、红色。"]),
        ("赤い", ["大きな赤い丸", "赤い、丸", "とても赤い"]),
        ("แดง", ["วงกลมสีแดงเล็ก", "แดง", "สีแดง ใหญ่"]),
        ("원", ["빨간 원이", "원은", "큰 원, 작은"]),
        ("circle", ["a circle", "circle, red", "(circle)", "circle-shaped", "“circle”"]),
        ("круг", ["красный круг", "круг, круг.", "«круг»"]),
    ],
)
def test_a_word_is_the_same_pieces_wherever_it_stands(word, texts):
    wanted = read(word)
    for text in texts:
        found = read(text)
        assert any(found[i : i + len(wanted)] == wanted for i in range(len(found))), text


def test_runs_of_before_read_texts_as_they_did():
    spec = ImageSpec(3, 16, 16, captions=True)
    old = {"family": "flow", "model": to_json(Flow.presets["tiny"].model), "data": {}}
    del old["model"]["text"]["pieces"]
    migrated = migrate_run(old, to_json(spec), 4)
    encoder = Flow(from_json(Flow.Config, migrated["model"], "model"), spec).network.embedder.text
    assert encoder.pieces(["一个小"])[0, 1].tolist() == [*"一个小".encode()[:PIECE]]
    new = Flow(Flow.presets["tiny"].model, spec).network.embedder.text
    assert spelled(new.pieces(["一个小"])[0]) == ["一", "个", "小"]
    plain = ["a small red circle above a large blue square", "internationalisation"]
    assert new.pieces(plain).equal(encoder.pieces(plain))
    dcgan = {"family": "dcgan", "model": {}}
    assert migrate_run(dcgan, to_json(spec), 4) == dcgan


def test_every_character_is_in_one_word():
    for text in ("a b", "  红 ", "\u0301x", "ก็", "a\u200bb"):
        spans = words(text)
        assert all(a < b for a, b, _ in spans)
        assert "".join(text[a:b] for a, b, _ in spans) == "".join(text.replace("\u200b", " ").split())


def test_pieces_read_in_inference_train_later():
    with torch.inference_mode():
        to_pieces(["a new text"], 64)
    with torch.device("meta"):
        to_pieces(["another new text"], 64)
    pieces = to_pieces(["a new text", "another new text"], 64)
    assert pieces.device.type == "cpu" and not pieces.is_inference()
