"""Texts and tables beside images: their encodings, names, columns and sizes."""

import json
import os
import time
import tracemalloc
import unicodedata
import zipfile

import pytest

from limner.data import check, open_data
from limner.data.annotations import match
from limner.data.annotations.encoding import decode, detect
from limner.data.annotations.metadata import one_label, one_line
from limner.data.sources.find import find
from limner.settings import DataOptions, LimnerError
from tests.helpers import paint

TEXTS = {
    "gb18030": ["一只红色的猫 0", "穿着蓝色裙子的小女孩站在海边微笑", "产品照片，白色背景，高清", "像素风格的宝剑"],
    "big5hkscs": ["一隻紅色的貓坐在桌子上", "台北夜市的街道，燈光很亮", "產品照片，白色背景"],
    "cp932": ["赤い猫の写真", "青い空と白い雲の下に立つ少女", "カタカナのテスト、ドット絵のアイコン"],
    "euc_jp": ["赤い猫の写真です", "青い空と白い雲の下に立つ少女"],
    "cp949": ["빨간 고양이가 의자에 앉아 있다", "제품 사진, 흰색 배경", "도트 그래픽 아이콘 검"],
    "cp1251": ["красный кот сидит на стуле", "девочка в синем платье стоит у моря", "червоний кіт на стільці"],
    "cp1252": [
        "une chèvre rouge à côté d’une maison", "ein roter Käfer über der Straße", "un niño pequeño en la montaña",
        "café", "um cão vermelho não está", "en röd katt på en stol", "a “red” ball — it’s naïve", "10 m² of grass",
    ],
    "cp1250": ["czerwony kot siedzi na krześle, żółta łódź", "červený kůň stojí vedle žluté lodě"],
    "cp1254": ["kırmızı kedi sandalyede oturuyor, yeşil ağaç"],
}  # fmt: skip


def read(folder, **options):
    return open_data(str(folder), size=(8, 8), progress=False, **options)


def described(folder, rows, name="metadata.jsonl", count=4):
    """A folder of images 000.png, 001.png, ..., with a table."""
    paint(folder, count, (8, 8))
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return folder


# Encodings --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", TEXTS)
def test_the_encoding_of_a_language_is_told(codec):
    for text in [*TEXTS[codec], "\n".join(TEXTS[codec])]:
        data = text.encode(codec)
        assert decode(data) is None and data.decode(detect(data)) == text


@pytest.mark.parametrize(
    "codec", ["cp437", "mac_roman", "cp1257", "iso8859_2", "cp866", "koi8_r", "cp1253", "cp1255"]
)
def test_no_text_is_read_in_a_wrong_encoding(codec):
    others = "μια κόκκινη γάτα κάθεται", "חתול אדום יושב על כיסא", "raudona katė ant kėdės šalia žalios"
    for text in (*others, *(text for texts in TEXTS.values() for text in texts)):
        data = text.encode(codec, "ignore")
        if data.decode(codec) == text and not data.isascii() and "²" not in text:
            detected = detect(data)
            assert detected is None or data.decode(detected) == text


@pytest.mark.parametrize("text", ["一只红色的猫 0", "a red cat", "красный кот"])
@pytest.mark.parametrize("codec", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_unicode_is_read_with_and_without_a_mark(text, codec):
    assert decode(text.encode(codec)) == text


def test_bytes_that_are_no_text_are_not_read():
    assert decode(b"\0\0\0\0") is None and decode(b"\xff\xfe\xfd") is None
    assert detect(bytes(range(128, 256))) is None


@pytest.mark.parametrize("codec", ["gbk", "utf-16", "utf-16-le", "cp1251"])
def test_captions_that_are_not_utf_8_are_read_and_said(tmp_path, codec):
    texts = TEXTS["cp1251" if codec == "cp1251" else "gb18030"]
    paint(tmp_path, 12, (8, 8))
    for i in range(12):
        (tmp_path / f"{i:03d}.txt").write_bytes(texts[i % 3].encode(codec))
    data = read(tmp_path)
    assert data.captions == [texts[i % 3] for i in range(12)] and not data.problems
    assert codec.startswith("utf") or "12 texts are not UTF-8 and were read as" in " ".join(data.notes)


def test_text_that_cannot_be_told_is_a_problem_by_its_name(tmp_path):
    paint(tmp_path, 3, (8, 8))
    (tmp_path / "000.txt").write_bytes(b"a caption \xff\xfe\x81 here")
    (tmp_path / "001.cls").write_bytes(b"\x81\x8d\x8f")
    (tmp_path / "002.txt").write_bytes(b"good")
    data = read(tmp_path)
    assert data.captions == ["", "", "good"] and data.labels is None
    assert {p.path for p in data.problems} == {"000.txt", "001.cls"} and "not text in UTF-8" in data.problems[
        0
    ].reason
    assert "2 texts and rows of metadata are not used, such as '000.txt'" in " ".join(data.notes)
    report = check(str(tmp_path), progress=False)
    assert "training skips" not in " ".join(report.advice) and "what they say is lost" in " ".join(
        report.advice
    )


@pytest.mark.parametrize("codec", ["gbk", "utf-16", "utf-16-le", "utf-8-sig"])
@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv"])
def test_tables_are_read_in_their_encoding(tmp_path, codec, kind):
    paint(tmp_path, 4, (8, 8))
    rows = [(f"{i:03d}.png", f"一只红色的猫，在桌子上 {i}") for i in range(4)]
    comma = "\t" if kind == "tsv" else ";"
    lines = [comma.join(row) for row in [("file_name", "text"), *rows]]
    if kind == "jsonl":
        lines = [json.dumps({"file_name": name, "text": text}, ensure_ascii=False) for name, text in rows]
    (tmp_path / f"metadata.{kind}").write_bytes("\r\n".join(lines).encode(codec))
    assert read(tmp_path).captions == [text for _, text in rows]


def test_a_table_that_cannot_be_decoded_is_refused_by_name(tmp_path):
    paint(tmp_path, 2, (8, 8))
    (tmp_path / "metadata.csv").write_bytes(b"file_name,text\n000.png,\x81\x8d\xff\n")
    with pytest.raises(LimnerError, match=r"metadata\.csv is not text in UTF-8.*line 2 is the first"):
        read(tmp_path)


# Lines ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inside", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e"])
def test_json_lines_end_at_a_newline_alone(tmp_path, inside):
    paint(tmp_path, 2, (8, 8))
    text = f'a ball{inside}on "grass"'
    rows = [{"file_name": f"{i:03d}.png", "text": text} for i in range(2)]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines), "utf-8")
    assert read(tmp_path).captions == ['a ball on "grass"'] * 2


# Columns ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["text", "Caption", " PROMPT ", "captions"])
@pytest.mark.parametrize("label", ["label", "Class", "category", "Class Name"])
@pytest.mark.parametrize("name", ["file_name", "File Name", "filename", "image", "path"])
def test_columns_are_found_whatever_their_case(tmp_path, column, label, name):
    rows = [{name: f"{i:03d}.png", column: f"thing {i}", label: i % 2, "score": 0.5} for i in range(4)]
    data = read(described(tmp_path, rows))
    assert data.captions == [f"thing {i}" for i in range(4)] and data.spec.classes == ("0", "1")
    assert f"captions from {column}" in data.notes[0] and "not used: score" in data.notes[0]


@pytest.mark.parametrize("name", ["METADATA.JSONL", "Metadata.jsonl"])
def test_tables_are_found_whatever_their_case(tmp_path, name):
    rows = [{"file_name": f"{i:03d}.png", "text": "thing"} for i in range(4)]
    assert read(described(tmp_path, rows, name)).captions == ["thing"] * 4


def test_columns_that_say_nothing_are_listed(tmp_path, capfd):
    described(tmp_path, [{"file_name": f"{i:03d}.png", "description": "thing"} for i in range(4)])
    open_data(str(tmp_path), size=(8, 8))
    said = " ".join(capfd.readouterr().err.split())
    assert (
        "metadata.jsonl: neither captions nor labels; of its columns description none is text, caption or"
        in said
    )
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "000.png", "text": null}')
    assert (
        read(tmp_path).notes[0]
        == "metadata.jsonl: neither captions nor labels; columns that are not used: text."
    )


def test_a_table_of_another_name_is_said_not_to_be_read(tmp_path):
    described(tmp_path, [{"file_name": "000.png", "text": "thing"}], "captions.jsonl")
    assert "captions.jsonl is not read" in read(tmp_path).notes[0]


def test_what_values_become():
    assert one_line(["", " a\u2028 b ", "c"]) == "a b" and one_line([]) is None and one_line({"a": 1}) is None
    assert (
        one_line(3.0) == "3"
        and one_line(0.5) is None
        and one_line(float("nan")) is None
        and one_line(7) == "7"
    )
    assert (
        one_label(["cat"]) == "cat"
        and one_label(["cat", "dog"]) is None
        and one_label("9" * 5000) == "9" * 5000
    )
    import numpy as np

    assert one_line(np.int64(4)) == "4" and one_line(np.float32(4)) == "4" and one_line(np.str_("a")) == "a"


def test_labels_of_very_many_digits(tmp_path):
    digits = ["1" + "0" * 5000, "9" * 4999, "2", "10"]
    lines = [f'{{"file_name": "{i:03d}.png", "label": {digit}}}\n' for i, digit in enumerate(digits)]
    paint(tmp_path, 4, (8, 8))
    (tmp_path / "metadata.jsonl").write_text("".join(lines))
    assert read(tmp_path).spec.classes == ("2", "10", digits[1], digits[0])


# Names ------------------------------------------------------------------------------------------------------

CAFE = unicodedata.normalize("NFC", "café"), unicodedata.normalize("NFD", "café")


@pytest.mark.parametrize(
    ("image", "row"),
    [
        ("a/b/x.PNG", "a/b/x.png"), ("a/b/x.png", "A\\B\\X.PNG"), ("a/b/x.png", ".\\a\\b\\x.png"),
        ("a/b/x.png", "b/x.png"), ("a/b/x.png", "x.png"), ("a/b/x.png", "/home/me/a/b/x.png"),
        ("x.png", "C:\\images\\x.png"), ("a/x.png", "a/x"), ("a/x.png", "a/x.jpg"), ("a/v1.2.png", "v1.2"),
        (f"{CAFE[0]}.png", f"{CAFE[1]}.png"), (f"{CAFE[1]}/x.png", f"{CAFE[0]}/x.png"),
    ],
)  # fmt: skip
def test_rows_find_their_image_where_it_is_clear(tmp_path, image, row):
    paint(tmp_path, 2, (8, 8))
    (tmp_path / image).parent.mkdir(parents=True, exist_ok=True)
    os.rename(tmp_path / "000.png", tmp_path / image)
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": row, "text": "found"}))
    data = read(tmp_path)
    assert dict(zip(data.names, data.captions, strict=True)) == {image: "found", "001.png": ""}
    assert "1 of 2 images have no row" in " ".join(data.notes)


def test_rows_of_images_with_the_same_names_are_found_at_once():
    """Numbered images in many folders, in a table from Windows: not the square of their number."""
    names = [f"id{i}/{j:04d}.jpg" for i in range(3000) for j in range(10)]
    images, started = match.Images(names), time.perf_counter()
    for i, name in enumerate(names):
        assert images.find(".", f"faces\\{name.upper()}".replace("/", "\\")) == (i, False)
    assert time.perf_counter() - started < 5


@pytest.mark.parametrize(
    ("folder", "row", "found"),
    [
        (".", "A/1.PNG", 0), (".", "b/1", 1), (".", "x/b/1.png", 1), (".", "c/2.jpg", 3), ("a", "1.PNG", 0),
        ("a", "b/3.png", 4), ("a/b", "b/3.PNG", 4), (".", "b\\3.png", 4), (".", "../a/1.png", 0),
        (".", "1.PNG", "'a/1.png' or 'b/1.png'"), (".", "4.png", "no such"), ("b", "2.png", "no such"),
    ],
)  # fmt: skip
def test_rows_name_an_image_with_folders_too_many_or_too_few(folder, row, found):
    images = match.Images(["a/1.png", "b/1.png", "c/d/2.png", "c/2.png", "a/b/3.png"])
    said = images.find(folder, row)
    assert found in said if isinstance(found, str) else said[0] == found


def test_rows_that_could_be_several_images_are_listed(tmp_path):
    for split in ("a", "b"):
        paint(tmp_path / split, 2, (8, 8))
    (tmp_path / "a" / "metadata.csv").write_text("file_name,text\n000.PNG,of a\n")
    (tmp_path / "metadata.csv").write_text("file_name,text\n001.png,which\n")
    data = read(tmp_path)
    assert data.captions == ["of a", "", "", ""]
    assert [p.path for p in data.problems] == ["001.png"] and "may be 'a/001.png' or" in data.problems[
        0
    ].reason


def test_an_exact_row_goes_before_one_that_is_not(tmp_path):
    paint(tmp_path, 2, (8, 8))
    (tmp_path / "metadata.csv").write_text("file_name,text\n000.png,exact\n000.PNG,not\n")
    assert read(tmp_path).captions == ["exact", ""]


def test_rows_without_any_image_are_said_clearly(tmp_path, capfd):
    described(tmp_path, [{"file_name": f"gone{i}.png", "text": "thing"} for i in range(5)])
    data = open_data(str(tmp_path), size=(8, 8))
    assert "None of the 5 rows of metadata.jsonl names an image" in " ".join(capfd.readouterr().err.split())
    assert len(data) == 4 and len(data.problems) == 5
    advice = " ".join(check(str(tmp_path), progress=False).advice)
    assert "training skips them" not in advice and "5 texts and rows" in advice


def test_texts_beside_images_match_in_one_unicode_form(tmp_path):
    paint(tmp_path, 1, (8, 8))
    os.rename(tmp_path / "000.png", tmp_path / f"{CAFE[0]}.png")
    (tmp_path / f"{CAFE[1]}.txt").write_text("a cup")
    (tmp_path / "nobody.txt").write_text("no image")
    data = read(tmp_path)
    assert data.captions == ["a cup"] and "1 texts have no image" in " ".join(data.notes)


# Sizes ------------------------------------------------------------------------------------------------------


def test_a_text_of_any_length_takes_no_memory(tmp_path):
    paint(tmp_path, 2, (8, 8))
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(tmp_path / "000.png", "000.png")
        archive.writestr("000.txt", b"long " * 8 * 2**20)
    with open(tmp_path / "001.txt", "wb") as file:
        file.truncate(200 * 2**20)
    tracemalloc.start()
    data = [read(tmp_path), read(tmp_path / "a.zip")]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 * 2**20 and [d.captions for d in data] == [None, None]
    assert all("longer than" in d.problems[0].reason for d in data)


def test_a_table_of_many_rows_takes_no_memory(tmp_path):
    paint(tmp_path, 1, (8, 8))
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(tmp_path / "000.png", "000.png")
        archive.writestr(
            "metadata.jsonl", b'{"file_name": "000.png", "text": "a thing of some length"}\n' * 30_000
        )
    tracemalloc.start()
    listing = find(str(tmp_path / "a.zip"), tmp_path).listing()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5 * 2**20 and [item.caption for item in listing.items] == ["a thing of some length"]


def test_a_line_without_end_is_refused(tmp_path):
    paint(tmp_path, 1, (8, 8))
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "' + "x" * 2**24)
    with pytest.raises(LimnerError, match=r"line 1 of metadata\.jsonl is longer than"):
        read(tmp_path)


def test_rows_that_name_an_image_again_are_counted(tmp_path):
    rows = [{"file_name": "000.png", "text": text} for text in ("first", "second", "last")]
    data = read(described(tmp_path, rows))
    assert data.captions[0] == "last" and "2 of 3 rows of metadata.jsonl name an image again" in " ".join(
        data.notes
    )


def test_a_pattern_of_images_reads_the_texts_beside_them(tmp_path):
    paint(tmp_path, 2, (8, 8))
    (tmp_path / "001.txt").write_text("a thing")
    assert read(tmp_path / "*.png").captions == ["", "a thing"]


def test_pairs_go_by_name_in_any_unicode_form(tmp_path):
    for folder, name in zip(("images", "given"), CAFE, strict=True):
        paint(tmp_path / folder, 1, (8, 8))
        os.rename(tmp_path / folder / "000.png", tmp_path / folder / f"{name}.png")
    sources = [str(tmp_path / "given"), str(tmp_path / "images")]
    data = open_data(sources, size=(8, 8), options=DataOptions(given="pairs"), progress=False)
    assert len(data) == 1 and not data.problems


def test_a_table_of_rows_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(match, "_MANY", 500)
    paint(tmp_path, 2, (8, 8))
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "000.png"}\n' * 501)
    with pytest.raises(LimnerError, match=r"metadata\.jsonl has over 500 rows for 2 images"):
        read(tmp_path)


def test_text_that_was_lost_before_is_said(tmp_path):
    rows = [{"file_name": "000.png", "text": "a \ufffd\ufffd cat"}, {"file_name": "001.png", "text": "a cat"}]
    assert "1 captions hold U+FFFD" in " ".join(read(described(tmp_path, rows)).notes)


def test_commas_without_quotes_and_other_encodings_of_a_table_are_said(tmp_path):
    paint(tmp_path, 2, (8, 8))
    (tmp_path / "metadata.csv").write_bytes("file_name,text\n000.png,café,red\n".encode("cp1252"))
    data = read(tmp_path)
    assert (
        data.captions == ["café", ""]
        and "metadata.csv is not UTF-8 and was read as Windows-1252." in data.notes
    )
    assert "values beyond the header's columns (commas without quotes)" in " ".join(data.notes)
