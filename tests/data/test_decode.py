"""Pixels of image files: colours, bits, ranges of numbers, what lies beside the pixels, and what decoding may take."""

from __future__ import annotations

import io
import struct
import threading
import time
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from limner.data import check, open_data
from limner.data.images import decode, deep, limits, png, profiles
from limner.data.images.header import Header, read_header
from limner.data.images.limits import Budget, Unusable
from limner.data.images.opening import TURNS
from limner.settings import DataOptions


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("LIMNER_CACHE", str(tmp_path_factory.mktemp("cache")))


def noise(seed: int, *shape: int, dtype=np.uint8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max + 1, shape, dtype=dtype)


def encoded(image: Image.Image, format: str = "PNG", **how) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **how)
    return file.getvalue()


def pixels(content: bytes, height: int = 16, width: int = 16, **how) -> np.ndarray:
    return decode.decode(io.BytesIO(content), height, width, "crop", **how)[0]


def header(content: bytes) -> Header:
    return read_header(io.BytesIO(content))


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def with_chunk(content: bytes, kind: bytes, inside: bytes) -> bytes:
    """A PNG with a chunk after its header."""
    return content[:33] + chunk(kind, inside) + content[33:]


# Colours ----------------------------------------------------------------------------------------------------

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
D65 = (0.3127, 0.3290)
ADOBE = profiles._made("Adobe RGB", ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06), D65), 563 / 256)
P3 = profiles._made("Display P3", ((0.68, 0.32), (0.265, 0.69), (0.15, 0.06), D65), None)
GREY = profiles._made("linear grey", ((0.64, 0.33), (0.3, 0.6), (0.15, 0.06), D65), 1.0)
GREY = (GREY[:16] + b"GRAY" + GREY[20:]).replace(b"rTRC", b"kTRC")
GREEN = Image.new("RGB", (16, 16), (60, 200, 80))


@pytest.mark.parametrize(
    ("profile", "seen"),
    [(ADOBE, (0, 201, 67)), (P3, (0, 203, 58)), (SRGB, (60, 200, 80)), (b"", (60, 200, 80))],
)
@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP", "JPEG", "AVIF"])
def test_colours_of_a_profile_become_srgb(profile, seen, format):
    how = {"lossless": True} if format == "WEBP" else {"quality": 100} if format != "PNG" else {}
    content = encoded(GREEN, format, icc_profile=profile, **how)
    off = np.abs(pixels(content).astype(int) - seen).max()
    assert off <= {"JPEG": 2, "AVIF": 4}.get(format, 1)  # these two lose a little by themselves
    assert bool(header(content).profile) == (profile in (ADOBE, P3))


def test_transparency_palettes_and_grey_keep_their_form_under_a_profile():
    clear = GREEN.convert("RGBA")
    clear.putpixel((0, 0), (60, 200, 80, 0))
    seen = pixels(encoded(clear, icc_profile=ADOBE))
    assert seen.shape[-1] == 4 and seen[0, 0].tolist() == [0] * 4 and seen[9, 9].tolist() == [0, 201, 67, 255]
    assert pixels(encoded(GREEN.quantize(4), icc_profile=ADOBE))[9, 9].tolist() == [0, 201, 67]
    grey = pixels(encoded(Image.new("L", (16, 16), 55), icc_profile=GREY))
    assert grey.shape[-1] == 1 and grey[0, 0, 0] == 128  # linear 0.216 is half of the way in sRGB
    assert pixels(encoded(Image.new("L", (16, 16), 55), icc_profile=ADOBE))[0, 0, 0] == 55, (
        "not a grey profile"
    )


def test_16_bits_keep_them_under_a_profile():
    deep_green = np.array([60, 200, 80], np.uint16) * np.uint16(257) + np.zeros((16, 16, 1), np.uint16)
    deep_green[:, 8:] += 20
    content = png.written(deep_green)
    content = with_chunk(content, b"iCCP", b"x\0\0" + zlib.compress(ADOBE))
    seen = pixels(content)
    assert seen.dtype == np.uint16 and np.abs(seen[0, 0] / 257 - [0, 201.3, 67.1]).max() < 0.1
    assert 0 < int(seen[0, 15, 1]) - int(seen[0, 0, 1]) < 40, "a step of less than 8 bits stays one"
    grey = with_chunk(
        png.written(np.full((16, 16, 1), 55 * 257, np.uint16)), b"iCCP", b"x\0\0" + zlib.compress(GREY)
    )
    assert abs(int(pixels(grey)[0, 0, 0]) - 128 * 257) < 200


def test_the_two_ways_of_converting_agree():
    """Little CMS for 8 bits, and this module's own arithmetic for 16, over all of the space."""
    colours = noise(0, 64, 64, 3)
    for profile in (ADOBE, P3):
        known = profiles._examined(profile)
        eight = np.asarray(known.convert(Image.fromarray(colours))).astype(float)
        assert np.abs(eight - known.convert_deep(colours.astype(np.uint16) * 257) / 257).max() < 1.5


@pytest.mark.parametrize(
    "profile", [b"", b"x" * 200, ADOBE[:200], ADOBE[:128], ADOBE.replace(b"XYZ ", b"xyz ")]
)
def test_a_broken_profile_counts_as_absent(profile):
    content = with_chunk(encoded(GREEN), b"iCCP", b"x\0\0" + zlib.compress(profile))
    assert (pixels(content) == (60, 200, 80)).all() and not header(content).profile


@pytest.mark.parametrize(
    ("kind", "inside", "seen"),
    [
        (b"cICP", bytes([12, 13, 0, 1]), (0, 203, 58)),  # Display P3
        (b"cICP", bytes([1, 13, 0, 1]), (60, 200, 80)),  # sRGB
        (b"cICP", bytes([9, 16, 0, 1]), (60, 200, 80)),  # HDR, which is not rendered
        (b"gAMA", struct.pack(">I", 45455), (60, 200, 80)),
        (b"gAMA", struct.pack(">I", 100000), (60, 200, 80)),  # without cHRM it counts for nothing
    ],
)
def test_what_a_png_says_of_its_colours(kind, inside, seen):
    assert np.abs(pixels(with_chunk(encoded(GREEN), kind, inside)).astype(int) - seen).max() <= 1


def test_gamma_and_primaries_of_a_png_count_together():
    chrm = struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)
    grey = encoded(Image.new("RGB", (16, 16), (55, 55, 55)))
    linear = with_chunk(with_chunk(grey, b"cHRM", chrm), b"gAMA", struct.pack(">I", 100000))
    assert (pixels(linear) == 128).all()
    usual = with_chunk(with_chunk(grey, b"cHRM", chrm), b"gAMA", struct.pack(">I", 45455))
    assert (pixels(usual) == 55).all() and not header(usual).profile
    assert (pixels(with_chunk(linear, b"sRGB", b"\0")) == 55).all()


def test_data_check_and_packing_say_which_profiles_there_are(tmp_path, capsys):
    for i in range(3):
        GREEN.save(tmp_path / f"{i}.png", icc_profile=ADOBE if i else SRGB)
    report = check(str(tmp_path), progress=False)
    said = "2 of 3 images have another colour profile than sRGB (Adobe RGB): they are converted to sRGB."
    assert report.profiles == {"Adobe RGB": 2} and said in report.notes and said in str(report)
    data = open_data(str(tmp_path))
    assert said in data.notes and said in " ".join(capsys.readouterr().err.split())
    assert data.array[:, 0, 0].tolist() == [[60, 200, 80], [0, 201, 67], [0, 201, 67]]


# Bits -------------------------------------------------------------------------------------------------------


def tiff(
    values: np.ndarray, order: str = "<", compression: int = 1, apart: bool = False, extra: int | None = None
):
    """A TIFF of three strips, [H, W, C]: uncompressed (1) or deflated (8)."""
    height, width, channels = values.shape
    rows = -(-height // 3)
    planes = [values[..., i : i + 1] for i in range(channels)] if apart else [values]
    strips = [plane[y : y + rows] for plane in planes for y in range(0, height, rows)]
    parts = [strip.astype(values.dtype.newbyteorder(order)).tobytes() for strip in strips]
    parts = [zlib.compress(part) for part in parts] if compression == 8 else parts
    floats = values.dtype.kind == "f"
    tags = {
        256: [width], 257: [height], 258: [8 * values.itemsize] * channels, 259: [compression],
        262: [2 if channels > 2 else 1], 273: [0] * len(parts), 277: [channels], 278: [rows],
        279: [len(part) for part in parts], 284: [2 if apart else 1],
        **({338: [extra]} if extra is not None else {}), **({339: [3] * channels} if floats else {}),
    }  # fmt: skip
    after = 8 + 2 + 12 * len(tags) + 4 + sum(4 * len(v) for v in tags.values() if len(v) > 1)
    tags[273] = [after + sum(map(len, parts[:i])) for i in range(len(parts))]
    directory, more, at = struct.pack(order + "H", len(tags)), b"", 8 + 2 + 12 * len(tags) + 4
    for tag, numbers in sorted(tags.items()):
        content = struct.pack(f"{order}{len(numbers)}I", *numbers)
        inline = content if len(numbers) == 1 else struct.pack(order + "I", at + len(more))
        directory += struct.pack(order + "HHI", tag, 4, len(numbers)) + inline
        more += content if len(numbers) > 1 else b""
    mark = b"II*\0" if order == "<" else b"MM\0*"
    return mark + struct.pack(order + "I", 8) + directory + bytes(4) + more + b"".join(parts)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_png_of_16_bits_keeps_them(channels):
    values = noise(0, 16, 16, channels, dtype=np.uint16)
    seen, told = pixels(png.written(values)), header(png.written(values))
    expected = values[..., [0, 0, 0, 1]] if channels == 2 else values
    if channels in (2, 4):
        colour, alpha = expected[..., :3].astype(float), expected[..., 3:]
        expected = np.concatenate([np.rint(colour * alpha / 65535), alpha], -1)
    assert seen.dtype == np.uint16 and np.abs(seen - expected.astype(float)).max() <= channels // 4
    assert told.bits == 16 and told.channels == seen.shape[-1] and not told.cut


def test_interlaced_png_of_16_bits_keeps_them():
    values = noise(0, 16, 16, 3, dtype=np.uint16)
    passes = [
        (0, 0, 8, 8),
        (0, 4, 8, 8),
        (4, 0, 8, 4),
        (0, 2, 4, 4),
        (2, 0, 4, 2),
        (0, 1, 2, 2),
        (1, 0, 2, 1),
    ]
    rows = [row for y, x, down, right in passes for row in values[y::down, x::right]]
    raw = b"".join(b"\0" + row.astype(">u2").tobytes() for row in rows)
    head = struct.pack(">IIBBBBB", 16, 16, 16, 2, 0, 0, 1)
    content = png.MAGIC + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    assert np.array_equal(pixels(content), values)


def test_one_transparent_colour_of_16_bits():
    values = noise(0, 16, 16, 3, dtype=np.uint16)
    values[0, 0] = values[5, 5] = (1000, 20000, 65000)
    values[0, 1] = (1001, 20000, 65000)  # unlike it in the last bit alone
    content = with_chunk(png.written(values), b"tRNS", struct.pack(">3H", 1000, 20000, 65000))
    seen = pixels(content)
    assert (
        seen[..., 3].min() == 0
        and (seen[..., 3] == 0).sum() == 2
        and np.array_equal(seen[0, 1, :3], values[0, 1])
    )
    grey = with_chunk(png.written(values[..., :1]), b"tRNS", struct.pack(">H", 1000))
    assert header(grey).channels == 4 and (pixels(grey)[..., 3] == 0).sum() == (values[..., 0] == 1000).sum()


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compression", [1, 8])
@pytest.mark.parametrize(("channels", "extra"), [(3, None), (4, 0), (4, 1), (4, 2)])
def test_tiff_of_16_bits_keeps_them(order, compression, channels, extra):
    values = noise(0, 16, 16, channels, dtype=np.uint16)
    seen = pixels(tiff(values, order, compression, extra=extra))
    expected = values[..., :3] if extra == 0 else values  # a fourth channel without a meaning is dropped
    if extra == 1:  # premultiplied in the file
        expected = np.minimum(values, values[..., 3:])
    elif extra == 2:
        alpha = values[..., 3:]
        expected = np.concatenate([np.rint(values[..., :3].astype(float) * alpha / 65535), alpha], -1)
    assert seen.dtype == np.uint16 and np.abs(seen - expected.astype(float)).max() <= (extra == 2)


def test_the_pages_of_a_tiff_of_16_bits_are_its_frames():
    """The first page was read again for each of them."""
    pages, file = noise(0, 3, 8, 8, 3, dtype=np.uint16), bytearray(struct.pack("<2sHI", b"II", 42, 8))
    for page in pages:
        at = len(file) + 2 + 9 * 12 + 4  # of what follows the directory: the bits, then the pixels
        tags = {256: 8, 257: 8, 258: at, 259: 1, 262: 2, 273: at + 6, 277: 3, 278: 8, 279: page.nbytes}
        file += struct.pack("<H", len(tags))
        for tag, value in tags.items():
            file += struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 3 if tag == 258 else 1, value)
        file += struct.pack("<I3H", at + 6 + page.nbytes, 16, 16, 16) + page.astype("<u2").tobytes()
    last = len(file) - pages[0].nbytes - 6 - 4
    file[last : last + 4] = bytes(4)
    for count in (1, 2, 3):
        assert np.array_equal(decode.decode(io.BytesIO(file), 8, 8, "crop", count), pages[:count])
    assert np.array_equal(decode.decode(io.BytesIO(file), 8, 8, "crop", 4), pages[[0, 1, 2, 2]])


def test_frames_of_different_depths_are_told():
    file = io.BytesIO()
    deep_page, page = Image.fromarray(np.full((8, 8), 40_000, np.uint16)), Image.new("L", (8, 8))
    deep_page.save(file, "TIFF", save_all=True, append_images=[page])
    file.seek(0)
    with pytest.raises(Unusable, match="different depths"):
        decode.decode(file, 8, 8, "crop", 2)
    file.seek(0)
    assert decode.decode(file, 8, 8, "crop").max() == 40_000


def test_tiff_with_its_channels_apart(tmp_path):
    values = noise(0, 16, 16, 3, dtype=np.uint16)
    assert np.array_equal(pixels(tiff(values, apart=True)), values)
    (tmp_path / "x.tif").write_bytes(
        tiff(values, compression=8, apart=True)
    )  # 8 bits are all that Pillow gives
    assert (
        "1 of 1 images are colour of more than 8 bits that is taken as 8 (1 TIFF)."
        in check(str(tmp_path), progress=False).notes
    )


def test_a_crop_of_16_bits_is_that_of_8():
    small = Image.fromarray(60 + noise(0, 4, 6, 3) // 2)
    values = np.asarray(small.resize((60, 40), Image.Resampling.BILINEAR))
    eight = pixels(encoded(Image.fromarray(values)), 20, 20)
    sixteen = pixels(png.written(values.astype(np.uint16) * 257), 20, 20)
    assert np.abs(sixteen / 257 - eight).max() <= 1


def test_equal_numbers_of_two_images_stay_equal(tmp_path):
    """Floats and large integers have one range for a source, not one for each image."""
    ramp = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    Image.fromarray(ramp * 2000 - 1000).save(tmp_path / "a.tiff")
    Image.fromarray(ramp * 200).save(tmp_path / "b.tiff")
    data = open_data(str(tmp_path), progress=False)
    wide, narrow = data.array[..., 0].astype(float)
    assert wide.min() == 0 and wide.max() == 65535
    assert narrow.min() == pytest.approx(32767.5, abs=1) and narrow.max() == pytest.approx(39321, abs=1)
    assert "2 of 2 images are of floats: -1000 becomes black and 1000 white in all." in data.notes
    assert data.notes == check(str(tmp_path), progress=False).notes


@pytest.mark.parametrize(
    ("spans", "expected"),
    [
        ([], deep.Scale()),
        ([("F", 0.0, 0.5)], deep.Scale(floats=(0, 1))),
        ([("F", 0.0, 0.5), ("F", 0.0, 200.0)], deep.Scale(floats=(0, 255))),
        ([("F", 0.0, 60000.0)], deep.Scale(floats=(0, 65535))),
        ([("F", 0.0, 3.0)], deep.Scale(floats=(0, 3))),  # of [0, 255] all would be black
        ([("F", -1.0, 1.0)], deep.Scale(floats=(-1, 1))),
        # Filters overshoot, and an image that is white all over goes slightly above 1: neither changes the others.
        ([("F", 1.0001, 1.0001)], deep.Scale(floats=(0, 1))),
        ([("F", 0.0, 0.9)] * 9 + [("F", 0.0, 1.02)], deep.Scale(floats=(0, 1))),
        ([("F", -0.01, 0.9)] * 9 + [("F", 0.0, 1.0001)], deep.Scale(floats=(0, 1))),
        ([("F", 0.0, 250.0)] * 9 + [("F", -2.0, 258.0)], deep.Scale(floats=(0, 255))),
        ([("F", 0.0, 65000.0)] * 9 + [("F", 0.0, 66000.0)], deep.Scale(floats=(0, 65535))),
        ([("F", 0.0, 0.9)] * 9 + [("F", 0.0, 1e9)], deep.Scale(floats=(0, 1))),  # one of ten does not decide
        ([("F", -400.0, 8848.0)], deep.Scale(floats=(-400, 8848))),  # heights of the Earth
        ([("F", 3.0, 3.0)], deep.Scale(floats=(0, 3))),  # of one number: white, not black
        ([("I", 0.0, 9.0)], deep.Scale()),
        ([("I", 0.0, 9.0), ("I", -5.0, 1e6)], deep.Scale(integers=(-5, 1e6))),
    ],
)
def test_the_range_of_numbers(spans, expected):
    assert deep.scale_of(spans) == expected


@pytest.mark.parametrize("top", [1, 255, 65535])
def test_an_image_slightly_above_the_range_changes_no_other(tmp_path, top):
    ramp = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    for name, high in ("a", 1.0), ("b", 0.5), ("c", 1.0001), ("d", 1.02):
        Image.fromarray(top * high * ramp).save(tmp_path / f"{name}.tiff")
    data = open_data(str(tmp_path), progress=False)
    for row, high in zip(data.array[..., 0].astype(float), (1.0, 0.5, 1.0001, 1.02), strict=True):
        np.testing.assert_allclose(row, (65535 * high * ramp).clip(0, 65535), atol=1)
    assert f"4 of 4 images are of floats: 0 becomes black and {top} white in all." in data.notes
    assert any(note.startswith("2 of them go beyond that, 0 to") for note in data.notes)


def test_floats_of_two_ranges_are_told(tmp_path):
    ramp = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    for i in range(4):
        Image.fromarray(ramp * (255 if i % 2 else 1)).save(tmp_path / f"{i}.tiff")
    notes = open_data(str(tmp_path), progress=False).notes
    assert "2 of them hold 0 to 1 alone and become dark: bring all floats to one range first." in notes
    assert notes == check(str(tmp_path), progress=False).notes


# Sizes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [17, 32, 64, 128, 200])
@pytest.mark.parametrize("size", [(501, 333), (1000, 1000), (1337, 903), (2001, 1999)], ids=str)
def test_a_symmetric_image_stays_symmetric(size, side):
    """Whatever the size, and for a crop, too; a photograph's mirror image is read as that of the photograph."""
    width, height = size
    half = np.kron(noise(1, height // 20 + 1, width // 40 + 1) // 128 * 255, np.ones((20, 20), np.uint8))
    half = half[:height, : (width + 1) // 2]
    read = pixels(
        encoded(Image.fromarray(np.concatenate([half, half[:, ::-1][:, width % 2 :]], 1))), side, side
    )
    assert np.abs(read.astype(int) - read[:, ::-1]).max() <= 1


@pytest.mark.parametrize("side", [32, 100])
def test_small_sizes_are_filtered_exactly(side):
    image = Image.fromarray(noise(2, 480, 640, 3) // 128 * 255)
    exact = image.resize((side, side), Image.Resampling.LANCZOS, (80, 0, 560, 480))
    np.testing.assert_array_equal(pixels(encoded(image), side, side), np.asarray(exact))


def test_large_images_are_filtered_within_two_levels():
    image = Image.fromarray(np.kron(noise(3, 60, 60) // 128 * 255, np.ones((40, 40), np.uint8)))
    exact = np.asarray(image.resize((32, 32), Image.Resampling.LANCZOS), int)
    assert np.abs(pixels(encoded(image), 32, 32)[..., 0] - exact).max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_jpeg_whose_side_is_no_multiple_of_8_keeps_its_place(orientation):
    """The decoder shrinks blocks of 8 pixels: the last reaches beyond the picture, at any way up."""
    ramp = np.linspace(0, 255, 1001).round().astype(np.uint8)
    image = Image.fromarray(np.broadcast_to(ramp, (1001, 1001)))
    back = {5: 5, 6: 8, 8: 6}.get(orientation, orientation)  # what makes it upright again
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = image.transpose(TURNS[back]) if orientation > 1 else image
    read = pixels(encoded(turned, "JPEG", quality=95, exif=exif), 32, 32)[..., 0].astype(int)
    exact = np.asarray(image.resize((32, 32), Image.Resampling.LANCZOS), int)
    assert np.abs(read - exact)[:, 1:-1].max() <= 1


def test_a_run_of_before_finds_its_images(tmp_path):
    """The filter of format 3 reads the pixels, and names the packing, as it did."""
    Image.fromarray(noise(4, 1001, 999, 3)).save(tmp_path / "a.png")
    packings = [
        open_data(str(tmp_path), options=DataOptions(filter=f), progress=False) for f in ("exact", "quick")
    ]
    image = Image.open(tmp_path / "a.png")
    before = image.resize((32, 32), Image.Resampling.LANCZOS, (0.0, 1.0, 999.0, 1000.0), reducing_gap=2.0)
    np.testing.assert_array_equal(packings[1].array[0], np.asarray(before))
    assert packings[0].fingerprint != packings[1].fingerprint


# Beside the pixels ------------------------------------------------------------------------------------------


def test_large_text_does_not_make_a_png_damaged(tmp_path):
    values = noise(0, 24, 24, 3)
    for i, after in enumerate((False, True)):
        text = chunk(b"zTXt", b"a\0\0" + zlib.compress(b"x" * (2**20 + 10)))
        whole = encoded(Image.fromarray(values))
        end = whole.index(b"IDAT") - 4 if not after else len(whole) - 12
        (tmp_path / f"{i}.png").write_bytes(whole[:end] + text + whole[end:])
    info = PngInfo()
    info.add_itxt("XML:com.adobe.xmp", "x" * (2**20 + 10), zip=True)
    Image.fromarray(values).save(tmp_path / "2.png", pnginfo=info)
    report, data = check(str(tmp_path), progress=False), open_data(str(tmp_path), progress=False)
    assert report.images == 3 and not report.problems
    assert all(np.array_equal(one, values) for one in data.array)


def test_a_text_bomb_in_a_png_is_never_inflated():
    bomb = zlib.compressobj(9)
    packed = b"".join(bomb.compress(bytes(2**20)) for _ in range(100)) + bomb.flush()
    content = with_chunk(encoded(GREEN), b"zTXt", b"a\0\0" + packed)
    content = with_chunk(content, b"iCCP", b"a\0\0" + packed)
    with peak_memory() as used:
        assert (pixels(content) == (60, 200, 80)).all()
    assert used() < 60 * 2**20


class peak_memory:
    """Bytes of memory that the process gained at most since the block began."""

    def __enter__(self):
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
        before = self._peak()
        return lambda: self._peak() - before

    def __exit__(self, *_):
        pass

    def _peak(self) -> int:
        with open("/proc/self/status") as file:
            return 1024 * next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))


def test_a_large_profile_in_a_png_is_read():
    padded = ADOBE + bytes(2**20 + 10)
    padded = struct.pack(">I", len(padded)) + padded[4:]
    content = with_chunk(encoded(GREEN), b"iCCP", b"a\0\0" + zlib.compress(padded))
    assert pixels(content)[0, 0].tolist() == [0, 201, 67]


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_damage_beside_the_pixels_changes_nothing(format):
    """Each byte of EXIF, profile and text in turn, with or without a right checksum."""
    exif, info = Image.Exif(), PngInfo()
    exif[0x010F] = "a maker of cameras"
    info.add_text("text", "b" * 40, zip=True)
    image, lossless = Image.fromarray(noise(0, 16, 16, 3)), {"lossless": True} if format == "WEBP" else {}
    how = {"pnginfo": info} if format == "PNG" else {}
    content = encoded(image, format, exif=exif, icc_profile=SRGB[:300], **how, **lossless)
    expected = pixels(encoded(image, format, **lossless))
    for mark, before, after in ((b"a maker", 26, 18), (b"acsp", 36, 90), (b"text\0\0", 0, 16)):
        place = content.find(mark)  # of a PNG, the profile is compressed
        for at in range(place - before, place + after) if place > 0 else ():
            for flip in (1, 255):
                mangled = bytearray(content)
                mangled[at] ^= flip
                assert np.array_equal(pixels(bytes(mangled)), expected), (mark, at)


@pytest.mark.parametrize("value", [0, 9, 255, 65535])
def test_an_orientation_that_is_none_counts_as_upright(value):
    exif = Image.Exif()
    exif[0x0112] = value
    for format in ("PNG", "JPEG", "TIFF"):
        assert header(encoded(Image.new("RGB", (30, 20)), format, exif=exif)).width == 30


def test_tags_of_a_tiff_that_lie_are_left_out():
    values = noise(0, 16, 16, 3)
    whole = tiff(values)
    for tag, kind, count, place in [
        (0x8769, 4, 1, 2**32 - 1),
        (700, 3, 1, 5),
        (0x8825, 4, 9**9, 7),
        (0x8649, 2, 10**6, 9),
    ]:
        content = bytearray(whole)
        at = 10 + 12 * 9  # in place of PlanarConfiguration, whose default it is
        assert struct.unpack_from("<H", content, at)[0] == 284
        struct.pack_into("<HHII", content, at, tag, kind, count, place)
        assert np.array_equal(pixels(bytes(content)), values), tag


# What decoding may take -------------------------------------------------------------------------------------


def icon(side: int, claimed: int) -> bytes:
    """An icon whose only image is a PNG of another size than its directory says."""
    inside = encoded(Image.new("1", (side, side)))
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, claimed, claimed, 0, 0, 1, 32, len(inside), 22) + inside


def test_an_icon_that_holds_more_than_it_says_is_refused():
    content = icon(13_000, 16)
    with peak_memory() as used, pytest.raises(Unusable, match=r"icon that holds an image of 13,000x13,000"):
        header(content)
    assert used() < 50 * 2**20
    assert header(icon(300, 0)).width == 300, "256 and more are written as 0"


@pytest.mark.parametrize(
    "content",
    [
        png.MAGIC + chunk(b"IHDR", struct.pack(">IIBBBBB", 9000, 9000, 8, 2, 0, 0, 0)) + chunk(b"IDAT", b"x\x9c"),
        b"P6 9000 9000 255\n" + bytes(1000),
        encoded(Image.new("RGB", (16, 16)), "BMP").replace(struct.pack("<ii", 16, 16), struct.pack("<ii", 9000, 9000)),
        encoded(Image.new("RGB", (16, 16)), "TGA").replace(struct.pack("<HH", 16, 16), struct.pack("<HH", 9000, 9000)),
    ],
    ids=["PNG", "PPM", "BMP", "TGA"],
)  # fmt: skip
def test_a_header_that_says_more_than_the_file_can_hold(content):
    with peak_memory() as used, pytest.raises(Unusable, match=r"cannot hold 9,000x9,000 pixels"):
        header(content)
    assert used() < 30 * 2**20


def test_an_image_that_takes_too_much_memory_is_refused_by_its_header():
    packed = bytes(9000 * 9000 * 64 // (8 * 1032) + 1000)  # as much as its pixels need at least
    head = struct.pack(">IIBBBBB", 9000, 9000, 16, 6, 0, 0, 0)
    content = png.MAGIC + chunk(b"IHDR", head) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
    with pytest.raises(Unusable, match=r"decoding it takes 1,931 MiB, over 1,280: scale it down first"):
        header(content)


def test_a_progressive_jpeg_of_endless_passes_is_refused():
    whole = encoded(Image.new("L", (4000, 4000)), "JPEG", progressive=True)
    last = whole.rindex(b"\xff\xda")
    many = whole[:-2] + 2000 * whole[last:-2] + whole[-2:]
    started = time.monotonic()
    with pytest.raises(Unusable, match=r"progressive JPEG of 2,\d+ passes over 16 million pixels"):
        pixels(many)
    assert time.monotonic() - started < 3
    assert pixels(whole).max() == 0


def test_pixels_under_way_are_bounded_over_all_threads():
    budget, at_once, most = Budget(100 * 2**20), [0], [0]
    lock = threading.Lock()

    def work(size: int) -> None:
        with budget.hold(size):
            with lock:
                at_once[0] += size
                most[0] = max(most[0], at_once[0])
            time.sleep(0.01)
            with lock:
                at_once[0] -= size

    sizes = [40 * 2**20] * 6 + [300 * 2**20] + [40 * 2**20] * 6
    threads = [threading.Thread(target=work, args=(size,)) for size in sizes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=10)
    assert most[0] == 300 * 2**20, "one that is larger than all of it goes alone"
    assert budget.held == 0 and not any(thread.is_alive() for thread in threads)


@pytest.mark.parametrize("kind", ["16-bit PNG", "float TIFF", "RGBA PNG"])
def test_the_memory_of_a_large_image_is_foretold(kind):
    side = 1100
    if kind == "float TIFF":
        content = tiff(np.zeros((side, side, 1), np.float32))
    else:
        values = np.zeros((side, side, 4), np.uint16)
        content = png.written(values) if kind == "16-bit PNG" else encoded(Image.new("RGBA", (side, side)))
    image = Image.open(io.BytesIO(content))
    pixels(content[:1000] + content[1000:], 64, 64)  # what is imported and kept for good
    with peak_memory() as used:
        pixels(content, 64, 64)
    foretold = limits.cost(image, deep.layout(image))
    assert used() < 1.25 * foretold + 2**22


def test_check_reads_each_file_once(tmp_path, monkeypatch):
    for i in range(4):
        Image.fromarray(noise(i % 3, 16, 16, 3)).save(tmp_path / f"{i}.png")
    opened, read = [], decode.reading
    monkeypatch.setattr(decode, "reading", lambda act, source: opened.append(source) or read(act, source))
    report = check(str(tmp_path), DataOptions(), progress=False)
    assert len(opened) == 4 and report.duplicates == [["0.png", "3.png"]]
