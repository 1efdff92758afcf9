"""Distances of images in the features of a fixed network, and which networks there are for it.

A setting names the network: ``random`` (fixed random weights), ``imagenet`` (limner[imagenet]), or a safetensors file
of VGG-16's or VGG-19's weights in torchvision's names. Nothing is downloaded, and no pickle is opened.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from limner.networks.checks import SettingsError
from limner.networks.imagenet import IMAGENET, imagenet_maps, imagenet_network, is_installed
from limner.networks.images.channels import with_channels
from limner.networks.layers import at_least_float32
from limner.networks.random_vgg import random_network
from limner.networks.vgg import DEVIATION, MEAN, VGG, Depth, layer_places
from limner.settings import LimnerError, nearest

RANDOM = "random"  # its name in settings
DEEPEST = ("relu1_2", "relu2_2", "relu3_3", "relu4_3")  # of VGG, where a loss names no layers (Johnson 2016)
EXPECTED = (
    "a safetensors file with torchvision's names, features.0.weight to features.28.weight (VGG-16) or "
    "features.34.weight (VGG-19) and their biases, for RGB in [0, 1] less the mean "
    f"({', '.join(map(str, MEAN))}) over the deviation ({', '.join(map(str, DEVIATION))}), not BGR in [0, 255]"
)


def default_network() -> str:
    """``imagenet`` where its package is installed, else ``random``."""
    return IMAGENET if is_installed() else RANDOM


def is_vgg(network: str) -> bool:
    """Whether a setting names a file of VGG's weights."""
    return network not in (RANDOM, IMAGENET)


def network_title(network: str) -> str:
    """What figures call the network that a setting names: imagenet, random, VGG-16 or VGG-19."""
    return network if not is_vgg(network) else f"VGG-{_depth(network, _names(network))}"


def check_network(network: str, layers: Sequence[str] = ()) -> None:
    """Raises LimnerError, before training, for a network that is not here or has not the layers."""
    feature_network(network, tuple(layers), torch.device("cpu"))


def feature_maps(network: str, image: Tensor, layers: Sequence[str] = ()) -> list[Tensor]:
    """Feature maps [B, C', h, w] of images [B, C, H, W] in [-1, 1]: of VGG's ``layers``, else of all stages.

    Layers are named as relu1_2 (after the ReLU) or conv5_4 (before it). The other networks have stages of their own,
    fine to coarse: random three (sides of 1, 1/2 and 1/4), imagenet as ``imagenet_maps``. Raises LimnerError.
    """
    if network == IMAGENET:
        return imagenet_maps(image)
    return feature_network(network, tuple(layers), image.device)(with_channels(image, 3))


def feature_network(network: str, layers: tuple[str, ...], device: torch.device) -> torch.nn.Module:
    """The frozen network that a setting names, kept for the process. Raises LimnerError."""
    if network == IMAGENET:
        return imagenet_network(device)
    if network == RANDOM:
        return random_network(device)
    return _load_vgg(network, layers or DEEPEST, device)


def perceptual_distance(one: Sequence[Tensor], other: Sequence[Tensor], eps: float = 1e-8) -> Tensor:
    """Feature maps [B, C, H, W] of several layers, of two images each -> distances [B].

    The squared difference of vectors normalised to length 1, summed over channels, averaged over positions, summed
    over layers (Zhang 2018, LPIPS, eq. 1, with all channel weights 1).
    """
    distances = []
    for a, b in zip(one, other, strict=True):
        a, b = (x / (x.square().sum(1, keepdim=True) + eps).sqrt() for x in map(at_least_float32, (a, b)))
        distances.append((a - b).square().sum(1).mean((1, 2)))  # [B]
    return torch.stack(distances).sum(0)


def feature_error(one: Sequence[Tensor], other: Sequence[Tensor], scale: float = 1.0) -> Tensor:
    """The mean squared difference of feature maps times ``scale``, summed over layers: a scalar.

    Ledig 2017, eq. 5, whose scale is 1 / 12.75; Johnson 2016, eq. 2, whose scale is 1.
    """
    return torch.stack([(scale * (a - b)).square().mean() for a, b in zip(one, other, strict=True)]).sum()


@functools.cache
def _load_vgg(path: str, layers: tuple[str, ...], device: torch.device) -> VGG:
    names = _names(path)
    depth = _depth(path, names)
    try:
        with torch.device("meta"):
            network = VGG(depth, layers)
    except SettingsError as error:
        raise LimnerError(f"{path} cannot be used here, for {error}: name {EXPECTED}.") from None
    wanted = network.state_dict()
    if missing := [name for name in wanted if name not in names]:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise LimnerError(f"{path} lacks {', '.join(missing[:3])}{more} of VGG-{depth}: name {EXPECTED}.")
    with torch.inference_mode(False), safe_open(path, "pt") as file:
        weights = {name: file.get_tensor(name).float() for name in wanted}
    for name, weight in weights.items():
        if weight.shape != wanted[name].shape:
            found, right = ("x".join(map(str, tensor.shape)) for tensor in (weight, wanted[name]))
            raise LimnerError(f"{path} has {name} of {found}, not {right} as VGG-{depth}: name {EXPECTED}.")
        if not weight.isfinite().all():
            raise LimnerError(f"{path} has infinite values or NaN in {name}: name {EXPECTED}.")
    with torch.device("cpu"), torch.inference_mode(False):
        network = VGG(depth, layers)
        network.load_state_dict(weights)
        return network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def _depth(path: str, names: Sequence[str]) -> Depth:
    """16 or 19, by the names of a file's weights: at 16, VGG-16 has its third pooling, and VGG-19 a convolution."""
    own = f"features.{layer_places(19)['conv3_4']}.weight"
    return 19 if own in names else 16


def _names(path: str) -> list[str]:
    """The names of the weights in a file. Raises LimnerError for what is no safetensors file."""
    if not Path(path).is_file():
        hint = nearest(path, (RANDOM, IMAGENET))
        raise LimnerError(
            f"The network of features {path} is no file: name {RANDOM}, {IMAGENET} or {EXPECTED}.{hint}"
        )
    try:
        with open(path, "rb") as file:
            begins = file.read(4)
        if begins[:2] == b"PK" or begins[:1] == b"\x80":
            raise LimnerError(
                f"{path} is a pickle, which may run any code, so it is not opened: name {EXPECTED}."
            )
        with safe_open(path, "pt") as content:
            return list(content.keys())
    except OSError as error:
        raise LimnerError(f"{path} cannot be read ({error.strerror or error}): name {EXPECTED}.") from None
    except SafetensorError:
        raise LimnerError(f"{path} is no whole safetensors file: name {EXPECTED}.") from None
