"""Whether weights fit a module: names, shapes, types, and only finite values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from limner.settings import LimnerError


def load_weights(module: nn.Module, tensors: Mapping[str, Tensor], where: str = "the file") -> None:
    """Copy the weights into the module. Raises LimnerError as ``check_weights`` does."""
    check_weights(module, tensors, where)
    module.load_state_dict(dict(tensors))


def check_weights(module: nn.Module, tensors: Mapping[str, Tensor], where: str = "the file") -> None:
    """Raises a LimnerError that lists the weights that do not fit.

    Those are weights that are missing, unexpected, of another shape or type, or not finite. A floating-point type
    may differ, as of a file in bfloat16; integers, booleans and complex numbers must be of the module's type, since
    a cast from or to them changes what they mean.
    """
    wanted = module.state_dict()
    both = {name: tensors[name] for name in wanted if name in tensors}
    kinds = {
        "missing": [name for name in wanted if name not in tensors],
        "unexpected": [name for name in tensors if name not in wanted],
        "of another shape": [
            f"{name} ({_shape(value)}, not {_shape(wanted[name])})"
            for name, value in both.items()
            if value.shape != wanted[name].shape
        ],
        "of another type": [
            f"{name} ({_type(value)}, not {_type(wanted[name])})"
            for name, value in both.items()
            if not _can_cast(value.dtype, wanted[name].dtype)
        ],
    }
    faults = [f"{len(names)} {kind}: {some(names)}" for kind, names in kinds.items() if names]
    if faults:
        raise LimnerError(f"The weights of {where} do not fit its settings; {'; '.join(faults)}.")
    if bad := not_finite({name: value.to(wanted[name].dtype) for name, value in both.items()}):
        raise LimnerError(
            f"The weights of {where} hold infinite values or NaN in {some(bad)}: use an earlier checkpoint, or "
            "train again."
        )


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """The names of the tensors that hold an infinite value or NaN, by one sum of each and one wait for the device.

    Tensors without values, on the meta device, count as finite.
    """
    floating = {n: value for n, value in tensors.items() if value.is_floating_point() and not value.is_meta}
    if not floating:
        return []
    device = next(iter(floating.values())).device
    sums = torch.stack([_wide(value).sum().float().to(device) for value in floating.values()])
    # The sum of finite values may overflow, so a sum that is not finite is only a suspicion.
    suspects = [name for name, ok in zip(floating, sums.isfinite().tolist(), strict=True) if not ok]
    return [name for name in suspects if not bool(_wide(floating[name]).isfinite().all())]


def _wide(value: Tensor) -> Tensor:
    """As it is, but float32 for types of one byte, which have no arithmetic."""
    return value.float() if value.dtype.itemsize == 1 else value


def _can_cast(given: torch.dtype, wanted: torch.dtype) -> bool:
    return given == wanted or (given.is_floating_point and wanted.is_floating_point)


def some(names: Iterable[str], n: int = 6) -> str:
    """The first ``n`` names, and how many more there are."""
    names = list(names)
    return ", ".join(names[:n]) + (f" and {len(names) - n} more" if len(names) > n else "")


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a number"


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
