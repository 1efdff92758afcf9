"""Grey, RGB and RGBA images [B, C, H, W] or clips [B, C, T, H, W]: conversion between them, and their range."""

import torch
from torch import Tensor


def with_channels(image: Tensor, channels: int) -> Tensor:
    """Grey, RGB or premultiplied RGBA, converted to ``channels``; RGBA is composited over white."""
    have = image.shape[1]
    if have == channels:
        return image
    if have == 4:  # in [-1, 1]: colour + (1 - alpha) white, each taken to [0, 1] and back
        image = image[:, :3] + (1 - image[:, 3:])
    if have == 1 and channels >= 3:
        image = image.expand(-1, 3, *image.shape[2:])
    if channels == 1:
        weights = image.new_tensor([0.299, 0.587, 0.114]).view(-1, *[1] * (image.ndim - 2))
        image = (image * weights).sum(1, keepdim=True)
    if channels == 4:
        image = torch.cat([image, torch.ones_like(image[:, :1])], dim=1)
    return image


def within(image: Tensor) -> Tensor:
    """Clamped to [-1, 1], and premultiplied colours to at most their alpha."""
    image = image.clamp(-1, 1)
    if image.shape[1] == 4:
        image = torch.cat([torch.minimum(image[:, :3], image[:, 3:]), image[:, 3:]], dim=1)
    return image
