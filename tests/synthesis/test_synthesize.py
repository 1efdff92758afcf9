"""Synthetic training data through the real command: what lies in the folder, going on, and the filters."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from limner import checkpoint, families
from limner.config import Run
from limner.core import DataOptions, ImageSpec, LimnerError, Model, Training
from limner.data import Data, open_data
from limner.evaluation.real import Real, as_saved, open_real
from limner.inference import networks, understand
from limner.inference.pipeline import Pipeline
from limner.inference.understand import class_probabilities
from limner.synthesis import synthesize as synthesis
from limner.synthesis.filters import classifier_filter, like_filter, new_filter
from limner.synthesis.options import SynthesizeOptions
from tests.helpers import paint

TINY = ("--preset", "tiny", "--training.samples", 4)


@pytest.fixture(scope="module")
def place(tmp_path_factory, limner):
    """A labelled dcgan and a captioned flow, each trained for a moment."""
    root = tmp_path_factory.mktemp("synthesize")
    for i, name in enumerate(("cat", "dog", "owl")):
        paint(root / "animals" / name, 20, seed=i)
    limner("train", "dcgan", root / "animals", "--out", root / "dcgan", *TINY, "--budget", "320img",
           "--data.holdout", 0.4)  # fmt: skip
    folder = paint(root / "pictures", 24)
    lines = [json.dumps({"file_name": f"{i:03d}.png", "text": f"picture {i}"}) for i in range(24)]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    limner("train", "flow", folder, "--out", root / "flow", *TINY, "--budget", "160img")
    return root


def metadata(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]


def whole(folder: Path) -> None:
    """Every image is listed, and every listed one is there and can be read."""
    lines = metadata(folder)
    assert sorted(p.name for p in folder.glob("*.png")) == sorted(line["file_name"] for line in lines)
    for line in lines:
        Image.open(folder / line["file_name"]).load()


def test_labels_come_as_often_and_the_folder_trains(place, limner, tmp_path):
    to = tmp_path / "made"
    said = limner("synthesize", place / "dcgan", "--n", 30, "--to", to, "--batch", 8, "--seed", 5).stdout
    assert "30 images" in said
    lines = metadata(to)
    assert Counter(line["label"] for line in lines) == {"cat": 10, "dog": 10, "owl": 10}
    assert [line["seed"] for line in lines] == list(range(5, 35))
    whole(to)
    provenance = json.loads((to / "provenance.json").read_text())
    assert provenance["settings"]["digest"] == checkpoint.read_model(place / "dcgan")[0]["digest"]
    assert provenance["family"] == "dcgan" and provenance["settings"]["sampling"] == {"truncation": 1.0}
    assert (provenance["drawn"], provenance["kept"], provenance["refused"]) == (30, 30, {}) and provenance[
        "versions"
    ]["torch"]

    checked = json.loads(limner("data", "check", to, "--json").stdout)
    assert checked["images"] == 30 and checked["problems"] == [] and checked["others"] == 0
    assert checked["classes"] == {"cat": 10, "dog": 10, "owl": 10}
    limner("train", "dcgan", to, "--out", tmp_path / "run", *TINY, "--budget", "16img")
    header = checkpoint.read_model(tmp_path / "run")[0]
    assert header["spec"]["classes"] == ["cat", "dog", "owl"] and not header["spec"]["captions"]

    # Any image can be made again from its seed and label alone.
    line = lines[16]
    limner("sample", place / "dcgan", "--n", 1, "--seed", line["seed"], "--label", line["label"],
           "--to", tmp_path / "again.png")  # fmt: skip
    again, made = (
        np.asarray(Image.open(p)).astype(int) for p in (tmp_path / "again.png", to / line["file_name"])
    )
    assert np.abs(again - made).max() <= 1 and made.std() > 0


def test_captions_are_taken_in_turn(place, limner, tmp_path):
    to = tmp_path / "own"
    limner("synthesize", place / "flow", "--n", 30, "--to", to, "--steps", 2, "--solver", "euler")
    texts = [line["text"] for line in metadata(to)]
    own = open_data(place / "pictures", size=(16, 16)).split(DataOptions().holdout)[0].captions
    assert own is not None and set(texts) == set(own) and len(set(texts[: len(own)])) == len(own)
    provenance = json.loads((to / "provenance.json").read_text())["settings"]
    assert provenance["sampling"]["steps"] == 2 and provenance["asked"]["captions_from"] == str(
        place / "pictures"
    )
    whole(to)
    found = open_data(to, size=(16, 16))
    assert found.spec.captions and found.captions == texts

    limner("synthesize", place / "flow", "--n", 3, "--to", tmp_path / "said", "--steps", 2, "--prompt", "a",
           "--prompt", "b")  # fmt: skip
    assert [line["text"] for line in metadata(tmp_path / "said")] == ["a", "b", "a"]
    other = paint(tmp_path / "other", 2)
    for i in range(2):
        (other / f"{i:03d}.txt").write_text(f"other {i}")
    limner(
        "synthesize",
        place / "flow",
        "--n",
        4,
        "--to",
        tmp_path / "from",
        "--steps",
        2,
        "--prompts-from",
        other,
    )
    assert Counter(line["text"] for line in metadata(tmp_path / "from")) == {"other 0": 2, "other 1": 2}


def restore_ctrl_c() -> None:
    """A shell that starts the tests in the background has SIGINT ignored, which programs inherit."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_it_resumes_where_it_was_stopped(place, limner, tmp_path):
    """Killed at any moment: with filters, an unfinished folder ends as an uninterrupted one."""
    uninterrupted = tmp_path / "uninterrupted"
    flags = ("--n", 40, "--like", place / "animals", "--label", "cat", "--label", "owl")
    same = SynthesizeOptions(n=40, like=str(place / "animals"), label=("cat", "owl"))
    synthesis.synthesize(place / "dcgan", uninterrupted, same, quiet=True)
    to = tmp_path / "stopped"
    command = [
        sys.executable,
        "-m",
        "limner.cli",
        "synthesize",
        place / "dcgan",
        "--to",
        to,
        *flags,
        "--batch",
        2,
    ]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        process = subprocess.Popen([str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                   env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True,
                                   preexec_fn=restore_ctrl_c)  # fmt: skip
        before = len(list(to.glob("0*.png")))
        deadline = time.monotonic() + 60
        while len(list(to.glob("0*.png"))) < before + 4 and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(number)
        said, errors = process.communicate(timeout=60)
        if number != signal.SIGKILL:
            assert process.returncode == 128 + number and "Resume" in said, errors
            whole(to)
        assert 0 < len(metadata(to)) < 40
    (to / ".000099.png").write_bytes(b"half")  # what a kill may leave
    (to / "999999.png").write_bytes(b"half")
    with open(to / "metadata.jsonl", "a") as file:
        file.write('{"file_name": "9999')
    limner("synthesize", place / "dcgan", "--to", to, *flags)
    whole(to)
    assert metadata(to) == metadata(uninterrupted)
    one, two = (json.loads((f / "provenance.json").read_text()) for f in (to, uninterrupted))
    assert one == two and one["kept"] == 40 and one["refused"]["like"] == one["drawn"] - 40 > 0
    assert {line["label"] for line in metadata(to)} == {"cat", "owl"}

    stamp = (to / "metadata.jsonl").stat().st_mtime_ns
    synthesis.synthesize(place / "dcgan", to, same, quiet=True)  # finished: nothing is drawn
    assert (to / "metadata.jsonl").stat().st_mtime_ns == stamp
    for changes, sampling, word in (
        ({"seed": 1}, {}, "seed"),
        ({}, {"truncation": 0.5}, "sampling"),
        ({"like": ""}, {}, "filters"),
    ):
        with pytest.raises(LimnerError, match=rf"other settings \({word}\)"):
            synthesis.synthesize(place / "dcgan", to, replace(same, **changes), quiet=True, **sampling)
    (to / metadata(to)[3]["file_name"]).unlink()
    with pytest.raises(LimnerError, match="is missing"):
        synthesis.synthesize(place / "dcgan", to, same, quiet=True)


def test_mistakes_are_one_sentence(place, limner, tmp_path):
    paint(tmp_path / "full", 1)
    to = tmp_path / "to"
    for flags, words in (
        ((), "--to DIR"),
        (("--to", tmp_path / "full"), "other files"),
        (("--to", to, "--steps", 3), "Unrecognized options: --steps"),
    ):
        done = limner("synthesize", place / "dcgan", *flags, ok=False)
        assert done.returncode == 2 and words in done.stderr, (flags, done.stderr)
    for run, settings, words in (
        ("dcgan", {"prompt": ("a cat",)}, "no --prompt"),
        ("dcgan", {"prompts_from": str(place / "pictures")}, "no --prompt"),
        ("dcgan", {"label": ("dgo",)}, "Did you mean dog"),
        ("dcgan", {"n": 0}, "choose 1 or more"),
        ("dcgan", {"classifier": str(place / "flow")}, "does not classify images"),
        ("dcgan", {"new": str(tmp_path / "full")}, "held-out images"),
        ("flow", {"prompts_from": str(place / "animals")}, "no captions"),
        ("flow", {"prompts_from": "shapes", "prompt": ("a",)}, "cannot be combined"),
        ("nowhere", {}, "no run"),
    ):
        with pytest.raises(LimnerError, match=words):
            synthesis.synthesize(place / run, to, SynthesizeOptions(**settings), quiet=True)
    with pytest.raises(LimnerError, match="Did you mean truncation"):
        synthesis.synthesize(place / "dcgan", to, quiet=True, truncaton=3)
    assert not to.exists()


def test_a_run_that_ignores_labels_is_refused(place, limner, tmp_path, monkeypatch):
    """Labels that the images do not follow would be lies."""
    limner("train", "dcgan", place / "animals", "--out", tmp_path / "run", *TINY, "--budget", "16img",
           "--model.condition", "none")  # fmt: skip
    done = limner(
        "synthesize", tmp_path / "run", "--to", tmp_path / "no", "--n", 4, "--label", "cat", ok=False
    )
    assert done.returncode == 2 and "takes no --label" in done.stderr
    limner("synthesize", tmp_path / "run", "--to", tmp_path / "to", "--n", 4)
    assert not any("label" in row for row in metadata(tmp_path / "to"))
    monkeypatch.setattr(
        synthesis, "responds_to", lambda *_: False
    )  # trained on labels, and yet it draws the same
    with pytest.raises(LimnerError, match="whatever labels"):
        synthesis.synthesize(place / "dcgan", tmp_path / "lies", quiet=True)


# Filters ------------------------------------------------------------------------------------------------


def flat(values: np.ndarray) -> Data:
    """Grey images of one value each."""
    pixels = np.broadcast_to(values[:, None, None, None], (len(values), 16, 16, 1)).astype(np.uint8)
    return Data(ImageSpec(1, 16, 16), "flat", pixels, np.arange(len(values)), ["x"] * len(values))


def images_of(*values: float) -> torch.Tensor:
    return torch.tensor(values)[:, None, None, None].expand(-1, 1, 16, 16) / 127.5 - 1


def test_like_keeps_what_is_near_real_images():
    keep = like_filter(Real(flat(np.arange(100, 140)), flat(np.arange(0))), "x", "random", quiet=True).keep
    assert keep(images_of(120, 10, 115, 250, 200), None).tolist() == [True, False, True, False, False]
    # The very balls whose share of drawn images is the precision.
    from limner.metrics import neighbours
    from limner.metrics.features import random_vgg

    drawn = torch.rand(40, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 0.1
    real = flat(np.arange(100, 140)).batch(np.arange(40)).image
    precision = neighbours.precision_recall(random_vgg().of(real), random_vgg().of(drawn), 3)[0]
    assert float(keep(drawn, None).double().mean()) == precision


def test_new_leaves_copies_out():
    training, held_out = flat(np.arange(0, 250, 10)), flat(np.arange(5, 245, 10))
    keep = new_filter(Real(training, held_out), "x", quiet=True).keep
    assert not keep(images_of(100, 60, 100.2), None).any()  # copies, and what is nearly one
    with pytest.raises(LimnerError, match="20 held-out"):
        new_filter(Real(training, flat(np.arange(3))), "x", quiet=True)


def test_new_leaves_changed_copies_out():
    pytest.importorskip("sklearn")
    real = open_real(["digits"], ImageSpec(1, 32, 32), DataOptions(holdout=0.2), progress=False)
    keep = new_filter(real, "digits", quiet=True).keep
    copies = real.training.batch(np.arange(20)).image
    for changed in (copies, copies.flip(-1), copies.roll((2, -1), (2, 3)), (copies + 1) * 0.8 - 1):
        assert not keep(changed, None).any()
    others = real.held_out.batch(np.arange(100)).image
    assert keep(others, None).double().mean() > 0.85


class Brightness(Model):
    """Tells bright from dark: a classifier whose answer is known."""

    def __init__(self, classes=("dark", "bright")):
        super().__init__(None, ImageSpec(1, 8, 8, classes=classes))
        self.unit = torch.nn.Parameter(torch.ones(1))

    def classify(self, image):
        mean = image.mean((1, 2, 3)) * 4 * self.unit
        return torch.stack([-mean, mean], dim=1)


@pytest.fixture
def brightness(monkeypatch):
    class Loaded:
        run = Run("brightness", (), "tiny", None, "", 0, None, Training(), DataOptions())

    class Known:
        def __init__(self, run, device):
            self.model, self.loaded = Brightness(), Loaded
            self.spec, self.precision, self.digest = self.model.spec, "float32", "x"
            Loaded.model, Loaded.spec = self.model, self.spec

    monkeypatch.setattr(networks, "Pipeline", Known)


def test_classifier_goes_by_names_and_confidence(brightness):
    asked = ["bright", "dark", "dark"]
    keep = classifier_filter("run", asked, 0.9).keep
    images = images_of(250, 250, 5, 127.5)
    assert keep(images, ["bright", "dark", "dark", "dark"]).tolist() == [True, False, True, False]
    assert classifier_filter("run", asked, 0.5).keep(images[3:], ["dark"]).tolist() == [True]
    for wanted, words in ((["brigth"], "Did you mean bright"), ([], "needs labels")):
        with pytest.raises(LimnerError, match=words):
            classifier_filter("run", wanted, 0.9)
    with pytest.raises(LimnerError, match=r"confidence 1.5 is out of range"):
        classifier_filter("run", asked, 1.5)


def test_it_gives_up_when_nothing_passes(place, limner, tmp_path, monkeypatch):
    """Every real image is the same but one, so nothing drawn is as near to one as they are to each other."""
    blank = tmp_path / "blank"
    blank.mkdir()
    for i in range(30):
        Image.new("RGB", (16, 16), (7, 200, 31)).save(blank / f"{i}.png")
    monkeypatch.setattr(synthesis, "PATIENCE", 200)
    with pytest.raises(LimnerError, match=r"Of the last 200 images only 0 passed .*like 2\d\d"):
        options = SynthesizeOptions(n=10, like=str(blank))
        synthesis.synthesize(place / "dcgan", tmp_path / "to", options, quiet=True)
    provenance = json.loads((tmp_path / "to" / "provenance.json").read_text())
    assert provenance["kept"] == 0 and provenance["refused"]["like"] == provenance["drawn"] >= 200


def test_new_by_the_command_counts_what_it_leaves_out(place, limner, tmp_path):
    said = limner(
        "synthesize", place / "dcgan", "--n", 20, "--to", tmp_path / "to", "--new", place / "animals"
    ).stdout
    provenance = json.loads((tmp_path / "to" / "provenance.json").read_text())
    assert f"--new left out {provenance['refused']['new']} of {provenance['drawn']}" in said
    assert provenance["settings"]["filters"]["new"]["images"] == 36 and provenance["kept"] == 20


def test_the_order_of_seeds_does_not_depend_on_the_batch(place, tmp_path):
    kept = []
    for batch in (3, 64):
        to = tmp_path / str(batch)
        options = SynthesizeOptions(n=20, like=str(place / "animals"), batch=batch)
        synthesis.synthesize(place / "dcgan", to, options, quiet=True)
        kept.append([(line["seed"], line["label"]) for line in metadata(to)])
    assert kept[0] == kept[1]
    counts = Counter(label for _, label in kept[0])
    assert max(counts.values()) - min(counts.values()) <= 1
    assert Pipeline(place / "dcgan").spec.classes == ("cat", "dog", "owl")


@pytest.mark.skipif(
    families.CLASSIFIER not in families.names(),
    reason=f"THE FAMILY {families.CLASSIFIER} IS NOT THERE YET: --classifier cannot be run as it is meant",
)
def test_classifier_by_the_command(place, limner, tmp_path):
    """Every image that was kept is one that the classifier takes for its label, seen as the file holds it."""
    limner(
        "train",
        families.CLASSIFIER,
        place / "animals",
        "--out",
        tmp_path / "run",
        *TINY,
        "--budget",
        "640img",
    )
    classifier, classes = Pipeline(tmp_path / "run"), ("cat", "dog", "owl")
    assert classifier.spec.classes == classes
    drawn = Pipeline(place / "dcgan").tensors(60, label=classes, seed=1000)
    sure = class_probabilities(classifier, as_saved(drawn))
    medians = [float(sure[k::3, k].median()) for k in range(3)]
    least = min(medians)  # half of one class's images pass, and more of the others'
    said = limner("synthesize", place / "dcgan", "--n", 30, "--to", tmp_path / "to", "--classifier",
                  tmp_path / "run", "--confidence", least).stdout  # fmt: skip
    provenance = json.loads((tmp_path / "to" / "provenance.json").read_text())
    assert (
        f"--classifier left out {provenance['drawn'] - 30} of {provenance['drawn']}" in said
        and provenance["drawn"] > 30
    )
    made = open_data(tmp_path / "to", size=(16, 16))
    assert made.labels is not None and made.spec.classes == classes
    sure = understand.over_data(made, partial(class_probabilities, classifier))
    assert (sure[np.arange(30), made.labels] >= least - 1e-4).all()
