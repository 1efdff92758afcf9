"""Options of the commands that use a run. Nothing here imports torch, so that help is quick."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from limner import fields
from limner.fields import Bounds, Checked, Truncation
from limner.settings import LimnerError

if TYPE_CHECKING:
    from limner.core import Seed

By = Literal["auto", "pca", "jacobian", "weights"]


@dataclass(frozen=True, kw_only=True)
class SampleOptions(Checked):
    """What to draw. Prompts and labels are used in turn."""

    prompt: str | Sequence[str] = ()  # what the images should show
    label: str | Sequence[str] = ()  # class that the images should show
    # of the first image; each image has its own seed, which always gives the same image
    seed: fields.Seed = 0
    # two seeds: interpolate from the image of the first to that of the second, in N images
    between: Annotated[tuple[int, int], Bounds(0, 2**63 - 1)] | None = None
    # picture to draw variations of: noised by --strength, where the family has that; of a run of clips, the first frame
    image: str = ""
    mask: str = ""  # picture that is white where --image is to be repainted; the rest is kept
    last: str = ""  # of a run of clips: picture that is the last frame
    # of a run of clips: film, animation or folder of numbered images that they begin with, to go on with it
    video: str = ""
    # of a run of clips: how many frames they have. Default: as in training, or half as many more than --video gives
    frames: Annotated[int, Bounds(1, 2**16)] | None = None
    # two ends, each the name of a picture or else a prompt: draw the way between what they show, in N images
    blend: tuple[str, str] | None = None
    # run that compares images with texts (clip): draw --candidates for each prompt, and keep those that fit it best
    rank: str = ""
    candidates: fields.Count = 64  # with --rank: images drawn for each prompt, of which N in all are kept
    batch: int = 64  # images drawn at once; of clips an eighth

    def seeds(self, n: int) -> Sequence[Seed]:
        """One for each of ``n`` images; those of a blend share one, so that they differ by what they show alone."""
        if self.blend:
            return [self.seed] * n
        if self.between:
            return [(*self.between, i / max(n - 1, 1)) for i in range(n)]
        return range(self.seed, self.seed + n)


@dataclass(frozen=True, kw_only=True)
class ClipOptions(Checked):
    """How the clips that a run draws are written."""

    # frames a second. Default: as the run's own clips, or 8
    rate: Annotated[float, Bounds(0.01, 1000)] | None = None
    lossless: bool = False  # a clip as it was drawn, not enlarged: a .mkv, or a .webp
    # format of several clips in a folder. Default: webp, without loss
    suffix: Literal["", "mp4", "webm", "mkv", "gif", "webp"] = ""


@dataclass(frozen=True, kw_only=True)
class ExploreOptions(Checked):
    """What the sheets of a latent space show."""

    label: tuple[str, ...] = ()  # class to show
    start: tuple[str, ...] = ()  # .safetensors of limner project: images of your own
    rows: Annotated[int, Bounds(1, 1000)] = 6  # interpolations
    columns: Annotated[int, Bounds(2, 1000)] = 9  # images in each interpolation
    directions: Annotated[int, Bounds(1, 1000)] = 6  # directions shown
    # where directions come from: pca of the points, the jacobian of the images, or the first layer's weights
    by: By = "auto"
    truncation: Truncation = 1.0  # below 1: points nearer to the centre, for safer images that are more alike
    seed: fields.Seed = 0  # of the first image


@dataclass(frozen=True, kw_only=True)
class LoopOptions(Checked):
    """How long a loop is."""

    # length of the loop, which passes a point of the latent space a second
    seconds: Annotated[float, Bounds(0, 3600, above=True)] = 4.0
    rate: Annotated[float, Bounds(0.01, 1000)] = 24.0  # frames a second of the loop


@dataclass(frozen=True, kw_only=True)
class ProjectOptions(Checked):
    """How the point of a picture is searched for."""

    steps: Annotated[int, Bounds(0, 2**20)] = 300  # optimisation steps
    label: str = ""  # class of the picture. Default: the class that comes nearest
    # learning rate, in standard deviations of the latent dimensions
    rate: Annotated[float, Bounds(0, 1000)] = 0.3
    # pull towards the centre; higher: an image more like the run's own
    prior: Annotated[float, Bounds(0, 1e6)] = 0.001
    # a point per layer, if the run supports it: nearer, but less like its own images
    each_layer: bool = False
    tries: int = 256  # random starting points; only the nearest few are optimised
    seed: fields.Seed = 0  # of the first starting point


@dataclass(frozen=True, kw_only=True)
class ApplyOptions(Checked):
    """How pictures are translated and written."""

    # what the process may have; larger pictures are computed in tiles
    memory: str = "2GB"
    # format of every file in a folder. Default: that of each picture, or png
    suffix: Literal["", "png", "jpg", "webp", "tif"] = ""
    side_by_side: bool = False  # the given picture beside the result, in one file
    crops: Annotated[int, Bounds(0, 10_000)] = 0  # details in a sheet beside the results; 0: no sheet
    truth: str = ""  # picture, or folder of pictures of the same names, to show in the sheet of --crops
    # give the norms of a picture that does not fit the memory the statistics of all of it rather than of a thumbnail,
    # layer after layer: the result of unlimited memory, in the time of several
    exact: bool = False
    overwrite: bool = False  # replace files that are there
    metadata: bool = True  # keep EXIF and the colour profile; without, colours are converted to sRGB
    background: str = "white"  # what shows through alpha where a format has none
    seed: fields.Seed = 0  # of what a run draws besides
    lossless: bool = False  # a clip without loss, as large as the result: a .mkv, or a .webp

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bytes < 2**26:
            raise LimnerError(f"--memory {self.memory} is too little for any network: use 1GB or more.")

    @property
    def bytes(self) -> int:
        """Raises LimnerError for what is no amount of memory."""
        found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT])i?B?", self.memory.strip(), re.IGNORECASE)
        if not found:
            raise LimnerError(
                f"--memory {self.memory!r} is not an amount of memory: use 500MB, 2GB or 1.5GB."
            )
        return int(float(found[1]) * 1000 ** (1 + "KMGT".index(found[2].upper())))

    def settings(self) -> dict[str, object]:
        """What decides how the files of a folder look."""
        return {"suffix": self.suffix, "side_by_side": self.side_by_side, "metadata": self.metadata,
                "background": self.background, "exact": self.exact, "seed": self.seed}  # fmt: skip
