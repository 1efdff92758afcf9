"""How every family that denoises draws: solvers, guidance, image to image, inpainting.

A family says what its networks guess (`core.Denoises`) and along which path (`Plan`). `draw` does the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, Protocol, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from limner.core import Canvas, Condition, ConditionEmbedding, Denoised, Denoises, Draws, ImageSpec, Model
from limner.diffusion import solvers
from limner.diffusion.paths import NoiseLevel, Path
from limner.fields import Bounds, Checked, PositiveShare, Share
from limner.settings import LimnerError

Guidance = Annotated[float, Bounds(0, 1000)]
Shift = Annotated[float, Bounds(0.001, 1000)]  # on the straight path; 1: no shift
SolverName = Literal["ancestral", "ddim", "euler", "heun", "dpm2m", "dpm2m_sde", "dpm3m", "unipc"]


@dataclass(frozen=True)
class SamplingConfig(Checked):
    """How to sample. Families change the defaults, not the meaning."""

    usual_guidance: ClassVar[float] = 2.0  # where training left out the condition of some images

    steps: int = 32  # steps from noise to image
    solver: SolverName = "dpm2m"  # heun: two network calls a step, the others one; a mask needs ancestral
    # guidance scale; 1: no guidance. Default: 2, or 1 without conditions or with --model.condition-dropout 0
    guidance: Guidance | None = None
    guidance_low: Share = 0.0  # guide only where signal / (signal + noise) is at least this
    guidance_high: Share = 1.0  # and at most this
    # run to guide away from, smaller or less trained; empty: guide away from no condition
    autoguidance: str = field(default="", metadata={"run": True})
    eta: Share = 0.0  # ddim: noise drawn in each step; 1: as much as ancestral
    # heun: noise added back, over all steps (S_churn of Karras 2022)
    churn: Annotated[float, Bounds(0, 1e6)] = 0.0
    # with an image and no mask: how far back to noise it is taken; 1: all the way
    strength: PositiveShare = 0.7
    repaints: int = 4  # with a mask: how often each step is repeated, so that old and new parts agree

    def guidance_for(self, model: Any) -> float:
        """The guidance scale to draw with. Raises LimnerError, as ``guidance_scale``."""
        return guidance_scale(model, self.guidance, self.usual_guidance, bool(self.autoguidance))

    def fit(self, model: Any) -> Self:
        """These settings as one model uses them. Raises LimnerError for what does not fit it."""
        return replace(self, guidance=self.guidance_for(model))


# What asks for guidance, and what training must leave out for it; a stage of a family may have others.
GUIDANCE_FLAGS = ("--guidance", "--model.condition-dropout")


def guidance_scale(model: Any, wanted: float | None, usual: float, weaker: bool = False) -> float:
    """The guidance scale to draw with; 1 where there is nothing to guide away from, unless a weaker run guides.

    That is where the model follows no condition, or its training left out none. Raises LimnerError for any other
    scale there.
    """
    follows = bool(model.follows & {"label", "text"})
    can_guide = weaker or (follows and getattr(model, "drops_condition", True))
    scale = wanted if wanted is not None else usual if can_guide else 1.0
    flag, dropout = getattr(model, "guidance_flags", GUIDANCE_FLAGS)
    if scale != 1 and not follows and not can_guide:
        raise LimnerError(
            f"This run of {model.family} follows neither prompts nor labels, so {flag} {scale:g} has nothing to guide "
            f"by: leave {flag} out."
        )
    if scale != 1 and not can_guide:
        raise LimnerError(
            f"This run of {model.family} never left its condition out in training, so it cannot draw with "
            f"{flag} {scale:g}: leave {flag} out, or train with {dropout} above 0."
        )
    return scale


def identity(x: Tensor) -> Tensor:
    return x


@dataclass(frozen=True)
class Plan:
    """How a family draws with given settings: its path and levels, and the space that it denoises in."""

    path: Path
    levels: Sequence[NoiseLevel]  # from noise to data, one more than steps
    shape: Sequence[int]  # of x, for one image
    clip: float = 0.0  # guesses are clipped to [-clip, clip]; 0: not
    variance: float = 0.0  # of the ancestral solver, where the network does not learn it
    guided_channels: int = 0  # channels that guidance applies to, counted from the first; 0: all
    encode: Callable[[Tensor], Tensor] = identity  # [B, C, H, W] in [-1, 1] -> [B, *shape], as in training
    decode: Callable[[Tensor], Tensor] = identity  # [B, *shape] -> [B, C, H, W]
    cell: int = 1  # pixels a side of the image for each place of x
    same_space: Callable[[Any], bool] = lambda other: True  # whether another model encodes and decodes alike
    velocity_scale: float = 1.0  # on the straight path: factor of every velocity


class Diffusion(Denoises, Protocol):
    """A model that denoises and has a plan to draw by."""

    spec: ImageSpec
    follows: frozenset[str]

    def plan(self, sampling: Any) -> Plan: ...


def guide(strong: Tensor, weak: Tensor, scale: float) -> Tensor:
    """weak + scale (strong - weak); 1 is no guidance, scale = w + 1 in the terms of Ho and Salimans 2022.

    ``weak`` is a guess without the condition (Ho and Salimans 2022), or that of a smaller or less trained
    network (autoguidance: Karras 2024, eq. 5).
    """
    return weak + scale * (strong - weak)


@dataclass(frozen=True)
class Call:
    """What one network call is made of, alone or beside others: B images at one noise level."""

    model: Diffusion
    x: Tensor  # [B, ...]
    level: NoiseLevel
    rows: ConditionEmbedding  # of B images


# images times height times width of x in one call; with more, a CPU gains nothing (docs/log.md)
CPU_PLACES = 2**13


def evaluate(calls: Sequence[Call]) -> list[Denoised]:
    """The guess for each call. Calls of the same model share a call of its network, on a CPU up to `CPU_PLACES`."""
    groups: list[list[int]] = []
    for i, call in enumerate(calls):
        group = next((group for group in groups if _fits(call, [calls[k] for k in group])), None)
        if group is None:
            groups.append(group := [])
        group.append(i)
    guesses: dict[int, Denoised] = {}
    for group in groups:
        guesses.update(zip(group, _together(calls[group[0]].model, [calls[i] for i in group]), strict=True))
    return [guesses[i] for i in range(len(calls))]


def _fits(call: Call, group: Sequence[Call]) -> bool:
    """Whether a call shares a network call with the others."""
    images = sum(len(other.x) for other in (call, *group))
    places = images * call.x[0, 0].numel()
    return call.model is group[0].model and (call.x.device.type != "cpu" or places <= CPU_PLACES)


def _together(model: Diffusion, calls: Sequence[Call]) -> list[Denoised]:
    x = torch.cat([call.x for call in calls]) if len(calls) > 1 else calls[0].x  # [R, ...]
    sizes = [len(call.x) for call in calls]

    def column(name: str, dtype: torch.dtype) -> Tensor:
        values = [getattr(call.level, name) for call in calls for _ in range(len(call.x))]
        return torch.tensor(values, dtype=dtype, device=x.device)  # [R]

    alpha, sigma = (column(name, x.dtype).view(-1, *[1] * (x.ndim - 1)) for name in ("alpha", "sigma"))
    rows = ConditionEmbedding.cat([call.rows for call in calls])
    data, variance = model.denoise(x, column("time", torch.float32), alpha, sigma, rows)
    variances = [None] * len(calls) if variance is None else variance.split(sizes)
    return [Denoised(*guess) for guess in zip(data.split(sizes), variances, strict=True)]


class Drawing:
    """One request for B images: its solver, and what the solver's queries become.

    Drive it by ``calls``, `evaluate` and ``combine``; `draw` does so for one drawing. The calls of several drawings
    may be evaluated together.
    """

    def __init__(self, model: Diffusion, condition: Condition, sampling: SamplingConfig, draws: Draws):
        if isinstance(model, Model) and not model.drops_condition:  # it never learned to draw without a label
            condition = model.with_labels(condition, draws)
        self.model, self.condition, self.sampling = model, condition, sampling
        self.guidance = sampling.guidance_for(model)
        self.plan = model.plan(sampling)
        self.rows = model.embed(condition)
        self.weak = self._weak()
        self.problem = self._problem(draws)
        self.solver = self._solver()

    def _weak(self) -> tuple[Diffusion, ConditionEmbedding] | None:
        """The model and rows to guide away from: autoguidance's run, or no condition. None: no guidance.

        Raises LimnerError for a run of another family, size, noise schedule or classes.
        """
        model, condition, other = self.model, self.condition, self.sampling.autoguidance
        if self.guidance == 1:
            return None
        if not other:
            given = {"label": condition.label, "text": condition.text}
            if all(given[kind] is None for kind in given.keys() & model.follows):
                return None
            return model, model.embed(Condition(condition.size))
        if isinstance(other, str) or type(other) is not type(model) or other.spec.shape != model.spec.shape:
            raise LimnerError("--autoguidance needs a run of the same family on images of the same size.")
        if condition.label is not None and other.spec.classes != model.spec.classes:
            raise LimnerError("--autoguidance needs a run that was trained on the same labels.")
        if other.plan(self.sampling).path != self.plan.path or not self.plan.same_space(other):
            raise LimnerError(
                "--autoguidance needs a run with the same noise schedule and the same autoencoder."
            )
        return other, other.embed(condition)

    def _problem(self, draws: Draws) -> solvers.Problem:
        """Pure noise, or with an image and no mask that image with the noise of a later step."""
        levels, image, strength = self.plan.levels, self.condition.image, self.sampling.strength
        noise = partial(draws.normal, *self.plan.shape)
        if image is None or self.condition.mask is not None:
            return solvers.Problem(levels[0].sigma * noise(), levels, self.plan.path, noise)
        steps = len(levels) - 1
        levels = levels[steps - max(1, round(strength * steps)) :]
        x = levels[0].sigma * noise() + levels[0].alpha * self.plan.encode(image)
        return solvers.Problem(x, levels, self.plan.path, noise)

    def _solver(self) -> solvers.Solver:
        problem, s, mask = self.problem, self.sampling, self.condition.mask
        if self.condition.image is not None and mask is not None:
            known = self.plan.encode(self.condition.image)
            mask = shrink_mask(mask.float(), known.shape[-2:], self.plan.cell).gt(0).expand_as(known)
            return solvers.repaint(problem, known, mask, s.repaints)
        solver = {  # a generator does nothing before its first query
            "ancestral": solvers.ancestral(problem, self.plan.variance),
            "ddim": solvers.ddim(problem, s.eta),
            "euler": solvers.euler(problem),
            "heun": solvers.heun(problem, s.churn),
            "dpm2m": solvers.dpm_2m(problem),
            "dpm2m_sde": solvers.dpm_2m_sde(problem),
            "dpm3m": solvers.dpm_3m(problem),
            "unipc": solvers.unipc(problem),
        }
        chosen, scale = solver[s.solver], self.plan.velocity_scale
        return chosen if scale == 1 else solvers.scale_velocity(chosen, scale)

    def calls(self, x: Tensor, level: NoiseLevel) -> list[Call]:
        """What a query needs: one call, or with guidance at this level two."""
        calls = [Call(self.model, x, level, self.rows)]
        if self.weak and self.sampling.guidance_low <= level.signal <= self.sampling.guidance_high:
            model, rows = self.weak
            calls.append(Call(model, x, level, rows))
        return calls

    def combine(self, guesses: Sequence[Denoised]) -> Denoised:
        """The answer to the query from the guesses of its calls: guided and clipped."""
        data, variance = guesses[0]
        if len(guesses) > 1:
            guided, n = guide(data, guesses[1].data, self.guidance), self.plan.guided_channels
            data = torch.cat([guided[:, :n], data[:, n:]], dim=1) if n else guided
        clip = self.plan.clip
        return Denoised(data.clamp(-clip, clip) if clip else data, variance)

    def canvas(self, step: solvers.Step) -> Canvas:
        total = len(self.problem.levels) - 1
        denoised = partial(self.picture, step.denoised) if step.done < total else None
        return Canvas(step.done, total, partial(self.picture, step.x), denoised)

    def picture(self, x: Tensor) -> Tensor:
        """[B, *shape] -> [B, C, H, W] in [-1, 1]; pixels outside a mask are exactly the given ones."""
        image, given, mask = self.plan.decode(x).clamp(-1, 1), self.condition.image, self.condition.mask
        return image if given is None or mask is None else torch.where(mask > 0, image, given)


@torch.no_grad()
def draw(model: Diffusion, condition: Condition, sampling: SamplingConfig, draws: Draws) -> Iterator[Canvas]:
    """Canvases from noise to image, [B, C, H, W] in [-1, 1].

    With ``condition.image``, sampling starts from that image with noise; with a mask too, only the marked part is
    drawn. Raises LimnerError for settings that do not fit the model.
    """
    drawing = Drawing(model, condition, sampling, draws)
    yield from map(drawing.canvas, drive(drawing))


def drive(drawing: Drawing) -> Iterator[solvers.Step]:
    """The steps of one drawing alone: each of its queries is answered at once."""

    def denoise(x: Tensor, level: NoiseLevel) -> Denoised:
        return drawing.combine(evaluate(drawing.calls(x, level)))

    return solvers.drive(drawing.solver, denoise)


def shrink_mask(mask: Tensor, size: Sequence[int], cell: int) -> Tensor:
    """[B, 1, H, W] -> [B, 1, h, w], the mean over the ``cell`` x ``cell`` pixels of each place of a latent.

    Where the sides do not divide, latents cover the image with its last row and column repeated, and so does this.
    """
    bottom, right = (cell * places - side for side, places in zip(mask.shape[-2:], size, strict=True))
    return F.interpolate(F.pad(mask, (0, right, 0, bottom), mode="replicate"), list(size), mode="area")
