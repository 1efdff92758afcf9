"""How much clips move, and how unevenly: measures on the pixels themselves."""

from torch import Tensor


def motion(clips: Tensor) -> Tensor:
    """[B, C, T, H, W] in [-1, 1] -> [B, T - 1], the mean of |x(t + 1) - x(t)| over pixels and channels."""
    return _differences(clips, 1)


def jitter(clips: Tensor) -> Tensor:
    """[B, C, T, H, W] in [-1, 1] -> [B, T - 2], the mean of |x(t + 1) - 2 x(t) + x(t - 1)|.

    A clip that stands still has jitter 0: judge it only beside ``motion``.
    """
    return _differences(clips, 2)


def _differences(clips: Tensor, order: int) -> Tensor:
    return clips.double().diff(order, dim=2).abs().mean((1, 3, 4))
