"""The best of many drawn images, by a run that compares images with texts (Ramesh 2021, 2.6)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from limner import checkpoint
from limner.core import Compares, LimnerError
from limner.inference.capabilities import apply_network, has, lacking
from limner.inference.prompts import warn_if_cut, warn_of_scripts
from limner.metrics.matches import fit


@dataclass(frozen=True)
class Best:
    """Which images are kept: of each prompt the best, the first of them first; prompts in turn, as they were drawn."""

    index: list[int]  # among all that were drawn
    scores: list[float]  # 100 times the cosine of image and prompt
    images: Tensor  # [N, C, H, W] in [-1, 1]


class Ranker:
    """Raises LimnerError, which names families, for a run that does not compare images with texts."""

    def __init__(self, run: str, device: torch.device):
        self.loaded = checkpoint.load(run, device)
        if not has(self.loaded, Compares):
            raise lacking(self.loaded, Compares)
        self.digest = str(self.loaded.header.get("digest", ""))

    def best(self, batches: Iterable[Tensor], texts: Sequence[str], n: int) -> Best:
        """The best ``n`` of all images of ``batches``, which were drawn for the texts in turn."""
        model = self.loaded.model
        assert isinstance(model, Compares)
        warn_if_cut(self.loaded.model, texts)
        warn_of_scripts(texts, self.loaded.header.get("scripts"))
        with torch.inference_mode():
            prompts = model.embed_texts(texts).float().cpu()  # [P, D]
        shares, kept = shares_of(n, len(texts)), [list[tuple[float, int, Tensor]]() for _ in texts]
        at = 0
        for images in batches:
            turns = torch.arange(at, at + len(images)) % len(texts)
            scores = fit(apply_network(self.loaded, model.embed_images, images), prompts[turns]).tolist()
            for i, (turn, score) in enumerate(zip(turns.tolist(), scores, strict=True)):
                kept[turn].append((score, at + i, images[i]))
            kept = [sorted(rows, key=lambda row: (-row[0], row[1]))[:most]
                    for rows, most in zip(kept, shares, strict=True)]  # fmt: skip
            at += len(images)
        chosen = [kept[i % len(texts)][i // len(texts)] for i in range(n)]
        return Best(
            [i for _, i, _ in chosen], [score for score, *_ in chosen], torch.stack([x for *_, x in chosen])
        )


def shares_of(n: int, prompts: int) -> list[int]:
    """How many of ``n`` images each prompt gets, which are taken in turn."""
    return [len(range(i, n, prompts)) for i in range(prompts)]


def check_candidates(candidates: int, n: int, prompts: int) -> None:
    """Raises LimnerError where a prompt has fewer candidates than images that are to be chosen of them."""
    most = max(shares_of(n, prompts))
    if candidates < most:
        of = "" if prompts == 1 else f", {most} of each prompt"
        raise LimnerError(
            f"--candidates {candidates} is below the --n {n} to be chosen of them{of}: raise it, or lower --n."
        )
