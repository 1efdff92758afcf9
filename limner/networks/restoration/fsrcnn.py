"""FSRCNN (Dong 2016): convolutions at the small size and one transposed convolution."""

from __future__ import annotations

from torch import Tensor, nn


class FSRCNN(nn.Module):
    """[B, C, h, w] -> [B, C', scale h, scale w]; the published one has ``width`` 56, ``shrunk`` 12, ``blocks`` 4."""

    def __init__(
        self, inputs: int, outputs: int, scale: int, width: int = 56, shrunk: int = 12, blocks: int = 4
    ):
        super().__init__()
        mapping = [
            layer
            for _ in range(blocks)
            for layer in (nn.Conv2d(shrunk, shrunk, 3, padding=1), nn.PReLU(shrunk))
        ]
        self.layers = nn.Sequential(
            nn.Conv2d(inputs, width, 5, padding=2), nn.PReLU(width),
            nn.Conv2d(width, shrunk, 1), nn.PReLU(shrunk),
            *mapping,
            nn.Conv2d(shrunk, width, 1), nn.PReLU(width),
        )  # fmt: skip
        self.last = nn.ConvTranspose2d(width, outputs, 9, scale, padding=4, output_padding=scale - 1)
        self.scale = scale
        self.margin = 2 + blocks + (scale + 3) // scale

    def forward(self, image: Tensor) -> Tensor:
        return self.last(self.layers(image))  # [B, C', scale h, scale w]
