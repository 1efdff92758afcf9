"""How `video` draws clips of any length: windows, some of whose frames are given, one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, Literal, Protocol

import torch
from torch import Tensor

from limner.core import Canvas, Condition, ConditionEmbedding, Denoised, Draws, ImageSpec
from limner.diffusion.forcing import forcing_levels, frame_steps, key_frames, per_frame, sliding_windows
from limner.diffusion.paths import NoiseLevel
from limner.diffusion.sampling import (
    GUIDANCE_FLAGS,
    Call,
    Drawing,
    Guidance,
    Plan,
    SamplingConfig,
    Shift,
    SolverName,
    drive,
    evaluate,
)
from limner.diffusion.solvers import Step
from limner.fields import Bounds, Checked, Share
from limner.settings import LimnerError

# How a network sees given frames: as they are, with the noise of the frames that are drawn, or as noise alone.
Shown = Literal["clean", "noised", "hidden"]
Order = Literal["keyframes", "together", "pyramid", "frames"]


@dataclass(frozen=True)
class VideoSampling(Checked):
    """How to draw a clip."""

    steps: int = 32  # steps from noise to clip
    # heun: two network calls a step, the others one; stochastic solvers draw two things right more often
    solver: SolverName = "ancestral"
    guidance: Guidance | None = None  # guidance scale; 1: no guidance. Default: 2, or 1 without conditions
    guidance_low: Share = 0.0  # guide only where signal / (signal + noise) is at least this
    # and at most this (Kynkäänniemi 2024): in the last steps guidance follows a text no better, but frames flicker
    guidance_high: Share = 0.8
    # guidance by given frames: 1: none; above: away from the clip that does without them (Song 2025)
    history_guidance: Guidance = 1.0
    shift: Shift = 3.0  # flow matching: above 1, more of the steps near the noise
    # of the frames of a window: few far apart and then those between, all together, each a step behind the one before,
    # or one after another. Default: keyframes where training showed such frames, else together
    order: Order | None = None
    # order=keyframes: how far back to noise all frames are taken in the end, so that they agree; 0: not
    redraw: Share = 0.7
    # of a longer clip: frames of a window that the next one is given. Default: half of them
    kept: Annotated[int, Bounds(1, 1023)] | None = None


class DrawsFrames(Protocol):
    """What `draw_clip` asks of a model: it denoises frames, each with a level of its own."""

    clean: NoiseLevel  # what a given frame is told
    shared_levels: bool  # whether it was trained with one level for all frames alone
    causal: bool  # whether it sees no later frames
    key_frames: bool  # whether training showed it few frames far apart

    @property
    def spec(self) -> ImageSpec: ...

    @property
    def family(self) -> str: ...

    @property
    def follows(self) -> frozenset[str]: ...

    @property
    def drops_condition(self) -> bool: ...

    def plan(self, sampling: Any) -> Plan: ...

    def embed(self, condition: Condition) -> ConditionEmbedding: ...

    def denoise_frames(
        self, x: Tensor, time: Tensor, alpha: Tensor, sigma: Tensor, rows: ConditionEmbedding, stride: int = 1
    ) -> Tensor:
        """x [B, C, T, H, W], its times [B, T], alpha and sigma [B, 1, T, 1, 1] -> the clean clip.

        ``stride``: from each frame of x to the next, in frames of the whole clip.
        """


@dataclass(eq=False)
class Window:
    """Some frames of a clip as a model that `Drawing` draws by; those that are given stay as they are."""

    model: DrawsFrames
    sampling: VideoSampling
    known: Tensor  # [B, C, T, H, W]; frames that are drawn may hold anything
    drawn: Tensor  # [B, 1, T, 1, 1], False: given
    shown: Shown
    noise: Tensor | None = None  # like known, where given frames are not shown clean
    levels: Sequence[NoiseLevel] | None = None  # of each frame now; None: one for all
    stride: int = 1  # from each frame to the next
    guidance_flags: tuple[str, str] = GUIDANCE_FLAGS

    def __post_init__(self) -> None:
        self.spec, self.family, self.follows = self.model.spec, self.model.family, self.model.follows
        self.drops_condition, self.embed = self.model.drops_condition, self.model.embed

    def plan(self, sampling: Any) -> Plan:
        return replace(self.model.plan(self.sampling), shape=self.known.shape[1:])

    def denoise(
        self, x: Tensor, time: Tensor, alpha: Tensor, sigma: Tensor, rows: ConditionEmbedding
    ) -> Denoised:
        """Several times the window's clips, one after the other, where calls are made together."""
        now = [y.reshape(-1, 1).expand(-1, x.shape[2]) for y in (time, alpha, sigma)]  # [R, T] each
        if self.levels is not None:
            now = [_column(self.levels, name, x).expand(len(x), -1) for name in ("time", "alpha", "sigma")]
        repeats = len(x) // len(self.known)
        drawn, known = self.drawn.repeat(repeats, 1, 1, 1, 1), self.known.repeat(repeats, 1, 1, 1, 1)
        frames = drawn[:, 0, :, 0, 0]  # [R, T]
        if self.shown == "noised":
            assert self.noise is not None
            noise = self.noise.repeat(repeats, 1, 1, 1, 1)
            x = torch.where(drawn, x, per_frame(now[1]) * known + per_frame(now[2]) * noise)
        else:
            level, given = self.model.clean, known
            if self.shown == "hidden":
                assert self.noise is not None
                level = self.plan(None).levels[0]
                given = level.sigma * self.noise.repeat(repeats, 1, 1, 1, 1)
            x = torch.where(drawn, x, given)
            told = (level.time, level.alpha, level.sigma)
            now = [torch.where(frames, y, number) for y, number in zip(now, told, strict=True)]
        time, alpha, sigma = now[0].float(), per_frame(now[1]), per_frame(now[2])
        data = self.model.denoise_frames(x, time, alpha, sigma, rows, self.stride)
        return Denoised(torch.where(drawn, data, known))


def _column(levels: Sequence[NoiseLevel], name: str, like: Tensor) -> Tensor:
    """[1, T]"""
    return torch.tensor([[getattr(level, name) for level in levels]], dtype=like.dtype, device=like.device)


class WindowDrawing(Drawing):
    """`Drawing` of a window, with guidance by its given frames besides.

    The guess moves away from that of the window whose given frames are noise (Song 2025, history guidance).
    ``redraw``: how far back to noise the window's clip is taken; 1: it is drawn anew.
    """

    def __init__(self, window: Window, condition: Condition, draws: Draws, redraw: float = 1.0):
        s = window.sampling
        options = SamplingConfig(s.steps, s.solver, s.guidance, s.guidance_low, s.guidance_high)
        if redraw < 1:
            condition, options = replace(condition, image=window.known), replace(options, strength=redraw)
        super().__init__(window, condition, options, draws)
        self.window, self.scale = window, s.history_guidance
        self.blind: Window | None = None
        if self.scale != 1 and not window.drawn.all():
            noise = draws.normal(*window.known.shape[1:])
            self.blind = replace(window, shown="hidden", noise=noise)

    def calls(self, x: Tensor, level: NoiseLevel) -> list[Call]:
        blind = [Call(self.blind, x, level, self.rows)] if self.blind else []
        return super().calls(x, level) + blind

    def combine(self, guesses: Sequence[Denoised]) -> Denoised:
        if self.blind is None:
            return super().combine(guesses)
        *own, blind = guesses
        data = super().combine(own).data + (self.scale - 1) * (own[0].data - blind.data)
        return Denoised(data.clamp(-self.plan.clip, self.plan.clip) if self.plan.clip else data)

    def steps(self, table: Sequence[Sequence[int]] | None) -> Iterator[Step]:
        """The steps to its clip: by its solver, or frame after frame by the levels of a table."""
        if table is None:
            yield from drive(self)
            return
        levels = [*self.plan.levels[:-1], self.window.model.clean]
        solver = frame_steps(self.problem.x, levels, table)
        x, now, done = next(solver)
        while True:
            for window in filter(None, (self.window, self.blind)):
                window.levels = now
            guess = self.combine(evaluate(self.calls(x, max(now, key=lambda level: level.ratio)))).data
            try:
                x, now, done = solver.send(guess)
            except StopIteration as end:
                yield Step(done + 1, end.value, guess)
                return
            yield Step(done, x, guess)


@dataclass(frozen=True)
class Stretch:
    """Frames ``first``, ``first + stride``, ... before ``last`` of a clip, which are drawn at a time."""

    first: int
    last: int
    steps: int
    table: list[list[int]] | None = None  # rows of levels; None: all together
    stride: int = 1
    kept: int = 0  # of its first frames, those that an earlier window has drawn
    redraw: float = 1.0  # how far back to noise the frames are taken; below 1 they have been drawn before

    @property
    def frames(self) -> slice:
        return slice(self.first, self.last, self.stride)


def plan_windows(drawn: Tensor, window: int, sampling: VideoSampling) -> list[Stretch]:
    """What is drawn at a time of a clip [B, 1, T, 1, 1] of which some frames are given; it may reach past the end.

    Raises LimnerError where nothing is left to draw, or ``kept`` leaves nothing of a window.
    """
    wanted = drawn[:, 0, :, 0, 0].any(0).tolist()  # [T], whether any clip of the batch draws the frame
    if not any(wanted):
        raise LimnerError(
            "All frames of the clip are given, so nothing is left to draw: set --frames higher."
        )
    frames, kept = len(wanted), sampling.kept or max(window // 2, 1)
    if frames > window and kept >= window:
        raise LimnerError(f"A window has {window} frames, so it cannot keep {kept}: choose a lower --kept.")
    start = max(0, wanted.index(True) - kept) if frames > window else 0
    spans = [
        (start + first, start + last)
        for first, last in sliding_windows(frames - start, window, kept % window)
    ]
    first, last = spans[-1]
    if (
        last - first < window
    ):  # a window is as long as training's, but where the clip's own last frame is given
        spans[-1] = (first, first + window) if wanted[-1] else (max(0, last - window), last)
    return [
        stretch
        for i, span in enumerate(spans)
        for stretch in _stretches(*span, wanted, sampling, kept if i else 0)
    ]


def _stretches(
    first: int, last: int, wanted: Sequence[bool], sampling: VideoSampling, kept: int
) -> list[Stretch]:
    """How a window is drawn whose first ``kept`` frames the one before has drawn."""
    left = [i >= kept and (first + i >= len(wanted) or wanted[first + i]) for i in range(last - first)]
    whole = Stretch(first, last, sampling.steps, kept=kept)
    keys = key_frames(len(left))
    if sampling.order in (None, "together"):
        return [whole]
    if sampling.order == "keyframes":
        # Frames that are given between key frames tell more than key frames could.
        between = [drawn for i, drawn in enumerate(left) if i not in keys]
        if not (between and all(between) and any(left[i] for i in keys)):
            return [whole]
        parts = [replace(whole, last=first + keys[-1] + 1, stride=keys.step), whole]
        if sampling.redraw:
            steps = max(1, round(sampling.redraw * sampling.steps))
            parts.append(replace(whole, steps=steps, redraw=sampling.redraw))
        return parts
    behind = 1 if sampling.order == "pyramid" else sampling.steps
    rows = forcing_levels(sum(left), sampling.steps, behind)
    places = [sum(left[:i]) for i in range(len(left))]  # of each frame among those that are drawn
    table = [[row[at] if draws else 0 for at, draws in zip(places, left, strict=True)] for row in rows]
    return [replace(whole, steps=len(table) - 1, table=table)]


def draw_clip(
    model: DrawsFrames, condition: Condition, sampling: VideoSampling, draws: Draws
) -> Iterator[Canvas]:
    """Canvases of clips [B, C, T, H, W] in [-1, 1]; T is that of ``condition.image``, or of the model's spec.

    With ``condition.mask`` [B, 1, T, 1, 1] frames of the image where it is 0 are given, and come back exactly; without
    one, all frames are drawn. Raises LimnerError for settings that do not fit the model.
    """
    clip, drawn = _start(model, condition, draws)
    condition = replace(condition, image=None, mask=None)
    sampling = _fit(model, drawn, sampling)
    stretches, frames = plan_windows(drawn, model.spec.frames, sampling), clip.shape[2]
    past = max(stretches[-1].last - frames, 0)
    clip = torch.where(drawn, 0.0, clip)
    known = torch.cat([clip, clip.new_zeros(*clip.shape[:2], past, *clip.shape[3:])], dim=2)
    wanted = torch.cat([drawn, drawn.new_ones(len(drawn), 1, past, 1, 1)], dim=2)
    left = wanted.clone()  # what is still to be drawn
    done, total = 0, sum(stretch.steps for stretch in stretches)
    encode = model.plan(sampling).encode

    def picture(known: Tensor, opened: Tensor, stretch: Stretch, x: Tensor) -> Tensor:
        return _paste(known, opened, stretch, x)[:, :, :frames]

    for stretch in stretches:
        opened = left[:, :, stretch.frames]
        if stretch.redraw < 1:
            opened = wanted[:, :, stretch.frames].clone()
            opened[:, :, : stretch.kept] = False
        shown = encode(known[:, :, stretch.frames])
        window = _window(model, sampling, shown, opened, draws, stretch.stride)
        for step in WindowDrawing(window, condition, draws, stretch.redraw).steps(stretch.table):
            at, drawing = done + step.done, partial(picture, known, opened, stretch)
            yield Canvas(
                at, total, partial(drawing, step.x), partial(drawing, step.denoised) if at < total else None
            )
        known = _paste(known, opened, stretch, step.x)
        left = left.clone()
        left[:, :, stretch.frames] = False
        done += stretch.steps


def _paste(known: Tensor, opened: Tensor, stretch: Stretch, x: Tensor) -> Tensor:
    """``known`` [B, C, T, H, W] with the frames of a stretch that are ``opened`` [B, 1, t, 1, 1] as in x."""
    known = known.clone()
    known[:, :, stretch.frames] = torch.where(opened, x.clamp(-1, 1), known[:, :, stretch.frames])
    return known


def _start(model: DrawsFrames, condition: Condition, draws: Draws) -> tuple[Tensor, Tensor]:
    """A clip [B, C, T, H, W], and which of its frames are drawn [B, 1, T, 1, 1]."""
    clip, mask = condition.image, condition.mask
    if clip is None:
        clip = torch.zeros(len(draws), *model.spec.shape, device=draws.device)
    if mask is None:
        mask = torch.ones(len(clip), 1, clip.shape[2], 1, 1, device=clip.device)
    return clip, mask > 0


def _fit(model: DrawsFrames, drawn: Tensor, sampling: VideoSampling) -> VideoSampling:
    """``sampling`` with an order. Raises LimnerError for what the training of the model leaves out."""
    frames = drawn[:, 0, :, 0, 0]  # [B, T]
    order = sampling.order or ("keyframes" if model.key_frames else "together")
    if model.causal and bool((frames[:, :-1] & ~frames[:, 1:]).any()):
        raise LimnerError(
            "This run was trained with --model.causal, so no frame sees a later one: leave out --last."
        )
    if model.shared_levels and order in ("pyramid", "frames"):
        raise LimnerError(
            f"This run was trained with --model.levels shared, so its frames cannot be drawn with --order {order}: "
            "leave that out, or name a run of --model.levels frames."
        )
    if order == "keyframes" and not model.key_frames:
        raise LimnerError(
            "This run was not trained on few frames far apart (--model.sparse), or sees no later frames, so it cannot "
            "draw with --order keyframes: leave that out."
        )
    if model.shared_levels and sampling.history_guidance != 1:
        raise LimnerError(
            "This run was trained with --model.levels shared, so it takes no --history-guidance: leave that out, or "
            "name a run of --model.levels frames."
        )
    return replace(sampling, order=order)


def _window(
    model: DrawsFrames, sampling: VideoSampling, known: Tensor, drawn: Tensor, draws: Draws, stride: int
) -> Window:
    if model.shared_levels and not drawn.all():  # Ho 2022, section 3.1: given frames take part in the noise
        noise = draws.normal(*known.shape[1:])
        return Window(model, sampling, known, drawn, "noised", noise, stride=stride)
    return Window(model, sampling, known, drawn, "clean", stride=stride)
