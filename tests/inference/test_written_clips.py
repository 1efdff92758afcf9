"""Clips as files, read back by another reader than wrote them: Pillow for gif and webp, PyAV for the rest."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence
from torch import Tensor

from limner.pictures import clips
from limner.pictures.clips import clip_bytes, clip_file, save_clip, save_frames
from limner.pictures.grid import to_pixels
from limner.settings import LimnerError

VIDEOS = ".mp4", ".webm", ".mkv"
ANIMATIONS = ".gif", ".webp"
# How far the middle of an enlarged pixel may be from what was written, in dB.
LEAST_PSNR = {".mp4": 42, ".webm": 42, ".mkv": 99, ".gif": 99, ".webp": 42}


def moving(frames: int = 6, height: int = 32, width: int = 32, channels: int = 3) -> Tensor:
    """[T, C, H, W] in [-1, 1]: a disc moves right over a gradient; its place tells the order of frames."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    shown = []
    for t in range(frames):
        disc = ((x - 6 - 2 * t) ** 2 + (y - height // 2) ** 2 < 16).float()
        colours = torch.stack([0.8 * disc - 0.1, 0.3 - 0.9 * disc, 0.4 * x / width - 0.2])
        if channels == 4:
            colours = torch.cat([torch.where(disc > 0, colours, torch.tensor(-1.0)), 2 * disc[None] - 1])
        shown.append(colours[:channels] if channels < 4 else colours)
    return torch.stack(shown)


def read(path: Path) -> tuple[np.ndarray, list[float], float]:
    """The frames [T, H, W, 4], when each begins, and the length, in seconds."""
    if path.suffix in ANIMATIONS:
        with Image.open(path) as image:
            frames = [(f.convert("RGBA"), f.info["duration"] / 1000) for f in ImageSequence.Iterator(image)]
        ends = np.cumsum([length for _, length in frames])
        return np.stack([f for f, _ in frames]), [0.0, *ends[:-1].tolist()], float(ends[-1])
    av = pytest.importorskip("av")
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        decoder = av.CodecContext.create("libvpx-vp9", "r") if path.suffix == ".webm" else None
        packets = [p for p in file.demux(stream) if p.size or not decoder]
        decoded = [f for p in packets for f in (decoder.decode(p) if decoder else p.decode())]
        decoded += decoder.decode(None) if decoder else []
        frames = [f.reformat(format="rgba", src_colorspace="ITU709").to_ndarray() for f in decoded]
        times = [float(f.pts * stream.time_base) for f in decoded]
        return np.stack(frames), times, file.duration / 1e6


def middles(frames: np.ndarray, shape: tuple[int, int], suffix: str) -> np.ndarray:
    """The middle of each enlarged pixel."""
    k = 1 if suffix == ".mkv" else clips.enlargement(*shape)
    return frames[:, k // 2 : k * shape[0] : k, k // 2 : k * shape[1] : k]


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    error = np.square(one.astype(float) - other).mean()
    return 10 * np.log10(255**2 / max(error, 1e-9))


def save(path: Path, frames: Tensor, rate: float) -> list[str]:
    if path.suffix in VIDEOS:
        pytest.importorskip("av")
    return save_clip(path, frames, rate, lossless=path.suffix == ".mkv")


@pytest.mark.parametrize("suffix", [*VIDEOS, *ANIMATIONS])
@pytest.mark.parametrize("rate", [8, 29.97, 0.5])
@pytest.mark.parametrize("size", [(6, 32, 32), (6, 31, 33), (1, 31, 33)])
def test_the_other_reader_finds_the_same_frames_at_the_same_times(
    tmp_path: Path, suffix: str, rate: float, size: tuple[int, int, int]
) -> None:
    wanted, path = moving(*size), tmp_path / f"clip{suffix}"
    save(path, wanted, rate)
    frames, times, length = read(path)
    unit = {".gif": 0.01, ".webp": 0.001, ".webm": 0.001, ".mkv": 0.001}.get(suffix, 0.0001)
    assert len(frames) == size[0]
    assert times == pytest.approx([t / rate for t in range(size[0])], abs=0.6 * unit)
    assert length == pytest.approx(size[0] / rate, abs=max(1.1 * unit, 0.001))
    found = middles(frames, size[1:], suffix)[..., :3]
    assert psnr(found, np.stack([to_pixels(f) for f in wanted])) >= LEAST_PSNR[suffix]


@pytest.mark.parametrize("suffix", [*VIDEOS, *ANIMATIONS])
def test_the_bytes_of_a_clip_are_those_of_a_file(tmp_path: Path, suffix: str) -> None:
    if suffix in VIDEOS:
        pytest.importorskip("av")
    path = tmp_path / f"clip{suffix}"
    path.write_bytes(clip_bytes(moving(), suffix, 8, lossless=suffix == ".mkv"))
    frames, times, _ = read(path)
    assert times == pytest.approx([t / 8 for t in range(6)], abs=0.006)
    found = middles(frames, (32, 32), suffix)[..., :3]
    assert psnr(found, np.stack([to_pixels(f) for f in moving()])) >= LEAST_PSNR[suffix]


@pytest.mark.parametrize("suffix", [*VIDEOS, *ANIMATIONS])
def test_frames_that_are_equal_stay_apart(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"clip{suffix}"
    save(path, moving(1).expand(5, -1, -1, -1), 10)
    frames, times, length = read(path)
    assert len(frames) == 5
    assert times == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert length == pytest.approx(0.5)


def test_a_gif_keeps_the_times_of_a_rate_that_hundredths_do_not_divide(tmp_path: Path) -> None:
    save_clip(tmp_path / "clip.gif", moving(16), 30)
    _, times, length = read(tmp_path / "clip.gif")
    assert max(abs(t - i / 30) for i, t in enumerate(times)) <= 0.0051
    assert length == pytest.approx(0.53)


@pytest.mark.parametrize("suffix", [".webm", ".mkv", *ANIMATIONS])
def test_alpha_is_kept(tmp_path: Path, suffix: str) -> None:
    wanted, path = moving(channels=4), tmp_path / f"clip{suffix}"
    notes = save(path, wanted, 8)
    alpha = middles(read(path)[0], (32, 32), suffix)[..., 3]
    assert psnr(alpha, np.stack([to_pixels(f) for f in wanted])[..., 3]) > 40
    assert bool(notes) == (suffix == ".gif")


def test_mp4_shows_white_behind_alpha_and_says_so(tmp_path: Path) -> None:
    notes = save(tmp_path / "clip.mp4", moving(channels=4), 8)
    assert notes == ["mp4 has no alpha, so white shows"]
    assert read(tmp_path / "clip.mp4")[0][0, 2, 2].tolist() == pytest.approx([255] * 4, abs=2)


def test_mp4_is_h264_of_bt709_in_420(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    save(tmp_path / "clip.mp4", moving(), 8)
    with av.open(str(tmp_path / "clip.mp4")) as file:
        context = file.streams.video[0].codec_context
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
        assert (context.colorspace, context.color_primaries, context.color_trc, context.color_range) == (
            1,
            1,
            1,
            1,
        )


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_odd_sides_are_padded_by_one_and_it_is_said(tmp_path: Path, suffix: str) -> None:
    (note,) = save(tmp_path / f"clip{suffix}", moving(2, 257, 301), 8)
    assert note.startswith("301x257 pixels are padded to 302x258")
    assert read(tmp_path / f"clip{suffix}")[0].shape[1:3] == (258, 302)


@pytest.mark.parametrize(
    ("side", "scale"),
    [((32, 32), 8), ((31, 33), 9), ((64, 128), 4), ((255, 400), 2), ((256, 256), 1), ((4, 2048), 2)],
)
def test_small_clips_are_enlarged_by_whole_pixels(side: tuple[int, int], scale: int) -> None:
    assert clips.enlargement(*side) == scale


@pytest.mark.parametrize("suffix", [".mkv", ".webp"])
def test_lossless_is_exact_and_of_the_same_size(tmp_path: Path, suffix: str) -> None:
    if suffix == ".mkv":
        pytest.importorskip("av")
    noise = torch.rand(5, 3, 31, 33, generator=torch.Generator().manual_seed(0)) * 2 - 1
    save_clip(tmp_path / f"clip{suffix}", noise, 8, lossless=True)
    frames, _, _ = read(tmp_path / f"clip{suffix}")
    assert np.array_equal(frames[..., :3], np.stack([to_pixels(f) for f in noise]))


@pytest.mark.parametrize("suffix", [".gif", ".mp4", ".webm", ".webp"])
def test_frames_of_their_own_times_keep_them(tmp_path: Path, suffix: str) -> None:
    if suffix in VIDEOS:
        pytest.importorskip("av")
    path, times = tmp_path / f"clip{suffix}", [0, 0.1, 0.35, 0.4, 1.2]
    with clip_file(path, 5, own_times=True) as clip:
        for frame, time in zip(moving(5), times, strict=True):
            clip.add(to_pixels(frame), Fraction(time).limit_denominator(1000))
    assert read(path)[1] == pytest.approx(times, abs=0.001)


def test_a_folder_of_frames_is_exact_and_whole(tmp_path: Path) -> None:
    wanted = moving(12, 9, 7)
    save_clip(tmp_path / "clip", wanted)
    names = sorted(path.name for path in (tmp_path / "clip").iterdir())
    assert names == [f"{i:06d}.png" for i in range(12)]
    for name, frame in zip(names, wanted, strict=True):
        assert np.array_equal(np.asarray(Image.open(tmp_path / "clip" / name)), to_pixels(frame))
    with pytest.raises(LimnerError, match="other files"):
        save_frames(tmp_path / "clip", wanted)


@pytest.mark.parametrize("suffix", [*VIDEOS, *ANIMATIONS])
def test_a_clip_that_fails_leaves_the_earlier_file(tmp_path: Path, suffix: str) -> None:
    if suffix in VIDEOS:
        pytest.importorskip("av")
    path = tmp_path / f"clip{suffix}"
    path.write_bytes(b"earlier")

    def cut() -> None:
        with clip_file(path, 8, lossless=suffix == ".mkv") as clip:
            clip.add(to_pixels(moving(1)[0]))
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError):
        cut()
    assert path.read_bytes() == b"earlier"
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("name", "rate", "lossless", "words"),
    [
        ("clip.flv", 8, False, "No clip is written as .flv"),
        ("clip.gif", 60, False, "at most 50 frames a second"),
        ("clip.mp4", 0, False, "0 frames a second"),
        ("clip.mp4", float("nan"), False, "frames a second"),
        ("clip.mkv", 8, False, "add --lossless"),
        ("clip.gif", 8, True, "loses colours"),
        ("clip.mp4", 8, True, "loses colours"),
    ],
)
def test_what_cannot_be_written_is_refused(
    tmp_path: Path, name: str, rate: float, lossless: bool, words: str
) -> None:
    with pytest.raises(LimnerError, match=words):
        save_clip(tmp_path / name, moving(2), rate, lossless)
    assert not list(tmp_path.iterdir())


def test_a_missing_library_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    for name in ("clip.mp4", "clip.webm"):
        with pytest.raises(LimnerError, match=r"limner\[video\]"):
            save_clip(tmp_path / name, moving(2))
    save_clip(tmp_path / "clip.gif", moving(2))


def test_an_empty_clip_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(LimnerError, match="needs frames"):
        save_clip(tmp_path / "clip.gif", torch.zeros(0, 3, 8, 8))
    assert not list(tmp_path.iterdir())
