"""Errors after which a device does nothing any more, and memory that it can give back."""

from __future__ import annotations

import torch

from limner.settings import lacks_memory


def is_fatal(error: BaseException) -> bool:
    """Whether an error leaves the device's context dead, so that only a new process can go on."""
    return isinstance(error, getattr(torch, "AcceleratorError", ())) and not lacks_memory(error)


def release(device: torch.device) -> None:
    """Give back what a device keeps of freed memory."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
