"""Whether a run has a capability, and a network of it over images of any size and channels."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from limner import families
from limner.checkpoint import Loaded
from limner.core import Classifies, Compares, Describes, Latent, LimnerError, Translates
from limner.device import autocast
from limner.inference.precision import choose_bf16, network_name
from limner.metrics.features import resize, with_channels
from limner.settings import join_words

LACKS: dict[type, str] = {  # what a run without a protocol cannot do
    Describes: "does not describe images", Classifies: "does not classify images", Latent: "has no latent space",
    Compares: "does not compare images with texts", Translates: "makes no picture from a given one",
}  # fmt: skip


def has(loaded: Loaded, protocol: type) -> bool:
    """Whether a run has the methods of a protocol, and to classify also classes that it was trained on."""
    return isinstance(loaded.model, protocol) and (protocol is not Classifies or bool(loaded.spec.classes))


def lacking(loaded: Loaded, protocol: type) -> LimnerError:
    """The error that says why a run does not support a protocol, and which do."""
    path, family = loaded.path, loaded.run.family
    able = families.supporting(protocol)
    if protocol is Classifies and isinstance(loaded.model, Compares):
        return LimnerError(f'{path} classifies by names, and none are given: add --labels "a cat,a dog".')
    if family in able:  # it needs labels
        return LimnerError(
            f"{path} was trained without labels, so it cannot classify: use a run that was trained on labelled images."
        )
    return LimnerError(
        f"{path} is a run of {family}, which {LACKS[protocol]}: use a run of {join_words(able)}."
    )


def apply_network(loaded: Loaded, network: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """What a method of the run's model makes of [B, C, H, W] of any size and channels, in float32 on the CPU."""
    model, spec = loaded.model, loaded.model.spec
    images = resize(with_channels(images, spec.channels), spec.height, spec.width).to(model.device)

    def run(in_bf16: bool) -> Tensor:
        with torch.inference_mode(), autocast(model.device, in_bf16):
            return network(images).float().cpu()

    name = network_name(model.family, (model.config, spec, network.__name__), len(images), "understand")
    return run(choose_bf16(model.device, loaded.run.training.precision, name, run))
