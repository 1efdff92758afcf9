"""Diffusion forcing: each frame of a clip has a noise level of its own (Chen 2024; Song 2025).

A frame at the level 0 is given: it is clean, and told so. One network so draws clips from nothing, from any frames of
them, and goes on with them.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from limner.diffusion.paths import NoiseLevel


def forcing_levels(frames: int, steps: int, uncertainty: float) -> list[list[int]]:
    """Rows of the level of each frame, 0 clean to ``steps`` noise, after 0, 1, ... steps (Chen 2024, algorithm 2).

    Each frame is ``uncertainty`` steps behind the one before: 0 draws all frames together, 1 a pyramid, ``steps`` one
    frame after another.
    """
    behind = [int(frame * uncertainty) for frame in range(frames)]
    return [
        [min(max(steps + late - row, 0), steps) for late in behind] for row in range(steps + behind[-1] + 1)
    ]


def sliding_windows(frames: int, window: int, kept: int) -> list[tuple[int, int]]:
    """(first frame, one past the last) of the windows that draw a clip one after the other.

    Each is given the last ``kept`` frames of the one before. Raises ValueError unless ``kept`` is below ``window``.
    """
    if not 0 <= kept < window:
        raise ValueError(f"a window of {window} frames cannot keep {kept}")
    windows = [(0, min(window, frames))]
    while windows[-1][1] < frames:
        first = windows[-1][1] - kept
        windows.append((first, min(first + window, frames)))
    return windows


def given_counts(windows: Sequence[tuple[int, int]]) -> list[int]:
    """How many frames of each window the one before has drawn."""
    return [0, *(before[1] - first for before, (first, _) in pairwise(windows))]


def few_of(frames: int) -> int:
    """How many frames tell what happens in a clip: the root of their number, and at least 2."""
    return max(math.isqrt(frames), 2)


def key_frames(frames: int) -> range:
    """Few frames as far apart as a clip is long: those that are drawn first, before the ones between."""
    few = min(few_of(frames), frames)
    stride = max((frames - 1) // max(few - 1, 1), 1)
    return range(0, few * stride, stride)


def random_given(clips: int, frames: int, device: torch.device | str, causal: bool = False) -> Tensor:
    """[B, T], True for given frames, always leaving one: what a person may give, in the shares of training.

    The first frame or more, in some clips with the last one; in a fifth of the clips any frames, in a fifth key frames.
    """
    place, draw = torch.arange(frames, device=device), torch.rand(clips, 4, device=device)
    first = torch.where(draw[:, :1] < 0.5, 1, (1 + draw[:, 1:2] * (frames - 1)).long())  # [B, 1]
    given = place < first  # [B, T]
    if not causal:
        given |= (place == frames - 1) & (draw[:, 2:3] < 0.4)
        anywhere = torch.rand(clips, frames, device=device) < torch.rand(clips, 1, device=device)
        given = torch.where(draw[:, 3:] < 0.2, anywhere, given)
        if frames > 3:
            key = torch.zeros(frames, dtype=torch.bool, device=device)
            key[list(key_frames(frames))] = True
            given = torch.where(draw[:, 3:] > 0.8, key, given)
    left = torch.randint(frames, (clips, 1), device=device)  # drawn where all would be given
    return given & ~(given.all(1, keepdim=True) & (place == (frames - 1 if causal else left)))


def random_subclips(clips: Tensor, length: int, per_clip: int) -> tuple[Tensor, int]:
    """Clips [B, C, T, H, W] -> ``per_clip`` random subclips of each, [per_clip B, C, length, H, W], and their stride.

    All have one stride, the widest that fits or up to two less; a single frame has 1.
    """
    frames, rows = clips.shape[2], len(clips) * per_clip
    widest = (frames - 1) // (length - 1) if length > 1 else 1
    stride = int(torch.randint(max(widest - 2, 1), widest + 1, ()))
    starts = frames - (length - 1) * stride
    first = (torch.rand(rows, 1, device=clips.device) * starts).long()  # [per_clip B, 1]
    frame = first + stride * torch.arange(length, device=clips.device)  # [per_clip B, length]
    row = torch.arange(rows, device=clips.device)[:, None] % len(clips)
    return clips.transpose(1, 2)[row, frame].transpose(1, 2).contiguous(), stride


def per_frame(values: Tensor) -> Tensor:
    """[B, T] -> [B, 1, T, 1, 1], beside clips."""
    return values[:, None, :, None, None]


FrameQuery = tuple[Tensor, list[NoiseLevel], int]  # x [B, C, T, H, W], the level of each frame, steps done


def frame_steps(
    x: Tensor, levels: Sequence[NoiseLevel], table: Sequence[Sequence[int]]
) -> Generator[FrameQuery, Tensor, Tensor]:
    """From noise to data by the rows of a table: DDIM's step for every frame (Song 2021, eq. 12), without noise.

    ``levels`` go from noise to data; those of the table count the steps that are left. It yields queries, is sent the
    clean guess, and returns x [B, C, T, H, W] at the last row.
    """
    left = list(reversed(levels))
    scales = torch.tensor([[level.alpha, level.sigma] for level in left], dtype=x.dtype, device=x.device)
    for done, (now, then) in enumerate(pairwise(table)):
        data = yield x, [left[level] for level in now], done
        alpha, sigma = scales[list(now)][None, None, :, None, None].unbind(-1)  # 2 x [1, 1, T, 1, 1]
        to_alpha, to_sigma = scales[list(then)][None, None, :, None, None].unbind(-1)
        noise = (x - alpha * data) / sigma.clamp(min=1e-12)
        moves = torch.tensor([a != b for a, b in zip(now, then, strict=True)], device=x.device)
        x = torch.where(per_frame(moves[None]), to_alpha * data + to_sigma * noise, x)
    return x
