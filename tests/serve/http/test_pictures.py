"""Pictures are measured by their headers: what is refused, and that nothing is decoded."""

import base64
import io
import struct
import time
import zlib

import pytest
from PIL import Image, PngImagePlugin

from limner.serve.http.errors import ApiError
from limner.serve.http.pictures import from_data_url, look


def saved(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def exif(orientation):
    found = Image.Exif()
    found[0x0112] = orientation
    return found.tobytes()


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width=2, height=2, *before):
    """A PNG whose header says a size, with further chunks."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"\0" * 14))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(before) + pixels + chunk(b"IEND", b"")


RGB, RGBA = Image.new("RGB", (5, 3), "red"), Image.new("RGBA", (5, 3), (1, 2, 3, 4))
FRAMES = [Image.new("RGB", (4, 4), (i * 83 % 256, i * 29 % 256, 0)) for i in range(1000)]


def wrong(data, param="image"):
    with pytest.raises(ApiError) as caught:
        look(data, param)
    error = caught.value
    assert (error.status, error.code, error.param) == (400, "invalid_image", param)
    return error.message


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_sizes_are_those_of_the_upright_picture(kind, orientation):
    found = look(saved(RGB, kind, exif=exif(orientation)), "image")
    assert (found.format, found.alpha, found.orientation) == (kind, False, orientation)
    assert (found.height, found.width) == ((5, 3) if orientation >= 5 else (3, 5))
    assert found.stored == (3, 5)


@pytest.mark.parametrize(
    ("data", "alpha"),
    [
        (saved(RGBA, "png"), True),
        (saved(RGBA, "webp"), True),
        (saved(RGBA, "webp", lossless=True), True),
        (saved(RGB, "webp", lossless=True), False),
        (saved(Image.new("LA", (5, 3)), "png"), True),
        (saved(RGB.convert("P"), "png", transparency=0), True),
        (saved(Image.new("L", (5, 3)), "png"), False),
        (saved(Image.new("I;16", (5, 3)), "png"), False),
        (saved(Image.new("CMYK", (5, 3)), "jpeg"), False),
        (saved(RGB, "jpeg", progressive=True), False),
    ],
)
def test_kinds_of_picture(data, alpha):
    found = look(data, "image")
    assert (found.height, found.width, found.alpha) == (3, 5, alpha)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (saved(FRAMES[0], "gif", save_all=True, append_images=FRAMES[1:]), "a GIF"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG"),
        (b"\xef\xbb\xbf  <?xml version='1.0'?><svg/>", "an SVG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "an EPS"),
        (b"\xc5\xd0\xd3\xc6" + b"\0" * 30, "an EPS"),
        (b"%PDF-1.7", "a PDF"),
        (b"\0\0\0 ftypavif\0\0\0\0", "an AVIF"),
        (b"\0\0\0 ftypheic\0\0\0\0", "a HEIC"),
        (b"\0\0\0 ftypisom\0\0\0\0", "a film"),
        (saved(RGB, "bmp"), "a BMP"),
        (saved(RGB, "tiff"), "a TIFF"),
        (b"PK\3\4" + b"\0" * 30, "an archive"),
        (b"hello", "no picture"),
        (b"\0" * 100, "no picture"),
    ],
)
def test_other_files_are_refused_by_name(data, name):
    assert f"image is {name}" in wrong(data)


def test_no_bytes():
    assert wrong(b"", "mask").startswith("mask is empty")


def test_moving_pictures():
    webp = saved(FRAMES[0], "webp", save_all=True, append_images=FRAMES[1:3])
    assert "animated WebP" in wrong(webp)
    assert "animated PNG" in wrong(saved(FRAMES[0], "png", save_all=True, append_images=FRAMES[1:3]))


@pytest.mark.parametrize(
    ("width", "height"), [(65_536, 65_536), (16_385, 1), (1, 16_385), (4001, 4000), (2**31, 2**31)]
)
def test_large_pictures_are_refused_by_their_header(width, height):
    begun = time.process_time()
    assert "are the most" in wrong(png(width, height))
    assert time.process_time() - begun < 0.2


def test_large_jpeg_and_webp():
    jpeg = bytearray(saved(RGB, "jpeg"))
    place = jpeg.find(b"\xff\xc0")
    jpeg[place + 5 : place + 9] = struct.pack(">HH", 65_535, 65_535)
    assert "are the most" in wrong(bytes(jpeg))
    webp = bytearray(saved(RGB, "webp"))
    place = webp.find(b"\x9d\x01\x2a")
    webp[place + 3 : place + 7] = struct.pack("<HH", 16_383, 16_383)
    assert "are the most" in wrong(bytes(webp))


def test_the_largest_pictures():
    assert look(png(4000, 4000), "image").width == 4000
    assert look(png(16_384, 900), "image").width == 16_384


def test_no_pixels():
    assert "no pixels" in wrong(png(0, 5))


def bomb(kind):
    packed = zlib.compress(b"\0" * 50_000_000, 9)
    head = {b"zTXt": b"key\0\0", b"iTXt": b"key\0\1\0\0\0", b"iCCP": b"name\0\0"}[kind]
    return png(2, 2, chunk(kind, head + packed))


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP"])
def test_text_that_inflates(kind):
    data = bomb(kind)
    assert len(data) < 60_000
    begun = time.process_time()
    assert "too much text" in wrong(data)
    assert time.process_time() - begun < 0.2


def test_many_texts_that_inflate():
    """Each is small enough; together they are not."""
    packed = zlib.compress(b"\0" * 1_000_000, 9)
    begun = time.process_time()
    assert "too much text" in wrong(png(2, 2, *[chunk(b"zTXt", b"key\0\0" + packed)] * 5000))
    assert time.process_time() - begun < 0.5


def test_usual_text_is_let_through():
    info = PngImagePlugin.PngInfo()
    info.add_text("key", "x" * 1000, zip=True)
    info.add_itxt("key", "y" * 1000, zip=True)
    assert look(saved(RGB, "png", pnginfo=info), "image").width == 5
    assert look(png(2, 2, chunk(b"zTXt", b"key\0\0damaged")), "image")


def test_many_chunks():
    begun = time.process_time()
    assert "too many pieces" in wrong(png(2, 2, *[chunk(b"abCd", b"")] * 100_000))
    assert time.process_time() - begun < 0.5


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_every_cut_is_refused(kind):
    data = saved(RGB, kind, exif=exif(6))
    for length in range(1, len(data) - 4):
        with pytest.raises(ApiError):
            look(data[:length], "image")


def test_damage_never_ends_in_another_error():
    """Any byte changed: a picture, or ApiError."""
    for kind in ("png", "jpeg", "webp"):
        data = saved(RGBA if kind != "jpeg" else RGB, kind, exif=exif(6))
        for place in range(len(data)):
            for value in (0, 0xFF, data[place] ^ 0x55):
                try:
                    look(data[:place] + bytes([value]) + data[place + 1 :], "image")
                except ApiError as error:
                    assert error.status == 400


ENCODED = base64.b64encode(saved(RGB, "png")).decode()


def test_pictures_in_json():
    data = from_data_url(f"data:image/png;base64,{ENCODED}", "input", 10_000)
    assert data == saved(RGB, "png")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (f"data:image/png;base64,{ENCODED[:40]} {ENCODED[40:]}", "invalid_image"),
        (f"data:image/png;base64, {ENCODED}", "invalid_image"),
        (f"data:image/png;base64,{ENCODED[:-1]}", "invalid_image"),
        (f"data:image/png;base64,{ENCODED}=", "invalid_image"),
        (f"data:image/png;base64,{ENCODED}\n", "invalid_image"),
        (f"data:image/png;base64,{ENCODED[:41]}", "invalid_image"),
        (f"data:image/png;base64,{ENCODED}é", "invalid_image"),
        ("data:image/png;base64,a\ud800bc", "invalid_image"),
        (f"data:image/png,{ENCODED}", "invalid_image"),
        (f"data:text/plain;base64,{ENCODED}", "invalid_image"),
        ("data:", "invalid_image"),
        (ENCODED, "unsupported_parameter"),
        ("https://example.org/a.png", "unsupported_parameter"),
        ("file:///etc/passwd", "unsupported_parameter"),
        ("/etc/passwd", "unsupported_parameter"),
    ],
)
def test_wrong_pictures_in_json(text, code):
    with pytest.raises(ApiError) as caught:
        look(from_data_url(text, "input", 10_000), "input")
    assert (caught.value.code, caught.value.param) == (code, "input")
    assert "passwd" not in caught.value.message


def test_large_pictures_in_json():
    with pytest.raises(ApiError) as caught:
        from_data_url("data:image/png;base64," + "A" * 10_000, "input", 1000)
    assert caught.value.status == 413
