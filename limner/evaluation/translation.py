"""How near a run's pictures are to the true ones, beside the given pictures themselves, or bicubic if it enlarges."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limner.core import Degrades, Draws, Model, Translates, given_pictures
from limner.data import Data
from limner.evaluation import figures
from limner.evaluation.figures import Described
from limner.evaluation.images import Images
from limner.evaluation.matches import mean_of
from limner.evaluation.real import MIN_IMAGES, Real, as_saved
from limner.evaluation.results import Closeness, Figure, Mean, Translation
from limner.inference.threads import THREADS
from limner.losses.perceptual import default_network, feature_maps, network_title, perceptual_distance
from limner.metrics import pixels
from limner.metrics.features import Features
from limner.networks.images.bicubic import bicubic_to
from limner.networks.images.channels import with_channels
from limner.networks.images.padding import pad_reflected
from limner.pictures.grid import save_grid
from limner.progress import Watch, bar, ignore

BATCH = 16
SHOWN = 16  # pictures of the sheet
REAL = 2000  # true pictures of other images that the kernel distance is taken to, at most
SHEET = "translated.png"


@dataclass(frozen=True)
class Pictures:
    """Pictures [N, C, H, W] in [-1, 1] as 8-bit files hold them."""

    result: Tensor
    given: Tensor  # at the size of the result: bicubic
    true: Tensor | None  # None: unknown, since nothing pairs the two domains
    wanted: Tensor  # of the domain that the results should be of; the true ones where these are known


def measure_translation(
    model: Model, real: Real, sampling: Any, features: Features, to: Path, n: int, seed: int, quiet: bool
) -> Translation:
    """Of up to ``n`` held-out pictures, or training pictures where none are held out; writes a sheet into ``to``."""
    assert isinstance(model, Translates)
    data = real.held_out if len(real.held_out) else real.training
    rows = data.order(0, min(n, len(data)), seed)
    with bar(f"translating {len(rows):,} pictures", quiet) as watch:
        shown = translate_rows(model, data, rows, sampling, seed, watch)
    network, beside = default_network(), "bicubic" if model.scale > 1 else "the given picture"
    _save_sheet(to / SHEET, shown, beside)
    with bar("measuring", quiet) as watch:
        kid, kid_given = _kernel_distances(shown, target(real.training, sampling), features, seed, watch)
    found = Translation(
        n=len(rows), scale=model.scale, beside=beside, features=features.name, kid=kid, kid_given=kid_given
    )
    if shown.true is None:
        return found
    result, given = (compare(each, shown.true, model.scale, network) for each in (shown.result, shown.given))
    return replace(found, network=network_title(network), result=result, given=given)


def is_backward(sampling: Any) -> bool:
    """Whether the pictures that the data gives are the wanted ones."""
    return getattr(sampling, "direction", "") == "backward"


def target(data: Data, sampling: Any) -> Data:
    """The pictures whose like the results should be."""
    return data.given if is_backward(sampling) and data.given is not None else data


def translate_rows(
    model: Model, data: Data, rows: np.ndarray, sampling: Any, seed: int = 0, watch: Watch = ignore
) -> Pictures:
    """What a model that Translates makes of the pictures that rows are given, each with a seed of its own."""
    assert isinstance(model, Translates)
    results: list[Tensor] = []
    givens: list[Tensor] = []
    wanted: list[Tensor] = []
    with torch.inference_mode(), THREADS.at_work(model.device):
        for at in range(0, len(rows), BATCH):
            batch = data.batch(rows[at : at + BATCH])
            draws = Draws(range(seed + at, seed + at + len(batch.image)))
            given, image = given_pictures(model, batch, draws), batch.image
            if is_backward(sampling):
                given, image = image, given
            given = as_saved(given).to(model.device)  # [B, C', h, w]
            (height, width), padded = given.shape[-2:], pad_reflected(given, model.factor, model.least)
            condition = replace(batch.condition, image=padded).to(model.device)
            made = (
                model.translate(padded, condition, sampling, Draws(draws.seeds, model.device)).float().cpu()
            )
            made = made[..., : model.scale * height, : model.scale * width]
            given = bicubic_to(
                with_channels(given.float().cpu(), made.shape[1]), (made.shape[2], made.shape[3])
            )
            for kept, each in ((results, made), (givens, given), (wanted, image)):
                kept.append(as_saved(each))
            watch(min(1.0, (at + BATCH) / len(rows)))
    true = torch.cat(wanted)
    known = data.paired if data.given is not None else isinstance(model, Degrades)
    return Pictures(torch.cat(results), torch.cat(givens), true if known else None, true)


def compare(pictures: Tensor, true: Tensor, scale: int, network: str) -> Closeness:
    """[N, C, H, W] twice, in [-1, 1]. On Y as super-resolution has it: without a border of ``scale`` pixels.

    RGBA is compared over white, and its alpha by itself.
    """
    found: dict[str, list[Tensor]] = {}
    border = scale if min(true.shape[-2:]) > 2 * scale else 0
    for a, b in zip(pictures.split(BATCH), true.split(BATCH), strict=True):
        alpha = [x[:, 3:] for x in (a, b)]
        a, b = (with_channels(x, min(x.shape[1], 3)) for x in (a, b))
        with torch.inference_mode():
            one, other = (feature_maps(network, x.float()) for x in (a, b))
            values = {"psnr": pixels.psnr(a, b), "perceptual": perceptual_distance(one, other)}
        if alpha[0].numel():
            values["psnr_alpha"] = pixels.psnr(*alpha)
        inner = slice(border, -border or None)
        y, true_y = (pixels.luma(with_channels(x, 3))[..., inner, inner] for x in (a, b))
        if a.shape[1] == 3:
            values["psnr_y"] = pixels.psnr(y, true_y, 255.0)
        if min(true.shape[-2:]) >= 11:
            values["ssim"] = pixels.ssim(a, b)
        if a.shape[1] == 3 and min(y.shape[-2:]) >= 11:
            values["ssim_y"] = pixels.ssim(y, true_y, 255.0)
        for name, value in values.items():
            found.setdefault(name, []).append(value.double().clamp(max=100))  # equal ones have no finite PSNR
    means = {name: torch.cat(parts) for name, parts in found.items()}
    if len(true) == 1:  # whose mean has no interval
        return Closeness(**{name: Mean(*values.tolist() * 3) for name, values in means.items()})
    return Closeness(**{name: mean_of(values) for name, values in means.items()})


def _kernel_distances(
    shown: Pictures, training: Data, features: Features, seed: int, watch: Watch
) -> tuple[Figure | None, Figure | None]:
    """Of results, and of given pictures, to wanted pictures of the training part; None where there are too few."""
    if min(len(shown.result), len(training)) < MIN_IMAGES:
        return None, None
    others = training.part(training.order(0, min(REAL, len(training)), seed))
    channels = max(shown.result.shape[1], others.spec.channels)
    sides = [Images.of(source, channels) for source in (others, shown.result, shown.given)]
    described = []
    for done, side in enumerate(sides):
        found = torch.cat([features.of(part) for part in side.batches(BATCH)])
        described.append(Described(found, side.keys()))
        watch((done + 1) / len(sides))
    real, result, given = described
    return figures.measure(result, real, ignore, seed)["kid"], figures.measure(given, real, ignore, seed)[
        "kid"
    ]


def _save_sheet(path: Path, shown: Pictures, beside: str) -> None:
    """Rows of given | result | truth."""
    columns = {beside: shown.given, "result": shown.result} | (
        {} if shown.true is None else {"truth": shown.true}
    )
    count = min(SHOWN, len(shown.result))
    pictures = [each[i] for i in range(count) for each in columns.values()]
    save_grid(path, pictures, [*columns] * count, len(columns))
