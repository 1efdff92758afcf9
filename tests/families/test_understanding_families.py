"""What only vit, mae and dino promise; their common contract is tested with all families."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from limner import families
from limner.core import Batch, Condition, ImageSpec, LimnerError
from limner.families.dino import DINO
from limner.families.mae import MAE, MAEConfig, to_patches
from limner.families.vit import ViT
from limner.networks.transformers.patch import PatchConfig
from tests.helpers import paint

SPEC = ImageSpec(3, 16, 16, classes=("cat", "dog"))


def batch(size: int = 8) -> Batch:
    torch.manual_seed(3)
    return Batch(torch.rand(size, 3, 16, 16) * 2 - 1, Condition(size, label=torch.arange(size) % 2))


@pytest.mark.parametrize(
    ("width", "depth", "heads", "millions"),
    [(192, 12, 3, 5.717), (384, 12, 6, 22.051), (1024, 24, 16, 304.327)],
)
def test_other_published_sizes_of_vit(width: int, depth: int, heads: int, millions: float) -> None:
    """Ti, S and L with patches of 16 and 1000 classes, as timm counts them."""
    from limner.networks.transformers.patch import PatchConfig

    spec = ImageSpec(3, 224, 224, classes=tuple(map(str, range(1000))))
    from limner.families.vit import ViTConfig

    with torch.device("meta"):
        model = ViT(ViTConfig(PatchConfig(16, width=width, depth=depth, heads=heads)), spec)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.001)


def test_vit_starts_at_chance_and_smooths_labels_only_in_training() -> None:
    model = ViT(ViT.presets["tiny"].model, SPEC)
    assert not model.classify(batch().image).any()  # a head of zeros
    with torch.no_grad():
        model.network.head.bias.copy_(torch.tensor([100.0, 0.0]))  # sure that all are cats
    cats = Batch(batch().image, Condition(8, label=torch.zeros(8, dtype=torch.long)))
    assert model.eval().loss(cats)["cross entropy"] < 1e-6
    assert model.train().loss(cats)["cross entropy"] > 1  # being sure costs


def test_vit_refuses_data_without_classes() -> None:
    with pytest.raises(LimnerError, match="one folder a class"):
        ViT(ViT.presets["tiny"].model, ImageSpec(3, 16, 16))
    with pytest.raises(LimnerError, match="patches of 16"):
        families.build("vit", ViT.presets["paper"].model, ImageSpec(3, 24, 24, classes=("a", "b")))


def test_patches_are_row_by_row_with_channels_last() -> None:
    image = torch.arange(2 * 3 * 4 * 6).float().view(2, 3, 4, 6)
    patches = to_patches(image, 2)
    assert patches.shape == (2, 6, 12)
    assert torch.equal(patches[0, 1, :3], image[0, :, 0, 2])  # the second patch begins at column 2
    assert torch.equal(patches[1, 3, 3:6], image[1, :, 2, 1])  # within a patch columns go before rows


def test_mae_loss_is_on_masked_patches_only() -> None:
    torch.manual_seed(0)
    model = MAE(MAE.presets["tiny"].model, SPEC).eval()
    shown = batch()
    image, places = shown.image, model.body.grid[0] * model.body.grid[1]
    torch.manual_seed(5)
    loss = model.loss(shown)["masked patches"]
    torch.manual_seed(5)
    order = torch.rand(8, places).argsort(1)
    keep, hidden = order[:, : places // 4], order[:, places // 4 :]
    target = to_patches(image, model.body.patch)
    target = (target - target.mean(2, keepdim=True)) / (target.var(2, keepdim=True) + 1e-6).sqrt()
    painted = model.network(image, keep)
    error = torch.stack([(painted[i, h] - target[i, h]).square().mean() for i, h in enumerate(hidden)])
    torch.testing.assert_close(loss, error.mean())


def test_dino_updates_the_teacher_once_a_step() -> None:
    torch.manual_seed(0)
    model = DINO(DINO.presets["tiny"].model, SPEC).train()
    assert not list(model.teacher.parameters()), "no optimiser can move it"
    teacher, student = model.teacher.prototypes, model.student.prototypes
    assert torch.equal(teacher, student)
    with torch.no_grad():
        student.add_(1)
    model.advance(0)
    model.loss(batch())
    assert torch.allclose(student - teacher, torch.ones(())), "nothing was seen, so it stands"
    model.advance(8)
    for _ in range(3):  # three microbatches of one step
        model.loss(batch())
    torch.testing.assert_close(student - teacher, torch.full_like(teacher, model.config.momentum))
    centre = model.centre.clone()
    model.eval().loss(batch())
    assert torch.equal(model.centre, centre), "measuring moves nothing"


@pytest.mark.parametrize("name", ["dino", "mae"])
def test_vit_starts_from_a_run_trained_without_labels(limner, tmp_path: Path, name: str) -> None:
    for i, label in enumerate(("cat", "dog")):
        paint(tmp_path / "images" / label, 15, seed=i)
    tiny = ("--preset", "tiny", "--training.samples", 4, "--budget")
    limner("train", name, tmp_path / "images", "--out", tmp_path / "first", *tiny, "64img")
    limner(
        "train", "vit", tmp_path / "images", "--out", tmp_path / "run", *tiny, "16img",
        "--model.pretrained", tmp_path / "first", "--training.optimisers.network.lr", "0",
    )  # fmt: skip
    from limner import load

    first, run = load(tmp_path / "first"), load(tmp_path / "run")
    image = batch().image
    torch.testing.assert_close(run.model.body(image), first.model.body(image))
    told = json.loads(limner("show", tmp_path / "run", "--json").stdout)
    assert told["parents"] == {"pretrained": first.loaded.header["digest"]}
    resumed = limner("train", "vit", "--out", tmp_path / "run", "--resume", "--budget", "32img",
                     "--preset", "tiny")  # fmt: skip
    assert resumed.returncode == 0
    assert json.loads(limner("show", tmp_path / "run", "--json").stdout)["parents"] == told["parents"]
    done = limner(
        "train", "vit", tmp_path / "images", "--out", tmp_path / "grey", *tiny, "16img", "--data.channels", "1",
        "--model.pretrained", tmp_path / "first", ok=False,
    )  # fmt: skip
    assert done.returncode == 2 and "--data.channels" in done.stderr


def test_vit_cannot_start_from_a_run_without_a_transformer(limner, tmp_path: Path) -> None:
    for i, label in enumerate(("cat", "dog")):
        paint(tmp_path / "images" / label, 15, seed=i)
    tiny = ("--preset", "tiny", "--training.samples", 4, "--budget", "16img")
    limner("train", "vae", tmp_path / "images", "--out", tmp_path / "first", *tiny)
    done = limner("train", "vit", tmp_path / "images", "--out", tmp_path / "run", *tiny,
                  "--model.pretrained", tmp_path / "first", ok=False)  # fmt: skip
    assert done.returncode == 2 and "dino, mae or vit" in done.stderr


def test_mae_refuses_to_mask_nothing_or_everything() -> None:
    spec = ImageSpec(3, 16, 16)
    for config in (MAEConfig(mask_ratio=0.0), MAEConfig(mask_ratio=1.0), MAEConfig(PatchConfig(across=1))):
        with pytest.raises(LimnerError, match="nothing can be learned"):
            MAE(config, spec)
    loss = MAE(MAEConfig(PatchConfig(across=2), mask_ratio=0.01), spec).loss(
        Batch(torch.randn(2, 3, 16, 16), Condition(2))
    )
    assert loss["masked patches"].isfinite()
