"""Features of published networks, from weights on this machine. Nothing here downloads."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limner.metrics.features import Features, resize, with_channels
from limner.settings import LimnerError

Side = int | tuple[int, int]


def _conv(wide: int, out: int, kernel: Side = 1, stride: int = 1, padding: Side = 0) -> nn.Sequential:
    """Convolution, batch norm and ReLU, under the names conv and bn."""
    block = nn.Sequential()
    block.add_module("conv", nn.Conv2d(wide, out, kernel, stride, padding, bias=False))
    block.add_module("bn", nn.BatchNorm2d(out, eps=0.001))
    block.add_module("relu", nn.ReLU())
    return block


class Mixed(nn.Module):
    """Branches over one input, concatenated. A branch is a chain of names; a tuple ends it in several outputs."""

    def __init__(self, chains: Sequence[Sequence[Any]], convolutions: Mapping[str, nn.Module], pool: str):
        super().__init__()
        self.chains, self.pool = chains, pool
        for name, convolution in convolutions.items():
            self.add_module(name, convolution)

    def forward(self, x: Tensor) -> Tensor:
        branches = []
        for chain in self.chains:
            h = x
            for link in chain:
                if isinstance(link, tuple):
                    h = torch.cat([self.get_submodule(name)(h) for name in link], dim=1)
                elif link == "pool":
                    h = self._pooled(h)
                else:
                    h = self.get_submodule(link)(h)
            branches.append(h)
        return torch.cat(branches, dim=1)

    def _pooled(self, x: Tensor) -> Tensor:
        if self.pool == "average":  # the FID's network leaves padding out of its means
            return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        return F.max_pool2d(x, 3, 1, 1) if self.pool == "max" else F.max_pool2d(x, 3, 2)


def _mixed_a(wide: int, pooled: int) -> Mixed:
    parts = {
        "branch1x1": _conv(wide, 64),
        "branch5x5_1": _conv(wide, 48), "branch5x5_2": _conv(48, 64, 5, 1, 2),
        "branch3x3dbl_1": _conv(wide, 64), "branch3x3dbl_2": _conv(64, 96, 3, 1, 1),
        "branch3x3dbl_3": _conv(96, 96, 3, 1, 1), "branch_pool": _conv(wide, pooled),
    }  # fmt: skip
    chains: list[list[Any]] = [
        ["branch1x1"],
        ["branch5x5_1", "branch5x5_2"],
        ["branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"],
        ["pool", "branch_pool"],
    ]
    return Mixed(chains, parts, "average")


def _mixed_b(wide: int) -> Mixed:
    parts = {
        "branch3x3": _conv(wide, 384, 3, 2), "branch3x3dbl_1": _conv(wide, 64),
        "branch3x3dbl_2": _conv(64, 96, 3, 1, 1), "branch3x3dbl_3": _conv(96, 96, 3, 2),
    }  # fmt: skip
    return Mixed(
        [["branch3x3"], ["branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"], ["pool"]], parts, "halving"
    )


def _mixed_c(wide: int, inner: int) -> Mixed:
    across, down = ((1, 7), 1, (0, 3)), ((7, 1), 1, (3, 0))
    parts = {
        "branch1x1": _conv(wide, 192),
        "branch7x7_1": _conv(wide, inner), "branch7x7_2": _conv(inner, inner, *across),
        "branch7x7_3": _conv(inner, 192, *down),
        "branch7x7dbl_1": _conv(wide, inner), "branch7x7dbl_2": _conv(inner, inner, *down),
        "branch7x7dbl_3": _conv(inner, inner, *across), "branch7x7dbl_4": _conv(inner, inner, *down),
        "branch7x7dbl_5": _conv(inner, 192, *across), "branch_pool": _conv(wide, 192),
    }  # fmt: skip
    chains: list[list[Any]] = [
        ["branch1x1"],
        [f"branch7x7_{i}" for i in (1, 2, 3)],
        [f"branch7x7dbl_{i}" for i in (1, 2, 3, 4, 5)],
        ["pool", "branch_pool"],
    ]
    return Mixed(chains, parts, "average")


def _mixed_d(wide: int) -> Mixed:
    parts = {
        "branch3x3_1": _conv(wide, 192), "branch3x3_2": _conv(192, 320, 3, 2),
        "branch7x7x3_1": _conv(wide, 192), "branch7x7x3_2": _conv(192, 192, (1, 7), 1, (0, 3)),
        "branch7x7x3_3": _conv(192, 192, (7, 1), 1, (3, 0)), "branch7x7x3_4": _conv(192, 192, 3, 2),
    }  # fmt: skip
    chains = [["branch3x3_1", "branch3x3_2"], [f"branch7x7x3_{i}" for i in (1, 2, 3, 4)], ["pool"]]
    return Mixed(chains, parts, "halving")


def _mixed_e(wide: int, pool: str) -> Mixed:
    across, down = ((1, 3), 1, (0, 1)), ((3, 1), 1, (1, 0))
    parts = {
        "branch1x1": _conv(wide, 320), "branch3x3_1": _conv(wide, 384),
        "branch3x3_2a": _conv(384, 384, *across), "branch3x3_2b": _conv(384, 384, *down),
        "branch3x3dbl_1": _conv(wide, 448), "branch3x3dbl_2": _conv(448, 384, 3, 1, 1),
        "branch3x3dbl_3a": _conv(384, 384, *across), "branch3x3dbl_3b": _conv(384, 384, *down),
        "branch_pool": _conv(wide, 192),
    }  # fmt: skip
    chains: list[list[Any]] = [
        ["branch1x1"],
        ["branch3x3_1", ("branch3x3_2a", "branch3x3_2b")],
        ["branch3x3dbl_1", "branch3x3dbl_2", ("branch3x3dbl_3a", "branch3x3dbl_3b")],
        ["pool", "branch_pool"],
    ]
    return Mixed(chains, parts, pool)


class Inception(nn.Module):
    """Inception v3 (Szegedy 2016) as the FID takes it: [B, 3, 299, 299] in [-1, 1] -> [B, 2048].

    The names of its weights are those of the file that pytorch-fid uses.
    """

    def __init__(self) -> None:
        super().__init__()
        layers: dict[str, nn.Module] = {
            "Conv2d_1a_3x3": _conv(3, 32, 3, 2), "Conv2d_2a_3x3": _conv(32, 32, 3),
            "Conv2d_2b_3x3": _conv(32, 64, 3, 1, 1), "pool_1": nn.MaxPool2d(3, 2),
            "Conv2d_3b_1x1": _conv(64, 80), "Conv2d_4a_3x3": _conv(80, 192, 3), "pool_2": nn.MaxPool2d(3, 2),
            "Mixed_5b": _mixed_a(192, 32), "Mixed_5c": _mixed_a(256, 64), "Mixed_5d": _mixed_a(288, 64),
            "Mixed_6a": _mixed_b(288), "Mixed_6b": _mixed_c(768, 128), "Mixed_6c": _mixed_c(768, 160),
            "Mixed_6d": _mixed_c(768, 160), "Mixed_6e": _mixed_c(768, 192), "Mixed_7a": _mixed_d(768),
            "Mixed_7b": _mixed_e(1280, "average"), "Mixed_7c": _mixed_e(2048, "max"),
        }  # fmt: skip
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.children():
            x = layer(x)
        return x.mean((2, 3))  # [B, 2048]


def inception(path: str | Path) -> Features:
    """The FID's features from a safetensors file of the weights, under the names that pytorch-fid gives them.

    Raises LimnerError where the file is missing, of another kind, or does not fit.
    """
    from safetensors.torch import load_file

    path = Path(path)
    if not path.is_file():
        raise LimnerError(
            "The features inception need --weights FILE.safetensors: the weights of pytorch-fid, saved once with "
            "safetensors.torch.save_file (Limner reads no pickle and downloads nothing)."
        )
    try:
        weights = load_file(path)
    except Exception as error:
        raise LimnerError(
            f"{path} is not a safetensors file ({error}); convert it once with safetensors.torch.save_file."
        ) from None
    network = Inception()
    weights = {k: v for k, v in weights.items() if not k.startswith(("fc.", "AuxLogits."))}
    missing = network.load_state_dict(weights, strict=False)
    lost = [k for k in missing.missing_keys if not k.endswith("num_batches_tracked")]
    if lost or missing.unexpected_keys:
        raise LimnerError(
            f"{path} does not hold Inception's weights: missing {lost[:3]}, not known {missing.unexpected_keys[:3]}."
        )
    network.eval().requires_grad_(False)

    def extract(image: Tensor) -> Tensor:
        image = with_channels(image, 3)
        return network(F.interpolate(image, (299, 299), mode="bilinear", align_corners=False))

    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    return Features("inception", digest, "bilinear to 299x299", extract)


def clip(folder: str | Path = "") -> Features:
    """CLIP's image features (Radford 2021) through transformers, from a local folder or its cache."""
    model, digest = _hub(folder or "openai/clip-vit-base-patch32", "CLIPVisionModelWithProjection")
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    return Features(
        "clip", digest, "bicubic to 224x224", _normalised(lambda x: model(x).image_embeds, mean, std)
    )


def dinov2(folder: str | Path = "") -> Features:
    """DINOv2's features (Oquab 2023) through transformers, from a local folder or its cache."""
    model, digest = _hub(folder or "facebook/dinov2-small", "Dinov2Model")
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    return Features(
        "dinov2", digest, "bicubic to 224x224", _normalised(lambda x: model(x).pooler_output, mean, std)
    )


def _normalised(network: Any, mean: tuple[float, ...], std: tuple[float, ...]) -> Any:
    def extract(image: Tensor) -> Tensor:
        image = resize(with_channels(image, 3), 224, 224) / 2 + 0.5
        centre, scale = (image.new_tensor(v)[:, None, None] for v in (mean, std))
        return network((image - centre) / scale)

    return extract


def _hub(name: str | Path, kind: str) -> tuple[Any, str]:
    try:
        import transformers
    except ImportError:
        raise LimnerError("These features need transformers: pip install 'limner[hf]'.") from None
    try:
        model = getattr(transformers, kind).from_pretrained(
            str(name), local_files_only=True, use_safetensors=True
        )
    except (OSError, ValueError) as error:
        raise LimnerError(
            f"The weights of {name} are not here, and Limner downloads nothing: fetch them with "
            f"`huggingface-cli download {name}`, or name their folder with --weights. ({str(error)[:120]})"
        ) from None
    model.eval().requires_grad_(False)
    digest = hashlib.sha256()
    for weight in model.state_dict().values():
        digest.update(weight.contiguous().numpy().tobytes())
    return model, digest.hexdigest()[:12]
