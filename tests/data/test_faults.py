"""Bad input, faults 9 to 16: what is wrong is named, the rest is used, nothing is written elsewhere."""

from __future__ import annotations

import gzip
import io
import os
import resource
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from limner.data import check, open_data
from limner.settings import DataOptions, LimnerError
from tests.helpers import paint

ANY = DataOptions(max_bad=1.0)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("LIMNER_CACHE", str(folder))
    return folder


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "images").mkdir()
    return tmp_path / "images"


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(image: Image.Image, format: str = "PNG", **how) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **how)
    return file.getvalue()


def good(folder: Path, count: int) -> None:
    for i in range(count):
        Image.fromarray(noise(i, 16, 16, 3)).save(folder / f"good{i:02d}.png")


def read(source, options: DataOptions = DataOptions(), **how):  # noqa: B008
    return open_data(source, options=options, progress=False, **how)


# 9. Damaged files -------------------------------------------------------------------------------------------


def damage(folder: Path) -> dict[str, str]:
    """Writes six bad files; returns a word of each one's reason."""
    jpeg, png = (
        encoded(Image.fromarray(noise(0, 64, 64, 3)), "JPEG"),
        encoded(Image.fromarray(noise(0, 64, 64))),
    )
    (folder / "cut.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (folder / "cut.png").write_bytes(png[: len(png) // 2])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.jpg").write_text("this is no picture")
    (folder / "._x.jpg").write_bytes(b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X")
    (folder / "flipped.png").write_bytes(png[:60] + bytes([png[60] ^ 255]) + png[61:])
    return {
        "cut.jpg": "truncated", "cut.png": "truncated", "empty.png": "empty", "text.jpg": "not an image",
        "._x.jpg": "resource fork", "flipped.png": "damaged",
    }  # fmt: skip


def test_damaged_files_are_listed_with_their_reason_and_skipped(folder):
    good(folder, 60)
    bad = damage(folder)
    data = read(folder, size=(16, 16))
    assert len(data) == 60 and data.names[0] == "good00.png"
    assert np.array_equal(data.array[59], noise(59, 16, 16, 3))
    told = {p.path: p.reason for p in data.problems}
    assert set(told) == set(bad) and all(word in told[path] for path, word in bad.items())
    assert {p.path for p in check(folder, progress=False).problems} == set(bad)


def test_too_many_damaged_files_end_it(folder, cache):
    good(folder, 10)
    damage(folder)
    with pytest.raises(LimnerError, match=r"of 15 images cannot be read, such as .*max-bad"):
        read(folder)
    assert not list(cache.rglob("*.npy")) and not list(cache.glob("packed/*"))
    assert len(read(folder, DataOptions(max_bad=0.5))) == 10


def test_every_cut_of_a_file_is_survived(folder):
    good(folder, 1)
    for format in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"):
        whole = encoded(Image.fromarray(noise(0, 24, 24, 3)), format)
        for cut in range(0, len(whole), max(1, len(whole) // 12)):
            (folder / f"{cut}.{format.lower()}").write_bytes(whole[:cut])
            mangled = bytearray(whole)
            mangled[cut] ^= 255
            (folder / f"{cut}-mangled.{format.lower()}").write_bytes(bytes(mangled))
    data = read(folder, ANY)
    assert len(data) >= 1 and len(data) + len(data.problems) == len(os.listdir(folder))
    assert all(p.reason for p in data.problems)


# 10. Modes and depths ---------------------------------------------------------------------------------------

GREY = np.arange(256, dtype=np.uint8).reshape(16, 16)
RGB = noise(1, 16, 16, 3)
ALPHA = noise(2, 16, 16)
RED_AND_CLEAR = np.tile(np.array([0, 1], np.uint8), (16, 8))  # palette indices


def palette() -> Image.Image:
    image = Image.fromarray(RED_AND_CLEAR, "P")
    image.putpalette([255, 0, 0, 0, 255, 0])
    return image


def over_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None].astype(float) / 255
    return np.rint(np.rint(colour * share) + 255 * (1 - share))


def la() -> Image.Image:
    return Image.merge("LA", (Image.fromarray(GREY), Image.fromarray(ALPHA)))


def three(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, -1)


MODES = {  # name: (file's bytes, suffix, pixels expected as RGB over white)
    "1": (lambda: encoded(Image.fromarray(GREY > 99)), three((GREY > 99) * 255.0)),
    "L": (lambda: encoded(Image.fromarray(GREY)), three(GREY)),
    "LA": (lambda: encoded(la()), over_white(three(GREY), ALPHA)),
    "P": (lambda: encoded(palette()), np.where(RED_AND_CLEAR[..., None], [0, 255, 0], [255, 0, 0])),
    "P with transparency": (
        lambda: encoded(palette(), transparency=1),
        np.where(RED_AND_CLEAR[..., None], [255, 255, 255], [255, 0, 0]),
    ),
    "L with a transparent grey": (
        lambda: encoded(Image.fromarray(GREY), transparency=7),
        three(np.where(GREY == 7, 255, GREY)),
    ),
    "RGBA": (lambda: encoded(Image.fromarray(np.dstack([RGB, ALPHA]))), over_white(RGB, ALPHA)),
    "CMYK": (
        lambda: encoded(Image.fromarray(np.dstack([255 - RGB, 0 * ALPHA]), "CMYK"), "TIFF"),
        RGB,
    ),
}


@pytest.mark.filterwarnings("ignore:.*'mode' parameter")
@pytest.mark.parametrize("mode", MODES)
def test_each_mode_becomes_the_documented_pixels(folder, mode):
    content, expected = MODES[mode]
    data = content()
    (folder / f"x.{Image.open(io.BytesIO(data)).format.lower()}").write_bytes(data)
    pixels = read(folder, DataOptions(channels=3)).array[0]
    assert pixels.dtype == np.uint8 and np.abs(pixels - expected).max() <= (
        1 if mode in ("LA", "RGBA") else 0
    )


@pytest.mark.filterwarnings("ignore:.*'mode' parameter")
@pytest.mark.parametrize(
    ("mode", "channels"),
    [("1", 1), ("L", 1), ("P", 3), ("CMYK", 3), ("LA", 4), ("P with transparency", 4), ("RGBA", 4)],
)
def test_channels_are_those_that_are_used(folder, mode, channels):
    data = MODES[mode][0]()
    (folder / f"x.{Image.open(io.BytesIO(data)).format.lower()}").write_bytes(data)
    assert read(folder).spec.channels == channels


def test_alpha_that_is_nowhere_used_is_dropped(folder):
    Image.fromarray(np.dstack([RGB, np.full_like(ALPHA, 255)])).save(folder / "x.png")
    data = read(folder)
    assert data.spec.channels == 3 and np.array_equal(data.array[0], RGB)


def test_the_background_is_the_stated_one(folder):
    Image.new("RGBA", (16, 16), (255, 255, 255, 0)).save(folder / "x.png")
    for name, colour in {"black": (0, 0, 0), "#102030": (16, 32, 48)}.items():
        assert (read(folder, DataOptions(channels=3, background=name)).array == colour).all()
    with pytest.raises(LimnerError, match="'blurple' is not a colour"):
        read(folder, DataOptions(background="blurple"))


def test_16_bits_are_scaled_not_clipped(folder):
    deep = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    Image.fromarray(deep).save(folder / "a.png")
    Image.fromarray(deep).save(folder / "b.tiff")
    Image.fromarray(deep.astype(np.int32)).save(folder / "c.tiff")  # mode I
    Image.fromarray((deep / 65535).astype(np.float32)).save(folder / "d.tiff")
    Image.fromarray(GREY).save(folder / "e.png")
    (folder / "f.pgm").write_bytes(b"P5 16 16 65535\n" + deep.astype(">u2").tobytes())
    data = read(folder)
    assert data.array.dtype == np.uint16 and data.spec.channels == 1 and not data.problems
    for i, name in enumerate("abcdef"):
        off = np.abs(data.array[i, ..., 0].astype(int) - deep.astype(int)).max()
        assert off <= {"d": 1}.get(name, 0), name

    image = data.batch(np.array([0])).image
    assert image.min() == -1 and image.max() == 1


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 255), (0, 65535), (-3, 3)])
def test_floats_of_each_range_fill_16_bits(folder, low, high):
    deep = np.linspace(0, 65535, 256).round().reshape(16, 16)
    Image.fromarray((deep / 65535 * (high - low) + low).astype(np.float32)).save(folder / "x.tiff")
    assert np.abs(read(folder).array[0, ..., 0].astype(int) - deep.astype(int)).max() <= 1


def test_a_float_image_with_nan_is_survived(folder):
    values = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    values[0, 1] = np.nan
    Image.fromarray(values).save(folder / "x.tiff")
    assert read(folder).array[0, 0, 1, 0] == 0


# 11. Orientation --------------------------------------------------------------------------------------------

UNDO = {  # EXIF orientation: how the stored pixels follow from the upright ones
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("size", [None, (12, 16), (30, 10)])
def test_all_orientations_load_as_the_same_pixels(folder, format, size):
    upright = noise(3, 24, 32, 3)
    for orientation, undo in UNDO.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        stored = Image.fromarray(np.ascontiguousarray(undo(upright)))
        how = {"lossless": True} if format == "WEBP" else {}
        stored.save(folder / f"{orientation}.{format.lower()}", exif=exif, **how)
    data = read(folder, size=size)
    assert len(data) == 8 and data.spec.shape[1:] == (size or (24, 32))
    assert all(np.array_equal(data.array[i], data.array[0]) for i in range(8))
    if size is None:
        assert np.array_equal(data.array[0], upright)


def test_orientations_of_jpegs(folder):
    y, x = np.mgrid[:480, :640] / 640
    upright = (np.stack([x, y, 1 - x], -1) * 255).astype(np.uint8)
    for orientation, undo in UNDO.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        stored = Image.fromarray(np.ascontiguousarray(undo(upright)))
        stored.save(folder / f"{orientation}.jpg", exif=exif, quality=95)
    pixels = read(folder, size=(24, 32)).array.astype(int)
    assert np.abs(pixels - pixels[0]).max() <= 3  # JPEG itself is not the same in eight directions


# 12. Animations ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_the_first_frame_of_an_animation(folder, format):
    first, second = (Image.fromarray(np.full((16, 16, 3), v, np.uint8)) for v in (200, 20))
    how = {"lossless": True} if format == "WEBP" else {}
    first.save(folder / f"x.{format.lower()}", save_all=True, append_images=[second], **how)
    assert (read(folder, DataOptions(channels=3)).array == 200).all()
    assert check(folder, progress=False).animated == 1


# 13. Decompression bombs ------------------------------------------------------------------------------------


def png_bomb(width: int, height: int) -> bytes:
    """A PNG of a few kilobytes whose header claims any size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(bytes(1_000_000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


def test_a_bomb_is_skipped_from_its_header_in_flat_memory(folder):
    good(folder, 20)
    (folder / "bomb.png").write_bytes(png_bomb(60_000, 60_000))
    (folder / "less.png").write_bytes(png_bomb(12_000, 12_000))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    data = read(folder)
    assert (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000
    )  # KiB; decoded: 400 MB and more
    assert [p.path for p in data.problems] == ["bomb.png", "less.png"]
    assert all("million pixels" in p.reason for p in data.problems)


# 14. Few images or none -------------------------------------------------------------------------------------


def test_no_images_is_a_clear_error(folder, tmp_path):
    with pytest.raises(LimnerError, match="no images"):
        read(folder)
    (folder / "notes.md").write_text("nothing to see")
    with pytest.raises(LimnerError, match="1 files of other kinds"):
        read(folder)
    (folder / "bad.png").write_bytes(b"")
    with pytest.raises(LimnerError, match=r"'bad.png' cannot be read: the file is empty"):
        read(folder, ANY)
    assert check(folder, progress=False).images == 0
    for nothing in ([], "", tmp_path / "nowhere"):
        with pytest.raises(LimnerError):
            read(nothing)


@pytest.mark.parametrize("count", [1, 3])
def test_few_images_fill_any_batch(folder, count):
    good(folder, count)
    data = read(folder)
    training, held = data.split(0.05)
    assert len(training) == count and len(held) == 0
    batch = training.batch(training.order(0, 64, seed=0))
    assert batch.image.shape == (64, 3, 16, 16)
    with pytest.raises(LimnerError, match="no images to train on"):
        held.order(0, 1, seed=0)


# 15. Odd sizes and names ------------------------------------------------------------------------------------


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
def test_extreme_and_mixed_sizes(folder, fit):
    for i, (height, width) in enumerate([(1, 1), (1, 10_000), (10_000, 1), (3, 5), (500, 20)]):
        Image.new("RGB", (width, height), (9, 99, 199)).save(folder / f"{i}.png")
        Image.new("RGB", (width, height), (9, 99, 199)).save(folder / f"{i}.jpg")
    data = read(folder, DataOptions(fit=fit, background="#0963c7"), size=(24, 16))
    assert len(data) == 10 and data.spec.shape == (3, 24, 16) and not data.problems
    assert np.abs(data.array.astype(int) - [9, 99, 199]).max() <= 3


def test_odd_names(folder):
    names = ["😀.png", "two\nlines.png", " spaces .PNG", "a.b.c.png", "'quoted\".png"]
    for i, name in enumerate(names):
        Image.fromarray(noise(i, 16, 16, 3)).save(folder / name, "PNG")
    with open(os.fsencode(folder) + b"/no\xff\xfeutf8.png", "wb") as file:
        file.write(encoded(Image.fromarray(noise(9, 16, 16, 3))))
    bytes_folder = os.fsencode(folder) + b"/cl\xe9ss"
    os.mkdir(bytes_folder)
    data = read(folder)
    assert len(data) == 6 and set(names) < set(data.names) and not data.problems
    assert "no\ufffd\ufffdutf8.png" in data.names
    again = read(folder)  # from the cache
    assert again.names == data.names
    assert "\n" not in str(check(folder, progress=False)).split("images in", 1)[0]


def test_class_folders_with_odd_names(folder):
    for i, name in enumerate([b"cl\xe9ss", "猫".encode(), b"a\nb"]):
        inside = os.path.join(os.fsencode(folder), name)
        os.mkdir(inside)
        with open(os.path.join(inside, b"x.png"), "wb") as file:
            file.write(encoded(Image.fromarray(noise(i, 16, 16, 3))))
    assert set(read(folder).spec.classes) == {"cl\ufffdss", "猫", "a\nb"}


def test_links_that_loop_or_lead_nowhere(folder):
    (folder / "a").mkdir()
    good(folder / "a", 12)
    (folder / "a" / "up").symlink_to(folder)
    (folder / "a" / "self.png").symlink_to(folder / "a" / "self.png")
    (folder / "nowhere.png").symlink_to("gone.png")
    (folder / "linked.png").symlink_to(folder / "a" / "good00.png")
    os.mkfifo(folder / "pipe.png")  # opening it would wait for ever
    data = read(folder)
    assert len(data) == 13 and "linked.png" in data.names
    assert {p.path for p in data.problems} == {"a/up", "a/self.png", "nowhere.png", "pipe.png"}


def test_a_folder_that_cannot_be_listed_is_a_problem(folder, monkeypatch):
    good(folder, 2)
    (folder / "locked").mkdir()
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    data = read(folder)
    assert len(data) == 2 and data.problems[0].reason == "cannot be read (Permission denied)"


# 16. Archives -----------------------------------------------------------------------------------------------

PNG = encoded(Image.fromarray(noise(0, 16, 16, 3)))


def tar_of(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for member, content in members:
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


@pytest.mark.parametrize(
    "name", ["../out.png", "a/../../out.png", "/tmp/out.png", "C:/out.png", "..\\out.png"]
)
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_archives_with_names_that_lead_outside_are_refused_whole(tmp_path, cache, kind, name):
    path = tmp_path / f"evil.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("fine.png", PNG)
            archive.writestr(name, PNG)
    else:
        tar_of(path, (member("fine.png"), PNG), (member(name), PNG))
    refused(path, tmp_path, cache)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_tars_with_links_or_devices_are_refused_whole(tmp_path, cache, kind):
    path = tar_of(tmp_path / "evil.tar", (member("fine.png"), PNG), (member("x.png", kind, "fine.png"), b""))
    refused(path, tmp_path, cache)


def test_zips_with_links_are_refused_whole(tmp_path, cache):
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr("fine.png", PNG)
        link = zipfile.ZipInfo("x.png")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    refused(tmp_path / "evil.zip", tmp_path, cache)


def refused(path: Path, around: Path, cache: Path) -> None:
    before = sorted(around.rglob("*"))
    for act in (read, lambda p: check(p, progress=False)):
        with pytest.raises(LimnerError, match=rf"{path.name} is refused:"):
            act(path)
    assert sorted(around.rglob("*")) == before and not [p for p in cache.rglob("*") if p.is_file()]


def test_archive_bombs_are_refused_whole_in_flat_memory(tmp_path, cache):
    how = {"compression": zipfile.ZIP_DEFLATED, "compresslevel": 1}
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", **how) as archive, archive.open("x.bmp", "w") as file:
        for _ in range(300):
            file.write(bytes(2**20))
    info = member("x.bmp")
    info.size = 300 * 2**20
    with gzip.open(tmp_path / "bomb.tar.gz", "wb", compresslevel=1) as file:
        file.write(info.tobuf())
        for _ in range(300):
            file.write(bytes(2**20))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name in ("bomb.zip", "bomb.tar.gz"):
        assert (tmp_path / name).stat().st_size < 4 * 2**20
        refused(tmp_path / name, tmp_path, cache)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz", ".tar.xz"])
@pytest.mark.parametrize(
    "content", [b"", b"no archive at all", b"PK\x03\x04 cut off", b"\x1f\x8b\x08 cut off"]
)
def test_a_damaged_archive_is_a_clear_error(tmp_path, suffix, content):
    (tmp_path / f"x{suffix}").write_bytes(content)
    with pytest.raises(LimnerError, match=r"cannot be read as an archive|no images"):
        read(tmp_path / f"x{suffix}")


def damaged_zip(path: Path, files: dict[str, bytes], damaged: str) -> Path:
    """A zip with one member whose bytes no longer match its checksum."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        at = archive.getinfo(damaged).header_offset + 30 + len(damaged)
    whole = bytearray(path.read_bytes())
    whole[at] ^= 255
    path.write_bytes(whole)
    return path


def test_half_a_surrogate_in_labels_and_captions_is_survived(folder):
    good(folder, 2)
    for i, half in enumerate(["\\ud800", "\\udc00"]):
        (folder / f"good{i:02d}.json").write_text(f'{{"label": "{half}{i}", "text": "{half}"}}')
    (folder / "metadata.jsonl").write_text('{"file_name": "\\ud800.png"}')
    data = read(folder)
    assert data.spec.classes == ("\ufffd0", "\ufffd1") and data.captions == ["\ufffd"] * 2
    assert [p.path for p in data.problems] == ["\ufffd.png"]


@pytest.mark.parametrize(
    ("name", "content"),
    [("metadata.jsonl", b"[" * 100_000), ("metadata.csv", b"file_name,text\n1.png," + b"x" * 200_000)],
)
def test_metadata_that_cannot_be_read_is_a_clear_error(folder, tmp_path, name, content):
    good(folder, 1)
    (folder / name).write_bytes(content)
    with pytest.raises(LimnerError, match=rf"{name} .*fix or remove it"):
        read(folder)
    with pytest.raises(LimnerError, match=rf"{name} cannot be read .*CRC.*fix or remove it"):
        read(damaged_zip(tmp_path / "a.zip", {name: b"file_name\n1.png\n"}, name))


# The cache --------------------------------------------------------------------------------------------------


def test_a_cache_that_cannot_be_written_is_a_clear_error(folder, tmp_path, monkeypatch):
    good(folder, 2)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(LimnerError, match=r"it needs about [\d,]+ bytes there.*--data.cache"):
        read(folder, DataOptions(cache=str(tmp_path / "file")))


def test_a_full_disk_leaves_nothing_behind(folder, cache, monkeypatch):
    good(folder, 2)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(LimnerError, match=r"No space left on device.*bytes there"):
        read(folder)
    assert not list(cache.glob("packed/*"))


def test_what_a_killed_packing_left_is_removed_after_a_day(folder, cache):
    good(folder, 2)
    old, new = cache / "packed" / "unfinished-old", cache / "packed" / "unfinished-new"
    old.mkdir(parents=True)
    new.mkdir()
    os.utime(old, (1, 1))
    read(folder)
    assert not old.exists() and new.exists()


def test_progress_survives_any_folder_name(tmp_path):
    odd = os.path.join(os.fsencode(tmp_path), b"[bold] [red \xff")
    os.mkdir(odd)
    good(Path(os.fsdecode(odd)), 2)
    assert len(open_data(os.fsdecode(odd))) == 2


def test_what_stands_beside_an_image_may_be_damaged(tmp_path, cache):
    paint(tmp_path / "images", 4)
    (tmp_path / "images" / "000.json").write_text("[" * 100_000)
    (tmp_path / "images" / "001.txt").write_text("a caption that is long enough to be found again")
    path = tmp_path / "images.zip"
    with zipfile.ZipFile(path, "w") as file:
        for each in sorted((tmp_path / "images").iterdir()):
            file.write(each, each.name)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"long enough", b"long en0ugh", 1))
    data = open_data(str(path), size=(8, 8), progress=False)
    assert len(data) == 4
    told = check([str(path)], progress=False)
    assert [p.path for p in told.problems] == ["images.zip/001.txt"] and not any(
        "would stop" in line for line in told.advice
    )


def test_what_is_no_image_does_not_stop_a_training(tmp_path, cache):
    paint(tmp_path / "images", 20)
    for i in range(20):
        (tmp_path / "images" / f"._{i:03d}.png").write_bytes(b"a fork")
    assert len(open_data(str(tmp_path / "images"), size=(8, 8), progress=False)) == 20
    assert not any("would stop" in line for line in check([str(tmp_path / "images")], progress=False).advice)
