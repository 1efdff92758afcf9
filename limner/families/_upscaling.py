"""What families share that enlarge pictures: the network by its settings, crops of training, and how they are given."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor, nn

from limner.core import Batch, Canvas, Condition, Draws, ImageSpec, Model, given_pictures
from limner.families._degrade import degrade
from limner.fields import Bounds
from limner.networks.checks import SettingsError
from limner.networks.images.bicubic import bicubic
from limner.networks.images.channels import with_channels, within
from limner.networks.layers import at_least_float32
from limner.networks.restoration.fsrcnn import FSRCNN
from limner.networks.restoration.span import SPAN
from limner.networks.restoration.srgan import Slopes, SRResNet
from limner.settings import LimnerError


@dataclass(frozen=True)
class UpscalerConfig:
    may_be_zero: ClassVar[tuple[str, ...]] = ("width", "blocks")

    scale: Annotated[int, Bounds(2, 8)] = 4  # output pixels a side for each given one
    # the network; span is much the quickest, srresnet enlarges 2, 4 or 8 times
    network: Literal["span", "srresnet", "fsrcnn"] = "span"
    width: int = 0  # its feature maps; 0: as published, span 28 of its small form, srresnet 64, fsrcnn 56
    blocks: int = 0  # its blocks; 0: as published, span 6, srresnet 16, fsrcnn 4
    slopes: Slopes = "shared"  # srresnet: a slope for each PReLU, or for each of its channels
    base: Literal["none", "bicubic"] = "none"  # bicubic: the network adds what that lacks, and begins there
    # how given pictures are made of large ones; real: blurred, noisy and compressed besides, as Real-ESRGAN does
    degrade: Literal["bicubic", "real"] = "bicubic"
    error: Literal["absolute", "squared"] = "absolute"  # of pixels, where that alone is lowered
    crop: int = 96  # side in pixels of the crops that are trained on; smaller pictures are trained on whole

    def filled(self) -> UpscalerConfig:
        """With the published width and blocks where these are 0."""
        width, blocks = PUBLISHED[self.network]
        return replace(self, width=self.width or width, blocks=self.blocks or blocks)


PUBLISHED = {"span": (28, 6), "srresnet": (64, 16), "fsrcnn": (56, 4)}  # width and blocks of each network


class Upscaler(nn.Module):
    """[B, C, h, w] in [-1, 1] -> [B, C', scale h, scale w] about [-1, 1], by its settings, which it keeps."""

    def __init__(self, config: UpscalerConfig, inputs: int, outputs: int):
        super().__init__()
        self.config, self.outputs = config, outputs
        sizes = config.filled()
        shape, blocks = (inputs, outputs, config.scale, sizes.width), sizes.blocks
        self.body: SPAN | SRResNet | FSRCNN
        if config.network == "span":
            self.body = SPAN(*shape, blocks=blocks)
        elif config.network == "srresnet":
            self.body = SRResNet(*shape, blocks=blocks, slopes=config.slopes)
        else:
            self.body = FSRCNN(*shape, blocks=blocks)
        if config.base == "bicubic":
            for parameter in self.body.last.parameters():
                nn.init.zeros_(parameter)

    def forward(self, image: Tensor) -> Tensor:
        enlarged = at_least_float32(self.body(image))  # [B, C', scale h, scale w]
        if self.config.base == "bicubic":
            enlarged = enlarged + bicubic(with_channels(image, self.outputs), self.config.scale)
        return enlarged

    @property
    def margin(self) -> int:
        """Given pixels around a pixel that it depends on."""
        return self.body.margin

    def merged(self) -> Upscaler:
        """With single convolutions, where it trains with branches."""
        if not (isinstance(self.body, SPAN) and self.body.branched):
            return self
        plain = Upscaler.__new__(Upscaler)
        nn.Module.__init__(plain)
        plain.config, plain.outputs, plain.body = self.config, self.outputs, self.body.merged()
        return plain.train(self.training)

    def load_resized(self, other: Upscaler) -> None:
        """The weights of one that was trained on pictures of another size. Raises SettingsError for another network."""
        own_config, its = self.config.filled(), other.config.filled()
        for name in ("network", "scale", "width", "blocks", "slopes"):
            here, there = (getattr(config, name) for config in (own_config, its))
            if here != there:
                raise SettingsError(f"its {name} is {there}, not {here}")
        weights, own = other.merged().state_dict(), self.state_dict()
        if any(weights[name].shape != value.shape for name, value in own.items() if name in weights):
            raise SettingsError("its network has other channels")
        self.load_state_dict(weights)


class Upscaling(Model):
    """A family that enlarges given pictures, or those that it makes from wanted ones."""

    given_by = ("degraded", "pairs")
    factor = 1
    restores = True

    def __init__(self, config: object, spec: ImageSpec, settings: UpscalerConfig):
        super().__init__(config, spec)
        self.settings, self.scale = settings, settings.scale
        size, given = (spec.height, spec.width), spec.given
        if given and (self.scale * given.height, self.scale * given.width) != size:
            raise LimnerError(
                f"{self.family} enlarges {self.scale} times, and the given pictures of {given.height}x{given.width} "
                f"belong to ones of {size[0]}x{size[1]}: set --model.scale to the ratio of their sides."
            )
        if any(side % self.scale for side in size):
            raise LimnerError(
                f"{self.family} enlarges {self.scale} times, and sides of {size[0]}x{size[1]} are not multiples of "
                f"{self.scale}: choose another --size, or another --model.scale."
            )
        if settings.crop < self.scale:
            raise SettingsError(f"a crop of {settings.crop} pixels is smaller than the scale of {self.scale}")
        most = settings.crop // self.scale * self.scale
        self.crop_size = (min(most, spec.height), min(most, spec.width))  # of wanted pictures, in training

    @property
    def upscaler(self) -> Upscaler:
        raise NotImplementedError

    def make_upscaler(self) -> Upscaler:
        channels = (self.spec.given or self.spec).channels
        return Upscaler(self.settings, channels, self.spec.channels)

    def degrade(self, image: Tensor, draws: Draws) -> Tensor:
        """[B, C, H, W] in [-1, 1] -> [B, C, H/scale, W/scale] in [-1, 1]."""
        return degrade(image, self.settings.degrade, draws, self.scale)

    def training_pair(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Given and wanted pictures: in training crops of them, mirrored and turned; else whole, as they are."""
        given, wanted = given_pictures(self, batch), batch.image
        return random_crops(given, wanted, self.scale, self.crop_size) if self.training else (given, wanted)

    def margin(self, sampling: object) -> int:
        return self.upscaler.margin

    def translate(self, image: Tensor, condition: Condition, sampling: object, draws: Draws) -> Tensor:
        """[B, C, h, w] in [-1, 1] -> [B, C', scale h, scale w] in [-1, 1]."""
        return within(self.upscaler(image))

    @torch.no_grad()
    def sample(self, condition: Condition, sampling: object, draws: Draws) -> Iterator[Canvas]:
        assert condition.image is not None, "it draws from a given picture"
        picture = self.translate(condition.image, condition, sampling, draws)
        yield Canvas(1, 1, lambda: picture)


def random_crops(given: Tensor, wanted: Tensor, scale: int, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The same crop of both pictures of each pair, of ``size`` of the wanted one; mirrored, and turned where square.

    By torch's generator. [B, C, h, w] and [B, C', scale h, scale w] -> likewise, smaller.
    """
    height, width = size[0] // scale, size[1] // scale  # of given crops
    free = given.new_tensor([given.shape[-2] - height + 1, given.shape[-1] - width + 1], device="cpu")
    places = (torch.rand(len(given), 2) * free).long().tolist()
    turns = torch.randint(8, (len(given),)).tolist()
    crops = []
    for picture, each in ((given, 1), (wanted, scale)):
        parts = []
        for one, (top, left), turn in zip(picture, places, turns, strict=True):
            part = one[:, each * top : each * (top + height), each * left : each * (left + width)]
            flips = [axis for axis, bit in ((1, 1), (2, 2)) if turn & bit]
            part = part.flip(flips) if flips else part
            parts.append(part.mT if turn & 4 and height == width else part)
        crops.append(torch.stack(parts))
    return crops[0], crops[1]
