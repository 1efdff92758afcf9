"""Films: read frame by frame as they are to be shown, or refused in one sentence."""

from __future__ import annotations

import sys
import wave
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from limner.data import Data, check, open_data
from limner.data.clips import film
from limner.settings import DataOptions, LimnerError

av = pytest.importorskip("av")


def bars(count: int, height: int = 48, width: int = 64, first: int = 0) -> np.ndarray:
    """uint8 [T, H, W, 3]: grey frames, each 8 levels lighter than the one before; red at the top left."""
    frames = np.empty((count, height, width, 3), np.uint8)
    frames[:] = (16 + 8 * (first + np.arange(count)))[:, None, None, None]
    frames[:, : height // 4, : width // 4] = (220, 30, 30)
    return frames


def write(path: Path, frames: np.ndarray, rate: float = 10, times: list[float] | None = None, **how) -> Path:
    """A film; ``how``: codec, form, options, and what of the stream is to be set."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(path, "w", **({"format": how["box"]} if "box" in how else {})) as container:
        options = how.get("options") or ({"crf": "4"} if how.get("codec", "libx264") == "libx264" else {})
        stream = container.add_stream(
            how.get("codec", "libx264"), rate=Fraction(rate).limit_denominator(1001)
        )
        stream.options = options
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = how.get("form", "yuv420p")
        if "turn" in how:
            stream.set_display_rotation(how["turn"])
        if "aspect" in how:
            stream.sample_aspect_ratio = how["aspect"]
        for name, value in how.get("colour", {}).items():
            setattr(stream.codec_context, name, value)
        if times:
            stream.codec_context.time_base = Fraction(1, 1000)
        sound = container.add_stream(how["sound"], rate=48000, layout="mono") if how.get("sound") else None
        for i, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, "rgba" if pixels.shape[-1] == 4 else "rgb24")
            if times:
                frame.pts, frame.time_base = round(times[i] * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if sound:
            for i in range(200):  # four seconds
                kind = np.float32 if sound.format.name.startswith("flt") else np.int16
                silence = av.AudioFrame.from_ndarray(np.zeros((1, 960), kind), sound.format.name, "mono")
                silence.sample_rate, silence.pts = 48000, 960 * i
                container.mux(sound.encode(silence))
            container.mux(sound.encode())
    return path


def read(source: object, size: tuple[int, int] | None = None, **options: object) -> Data:
    return open_data(source, size=size, options=DataOptions(**{"frames": 4, **options}), progress=False)


def numbers(pixels: np.ndarray) -> list[int]:
    """The numbers of the frames [..., H, W, C] of ``bars``."""
    return np.rint((pixels[..., -2, -2, 0].astype(int) - 16) / 8).astype(int).tolist()


def problem(path: Path, **options: object) -> str:
    """The sentence on a folder's only film."""
    with pytest.raises(LimnerError) as caught:
        read(path, **options)
    assert str(caught.value).count("\n") == 0
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("a.mp4", {}), ("a.mov", {}), ("a.mkv", {}), ("a.avi", {"codec": "mpeg4"}), ("a.webm", {"codec": "libvpx-vp9"}),
        ("a.m4v", {"box": "mp4"}),
    ],
)  # fmt: skip
def test_every_container(tmp_path, name, how):
    write(tmp_path / "a" / name, bars(9), **how)
    data = read(tmp_path / "a", size=(24, 32))
    assert data.names == [f"{name}@0", f"{name}@4"]
    assert [numbers(clip) for clip in data.array] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert data.spec.rate == pytest.approx(10)
    corner = data.array[0, 0, 1, 1].astype(int)
    assert corner[0] > 190 and corner[1:].max() < 60
    assert not data.problems


@pytest.mark.parametrize("rate", [29.97, 0.5, 24])
def test_rates_of_files(tmp_path, rate):
    write(tmp_path / "a" / "x.mp4", bars(8), rate)
    assert read(tmp_path / "a").spec.rate == pytest.approx(rate, rel=1e-3)


def test_ticks_by_time_stamps(tmp_path):
    times = [0, 0.1, 0.15, 0.2, 0.5, 0.55, 0.8]
    write(tmp_path / "a" / "x.mkv", bars(7), times=times)
    data = read(tmp_path / "a", rate=5.0, frames=5)
    assert numbers(data.array[0]) == [0, 3, 3, 5, 6] and data.spec.rate == 5
    assert any("variable rate" in note for note in read(tmp_path / "a").notes)
    write(tmp_path / "b" / "x.mp4", bars(26), 30)
    assert numbers(read(tmp_path / "b", rate=8.0, frames=7).array[0]) == [0, 3, 7, 11, 15, 18, 22]
    data = read(tmp_path / "b", rate=60.0, frames=8)
    assert numbers(data.array[0]) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert any("frames are repeated" in note for note in data.notes)


@pytest.mark.parametrize(("turn", "corner"), [(90, (-2, 1)), (-90, (1, -2)), (180, (-2, -2))])
def test_a_turned_film_is_upright(tmp_path, turn, corner):
    """A positive turn is against the clock: the upper left corner goes down the left side, and so on."""
    write(tmp_path / "a" / "x.mp4", bars(4), turn=turn)
    data = read(tmp_path / "a", size=(32, 32), fit="squash")
    red = data.array[0, 0, corner[0], corner[1]].astype(int)
    assert red[0] - red[1] > 100
    assert any("upright" in note for note in data.notes)
    pad = read(tmp_path / "a", size=(32, 32), fit="pad", background="#ffffff").array[0, 0]
    sides = pad[:, 0] if abs(turn) == 90 else pad[0]
    assert (sides > 250).all(), "a film that is turned on its side is taller than wide"


def test_pixels_that_are_not_square(tmp_path):
    write(tmp_path / "a" / "x.mp4", bars(4, 48, 48), aspect=Fraction(2, 1))
    data = read(tmp_path / "a", size=(32, 32), fit="pad", background="#ffffff")
    assert (data.array[0, 0, :7] > 250).all() and (data.array[0, 0, 9:23] < 235).all(), (
        "twice as wide as high"
    )
    assert any("not square" in note for note in data.notes)


@pytest.mark.parametrize("codec", ["libvpx-vp9", "libvpx"])
def test_transparency(tmp_path, codec):
    frames = np.concatenate([bars(4), np.full((4, 48, 64, 1), 255, np.uint8)], -1)
    frames[:, 24:, :, 3] = 0
    write(tmp_path / "a" / "x.webm", frames, codec=codec, form="yuva420p", options={"auto-alt-ref": "0"})
    data = read(tmp_path / "a", size=(24, 32))
    assert data.spec.channels == 4
    assert (data.array[0, :, :10, :, 3] > 240).all() and (data.array[0, :, 14:] < 8).all()


def test_interlaced_lines_are_joined(tmp_path):
    frames = np.zeros((8, 48, 64, 3), np.uint8)
    for i in range(8):
        frames[i, :, 6 * i : 6 * i + 16] = 255
        frames[i, 1::2] = np.roll(frames[i, 1::2], 3, 1)  # the second field is later
    write(
        tmp_path / "a" / "x.mp4", frames, options={"crf": "4", "flags": "+ilme+ildct", "x264-params": "tff=1"}
    )
    data = read(tmp_path / "a", size=(48, 64))
    assert any("interlaced" in note for note in data.notes)
    inner = data.array[0, 2, 8:-8].astype(int)
    assert np.abs(np.diff(inner[..., 0], axis=0)).mean() < 4, "neighbouring lines show one time"
    assert len(data) == 2


@pytest.mark.parametrize(
    ("form", "colour", "said"),
    [
        ("yuv420p10le", {}, "10 bits"),
        ("yuv420p10le", {"color_trc": 16, "color_primaries": 9, "colorspace": 9}, "10 bits, PQ, BT.2020"),
        ("yuv420p", {"color_trc": 18}, "HLG"),
    ],
)
def test_high_dynamic_range_is_refused_unless_it_is_to_be_clipped(tmp_path, form, colour, said):
    write(tmp_path / "a" / "x.mp4", bars(4), form=form, colour=colour)
    assert said in (text := problem(tmp_path / "a")) and "--data.hdr clip" in text
    assert read(tmp_path / "a", hdr="clip").array.shape == (1, 4, 48, 64, 3)


def test_sound_is_ignored_and_said_once(tmp_path):
    for i in range(3):
        write(tmp_path / "a" / f"{i}x.mp4", bars(4, first=i), sound="aac" if i != 1 else "")
    notes = [note for note in read(tmp_path / "a").notes if "sound" in note]
    assert notes == ["2 of 3, such as '0x.mp4', have sound, which is ignored."]


def test_what_is_no_film_is_one_sentence(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "x.mp4").touch()
    assert "is empty" in problem(tmp_path / "empty")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "x.mp4").write_text("This is no film. " * 100)
    assert "text" in problem(tmp_path / "text")
    (tmp_path / "list").mkdir()
    film_of = write(tmp_path / "x.mp4", bars(4))
    (tmp_path / "list" / "x.mp4").write_text(f"#EXTM3U\n#EXTINF:1,\n{film_of}\n#EXT-X-ENDLIST\n")
    assert "cannot be read" in problem(tmp_path / "list"), "lists of other files are not followed"
    (tmp_path / "sound").mkdir()
    with av.open(tmp_path / "sound" / "x.mp4", "w") as container:
        stream = container.add_stream("aac", rate=8000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        silence.sample_rate = 8000
        container.mux(stream.encode(silence))
        container.mux(stream.encode())
    assert "it has sound and no pictures" in problem(tmp_path / "sound")
    with wave.open(str(tmp_path / "y.wav"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(8000))
    (tmp_path / "wav").mkdir()
    (tmp_path / "y.wav").rename(tmp_path / "wav" / "x.mp4")
    assert "sound" in problem(tmp_path / "wav")


def test_a_film_that_is_cut(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (24, 48, 64, 3), np.uint8)
    whole = write(tmp_path / "whole.mp4", noise).read_bytes()
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.mp4").write_bytes(whole[: whole.index(b"moov") - 4])
    assert "cut before its index" in problem(tmp_path / "a")
    avi = write(tmp_path / "whole.avi", noise, codec="mpeg4").read_bytes()
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "x.avi").write_bytes(avi[: 3 * len(avi) // 4])
    assert "cut or damaged: 13 of its" in read(tmp_path / "c").problems[0].reason
    # The index first, as films for the web have it: then what precedes the cut can be read.
    fast = write(tmp_path / "fast.mkv", noise).read_bytes()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x.mkv").write_bytes(fast[: len(fast) // 2])
    data = read(tmp_path / "b")
    assert 0 < len(data) < 6
    assert [p.path for p in data.problems] == ["x.mkv"] and "of its 24 frames can be read" in data.problems[
        0
    ].reason


@pytest.mark.parametrize("name", ["x.mp4", "x.mkv", "x.webm"])
@pytest.mark.parametrize("long", [False, True])
def test_a_whole_film_is_not_taken_for_a_cut_one(tmp_path, name, long):
    """Also where sound goes on for longer, or the last frame is shown for longer than others."""
    codec, sound = ("libvpx-vp9", "opus") if name == "x.webm" else ("libx264", "aac")
    times = [0.1 * i for i in range(7)] + [1.2] if long else None
    write(tmp_path / "a" / name, bars(8), codec=codec, times=times, sound=sound)
    assert read(tmp_path / "a").problems == []


def test_damage_in_the_middle_is_counted(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (24, 48, 64, 3), np.uint8)
    whole = bytearray(write(tmp_path / "whole.mp4", noise, options={"g": "4"}).read_bytes())
    start = whole.index(b"mdat") + 4
    middle = start + (whole.index(b"moov") - start) // 2
    whole[middle : middle + 4000] = bytes(4000)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.mp4").write_bytes(whole)
    data = read(tmp_path / "a")
    assert len(data) >= 2 and [p.path for p in data.problems] == ["x.mp4"]
    assert "of its 24 frames can be read, and are used" in data.problems[0].reason


def test_a_huge_film_is_refused_by_its_header(tmp_path, monkeypatch):
    write(tmp_path / "a" / "x.mp4", bars(2, 480, 640))
    monkeypatch.setattr(film, "MOST_PIXELS", 640 * 480 - 1)
    monkeypatch.setattr(film.Film, "frames", None)  # nothing is decoded
    assert "640x480 is over" in problem(tmp_path / "a")


@pytest.mark.parametrize("count", [1, 3])
def test_a_film_shorter_than_a_clip(tmp_path, count):
    write(tmp_path / "a" / "x.mp4", bars(count))
    assert (
        f"it has {count} frame" in (text := problem(tmp_path / "a")) and "fewer than the 4 of a clip" in text
    )
    write(tmp_path / "a" / "long.mp4", bars(4))
    assert len(read(tmp_path / "a")) == 1


def test_an_animation_without_delays(tmp_path):
    (tmp_path / "a").mkdir()
    frames = [Image.fromarray(frame) for frame in bars(5)]
    frames[0].save(tmp_path / "a" / "x.gif", save_all=True, append_images=frames[1:], duration=0)
    data = read(tmp_path / "a")
    assert data.spec.rate == pytest.approx(10) and any("without a delay" in note for note in data.notes)


def test_without_pyav_the_extra_is_named(tmp_path, monkeypatch):
    write(tmp_path / "a" / "x.mp4", bars(4))
    monkeypatch.setitem(sys.modules, "av", None)
    assert "pip install 'limner[video]'" in problem(tmp_path / "a")


def test_colours_of_either_standard(tmp_path):
    frames = np.empty((4, 32, 32, 3), np.uint8)
    frames[:] = (30, 200, 60)
    for name, space in (("new", "ITU709"), ("old", "ITU601")):
        with av.open(tmp_path / f"{name}.mp4", "w") as container:
            stream = container.add_stream("libx264", rate=10, options={"crf": "1"})
            stream.height, stream.width, stream.pix_fmt = 32, 32, "yuv444p"
            stream.codec_context.colorspace = {"ITU709": 1, "ITU601": 6}[space]
            for pixels in frames:
                frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
                frame = frame.reformat(format="yuv444p", dst_colorspace=space)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        data = read(tmp_path / f"{name}.mp4")
        assert np.abs(data.array.astype(int) - frames.astype(int)).max() <= 3


def test_check_tells_of_clips(tmp_path):
    for i in range(3):
        write(tmp_path / "a" / f"{i}x.mp4", bars(9, first=i), sound="aac" if i == 2 else "")
    write(tmp_path / "a" / "short.webm", bars(2), codec="libvpx-vp9")
    write(tmp_path / "a" / "hdr.mp4", bars(4), form="yuv420p10le")
    (tmp_path / "a" / "2x.txt").write_text("bars that grow lighter")
    report = check(tmp_path / "a", DataOptions(frames=4), progress=False)
    assert report.clips == 6 and report.images == 4 and report.rates == {"10": 6} and report.captions == 1
    assert {p.path: p.reason[:10] for p in report.problems} == {
        "short.webm": "it has 2 f",
        "hdr.mp4": "a film of ",
    }
    assert "1 of 4, '2x.mp4', has sound, which is ignored." in report.notes
    stills = check(tmp_path / "a", DataOptions(), progress=False)
    assert stills.images == 0 and any("--data.frames 16" in advice for advice in stills.advice)
    short = check(tmp_path / "a" / "short.webm", DataOptions(frames=4), progress=False)
    assert any("No film is as long as a clip" in advice for advice in short.advice)


def test_the_command_checks_clips(tmp_path, limner):
    write(tmp_path / "a" / "x.mp4", bars(9))
    done = limner("data", "check", tmp_path / "a", "--data.frames", 4)
    assert "2 clips of 1 files" in done.stdout and "48x64" in done.stdout
    done = limner("train", "flow", tmp_path / "a", "--data.frames", 4, "--out", tmp_path / "r", ok=False)
    assert done.returncode == 2 and "flow takes still images, not video" in done.stderr
    done = limner("train", "flow", tmp_path / "a", "--out", tmp_path / "r", ok=False)
    assert done.returncode == 2 and "--data.frames 16" in done.stderr
