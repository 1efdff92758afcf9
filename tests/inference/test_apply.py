"""`limner apply`: files in and files out, what is kept of them, and what is refused."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

import limner as package
from limner import families, files
from limner.core import LimnerError
from limner.inference.applied import Applied, summary
from limner.inference.apply import apply
from limner.inference.apply_files import begin, jobs_of
from limner.inference.options import ApplyOptions
from tests.helpers import paint

TOY = Path(__file__).parents[1] / "toy"
Runs = dict[str, Path]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory):
    """Runs of the toy family of each kind: colour, grey, RGBA, and one that does not restore."""
    home = tmp_path_factory.mktemp("apply")
    found = {}
    families.__path__.append(str(TOY))
    try:
        for name, mode, settings in (
            ("rgb", "RGB", {}), ("grey", "L", {}), ("rgba", "RGBA", {}),
            ("paint", "RGB", {"restores": False, "norm": True}),
        ):  # fmt: skip
            images = paint(home / f"{name} images", 24, mode=mode)
            found[name] = home / name
            quiet = {"samples": 0, "precision": "float32"}
            package.train("restorer", images, found[name], preset="tiny", budget="400img", quiet=True,
                          training=quiet, model=settings)  # fmt: skip
        found["flow"] = home / "flow"
        package.train("flow", home / "rgb images", found["flow"], preset="tiny", budget="16img", quiet=True,
                      training=quiet)  # fmt: skip
        yield found
    finally:
        families.__path__.remove(str(TOY))


def picture(path: Path, mode: str = "RGB", size: tuple[int, int] = (20, 14), **options: object) -> Path:
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (5, 4, 4), dtype=np.uint8), "RGBA").resize(size)
    plain = noise if mode in ("RGBA", "LA") else noise.convert("RGB")
    plain.convert(mode).save(path, **options)
    return path


def once(
    runs: Runs, source: Path, to: Path, run: str = "rgb", sampling: dict | None = None, **options: object
) -> Applied:
    return apply(runs[run], source, to, ApplyOptions(**options), quiet=True, **(sampling or {}))


# What is kept ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("suffix", "kind"), [("png", "PNG"), ("jpg", "JPEG"), ("webp", "WEBP"), ("tif", "TIFF")]
)
def test_the_suffix_says_the_format(runs: Runs, tmp_path: Path, suffix: str, kind: str):
    once(runs, picture(tmp_path / "a.png"), tmp_path / f"b.{suffix}")
    with Image.open(tmp_path / f"b.{suffix}") as made:
        assert (made.format, made.size, made.mode) == (kind, (40, 28), "RGB")


@pytest.mark.parametrize(
    ("run", "mode", "result"),
    [
        ("rgb", "L", "L"), ("rgb", "1", "L"), ("rgb", "P", "RGB"), ("rgb", "CMYK", "RGB"), ("rgb", "LA", "LA"),
        ("rgb", "RGBA", "RGBA"), ("rgb", "PA", "RGBA"), ("grey", "RGB", "L"),
        ("grey", "L", "L"), ("grey", "RGBA", "LA"),
        ("rgba", "RGB", "RGB"), ("rgba", "RGBA", "RGBA"), ("rgba", "LA", "LA"), ("rgba", "L", "L"),
        ("paint", "L", "RGB"), ("paint", "LA", "RGBA"), ("paint", "RGBA", "RGBA"), ("paint", "RGB", "RGB"),
    ],
)  # fmt: skip
def test_grey_stays_grey_and_alpha_stays(runs: Runs, tmp_path: Path, run: str, mode: str, result: str):
    suffix = {"CMYK": "jpg", "PA": "tif"}.get(mode, "png")
    source = tmp_path / f"a.{suffix}"
    if mode == "PA":  # a palette with a transparent colour
        source = tmp_path / "a.png"
        picture(source, "P")
        Image.open(source).save(source, transparency=3)
    else:
        picture(source, mode)
    once(runs, source, tmp_path / "b.png", run)
    with Image.open(tmp_path / "b.png") as made:
        assert (made.mode, made.size) == (result, (40, 28))


def test_alpha_takes_the_networks_way_as_grey_or_is_resized(runs: Runs, tmp_path: Path):
    pixels = np.full((12, 12, 4), 255, np.uint8)
    pixels[..., 3] = 0
    pixels[3:9, 3:9] = (200, 100, 50, 255)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(pixels[..., 3]).save(tmp_path / "alpha.png")
    premultiplied = pixels[..., :3] * (pixels[..., 3:] > 0)
    Image.fromarray(premultiplied).save(tmp_path / "colour.png")
    for name in ("a", "alpha", "colour"):
        once(runs, tmp_path / f"{name}.png", tmp_path / f"of {name}.png")
    made, alpha, colour = (
        np.asarray(Image.open(tmp_path / f"of {name}.png")).astype(int) for name in ("a", "alpha", "colour")
    )
    assert np.abs(made[..., 3] - alpha).max() <= 1
    solid = (made[..., 3] > 200)[..., None]
    assert (
        np.abs(solid * (made[..., :3] * made[..., 3:] / 255 - np.minimum(colour, made[..., 3:]))).max() <= 2
    )
    once(runs, tmp_path / "a.png", tmp_path / "painted.png", "paint")
    resized = Image.fromarray(pixels[..., 3]).resize((24, 24), Image.Resampling.BICUBIC)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "painted.png"))[..., 3], np.asarray(resized))


def test_16_bits(runs: Runs, tmp_path: Path):
    deep = (np.linspace(0, 65535, 20 * 14).reshape(14, 20)).astype(np.uint16)
    for suffix in ("png", "tif"):
        Image.fromarray(deep).save(tmp_path / f"a.{suffix}")
        assert not once(runs, tmp_path / f"a.{suffix}", tmp_path / f"b.{suffix}").notes
        made = np.asarray(Image.open(tmp_path / f"b.{suffix}"))
        assert made.dtype == np.uint16 and made.shape == (28, 40) and len(np.unique(made % 257)) > 50
    notes = once(runs, tmp_path / "a.png", tmp_path / "c.jpg").notes
    assert list(notes) == ["16 bits become 8, as JPEG has them here"]
    from limner.data.images.png import written

    (tmp_path / "colour.png").write_bytes(written(np.repeat(deep[..., None], 3, -1)))
    assert "its colours of 16 bits become 8" in once(runs, tmp_path / "colour.png", tmp_path / "d.png").notes


def test_exif_and_profile_are_kept_and_the_orientation_is_applied_once(runs: Runs, tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a maker"
    exif.get_ifd(0x8769)[0x9003] = "2020:02:02 02:02:02"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for suffix in ("jpg", "png", "webp", "tif"):
        source = picture(tmp_path / f"a.{suffix}", exif=exif, icc_profile=profile)
        once(runs, source, tmp_path / "upright.png", overwrite=True)
        with Image.open(tmp_path / "upright.png") as made:
            assert made.size == (28, 40)  # turned
            found = made.getexif()
            assert found[0x0112] == 1 and found[0x010F] == "a maker"
            if suffix != "tif":  # Pillow left it out of the source
                assert found.get_ifd(0x8769)[0x9003] == "2020:02:02 02:02:02"
            assert made.info["icc_profile"] == profile
        once(runs, tmp_path / "upright.png", tmp_path / f"again.{suffix}")
        with Image.open(tmp_path / f"again.{suffix}") as made:
            assert made.size == (56, 80) and made.info["icc_profile"] == profile
            found = made.getexif()
            assert found[0x0112] == 1 and (suffix == "tif" or found.get_ifd(0x8769))
        once(runs, source, tmp_path / f"without.{suffix}", metadata=False)
        with Image.open(tmp_path / f"without.{suffix}") as made:
            assert 0x010F not in made.getexif() and "icc_profile" not in made.info and made.size == (28, 40)


def test_what_is_changed_is_said(runs: Runs, tmp_path: Path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "green")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    applied = once(runs, tmp_path / "moving.gif", tmp_path / "still.png")
    assert list(applied.notes) == ["of its 3 frames the first is used"]
    assert "moving.gif: of its 3 frames the first is used." in summary(applied)
    assert list(once(runs, picture(tmp_path / "print.jpg", "CMYK"), tmp_path / "b.png").notes) == [
        "CMYK becomes RGB"
    ]
    assert list(once(runs, picture(tmp_path / "c.png", "RGBA"), tmp_path / "c.jpg").notes) == [
        "JPEG has no alpha, so the background shows"
    ]
    assert (
        "its colours become grey, as the run's own pictures are"
        in once(runs, picture(tmp_path / "d.png"), tmp_path / "e.png", "grey").notes
    )


def test_side_by_side_and_details(runs: Runs, tmp_path: Path):
    folder = paint(tmp_path / "in", 3, (40, 50))
    applied = once(runs, folder, tmp_path / "out", side_by_side=True, crops=4)
    made = np.asarray(Image.open(tmp_path / "out" / "000.png"))
    given = np.asarray(Image.open(folder / "000.png"))
    assert made.shape == (80, 200, 3) and np.array_equal(made[::2, :100:2], given)
    alone = once(runs, folder / "000.png", tmp_path / "alone.png")
    assert np.array_equal(made[:, 100:], np.asarray(Image.open(tmp_path / "alone.png"))) and not alone.crops
    assert applied.crops == str(tmp_path / "out" / "crops.png") and Image.open(applied.crops).width > 300
    truth = paint(tmp_path / "truth", 3, (80, 100))
    with_truth = once(runs, folder, tmp_path / "other", crops=4, truth=str(truth))
    assert Image.open(with_truth.crops).width > Image.open(applied.crops).width


def test_options_of_the_family(runs: Runs, tmp_path: Path):
    source = picture(tmp_path / "a.png")
    once(runs, source, tmp_path / "forward.png")
    once(runs, source, tmp_path / "backward.png", sampling={"direction": "backward"})
    forward, backward = (
        np.asarray(Image.open(tmp_path / f"{d}.png")).astype(int) for d in ("forward", "backward")
    )
    assert np.abs(forward + backward - 255).max() <= 1
    with pytest.raises(LimnerError, match="no style 'oil' in this run: it has waves and mosaic"):
        once(runs, source, tmp_path / "c.png", sampling={"style": "oil"})


# Folders -----------------------------------------------------------------------------------------------------


def test_a_folder_keeps_names_and_goes_on(runs: Runs, tmp_path: Path):
    folder = paint(tmp_path / "in", 3)
    paint(folder / "below" / "deeper", 2)
    picture(folder / "scan.bmp")
    (folder / "notes.txt").write_text("no picture")
    to = tmp_path / "out"
    assert once(runs, folder, to).made == 6
    names = {"000.png", "001.png", "002.png", "scan.png", "below/deeper/000.png", "below/deeper/001.png"}
    assert {p.relative_to(to).as_posix() for p in to.rglob("[!.]*") if p.is_file()} == names
    before = {name: (to / name).stat().st_mtime_ns for name in names}
    (to / "001.png").unlink()
    again = once(runs, folder, to)
    assert (again.made, again.there) == (1, 5)
    assert all((to / name).stat().st_mtime_ns == before[name] for name in names - {"001.png"})
    with pytest.raises(LimnerError, match=r"was made with other settings \(seed\): add --overwrite"):
        once(runs, folder, to, seed=1)
    assert once(runs, folder, to, seed=1, overwrite=True).made == 6


def test_what_an_unfinished_overwrite_left_is_not_taken_for_its_own(tmp_path: Path):
    (tmp_path / "in").mkdir()
    for name in ("a.png", "b.png"):
        picture(tmp_path / "in" / name)
    work = jobs_of(tmp_path / "in", tmp_path / "out", ApplyOptions())

    def todo(seed: int, overwrite: bool = False) -> list[str]:
        return [job.name for job in begin(work, {"seed": seed}, overwrite)]

    def write(name: str) -> None:
        files.write_bytes(tmp_path / "out" / name, name.encode())

    assert todo(0) == ["a.png", "b.png"]
    for name in ("a.png", "b.png"):
        write(name)
        os.utime(tmp_path / "out" / name, (0, 0))
    assert todo(0) == [] and todo(1, overwrite=True) == ["a.png", "b.png"]
    write("a.png")  # and then it is killed
    assert todo(1) == ["b.png"]
    with pytest.raises(LimnerError, match=r"a.png was made with other settings \(seed\): add --overwrite"):
        todo(2)
    write("b.png")
    assert todo(1) == []


def test_what_a_killed_call_left_beside_a_whole_result_is_removed(tmp_path: Path):
    """Killed between the rename of a result and the removal of the folder that it was written in."""
    (tmp_path / "in" / "deep").mkdir(parents=True)
    picture(tmp_path / "in" / "deep" / "a.png")
    work = jobs_of(tmp_path / "in", tmp_path / "out", ApplyOptions())
    assert begin(work, {}, False)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    files.write_bytes(tmp_path / "out" / "deep" / "a.png", b"whole")
    left = tmp_path / "out" / "deep" / f".a.png.{ended.pid}.tmp"
    left.mkdir()
    assert begin(work, {}, False) == [] and not left.exists()


def test_nothing_is_written_over(runs: Runs, tmp_path: Path):
    source = picture(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"mine")
    with pytest.raises(LimnerError, match=r"b.png exists already: add --overwrite"):
        once(runs, source, tmp_path / "b.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.png").write_bytes(b"mine")
    (tmp_path / "in").mkdir()
    source.rename(tmp_path / "in" / "a.png")
    with pytest.raises(LimnerError, match=r"a.png exists already: add --overwrite"):
        once(runs, tmp_path / "in", tmp_path / "out")
    assert (tmp_path / "out" / "a.png").read_bytes() == b"mine"
    with pytest.raises(LimnerError, match="is read here and would be replaced"):
        once(runs, tmp_path / "in" / "a.png", tmp_path / "in" / "a.png", overwrite=True)


def test_one_bad_file_does_not_stop_the_others(runs: Runs, tmp_path: Path):
    folder = paint(tmp_path / "in", 2)
    (folder / "0 broken.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    (folder / "0 empty.jpg").write_bytes(b"")
    applied = once(runs, folder, tmp_path / "out")
    assert applied.made == 2 and set(applied.failed) == {"0 broken.png", "0 empty.jpg"}
    assert "0 empty.jpg cannot be used: the file is empty." in applied.failed["0 empty.jpg"]
    again = once(runs, folder, tmp_path / "out")
    assert (again.made, again.there, len(again.failed)) == (0, 2, 2)


def test_a_disk_that_fills_leaves_whole_files(runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder, flushes = paint(tmp_path / "in", 5), iter([None] * 3)

    def fsync(descriptor: int) -> None:
        if next(flushes, "full") == "full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fsync)
        with pytest.raises(
            LimnerError, match=r"002.png cannot be written \(No space left on device\): free space"
        ):
            once(runs, folder, tmp_path / "out")
    made = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert made == [".limner-apply.json", "000.png", "001.png"]
    assert once(runs, folder, tmp_path / "out").made == 3


# Faults of input ---------------------------------------------------------------------------------------------


def test_what_cannot_be_used_is_said_in_one_sentence(runs: Runs, tmp_path: Path):
    nan = np.full((6, 6), 0.5, np.float32)
    nan[2, 3] = np.nan
    Image.fromarray(nan).save(tmp_path / "nan.tif")
    with pytest.raises(LimnerError, match=r"nan.tif cannot be used: 1 of its values are NaN or infinite"):
        once(runs, tmp_path / "nan.tif", tmp_path / "b.png")
    large = Image.new("1", (30000, 20000))
    large.save(tmp_path / "large.png")
    with pytest.raises(LimnerError, match="more than 100 million pixels: scale it down first"):
        once(runs, tmp_path / "large.png", tmp_path / "b.png")
    with pytest.raises(LimnerError, match="neither a picture nor a folder"):
        once(runs, tmp_path / "absent.png", tmp_path / "b.png")
    with pytest.raises(LimnerError, match="holds no pictures"):
        once(runs, TOY, tmp_path / "out")
    assert not list(tmp_path.glob("b.*")) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("size", [(1, 1), (10000, 1), (1, 300)])
def test_a_side_of_one_pixel(runs: Runs, tmp_path: Path, size: tuple[int, int]):
    once(runs, picture(tmp_path / "a.png", size=size), tmp_path / "b.png")
    assert Image.open(tmp_path / "b.png").size == (2 * size[0], 2 * size[1])


def test_what_cannot_be_written_is_refused_first(runs: Runs, tmp_path: Path):
    source = picture(tmp_path / "a.png")
    folder = paint(tmp_path / "in", 2)
    for to, said in ((tmp_path / "b.gif", "written as .gif: choose png, jpg, webp or tif"), (folder, "lies inside"),
                     (folder / "out", "lies inside"), (tmp_path / "b.png", "names a file")):  # fmt: skip
        with pytest.raises(LimnerError, match=said):
            once(runs, source if to.suffix == ".gif" else folder, to)
    picture(folder / "000.jpg")
    assert once(runs, folder, tmp_path / "each").made == 3  # of two formats
    with pytest.raises(LimnerError, match=r"000.png and 000.jpg would both become 000.webp"):
        once(runs, folder, tmp_path / "out", suffix="webp")
    picture(folder / "000.gif")
    with pytest.raises(LimnerError, match=r"000.png and 000.gif would both become 000.png"):
        once(runs, folder, tmp_path / "out")
    wide = picture(tmp_path / "wide.png", size=(9000, 2))
    with pytest.raises(LimnerError, match=r"A WEBP has at most 16,383 pixels a side.*write a .png"):
        once(runs, wide, tmp_path / "wide.webp")


def test_a_run_that_applies_nothing(runs: Runs, tmp_path: Path):
    with pytest.raises(
        LimnerError, match="is a run of flow, which makes no picture from a given one: use a run of"
    ):
        once(runs, picture(tmp_path / "a.png"), tmp_path / "b.png", "flow")


@pytest.mark.parametrize(
    ("memory", "said"),
    [("much", "not an amount of memory"), ("1MB", "too little for any network"), ("70MB", "do not fit --memory")],
)  # fmt: skip
def test_memory(runs: Runs, tmp_path: Path, memory: str, said: str):
    with pytest.raises(LimnerError, match=said):
        once(runs, picture(tmp_path / "a.png"), tmp_path / "b.png", memory=memory)


# The command -------------------------------------------------------------------------------------------------


def command(*arguments: object) -> subprocess.Popen[str]:
    variables = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "100",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    call = [sys.executable, str(TOY.parent / "toy_command.py"), "apply", *map(str, arguments)]
    return subprocess.Popen(call, text=True, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.process
def test_the_command_kept_from_finishing_goes_on(runs: Runs, tmp_path: Path):
    """Stopped and killed while it writes, every file is whole, and each is made once."""
    folder, to = paint(tmp_path / "in", 150, (64, 64)), tmp_path / "out"
    times: dict[str, int] = {}
    for number in (signal.SIGINT, signal.SIGKILL, None):
        process = command(runs["rgb"], folder, "--to", to)
        before = len(list(to.glob("*.png"))) if to.exists() else 0
        while number and len(list(to.glob("*.png"))) < before + 10 and process.poll() is None:
            time.sleep(0.01)
        if number:
            process.send_signal(number)
        said, errors = process.communicate(timeout=120)
        assert "Traceback" not in errors and process.returncode in (0, 130, -9), errors
        if number == signal.SIGINT and process.returncode:
            assert "the same command makes the others" in said
        for path in to.glob("*.png"):
            with Image.open(path) as made:
                made.load()
                assert made.size == (128, 128)
            assert times.setdefault(path.name, path.stat().st_mtime_ns) == path.stat().st_mtime_ns
    assert len(times) == 150 and not list(to.glob(".*.tmp"))


@pytest.mark.process
def test_the_command_says_what_it_did(runs: Runs, tmp_path: Path):
    source = picture(tmp_path / "a.png", "CMYK", format="JPEG")
    process = command(runs["rgb"], source, "--to", tmp_path / "b.png", "--direction", "backward")
    said, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert said.splitlines() == [f"1 picture in {tmp_path / 'b.png'}.", "a.png: CMYK becomes RGB."]
    process = command(runs["rgb"], source, "--to", tmp_path / "c.png", "--json")
    assert json.loads(process.communicate(timeout=120)[0])["made"] == 1
    (tmp_path / "in").mkdir()
    source.rename(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "b.png").write_bytes(b"")
    process = command(runs["rgb"], tmp_path / "in", "--to", tmp_path / "out")
    said, errors = process.communicate(timeout=120)
    assert process.returncode == 2 and said.startswith("1 picture in")
    assert errors.endswith(f"limner: {tmp_path / 'in' / 'b.png'} cannot be used: the file is empty.\n")
    process = command(
        runs["rgb"], tmp_path / "in" / "a.png", "--to", tmp_path / "d.png", "--direction", "sideways"
    )
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2 and "sideways" in errors and "backward" in errors


@pytest.mark.process
def test_memory_is_kept(runs: Runs, tmp_path: Path):
    """A picture of twelve million pixels within 1 GB, with the statistics of a thumbnail."""
    resource = pytest.importorskip("resource")
    picture(tmp_path / "large.png", size=(4000, 3000))
    process = command(runs["paint"], tmp_path / "large.png", "--to", tmp_path / "b.png", "--memory", "1GB")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert Image.open(tmp_path / "b.png").size == (8000, 6000)
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 < 1e9
