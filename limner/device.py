"""Where the arithmetic happens, and how precise it is."""

from __future__ import annotations

from typing import Any

import torch

from limner.settings import LimnerError


def pick_device(name: str = "auto") -> torch.device:
    """The device of a name; auto is a GPU where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise LimnerError("There is no CUDA device here: take the device cpu.")
    try:
        if name != "cuda":  # which each process of several takes its own of, and later
            torch.empty(0, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError):  # of a name unknown, or of what this torch or machine lacks
        raise LimnerError(f"There is no device {name!r} here: take cpu, or leave it to auto.") from None


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context in which networks run: bf16 where it is asked for, or under auto where it is quick."""
    wanted = precision == "bf16" or (precision == "auto" and bf16_is_quick(device))
    return torch.autocast(device.type, torch.bfloat16, enabled=wanted)


def bf16_is_quick(device: torch.device) -> bool:
    """On a GPU; and on a CPU that multiplies bf16 faster than float32, which few of those that can do.

    A convolution in bf16 takes about half the time on an AMD EPYC with AVX512-BF16, and nearly twice the
    time on an Intel Xeon that has it without AMX.
    """
    if device.type != "cpu":
        return True
    told: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(told.get("amx_bf16") or (told.get("avx512_bf16") and "AMD" in told.get("cpu_name", "")))
