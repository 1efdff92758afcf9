"""The network of a run over images: whether the run has it, and its outputs in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limner import families
from limner.core import Classifies, Compares, Describes, Latent, LimnerError
from limner.data import Data, batches, open_like
from limner.device import autocast
from limner.distributed import ALONE, Ranks
from limner.inference.pipeline import Pipeline
from limner.inference.precision import choose_bf16, network_name
from limner.inference.threads import THREADS
from limner.metrics.features import resize, with_channels
from limner.progress import Watch, ignore
from limner.settings import join_words

LACKS: dict[type, str] = {  # what a run without a protocol cannot do
    Describes: "does not describe images", Classifies: "does not classify images", Latent: "has no latent space",
    Compares: "does not compare images with texts",
}  # fmt: skip


def open_run(run: str | Path, protocol: type, device: str = "auto") -> Pipeline:
    """A run that Describes, Classifies or is Latent. Raises LimnerError for another, before any image is read."""
    pipeline = Pipeline(run, device)
    if not supports(pipeline, protocol):
        raise unsupported(pipeline, protocol)
    return pipeline


def supports(pipeline: Pipeline, protocol: type) -> bool:
    """Whether a run has the methods of a protocol, and to classify also classes that it was trained on."""
    return isinstance(pipeline.model, protocol) and (
        protocol is not Classifies or bool(pipeline.spec.classes)
    )


def unsupported(pipeline: Pipeline, protocol: type) -> LimnerError:
    """The error that says why a run does not support a protocol, and which do."""
    path, family = pipeline.loaded.path, pipeline.loaded.run.family
    able = families.supporting(protocol)
    if protocol is Classifies and isinstance(pipeline.model, Compares):
        return LimnerError(f'{path} classifies by names, and none are given: add --labels "a cat,a dog".')
    if family in able:  # it needs labels
        return LimnerError(
            f"{path} was trained without labels, so it cannot classify: use a run that was trained on labelled images."
        )
    return LimnerError(
        f"{path} is a run of {family}, which {LACKS[protocol]}: use a run of {join_words(able)}."
    )


def extract_features(pipeline: Pipeline, images: Tensor) -> Tensor:
    """[B, C, H, W] of any size and channels -> features, float32 [B, D] on the CPU."""
    assert isinstance(pipeline.model, Describes)
    return apply(pipeline, pipeline.model.features, images)


def class_probabilities(pipeline: Pipeline, images: Tensor) -> Tensor:
    """[B, C, H, W] of any size and channels -> float64 [B, K] on the CPU, each row summing to 1."""
    assert isinstance(pipeline.model, Classifies)
    return apply(pipeline, pipeline.model.classify, images).double().softmax(1)


def apply(pipeline: Pipeline, network: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """What a network of the run makes of [B, C, H, W] of any size and channels, in float32 on the CPU."""
    model, spec = pipeline.model, pipeline.spec
    images = resize(with_channels(images, spec.channels), spec.height, spec.width).to(model.device)

    def run(in_bf16: bool) -> Tensor:
        with torch.inference_mode(), autocast(model.device, in_bf16):
            return network(images).float().cpu()

    name = network_name(model.family, (model.config, spec, network.__name__), len(images), "understand")
    return run(choose_bf16(model.device, pipeline.precision, name, run))


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
