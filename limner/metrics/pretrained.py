"""Features of published networks, from weights on this machine. Nothing here downloads."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limner.metrics.features import Features, resize
from limner.networks.imagenet import WEIGHTS, imagenet_network
from limner.networks.images.channels import with_channels
from limner.settings import LimnerError, need

Side = int | tuple[int, int]
_AVERAGE = nn.AvgPool2d(3, 1, 1, count_include_pad=False)  # the FID's network leaves padding out of its means
_MAX, _HALVING = nn.MaxPool2d(3, 1, 1), nn.MaxPool2d(3, 2)
# Kernel, stride and padding: 3x3, and lines of 3 and 7.
_SQUARE = (3, 1, 1)
_ACROSS_3, _DOWN_3 = ((1, 3), 1, (0, 1)), ((3, 1), 1, (1, 0))
_ACROSS_7, _DOWN_7 = ((1, 7), 1, (0, 3)), ((7, 1), 1, (3, 0))


def _conv(wide: int, out: int, kernel: Side = 1, stride: int = 1, padding: Side = 0) -> nn.Sequential:
    conv = nn.Conv2d(wide, out, kernel, stride, padding, bias=False)
    return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(out, eps=0.001), relu=nn.ReLU()))


class Mixed(nn.Module):
    """Branches over one input [B, wide, H, W], concatenated.

    A branch is a chain of convolutions: of each the channels out, kernel, stride and padding, or a table of several
    by the ends of their names, whose outputs are concatenated. The branch `_pool` begins with ``pool``.
    """

    def __init__(self, wide: int, pool: nn.Module, branches: Mapping[str, Any]):
        super().__init__()
        self.pool = pool
        self.chains: list[list[list[str]]] = []  # the layers of each link of each branch
        for branch, links in branches.items():
            chain, channels = [["pool"]] if branch == "_pool" else [], wide
            for i, link in enumerate(links, 1):
                name = f"branch{branch}_{i}" if len(links) > 1 else f"branch{branch}"
                ends = link if isinstance(link, dict) else {"": link}
                layers = {name + end: convolution for end, convolution in ends.items()}
                for layer, convolution in layers.items():
                    self.add_module(layer, _conv(channels, *convolution))
                chain.append(list(layers))
                channels = sum(out for out, *_ in layers.values())
            self.chains.append(chain)

    def forward(self, x: Tensor) -> Tensor:
        branches = []
        for chain in self.chains:
            h = x
            for layers in chain:
                h = torch.cat([self.get_submodule(layer)(h) for layer in layers], dim=1)
            branches.append(h)
        return torch.cat(branches, dim=1)


def _mixed_a(wide: int, pooled: int) -> Mixed:
    double = [(64,), (96, *_SQUARE), (96, *_SQUARE)]
    branches = {"1x1": [(64,)], "5x5": [(48,), (64, 5, 1, 2)], "3x3dbl": double, "_pool": [(pooled,)]}
    return Mixed(wide, _AVERAGE, branches)


def _mixed_c(wide: int, inner: int) -> Mixed:
    across, down = (inner, *_ACROSS_7), (inner, *_DOWN_7)
    once = [(inner,), across, (192, *_DOWN_7)]
    twice = [(inner,), down, across, down, (192, *_ACROSS_7)]
    return Mixed(wide, _AVERAGE, {"1x1": [(192,)], "7x7": once, "7x7dbl": twice, "_pool": [(192,)]})


def _mixed_e(wide: int, pool: nn.Module) -> Mixed:
    fork = {"a": (384, *_ACROSS_3), "b": (384, *_DOWN_3)}
    branches = {"3x3": [(384,), fork], "3x3dbl": [(448,), (384, *_SQUARE), fork]}
    return Mixed(wide, pool, {"1x1": [(320,)], **branches, "_pool": [(192,)]})


class Inception(nn.Sequential):
    """Inception v3 (Szegedy 2016) as the FID takes it: [B, 3, 299, 299] in [-1, 1] -> [B, 2048].

    The names of its weights are those of the file that pytorch-fid uses.
    """

    def __init__(self) -> None:
        halving_b = {"3x3": [(384, 3, 2)], "3x3dbl": [(64,), (96, *_SQUARE), (96, 3, 2)], "_pool": []}
        lines = [(192,), (192, *_ACROSS_7), (192, *_DOWN_7), (192, 3, 2)]
        halving_d = {"3x3": [(192,), (320, 3, 2)], "7x7x3": lines, "_pool": []}
        layers = OrderedDict(
            Conv2d_1a_3x3=_conv(3, 32, 3, 2), Conv2d_2a_3x3=_conv(32, 32, 3),
            Conv2d_2b_3x3=_conv(32, 64, *_SQUARE), pool_1=nn.MaxPool2d(3, 2),
            Conv2d_3b_1x1=_conv(64, 80), Conv2d_4a_3x3=_conv(80, 192, 3), pool_2=nn.MaxPool2d(3, 2),
            Mixed_5b=_mixed_a(192, 32), Mixed_5c=_mixed_a(256, 64), Mixed_5d=_mixed_a(288, 64),
            Mixed_6a=Mixed(288, _HALVING, halving_b), Mixed_6b=_mixed_c(768, 128), Mixed_6c=_mixed_c(768, 160),
            Mixed_6d=_mixed_c(768, 160), Mixed_6e=_mixed_c(768, 192), Mixed_7a=Mixed(768, _HALVING, halving_d),
            Mixed_7b=_mixed_e(1280, _AVERAGE), Mixed_7c=_mixed_e(2048, _MAX),
        )  # fmt: skip
        super().__init__(layers)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).mean((2, 3))  # [B, 2048]


def inception(path: str | Path) -> Features:
    """The FID's features from a safetensors file of the weights, under the names that pytorch-fid gives them.

    Raises LimnerError where the file is missing, of another kind, or does not fit.
    """
    network = Inception()
    digest = read_weights(network, path, "inception", "the weights of pytorch-fid", ("fc.", "AuxLogits."))

    def extract(image: Tensor) -> Tensor:
        image = with_channels(image, 3)
        return network(F.interpolate(image, (299, 299), mode="bilinear", align_corners=False))

    return Features("inception", digest, "bilinear to 299x299", extract, side=299)


def read_weights(
    network: nn.Module, path: str | Path, features: str, which: str, unused: tuple[str, ...] = ()
) -> str:
    """Fill a network from a safetensors file, freeze it, and return the file's digest.

    ``features`` are the name of what it computes, ``which`` the published weights that are wanted; those whose names
    begin with ``unused`` are left out. Raises LimnerError where the file is missing, of another kind, or does not fit.
    """
    from safetensors.torch import load_file

    path = Path(path)
    if not path.is_file():
        raise LimnerError(
            f"The features {features} need --weights FILE.safetensors: {which}, saved once with "
            "safetensors.torch.save_file (Limner reads no pickle and downloads nothing)."
        )
    try:
        weights = load_file(path)
    except Exception as error:
        raise LimnerError(
            f"{path} is not a safetensors file ({error}); convert it once with safetensors.torch.save_file."
        ) from None
    weights = {k: v for k, v in weights.items() if not k.startswith(unused)}
    if fault := _fault(network.state_dict(), weights):
        raise LimnerError(
            f"{path} does not hold the weights of {features} ({fault}): save {which} once more."
        )
    network.load_state_dict(weights, strict=False)
    network.eval().requires_grad_(False)
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


SMALL, SIDE = 128, 224  # pixels that images are resized to: those of up to 64, and larger ones
PART = 16  # images at a time: more take memory and no less time


def imagenet() -> Features:
    """Features [B, 432] of EfficientNet-Lite0, which was trained on ImageNet's classes.

    The maps of its last stage and of the last one at 1/16 of the side, averaged over positions: together they find
    more of the classes of real images than the 1,280 channels of the head, which are cut off at 0 and 6. The
    weights are of the package that limner[imagenet] installs. Raises LimnerError where it is not there, or is
    another one.
    """
    network = imagenet_network(torch.device("cpu"))

    def extract(image: Tensor) -> Tensor:
        side = SMALL if max(image.shape[-2:]) <= 64 else SIDE
        parts = resize(with_channels(image, 3), side, side).split(PART)
        maps = (network.maps(part.contiguous(memory_format=torch.channels_last)) for part in parts)
        return torch.cat([torch.cat([x.mean((2, 3)) for x in found[-2:]], dim=1) for found in maps])

    digest = hashlib.sha256(f"stages 5 7 {SMALL} {SIDE} {WEIGHTS}".encode()).hexdigest()[:12]
    resized = f"bicubic to {SMALL}x{SMALL}, images above 64x64 to {SIDE}x{SIDE}"
    return Features("imagenet", digest, resized, extract, side=SIDE)


def _fault(wanted: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> str:
    """What is wrong with the weights of a network, and with which; '' for nothing."""
    counts = tuple(name for name in wanted if name.endswith("num_batches_tracked"))  # of training alone
    both = [name for name in weights if name in wanted and name not in counts]
    kinds = {
        "missing": [name for name in wanted if name not in weights and name not in counts],
        "not known": [name for name in weights if name not in wanted],
        "of another shape": [name for name in both if weights[name].shape != wanted[name].shape],
        "no floating-point numbers": [name for name in both if not weights[name].is_floating_point()],
        "infinite or NaN": [name for name in both if not bool(weights[name].float().isfinite().all())],
    }
    return next((f"{kind}: {', '.join(names[:3])}" for kind, names in kinds.items() if names), "")


def clip(folder: str | Path = "") -> Features:
    """CLIP's image features (Radford 2021) through transformers, from a local folder or its cache."""
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    model = _hub(folder or "openai/clip-vit-base-patch32", "CLIPVisionModelWithProjection")
    return _of_hub("clip", model, "image_embeds", mean, std)


def dinov2(folder: str | Path = "") -> Features:
    """DINOv2's features (Oquab 2023) through transformers, from a local folder or its cache."""
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    model = _hub(folder or "facebook/dinov2-small", "Dinov2Model")
    return _of_hub("dinov2", model, "pooler_output", mean, std)


def _of_hub(name: str, model: Any, output: str, mean: Sequence[float], std: Sequence[float]) -> Features:
    """The ``output`` of a network of transformers, for images that are normalised by ``mean`` and ``std``."""
    digest = hashlib.sha256()
    for weight in model.state_dict().values():
        digest.update(weight.contiguous().numpy().tobytes())

    def extract(image: Tensor) -> Tensor:
        image = resize(with_channels(image, 3), 224, 224) / 2 + 0.5
        centre, scale = (image.new_tensor(v)[:, None, None] for v in (mean, std))
        return getattr(model((image - centre) / scale), output)

    return Features(name, digest.hexdigest()[:12], "bicubic to 224x224", extract, side=224)


def _hub(name: str | Path, kind: str) -> Any:
    """A network of transformers from files on this machine. Raises LimnerError where they are missing."""
    transformers = need("transformers", "These features need transformers", "hf")
    try:
        load = getattr(transformers, kind).from_pretrained
        model, info = load(str(name), local_files_only=True, use_safetensors=True, output_loading_info=True)
    except Exception as error:  # it raises nearly anything for files that are damaged
        raise LimnerError(
            f"The weights of {name} are not here, or cannot be read, and Limner downloads nothing: fetch them with "
            f"`huggingface-cli download {name}`, or name their folder with --weights. ({str(error)[:120]})"
        ) from None
    # What is missing it fills with random numbers, which it only mentions.
    lost = [str(key) for key in info.get("missing_keys", ()) if not str(key).endswith("position_ids")]
    lost += [str(key) for key in info.get("mismatched_keys", ())]
    floating = {key: value for key, value in model.state_dict().items() if value.is_floating_point()}
    fault = f"missing or misshapen: {', '.join(lost[:3])}" if lost else _fault(floating, floating)
    if fault:
        raise LimnerError(f"{name} does not hold the weights of a {kind} ({fault}): fetch them again.")
    return model.eval().requires_grad_(False)
