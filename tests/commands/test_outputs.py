"""What commands write: whole or not there, the earlier file survives, and the same command goes on."""

from __future__ import annotations

import ast
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from limner import api, cli, files
from limner.settings import LimnerError
from tests.helpers import paint

Command = Callable[..., subprocess.CompletedProcess[str]]
PACKAGE = Path(files.__file__).parent


# Nothing goes past limner.files --------------------------------------------------------------------------

WRITERS = {
    "write_text", "write_bytes", "save", "save_file", "savez", "savez_compressed", "write_table", "tofile", "dump",
    "to_csv", "savefig", "SummaryWriter", "replace", "rename", "copyfile", "copytree", "link", "symlink", "symlink_to",
}  # fmt: skip
MODULES = {  # whose functions of these names are meant, where others have methods of the same name
    "replace": {"os"}, "rename": {"os"}, "link": {"os"}, "symlink": {"os"}, "dump": {"json"},
}  # fmt: skip
WITHIN = ("files.atomic", "files.atomic_folder")  # what is written inside goes to a temporary place
# Files that are written otherwise, and why a cut one does no harm.
ALLOWED = {
    "files.py",  # the one place
    "checkpoint/",  # into a temporary folder, which is hashed and renamed
    "data/cache.py", "data/pack.py", "data/write_rows.py", "data/clips/write.py",  # the same
    "synthesis/folder.py",  # hidden files, listed when they are whole; see its own tests
    "training/journal.py",  # log.jsonl is appended to; a cut last line is left out
    "distributed.py",  # a temporary folder
    "pictures/grid.py",  # Pillow writes to memory
    "pictures/animations.py", "pictures/videos.py",  # to the temporary file of clips.clip_file
    "evaluation/report.py",  # the same
    "families/_degrade.py",  # the same
    "commands/demo.py",  # moves a finished demo aside
    "commands/__init__.py",  # /dev/null
}  # fmt: skip
REMOVERS = {"rmtree", "unlink", "remove", "rmdir"}
MAY_REMOVE = {
    "files.py": "temporary files of its own, and folders of an owner that checked them",
    "checkpoint/layout.py": "checkpoints and temporary folders of a run whose lock it holds",
    "commands/demo.py": "files of a demo by their hashes",
    "data/cache.py": "unfinished and damaged entries of the cache",
    "data/write_rows.py": "scratch files of its own",
    "data/rows.py": "the index of a packing that it found damaged",
    "synthesis/draw.py": "the lock, and a folder that it made and that is empty",
    "synthesis/folder.py": "images that it lists, or that an interrupted batch left",
    "training/run.py": "a new run's folder before its first checkpoint",
}


def calls() -> Iterator[tuple[str, ast.Call, list[ast.AST]]]:
    """Each call of the package with what it stands within."""
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()

        def walk(
            node: ast.AST, above: list[ast.AST], name: str = name
        ) -> Iterator[tuple[str, ast.Call, list]]:
            if isinstance(node, ast.Call):
                yield name, node, above
            for child in ast.iter_child_nodes(node):
                yield from walk(child, [*above, node])

        yield from walk(ast.parse(path.read_text("utf-8")), [])


def writes(call: ast.Call) -> bool:
    function = ast.unparse(call.func)
    owner, _, name = function.rpartition(".")
    if function in ("open", "os.fdopen") or (name == "open" and owner != "Image"):
        modes = [k.value for k in call.keywords if k.arg == "mode"]
        modes += call.args[1 if owner in ("", "os") else 0 :]
        said = [
            mode.value for mode in modes if isinstance(mode, ast.Constant) and isinstance(mode.value, str)
        ]
        return any(set(mode) & set("wax+") for mode in said)
    if name == "save" and owner in ("self", "film", "checkpoint"):  # those go through files
        return False
    return name in WRITERS and (name not in MODULES or owner in MODULES[name]) and owner != "files"


def test_every_writer_goes_through_files() -> None:
    offenders = []
    for name, call, above in calls():
        inside = [
            ast.unparse(item.context_expr) for w in above if isinstance(w, ast.With) for item in w.items
        ]
        if not writes(call) or any(text.startswith(f"{context}(") for text in inside for context in WITHIN):
            continue
        if not any(
            name == allowed or (allowed.endswith("/") and name.startswith(allowed)) for allowed in ALLOWED
        ):
            offenders.append(f"{name}:{call.lineno} {ast.unparse(call)[:60]}")
    assert not offenders, (
        "use files.atomic, files.write_text, save_picture ..., so that a full disk cuts no file"
    )


def test_only_these_remove_anything() -> None:
    removers = set()
    for name, call, _ in calls():
        owner, _, function = ast.unparse(call.func).rpartition(".")
        if owner and function in REMOVERS and (function != "remove" or owner in ("os", "checkpoint")):
            removers.add(name)
    assert removers <= MAY_REMOVE.keys(), (
        "a person's own files are never removed: say here what is, and test it"
    )


# Faults -------------------------------------------------------------------------------------------------


EXPORTED = {"network": "ddpm", "width": 64, "multiples": [1, 2], "blocks": 1, "attention_resolutions": [8],
            "head_width": 0}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of three classes, and small runs of them: a GAN, a classifier, a diffusion model, one that enlarges."""
    root = tmp_path_factory.mktemp("outputs")
    for i, name in enumerate(("cat", "dog", "owl")):
        paint(root / "animals" / name, 20, seed=i)
    for family, settings in (("dcgan", {}), ("vit", {}), ("ddpm", EXPORTED), ("span", {})):
        api.train(family, root / "animals", root / family, preset="tiny", budget="16img", quiet=True,
                  model=settings, training={"samples": 0}, data={"holdout": 0.4})  # fmt: skip
    call(NEW["export"], root, root / "diffusers")
    return root


COMMANDS: dict[str, tuple[str, ...]] = {  # name -> arguments; OUT is what it writes, another SEED another result
    "data show": ("data", "show", "PLACE/animals", "--n", "9", "--to", "OUT/sheet.png", "--seed", "SEED"),
    "sample": ("sample", "PLACE/dcgan", "--n", "9", "--to", "OUT/sheet.png", "--seed", "SEED",
               "--progress-to", "OUT/film.gif"),
    "sample one": ("sample", "PLACE/dcgan", "--n", "1", "--to", "OUT/one.png", "--seed", "SEED"),
    "sample folder": ("sample", "PLACE/dcgan", "--n", "9", "--batch", "4", "--to", "OUT", "--seed", "SEED"),
    "apply": ("apply", "PLACE/span", "PLACE/animals/cat/000.png", "--to", "OUT/large.png", "--overwrite",
              "--memory", "16GB"),  # this process has much already
    "explore": ("explore", "PLACE/dcgan", "--to", "OUT", "--rows", "1", "--columns", "2", "--directions", "1",
                "--seed", "SEED"),
    "project": ("project", "PLACE/dcgan", "PLACE/animals/cat/000.png", "--to", "OUT/found.png", "--steps", "1",
                "--tries", "4", "--seed", "SEED"),
    "evaluate": ("evaluate", "PLACE/dcgan", "PLACE/animals", "--n", "24", "--to", "OUT", "--seed", "SEED"),
    "embed": ("embed", "PLACE/vit", "PLACE/animals", "--to", "OUT/features.npz"),
    "embed safetensors": ("embed", "PLACE/vit", "PLACE/animals", "--to", "OUT/features.safetensors"),
    "classify": ("classify", "PLACE/vit", "PLACE/animals", "--to", "OUT/classes.csv"),
    "classify json": ("classify", "PLACE/vit", "PLACE/animals", "--to", "OUT/classes.json"),
    "search": ("search", "PLACE/vit", "PLACE/animals", "PLACE/animals/cat/000.png", "--to", "OUT/found.png"),
}  # fmt: skip
NEW = {  # commands whose folder must be new
    "synthesize": ("synthesize", "PLACE/dcgan", "--n", "9", "--batch", "4", "--to", "OUT"),
    "export": ("export", "PLACE/ddpm", "--out", "OUT"),
    "import": ("import", "PLACE/diffusers", "--out", "OUT"),
}


def call(command: tuple[str, ...], place: Path, out: Path, seed: int = 0) -> int:
    values = {"PLACE": str(place), "OUT": str(out), "SEED": str(seed)}
    arguments = list(command)
    for name, value in values.items():
        arguments = [argument.replace(name, value) for argument in arguments]
    return cli.run(arguments)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file in a folder, hidden ones too."""
    paths = [path for path in folder.rglob("*") if path.is_file()] if folder.exists() else []
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def told(error: LimnerError, out: Path) -> None:
    """The true reason, and where: of a picture that is given, its pixels are packed for a moment."""
    assert "No space left on device" in str(error) and (str(out) in str(error) or "Packing" in str(error))


def temporary(found: dict[str, bytes]) -> set[str]:
    return {name for name in found if name.split("/")[0].endswith(".tmp")}


class FullDisk:
    """The ``number``-th flush to the disk, and all after it, find no space."""

    def __init__(self, number: int):
        self.left = number

    def __call__(self, descriptor: int) -> None:
        self.left -= 1
        if self.left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fail(self, *_: object) -> None:
        self(0)


@pytest.mark.parametrize("name", COMMANDS)
def test_an_earlier_result_survives_a_full_disk(
    name: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert call(COMMANDS[name], place, out) == 0
    before = contents(out)
    for number in range(100):
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", FullDisk(number))
            try:
                call(COMMANDS[name], place, out, seed=7)
                break
            except LimnerError as error:
                told(error, out)
        after = contents(out)
        assert {path: after.get(path) for path in before} == before and not temporary(after), number
        if name != "sample folder":  # its new images wait in a hidden folder
            assert after == before
    assert number > 0
    assert call(COMMANDS[name], place, out, seed=7) == 0
    assert not temporary(contents(out))


@pytest.mark.parametrize("name", [*COMMANDS, *NEW])
def test_a_first_result_is_whole_or_not_there(
    name: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fills at every flush in turn; the same command then ends as an unbroken one."""
    command, out, whole = {**COMMANDS, **NEW}[name], tmp_path / "out", tmp_path / "whole"
    call(command, place, whole)
    for number in range(100):
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", FullDisk(number))
            try:
                call(command, place, out)
                break
            except LimnerError as error:
                told(error, out)
        if "folder" in name or name == "synthesize":  # what was drawn stays, to be resumed
            images = {path.name for path in out.glob("*.png")}
            assert images == {line["file_name"] for line in lines(out)} and not list(out.glob(".0*.png"))
        else:
            assert not contents(out)
    assert number > 0
    same(contents(out), contents(whole))


def lines(folder: Path) -> list[dict]:
    listing = folder / "metadata.jsonl"
    return [json.loads(line) for line in listing.read_text().splitlines()] if listing.exists() else []


def same(one: dict[str, bytes], other: dict[str, bytes]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        if name.endswith((".png", ".gif", ".jsonl")):
            assert one[name] == other[name], name


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 16 MB, where the machine lets this user mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "limner-test", disk], capture_output=True
    )
    if not mounted or mounted.returncode:
        pytest.skip("NO SMALL DISK: this user may not mount a tmpfs, so a truly full disk is not tested")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def fill(disk: Path, leave: int) -> Path:
    """Fill a disk but for some bytes."""
    filler = disk / "filler"
    with open(filler, "wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        while True:
            file.write(bytes(65536))
    os.truncate(filler, max(0, filler.stat().st_size - leave))
    return filler


@pytest.mark.parametrize("name", [*COMMANDS, *NEW])
def test_on_a_full_disk(name: str, place: Path, small_disk: Path) -> None:
    command, out = {**COMMANDS, **NEW}[name], small_disk / "out"
    if name in COMMANDS:
        call(command, place, out)
    before = contents(out)
    for leave in (0, 8192) if name not in ("sample one", "apply") else (0,):  # one image takes less
        filler = fill(small_disk, leave)
        with pytest.raises(LimnerError, match=r"No space left on device|needs .* bytes"):
            call(command, place, out, seed=7)
        after = contents(out)
        assert {path: after.get(path) for path in before} == before and not temporary(after)
        filler.unlink()
    assert call(command, place, out, seed=7) == 0


def test_the_real_command_on_a_full_disk(place: Path, small_disk: Path, limner: Command) -> None:
    sheet, many = small_disk / "sheet.png", small_disk / "many"
    command = ("sample", place / "dcgan", "--n", 9, "--to")
    limner(*command, sheet)
    before, filler = sheet.read_bytes(), fill(small_disk, 0)
    for to in (sheet, many):
        done = limner(*command, to, "--seed", 3, ok=False)
        said = done.stderr.strip().splitlines()[-1]
        assert done.returncode == 2 and said.startswith(f"limner: {to}"), done.stderr
        assert "No space left on device" in said and "free space" in said
    assert sheet.read_bytes() == before and not many.exists()
    filler.unlink()
    limner(*command, many, "--seed", 3)
    assert len(lines(many)) == 9


# Signals ------------------------------------------------------------------------------------------------


def start(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "limner.cli", *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip


def drawn(folder: Path) -> int:
    return len(list(folder.glob("*.png")))


@pytest.mark.process
def test_a_folder_of_samples_is_completed_after_any_signal(
    place: Path, tmp_path: Path, limner: Command
) -> None:
    to, n = tmp_path / "many", 300
    command = (
        "sample",
        place / "dcgan",
        "--n",
        n,
        "--batch",
        4,
        "--seed",
        3,
        "--label",
        "cat",
        "--label",
        "owl",
    )
    for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGKILL):
        before, process = drawn(to), start(*command, "--to", to)
        deadline = time.monotonic() + 250
        while drawn(to) < before + 8 and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(number)
        said, errors = process.communicate(timeout=250)
        if number == signal.SIGKILL:
            assert process.returncode == -number
            continue
        assert process.returncode == 128 + number and "Traceback" not in errors, errors
        assert f"{drawn(to):,} of {n} images in {to}. Resume with the same command." in said
        assert 0 < drawn(to) < n and {path.name for path in to.glob("*.png")} == {
            x["file_name"] for x in lines(to)
        }
    stamps = {path.name: path.stat().st_mtime_ns for path in to.glob("*.png") if path.name in listed(to)}
    limner(*command, "--to", to)
    assert all((to / name).stat().st_mtime_ns == stamp for name, stamp in stamps.items()), (
        "none is drawn again"
    )
    assert call(tuple(map(str, command)) + ("--to", str(tmp_path / "unbroken")), place, to) == 0
    assert contents(to) == contents(tmp_path / "unbroken")


def listed(folder: Path) -> set[str]:
    """The images that are counted: what comes after them is drawn again."""
    about = json.loads((folder / ".provenance.json").read_text())
    return {line["file_name"] for line in lines(folder)[: about["kept"]]}


def test_another_drawing_waits_until_it_is_whole(place: Path, tmp_path: Path, monkeypatch) -> None:
    """An earlier drawing stays; one that was stopped, or killed while it took its place, goes on."""
    from limner.synthesis import folder

    to, command = tmp_path / "many", ("sample", "PLACE/dcgan", "--batch", "2", "--to", "OUT", "--n")
    call((*command, "6"), place, to)
    before, add, calls = contents(to), folder.add, []

    def stop(*arguments: object) -> None:
        calls.append(add(*arguments))
        if len(calls) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(folder, "add", stop)
        assert call((*command, "8", "--seed", "4"), place, to) == 130
    assert {name: content for name, content in contents(to).items() if name in before} == before
    with monkeypatch.context() as patched:  # killed in the middle of the last step
        patched.setattr(os, "replace", fail_after(os.replace, 3 * 3 + 2))
        with pytest.raises(LimnerError):
            call((*command, "8", "--seed", "4"), place, to)
    call((*command, "6"), place, to)
    assert contents(to) == before
    call((*command, "8", "--seed", "4"), place, to)
    assert sorted(path.name for path in to.iterdir()) == [
        *(f"{i:06d}.png" for i in range(4, 12)),
        "metadata.jsonl",
    ]


def fail_after(function: Callable, times: int) -> Callable:
    left = iter(range(times))

    def call(*arguments: object) -> None:
        if next(left, None) is None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        function(*arguments)

    return call


def test_other_files_in_a_folder_of_samples_stay(place: Path, tmp_path: Path) -> None:
    to, command = tmp_path / "many", ("sample", "PLACE/dcgan", "--n", "3", "--to", "OUT")
    call(command, place, to)
    (to / "mine.txt").write_text("mine")
    before = contents(to)
    with pytest.raises(LimnerError, match=r"other files, such as mine\.txt"):
        call(command, place, to)
    assert contents(to) == before
    made = tmp_path / "made"
    call(NEW["synthesize"], place, made)
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(made / "20240101.png")
    with pytest.raises(LimnerError, match=r"20240101.png was not made by"):
        call(NEW["synthesize"], place, made)
    assert (made / "20240101.png").exists()


# Standard output ----------------------------------------------------------------------------------------


@pytest.mark.process
def test_output_that_nobody_reads_ends_no_work(place: Path, tmp_path: Path) -> None:
    sample = f"sample {place / 'dcgan'} --n 2 --to"
    cases = {  # what the shell does with the output -> exit code, words on stderr
        "sample > /dev/full": (2, "The result cannot be printed (No space left on device)"),
        "sample 2>&1 | true": (0, ""),
        "sample >&- 2>&-": (0, ""),
        "families >&-": (0, ""),
        "families --json | true": (0, ""),
        "families --json > /dev/full": (2, "No space left on device"),
        "sample --help > /dev/full": (2, "No space left on device"),
        "nonsense >&-": (2, "There is no command"),
    }
    running = []
    for number, case in enumerate(cases):
        sheet = tmp_path / f"{number}.png"
        words = case.replace("sample", f"{sample} {sheet}", 1) if "--help" not in case else case
        command = f"set -o pipefail; {sys.executable} -m limner.cli {words}"
        running.append(
            (case, sheet, subprocess.Popen(["bash", "-c", command], stderr=subprocess.PIPE, text=True))
        )
    for case, sheet, process in running:
        code, words = cases[case]
        said = process.communicate(timeout=250)[1]
        assert process.returncode == code and words in said, (case, process.returncode, said)
        assert "Traceback" not in said and "Exception ignored" not in said, said
        assert sheet.exists() == case.startswith("sample ") or "--help" in case, (
            "the work is done all the same"
        )


def test_a_training_goes_on_without_its_log_and_sheets(
    place: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    """On a full disk neither log.jsonl nor a sheet nor TensorBoard ends a training, and no cut sheet is left."""
    journal = pytest.importorskip("limner.training.journal")
    pytest.importorskip("tensorboard")
    (tmp_path / "samples").mkdir()
    with journal.Journal(tmp_path, tensorboard=True) as written:
        monkeypatch.setattr(os, "fsync", FullDisk(0))
        monkeypatch.setattr(written._board, "add_scalar", FullDisk(0).fail)
        written.picture(64, Image.new("RGB", (64, 64)))
        written.write({"seen": 64, "loss": 1.0})
    assert not contents(tmp_path / "samples")
    assert "No space left on device" in " ".join(capsys.readouterr().err.split())


def test_a_training_that_does_not_begin_leaves_a_persons_files(
    place: Path, tmp_path: Path, monkeypatch
) -> None:
    from limner.training import run as training

    def begin(*_: object) -> None:
        (tmp_path / "run" / "mine.txt").write_text("put there meanwhile")
        raise LimnerError("It does not begin.")

    monkeypatch.setattr(training, "_train_all", begin)
    with pytest.raises(LimnerError, match="does not begin"):
        api.train("vae", place / "animals", tmp_path / "run", preset="tiny", budget="16img", quiet=True)
    assert contents(tmp_path / "run") == {"mine.txt": b"put there meanwhile"}
