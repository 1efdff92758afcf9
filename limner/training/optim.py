"""The optimiser of one submodule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from limner.checkpoint import unpack_state
from limner.settings import LimnerError, Optimiser


def make_optimiser(module: nn.Module, settings: Optimiser) -> torch.optim.Optimizer:
    """The optimiser of the module's trainable parameters; the weight decay of adam, as of adamw, is decoupled."""
    s, parameters = settings, [p for p in module.parameters() if p.requires_grad]
    if s.name == "muon":
        return Muon(module, s)
    groups = _by_decay(module, parameters)
    if s.name == "sgd":
        return torch.optim.SGD(groups, s.lr, s.momentum, weight_decay=s.decay, fused=True)
    if s.name in ("adam", "adamw"):
        return torch.optim.AdamW(groups, s.lr, s.betas, s.eps, s.decay, fused=True)
    raise LimnerError(f"{s.name!r} is not a valid optimiser: use adam, adamw, sgd or muon.")


def _by_decay(module: nn.Module, parameters: list[nn.Parameter]) -> list[dict[str, Any]]:
    """A group of those that decay, and one of those that a submodule lists in its ``undecayed``, if there are any."""
    kept = {id(p) for part in module.modules() for p in getattr(part, "undecayed", ())}
    decayed, undecayed = ([p for p in parameters if (id(p) in kept) == without] for without in (False, True))
    return [{"params": decayed}, *([{"params": undecayed, "weight_decay": 0.0}] if undecayed else [])]


def load_state(
    optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor], packed: Any, name: str
) -> None:
    """Load a state that ``pack_state`` took apart; the optimiser keeps its own settings.

    Raises LimnerError for one of another optimiser or of other parameters; ``name`` is the submodule's.
    """
    own = optimiser.state_dict()["param_groups"]
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    try:
        state = unpack_state(tensors, packed)
        entries, groups = state["state"], state["param_groups"]
        same = [len(group["params"]) for group in groups] == [len(group["params"]) for group in own]
        fits = same and all(_fits(optimiser, parameters[i], entry) for i, entry in entries.items())
        merged = [{**ours, "lr": theirs["lr"]} for ours, theirs in zip(own, groups, strict=False)]
    except (KeyError, TypeError, IndexError, AttributeError, ValueError):
        fits = False
    if not fits:
        raise LimnerError(
            f"The checkpoint's state of the optimiser of {name!r} is not one of {type(optimiser).__name__} with these "
            "parameters: resume with the settings that it was trained with, or train a new run with another --out."
        )
    optimiser.load_state_dict({"state": entries, "param_groups": merged})


def _fits(optimiser: torch.optim.Optimizer, parameter: Tensor, entry: dict[str, Any]) -> bool:
    """Whether an entry of a state is one that the optimiser keeps for the parameter, in shape and type."""
    tensors = {key: value for key, value in entry.items() if value is not None}
    kept = entry.keys() <= STATES[type(optimiser)]
    return kept and all(
        value.is_floating_point() and value.shape == (() if key == "step" else parameter.shape)
        for key, value in tensors.items()
    )


def orthogonal(matrices: Tensor, products: torch.dtype = torch.float32) -> Tensor:
    """The nearest semi-orthogonal matrices to [n, rows, columns], roughly: singular values in [0.7, 1.2].

    Newton-Schulz with Jordan's coefficients, five steps (Jordan 2024). The iterates are polynomials in the
    small Gram matrix, which are multiplied out and applied once: less than half the work for a wide matrix.
    A small or nearly square matrix gains little by this, so its Gram matrix is computed again after three
    steps, before its rounding errors grow. In bfloat16 (``products``, also the result's type) every one is after two
    steps: after three, a tiny eigenvalue of a matrix near rank 1 may have become so negative that it diverges.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if tall else matrices).to(products)
    wide = x.shape[2] >= 2 * x.shape[1] >= 128
    rounds = (2, 2, 1) if products == torch.bfloat16 else (5,) if wide else (3, 2)
    # The Gram matrices are scaled so that x starts from norm 1, rather than the larger x itself.
    scale = 1 / (torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True) + 1e-7)  # [n, 1, 1]
    for steps in rounds:
        gram = torch.bmm(x, x.mT) * scale.square()
        total = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        total.diagonal(dim1=1, dim2=2).add_(a)
        polynomial = total
        for _ in range(steps - 1):
            gram = polynomial @ gram @ polynomial
            polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
            polynomial.diagonal(dim1=1, dim2=2).add_(a)
            total = polynomial @ total
        x = torch.bmm(total * scale, x)
        scale = torch.ones_like(scale)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Muon (Jordan 2024) for weights of linear and convolutional layers, else AdamW. A step overwrites gradients."""

    products = torch.float32  # the type in which it multiplies matrices

    def __init__(self, module: nn.Module, settings: Optimiser):
        s, parameters = settings, [p for p in module.parameters() if p.requires_grad]
        layers = [part for part in module.modules() if isinstance(part, (nn.Linear, nn.Conv2d))]
        matrices = {id(p) for layer in layers for p in layer.parameters(recurse=False) if p.ndim >= 2}
        muon: dict[str, Any] = {"lr": s.matrix_lr, "momentum": s.momentum or 0.95, "muon": True}
        adamw: dict[str, Any] = {"lr": s.lr, "momentum": 0.0, "muon": False}
        others = [p for p in parameters if id(p) not in matrices]
        groups = [
            {"params": [p for p in parameters if id(p) in matrices], **muon},
            *(group | adamw for group in _by_decay(module, others)),
        ]
        super().__init__(groups, {"betas": s.betas, "eps": s.eps, "weight_decay": s.decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            moving = [p for p in group["params"] if p.grad is not None]
            if moving and group["weight_decay"]:
                torch._foreach_mul_(moving, 1 - group["lr"] * group["weight_decay"])
            if moving:
                (self._muon if group["muon"] else self._adamw)(moving, group)

    def _muon(self, parameters: list[Any], group: dict[str, Any]) -> None:
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["momentum"] = torch.zeros_like(parameter)
        gradients = [p.grad for p in parameters]
        momentum = [self.state[p]["momentum"] for p in parameters]
        torch._foreach_lerp_(momentum, gradients, 1 - group["momentum"])
        torch._foreach_lerp_(gradients, momentum, group["momentum"])  # Nesterov's
        by_shape: dict[tuple[int, int], list[Any]] = {}  # matrices of one shape are made orthogonal at once
        for parameter in parameters:
            by_shape.setdefault((len(parameter), parameter[0].numel()), []).append(parameter)
        for (rows, columns), weights in by_shape.items():
            # Channels last: no copy in that memory format, and the order of columns does not matter.
            matrices = [p.grad.movedim(1, -1).flatten(1).to(self.products) for p in weights]
            updates = orthogonal(torch.stack(matrices), self.products).float()
            scale = max(1.0, rows / columns) ** 0.5
            for parameter, update in zip(weights, updates, strict=True):
                last = parameter.movedim(1, -1)
                last.add_(update.view(last.shape), alpha=-group["lr"] * scale)

    def _adamw(self, parameters: list[Any], group: dict[str, Any]) -> None:
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["step"] = torch.zeros(())
                state["mean"], state["square"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        means, squares, steps = (
            [self.state[p][key] for p in parameters] for key in ("mean", "square", "step")
        )
        beta1, beta2 = group["betas"]
        adamw(
            parameters, [p.grad for p in parameters], means, squares, [], steps,
            fused=parameters[0].device.type == "cpu",  # elsewhere it needs the steps on that device
            amsgrad=False, beta1=beta1, beta2=beta2, lr=group["lr"], weight_decay=0.0, eps=group["eps"], maximize=False,
        )  # fmt: skip


STATES: dict[type, set[str]] = {  # what each optimiser keeps for a parameter
    torch.optim.AdamW: {"step", "exp_avg", "exp_avg_sq"},
    torch.optim.SGD: {"momentum_buffer"},
    Muon: {"momentum", "step", "mean", "square"},
}
