"""The windows of an image that show the middle of an original which was mirrored, moved or cropped."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

SHIFT = 4  # pixels that a copy may be moved by
CROP = 0.9  # of each side that a crop leaves,
NEARBY = (-1, 0, 1)  # and as many pixels more, since programs round differently
FIRST = 12  # a twelfth of a middle lies between windows that are looked at first
SIDE = 64  # pixels; larger images are scaled down

Shape = tuple[int, int]  # height, width


@dataclass(frozen=True)
class Change:
    """What was done to an original."""

    mirrored: bool = False
    cropped: bool = False
    right: int = 0  # pixels that it was moved by
    down: int = 0
    toned: bool = False  # another brightness or contrast

    @property
    def kind(self) -> str:
        """In words, without amounts."""
        parts = {
            "mirrored": self.mirrored, "cropped": self.cropped, "moved": bool(self.right or self.down),
            "other brightness": self.toned,
        }  # fmt: skip
        return ", ".join(name for name, is_so in parts.items() if is_so) or "unchanged"

    def __str__(self) -> str:
        return self.kind.replace("moved", f"moved {self.right},{self.down}")


@dataclass(frozen=True)
class Windows:
    """Of images of one shape."""

    own: Shape  # of the images

    @cached_property
    def sized(self) -> Shape:
        """At which images are compared."""
        return min(self.own[0], SIDE), min(self.own[1], SIDE)

    @cached_property
    def margins(self) -> Shape:
        """Around the middle, that any change may have moved out of the picture."""
        sides = self.sized
        found = [max(min(SHIFT, side // 4), math.ceil((1 - CROP) * side)) for side in sides]
        return min(found[0], (sides[0] - 1) // 2), min(found[1], (sides[1] - 1) // 2)

    @cached_property
    def shifts(self) -> Shape:
        found = [math.ceil(SHIFT * side / own) for side, own in zip(self.sized, self.own, strict=True)]
        return min(found[0], self.margins[0]), min(found[1], self.margins[1])

    @cached_property
    def changes(self) -> list[Change]:
        """That each window supposes."""
        return [change for change, _ in self._each()]

    @cached_property
    def first(self) -> Tensor:
        """Indices of the windows that are looked at first."""
        return torch.tensor([close for _, close in self._each()]).nonzero()[:, 0]

    @cached_property
    def complexity(self) -> Tensor:
        """[V, 1]: how much worse a window may be than a simpler one that is preferred to name the change."""
        kinds = [bool(c.right or c.down) + c.mirrored + 2 * c.cropped for c in self.changes]
        return torch.tensor(kinds)[:, None]

    def _each(self) -> list[tuple[Change, bool]]:
        """Of each window: the change that it supposes, and whether it is looked at first."""
        found, (up, left) = [], self.shifts
        step = max(1, min(self._middle) // FIRST)
        scale = [own / side for own, side in zip(self.own, self.sized, strict=True)]
        for mirrored in (False, True):
            for y in range(-up, up + 1):
                for x in range(-left, left + 1):
                    right, down = round(x * scale[1]), round(y * scale[0])
                    change = Change(mirrored, right=-right if mirrored else right, down=down)
                    found.append((change, y % step == 0 and x % step == 0))
        for sides in self._cropped_sides:
            high, wide = (side - part + 1 for side, part in zip(sides, self._middle, strict=True))
            for mirrored in (False, True):
                places = [(y, x) for y in range(high) for x in range(wide)]
                cropped = Change(mirrored, cropped=True)
                found += [(cropped, y % step == 0 and x % step == 0) for y, x in places]
        return found

    def middles(self, images: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, h, w]"""
        images = self._resized(images)
        (y, x), (height, width) = self.margins, self.sized
        return images[:, :, y : height - y, x : width - x]

    def of(self, image: Tensor) -> Tensor:
        """[C, H, W] -> [V, C, h, w], in the order of ``changes``."""
        image = self._resized(image[None])
        y, x = (m - s for m, s in zip(self.margins, self.shifts, strict=True))
        canvases = [image[:, :, y : self.sized[0] - y, x : self.sized[1] - x]]
        for sides in self._cropped_sides:  # back at the scale from before the crop was enlarged
            canvases.append(F.interpolate(image, sides, mode="bilinear", antialias=True))
        found = []
        for canvas in canvases:
            for turned in (canvas, canvas.flip(-1)):
                places = turned[0].unfold(1, self._middle[0], 1).unfold(2, self._middle[1], 1)
                found.append(places.movedim(0, 2).flatten(0, 1))  # from [C, y, x, h, w]
        return torch.cat(found)

    @cached_property
    def _middle(self) -> Shape:
        return self.sized[0] - 2 * self.margins[0], self.sized[1] - 2 * self.margins[1]

    @cached_property
    def _cropped_sides(self) -> list[Shape]:
        def side(axis: int, more: int) -> int:
            most = self.sized[axis]
            return min(most, max(self._middle[axis], round(CROP * most) + more))

        return [(side(0, more), side(1, more)) for more in NEARBY]

    def _resized(self, images: Tensor) -> Tensor:
        return images if self.sized == self.own else F.interpolate(images, self.sized, mode="area")
