"""What damaged files do: images, archives, tables, model files, JSON and the cache, changed at random from a seed.

    python benchmarks/mutations.py [--n 2000] [--kinds images archives ...] [--seed 0] [--record]

Each kind runs in a process of its own, which first reads the sound files and then ``n`` changed ones. Counted are
errors that are not a sentence for the person, cases of over 5 seconds, and memory beyond that of the sound files.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import resource
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
import traceback
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

SLOW = 5.0  # seconds that one file may take
GROWTH = 300  # MB that all files of a kind may take beyond the sound ones
SOUND = 3  # times that every sound file is read first
PRESET = "tiny"

Files = dict[str, bytes]  # sound files by name


@dataclass(frozen=True)
class Kind:
    """One kind of file."""

    make: Callable[[Path], Files]  # in an empty folder
    read: Callable[[Path], object]  # a folder that holds one of them, changed or not, and what it needs
    text: bool = False  # changed as JSON too


# ---- changes

NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)
VALUES = (
    "null",
    "5",
    "-1",
    "1e400",
    "NaN",
    "true",
    "[]",
    "{}",
    '""',
    '"x"',
    "9" * 5000,
    '"\\ud800"',
    "[[1]]",
)


def change(data: bytes, rng: random.Random, text: bool) -> bytes:
    """One to three changes, of kinds that damage on disks, broken downloads and hostile hands make."""
    for _ in range(rng.randint(1, 3)):
        data = bytes(rng.choice(TEXT_CHANGES + CHANGES if text else CHANGES)(bytearray(data), rng))
    return with_checksums(data) if rng.random() < 0.5 else data


def _flip(data: bytearray, rng: random.Random) -> bytearray:
    for _ in range(rng.randint(1, 8) if data else 0):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return data


def _cut(data: bytearray, rng: random.Random) -> bytearray:
    return data[: rng.randrange(len(data) + 1)]


def _zeros(data: bytearray, rng: random.Random) -> bytearray:
    at = rng.randrange(len(data) + 1)
    size = min(len(data) - at, rng.choice((1, 16, 512, 4096)))
    data[at : at + size] = bytes([rng.choice((0, 255))]) * size
    return data


def _number(data: bytearray, rng: random.Random) -> bytearray:
    """A number of 1 to 8 bytes, mostly near the start, where headers are."""
    end = min(len(data), rng.choice((64, 512, 10**9)))
    size = rng.choice((1, 2, 4, 8))
    if end <= size:
        return data
    at, order = rng.randrange(end - size), rng.choice(("little", "big"))
    data[at : at + size] = (rng.choice(NUMBERS) % 256**size).to_bytes(size, order)  # type: ignore[arg-type]
    return data


def _repeat(data: bytearray, rng: random.Random) -> bytearray:
    a, b = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    part = data[a : min(b, a + 4096)]
    return data[:a] + part * rng.randint(0, 3) + data[b:]


def _noise(data: bytearray, rng: random.Random) -> bytearray:
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.randbytes(rng.choice((1, 7, 300))) + data[at:]


def _digits(data: bytearray, rng: random.Random) -> bytearray:
    """Another number for one that is written in digits."""
    found = [i for i, byte in enumerate(data[:20_000]) if 48 <= byte <= 57]
    if not found:
        return _flip(data, rng)
    at = rng.choice(found)
    return data[:at] + rng.choice((b"-1", b"0", b"99999999999999999999", b"1e999", b"3.5")) + data[at + 1 :]


def _value(data: bytearray, rng: random.Random) -> bytearray:
    """Another JSON value in the place of one."""
    try:
        rows = [json.loads(line) for line in data.splitlines()] if b"\n{" in data else [json.loads(data)]
    except (ValueError, RecursionError):
        return _flip(data, rng)
    mark = "\x00here"
    row = rng.randrange(len(rows))
    rows[row] = _replace(rows[row], mark, rng)
    value = rng.choice((*VALUES, "[" * 10_000 + "]" * 10_000, '{"a":' * 10_000 + "1" + "}" * 10_000))
    text = "\n".join(json.dumps(row) for row in rows).replace(json.dumps(mark), value)
    return bytearray(text.encode("utf-8", "replace"))


def _replace(value: object, mark: str, rng: random.Random) -> object:
    if not isinstance(value, dict | list) or not value or rng.random() < 0.15:
        return mark
    if isinstance(value, dict):
        key = rng.choice(sorted(value))
        return {**value, key: _replace(value[key], mark, rng)}
    at = rng.randrange(len(value))
    return [*value[:at], _replace(value[at], mark, rng), *value[at + 1 :]]


def _encoding(data: bytearray, rng: random.Random) -> bytearray:
    text = data.decode("utf-8", "replace")
    return bytearray(text.encode(rng.choice(("utf-16", "utf-32", "utf-8-sig", "utf-16-be")), "replace"))


CHANGES = (_flip, _flip, _cut, _zeros, _number, _number, _repeat, _noise, _digits)
TEXT_CHANGES = (_value, _value, _value, _encoding)


def with_checksums(data: bytes) -> bytes:
    """The checksums of a PNG's chunks made right, so that what they guard is read."""
    if data[:8] != b"\x89PNG\r\n\x1a\n":
        return data
    out, at = bytearray(data), 8
    while at + 12 <= len(out):
        size = struct.unpack_from(">I", out, at)[0]
        if at + 12 + size > len(out):
            break
        struct.pack_into(">I", out, at + 8 + size, zlib.crc32(out[at + 4 : at + 8 + size]))
        at += 12 + size
    return bytes(out)


# ---- sound files, and how they are read


def pictures() -> Iterator[tuple[str, Image.Image]]:
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((48, 36), 3)
    yield "rgb", smooth
    yield "grey", smooth.convert("L")
    yield "palette", smooth.quantize(32)
    yield "alpha", Image.merge("RGBA", (*smooth.split(), smooth.convert("L")))
    yield "deep", Image.fromarray(np.asarray(smooth.convert("L")).astype(np.uint16) * 257)


WRITERS = {
    "rgb": ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "TGA", "ICO", "JPEG2000", "PCX", "QOI", "DDS", "AVIF"),
    "grey": ("PNG", "JPEG", "TIFF", "PPM"), "palette": ("PNG", "GIF", "BMP"),
    "alpha": ("PNG", "WEBP", "TIFF", "ICO", "TGA"), "deep": ("PNG", "TIFF", "PPM"),
}  # fmt: skip
ENDINGS = {"JPEG2000": "jp2"}


def images(folder: Path) -> Files:
    from PIL import ImageCms, PngImagePlugin

    found: Files = {}
    Image.init()
    for name, picture in pictures():
        for form in WRITERS[name]:
            if form in Image.SAVE:
                picture.save(buffer := io.BytesIO(), form)
                found[f"{name}.{ENDINGS.get(form, form.lower())}"] = buffer.getvalue()
    rgb = dict(pictures())["rgb"]
    text = PngImagePlugin.PngInfo()
    text.add_text("caption", "a " * 5000, zip=True)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x0112] = 6
    rgb.save(buffer := io.BytesIO(), "PNG", pnginfo=text, icc_profile=profile, exif=exif)
    found["beside.png"] = buffer.getvalue()
    rgb.save(buffer := io.BytesIO(), "JPEG", icc_profile=profile, exif=exif, progressive=True)
    found["beside.jpg"] = buffer.getvalue()
    rgb.save(buffer := io.BytesIO(), "GIF", save_all=True, append_images=[rgb.rotate(90), rgb.rotate(180)])
    found["moves.gif"] = buffer.getvalue()
    return found


def archives(folder: Path) -> Files:
    inside = {f"{kind}/{i}.png": png(i) for kind in ("cat", "dog") for i in range(3)}
    inside |= {"cat/0.txt": b"a cat", "metadata.jsonl": b'{"file_name": "dog/1.png", "text": "a dog"}\n'}
    found: Files = {}
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        with zipfile.ZipFile(buffer := io.BytesIO(), "w", method) as archive:
            for name, data in inside.items():
                archive.writestr(name, data)
        found[f"{method}.zip"] = buffer.getvalue()
    for packing in ("", "gz", "bz2", "xz"):
        with tarfile.open(fileobj=(buffer := io.BytesIO()), mode=f"w:{packing}") as tar:
            for name, data in inside.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        found[f"a.tar.{packing}".rstrip(".")] = buffer.getvalue()
    return found


def png(i: int) -> bytes:
    grid = np.random.default_rng(i).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(grid).resize((24, 24)).save(buffer := io.BytesIO(), "PNG")
    return buffer.getvalue()


def tables(folder: Path) -> Files:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"file_name": f"{i}.png", "text": f"a picture {i}", "label": i % 2} for i in range(6)]
    shown = [{"image": {"bytes": png(i), "path": f"{i}.png"}, "label": i % 2, "text": "a"} for i in range(6)]
    pq.write_table(pa.Table.from_pylist(rows), folder / "metadata.parquet")
    pq.write_table(pa.Table.from_pylist(shown), folder / "images.parquet")
    lines = ["file_name,text,label", *(",".join(map(str, row.values())) for row in rows)]
    labels = {"labels": [[row["file_name"], row["label"]] for row in rows]}
    return {
        "metadata.jsonl": "\n".join(map(json.dumps, rows)).encode(), "metadata.csv": "\n".join(lines).encode(),
        "metadata.parquet": (folder / "metadata.parquet").read_bytes(),
        "images.parquet": (folder / "images.parquet").read_bytes(),
        "dataset.json": json.dumps(labels).encode(), "0.txt": "a café".encode(), "0.json": b'{"text": "a"}',
    }  # fmt: skip


def check_source(folder: Path) -> None:
    """A changed image, archive or table, checked and then packed, beside sound images where it needs them."""
    from limner.data import check, open_data
    from limner.settings import DataOptions, LimnerError

    (path,) = folder.iterdir()
    whole = path.suffix in (".zip", ".parquet") or ".tar" in path.name
    if not whole or path.name == "metadata.parquet":
        for i in range(6):
            if not (folder / f"{i}.png").exists():
                (folder / f"{i}.png").write_bytes(png(i))
        path = folder
    options = DataOptions(cache=str(folder.parent / "cache"), max_bad=0.99)
    with contextlib.suppress(LimnerError):  # such as a picture that is damaged, alone
        data = open_data([path], size=(16, 16), options=options, progress=False)
        image = data.batch(np.arange(min(len(data), 8))).image
        assert np.isfinite(image.numpy()).all() and image.abs().max() <= 1
    str(check([path], options, progress=False))


def train_tiny(folder: Path) -> Path:
    from limner.api import train

    run = folder / "run"
    train(
        "vae", "digits", run, preset=PRESET, budget="96img", quiet=True,
        model={"width": 4, "latent": 4}, training={"save_every": "32img", "keep": 2, "log_every": 1, "samples": 4},
    )  # fmt: skip
    return run


def models(folder: Path) -> Files:
    run = train_tiny(folder)
    newest = max((run / "checkpoints").iterdir())
    return {
        "model.safetensors": (newest / "model.safetensors").read_bytes(),
        "live.safetensors": (newest / "live.safetensors").read_bytes(),
    }


def read_models(folder: Path) -> None:
    """The file alone, and in the place of a checkpoint's, where an older one must be found."""
    from limner import checkpoint
    from limner.settings import LimnerError

    (path,) = folder.iterdir()
    run = folder.parent / "run"
    newest = max((run / "checkpoints").iterdir())
    sound = (newest / path.name).read_bytes()
    (newest / path.name).write_bytes(path.read_bytes())
    try:
        resumed = checkpoint.resume(run)
        assert resumed is not None
        assert all(bool(tensor.isfinite().all()) for tensor in resumed.model_tensors.values())
        with_weights = checkpoint.load(path) if path.name == "model.safetensors" else None
        if with_weights:
            assert all(bool(w.isfinite().all()) for w in with_weights.model.state_dict().values())
    except LimnerError:
        assert checkpoint.resume(run) is not None
        raise
    finally:
        (newest / path.name).write_bytes(sound)


def settings(folder: Path) -> Files:
    run = train_tiny(folder)
    newest = max((run / "checkpoints").iterdir())
    return {
        "config.json": (run / "config.json").read_bytes(), "log.jsonl": (run / "log.jsonl").read_bytes(),
        "state.json": (newest / "state.json").read_bytes(),
    }  # fmt: skip


def read_settings(folder: Path) -> None:
    """In the place of the run's own file: the run is read, shown, and gone on with."""
    from limner import checkpoint, config
    from limner.settings import LimnerError
    from limner.training.journal import Journal, read_log

    (path,) = folder.iterdir()
    run = folder.parent / "run"
    target = (
        max((run / "checkpoints").iterdir()) / path.name if path.name == "state.json" else run / path.name
    )
    sound = target.read_bytes()
    target.write_bytes(path.read_bytes())
    try:
        assert checkpoint.resume(run) is not None
        with Journal(run, quiet=True) as journal:
            journal.rewind(64)
        read_log(run)
        with contextlib.suppress(LimnerError):
            config.read_run(run)
        checkpoint.run_of(run)
    finally:
        target.write_bytes(sound)
        for aside in run.glob("log.jsonl*"):
            if aside != target and aside.name != "log.jsonl":
                aside.unlink()


def cache(folder: Path) -> Files:
    packed = pack(folder)
    return {name: (packed / name).read_bytes() for name in ("index.json", "array.npy")}


def pack(folder: Path) -> Path:
    """The folder of the cache with 200 packed pictures."""
    from limner.data import open_data
    from limner.settings import DataOptions

    source = folder / "source"
    if not source.exists():
        source.mkdir()
        for i in range(200):
            (source / f"{i}.png").write_bytes(png(i))
    open_data(source, size=(24, 24), options=DataOptions(cache=str(folder / "packed")), progress=False)
    (found,) = (
        path for path in (folder / "packed" / "packed").iterdir() if not path.name.startswith("unfin")
    )
    return found


def read_cache(folder: Path) -> None:
    """In the place of the packed data's own file: what is read equals what was packed, or it is packed again."""
    from limner.data import open_data
    from limner.settings import DataOptions, LimnerError

    (path,) = folder.iterdir()
    root = folder.parent
    (pack(root) / path.name).write_bytes(path.read_bytes())
    options = DataOptions(cache=str(root / "packed"))
    data = open_data(root / "source", size=(24, 24), options=options, progress=False)
    try:
        rows = data.batch(np.arange(len(data))).image
    except LimnerError:  # found while reading: the next opening packs again
        data = open_data(root / "source", size=(24, 24), options=options, progress=False)
        rows = data.batch(np.arange(len(data))).image
    truth = np.stack([np.asarray(Image.open(io.BytesIO(png(int(name[:-4]))))) for name in data.names])
    assert np.array_equal(np.rint((rows.numpy() + 1) * 127.5).astype(np.uint8), truth.transpose(0, 3, 1, 2))


KINDS = {
    "images": Kind(images, check_source), "archives": Kind(archives, check_source),
    "tables": Kind(tables, check_source, text=True), "models": Kind(models, read_models),
    "settings": Kind(settings, read_settings, text=True), "cache": Kind(cache, read_cache, text=True),
}  # fmt: skip


# ---- running


def work(name: str, n: int, seed: int) -> dict[str, object]:
    """The sound files of a kind, then ``n`` changed ones, in this process."""
    from limner.settings import LimnerError

    kind, failures, slowest, refused = KINDS[name], [], 0.0, 0
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        sound = kind.make(root)
        for file, data in [*sound.items()] * SOUND:
            attempt(kind, root, file, data)
        clean = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        for i in range(n):
            rng = random.Random(f"{seed} {name} {i}")
            file = rng.choice(sorted(sound))
            data = change(sound[file], rng, kind.text)
            started = time.perf_counter()
            try:
                attempt(kind, root, file, data)
            except LimnerError:
                refused += 1
            except Exception:
                where = traceback.format_exc(limit=-3)
                failures.append(f"{name} {i} ({file}): {where}")
            seconds = time.perf_counter() - started
            slowest = max(slowest, seconds)
            if seconds > SLOW:
                failures.append(f"{name} {i} ({file}): took {seconds:.1f} s")
        growth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - clean
    if growth > GROWTH:
        failures.append(f"{name}: {growth:.0f} MB more than the sound files")
    return {
        "kind": name, "n": n, "refused": refused, "failures": failures, "slowest": round(slowest, 2),
        "growth_mb": round(growth),
    }  # fmt: skip


def attempt(kind: Kind, root: Path, file: str, data: bytes) -> None:
    folder = root / "changed"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(root / "cache", ignore_errors=True)
    folder.mkdir()
    (folder / file).write_bytes(data)
    kind.read(folder)


def run(names: list[str], n: int, seed: int = 0) -> list[dict[str, object]]:
    """Each kind in a process of its own; a process that dies is a failure too."""
    rows = []
    for name in names:
        command = [sys.executable, __file__, "--worker", name, "--n", str(n), "--seed", str(seed)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60 + n * SLOW)
        try:
            rows.append(json.loads(done.stdout.splitlines()[-1]))
        except (IndexError, ValueError):
            rows.append(
                {
                    "kind": name,
                    "n": n,
                    "failures": [f"{name} died ({done.returncode}): {done.stderr[-2000:]}"],
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=2000, help="changed files of each kind")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--worker", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--record", action="store_true", help="write benchmarks/results/mutations.json")
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(work(args.worker, args.n, args.seed)))
        return
    rows = []
    for name in args.kinds:
        (row,) = run([name], args.n, args.seed)
        for failure in row["failures"][:10]:  # type: ignore[index]
            print(failure, file=sys.stderr)
        row["failures"] = len(row["failures"])  # type: ignore[arg-type]
        print(row)
        rows.append(row)
    if args.record:
        from record import record

        columns = {
            "kind": "kind of file", "n": "changed", "refused": "refused in a sentence", "failures": "failures",
            "slowest": "slowest, s", "growth_mb": "memory beyond sound files, MB",
        }  # fmt: skip
        total = {key: sum(row[key] for row in rows) for key in ("n", "refused", "failures")}  # type: ignore[misc]
        worst = {key: max(row[key] for row in rows) for key in ("slowest", "growth_mb")}  # type: ignore[type-var]
        record(
            "mutations",
            columns,
            [*rows, {"kind": "all", **total, **worst}],
            note="failures: tracebacks, over 5 s, over 300 MB, a dead process",
        )


if __name__ == "__main__":
    main()
