"""Super-resolution: how near several networks come in the same time, beside bicubic, on held-out and whole pictures.

    python benchmarks/restore.py runs/restore --record                                emoji, 32 -> 128, 20 minutes each
    python benchmarks/restore.py runs/photos --source photos/ --pictures china.jpg flower.jpg --record restore-photos

Each contestant that is not in the folder yet is trained there: SPAN of the preset small, FSRCNN and the SRResNet of
Ledig 2017 with the same time, and SRGAN, which goes on from SPAN for as long again. PSNR and SSIM are means over
pictures; Y is BT.601's, and without a border of ``scale`` pixels, as papers have it. The kernel distance is that of
crops to those of training pictures. Without --pictures, the two photographs that scikit-learn carries.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from record import record
from torch import Tensor

import limner
from limner.checkpoint import exists, load
from limner.core import Condition, Draws, Model
from limner.data import Data, open_like
from limner.evaluation.real import as_saved
from limner.evaluation.translation import compare, translate_rows
from limner.losses.perceptual import default_network, network_title
from limner.metrics.distances import kernel_distance
from limner.metrics.find import find
from limner.metrics.pixels import psnr
from limner.networks.images.bicubic import bicubic
from limner.pictures.grid import save_grid

# name: family, preset and settings; the first is what SRGAN goes on from
CONTESTANTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "SPAN": ("span", "small", {}),
    "FSRCNN": ("span", "small", {"network": "fsrcnn"}),
    "SRResNet": ("span", "srresnet", {}),
    "SRGAN": ("srgan", "small", {}),
}
CROP, CROPS = 32, 2000  # pixels a side, and number, of the crops whose kernel distance is taken
COLUMNS = {
    "network": "network", "parameters": "parameters", "n": "pictures", "psnr": "PSNR, dB",
    "psnr_inner": "PSNR without the border, dB", "psnr_y": "PSNR of Y, dB",
    "ssim": "SSIM", "ssim_y": "SSIM of Y", "perceptual": "perceptual distance", "kid": "kernel distance of crops",
    "kid_imagenet": "the same, imagenet",
    "seconds": "seconds a megapixel",
}  # fmt: skip


def train(name: str, given: argparse.Namespace) -> Path:
    """The run of a contestant, trained now if it is not there."""
    family, preset, settings = CONTESTANTS[name]
    out = given.out / name
    if not exists(out):
        settings = settings | {"scale": given.scale}
        if family == "srgan":
            settings |= {"pixels": str(given.out / "SPAN")}
        limner.train(
            family, given.source, out, preset=given.preset or preset, budget=given.budget, size=given.size,
            seed=given.seed, model=settings, data={"channels": 3}, training={"threads": given.threads},
        )  # fmt: skip
    return out


def crops(pictures: Tensor) -> Tensor:
    """[N, C, H, W] -> the squares of CROP pixels that tile them, at most CROPS of them, evenly spaced."""
    tiles = pictures.unfold(2, CROP, CROP).unfold(3, CROP, CROP)  # [N, C, h, w, CROP, CROP]
    tiles = tiles.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
    return tiles[:: max(1, len(tiles) // CROPS)]


def figures(pictures: Tensor, true: Tensor, scale: int, features: dict[str, Tensor]) -> dict[str, Any]:
    """What the columns say of [N, 3, H, W]; ``features`` are those of crops of other true pictures, by name."""
    near = nearness(pictures, true, scale) if pictures is not true else {}
    far = {
        "kid" if name == "random" else f"kid_{name}": kernel_distance(described(crops(pictures), name), other)
        for name, other in features.items()
    }
    return {"n": len(true), **near, **{name: round(value, 2) for name, value in far.items()}}


def nearness(pictures: Tensor, true: Tensor, scale: int) -> dict[str, float | None]:
    """Errors in pixels and in features, of pictures [N, 3, H, W] as files hold them."""
    found = compare(pictures, true, scale, default_network())
    values = {name: getattr(found, name) for name in ("psnr", "psnr_y", "ssim", "ssim_y", "perceptual")}
    near = {name: None if figure is None else round(figure.value, 4) for name, figure in values.items()}
    inner = slice(scale, -scale)
    one, other = (x[..., inner, inner] for x in (pictures, true))
    return near | {"psnr_inner": round(float(psnr(one, other).mean()), 4)}


def described(images: Tensor, name: str) -> Tensor:
    """[N, D] in features by name."""
    extractor = find(name)
    return torch.cat([extractor.of(part) for part in images.split(64)])


def held_out(given: argparse.Namespace, names: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each contestant and one for bicubic, of the held-out pictures of the source."""
    rows: list[dict[str, Any]] = []
    sheets: list[Tensor] = []
    for name in names:
        loaded = load(train(name, given))
        data = open_like(given.source, loaded.spec, loaded.run.data, progress=False)
        training, held = data.split(loaded.run.data.holdout)
        order = held.order(0, min(len(held), given.n), 0)
        shown = translate_rows(loaded.model, held, order, loaded.model.Sampling())
        assert shown.true is not None
        if not rows:
            others = crops(some_of(training))
            names_used = ["random", "imagenet"] if default_network() == "imagenet" else ["random"]
            features = {each: described(others, each) for each in names_used}
            rows.append({"network": "the truth"} | figures(shown.true, shown.true, given.scale, features))
            rows.append({"network": "bicubic"} | figures(shown.given, shown.true, given.scale, features))
            sheets += [shown.true, shown.given]
        parameters = sum(p.numel() for p in upscaler(loaded.model).parameters())
        row = {"network": name, "parameters": parameters} | figures(
            shown.result, shown.true, given.scale, features
        )
        rows.append(row | {"seconds": round(seconds_a_megapixel(loaded.model), 3)})
        print(rows[-1], file=sys.stderr)
        sheets.append(shown.result)
    columns = ["truth", "bicubic", *names]
    pictures = [sheet[i] for i in range(min(8, len(sheets[0]))) for sheet in sheets]
    save_grid(given.out / "restored.png", pictures, columns * (len(pictures) // len(columns)), len(columns))
    return rows


def upscaler(model: Model) -> torch.nn.Module:
    return model.get_submodule(model.averaged[0])


def some_of(data: Data) -> Tensor:
    """Pictures whose crops the kernel distance is taken to."""
    per_picture = max(1, (data.spec.height // CROP) * (data.spec.width // CROP))
    return data.batch(data.order(0, min(len(data), -(-CROPS // per_picture)), 0)).image


@torch.inference_mode()
def seconds_a_megapixel(model: Any) -> float:
    """Of the result, by the median of five pictures of 256x256."""
    small = torch.rand(1, 3, 256 // model.scale, 256 // model.scale) * 2 - 1
    taken = []
    for _ in range(6):
        start = time.perf_counter()
        model.translate(small, Condition(1), model.Sampling(), Draws([0]))
        taken.append(time.perf_counter() - start)
    return float(np.median(taken[1:])) / (256 * 256) * 1e6


def photographs(given: argparse.Namespace) -> dict[str, Tensor]:
    """Whole pictures [1, 3, H, W] by name, cut to multiples of the scale."""
    arrays = {path.stem: np.asarray(Image.open(path).convert("RGB")) for path in given.pictures}
    if not arrays:
        from sklearn.datasets import load_sample_images

        loaded = load_sample_images()
        arrays = {Path(name).stem: image for name, image in zip(loaded.filenames, loaded.images, strict=True)}
    found = {}
    for name, array in arrays.items():
        height, width = (side // given.scale * given.scale for side in array.shape[:2])
        pixels = torch.from_numpy(array[:height, :width].copy()).permute(2, 0, 1)[None]
        found[name] = pixels / 127.5 - 1
    return found


@torch.inference_mode()
def whole(given: argparse.Namespace, names: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each picture and contestant."""
    rows = []
    models = {name: load(given.out / name).model for name in names}
    for picture, true in photographs(given).items():
        small = as_saved(bicubic(true, 1 / given.scale).clamp(-1, 1)).float()
        made = {"bicubic": bicubic(small, given.scale)}
        made |= {
            name: model.translate(small, Condition(1), model.Sampling(), Draws([0]))  # type: ignore[attr-defined]
            for name, model in models.items()
        }
        for name, result in made.items():
            near = nearness(as_saved(result.clamp(-1, 1)), as_saved(true), given.scale)
            rows.append({"network": f"{name}, {picture}", "n": 1} | near)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="folder of the runs")
    parser.add_argument("--source", default="emoji", help="what is trained on")
    parser.add_argument(
        "--pictures", type=Path, nargs="*", default=[], help="whole pictures to measure on besides"
    )
    parser.add_argument("--networks", nargs="+", choices=CONTESTANTS, default=[*CONTESTANTS])
    parser.add_argument("--size", type=int, default=128, help="pixels a side of what is trained on")
    parser.add_argument("--scale", type=int, default=4)
    parser.add_argument("--budget", default="20m", help="of each training")
    parser.add_argument("--preset", default="", help="of every family, in place of the contestants' own")
    parser.add_argument("--n", type=int, default=1000, help="held-out pictures, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--record", nargs="?", const="restore", help="write benchmarks/results/NAME.json")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    rows = held_out(given, given.networks) + whole(given, given.networks)
    for row in rows:
        print(row)
    if given.record:
        note = f"{given.source}, {given.scale}x, {given.budget} each; perceptual: {network_title(default_network())}"
        record(given.record, COLUMNS, rows, note, given.threads)


if __name__ == "__main__":
    main()
