"""A transformer over the patches of an image (Dosovitskiy 2021), and its position embeddings."""

from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limner.networks.attention import sincos
from limner.networks.checks import SettingsError
from limner.networks.layers import init_xavier


@dataclass(frozen=True)
class PatchConfig:
    patch: int = 0  # pixels a side of a patch; 0: from across
    across: int = 4  # about how many patches along the shorter side, where patch is 0
    width: int = 128  # of a token
    depth: int = 6  # layers
    heads: int = 4  # attention heads
    mlp_ratio: float = 4.0  # width of the MLP's hidden layer over the token's
    # resize learned positions to other sizes of image without antialiasing, as DINO's code does
    plain_resize: bool = False


class Layer(nn.Module):
    """Self-attention and a two-layer MLP, each after a norm and added to its input.

    ``drop_path`` is the probability that an image skips a part of the layer in training (Huang 2016).
    """

    def __init__(self, width: int, heads: int, mlp_ratio: float = 4.0, drop_path: float = 0.0):
        super().__init__()
        self.heads, self.drop_path = heads, drop_path
        self.norm1, self.norm2 = nn.LayerNorm(width, 1e-6), nn.LayerNorm(width, 1e-6)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        hidden = int(mlp_ratio * width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.norm1(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        h = F.scaled_dot_product_attention(*qkv.unbind(0))  # [B, heads, L, W / heads]
        x = x + self._drop_path(self.out(h.transpose(1, 2).flatten(2)))  # [B, L, W]
        return x + self._drop_path(self.down(F.gelu(self.up(self.norm2(x)))))  # [B, L, W]

    def _drop_path(self, x: Tensor) -> Tensor:
        if not self.training or not self.drop_path:
            return x
        keep = torch.rand(len(x), 1, 1, device=x.device) >= self.drop_path
        return x * keep / (1 - self.drop_path)


def patch_size(config: PatchConfig, size: tuple[int, int]) -> int:
    """The side of a patch in pixels. Raises SettingsError where it does not divide the image."""
    patch = config.patch
    if not patch:
        about = patch = max(1, min(size) // max(1, config.across))
        while size[0] % patch or size[1] % patch:
            patch -= 1
        if 2 * patch < about:  # rather than many tiny patches
            raise SettingsError(
                f"images of {size[0]}x{size[1]} do not divide into patches of about {about} pixels, as those of a "
                f"--size of multiples of {about} do"
            )
    if size[0] % patch or size[1] % patch:
        raise SettingsError(f"images of {size[0]}x{size[1]} do not divide into patches of {patch}")
    return patch


class PatchTransformer(nn.Module):
    """Image [B, C, H, W] -> the class token and one token a patch [B, 1 + H/p W/p, width], after a norm.

    Positions are ``learned``, then resized to other sizes of image (bicubic with antialiasing, or without as DINO's),
    or fixed ``sincos``. Raises SettingsError for sizes that do not divide.
    """

    def __init__(
        self, config: PatchConfig, channels: int, size: tuple[int, int], drop_path: float = 0.0,
        positions: Literal["learned", "sincos"] = "learned",
    ):  # fmt: skip
        super().__init__()
        c = config
        if c.width % c.heads:
            raise SettingsError(f"a width of {c.width} does not divide into {c.heads} heads")
        if c.width % 4:
            raise SettingsError(f"a width of {c.width} is not a multiple of 4")
        self.patch = patch_size(c, size)
        self.config = replace(c, patch=self.patch)
        self.grid = (size[0] // self.patch, size[1] // self.patch)
        self.patch_embed = nn.Conv2d(channels, c.width, self.patch, stride=self.patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, c.width))
        nn.init.normal_(self.class_token, std=0.02)
        self.position: nn.Parameter | None = None
        if positions == "learned":
            # Sines and cosines: from noise of 0.02 a small network takes long to learn positions.
            self.position = nn.Parameter(torch.zeros(1, 1 + self.grid[0] * self.grid[1], c.width))
            self.position.data[:, 1:] = sincos(c.width, self.grid, self.position.device)
        drops = [drop_path * i / max(c.depth - 1, 1) for i in range(c.depth)]
        self.layers = nn.ModuleList(Layer(c.width, c.heads, c.mlp_ratio, d) for d in drops)
        self.norm = nn.LayerNorm(c.width, 1e-6)
        init_xavier(self)

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """[1, 1 + h w, width] for the class token and a grid of patches."""
        if self.position is None:
            table = sincos(self.config.width, grid, self.class_token.device).to(self.class_token.dtype)
            return torch.cat([torch.zeros_like(table[:1]), table])[None]
        if grid == self.grid:
            return self.position
        first, rest = self.position[:, :1], self.position[:, 1:]
        table = rest.transpose(1, 2).unflatten(2, self.grid)  # [1, W, h, w]
        if self.config.plain_resize:  # the code's 0.1 guards against rounding, and moves the samples
            scale = [(to + 0.1) / side for to, side in zip(grid, self.grid, strict=True)]
            table = F.interpolate(table, scale_factor=scale, mode="bicubic")
        else:
            table = F.interpolate(table, grid, mode="bicubic", antialias=True, align_corners=False)
        return torch.cat([first, table.flatten(2).transpose(1, 2)], dim=1)

    def embed(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """Class token and patches with their positions, [B, 1 + L, W], or with ``keep`` [B, 1 + K, W]."""
        x = self.patch_embed(x)  # [B, W, h, w]
        position = self.positions((x.shape[2], x.shape[3]))
        x = x.flatten(2).transpose(1, 2) + position[:, 1:]  # [B, L, W]
        if keep is not None:
            x = x.gather(1, keep[..., None].expand(-1, -1, x.shape[2]))  # [B, K, W]
        first = (self.class_token + position[:, :1]).expand(len(x), -1, -1)  # [B, 1, W]
        return torch.cat([first, x], dim=1)  # [B, 1 + L, W]

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """``keep`` [B, K]: only these patches, by their index, go through the layers."""
        x = self.embed(x, keep)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)

    def feature_maps(self, x: Tensor, count: int = 3) -> list[Tensor]:
        """Normalised patches [B, W, h, w] from ``count`` evenly spaced layers, the last included."""
        depth, grid = len(self.layers), (x.shape[2] // self.patch, x.shape[3] // self.patch)
        wanted = {max(1, round(depth * i / count)) for i in range(1, count + 1)}
        found = []
        x = self.embed(x)
        for i, layer in enumerate(self.layers, start=1):
            x = layer(x)  # [B, 1 + L, W]
            if i in wanted:
                patches = F.layer_norm(x[:, 1:].float(), x.shape[2:])  # [B, L, W]
                found.append(patches.transpose(1, 2).unflatten(2, grid))
        return found

    @torch.no_grad()
    def load_resized(self, other: Self) -> None:
        """Load another's weights, its positions resized to this image size. Raises SettingsError if patches differ."""
        state = other.state_dict()
        state.pop("position", None)
        if self.position is not None:
            state["position"] = other.positions(self.grid)
        if state["patch_embed.weight"].shape != self.patch_embed.weight.shape:
            theirs, here = other.patch_embed, self.patch_embed
            raise SettingsError(
                f"it reads patches of {theirs.in_channels} x {other.patch} x {other.patch}, not of "
                f"{here.in_channels} x {self.patch} x {self.patch}"
            )
        self.load_state_dict(state)
