"""The sheet of samples that a training draws: images under the conditions of others, or given pictures translated."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from limner.core import Condition, Draws, Generates, Model, Translates, given_pictures
from limner.data import Data
from limner.device import autocast
from limner.inference.pipeline import IMAGES_OF_CLIP, captions_of, generate
from limner.networks.images.padding import pad_reflected
from limner.pictures.grid import grid, in_rows

BATCH = 16  # pictures that are translated at a time


def sample_grid(model: Model, data: Data, n: int, precision: str = "float32") -> Image.Image | None:
    """A sheet of ``n`` samples under the conditions of random images of ``data``, seeds 0 to n - 1; None for none.

    Of clips an eighth, since each takes as long as many images: frames across, clips down.
    Of a model that is given pictures, each row shows given, drawn and wanted; of domains, what is drawn of either.
    """
    if not isinstance(model, Generates | Translates) or n < 1:
        return None
    n = n if model.spec.frames == 1 else max(1, n // IMAGES_OF_CLIP)
    batch = data.batch(data.order(0, n, 0))
    used = {name: getattr(batch.condition, name) for name in ("label", "text") if name in model.follows}
    condition, training = Condition(n, **used), model.training
    model.eval()
    if "given" not in model.follows:
        images = generate(model, condition, range(n), precision=precision)
        sheet = grid(images, captions_of(model.spec, condition))
    else:
        with torch.inference_mode():
            given = given_pictures(model, batch, Draws(range(n)))
        drawn = _drawn(model, replace(condition, image=given), precision)
        shown, order = [given, drawn], "given, drawn"
        if data.paired:
            shown, order = [*shown, batch.image], f"{order}, wanted"
        elif isinstance(model, Translates) and hasattr(model.Sampling, "direction"):
            back = _drawn(model, replace(condition, image=batch.image), precision, direction="backward")
            shown, order = [*shown, batch.image, back], f"{order}; backward: {order}"
        sheet = in_rows(shown, order)
    model.train(training)
    return sheet


def _drawn(model: Model, condition: Condition, precision: str, **sampling: Any) -> Tensor:
    """What the model makes of the pictures of a condition [N, C, h, w], with the seeds 0 to N - 1, on the CPU."""
    if not isinstance(model, Translates):
        return generate(model, condition, range(condition.size), precision=precision)
    assert condition.image is not None
    network: Any = model
    made = []
    for at in range(0, condition.size, BATCH):
        rows = condition[at : at + BATCH].to(model.device)
        height, width = rows.image.shape[-2:]  # type: ignore[union-attr]
        image = pad_reflected(rows.image, network.factor, network.least)  # type: ignore[arg-type]
        draws = Draws(range(at, at + rows.size), model.device)
        with torch.inference_mode(), autocast(model.device, precision == "bf16"):
            whole = network.translate(image, rows, model.Sampling(**sampling), draws)
        cut = whole[..., : network.scale * height, : network.scale * width]
        made.append(cut.float().clamp(-1, 1).cpu())
    return torch.cat(made)
