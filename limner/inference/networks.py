"""The network of a run over images: whether the run has it, and its outputs in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limner.core import Classifies, Describes, LimnerError
from limner.data import Data, batches, open_like
from limner.distributed import ALONE, Ranks
from limner.inference.capabilities import apply_network, has, lacking
from limner.inference.pipeline import Pipeline
from limner.inference.threads import THREADS
from limner.progress import Watch, ignore


def open_run(run: str | Path, protocol: type, device: str = "auto") -> Pipeline:
    """A run that Describes, Classifies or is Latent. Raises LimnerError for another, before any image is read."""
    pipeline = Pipeline(run, device)
    if not supports(pipeline, protocol):
        raise unsupported(pipeline, protocol)
    return pipeline


def supports(pipeline: Pipeline, protocol: type) -> bool:
    """Whether a run has the methods of a protocol, and to classify also classes that it was trained on."""
    return has(pipeline.loaded, protocol)


def unsupported(pipeline: Pipeline, protocol: type) -> LimnerError:
    """The error that says why a run does not support a protocol, and which do."""
    return lacking(pipeline.loaded, protocol)


def extract_features(pipeline: Pipeline, images: Tensor) -> Tensor:
    """[B, C, H, W] of any size and channels -> features, float32 [B, D] on the CPU."""
    assert isinstance(pipeline.model, Describes)
    return apply_network(pipeline.loaded, pipeline.model.features, images)


def class_probabilities(pipeline: Pipeline, images: Tensor) -> Tensor:
    """[B, C, H, W] of any size and channels -> float64 [B, K] on the CPU, each row summing to 1."""
    assert isinstance(pipeline.model, Classifies)
    return apply_network(pipeline.loaded, pipeline.model.classify, images).double().softmax(1)


def over_batches(
    network: Callable[[Tensor], Tensor], images: Iterable[Tensor], n: int, watch: Watch = ignore
) -> Tensor:
    """[n, ...] the outputs of a network for batches of images, ``n`` in all."""
    outputs, done = [], 0
    with THREADS.at_work():
        for batch in THREADS.each(images, "images"):
            outputs.append(network(batch))
            done += len(batch)
            watch(done / n)
    return torch.cat(outputs)


def over_data(
    data: Data, network: Callable[[Tensor], Tensor], watch: Watch = ignore, ranks: Ranks = ALONE
) -> Tensor:
    """[N, ...] the outputs of a network for all images, in batches; each process computes its part and gets all."""
    mine = data.part(np.arange(len(data))[ranks.part(len(data))])
    return ranks.gather(over_batches(network, batches(mine), len(mine), watch), len(data))


def open_for_run(pipeline: Pipeline, sources: Sequence[str], progress: bool = True, **changes: Any) -> Data:
    """Sources at the size and channels of a run, with their labels even if it was trained without."""
    options = {"labels": True, **changes}
    return open_like(sources, pipeline.spec, pipeline.loaded.run.data, progress, **options)
