"""The players of a training: each has an objective and the optimiser of the parameters that it trains."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from limner.core import Model, Objective
from limner.settings import LimnerError, Training
from limner.training.optim import make_optimiser


@dataclass
class Player:
    """An objective with the parameters that it trains and their optimiser."""

    objective: Objective
    name: str  # the submodule's; from its second objective on with a number, as "discriminator 2"
    parameters: list[nn.Parameter]
    optimiser: torch.optim.Optimizer
    peaks: list[float]  # learning rates before the schedule


def check_objectives(model: Model, training: Training) -> None:
    """Raises LimnerError for an objective without an optimiser, and ValueError for one that trains a frozen parent."""
    for objective in model.objectives():
        if objective.trains in model.frozen:
            raise ValueError(f"{objective.trains} holds a frozen parent: no objective may train it")
        if objective.trains not in training.optimisers:
            raise LimnerError(
                f"{model.family} has no optimiser for its submodule {objective.trains!r}: add it to "
                "training.optimisers."
            )


def make_players(model: Model, training: Training) -> list[Player]:
    """A player for each objective; those that train the same submodule share its optimiser."""
    check_objectives(model, training)
    players: list[Player] = []
    for objective in model.objectives():
        module = model.get_submodule(objective.trains)
        same = [player for player in players if player.objective.trains == objective.trains]
        name = f"{objective.trains} {len(same) + 1}" if same else objective.trains
        settings = training.optimisers[objective.trains]
        optimiser = same[0].optimiser if same else make_optimiser(module, settings)
        parameters = [p for p in module.parameters() if p.requires_grad]
        peaks = [group["lr"] for group in optimiser.param_groups]
        players.append(Player(objective, name, parameters, optimiser, peaks))
    return players


@contextmanager
def naming_second_derivatives(family: str) -> Iterator[None]:
    """Raises LimnerError where a loss differentiates a gradient, which torch.compile cannot."""
    try:
        yield
    except RuntimeError as error:
        if "double backward" not in str(error):
            raise
        raise LimnerError(
            f"The losses of {family} penalise gradients, which compiled networks cannot differentiate: leave out "
            "--training.compile."
        ) from error


def clip_gradients(parameters: list[nn.Parameter], t: Training, norm: Tensor) -> None:
    """Scale the gradients, whose norm together is ``norm``, down to at most ``t.clip``: together, or each by itself."""
    if not t.clip_each:
        nn.utils.clip_grads_with_norm_(parameters, t.clip, norm)
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    norms = torch._foreach_norm(gradients)
    torch._foreach_mul_(gradients, [(t.clip / (own + 1e-6)).clamp(max=1.0) for own in norms])
