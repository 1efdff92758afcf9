"""An optimiser's state as named tensors and JSON, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def pack_state(state: Any, prefix: str) -> tuple[dict[str, Tensor], Any]:
    """Split a ``state_dict`` into named tensors and JSON, which ``unpack_state`` joins again.

    Dicts (with keys of any plain type), lists, tuples, numbers, text, None and tensors are kept exactly, and so is
    the channels_last layout of a tensor, since it affects the last bit of results. Raises TypeError for others.
    """
    tensors: dict[str, Tensor] = {}

    def pack(value: Any, name: str) -> Any:
        if isinstance(value, Tensor):
            tensors[name] = value
            return {"tensor": name, **({"layout": layout} if (layout := _layout(value)) else {})}
        if isinstance(value, dict):
            return {"dict": [[key, pack(entry, f"{name}.{key}")] for key, entry in value.items()]}
        if isinstance(value, (list, tuple)):
            packed = [pack(entry, f"{name}.{i}") for i, entry in enumerate(value)]
            return packed if isinstance(value, list) else {"tuple": packed}
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        raise TypeError(f"{name} is a {type(value).__name__}, which a checkpoint cannot hold")

    packed = pack(state, prefix)
    return tensors, packed


def unpack_state(tensors: Mapping[str, Tensor], packed: Any) -> Any:
    """The inverse of ``pack_state``."""
    if isinstance(packed, list):
        return [unpack_state(tensors, entry) for entry in packed]
    if not isinstance(packed, dict):
        return packed
    if "tensor" in packed:
        tensor = tensors[packed["tensor"]]
        return tensor.contiguous(memory_format=LAYOUTS[packed["layout"]]) if "layout" in packed else tensor
    if "tuple" in packed:
        return tuple(unpack_state(tensors, entry) for entry in packed["tuple"])
    return {key: unpack_state(tensors, entry) for key, entry in packed["dict"]}


LAYOUTS = {"channels_last": torch.channels_last, "channels_last_3d": torch.channels_last_3d}


def _layout(tensor: Tensor) -> str | None:
    if tensor.is_contiguous():
        return None
    return next((name for name, form in LAYOUTS.items() if tensor.is_contiguous(memory_format=form)), None)
