"""Super-resolution by the mean error of pixels."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torch.nn import functional as F
from torch.testing import assert_close

import limner
from limner import families
from limner.checkpoint import resume
from limner.core import Batch, Condition, Draws, ImageSpec, given_pictures
from limner.families._upscaling import UpscalerConfig, random_crops
from limner.families.span import Span
from limner.networks.images.bicubic import bicubic
from limner.settings import LimnerError
from tests.helpers import paint

TINY = Span.presets["tiny"].model


def model(size=(32, 32), channels=3, given=None, **changes):
    torch.manual_seed(0)
    return families.build("span", replace(TINY, **changes), ImageSpec(channels, *size, given=given))


def batch(n=2, size=(32, 32), channels=3, given=None):
    return Batch(torch.rand(n, channels, *size) * 2 - 1, Condition(n, image=given))


def test_crops_are_of_the_same_place_turned_alike():
    wanted = torch.rand(40, 3, 24, 32)
    given = F.avg_pool2d(wanted, 4)
    small, large = random_crops(given, wanted, 4, (16, 16))
    assert small.shape == (40, 3, 4, 4) and large.shape == (40, 3, 16, 16)
    assert_close(F.avg_pool2d(large, 4), small)
    assert len({float(x) for x in large[:, 0, 0, 0]}) > 20
    oblong, _ = random_crops(given, wanted, 4, (8, 16))
    assert oblong.shape == (40, 3, 2, 4)


def test_begins_as_bicubic_where_that_is_the_base():
    one, given = model(base="bicubic"), torch.rand(1, 3, 5, 7) * 1.6 - 0.8
    assert_close(one.translate(given, Condition(1), None, Draws([0])), bicubic(given, 2).clamp(-1, 1))


def test_the_loss_of_whole_pictures_out_of_training():
    one, shown = model(base="none").eval(), batch()
    given = given_pictures(one, shown)
    assert_close(given, bicubic(shown.image, 0.5).clamp(-1, 1))
    assert_close(one.loss(shown)["pixels"], (one.network(given) - shown.image).abs().mean())
    squared = model(base="none", error="squared").eval()
    assert_close(squared.loss(shown)["pixels"], (squared.network(given) - shown.image).square().mean())


def test_pairs_are_taken_as_they_are():
    given = torch.rand(2, 1, 16, 16)
    one = model(given=ImageSpec(1, 16, 16), base="bicubic").eval()
    assert one.network(given).shape == (2, 3, 32, 32)
    shown = batch(given=given)
    assert_close(one.loss(shown)["pixels"], (one.network(given) - shown.image).abs().mean())


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"size": (30, 33)}, "sides of 30x33 are not multiples of 2"),
        ({"given": ImageSpec(3, 8, 8)}, "the given pictures of 8x8 belong to ones of 32x32"),
        ({"network": "srresnet", "scale": 3, "size": (33, 33)}, "SRResNet enlarges 2, 4 or 8 times"),
        ({"crop": 1}, "a crop of 1 pixels is smaller than the scale of 2"),
        ({"scale": 9}, "--model.scale 9 is out of range: choose 2 to 8"),
    ],
)
def test_refusals(changes, words):
    with pytest.raises(LimnerError, match=words):
        model(**changes)


@pytest.mark.parametrize("network", ["span", "srresnet", "fsrcnn"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_every_network_takes_pictures_of_any_size_and_keeps_alpha_above_colours(network, channels):
    one = model(network=network, channels=channels, width=4, blocks=1).eval()
    for size in ((1, 1), (3, 7)):
        made = one.translate(torch.rand(1, channels, *size) * 2 - 1, Condition(1), None, Draws([0]))
        assert made.shape == (1, channels, 2 * size[0], 2 * size[1]) and made.abs().max() <= 1
        assert channels < 4 or (made[:, :3] <= made[:, 3:]).all()


@pytest.mark.parametrize("average", [0.0, 100.0])
def test_the_checkpoint_holds_single_convolutions(tmp_path, average):
    paint(tmp_path / "in", 12, (16, 16))
    options = {
        "training": {"batch": 4, "average": average, "samples": 0, "precision": "float32"},
        "quiet": True,
    }
    limner.train("span", tmp_path / "in", tmp_path / "run", preset="tiny", budget="20img", **options)
    with safe_open(tmp_path / "run/model.safetensors", "pt") as file:
        kept = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    with torch.device("meta"):
        merged = model((16, 16)).network.merged()
    assert {name: value.shape for name, value in kept.items()} == {
        f"network.{name}": value.shape for name, value in merged.state_dict().items()
    }
    resumed = resume(tmp_path / "run")
    assert any(".widen." in name for name in resumed.live_tensors)
    live = model((16, 16))
    weights = {k.removeprefix("model/"): v for k, v in resumed.live_tensors.items() if k.startswith("model/")}
    live.load_state_dict(weights)
    picture, loaded = torch.rand(1, 3, 6, 6), limner.load(tmp_path / "run").model
    if not average:  # else it is the average of the merged ones
        assert_close(loaded.network(picture), live.network(picture))
    assert "widen" not in str(loaded)


def test_a_config_of_other_sizes_has_the_published_ones_by_default():
    assert UpscalerConfig(network="srresnet").width == 0
    with torch.device("meta"):
        one = model(network="srresnet", width=0, blocks=0, scale=4, base="none")
    assert sum(p.numel() for p in one.parameters()) == 1_549_462


@pytest.mark.process
def test_large_pictures_alone_and_what_comes_next(tmp_path):
    """The real command: tiles of pictures at their own scale, and the command that applies the run."""
    paint(tmp_path / "in", 2, (40, 56))
    command = [sys.executable, "-m", "limner.cli"]
    options = ["--preset", "tiny", "--model.scale", "4", "--size", "16", "--budget", "32img", "--out", "run"]
    train = subprocess.run(
        [*command, "train", "span", "in", *options], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "apply it: limner apply run PICTURE --to FILE" in train.stdout + train.stderr
    assert "24 images of 3x16x16" in train.stdout + train.stderr
    subprocess.run([*command, "apply", "run", "in/000.png", "--to", "large.png"], cwd=tmp_path, check=True)
    with Image.open(tmp_path / "large.png") as picture:
        assert picture.size == (4 * 56, 4 * 40)
