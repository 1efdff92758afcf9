"""How many prompts are drawn as they say, where the truth of images is known: on combinations never trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from limner.core import LimnerError
from limner.data.items import Oracle
from limner.distributed import ALONE, Ranks
from limner.evaluation.images import Images
from limner.evaluation.real import Real, as_bytes, as_saved, open_real
from limner.evaluation.results import Fidelity
from limner.inference.pipeline import Pipeline, condition_for, generate
from limner.inference.understand import Accuracy
from limner.progress import bar

PROMPTS = 256  # drawn, at most


@dataclass(frozen=True)
class Prompts:
    """Texts to draw, and whether no training image showed what they describe (None: not known)."""

    texts: list[str]
    unseen: bool | None


@dataclass(frozen=True)
class PromptScore:
    """How many prompts were drawn with everything right."""

    exact: Accuracy
    unseen: bool | None
    floor: float | None  # the same share of real images: what the oracle itself gets right

    def add_to(self, fidelity: Fidelity) -> Fidelity:
        """The same figures, with these and a sentence where prompts are not known to be new to the run."""
        exact, notes = self.exact, list(fidelity.notes)
        if self.unseen is None:
            notes.append(
                "The run's own images cannot be opened, so it may have been trained on the prompts' combinations."
            )
        elif not self.unseen:
            notes.append(
                "The prompts were trained on: every combination of attributes is in the run's training."
            )
        return replace(
            fidelity, prompts_exact=exact.value, prompts_low=exact.low, prompts_high=exact.high,
            prompts_floor=self.floor, prompts_n=exact.n, prompts_unseen=self.unseen, notes=notes,
        )  # fmt: skip


def measure_prompts(
    pipeline: Pipeline, sources: Sequence[str], real: Real, seed: int = 0, quiet: bool = False,
    ranks: Ranks = ALONE, sampling: Any = None,
) -> PromptScore | None:  # fmt: skip
    """None where the run reads no text, or where nobody knows what images show.

    Each of several processes draws its part. The same seed gives the same prompts to every run.
    """
    model, oracle = pipeline.model, real.whole.training.oracle
    if not oracle or "text" not in model.follows or "given" in model.follows:
        return None
    chosen = choose_prompts(pipeline, sources, real, oracle, seed)
    n = len(chosen.texts)
    mine, seeds = ranks.part(n), range(seed, seed + n)
    condition = condition_for(model, n, chosen.texts)[mine]
    with bar(f"drawing {n:,} prompts", quiet) as watch:
        images = generate(model, condition, seeds[mine], sampling, watch=watch, precision=pipeline.precision)
    drawn = ranks.gather(torch.from_numpy(as_bytes(as_saved(images))), n).numpy()
    exact = Accuracy.of(_exact(oracle, drawn, chosen.texts), n)
    return PromptScore(exact, chosen.unseen, _exact_of_real(oracle, real, seed))


def choose_prompts(
    pipeline: Pipeline, sources: Sequence[str], real: Real, oracle: Oracle, seed: int
) -> Prompts:
    """Prompts of combinations that were held out of the run's training; its own captions where none was.

    They are in the language of the run's captions (``DataOptions.language``).
    """
    captions = real.training.captions or []
    known = _trained_on(pipeline, sources, real)
    unseen = oracle.unseen(PROMPTS, seed, known or [], pipeline.loaded.run.data.language)
    if unseen:
        return Prompts(unseen, None if known is None else True)
    rows = real.training.order(0, min(PROMPTS, len(captions)), seed)
    return Prompts([captions[i] for i in rows], False)


def _trained_on(pipeline: Pipeline, sources: Sequence[str], real: Real) -> list[str] | None:
    """The captions that the run was trained on; None where its images cannot be opened."""
    run = pipeline.loaded.run
    if list(run.sources) == list(sources):
        return real.training.captions
    try:
        return open_real(run.sources, pipeline.spec, run.data, progress=False).training.captions
    except LimnerError:
        return None


def _exact(oracle: Oracle, images: np.ndarray, captions: Sequence[str]) -> float:
    """The share of uint8 images [N, H, W, C] that show exactly what their captions say."""
    floats = torch.from_numpy(images).movedim(-1, 1) / 127.5 - 1
    right = oracle.score(as_bytes(Images.of(floats, 3)[:]), captions)["exact"]
    return round(right * len(captions)) / len(captions)


def _exact_of_real(oracle: Oracle, real: Real, seed: int) -> float | None:
    """The same share of real images: what the oracle itself gets right."""
    data = real.whole.training
    rows = data.order(0, min(PROMPTS, len(data)), seed)
    if data.captions is None or not len(rows):
        return None
    return _exact(oracle, data.part(rows).array, [data.captions[i] for i in rows])
