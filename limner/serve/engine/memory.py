"""Errors that say that memory ran short, and those after which a device does nothing any more."""

from __future__ import annotations

import torch

_WORDS = "can't allocate memory", "out of memory", "not enough memory", "could not create a memory"


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran short."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _WORDS)


def is_fatal(error: BaseException) -> bool:
    """Whether an error leaves the device's context dead, so that only a new process can go on."""
    return isinstance(error, getattr(torch, "AcceleratorError", ())) and not out_of_memory(error)


def release(device: torch.device) -> None:
    """Give back what a device keeps of freed memory."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
