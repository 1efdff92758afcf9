"""The frames that a person gives a run of clips: the first, the last, or the beginning of a clip."""

from __future__ import annotations

import warnings
from dataclasses import replace

import torch
from torch import Tensor

from limner.core import Condition, ImageSpec
from limner.data import image_sizes, open_picture
from limner.data.clips.whole import open_clip
from limner.inference.options import SampleOptions
from limner.settings import DataOptions, LimnerError


def refuse_frames(options: SampleOptions) -> None:
    """Raises LimnerError for what only clips have."""
    asked = {"--last": options.last, "--video": options.video, "--frames": options.frames}
    if flag := next((name for name, value in asked.items() if value), None):
        raise LimnerError(f"{flag} is for clips, and this run draws still images: leave it out.")


def with_frames(
    condition: Condition, options: SampleOptions, spec: ImageSpec, data: DataOptions
) -> Condition:
    """The condition of clips with the frames that ``options`` name, in the length that they ask for.

    Raises LimnerError for files that cannot be read, and where nothing is left to draw.
    """
    if options.mask:
        raise LimnerError("--mask marks a part of a still image, and this run draws clips: leave it out.")
    if not (options.image or options.last or options.video or options.frames):
        return condition
    start, end = _beginning(options, spec, data), _frame(options.last, spec, data)
    known, last = (0 if part is None else part.shape[2] for part in (start, end))
    frames = options.frames or max(
        spec.frames, known + last and known + spec.frames // 2 * bool(options.video)
    )
    if known + last >= frames:
        what = options.video or options.image or options.last
        raise LimnerError(
            f"{what} already gives {known + last} of the {frames} frames, so nothing is left to draw: ask for more "
            "with --frames."
        )
    blank = torch.zeros(1, spec.channels, frames - known - last, spec.height, spec.width)
    clip = torch.cat([part for part in (start, blank, end) if part is not None], dim=2)  # [1, C, T, H, W]
    place = torch.arange(frames)
    drawn = (place >= known) & (place < frames - last)  # [T]
    n = condition.size
    mask = drawn.float()[None, None, :, None, None].expand(n, -1, -1, -1, -1)
    return replace(condition, image=clip.expand(n, -1, -1, -1, -1), mask=mask)


def _beginning(options: SampleOptions, spec: ImageSpec, data: DataOptions) -> Tensor | None:
    """[1, C, T, H, W]"""
    if not options.video:
        return _frame(options.image, spec, data)
    if options.image:
        raise LimnerError("--image is the first frame of a clip and --video its beginning: name one of them.")
    return open_clip(options.video, spec, data)


def _frame(path: str, spec: ImageSpec, data: DataOptions) -> Tensor | None:
    """[1, C, 1, H, W] of a picture; it says so where that is cropped."""
    if not path:
        return None
    picture = open_picture(path, replace(spec, frames=1, rate=None), data)  # [1, C, H, W]
    (height, width), *_ = image_sizes(path)
    if abs(height * spec.width - width * spec.height) > max(spec.height, spec.width):
        how = "filled at its sides" if data.fit == "pad" else "cropped at its sides"
        warnings.warn(
            f"{path} has {height}x{width} pixels, and this run's frames have the shape of {spec.height}x{spec.width}: "
            f"it is {how}.",
            stacklevel=2,
        )
    return picture[:, :, None]
