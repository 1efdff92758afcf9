"""Files that are not read are told by what they are, from their content or their name."""

from __future__ import annotations

import gzip
import io
import struct

import numpy as np
import pytest
from PIL import Image

from limner.data import check, open_data
from limner.data.images import formats
from limner.settings import LimnerError
from tests.helpers import paint


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("LIMNER_CACHE", str(tmp_path_factory.mktemp("cache")))


def ftyp(*brands: str) -> bytes:
    body = b"ftyp" + brands[0].encode() + bytes(4) + b"".join(b.encode() for b in brands[1:])
    return struct.pack(">I", len(body) + 4) + body + bytes(40)


def array(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


SVG = b'<?xml version="1.0"?>\n<!-- made by hand -->\n<svg xmlns="http://www.w3.org/2000/svg" width="1"/>'
IDX = struct.pack(">4I", 0x803, 10, 28, 28) + bytes(999)
CONTENTS = {  # a word of what it is, and the content
    "JPEG XL": [b"\xff\x0a" + bytes(30), bytes.fromhex("0000000c4a584c200d0a870a") + ftyp("jxl ")],
    "HEIC": [ftyp(b) for b in ("heic", "heix", "heim", "heis", "hevc", "hevx")]
    + [ftyp("mif1", "mif1", "heic")],
    "CR3": [ftyp("crx ", "crx ", "isom")],
    "film (MP4 or MOV)": [ftyp("isom", "iso2", "avc1"), ftyp("qt  "), ftyp("mp42")],
    "Matroska": [b"\x1aE\xdf\xa3" + bytes(40)],
    "AVI": [b"RIFF\0\0\0\0AVI LIST"],
    "SVG": [SVG, b"\xef\xbb\xbf" + SVG, gzip.compress(SVG), b"<svg>", SVG.decode().encode("utf-16")],
    "web page": [b"<!DOCTYPE html><html><svg/></html>", b"\n<HTML><head>"],
    "JSON": [b'{"error": "not found"}', b"[]"],
    "Git LFS": [b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"],
    "text, not an image": ["ein Bild, später".encode()],
    "zero bytes": [bytes(5000)],
    "Photoshop": [b"8BPS\0\x01" + bytes(20)],
    "PDF": [b"%PDF-1.7\n"],
    "PostScript": [b"%!PS-Adobe-3.0 EPSF-3.0\n"],
    "ICNS": [b"icns\0\0\0\x08"],
    "OpenEXR": [b"v/1\x01\x02\0\0\0"],
    "JPEG XR": [b"II\xbc\x01\x20\0\0\0"],
    "CR2": [b"II*\0\x10\0\0\0CR\x02\0" + bytes(40)],
    "NumPy": [array(np.zeros((2, 3)))],
    "idx-ubyte": [IDX, gzip.compress(IDX)],
    "HDF5": [b"\x89HDF\r\n\x1a\n" + bytes(10)],
    "MATLAB": [b"MATLAB 5.0 MAT-file, Platform"],
    "pickle": [b"\x80\x02}q\x01(U"],
    "parquet": [b"PAR1" + bytes(10)],
    "zip archive": [b"PK\x03\x04" + bytes(30)],
    "compressed by gzip": [gzip.compress(bytes(range(256)))],
    "resource fork": [b"\0\x05\x16\x07\0\x02\0\0Mac OS X"],
    "a JPEG of 12 bits": [b"\xff\xd8\xff\xc1\0\x11\x0c" + bytes(20)],
    "lossless JPEG": [b"\xff\xd8\xff\xc3\0\x11\x08" + bytes(20)],
    "its start is damaged": [b"\x07\x01\xfe\xab" * 20, ftyp("avif")],
}


@pytest.mark.parametrize("what", CONTENTS)
def test_a_file_is_told_by_its_content(what):
    for content in CONTENTS[what]:
        assert what in formats.not_read(io.BytesIO(content)), content[:40]


def test_no_start_of_a_file_takes_long_or_fails():
    rng = np.random.default_rng(0)
    for start in (
        b"<!--" * 1000,
        b"<!---->" * 600,
        b"<" * 4096,
        b" " * 4096,
        b"{" * 4096,
        b"\x1f\x8b" * 2000,
    ):
        assert formats.not_read(io.BytesIO(start))
    for content in [c for contents in CONTENTS.values() for c in contents]:
        for _ in range(20):
            mangled = bytearray(content[:300])
            mangled[rng.integers(len(mangled))] ^= 1 << rng.integers(8)
            assert formats.not_read(io.BytesIO(bytes(mangled[: rng.integers(1, len(mangled) + 1)])))


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (np.zeros((8, 8, 1), np.float64), "1 channel of 64-bit floats"),
        (np.zeros((8, 8, 1), np.float16), "1 channel of 16-bit floats"),
        (np.zeros((8, 8, 3), np.float32), "3 channels of 32-bit floats"),
        (np.zeros((8, 8, 1), ">u4"), "1 channel of 32-bit integers"),
        (np.zeros((8, 8, 5), np.uint8), "5 channels of 8-bit integers"),
    ],
)
def test_forms_of_tiff_that_are_not_read_are_told(content, what, tmp_path):
    from tests.data.test_decode import tiff

    order = ">" if content.dtype.byteorder == ">" else "<"
    (tmp_path / "x.tif").write_bytes(tiff(content, order=order, extra=0 if content.shape[2] == 5 else None))
    (problem,) = check(str(tmp_path), progress=False).problems
    advice = "save it as 8 or 16 bits of 1, 3 or 4 channels, or as 32-bit floats of 1 channel"
    assert what in problem.reason and problem.reason.endswith(advice)


def test_other_files_are_counted_by_what_they_are(tmp_path):
    paint(tmp_path, 3)
    for name in ("a.svg", "b.SVG", "c.mp4", "d.cr2", "train-images-idx3-ubyte.gz", "notes.md", "e.psd"):
        (tmp_path / name).write_bytes(b"x")
    report = check(str(tmp_path), progress=False)
    assert report.images == 3 and report.others == 7 and not report.problems
    assert report.kinds["SVG drawings"] == 2 and report.kinds["films"] == 1 and report.kinds[".md files"] == 1
    advice = " ".join(report.advice)
    assert (
        "2 SVG drawings" in advice
        and "convert them to PNG or JPEG" in advice
        and "1 idx-ubyte files" in advice
    )


def test_a_folder_of_other_files_alone_says_what_they_are(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.svg").write_bytes(SVG)
    with pytest.raises(LimnerError, match=r"3 files of other kinds \(3 SVG drawings\)") as error:
        open_data(str(tmp_path), progress=False)
    advice = "3 SVG drawings are not read: convert them to PNG or JPEG to train on them."
    assert str(error.value).endswith(advice)
    assert advice in check(str(tmp_path), progress=False).advice


def test_names_that_say_another_format_than_the_content(tmp_path):
    Image.new("RGB", (16, 16)).save(tmp_path / "a.jpg", "PNG")
    Image.new("RGB", (16, 16)).save(tmp_path / "b.PNG", "JPEG")
    (tmp_path / "c.png").write_bytes(SVG)
    report = check(str(tmp_path), progress=False)
    assert report.formats == {"PNG": 1, "JPEG": 1}
    assert [p.reason for p in report.problems] == [
        "an SVG drawing, which is not read: convert it to PNG or JPEG"
    ]
