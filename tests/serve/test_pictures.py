"""Pictures from memory as from a file, masks, and drawn images as files."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from limner.core import ImageSpec
from limner.data import (
    mask_from_bytes,
    open_picture,
    own_size_from_bytes,
    picture_from_bytes,
    whole_from_bytes,
)
from limner.serve.engine.answers import encode_image
from limner.serve.messages import Form
from limner.settings import DataOptions, LimnerError

ORIENTATION = 0x0112


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> Image.Image:
    """Smooth random pixels."""
    shape = (6, 5, channels) if channels > 1 else (6, 5)
    small = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def saved(picture: Image.Image, format: str = "PNG", orientation: int = 1, **options: object) -> bytes:
    file = io.BytesIO()
    if orientation > 1:
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        options["exif"] = exif.tobytes()
    picture.save(file, format, **options)
    return file.getvalue()


def deep(height: int, width: int) -> Image.Image:
    values = np.random.default_rng(1).integers(0, 65536, (height, width), dtype=np.uint16)
    return Image.fromarray(values)


FILES = {
    "plain.png": saved(noise(37, 53)),
    "alpha.png": saved(noise(37, 53, 4)),
    "palette.png": saved(noise(40, 40).quantize(16)),
    "grey.png": saved(noise(20, 31, 1)),
    "deep.png": saved(deep(24, 30)),
    "turned.jpg": saved(noise(300, 200), "JPEG", 6),
    "mirrored.jpg": saved(noise(120, 201), "JPEG", 5),
    "large.jpg": saved(noise(1100, 801), "JPEG", progressive=True),
    "cmyk.jpg": saved(noise(64, 48).convert("CMYK"), "JPEG"),
    "clear.webp": saved(noise(50, 33, 4), "WEBP", lossless=True),
    "turned.webp": saved(noise(50, 33), "WEBP", 8, quality=90),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_picture_from_memory_has_the_pixels_of_its_file(name: str, channels: int, tmp_path: Path):
    (tmp_path / name).write_bytes(FILES[name])
    spec = ImageSpec(channels, 16, 24)
    options = DataOptions(background="#204060")
    found = picture_from_bytes(FILES[name], spec, options)
    assert torch.equal(found, open_picture(tmp_path / name, spec, options))
    assert found.dtype == torch.float32 and found.shape == (1, channels, 16, 24)


@pytest.mark.parametrize(
    "options", [{"fit": "pad"}, {"fit": "squash"}, {"fit": "tiles"}, {"filter": "quick"}]
)
def test_every_way_to_meet_the_size(options: dict, tmp_path: Path):
    data, spec, settings = FILES["plain.png"], ImageSpec(3, 16, 40), DataOptions(background="red", **options)
    (tmp_path / "a.png").write_bytes(data)
    assert torch.equal(
        picture_from_bytes(data, spec, settings), open_picture(tmp_path / "a.png", spec, settings)
    )


def test_a_colour_profile_is_applied(tmp_path: Path):
    swapped = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes().replace(b"rXYZ", b"tmpX")
    swapped = swapped.replace(b"gXYZ", b"rXYZ").replace(b"tmpX", b"gXYZ")  # red is green, and green red
    data = saved(noise(32, 32), icc_profile=swapped)
    (tmp_path / "a.png").write_bytes(data)
    spec = ImageSpec(3, 32, 32)
    found = picture_from_bytes(data, spec, DataOptions())
    assert torch.equal(found, open_picture(tmp_path / "a.png", spec, DataOptions()))
    assert not torch.equal(found, picture_from_bytes(saved(noise(32, 32)), spec, DataOptions()))


def test_own_size_is_seen_upright():
    data = FILES["turned.jpg"]
    assert own_size_from_bytes(data, ImageSpec(3, 8, 8), DataOptions()).shape == (1, 3, 200, 300)
    assert whole_from_bytes(data).pixels.shape == (200, 300, 3)


@pytest.mark.parametrize("data", [b"", b"no picture", FILES["alpha.png"][:300], b"<svg></svg>"])
def test_what_is_no_picture_is_refused_in_a_sentence(data: bytes):
    for read in (
        lambda: picture_from_bytes(data, ImageSpec(3, 8, 8), DataOptions()),
        lambda: whole_from_bytes(data),
        lambda: mask_from_bytes(data, FILES["plain.png"], ImageSpec(3, 8, 8), DataOptions()),
    ):
        with pytest.raises(LimnerError, match=r"^The (picture|mask) cannot be used: .*\.$"):
            read()


# Masks ------------------------------------------------------------------------------------------------------


def hole(height: int, width: int, top: slice, left: slice) -> Image.Image:
    """White, and transparent in a rectangle."""
    pixels = np.full((height, width, 4), 255, np.uint8)
    pixels[top, left, 3] = 0
    return Image.fromarray(pixels)


def test_a_mask_is_one_where_it_is_transparent():
    mask = saved(hole(32, 32, slice(0, 16), slice(0, 8)))
    region = mask_from_bytes(mask, saved(noise(32, 32)), ImageSpec(3, 16, 16), DataOptions())
    wanted = torch.zeros(1, 1, 16, 16)
    wanted[..., :8, :4] = 1
    assert torch.equal(region, wanted)


def test_a_mask_is_cropped_as_its_picture():
    """Of 16x48 the middle 16 columns are left."""
    mask = saved(hole(16, 48, slice(0, 16), slice(0, 20)))
    region = mask_from_bytes(mask, saved(noise(16, 48)), ImageSpec(3, 16, 16), DataOptions())
    assert region[0, 0].sum(0).tolist() == [16] * 4 + [0] * 12


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(24, 16), (24, 24)])
def test_a_mask_is_turned_with_its_picture(orientation: int, size: tuple[int, int]):
    """Made from the pixels as stored, with EXIF of its own or without, it marks what it marked there."""
    stored = noise(*size)
    marked = np.asarray(stored).copy()
    marked[:10, :6] = (255, 0, 255)
    picture = saved(Image.fromarray(marked), "PNG", orientation)
    across, down = size if orientation >= 5 else size[::-1]
    spec, options = ImageSpec(3, down, across), DataOptions()
    upright = picture_from_bytes(picture, spec, options)
    seen = (upright == torch.tensor([1.0, -1.0, 1.0])[None, :, None, None]).all(1, keepdim=True)
    mask = hole(*size, slice(0, 10), slice(0, 6))
    for own in {1, orientation}:
        region = mask_from_bytes(saved(mask, "PNG", own), picture, spec, options)
        assert torch.equal(region, seen.float())


def test_a_mask_made_upright_is_not_turned_again():
    picture = saved(noise(24, 16), "JPEG", 6)  # seen as 16 high and 24 wide
    mask = saved(hole(16, 24, slice(0, 16), slice(0, 5)))
    region = mask_from_bytes(mask, picture, ImageSpec(3, 16, 24), DataOptions())
    assert region[0, 0].sum(0).tolist() == [16] * 5 + [0] * 19


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (saved(hole(20, 32, slice(0, 5), slice(0, 5))), "32x20 pixels and its image 32x32"),
        (saved(noise(32, 32)), "no transparency"),
        (saved(hole(32, 32, slice(0), slice(0))), "no transparent part"),
    ],
)
def test_an_unusable_mask_is_refused(mask: bytes, said: str):
    with pytest.raises(LimnerError, match=said):
        mask_from_bytes(mask, saved(noise(32, 32)), ImageSpec(3, 16, 16), DataOptions())


# Drawn images as files --------------------------------------------------------------------------------------


def drawn(channels: int) -> torch.Tensor:
    """Of [channels, 8, 12]; half transparent where there is alpha."""
    image = torch.linspace(-1, 1, channels * 96).reshape(channels, 8, 12)
    if channels == 4:
        image[3] = 0.0  # an alpha of one half
        image[:3] = torch.minimum(image[:3], image[3])
    return image


def opened(data: bytes) -> Image.Image:
    picture = Image.open(io.BytesIO(data))
    picture.load()
    return picture


@pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_every_format_has_the_size_and_the_same_bytes_again(format: str, channels: int):
    form, spec = Form(format), ImageSpec(channels, 8, 12)
    data = encode_image(drawn(channels), form, spec)
    assert data == encode_image(drawn(channels), form, spec)
    assert opened(data).size == (12, 8) and opened(data).format == format.upper()
    assert opened(data).has_transparency_data == (channels == 4 and format != "jpeg")


def test_png_is_what_the_command_writes():
    from limner.pictures.grid import to_pixels

    image = drawn(4)
    assert np.array_equal(
        np.asarray(opened(encode_image(image, Form(), ImageSpec(4, 8, 12)))), to_pixels(image)
    )


def test_what_is_not_to_be_transparent_lies_on_white():
    image = torch.full((4, 8, 8), -1.0)  # nothing at all
    data = encode_image(image, Form(transparent=False), ImageSpec(4, 8, 8))
    assert opened(data).mode == "RGB" and (np.asarray(opened(data)) == 255).all()


def test_quality_changes_the_length():
    image = torch.rand(3, 32, 32) * 2 - 1
    spec = ImageSpec(3, 32, 32)
    for format in ("jpeg", "webp"):
        small, large = (len(encode_image(image, Form(format, quality), spec)) for quality in (10, 95))
        assert small < 0.7 * large


@pytest.mark.parametrize("size", [(16, 24), (4, 6), (20, 20)])
def test_another_size(size: tuple[int, int]):
    image = torch.full((4, 8, 12), -1.0)
    image[:, :, 6:] = 1.0  # the right half is white, the left one nothing
    picture = opened(encode_image(image, Form(height=size[0], width=size[1]), ImageSpec(4, 8, 12)))
    assert picture.size == size[::-1]
    pixels = np.asarray(picture).astype(int)
    assert (pixels[..., :3][pixels[..., 3] > 0] >= 250).all()  # nothing dark bleeds into the edge


def test_metadata_is_written_only_when_it_is_asked_for():
    image, spec = drawn(3), ImageSpec(3, 8, 12)
    assert "limner" not in opened(encode_image(image, Form(), spec)).info
    assert opened(encode_image(image, Form(metadata='{"prompt": "ein Fuß"}'), spec)).info["limner"] == (
        '{"prompt": "ein Fuß"}'
    )


def test_a_clip_is_an_animation():
    clip = torch.rand(3, 5, 8, 12) * 2 - 1
    form, spec = Form("webp", height=16, width=24), ImageSpec(3, 8, 12, frames=5, rate=10.0)
    data = encode_image(clip, form, spec)
    picture = Image.open(io.BytesIO(data))
    assert picture.size == (24, 16) and picture.n_frames == 5
    assert data == encode_image(clip, form, spec)
