"""The two transformers of CLIP (Radford 2021): over the patches of an image, and over a text, causal."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from limner.networks.attention import sincos
from limner.networks.checks import SettingsError
from limner.networks.transformers.patch import PatchConfig, patch_size
from limner.networks.transformers.sequence import SequenceBlocks, Transformer


@dataclass(frozen=True)
class Patches:
    """How an image becomes tokens."""

    may_be_zero: ClassVar[tuple[str, ...]] = ("patch",)

    patch: int = 0  # pixels a side of a patch; 0: from across
    across: int = 4  # about how many patches along the shorter side, where patch is 0
    # halve: a 3x3 convolution of stride 2 for each factor 2 of its side (Xiao 2021);
    # fold: one convolution (Radford 2021)
    embed: Literal["halve", "fold"] = "halve"

    def convolutions(self, channels: int, width: int, patch: int) -> nn.Module:
        """[B, channels, H, W] -> [B, width, H / patch, W / patch]."""
        halves: list[nn.Module] = []
        while self.embed == "halve" and patch % 2 == 0:
            patch //= 2
            wide = max(width // patch, 16)
            halves += [nn.Conv2d(channels, wide, 3, stride=2, padding=1), nn.GroupNorm(1, wide), nn.GELU()]
            channels = wide
        last = nn.Conv2d(channels, width, patch, stride=patch, bias=False)
        return nn.Sequential(*halves, last) if halves else last


class ImageTower(nn.Module):
    """Image [B, C, H, W] -> [B, embedding], a projection of the class token.

    Raises SettingsError for sizes that do not divide.
    """

    def __init__(
        self, blocks: SequenceBlocks, patches: Patches, channels: int, size: tuple[int, int], embedding: int
    ):  # fmt: skip
        super().__init__()
        width, patch = blocks.width, patch_size(PatchConfig(patches.patch, patches.across), size)
        grid = (size[0] // patch, size[1] // patch)
        positions = 1 + grid[0] * grid[1]
        if patches.embed == "halve" and width % 4:
            raise SettingsError(f"a width of {width} is not a multiple of 4")
        self.patch_embed = patches.convolutions(channels, width, patch)
        self.class_token = nn.Parameter(width**-0.5 * torch.randn(width))
        self.position = nn.Parameter(width**-0.5 * torch.randn(positions, width))
        if patches.embed == "halve":  # from noise a small network takes long to learn where things are
            self.position.data[1:] = sincos(width, grid, self.position.device)
        self.norm_before, self.norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.body = init_published(Transformer(blocks))
        self.projection = projection(width, embedding)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patch_embed(image).flatten(2).transpose(1, 2)  # [B, h w, W]
        x = torch.cat([self.class_token.expand(len(x), 1, -1), x], dim=1) + self.position  # [B, 1 + h w, W]
        x = self.body(self.norm_before(x))  # [B, 1 + h w, W]
        return self.projection(self.norm(x[:, 0]))  # [B, embedding]


class CausalTower(nn.Module):
    """Ids [B, L] of ``pieces`` pieces, L up to ``length`` -> tokens [B, L, W], each of itself and those before it."""

    def __init__(self, blocks: SequenceBlocks, pieces: int, length: int):
        super().__init__()
        self.embedding = nn.Embedding(pieces, blocks.width)
        self.position = nn.Parameter(0.01 * torch.randn(length, blocks.width))
        self.body = init_published(Transformer(blocks))
        self.norm = nn.LayerNorm(blocks.width)
        nn.init.normal_(self.embedding.weight, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        length = ids.shape[1]
        mask = torch.ones(length, length, dtype=torch.bool, device=ids.device).tril()  # [L, L]
        return self.norm(self.body(self.embedding(ids) + self.position[:length], mask))  # [B, L, W]


def projection(width: int, embedding: int) -> nn.Linear:
    """From a tower into the common space."""
    linear = nn.Linear(width, embedding, bias=False)
    nn.init.normal_(linear.weight, std=width**-0.5)
    return linear


def init_published(body: Transformer) -> Transformer:
    """The weights of OpenAI's code: normal, by width, and smaller in what a block adds, by the depth."""
    c = body.config
    deviation = {
        "up": (2 * c.width) ** -0.5, "out": (2 * c.depth * c.width) ** -0.5,
        "down": (2 * c.depth * c.width) ** -0.5,
    }  # fmt: skip
    for name, part in body.named_modules():
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=deviation.get(name.rpartition(".")[2], c.width**-0.5))
    return body
