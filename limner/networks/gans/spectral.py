"""Layers with spectral normalisation: weights divided by their largest singular value (Miyato 2018)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SpectralNorm(nn.Module):
    """[rows, ...] over its largest singular value, by one power iteration a call (Miyato 2018, algorithm 1).

    ``u``, the guess at the singular vector, moves in training only. Gradients reach the value through the
    weight, not through the guess.
    """

    u: Tensor

    def __init__(self, rows: int, eps: float = 1e-6):
        super().__init__()
        self.eps = eps
        self.register_buffer("u", torch.randn(rows))

    def forward(self, weight: Tensor) -> Tensor:
        with torch.autocast(weight.device.type, enabled=False):
            matrix = weight.movedim(1, -1).flatten(1)  # no copy where the memory format is channels last
            with torch.no_grad():
                v = F.normalize(self.u @ matrix, dim=0, eps=self.eps)
                u = F.normalize(matrix @ v, dim=0, eps=self.eps)
                if self.training:
                    self.u.copy_(u)
            return weight / (u @ (matrix @ v))  # [rows, ...]


class SpectralLinear(nn.Linear):
    def __init__(self, inputs: int, outputs: int, bias: bool = True):
        super().__init__(inputs, outputs, bias)
        self.norm = SpectralNorm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.norm(self.weight), self.bias)  # [B, outputs]


class SpectralEmbedding(nn.Embedding):
    def __init__(self, count: int, features: int):
        super().__init__(count, features)
        self.norm = SpectralNorm(count)

    def forward(self, index: Tensor) -> Tensor:
        return F.embedding(index, self.norm(self.weight))  # [B, features]


class SpectralConv2d(nn.Conv2d):
    """The same size out."""

    def __init__(self, inputs: int, outputs: int, kernel: int, bias: bool = True):
        super().__init__(inputs, outputs, kernel, padding=kernel // 2, bias=bias)
        self.norm = SpectralNorm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.norm(self.weight), self.bias, padding=self.padding)  # [B, outputs, H, W]
