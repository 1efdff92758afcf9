"""The two transformers of CLIP (Radford 2021): over the patches of an image, and over a text, causal."""

import torch
from torch import Tensor, nn

from limner.networks.transformers.patch import PatchConfig, patch_size
from limner.networks.transformers.sequence import SequenceBlocks, Transformer


class ImageTower(nn.Module):
    """Image [B, C, H, W] -> [B, embedding], a projection of the class token.

    ``patch`` and ``across`` are as in PatchConfig. Raises SettingsError for sizes that do not divide.
    """

    def __init__(
        self, blocks: SequenceBlocks, channels: int, size: tuple[int, int], embedding: int, patch: int, across: int
    ):  # fmt: skip
        super().__init__()
        width, patch = blocks.width, patch_size(PatchConfig(patch, across), size)
        places = 1 + (size[0] // patch) * (size[1] // patch)
        self.patch_embed = nn.Conv2d(channels, width, patch, stride=patch, bias=False)
        self.class_token = nn.Parameter(width**-0.5 * torch.randn(width))
        self.position = nn.Parameter(width**-0.5 * torch.randn(places, width))
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
