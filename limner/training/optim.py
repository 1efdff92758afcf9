"""The optimiser of one submodule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from limner.settings import LimnerError, Optimiser


def make_optimiser(module: nn.Module, settings: Optimiser) -> torch.optim.Optimizer:
    """The optimiser of the module's trainable parameters; each group has its peak learning rate in ``initial_lr``."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    fused = {"fused": True} if parameters and all(p.is_floating_point() for p in parameters) else {}
    s = settings
    if s.name == "sgd":
        made: torch.optim.Optimizer = torch.optim.SGD(
            parameters, lr=s.lr, momentum=s.momentum, weight_decay=s.decay, **fused
        )
    elif s.name == "adam":
        made = torch.optim.Adam(
            parameters,
            lr=s.lr,
            betas=s.betas,
            eps=s.eps,
            weight_decay=s.decay,
            decoupled_weight_decay=True,
            **fused,
        )
    elif s.name == "adamw":
        made = torch.optim.AdamW(parameters, lr=s.lr, betas=s.betas, eps=s.eps, weight_decay=s.decay, **fused)
    elif s.name == "muon":
        made = Muon(module, s)
    else:
        raise LimnerError(f"{s.name!r} is not a valid optimiser: use adam, adamw, sgd or muon.")
    for group in made.param_groups:
        group["initial_lr"] = group["lr"]
    return made


def orthogonal(matrices: Tensor) -> Tensor:
    """The nearest semi-orthogonal matrices to [n, rows, columns], roughly: singular values in [0.7, 1.2].

    Newton-Schulz with Jordan's coefficients, five steps (Jordan 2024). The iterates are polynomials in the
    small Gram matrix, which are multiplied out and applied once: less than half the work for a wide matrix.
    A small or nearly square matrix gains little by this, so its Gram matrix is computed again after three
    steps, before its rounding errors grow.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    rounds = (5,) if x.shape[2] >= 2 * x.shape[1] >= 128 else (3, 2)
    # The Gram matrices are scaled so that x starts from norm 1, rather than the larger x itself.
    scale = 1 / (torch.linalg.vector_norm(matrices, dim=(1, 2), keepdim=True) + 1e-7)  # [n, 1, 1]
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


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None  # step() skips the others
    return parameter.grad


class Muon(torch.optim.Optimizer):
    """Muon (Jordan 2024) for the weights of linear and convolutional layers, AdamW for all others, in one optimiser.

    A step overwrites the gradients.
    """

    def __init__(self, module: nn.Module, settings: Optimiser):
        matrices: list[Tensor] = []
        others: list[Tensor] = []
        for part in module.modules():
            for parameter in part.parameters(recurse=False):
                if parameter.requires_grad:
                    is_matrix = isinstance(part, (nn.Linear, nn.Conv2d)) and parameter.ndim >= 2
                    (matrices if is_matrix else others).append(parameter)
        shared = {"betas": settings.betas, "eps": settings.eps, "weight_decay": settings.decay}
        super().__init__(
            [
                {
                    "params": matrices,
                    "lr": settings.matrix_lr,
                    "momentum": settings.momentum or 0.95,
                    "muon": True,
                },
                {"params": others, "lr": settings.lr, "momentum": 0.0, "muon": False},
            ],
            shared,
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = closure() if closure else None
        for group in self.param_groups:
            moving = [p for p in group["params"] if p.grad is not None]
            for parameter in moving:
                if group["weight_decay"]:
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                if not group["muon"]:
                    self._adamw(parameter, group)
            if group["muon"]:
                self._muon(moving, group)
        return loss

    def _muon(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        by_shape: dict[
            tuple[int, int], list[Tensor]
        ] = {}  # matrices of one shape are made orthogonal at once
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["momentum"] = torch.zeros_like(parameter)
            gradient = _gradient(parameter)
            state["momentum"].lerp_(gradient, 1 - group["momentum"])
            gradient.lerp_(state["momentum"], group["momentum"])  # Nesterov's
            by_shape.setdefault((len(parameter), parameter[0].numel()), []).append(parameter)
        for (rows, columns), weights in by_shape.items():
            # Channels last: no copy in that memory format, and the order of columns does not matter.
            updates = orthogonal(torch.stack([_gradient(p).movedim(1, -1).flatten(1) for p in weights]))
            scale = max(1.0, rows / columns) ** 0.5
            for parameter, update in zip(weights, updates, strict=True):
                last = parameter.movedim(1, -1)
                last.add_(update.view(last.shape), alpha=-group["lr"] * scale)

    def _adamw(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            state["mean"], state["square"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        state["step"] += 1
        beta1, beta2 = group["betas"]
        gradient = _gradient(parameter)
        mean = state["mean"].lerp_(gradient, 1 - beta1)
        square = state["square"].lerp_(gradient.square(), 1 - beta2)
        step = float(state["step"])
        scale = (square / (1 - beta2**step)).sqrt_().add_(group["eps"])
        parameter.addcdiv_(mean, scale, value=-group["lr"] / (1 - beta1**step))
