"""What `limner sample` can begin from besides noise, through the real command."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import limner as package
from limner.core import LimnerError
from tests.helpers import paint


@pytest.fixture(scope="module")
def runs(tmp_path_factory, limner):
    """Two runs of one family on one folder, one of another, and two pictures."""
    home = tmp_path_factory.mktemp("draw")
    images = paint(home / "images", 24)
    for name, family, budget in (
        ("flow", "flow", "1kimg"),
        ("early", "flow", "64img"),
        ("vae", "vae", "64img"),
    ):
        limner("train", family, images, "--preset", "tiny", "--out", home / name, "--budget", budget)
    mask = np.zeros((16, 16), np.uint8)
    mask[:, 8:] = 255
    Image.fromarray(mask).save(home / "mask.png")
    return home


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def drawn(folder: Path) -> list[np.ndarray]:
    return [pixels(path) for path in sorted(folder.glob("*.png"))]


def test_variations_of_a_picture(runs, limner, tmp_path):
    picture = runs / "images" / "000.png"
    for strength in ("0.1", "0.9"):
        limner(
            "sample",
            runs / "flow",
            "--n",
            "3",
            "--image",
            picture,
            "--strength",
            strength,
            "--to",
            tmp_path / f"at {strength[-1]}",
        )
    near, far = (
        [np.abs(x - pixels(picture)).mean() for x in drawn(tmp_path / f"at {s[-1]}")] for s in ("0.1", "0.9")
    )
    assert len(near) == 3 and max(near) < min(far)
    first, second, _ = drawn(tmp_path / "at 1")
    assert np.abs(first - second).mean() > 0.5, "each seed varies it in its own way"


def test_only_the_masked_part_is_drawn_anew(runs, limner, tmp_path):
    picture = runs / "images" / "001.png"
    limner(
        "sample",
        runs / "flow",
        "--n",
        "2",
        "--image",
        picture,
        "--mask",
        runs / "mask.png",
        "--to",
        tmp_path / "new",
    )
    for image in drawn(tmp_path / "new"):
        assert np.array_equal(image[:, :8], pixels(picture)[:, :8])
        assert np.abs(image[:, 8:] - pixels(picture)[:, 8:]).mean() > 5


@pytest.mark.parametrize("name", ["flow", "vae"])
def test_between_two_seeds(runs, limner, tmp_path, name):
    limner("sample", runs / name, "--n", "5", "--between", "3", "8", "--to", tmp_path / "way")
    limner("sample", runs / name, "--n", "6", "--seed", "3", "--to", tmp_path / "ends")
    way, ends = drawn(tmp_path / "way"), drawn(tmp_path / "ends")
    assert np.abs(way[0] - ends[0]).max() <= 1 and np.abs(way[-1] - ends[-1]).max() <= 1
    steps = [np.abs(a - b).mean() for a, b in itertools.pairwise(way)]
    assert max(steps) < np.abs(way[0] - way[-1]).mean() + 1


def test_a_film_of_how_the_images_come_out_of_the_noise(runs, limner, tmp_path):
    film = tmp_path / "film.gif"
    limner(
        "sample", runs / "flow", "--n", "3", "--batch", "2", "--steps", "6", "--to", tmp_path / "x.png",
        "--progress-to", film,
    )  # fmt: skip
    with Image.open(film) as gif:
        assert gif.n_frames == 6  # of the first batch alone
        first = np.asarray(gif.convert("L")).astype(float)
        gif.seek(5)
        assert np.abs(np.asarray(gif.convert("L")) - first).mean() > 1


@pytest.mark.parametrize(
    "solver", ["ancestral", "ddim", "euler", "heun", "dpm2m", "dpm2m_sde", "dpm3m", "unipc"]
)
def test_every_solver_can_be_asked_for(runs, solver):
    image = package.load(runs / "flow").tensors(1, steps=4, solver=solver)
    assert image.isfinite().all()


def test_images_that_hold_nan_are_refused(runs):
    pipeline = package.load(runs / "flow")
    with torch.no_grad():
        for weight in pipeline.model.parameters():
            weight.fill_(1e30)  # finite, as a training that explodes slowly leaves them
    with pytest.raises(LimnerError, match="2 of 2 images drawn hold NaN"):
        pipeline.sample(2, steps=2)


def test_guided_away_from_another_run(runs, limner, tmp_path):
    pipeline = package.load(runs / "flow")
    plain = pipeline.tensors(2)
    led = pipeline.tensors(2, guidance=2.0, autoguidance=str(runs / "early"))
    assert (plain - led).abs().max() > 0.01
    with pytest.raises(LimnerError, match="same family"):
        pipeline.tensors(2, guidance=2.0, autoguidance=str(runs / "vae"))
    limner(
        "sample",
        runs / "flow",
        "--n",
        "1",
        "--guidance",
        "2",
        "--autoguidance",
        runs / "early",
        "--to",
        tmp_path / "x.png",
    )
    assert torch.equal(plain, pipeline.tensors(2)), "nothing of it stays"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("flow", "--mask", "{runs}/mask.png"), "name that image too"),
        (("flow", "--image", "nowhere.png"), "no picture nowhere.png"),
        (("flow", "--image", "{runs}/images"), "no picture"),
        (("vae", "--image", "{runs}/mask.png"), "take no --image"),
        (("vae", "--mask", "{runs}/mask.png"), "those of ddpm, "),
        (("flow", "--image", "{runs}/mask.png", "--strength", "0"), "choose above 0"),
        (("flow", "--progress-to", "film.mp4"), "name a .gif"),
        (("flow", "--autoguidance", "{runs}/nothing"), "no run"),
        (("flow", "--steps", "0"), "choose 1 or more"),
        (("flow", "--shift", "0"), "choose 0.001 to 1000"),
    ],
)
def test_mistakes_are_one_sentence(runs, limner, arguments, says, tmp_path):
    name, *rest = (a.format(runs=runs) for a in arguments)
    done = limner("sample", runs / name, *rest, "--to", tmp_path / "x.png", ok=False)
    assert done.returncode == 2 and says in done.stderr.replace("\n", " ")
    assert not (tmp_path / "x.png").exists()
