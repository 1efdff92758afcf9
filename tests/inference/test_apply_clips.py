"""`limner apply` on clips: the times, the statistics of norms, what is left out, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence
from torch import Tensor

import limner as package
from limner import families
from limner.core import LimnerError
from limner.inference.applied import Applied, summary
from limner.inference.apply import apply
from limner.inference.options import ApplyOptions
from limner.inference.tiles import Translator
from limner.pictures.clips import clip_file, save_clip
from limner.pictures.grid import to_pixels
from tests.helpers import paint

TOY = Path(__file__).parents[1] / "toy"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """A run that enlarges twice, and one that paints at the size, with norms over the picture."""
    home = tmp_path_factory.mktemp("apply")
    images = paint(home / "images", 24)
    families.__path__.append(str(TOY))
    try:
        found = {}
        for name, settings in (("twice", {}), ("paint", {"restores": False, "norm": True, "scale": 1})):
            found[name] = home / name
            package.train("restorer", images, found[name], preset="tiny", budget="400img", quiet=True,
                          training={"samples": 0, "precision": "float32"}, model=settings)  # fmt: skip
        yield found
    finally:
        families.__path__.remove(str(TOY))


def panning(frames: int = 6, size: int = 64, step: int = 4, channels: int = 3) -> Tensor:
    """[T, C, H, W] in [-1, 1]: a window that moves right over smooth noise, brighter at its right end."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, channels, size // 8, (size + step * frames) // 8 + 1, generator=generator)
    wide = torch.nn.functional.interpolate(coarse, scale_factor=8, mode="bicubic")[0].clamp(0, 1) * 2 - 1
    wide = wide * torch.linspace(0.2, 1, wide.shape[2])
    return torch.stack([wide[:, :, step * t : step * t + size] for t in range(frames)])


def once(run: Path, source: Path, to: Path, **options: object) -> Applied:
    return apply(run, source, to, ApplyOptions(**options), quiet=True)


def frames_of(path: Path) -> tuple[np.ndarray, list[float]]:
    """[T, H, W, 3] and how long each is shown, in milliseconds."""
    with Image.open(path) as image:
        frames = [(np.asarray(f.convert("RGB")), f.info["duration"]) for f in ImageSequence.Iterator(image)]
    return np.stack([f for f, _ in frames]), [d for _, d in frames]


def test_each_frame_is_what_its_picture_becomes_at_its_time(runs: dict[str, Path], tmp_path: Path) -> None:
    clip, source = panning(4, 32), tmp_path / "given.webp"
    with clip_file(source, 10, lossless=True, own_times=True) as file:
        for frame, time in zip(clip, (0, 0.1, 0.35, 0.4), strict=True):
            file.add(to_pixels(frame), time)
    applied = once(runs["twice"], source, tmp_path / "made.webp", lossless=True)
    assert (applied.made, applied.clip, applied.failed) == (4, True, {})
    assert summary(applied) == [f"4 frames in {tmp_path / 'made.webp'}."]
    frames, shown = frames_of(tmp_path / "made.webp")
    assert shown[:3] == [100, 250, 50] and frames.shape == (4, 64, 64, 3)
    for i, frame in enumerate(clip):
        Image.fromarray(to_pixels(frame)).save(tmp_path / f"{i}.png")
        once(runs["twice"], tmp_path / f"{i}.png", tmp_path / f"made {i}.png")
        assert np.array_equal(np.asarray(Image.open(tmp_path / f"made {i}.png")), frames[i])


def test_a_film_keeps_its_rate_and_says_what_is_left_out(runs: dict[str, Path], tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    save_clip(tmp_path / "given.mp4", panning(5, 256), 29.97)
    applied = once(runs["twice"], tmp_path / "given.mp4", tmp_path / "made.mp4")
    assert applied.made == 5 and not applied.notes
    with av.open(str(tmp_path / "made.mp4")) as file:
        stream = file.streams.video[0]
        frames = list(file.decode(stream))
        assert (len(frames), stream.width, stream.height) == (5, 512, 512)
        assert float(stream.average_rate) == pytest.approx(29.97, abs=1e-3)


def aligned(frames: np.ndarray, step: int) -> float:
    """How alike neighbours are where they show the same, in dB."""
    one, other = (x.astype(float)[:, 12:-12] for x in (frames[:-1, :, step:], frames[1:, :, :-step]))
    error = np.square(one[:, :, 12:-12] - other[:, :, 12:-12]).mean()
    return 10 * np.log10(255**2 / max(error, 1e-9))


def test_statistics_that_are_fixed_keep_what_pans_the_same(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_clip(tmp_path / "given.webp", panning(), 8, lossless=True)
    once(runs["paint"], tmp_path / "given.webp", tmp_path / "fixed.webp", lossless=True)
    fixed = aligned(frames_of(tmp_path / "fixed.webp")[0], 4)
    monkeypatch.setattr(Translator, "fix_statistics", lambda self, frames: None)
    once(runs["paint"], tmp_path / "given.webp", tmp_path / "free.webp", lossless=True)
    free = aligned(frames_of(tmp_path / "free.webp")[0], 4)
    assert fixed > 45 and fixed > free + 6


def test_a_clip_that_stands_still_stays_so_and_is_its_picture(runs: dict[str, Path], tmp_path: Path) -> None:
    still = panning(1).expand(5, -1, -1, -1)
    save_clip(tmp_path / "given.webp", still, 8, lossless=True)
    Image.fromarray(to_pixels(still[0])).save(tmp_path / "given.png")
    once(runs["paint"], tmp_path / "given.webp", tmp_path / "made.webp", lossless=True)
    once(runs["paint"], tmp_path / "given.png", tmp_path / "made.png")
    frames, _ = frames_of(tmp_path / "made.webp")
    assert len(frames) == 5 and (frames == frames[0]).all()
    picture = np.asarray(Image.open(tmp_path / "made.png"))
    assert np.abs(frames[0].astype(int) - picture).max() <= 1


def test_statistics_of_frames_pool_those_of_each(runs: dict[str, Path]) -> None:
    from limner.inference.pipeline import Pipeline

    pipeline = Pipeline(runs["paint"])
    translator = Translator(pipeline.model.eval(), pipeline.sampling({}), 2 * 10**9)
    one, other = (to_pixels(frame) for frame in panning(2))
    translator.fix_statistics([one, other])
    assert translator.fixed is not None
    both = [translator.record(one), translator.record(other)]
    for (mean, variance), (m, v), (n, w) in zip(translator.fixed, *both, strict=True):
        torch.testing.assert_close(mean, (m + n) / 2)
        torch.testing.assert_close(variance, (v + w) / 2 + (m - n).square() / 4)


def test_a_folder_of_frames_is_gone_on_with(runs: dict[str, Path], tmp_path: Path) -> None:
    save_clip(tmp_path / "given.webp", panning(), 8, lossless=True)
    to = tmp_path / "frames"
    assert not once(runs["paint"], tmp_path / "given.webp", tmp_path / "whole.webp", lossless=True).there
    # An animated WebP goes to a folder as its first frame; a film as all of its frames.
    pytest.importorskip("av")
    save_clip(tmp_path / "given.mkv", panning(), 8, lossless=True)
    applied = once(runs["paint"], tmp_path / "given.mkv", to)
    names = [f"{i:06d}.png" for i in range(6)]
    assert applied.made == 6
    assert sorted(path.name for path in to.iterdir() if not path.name.startswith(".")) == names
    whole = [(to / name).read_bytes() for name in names]
    for name in names[3:]:
        (to / name).unlink()
    again = once(runs["paint"], tmp_path / "given.mkv", to)
    assert (again.made, again.there) == (3, 3)
    assert [(to / name).read_bytes() for name in names] == whole


@pytest.mark.parametrize(
    ("to", "options", "words"),
    [
        ("made.flv", {}, "No clip is written as .flv"),
        ("made.gif", {"crops": 4}, "are for pictures"),
        ("made.gif", {"suffix": "png"}, "are for pictures"),
        ("made.gif", {"lossless": True}, "loses colours"),
        ("given.webp", {"overwrite": True}, "is read here"),
        ("there.webp", {}, "exists already"),
    ],
)
def test_what_cannot_be_made_is_refused(
    runs: dict[str, Path], tmp_path: Path, to: str, options: dict[str, object], words: str
) -> None:
    source = "given.webp" if to != "made.flv" else "given.mp4"
    save_clip(tmp_path / "given.webp", panning(2, 16), 8, lossless=True)
    (tmp_path / "given.mp4").write_text("no film")
    (tmp_path / "there.webp").write_bytes(b"earlier")
    with pytest.raises(LimnerError, match=words):
        once(runs["twice"], tmp_path / source, tmp_path / to, **options)
    assert (tmp_path / "there.webp").read_bytes() == b"earlier" and not (tmp_path / "made.gif").exists()


@pytest.mark.parametrize(("content", "words"), [(b"", "empty"), (b"a text" * 40, "cannot be used")])
def test_what_is_no_film_is_one_sentence(
    runs: dict[str, Path], tmp_path: Path, content: bytes, words: str
) -> None:
    pytest.importorskip("av")
    (tmp_path / "given.mp4").write_bytes(content)
    with pytest.raises(LimnerError, match=words):
        once(runs["twice"], tmp_path / "given.mp4", tmp_path / "made.mp4")
    assert [path.name for path in tmp_path.iterdir()] == ["given.mp4"]


def test_lossless_is_of_clips(runs: dict[str, Path], tmp_path: Path) -> None:
    paint(tmp_path / "pictures", 1)
    with pytest.raises(LimnerError, match="is for clips"):
        once(runs["twice"], tmp_path / "pictures", tmp_path / "made", lossless=True)
