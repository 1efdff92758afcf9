"""Archives: known by content, names of other systems, methods by name, lies and damage."""

from __future__ import annotations

import gzip
import io
import resource
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from limner.data import check, open_data
from limner.data.sources.archive import archives
from limner.data.sources.member_names import decoded, with_slashes
from limner.settings import DataOptions, LimnerError


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("LIMNER_CACHE", str(folder))
    return folder


def png(seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


PNG = png()


def read(source, **options):
    return open_data(source, options=DataOptions(**options), progress=False)


def zipped(path: Path, names: list[str | bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    """A zip of images; a name in bytes is written as it is, with no word on its encoding."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for i, name in enumerate(names):
            archive.writestr(name if isinstance(name, str) else f"{i:03d}" + "x" * (len(name) - 3), png(i))
    content = path.read_bytes()
    for i, name in enumerate(names):
        if isinstance(name, bytes):
            content = content.replace((f"{i:03d}" + "x" * (len(name) - 3)).encode(), name)
    path.write_bytes(content)
    return path


def tarred(path: Path, names: list[str | bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for i, name in enumerate(names):
            text = name if isinstance(name, str) else name.decode("utf-8", "surrogateescape")
            member = tarfile.TarInfo(text)
            member.size = len(png(i))
            archive.addfile(member, io.BytesIO(png(i)))
    return path


PETS = [f"{kind}/{i}.png" for kind in ("cat", "dog") for i in range(3)]


# Known by content -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.pk3", "a.cbz", "a.jar", "a.zip", "a", "a.tar"])
def test_a_zip_of_any_name(tmp_path, name):
    assert read(zipped(tmp_path / name, PETS)).spec.classes == ("cat", "dog")


@pytest.mark.parametrize("name", ["a.cbt", "a", "a.zip", "a.tar.gz"])
@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_a_tar_of_any_name(tmp_path, name, mode):
    assert read(tarred(tmp_path / name, PETS, mode)).spec.classes == ("cat", "dog")


def test_a_folder_of_archives_of_any_kind_and_name(tmp_path):
    zipped(tmp_path / "a.pk3", PETS)
    zipped(tmp_path / "b.zip", PETS)
    tarred(tmp_path / "c.tar", PETS)
    (tmp_path / "readme.md").write_text("three archives")
    assert len(read(tmp_path)) == len(read(tmp_path / "*")) == 18


def test_a_zip_behind_a_program_and_a_zip_within_a_tar(tmp_path):
    whole = zipped(tmp_path / "a.zip", PETS).read_bytes()
    (tmp_path / "setup.exe").write_bytes(b"MZ" + bytes(1000) + whole)
    assert len(read(tmp_path / "setup.exe")) == 6
    with tarfile.open(tmp_path / "b.tar", "w") as archive:  # it ends as a zip does
        archive.add(tmp_path / "a.zip", "inside.zip")
    assert check(tmp_path / "b.tar", progress=False).kinds == {"archives": 1}


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"7z\xbc\xaf'\x1c", "a 7z archive"), (b"Rar!\x1a\x07\0", "a rar archive"), (b"(\xb5/\xfd", "by zstd")],
)
def test_other_archives_are_told_by_name(tmp_path, content, words):
    for name in ("a.zip", "a.7z", "a"):
        (tmp_path / name).write_bytes(content + bytes(600))
        with pytest.raises(LimnerError, match=f"{name}.*{words}.*unpack it"):
            read(tmp_path / name)


# Names of other systems -------------------------------------------------------------------------------------

NAMES = {  # encoding: names that only it gives
    "utf-8": ["猫/1.png", "Café/1.png", "кот/1.png", "ネコ.png"],
    "gb18030": ["猫/1.png", "狗/照片 2.png", "新建文件夹/花.jpg", "中国/北京.png"],
    "cp932": ["ネコ/1.png", "いぬ/写真.png", "新しいフォルダー/表.png", "日本語.png", "画像_ソ.png"],
    "cp949": ["고양이와 강아지/1.png", "아이들 사진.png"],
    "big5hkscs": ["一隻貓/1.png", "風景照片/花和樹.png"],
    "cp437": [
        "Café/1.png",
        "Müller/Öl.png",
        "Straße.png",
        "Größe.png",
        "Château.png",
        "año/niño.png",
        "Ärzte.png",
    ],
}


@pytest.mark.parametrize("codec", NAMES)
def test_names_in_the_encodings_of_other_systems(codec):
    names = NAMES[codec]
    read, notes = decoded([name.encode(codec) for name in names], "cp437")
    assert read == names and len(notes) == (codec != "utf-8")
    if codec != "utf-8":
        alone = [
            name for name in names if name not in ("猫/1.png", "日本語.png", "一隻貓/1.png")
        ]  # UTF-8 too, GBK too
        assert [decoded([name.encode(codec)], "cp437")[0][0] for name in alone] == alone
    assert decoded([b"cat/1.png"], "cp437") == (["cat/1.png"], [])


@pytest.mark.parametrize("codec", ["gb18030", "cp932", "cp437", "utf-8"])
def test_a_zip_that_does_not_state_its_encoding(tmp_path, codec):
    first, second = {
        "gb18030": ("猫", "狗子"),
        "cp932": ("ネコ", "いぬ"),
        "cp437": ("Café", "Öl"),
        "utf-8": ("猫", "é"),
    }[codec]
    names = [f"{kind}/{i}00.png".encode(codec) for kind in (first, second) for i in range(3)]
    data = read(zipped(tmp_path / "a.zip", names))
    assert set(data.spec.classes) == {first, second}
    assert any("not UTF-8" in note for note in data.notes) == (codec != "utf-8")


def test_the_unicode_name_of_info_zip_goes_before(tmp_path):
    plain = "猫/1.png".encode("cp437", "replace")
    extra = struct.pack("<BI", 1, zlib.crc32(b"??/1.png")) + "猫/1.png".encode()
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        member = zipfile.ZipInfo("xx/1.png")
        member.extra = struct.pack("<HH", 0x7075, len(extra)) + extra
        archive.writestr(member, png())
    content = (tmp_path / "a.zip").read_bytes()
    assert plain == b"?/1.png"
    stale = content  # the field is of another name: it was renamed by a program that does not know the field
    (tmp_path / "stale.zip").write_bytes(stale)
    assert read(tmp_path / "stale.zip").names == ["xx/1.png"]
    (tmp_path / "a.zip").write_bytes(content.replace(b"xx/1.png", b"\x80\x81/1.png"))
    (tmp_path / "b.zip").write_bytes(
        content.replace(b"xx/1.png", b"\x80\x81/1.png").replace(
            struct.pack("<I", zlib.crc32(b"??/1.png")), struct.pack("<I", zlib.crc32(b"\x80\x81/1.png"))
        )
    )
    assert read(tmp_path / "b.zip").names == ["猫/1.png"]
    assert read(tmp_path / "a.zip").names == ["Çü/1.png"]


def test_backslashes_are_separators(tmp_path):
    names = ["set\\cat\\1.png", "set\\dog\\2.png", "set\\dog\\3.png"]
    for source in (zipped(tmp_path / "a.zip", names), tarred(tmp_path / "a.tar", names)):
        data = read(source)
        assert data.spec.classes == ("cat", "dog") and data.names[0] == "set/cat/1.png"
    mixed = zipped(tmp_path / "b.zip", ["cat/1.png", "dog\\2.png"])  # updated by another program
    assert read(mixed).spec.classes == ("cat", "dog")
    assert with_slashes(["cat/a\\b.png", "c.png"], always=False) == ["cat/a\\b.png", "c.png"]


@pytest.mark.parametrize(
    "name", ["..\\..\\x.png", "C:\\x.png", "\\x.png", "a\\..\\..\\x.png", "../x.png", "/x.png"]
)
def test_names_that_lead_outside_are_refused_in_any_spelling(tmp_path, name):
    for source in (zipped(tmp_path / "a.zip", [name]), tarred(tmp_path / "a.tar", [name])):
        with pytest.raises(LimnerError, match="is refused"):
            read(source)


# Methods ----------------------------------------------------------------------------------------------------


def with_method(path: Path, number: int, only: int | None = None) -> Path:
    """The zip with another method written into its headers; of one member only, if that is named."""
    content = bytearray(path.read_bytes())
    for magic, at in ((b"PK\3\4", 8), (b"PK\1\2", 10)):
        place, count = content.find(magic), 0
        while place >= 0:
            if only in (None, count):
                content[place + at : place + at + 2] = struct.pack("<H", number)
            place, count = content.find(magic, place + 4), count + 1
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("number", "name"),
    [(9, "deflate64"), (98, "PPMd"), (93, "zstd"), (6, "implode"), (95, "xz"), (77, "method 77")],
)
def test_methods_that_are_not_read_are_told_by_name(tmp_path, number, name):
    with pytest.raises(LimnerError, match=f"a.zip are compressed by {name}.*unpack it and use the folder"):
        read(with_method(zipped(tmp_path / "a.zip", PETS), number))
    data = read(with_method(zipped(tmp_path / "b.zip", PETS), number, only=1), max_bad=1.0)
    assert len(data) == 5
    assert [(p.path, p.reason) for p in data.problems] == [
        ("b.zip/cat/1.png", f"is compressed by {name}, which is not read")
    ]


@pytest.mark.parametrize(
    "method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
)
def test_methods_that_are_read(tmp_path, method):
    data = read(zipped(tmp_path / "a.zip", PETS, method))
    plain = read(zipped(tmp_path / "b.zip", PETS))
    assert np.array_equal(data.array, plain.array) and data.fingerprint == plain.fingerprint


def test_a_member_in_endless_folders_is_refused(tmp_path):
    """One name of 40 KB took 1.7 GB."""
    for path in (
        zipped(tmp_path / "a.zip", ["a/" * 20_000 + "x.png"]),
        tarred(tmp_path / "a.tar", ["a/" * 20_000 + "x.png"]),
    ):
        with pytest.raises(LimnerError, match="lies in 20,000 folders"):
            check(str(path), progress=False)


def test_an_encrypted_zip_is_told(tmp_path):
    path = zipped(tmp_path / "a.zip", PETS)
    content = bytearray(path.read_bytes())
    for magic, at in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        place = content.find(magic)
        content[place + at] |= 1
    path.write_bytes(content)
    with pytest.raises(LimnerError, match="is encrypted: unpack it"):
        read(path)
    with pytest.raises(LimnerError, match="is encrypted with AES: unpack it"):
        read(with_method(path, 99))


# Lies -------------------------------------------------------------------------------------------------------


def lying(path: Path, method: int, says: int, holds: bytes) -> Path:
    """A zip whose one member says another size than it has."""
    packed = {0: lambda: holds, 8: lambda: zlib.compress(holds, 9)[2:-4]}.get(method)
    if packed is None:
        with zipfile.ZipFile(path, "w", method) as archive:
            archive.writestr("x.png", holds)
        content = bytearray(path.read_bytes())
        content[22:26] = struct.pack("<I", says)
        place = content.find(b"PK\1\2")
        content[place + 24 : place + 28] = struct.pack("<I", says)
        path.write_bytes(content)
        return path
    data, name, crc = packed(), b"x.png", zlib.crc32(holds[:says])
    sizes = (crc, len(data), says, len(name), 0)
    local = struct.pack("<4sHHHHHIIIHH", b"PK\3\4", 20, 0, method, 0, 33, *sizes) + name
    central = (
        struct.pack("<4sHHHHHHIIIHHHHHII", b"PK\1\2", 20, 20, 0, method, 0, 33, *sizes, 0, 0, 0, 0, 0) + name
    )
    end = struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, 1, 1, len(central), len(local) + len(data), 0)
    path.write_bytes(local + data + central + end)
    return path


@pytest.mark.parametrize(
    "method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
)
@pytest.mark.parametrize(
    ("says", "word"), [(len(PNG) - 1, "more"), (len(PNG) + 1, "fewer"), (20, "more"), (0, "more")]
)
def test_a_member_that_lies_about_its_size_is_a_problem_by_name(tmp_path, method, says, word):
    report = check(lying(tmp_path / "a.zip", method, says, PNG), progress=False)
    (problem,) = report.problems
    assert problem.path == "x.png" and f"unpacks to {word} than the {says:,} bytes" in problem.reason


@pytest.mark.process
@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_member_that_inflates_without_end_takes_no_memory(tmp_path, method):
    path = lying(tmp_path / "a.zip", method, 1000, bytes(300 * 2**20))
    code = (
        "import resource, sys; from limner.data import check; peak = lambda: resource.getrusage(0).ru_maxrss\n"
        f"before = peak(); report = check({str(path)!r}, progress=False)\n"
        "print(len(report.problems), (peak() - before) // 1024)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    problems, grown = map(int, out.split())
    assert problems == 1 and grown < 100, "MiB"


def test_a_checksum_that_is_wrong_is_a_problem(tmp_path):
    path = zipped(tmp_path / "a.zip", PETS, zipfile.ZIP_STORED)
    content = bytearray(path.read_bytes())
    content[content.find(b"IDAT") + 300] ^= 1
    path.write_bytes(content)
    (problem,) = check(path, progress=False).problems
    assert problem.path == "cat/0.png" and "checksum" in problem.reason


def test_a_full_disk_is_told_as_such(tmp_path, cache, monkeypatch):
    path = tarred(tmp_path / "a.tar.gz", PETS, "w:gz")

    class Full(io.BytesIO):
        def write(self, data):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **how: Full())
    with pytest.raises(
        LimnerError, match=r"a\.tar\.gz cannot be unpacked into .* \(No space left on device\)"
    ):
        read(path)


def test_an_archive_without_permission_is_told_as_such(tmp_path, monkeypatch):
    path = zipped(tmp_path / "a.zip", PETS)
    found = archives(str(path), [path], tmp_path)
    path.unlink()
    with pytest.raises(LimnerError, match=r"a\.zip cannot be read \(No such file or directory\)"):
        found.listing()


# Damage -----------------------------------------------------------------------------------------------------


def test_a_tar_damaged_midway_names_the_place(tmp_path):
    path = tarred(tmp_path / "a.tar", PETS)
    content = bytearray(path.read_bytes())
    content[4 * 1536 : 4 * 1536 + 512] = b"\x55" * 512  # a header and an image take 1,536 bytes
    path.write_bytes(content)
    data = read(path, max_bad=1.0)
    assert 0 < len(data) < 6
    assert any("what follows in the archive is not read" in p.reason for p in data.problems)


def test_a_size_that_leads_back_ends(tmp_path):
    path = tarred(tmp_path / "a.tar", PETS)
    content = bytearray(path.read_bytes())
    header = content[1536:2048]
    header[124:136] = b"\xff" * 10 + b"\xf0\x00"  # a negative size in base 256
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    content[1536:2048] = header
    path.write_bytes(content)
    with pytest.raises(LimnerError, match="cannot be read as an archive"):
        read(path)


@pytest.mark.parametrize("kind", ["zip", "tar", "gztar", "xztar", "bztar"])
def test_damaged_archives_end_in_sentences(tmp_path, kind):
    """From a seed: cut, flipped and overwritten archives are read in part, or a LimnerError says why not."""
    (tmp_path / "set" / "cat").mkdir(parents=True)
    for i in range(4):
        (tmp_path / "set" / "cat" / f"{i}.png").write_bytes(png(i))
    whole = Path(shutil.make_archive(str(tmp_path / "a"), kind, tmp_path / "set")).read_bytes()
    draw = np.random.default_rng(0)
    for _ in range(60):
        content = bytearray(whole)
        how = draw.integers(4)
        if how == 0:
            del content[draw.integers(len(content)) :]
        elif how == 1:
            content[draw.integers(len(content))] ^= 1 << draw.integers(8)
        elif how == 2:
            at = draw.integers(len(content))
            content[at : at + 64] = draw.bytes(min(64, len(content) - at))
        else:  # where names and sizes stand
            for at in (
                draw.integers(0, 600, 6)
                if kind == "tar"
                else draw.integers(len(content) - 400, len(content), 6)
            ):
                content[at] = draw.integers(256)
        path = tmp_path / "b"
        path.write_bytes(content)
        started = time.monotonic()
        try:
            check(path, progress=False)
        except LimnerError as error:
            assert str(error)
        assert time.monotonic() - started < 5


def test_many_members_take_flat_memory(tmp_path):
    header = tarfile.TarInfo("x.txt").tobuf()
    with gzip.open(tmp_path / "a.tar.gz", "wb", 1) as file:
        for _ in range(100):
            file.write(header * 1000)
        file.write(bytes(1024))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert check(tmp_path / "a.tar.gz", progress=False).images == 0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000, "KiB"


def test_a_range_without_end_is_refused_at_once():
    with pytest.raises(LimnerError, match="names more than 100,000 files"):
        open_data("a-{0..99999999999}.tar", progress=False)
