"""Errors, and the options of data and training; without torch, so that help is instant."""

from __future__ import annotations

import importlib
import signal
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal

from limner.fields import Bounds, Checked, Images, LimnerError, Share, ShareBelow1, join_words, nearest

__all__ = [
    "BUILT_IN", "DataOptions", "LimnerError", "NoSampling", "Optimiser", "Stopped", "Training", "join_words",
    "lacks_memory", "nearest", "need", "signal_of",
]  # fmt: skip


__version__ = "0.1.0"


class Stopped(KeyboardInterrupt):
    """The signal ``number`` asks a command to end, as Ctrl-C does; its exit code is 128 + that number."""

    received: ClassVar[int] = 0  # the number of the last signal that was raised as this exception; 0: none

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number

    @classmethod
    def on_signal(cls, number: int, _frame: object) -> None:
        """A handler of signals that raises this exception."""
        cls.received = number
        raise cls(number)


def signal_of(stop: KeyboardInterrupt) -> int:
    """The number of the signal that asked to stop: SIGINT where it was Ctrl-C."""
    return stop.number if isinstance(stop, Stopped) else signal.SIGINT


_MEMORY = "can't allocate memory", "out of memory", "not enough memory", "could not create a memory"


def lacks_memory(error: BaseException) -> bool:
    """Whether NumPy, torch on a CPU or torch on a GPU asked for more memory than there is."""
    names = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return names or (
        isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _MEMORY)
    )


def need(module: str, why: str, extra: str) -> Any:
    """A module that an extra installs, by its full name; ``why`` begins the LimnerError where it is missing."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise LimnerError(f"{why}: pip install 'limner[{extra}]'.") from None


# Data sets that need no file and no network, and what they show.
BUILT_IN = {
    "shapes": "drawn scenes of two objects, with captions",
    "digits": "handwritten digits, with labels",
    "emoji": "the emoji of a colour font, with names and groups",
    "moving": "drawn clips of one or two shapes that move, with captions",
    "moving-digits": "the same with handwritten digits",
}
# Likewise, sets that hold given and wanted pictures.
BUILT_IN_TWO = {
    "pairs:shapes": "shapes filled on paper, and the same outlined on dark",
    "domains:shapes": "shapes filled on paper, and other ones outlined on dark",
}
# That have captions, in English and in Chinese.
CAPTIONED = "shapes", "emoji", *BUILT_IN_TWO, "moving", "moving-digits"


@dataclass(frozen=True)
class DataOptions(Checked):
    """How images become the packed array that training reads."""

    flags: ClassVar[str] = "--data."

    channels: Literal[1, 3, 4] | None = None  # 1 grey, 3 RGB, 4 RGBA; default: what the images have
    # how an image meets the size; tiles: large pictures are cut into tiles of the size, at their own scale. Default:
    # tiles for a family that makes its given pictures from its images, else crop
    fit: Literal["crop", "pad", "squash", "tiles"] | None = None
    # how images shrink; quick: as before Limner's format 4, which moved them by parts of a pixel
    filter: Literal["exact", "quick"] = "exact"
    background: str = "white"  # what shows through transparency when the model has no alpha
    labels: bool = True  # use class folders and labels where there are any
    # class of images in folders in folders: the first folder, the last, or the whole path; default: chosen and said
    classes: Literal["", "first", "last", "path"] = ""
    captions: bool = True  # use captions where there are any
    # of the captions that Limner writes (shapes, emoji, moving); both: half of them in Chinese, one for each image
    language: Literal["en", "zh", "both"] = "en"
    # what two sources are: pairs of given and wanted pictures, which have the same names; or two domains, in which
    # nothing is a pair. Default: as the family trains
    given: Literal["", "pairs", "domains"] = ""
    halves: bool = False  # each file holds a pair side by side: the left half is given, the right one wanted
    reverse: bool = False  # the other way round: give what would be wanted, and want what would be given
    given_channels: Literal[1, 3, 4] | None = None  # of given pictures; default: what they have
    # height and width of given pictures; default: as the wanted ones, or their whole part where pairs differ by a scale
    given_size: tuple[int, int] | None = None
    flip: bool = False  # also show every training image mirrored, with its partner
    # share kept out of training, to measure on; of a source with val or test folders, those are
    holdout: ShareBelow1 = 0.05
    per_class: int = 0  # train on so many images of each class only; 0: on all
    max_bad: Share = 0.1  # stop when more than this share of the files cannot be read
    frames: Annotated[int, Bounds(1, 4096)] = 1  # frames a clip; 1: still images
    # of clips, frames a second; default: that of the files
    rate: Annotated[float, Bounds(0, 1000, above=True)] | None = None
    stride: Annotated[int, Bounds(1, 4096)] = 1  # frames from one of a clip to its next
    # frames from the start of a clip to that of the next; 0: clips do not overlap
    step: Annotated[int, Bounds(0, 2**20)] = 0
    hdr: Literal["refuse", "clip"] = "refuse"  # films of high dynamic range; clip: shown as if they had none
    # what a folder of numbered images holds, where frames are above 1
    numbered: Literal["clips", "stills"] = "clips"
    cache: str = ""  # folder of packed data; default: $LIMNER_CACHE or ~/.cache/limner

    def __post_init__(self) -> None:
        """Raises LimnerError for settings of given pictures that contradict one another."""
        super().__post_init__()
        if self.halves and self.given == "domains":
            raise LimnerError(
                "--data.halves makes pairs of each file's halves: leave out --data.given domains."
            )

    @property
    def gives(self) -> bool:
        """Whether each row is given a picture."""
        return bool(self.given or self.halves)

    def without_given(self) -> DataOptions:
        """The same options with no pictures given."""
        return replace(
            self,
            given="",
            halves=False,
            reverse=False,
            given_channels=None,
            given_size=None,
            fit=self.fit or "crop",
        )


@dataclass(frozen=True)
class NoSampling(Checked):
    """No sampling options: of a family that draws nothing, or before a family is chosen."""


# Adam divides it by as little as 0.001, and float32 ends at 3.4e38.
Rate = Annotated[float, Bounds(0, 1e30)]


@dataclass(frozen=True)
class Optimiser(Checked):
    """The settings of one submodule's optimiser."""

    flags: ClassVar[str] = "--training.optimisers.*."

    name: Literal["adam", "adamw", "sgd", "muon"] = "adamw"  # muon: Muon for matrices, AdamW for the rest
    lr: Rate = 1e-3  # peak learning rate
    betas: Annotated[tuple[float, float], Bounds(0, 1, below=True)] = (0.9, 0.99)  # Adam's beta1 and beta2
    eps: float = 1e-8  # Adam's epsilon
    decay: Annotated[float, Bounds(0, 1e6)] = 0.0  # weight decay: decoupled, but for sgd part of the gradient
    momentum: ShareBelow1 = 0.0  # momentum of SGD and Muon
    matrix_lr: Rate = 0.02  # Muon's learning rate, for matrices and convolutions


# Of a process on a CPU; auto: as many as run at once, measured again and again.
ThreadCount = Annotated[int, Bounds(1, 4096)] | Literal["auto"]


@dataclass(frozen=True)
class Training(Checked):
    """How a family is trained, by the one loop."""

    flags: ClassVar[str] = "--training."

    batch: int = 64  # images per step, over all processes
    accumulate: int = 1  # microbatches that a step's batch is split into
    optimisers: dict[str, Optimiser] = field(default_factory=dict)  # by the submodule that each updates
    # of the learning rate; cosine and linear end at zero
    schedule: Literal["constant", "cosine", "linear"] = "linear"
    flat: Share = 0.0  # share of the budget before the learning rate falls
    warmup: Images = 0  # images over which the learning rate rises from zero
    clip: float = 0.0  # maximum gradient norm; 0: no clipping
    clip_each: bool = False  # clip the gradient of each parameter by itself rather than all together
    average: float = 10_000.0  # half-life of the weights' moving average, in images; 0: none
    average_rampup: float = 0.05  # maximum half-life, as a share of the images seen
    average_from: Images = 0  # images seen before the average departs from the weights
    average_warmup: bool = False  # limit the average's decay to (1 + n) / (10 + n) at its n-th step
    precision: Literal["auto", "float32", "bf16"] = "auto"  # auto: bf16 where it is faster
    channels_last: bool = True  # memory format of images and convolutions
    compile: bool = False  # compile the networks with torch.compile; not where a loss penalises gradients
    device: str = "auto"  # auto, cpu, cuda
    # on a CPU; auto: measured again and again, or once where the budget is in images
    threads: ThreadCount = "auto"
    save_every: str = "2m"  # interval between checkpoints: 2m, 50kimg, 5epochs
    sample_every: str = "30s"  # interval between sample grids
    samples: Annotated[int, Bounds(0, 2**20)] = 64  # images in a sample grid; 0: no grids
    evaluate_every: str = "30s"  # interval between held-out losses
    log_every: int = 10  # steps between lines of log.jsonl
    keep: int = 2  # number of checkpoints to keep
    tensorboard: bool = False  # also write TensorBoard events (needs the log extra)
    data_changed: bool = False  # resume even though the data has changed
