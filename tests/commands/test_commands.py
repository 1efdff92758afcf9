"""Every command by its real process, and every mistake as one sentence with exit code 2."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from limner import api, checkpoint, config, families, fields
from limner.cli import COMMANDS
from limner.training.journal import read_log
from tests.helpers import paint

Command = Callable[..., subprocess.CompletedProcess[str]]
TINY = ("--preset", "tiny", "--training.samples", 4)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, limner: Command) -> Path:
    """A flow trained for a moment on captioned images, through the command."""
    root = tmp_path_factory.mktemp("commands")
    folder = paint(root / "images", 30)
    lines = [json.dumps({"file_name": f"{i:03d}.png", "text": f"picture {i}"}) for i in range(30)]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    limner(
        "train",
        families.DEFAULT,
        folder,
        "--out",
        root / "run",
        *TINY,
        "--budget",
        "64img",
        "--size",
        "16x24",
    )
    return root / "run"


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory, limner: Command) -> Path:
    root = tmp_path_factory.mktemp("labelled")
    for i, name in enumerate(("cat", "dog")):
        paint(root / "images" / name, 15, seed=i)
    limner("train", "dcgan", root / "images", "--out", root / "run", *TINY, "--budget", "64img")
    return root / "run"


# ---- help


@pytest.mark.parametrize(
    "command", [[], ["data", "check"], ["data", "show"], *([name] for name in COMMANDS)], ids=" ".join
)
def test_help_does_not_import_torch(command: list[str]) -> None:
    code = (
        f"import sys; sys.argv = ['limner', *{command!r}, '--help']\n"
        "from limner.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout.lower()


# ---- what a person does


def test_train_leaves_what_it_promises(run: Path) -> None:
    assert {"model.safetensors", "config.json", "log.jsonl", "report.html", "samples"} <= set(os.listdir(run))
    page = (run / "report.html").read_text()
    assert (
        "<svg" in page
        and "data:image/png;base64," in page
        and "http" not in page.replace("http://www.w3", "")
    )


def test_sample_writes_a_sheet_or_a_folder(run: Path, limner: Command, tmp_path: Path) -> None:
    limner("sample", run, "--prompt", "picture 3", "--n", 2, "--to", tmp_path / "sheet.png", "--steps", 2)
    assert Image.open(tmp_path / "sheet.png").width > 40
    limner("sample", run, "--prompt", "a", "--prompt", "b", "--n", 3, "--seed", 5, "--to", tmp_path / "many",
           "--steps", 2)  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "many" / "metadata.jsonl").read_text().splitlines()]
    assert [line["text"] for line in lines] == ["a", "b", "a"] and [line["seed"] for line in lines] == [
        5,
        6,
        7,
    ]
    assert Image.open(tmp_path / "many" / lines[0]["file_name"]).size == (24, 16)
    limner("sample", run, "--prompt", "a", "--n", 1, "--seed", 7, "--to", tmp_path / "one.png", "--steps", 2)
    alone, third = (
        np.asarray(Image.open(p)).astype(int) for p in (tmp_path / "one.png", tmp_path / "many/000007.png")
    )
    assert np.abs(alone - third).max() <= 1, "an image is named by its seed, whatever was drawn beside it"


def test_sample_never_overwrites_other_files(run: Path, limner: Command, tmp_path: Path) -> None:
    own = paint(tmp_path / "own", 3)
    before = {path.name: path.read_bytes() for path in own.iterdir()}
    two = ("sample", run, "--steps", 1, "--n", 2, "--to")
    done = limner(*two, own, ok=False)
    assert done.returncode == 2 and "other files" in done.stderr
    assert {path.name: path.read_bytes() for path in own.iterdir()} == before
    limner("sample", run, "--steps", 1, "--n", 4, "--to", tmp_path / "many")
    limner(*two, tmp_path / "many")
    left = sorted(path.name for path in (tmp_path / "many").iterdir())
    assert left == ["000000.png", "000001.png", "metadata.jsonl"], "what an earlier call drew has gone"
    (tmp_path / "file").write_text("")
    assert "other files" in limner(*two, tmp_path / "file", ok=False).stderr
    theirs = [json.dumps({"file_name": path.name, "seed": 7}) for path in sorted(own.glob("*.png"))]
    (own / "metadata.jsonl").write_text("\n".join(theirs))  # as another program may note its seeds
    assert "other files" in limner(*two, own, ok=False).stderr and len(list(own.glob("*.png"))) == 3


def test_options_before_the_run_are_refused(run: Path, limner: Command, tmp_path: Path) -> None:
    for command in ("sample", "synthesize"):
        done = limner(command, "--n", 2, run, "--to", tmp_path / "x", ok=False)
        assert done.returncode == 2 and f"limner {command} RUN" in done.stderr


def test_where_nothing_can_be_written_it_says_so(run: Path, limner: Command, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = limner("sample", run, "--steps", 1, "--n", 1, "--to", tmp_path / "file" / "x.png", ok=False)
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith("limner: ")
    shown = limner("sample", run, "--steps", 1, "--n", 1, "--to", tmp_path / "a [bold] name.png").stdout
    assert "[bold]" in shown, "a name is not markup"


def test_sample_by_label(labelled: Path, limner: Command, tmp_path: Path) -> None:
    limner("sample", labelled, "--label", "dog", "--n", 2, "--to", tmp_path / "dogs")
    assert '"label": "dog"' in (tmp_path / "dogs" / "metadata.jsonl").read_text()


def test_show_says_what_a_run_is(run: Path, limner: Command) -> None:
    text = limner("show", run).stdout
    assert families.DEFAULT in text and "64" in text and "16 x 24" in text
    shown = json.loads(limner("show", run, "--json").stdout)
    assert shown["seen"] == 64 and shown["spec"]["captions"] and shown["digest"]


def test_resume_continues_from_the_checkpoint(run: Path, limner: Command) -> None:
    source = run.parent / "images"
    limner("train", families.DEFAULT, source, "--out", run, "--resume", "--budget", "128img")
    assert json.loads(limner("show", run, "--json").stdout)["seen"] == 128
    limner("train", families.DEFAULT, "--out", run, "--resume", "--budget", "160img")  # it knows its source
    assert json.loads(limner("show", run, "--json").stdout)["seen"] == 160


def test_families_counts(limner: Command) -> None:
    listed = json.loads(limner("families", "--json").stdout)
    assert [row["family"] for row in listed] == families.names()
    assert all(row["groups"] and row["presets"] and row["paper"] for row in listed)
    shown = json.loads(limner("families", "dcgan", "--preset", "paper", "--json").stdout)
    assert shown["parameters"] == {"generator": 3_576_704, "discriminator": 2_765_568}
    shown = json.loads(limner("families", "vae", "--preset", "paper", "--json").stdout)
    assert sum(shown["parameters"].values()) == 652_824
    assert "parameters" in limner("families", families.DEFAULT, "--classes", 10, "--size", "64x48").stdout


def test_families_are_listed_by_what_they_are_for(limner: Command) -> None:
    lines = limner("families", COLUMNS="80").stdout.splitlines()
    listed = [line.split()[0] for line in lines if line.startswith("  ")]
    assert set(listed) == set(families.names()) and all(len(line) <= 80 for line in lines)
    infos = [families.describe(name) for name in families.names()]
    for info in infos:
        assert listed.count(info.family) == len(info.groups) > 0, info.family
    by_group = {g: {i.family for i in infos if g in i.groups} for g in families.GROUPS}
    assert {"flow", "latent", "meanflow"} <= by_group["draw from words"]
    assert {"dcgan", "vae", "meanflow"} <= by_group["draw in one network call"]
    assert by_group["draw images"] >= {"ddpm", "edm"} and by_group["understand images"] >= {
        "dino",
        "mae",
        "vit",
    }
    assert by_group["compress images"] >= {"autoencoder", "vae"}


def test_data_check_and_show(run: Path, limner: Command, tmp_path: Path) -> None:
    folder = run.parent / "images"
    assert "30" in limner("data", "check", folder).stdout
    shown = json.loads(limner("data", "check", folder, "--json").stdout)
    assert shown
    limner("data", "show", folder, "--to", tmp_path / "sheet.png", "--n", 9)
    assert Image.open(tmp_path / "sheet.png").width > 40


def test_demo(limner: Command, tmp_path: Path) -> None:
    """The whole main job in seconds: too short to learn, but every part is there and the score is honest."""
    limner("demo", "--out", tmp_path / "demo", "--budget", "3s")
    left = tmp_path / "demo"
    shown = json.loads((left / "demo.json").read_text())
    assert shown["prompts"] == 256 and shown["images_seen"] > 0 and shown["train_seconds"] >= 3
    assert shown["exact"] < 0.5 and shown["oracle_on_real"] >= 0.99
    assert Image.open(left / "samples.png").width > 400
    assert "<svg" in (left / "report.html").read_text()
    checkpoint.load(left)

    (left / "mine.txt").write_text("not the demo's")
    assert limner("demo", "--out", left, "--budget", "soon", ok=False).returncode == 2
    checkpoint.load(left)  # a budget that is not valid removes nothing
    limner("demo", "--out", left, "--budget", "2s")
    assert (left / "mine.txt").exists(), "done again, it clears away what is its own"
    assert json.loads((left / "demo.json").read_text())["train_seconds"] < shown["train_seconds"] + 1


def test_from_python(images: Path, tmp_path: Path) -> None:
    import limner

    data = limner.open_data(str(images), size=(8, 8))
    assert data.spec.height == 8 and len(data) == 40
    limner.train(
        "vae", images, tmp_path / "run", preset="tiny", budget="32img", quiet=True, training={"samples": 4}
    )
    pictures = limner.load(tmp_path / "run").sample(3, seed=1)
    assert [p.size for p in pictures] == [(16, 16)] * 3
    with pytest.raises(limner.settings.LimnerError, match=r"bach is not a setting.*batch"):
        limner.train("vae", images, tmp_path / "other", preset="tiny", training={"bach": 4})
    with pytest.raises(limner.settings.LimnerError, match=r"model.latent must be a whole number, not 'x'"):
        limner.train("vae", images, tmp_path / "other", preset="tiny", model={"latent": "x"})
    with pytest.raises(limner.settings.LimnerError, match=r"no keyword 'bugdet'. Did you mean budget"):
        limner.train("vae", images, tmp_path / "other", bugdet="4m")


def test_nested_settings_from_python_change_only_what_they_name() -> None:
    body = config.preset_run("dit", "tiny").model.body
    changed = api._changed(config.preset_run("dit", "tiny").model, {"body": {"depth": 7}}, "model")["body"]
    assert changed == fields.to_json(body) | {"depth": 7}
    whole = type(body)(depth=7)
    assert api._changed(config.preset_run("dit", "tiny").model, {"body": whole}, "model")[
        "body"
    ] == fields.to_json(whole)


def test_counts_below_one_are_refused(run: Path, images: Path, limner: Command, tmp_path: Path) -> None:
    start = ("--image", sorted(images.rglob("*.png"))[0])
    for options in (("--n", -5, *start), ("--n", 0), ("--batch", 0)):
        done = limner("sample", run, "--to", tmp_path / "x.png", *options, ok=False)
        assert done.returncode == 2 and done.stderr.strip().startswith("limner: "), done.stderr


# ---- mistakes


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], ["train"]),
        (["data", "chek"], ["check"]),
        (["train", "flwo", "shapes", "--out", "x"], ["flow"]),
        (["train", "vae", "digts", "--out", "x"], ["digits"]),
        (["train", "vae", "--out", "x"], ["folder"]),
        (["train", "vae", "digits"], ["--out"]),
        (["train", "vae", "digits", "--out", "x", "--bugdet", "3m"], ["--budget"]),
        (["train", "vae", "digits", "--out", "x", "--budget", "soon"], ["soon", "4m"]),
        (["train", "vae", "digits", "--out", "x", "--preset", "smal"], ["small"]),
        (["train", "vae", "digits", "--out", "x", "--size", "big"], ["32", "64x48"]),
        (["train", "vae", "digits", "--out", "x", "--model.latnt", "3"], ["--model."]),
        (["train", "vae", "digits", "--out", "x", "--training.batch", "many"], ["batch"]),
        (["train", "vae", "digits", "--out", "x", "--training.log-every", "0"], ["--training.log-every 0"]),
        (["train", "vae", "digits", "--out", "x", "--training.device", "mps:7"], ["device", "cpu"]),
        (["sample", "runs/none"], ["runs/none"]),
        (["show", "runs/none"], ["runs/none"]),
        (["families", "vea"], ["vae"]),
        (["data", "check", "no/such/folder"], ["no/such/folder"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_mistake_is_one_clear_message(
    arguments: list[str], words: list[str], limner: Command, tmp_path: Path
) -> None:
    done = limner(*arguments, ok=False, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    said = done.stderr + done.stdout
    for word in words:
        assert word in said, said
    assert not (tmp_path / "x").exists(), "nothing half-written is left"


def test_what_a_run_cannot_do(run: Path, labelled: Path, limner: Command, tmp_path: Path) -> None:
    cases = [
        (labelled, ["--prompt", "a dog"], "no --prompt"),
        (labelled, ["--label", "dgo"], "dog"),
        (run, ["--label", "dog"], "no --label"),
        (run, ["--stepz", "3"], "steps"),
        (run, ["--n", "0"], "choose 1 or more"),
        (run, ["--to", str(tmp_path / "x.jpeg2")], ".png"),
    ]
    for where, flags, word in cases:
        done = limner("sample", where, *flags, ok=False)
        assert done.returncode == 2 and word in done.stderr + done.stdout, (flags, done.stderr)


def test_an_empty_folder(limner: Command, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = limner("train", "vae", tmp_path / "empty", "--out", tmp_path / "run", ok=False)
    assert done.returncode == 2 and "empty" in done.stderr


def test_a_second_run_on_one_folder_is_refused(images: Path, limner: Command, tmp_path: Path) -> None:
    with checkpoint.lock(tmp_path / "run"):
        done = limner("train", "vae", images, "--out", tmp_path / "run", *TINY, "--budget", "32img", ok=False)
    assert done.returncode == 2 and f"process {os.getpid()}" in done.stderr


# ---- stopping


def start(images: Path, out: Path, *flags: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "limner.cli", "train", "vae", images, "--out", out, *TINY,
               "--training.log-every", 1, *flags]  # fmt: skip
    variables = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([str(c) for c in command], stderr=subprocess.PIPE, text=True, env=variables)


def wait_for_steps(out: Path, process: subprocess.Popen[str], steps: int = 5) -> None:
    deadline = time.monotonic() + 120
    while sum("step" in line for line in read_log(out)) < steps:
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_says_so(
    number: int, code: int, images: Path, tmp_path: Path, limner: Command
) -> None:
    out = tmp_path / "run"
    process = start(images, out, "--budget", "10m")
    wait_for_steps(out, process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    resumed = checkpoint.resume(out)
    assert resumed
    last = max(line["seen"] for line in read_log(out) if "step" in line)
    assert resumed.state["seen"] == last, "nothing that was done is lost"


def test_every_command_ends_by_a_signal_with_its_code(images: Path, tmp_path: Path, limner: Command) -> None:
    """Also one that is not training: here evaluate, while its classifiers train."""
    run, to = tmp_path / "run", tmp_path / "to"
    labelled = paint(tmp_path / "sorted" / "a", 60).parent
    paint(labelled / "b", 60, seed=1)
    limner("train", "biggan", labelled, "--out", run, *TINY, "--budget", "32img", "--data.holdout", 0.3)
    command = [sys.executable, "-m", "limner.cli", "evaluate", str(run), str(labelled), "--as-training-data",
               "--classifier-budget", "10m", "--n", "50", "--to", str(to)]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    classifier = to / "training_data" / "classifiers" / "real-0"
    deadline = time.monotonic() + 120
    while not read_log(classifier):
        assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM and "Traceback" not in errors, errors
    assert checkpoint.resume(classifier), "its training has saved"


def test_killed_at_random_moments_a_valid_checkpoint_always_loads(images: Path, tmp_path: Path) -> None:
    """SIGKILL, also in the middle of a save: saves are due every other step here."""
    out = tmp_path / "run"
    random = np.random.default_rng(0)
    seen = 0
    for attempt in range(4):
        flags = ["--budget", "10m", "--training.save-every", "16img"] + (["--resume"] if attempt else [])
        process = start(images, out, *flags)
        wait_for_steps(out, process, steps=1)
        before = len(read_log(out))
        deadline = time.monotonic() + 60
        while len(read_log(out)) < before + 8 and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(float(random.uniform(0, 0.3)))
        process.kill()
        process.communicate()
        resumed = checkpoint.resume(out)
        assert resumed and resumed.state["seen"] >= seen
        checkpoint.load(out)
        logged = max(line["seen"] for line in read_log(out) if "step" in line)
        assert logged - resumed.state["seen"] <= 16 + 16, (
            "at most one save interval is lost, and the step under way"
        )
        seen = resumed.state["seen"]
