"""How near a run's pictures are to the true ones, beside the given pictures themselves, or bicubic where it enlarges."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limner.core import Batch, Condition, Degrades, Draws, Model, Translates, given_pictures, mix
from limner.data import Data
from limner.evaluation import figures
from limner.evaluation.figures import Described
from limner.evaluation.images import Images
from limner.evaluation.matches import mean_of
from limner.evaluation.real import MIN_IMAGES, Real, as_bytes, as_saved
from limner.evaluation.results import Figure, Mean, Translation
from limner.inference.pipeline import Pipeline
from limner.losses.perceptual import default_network, feature_maps, network_title, perceptual_distance
from limner.metrics import pixels
from limner.metrics.features import Features
from limner.networks.images.bicubic import bicubic_to
from limner.networks.images.channels import with_channels
from limner.networks.images.padding import pad_reflected
from limner.pictures.grid import save_grid
from limner.progress import Watch, bar

BATCH = 16
SHOWN = 16  # pictures of the sheet
REAL = 2000  # real pictures at most that the kernel distance is taken to


def measure_translation(
    pipeline: Pipeline,
    real: Real,
    sampling: Any,
    features: Features,
    to: Path,
    n: int | None,
    seed: int,
    quiet: bool,
) -> Translation:
    """Of held-out pictures, or of training pictures where none are held out; writes translated.png into ``to``."""
    model = pipeline.model
    data = real.held_out if len(real.held_out) else real.training
    rows = data.order(0, min(n or 1000, len(data)), seed)
    known = isinstance(model, Degrades) and data.given is None or data.paired
    values: dict[str, list[Tensor]] = {}
    kept: dict[str, list[Tensor]] = {"result": [], "base": [], "truth": []}
    network = default_network()
    with bar(f"translating {len(rows):,} pictures", quiet) as watch:
        for at in range(0, len(rows), BATCH):
            given, truth = _given(model, data, rows[at : at + BATCH], seed)
            result = as_saved(translated(pipeline, given, sampling, seed + at))
            base = as_saved(_enlarged(given, result))
            for name, pictures in (("result", result), ("base", base), ("truth", truth)):
                kept[name].append(pictures)
            if known:
                for name, picture in (("", result), ("given ", base)):
                    for figure, each in compare(picture, truth, _scale(model), network).items():
                        values.setdefault(name + figure, []).append(each)
            watch(min(1.0, (at + BATCH) / len(rows)))
    sets = {name: torch.cat(parts) for name, parts in kept.items()}
    _save_sheet(to / "translated.png", sets, known, _scale(model))
    means = {name: mean_of(torch.cat(parts)) for name, parts in values.items()}
    kid, kid_given = _kernel_distances(sets, real.training, features, seed, quiet)
    return Translation(
        n=len(rows), scale=_scale(model), beside="bicubic" if _scale(model) > 1 else "the given picture",
        network=network_title(network) if known else None, features=features.name, kid=kid, kid_given=kid_given,
        **{name: mean for name, mean in means.items() if not name.startswith("given ")},
        **{f"{name.removeprefix('given ')}_given": mean for name, mean in means.items() if name.startswith("given ")},
    )  # fmt: skip
