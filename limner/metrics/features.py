"""What images are compared by: networks that turn an image into a vector. Nothing here downloads."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limner.core import Describes, Model
from limner.settings import LimnerError, nearest

NAMES = ("random", "inception", "clip", "dinov2")


@dataclass(frozen=True)
class Features:
    """A way to describe images, with what a figure must say of it."""

    name: str
    hash: str  # of weights or recipe: figures of one hash may be compared
    resize: str  # what happens to an image's size first
    describe: Callable[[Tensor], Tensor]  # [B, C, H, W] in [-1, 1] -> [B, D]

    def of(self, batches: Iterable[Tensor], watch: Callable[[int], None] | None = None) -> Tensor:
        """Batches [B, C, H, W] -> float32 [N, D]; ``watch`` is told how many are done."""
        found, done = [], 0
        with torch.inference_mode():
            for batch in batches:
                found.append(self.describe(batch).float().cpu())
                done += len(batch)
                if watch:
                    watch(done)
        return torch.cat(found)


def find(name: str, folder: str | Path = "") -> Features:
    """The features of a name; ``folder`` holds their weights where they need any. Raises LimnerError."""
    if name == "random":
        return random_vgg()
    if name in ("inception", "clip", "dinov2"):
        from limner.metrics import pretrained

        return getattr(pretrained, name)(folder)
    raise LimnerError(
        f"There are no features {name!r}: name {', '.join(NAMES)}, or a run.{nearest(name, NAMES)}"
    )


def of_model(model: Model, name: str, digest: str) -> Features:
    """The features of a model that describes images of its own size and channels."""
    if not isinstance(model, Describes):
        family = type(model).__module__.rpartition(".")[2]
        raise LimnerError(f"{name} is a run of {family}, which does not describe images: name another run.")
    spec = model.spec

    def describe(image: Tensor) -> Tensor:
        image = with_channels(image, spec.channels)
        return model.features(resize(image, spec.height, spec.width).to(model.device))

    return Features(name, digest[:12], f"bicubic to {spec.height}x{spec.width}", describe)


def resize(image: Tensor, height: int, width: int) -> Tensor:
    """[B, C, H, W] -> [B, C, height, width], bicubic with antialiasing; the same tensor where nothing changes."""
    if image.shape[-2:] == (height, width):
        return image
    return F.interpolate(image, (height, width), mode="bicubic", antialias=True, align_corners=False)


def with_channels(image: Tensor, channels: int) -> Tensor:
    """Grey, RGB or premultiplied RGBA as any other of them; RGBA is laid over white where alpha goes."""
    have = image.shape[1]
    if have == channels:
        return image
    if have == 4:  # in [-1, 1]: colour + (1 - alpha) white, each taken to [0, 1] and back
        image = image[:, :3] + (1 - image[:, 3:])
    if have == 1 and channels >= 3:
        image = image.expand(-1, 3, -1, -1)
    if channels == 1:
        weights = image.new_tensor([0.299, 0.587, 0.114])[:, None, None]
        image = (image * weights).sum(1, keepdim=True)
    if channels == 4:
        image = torch.cat([image, torch.ones_like(image[:, :1])], dim=1)
    return image


# A random network ---------------------------------------------------------------------------------------

STAGES = (
    (32, 32),
    (64, 64),
    (128, 128),
    (128, 128),
)  # channels of a stage's convolutions; each ends in a pooling
WIDTH = 64


class RandomVGG(nn.Module):
    """VGG with weights drawn once for all: [B, 3, S, S] in [-1, 1] -> [B, 64] (after Naeem 2020, "R64").

    Naeem found such features to rank generators well where ImageNet's do not fit. Each convolution is drawn
    orthogonal from a fixed seed, and scaled and shifted so that each channel has mean 0 and variance 1 on fixed
    pictures of leaves: deep random networks otherwise describe everything alike. What the four stages see, in
    quarters of the image, is projected to 64 numbers.
    """

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(64)
        self.stages = nn.ModuleList()
        self.projection: Tensor
        channels = 3
        for widths in STAGES:
            convolutions = nn.Sequential()
            for width in widths:
                convolution = nn.Conv2d(channels, width, 3, padding=1)
                nn.init.orthogonal_(convolution.weight, generator=generator)
                convolution.bias.data.zero_()  # type: ignore[union-attr]
                convolutions.append(convolution)
                channels = width
            self.stages.append(convolutions)
        size = 4 * sum(widths[-1] for widths in STAGES)
        projection = torch.randn(size, WIDTH, generator=generator) / size**0.5
        self.register_buffer("projection", projection)
        self.requires_grad_(False).eval()
        self.describe(leaves(64, generator), calibrate=True)

    @torch.no_grad()
    def describe(self, x: Tensor, calibrate: bool = False) -> Tensor:
        seen = []
        for stage in self.stages:
            for convolution in stage.children():
                x = convolution(x)
                if calibrate:
                    mean, std = x.mean((0, 2, 3)), x.std((0, 2, 3)).clamp(min=1e-6)
                    assert isinstance(convolution, nn.Conv2d) and convolution.bias is not None
                    convolution.weight.div_(std[:, None, None, None])
                    convolution.bias.sub_(mean).div_(std)
                    x = (x - mean[:, None, None]) / std[:, None, None]
                x = F.relu(x)
            seen.append(F.adaptive_avg_pool2d(x, 2).flatten(1))  # [B, 4C]
            x = F.max_pool2d(x, 2)
        return torch.cat(seen, dim=1) @ self.projection * 10  # [B, 64]


def leaves(n: int, generator: torch.Generator, side: int = 32) -> Tensor:
    """[n, 3, side, side] in [-1, 1]: flat discs of all sizes over one another, as statistics of photographs have it.

    Drawn from the generator alone (dead leaves; Ruderman 1997).
    """
    grid = (torch.arange(side) + 0.5) / side
    pictures = torch.zeros(n, 3, side, side)
    for _ in range(60):
        x, y, size = torch.rand(3, n, 1, 1, generator=generator)
        radius = 0.05 / (0.06 + size)
        colour = torch.rand(n, 3, 1, 1, generator=generator) * 2 - 1
        inside = ((grid[None, None, :] - x) ** 2 + (grid[None, :, None] - y) ** 2 < radius**2)[:, None]
        pictures = torch.where(inside, colour, pictures)
    return pictures


def random_vgg() -> Features:
    """The default features: nothing to download, the same everywhere."""
    network = RandomVGG().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    recipe = f"RandomVGG 1 {STAGES} {WIDTH}"

    def describe(image: Tensor) -> Tensor:
        side = 32 if max(image.shape[-2:]) <= 32 else 64
        image = resize(with_channels(image, 3), side, side)
        return network.describe(image.contiguous(memory_format=torch.channels_last))

    digest = hashlib.sha256(recipe.encode()).hexdigest()[:12]
    return Features("random", digest, "bicubic to 32x32, images above that to 64x64", describe)
