"""The U-Net of pix2pix (Isola 2017): it halves a picture down to a pixel, and its skips are concatenated."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limner.networks.checks import check_dropout
from limner.networks.convnets import init_normal
from limner.networks.images.padding import pad_reflected
from limner.networks.instance import InstanceNorm
from limner.networks.layers import at_least_float32

Uniform = Callable[..., Tensor]  # of shape (C, h, w) -> [B, C, h, w] in [0, 1)


class PictureNorm(InstanceNorm):
    """The batch norm of Isola 2017, 6.2, which has batches of one and no moving statistics: of each picture itself."""

    def __init__(self, channels: int):
        super().__init__(channels, affine=True)
        nn.init.normal_(self.weight, 1.0, 0.02)


class Dropout(nn.Module):
    """Dropout that also acts when pictures are drawn, by numbers of the pictures' own streams."""

    def __init__(self, probability: float):
        super().__init__()
        self.probability = check_dropout(probability)

    def forward(self, x: Tensor, uniform: Uniform | None = None) -> Tensor:
        if uniform is None:
            return F.dropout(x, self.probability, training=True)
        kept = uniform(*x.shape[1:]) >= self.probability  # [B, C, h, w]
        return x * kept / max(1 - self.probability, 1e-6)


class SkipUNet(nn.Module):
    """Picture [B, channels, H, W] -> [B, out, H, W] in [-1, 1].

    ``halvings`` of the sides, which are padded by reflection to multiples of 2 to the power of them. Widths double up
    to 8 times the first. There is ``dropout`` on the way up, at the levels below the fourth but the last.
    """

    def __init__(self, channels: int, out: int, width: int = 64, halvings: int = 8, dropout: float = 0.5):
        super().__init__()
        self.factor, self.least = 2**halvings, 1  # sides are padded by reflection to multiples of it
        maps = [min(width * 2**i, width * 8) for i in range(halvings)]
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        self.down_norm, self.up_norm = nn.ModuleList(), nn.ModuleList()
        self.dropout = nn.ModuleList()
        for i, wide in enumerate(maps):
            last, above = i + 1 == halvings, maps[i - 1] if i else out
            self.down.append(nn.Conv2d(maps[i - 1] if i else channels, wide, 4, 2, 1, bias=False))
            self.down_norm.append(nn.Identity() if i == 0 or last else PictureNorm(wide))
            self.up.append(nn.ConvTranspose2d(wide if last else 2 * wide, above, 4, 2, 1, bias=i == 0))
            self.up_norm.append(PictureNorm(above) if i else nn.Identity())
            self.dropout.append(Dropout(dropout if 4 <= i < halvings - 1 else 0.0))
        init_normal(self)

    def forward(self, image: Tensor, uniform: Uniform | None = None) -> Tensor:
        """``uniform`` draws the numbers of the dropout; None: torch's generator does."""
        height, width = image.shape[-2:]
        x, skips = pad_reflected(image, self.factor, self.least), []
        for i, (layer, norm) in enumerate(zip(self.down, self.down_norm, strict=True)):
            x = norm(layer(F.leaky_relu(x, 0.2) if i else x))  # [B, Wi, H/2^(i+1), W/2^(i+1)]
            skips.append(x)
        for i in reversed(range(len(self.up))):
            x = skips[i] if i + 1 == len(self.up) else torch.cat([skips[i], x], dim=1)
            x = self.up_norm[i](self.up[i](F.relu(x)))  # [B, W(i-1), H/2^i, W/2^i]
            if self.dropout[i].probability:
                x = self.dropout[i](x, uniform)
        return torch.tanh(at_least_float32(x))[..., :height, :width]  # [B, out, H, W]
