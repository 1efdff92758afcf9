"""Fast style transfer: one network call paints a picture in one of several styles, or in a blend of them.

Johnson 2016, "Perceptual Losses for Real-Time Style Transfer", with instance norm (Ulyanov 2016); a gain and a shift
for each style (Dumoulin 2017, "A Learned Representation for Artistic Style").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import PurePath
from typing import Annotated, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from limner.core import Batch, Condition, Draws, ImageSpec, Model, Objective, Preset, given_pictures
from limner.families._presets import training
from limner.families._restyle import (
    FeatureOptions,
    check_features,
    check_size,
    colours,
    maps_of,
    painted,
    to_bytes,
)
from limner.fields import Bounds, Checked, Share, join_words, nearest
from limner.losses.style import content_loss, gram_loss, gram_matrix, total_variation
from limner.networks.images.channels import with_channels
from limner.networks.images.patterns import PATTERNS, draw_pattern
from limner.networks.restyle import StyleNetwork
from limner.settings import LimnerError, Optimiser

LAYERS = ("relu1_2", "relu2_2", "relu3_3", "relu4_3")  # of a VGG


@dataclass(frozen=True)
class StyleConfig(FeatureOptions):
    # pictures to learn styles from, separated by commas: files, or mosaic and waves, which Limner draws
    styles: str = "mosaic,waves"
    style_size: int = 256  # pixels a side to which style pictures are scaled and cropped
    style: float = 4.0  # weight of the style loss
    variation: float = 0.0  # weight of the total variation a pixel
    width: int = 32  # feature maps at full size; doubled at each of two halvings
    blocks: int = 5  # residual blocks
    kernel: Annotated[int, Bounds(1, 15)] = 9  # of the first and the last convolution


@dataclass(frozen=True)
class StyleSampling(Checked):
    style: str = ""  # a style by its name, or a blend such as waves:0.7,mosaic:0.3; default: the first
    strength: Share = 1.0  # share of the painted picture in the result; 0: the given picture

    def fit(self, model: Style) -> StyleSampling:
        shares_of(self.style, model.names)
        return self


def names_of(styles: str) -> list[str]:
    """The styles' names: the names of their files without the extension. Raises LimnerError for two equal ones."""
    names = [PurePath(file.strip()).stem for file in styles.split(",") if file.strip()]
    if not names:
        raise LimnerError("style has no styles: name pictures with --model.styles waves.jpg,mosaic.png.")
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise LimnerError(f"Two styles of --model.styles are named {twice}: rename one of the files.")
    return names


def shares_of(style: str, names: Sequence[str]) -> list[float]:
    """The share of each style in ``style``, as StyleSampling has it; their sum is 1. Raises LimnerError."""
    shares = dict.fromkeys(names, 0.0)
    for part in filter(None, map(str.strip, (style or names[0]).split(","))):
        name, _, share = (part, "", "1") if part in shares else part.rpartition(":")
        if name not in shares:
            hint = nearest(name or part, names) or f" There are {join_words(names, 'and')}."
            raise LimnerError(f"The run has no style {name or part!r}.{hint}")
        try:
            shares[name] += float(share)
        except ValueError:
            raise LimnerError(
                f"The share {share!r} of the style {name} is not a number: write {name}:0.7."
            ) from None
    total = sum(shares.values())
    if not 0 < total < float("inf") or min(shares.values()) < 0:
        raise LimnerError(f"The shares of --style {style} are not positive numbers: write {names[0]}:1.")
    return [share / total for share in shares.values()]


class Style(Model):
    """Trained on photographs alone; the style pictures lie in a buffer, so a run does without their files."""

    Config = StyleConfig
    Sampling = StyleSampling
    given_by = ("degraded",)
    averaged = ("network",)
    paper = "Johnson 2016, Perceptual Losses for Real-Time Style Transfer; Dumoulin 2017, A Learned Representation"
    about = "paints a picture in a learnt style, in one call; blends of styles"

    scale: ClassVar[int] = 1
    factor: ClassVar[int] = 4
    pictures: Tensor  # uint8 [S, 3, side, side]

    def __init__(self, config: StyleConfig, spec: ImageSpec):
        super().__init__(config, spec)
        check_size("style", spec)
        self.names = names_of(config.styles)
        self.network = StyleNetwork(
            colours(spec), len(self.names), config.width, config.blocks, config.kernel
        )
        side = config.style_size
        self.register_buffer("pictures", torch.zeros(len(self.names), 3, side, side, dtype=torch.uint8))
        for picture, file in zip(self.pictures, self.files, strict=True):
            if file in PATTERNS and not picture.is_meta:
                picture.copy_(to_bytes(draw_pattern(file, side)))
        # of which state of the pictures, and the targets of the losses
        self.targets: tuple[object, list[Tensor]] = None, []

    @property
    def files(self) -> list[str]:
        return [file.strip() for file in self.config.styles.split(",") if file.strip()]

    @property
    def picture_files(self) -> dict[str, ImageSpec]:
        """The style pictures that are files, and as what each is read."""
        side = self.config.style_size
        return {file: ImageSpec(3, side, side) for file in self.files if file not in PATTERNS}

    def learn_pictures(self, pictures: Mapping[str, Tensor]) -> None:
        for own, file in zip(self.pictures, self.files, strict=True):
            if file in pictures:
                own.copy_(to_bytes(pictures[file][0]))

    def objectives(self) -> list[Objective]:
        check_features(self.config, LAYERS)
        return [Objective("network", self.loss)]

    def degrade(self, image: Tensor, draws: Draws) -> Tensor:
        """The picture itself is given."""
        return image

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Each picture of the batch is painted in a style of its own (Johnson 2016, eq. 5; Dumoulin 2017)."""
        c, features = self.config, partial(maps_of, self.config, layers=LAYERS)
        image = with_channels(given_pictures(self, batch), colours(self.spec))
        style = torch.randint(len(self.names), (len(image),), device=image.device)
        made = self.network(uneven(image), F.one_hot(style, len(self.names)).to(image.dtype))  # [B, C, H, W]
        maps = features(made)
        with torch.no_grad():
            content = features(image)[c.content_map]
            targets = [gram[style] for gram in self.style_grams()]
        terms = {
            "content": c.content * content_loss(maps[c.content_map], content, c.relative),
            "style": c.style * gram_loss([gram_matrix(x) for x in maps], targets, c.relative),
        }
        if c.variation:
            terms["variation"] = c.variation * total_variation(made) / made[0, 0].numel()
        return terms

    @torch.no_grad()
    def style_grams(self) -> list[Tensor]:
        """[S, C, C] for each feature map: of the style pictures, kept until these change."""
        state = (self.pictures.data_ptr(), self.pictures._version)
        if self.targets[0] != state:
            grams = [
                [gram_matrix(x) for x in maps_of(self.config, self.seen(picture[None]), LAYERS)]
                for picture in self.pictures
            ]
            self.targets = state, [torch.cat(of_map) for of_map in zip(*grams, strict=True)]
        return self.targets[1]

    def seen(self, pictures: Tensor) -> Tensor:
        """uint8 [S, 3, h, w] -> [S, C, h, w] in [-1, 1], in the channels that the network paints."""
        return with_channels(pictures / 127.5 - 1, colours(self.spec))

    def margin(self, sampling: StyleSampling) -> int:
        return self.network.margin

    @torch.no_grad()
    def translate(self, image: Tensor, condition: Condition, sampling: StyleSampling, draws: Draws) -> Tensor:
        shares = image.new_tensor(shares_of(sampling.style, self.names)).expand(len(image), -1)  # [B, S]
        return painted(image, lambda x: self.network(x, shares), sampling.strength)


def uneven(image: Tensor) -> Tensor:
    """[B, C, H, W] with noise of a grey level on pictures of one colour: norms of those have no finite slope."""
    flat = image.flatten(1).std(1) < 1 / 255
    return image + flat[:, None, None, None] * torch.randn_like(image) / 127.5


MUON = Optimiser("muon", lr=2e-3, matrix_lr=0.01)
JOHNSON = Optimiser("adam", lr=1e-3, betas=(0.9, 0.999))
Style.presets = {
    "tiny": Preset(
        StyleConfig(perceptual_network="random", style_size=32, width=4, blocks=1, kernel=3),
        training(Optimiser("adam", lr=2e-3), "network", batch=8, average=100.0),
    ),
    "small": Preset(
        StyleConfig(width=16, kernel=5), training(MUON, "network", batch=4, average=1_000.0)
    ),
    "base": Preset(StyleConfig(), training(MUON, "network", batch=8, average=10_000.0), size=(256, 256)),
    # With the weights of pytorch/examples, for VGG-16's features on [0, 1] standardised as torchvision does.
    "paper": Preset(
        StyleConfig(
            perceptual_network="vgg16.safetensors", styles="mosaic", content=1e5, style=1e10, relative=False
        ),
        training(JOHNSON, "network", batch=4, schedule="constant", average=0.0),
        size=(256, 256), channels=3, parameters={"network": 1_679_235},
    ),
}  # fmt: skip
