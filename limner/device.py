"""The device and the precision of the arithmetic."""

from __future__ import annotations

import contextlib
import ctypes

import torch

from limner.settings import LimnerError


def pick_device(name: str = "auto") -> torch.device:
    """The device of a name; auto is a GPU if there is one. Raises LimnerError for a device that is not available."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise LimnerError("There is no CUDA device here: use the device cpu.")
    try:
        if name != "cuda":  # each of several processes selects its own later
            torch.empty(0, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError):  # an unknown name, or one that is not supported here
        raise LimnerError(f"There is no device {name!r} here: use cpu or auto.") from None


def autocast(device: torch.device, in_bf16: bool) -> torch.autocast:
    """The context in which networks run."""
    return torch.autocast(device.type, torch.bfloat16, enabled=in_bf16)


def keep_freed_memory() -> None:
    """Have glibc keep what this process frees, for its next step, rather than return it and clear new pages each time.

    A step allocates and frees the same activations again and again; on two cores of a virtual machine that costs
    a tenth of a step of 32 images. Elsewhere this does nothing.
    """
    trim_threshold, mmap_threshold = -1, -3  # parameters of mallopt(3)
    with contextlib.suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(mmap_threshold, 2**27)


def return_freed_memory() -> None:
    """Have glibc return what this process has freed, and from now on what it frees of 4 MB and more at once.

    Else freed blocks that the next tensors do not fit add up, to as much again as tensors take; clearing new pages
    costs up to a fifth of the time. Elsewhere this does nothing.
    """
    mmap_threshold = -3  # a parameter of mallopt(3)
    with contextlib.suppress(AttributeError, OSError, TypeError):
        library = ctypes.CDLL(None)
        library.mallopt(mmap_threshold, 2**22)
        library.malloc_trim(0)
