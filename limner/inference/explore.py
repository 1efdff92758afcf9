"""The latent space of a run: sheets that show it, and the point of a given picture."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from limner import checkpoint, files
from limner.checkpoint.tensors import read_tensors
from limner.core import Autoencodes, Condition, Directed, Draws, ImageSpec, Latent, Layered
from limner.data import finder, open_picture
from limner.fields import JsonResult
from limner.inference import latents
from limner.inference.options import By, ExploreOptions, ProjectOptions
from limner.inference.pipeline import condition_for
from limner.inference.threads import THREADS
from limner.inference.understand import open_run
from limner.metrics.pixels import psnr, pyramid
from limner.networks.interpolation import lerp, slerp
from limner.pictures.film import save_gif
from limner.pictures.grid import grid, save_grid
from limner.progress import Watch, bar, ignore, part
from limner.settings import DataOptions, LimnerError

SAMPLES = 1024  # points that the centre and the spread of a latent space are estimated from
SIGMAS = (-3, -2, -1, 0, 1, 2, 3)  # along a direction, in standard deviations
POINTS = 8  # where the Jacobian is taken
FRAMES = 16  # of a loop, from one point to the next
LOOPS = 4  # side by side in one animation
STARTS = 4  # points that a projection optimises
BATCH = 64


# The latent space ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Space:
    """The latent space of a run, with where its points lie."""

    model: Any  # a Model that is Latent
    spec: ImageSpec
    digest: str
    options: DataOptions  # how the run opened its images
    responds_to_label: bool  # whether images depend on labels; the model takes them even where they do not
    samples: Tensor  # [N, D] random points, labels in turn
    centre: Tensor  # [D]
    spread: float  # standard deviation of a coordinate, over all of them

    def condition(self, n: int, labels: Sequence[str]) -> Condition:
        """The condition of ``n`` images; the labels that are not empty, or else all classes, are taken in turn."""
        labels = list(filter(None, labels)) or (self.spec.classes if "label" in self.model.follows else ())
        return condition_for(self.model, n, labels=labels).to(self.model.device)

    def points(self, seeds: Sequence[int], labels: Sequence[str], truncation: float) -> Tensor:
        """[N, D] random points, moved towards the centre where ``truncation`` is below 1."""
        points = self.model.latent(self.condition(len(seeds), labels), Draws(seeds, self.model.device))
        return torch.lerp(self.centre, points.float(), truncation)

    @torch.inference_mode()
    def paint(self, points: Tensor, labels: Sequence[str], watch: Watch = ignore) -> Tensor:
        """[N, ..., D] -> [N, *spec.shape] in [-1, 1] on the CPU; one label for all, or one for each."""
        condition, images = self.condition(len(points), labels), []
        with THREADS.at_work(points.device):
            for at in THREADS.each(range(0, len(points), BATCH), "paint"):
                rows = slice(at, at + BATCH)
                images.append(self.model.paint(points[rows], condition[rows]).float().clamp(-1, 1).cpu())
                watch(min(at + BATCH, len(points)) / len(points))
        return torch.cat(images)

    def interpolate(self, one: Tensor, other: Tensor, t: Tensor) -> Tensor:
        """Along an arc round the centre; along a line where each layer may have its own point. See ``lerp``."""
        if isinstance(self.model, Layered):
            return lerp(one, other, t)
        return self.centre + slerp(one - self.centre, other - self.centre, t)

    def directions(self, by: By, count: int, label: str, watch: Watch) -> Tensor:
        """[K, D] of length 1, the strongest first. Raises LimnerError where the weights give no directions."""
        model = self.model
        if by == "auto":
            by = "pca" if isinstance(model, Layered) else "jacobian"  # noise has no principal directions
        if by == "weights":
            if not isinstance(model, Directed):
                raise LimnerError(
                    "The weights of this family give no directions: choose --by jacobian, or pca where a mapping "
                    "network makes the points."
                )
            return model.directions()[:count].to(self.centre).detach()
        if by == "pca":
            return latents.principal_directions(self.samples, count)
        paint = partial(model.paint, condition=self.condition(POINTS, [label]))
        at = self.points(range(POINTS), [label], 1.0)
        return latents.jacobian_directions(paint, at, count, 0.5 * self.spread, watch=watch)


def open_space(run: str | Path, device: str = "auto") -> Space:
    """Raises LimnerError for a run without a latent space."""
    pipeline = open_run(run, Latent, device)
    model, spec = pipeline.model.requires_grad_(False), pipeline.spec
    assert isinstance(model, Latent)
    follows = "label" in model.follows
    with torch.inference_mode():
        responds = follows and _responds_to_label(model, spec)
        condition = condition_for(model, SAMPLES, labels=spec.classes if follows else ()).to(model.device)
        samples = model.latent(condition, Draws(range(SAMPLES), model.device)).float()
    samples = samples.clone()  # no longer an inference tensor
    centre = samples.mean(0)
    spread = (samples - centre).square().mean().sqrt().item()
    return Space(model, spec, pipeline.digest, pipeline.loaded.run.data, responds, samples, centre, spread)


def _responds_to_label(model: Any, spec: ImageSpec) -> bool:
    """Whether two labels give two images of one seed: a run may be set to ignore its labels."""
    ends = (condition_for(model, 1, labels=[spec.classes[i]]).to(model.device) for i in (0, -1))
    one, other = (model.paint(model.latent(end, Draws([0], model.device)), end) for end in ends)
    return len(spec.classes) == 1 or not torch.equal(one, other)


# Sheets -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Anchors:
    """The points of a latent space that the sheets interpolate between."""

    space: Space
    options: ExploreOptions
    labels: tuple[str, ...]  # one a row, in turn; one empty string where there are none
    names: tuple[str, ...]  # of the points
    given: tuple[Tensor, ...]  # points of projected pictures, [D] or [L, D]; they come first
    seeds: range  # of the other points

    def points(self, label: str) -> Tensor:
        """[N, D] for one label; [N, L, D] where a given one has a point for each layer."""
        random = self.space.points(self.seeds, [label], self.options.truncation)
        points = [*self.given, *random]
        if any(point.ndim > 1 for point in self.given):
            points = [point.expand(self.space.model.layers, -1) for point in points]
        return torch.stack(points)

    def name(self, i: int, label: str) -> str:
        """The caption of a point: its name, and its label if there is one."""
        return ", ".join(filter(None, (self.names[i], label)))


def interpolations(anchors: Anchors, path: Path, watch: Watch) -> None:
    """A row for each pair of neighbouring points, its label in turn."""
    images, captions = [], []
    rows, columns = anchors.options.rows, anchors.options.columns
    t = torch.linspace(0, 1, columns, device=anchors.space.centre.device)
    for row in range(rows):
        label = anchors.labels[row % len(anchors.labels)]
        one, other = anchors.points(label)[row : row + 2]
        images.append(anchors.space.paint(anchors.space.interpolate(one, other, t), [label]))
        captions += [anchors.name(row, label), *[""] * (columns - 2), anchors.name(row + 1, label)]
        watch((row + 1) / rows)
    save_grid(path, torch.cat(images), captions, columns)


def loop(anchors: Anchors, path: Path, watch: Watch) -> None:
    """An animation that ends where it began: images side by side, labels in turn."""
    loops = []
    for i in range(LOOPS):
        label = anchors.labels[i % len(anchors.labels)]
        stops = anchors.points(label)[:LOOPS].roll(-i, 0)
        points = latents.loop(stops, FRAMES, anchors.space.interpolate)
        loops.append(anchors.space.paint(points, [label]))
        watch((i + 1) / LOOPS)
    save_gif(path, [grid(list(pictures), columns=LOOPS) for pictures in zip(*loops, strict=True)], 80)


def plane(anchors: Anchors, path: Path, watch: Watch) -> None:
    """Between four points, which are the corners."""
    side, label = anchors.options.columns, anchors.labels[0]
    points = latents.plane(anchors.points(label)[:4], side, anchors.space.interpolate)  # [side, side, ..., D]
    captions = [""] * side**2
    for i, corner in enumerate((0, side - 1, side**2 - side, side**2 - 1)):
        captions[corner] = anchors.name(i, label)
    save_grid(path, anchors.space.paint(points.flatten(0, 1), [label], watch), captions, side)


def mixing(anchors: Anchors, path: Path, watch: Watch) -> None:
    """Rows of coarse layers, columns of fine ones (Karras 2019, figure 3), for three layers to cross at."""
    label, layers = anchors.labels[0], anchors.space.model.layers
    points = anchors.points(label)[:4]
    if points.ndim == 2:
        points = points[:, None].expand(-1, layers, -1)  # [4, L, D]
    mixed, captions = [], []
    for cross in sorted({max(1, layers * quarter // 4) for quarter in (1, 2, 3)}):
        for coarse, name in zip(points, anchors.names, strict=False):
            mixed += [torch.cat([coarse[:cross], fine[cross:]]) for fine in points]
            captions += [f"{name} to layer {cross}, then {other}" for other in anchors.names[:4]]
    save_grid(path, anchors.space.paint(torch.stack(mixed), [label], watch), captions, 4)


def directions(anchors: Anchors, path: Path, watch: Watch) -> None:
    """A row for each direction, from three standard deviations below the first point to three above."""
    space, label = anchors.space, anchors.labels[0]
    vectors = space.directions(anchors.options.by, anchors.options.directions, label, watch)  # [K, D]
    sigmas = ((space.samples - space.centre) @ vectors.T).std(0)  # [K]
    point = anchors.points(label)[0]
    steps = torch.tensor(SIGMAS, device=vectors.device) * sigmas[:, None]  # [K, 7]
    moves = (steps[:, :, None] * vectors[:, None]).flatten(0, 1)  # [K * 7, D]
    moves = moves.reshape(len(moves), *[1] * (point.ndim - 1), -1)
    captions = []
    for k in range(len(vectors)):
        captions += [f"direction {k + 1}: {s:+d}\u03c3" if s else anchors.names[0] for s in SIGMAS]
    save_grid(path, space.paint(point + moves, [label]), captions, len(SIGMAS))
    tensors = {"directions": vectors, "sigmas": sigmas, "centre": space.centre}
    _save_tensors(path.with_suffix(".safetensors"), tensors, {"run": space.digest})


SHEETS = {
    "interpolation.png": interpolations, "loop.gif": loop, "plane.png": plane, "directions.png": directions
}  # fmt: skip


@dataclass(frozen=True)
class Exploration(JsonResult):
    """What ``explore`` wrote."""

    run: str  # digest
    to: str
    sheets: list[str]
    points: list[str]  # names of the points, in the order of the sheets
    labels: list[str]
    directions: int


def explore(
    run: str | Path, to: str | Path = "", options: ExploreOptions = ExploreOptions(), *, device: str = "auto",
    quiet: bool = False,
) -> Exploration:  # fmt: skip
    """Draw sheets of a latent space in the folder ``to`` (RUN/explore): interpolations, a loop, directions.

    The points are those of the files in ``options.start``, which ``project`` wrote, then random ones. Raises
    LimnerError.
    """
    folder = Path(to or checkpoint.folder_of(run) / "explore")
    files.check_writable(folder, folder=True)
    space = open_space(run, device)
    anchors = find_anchors(space, options)
    sheets = SHEETS | ({"mixing.png": mixing} if isinstance(space.model, Layered) else {})
    with bar("exploring", quiet) as watch, files.together():
        for number, (name, draw_sheet) in enumerate(sheets.items()):
            draw_sheet(anchors, folder / name, part(watch, number / len(sheets), 1 / len(sheets)))
    return Exploration(
        run=space.digest, to=str(folder), sheets=[str(folder / name) for name in sheets],
        points=list(anchors.names[: len(anchors.seeds)]), labels=list(filter(None, anchors.labels)),
        directions=min(options.directions, len(space.centre)),
    )  # fmt: skip


def find_anchors(space: Space, options: ExploreOptions, least: int = 4) -> Anchors:
    """The points to interpolate between, ``least`` or more. Raises LimnerError."""
    check_labels(space, options.label)
    given = [load_point(file, space) for file in options.start]
    first = [label for _, label in given if label][:1]
    labels = options.label or first or (space.spec.classes if space.responds_to_label else [""])
    seeds = range(
        options.seed, options.seed + max(options.rows + 1, least)
    )  # enough where no points are given
    names = (*(Path(file).stem for file in options.start), *(f"seed {seed}" for seed in seeds))
    return Anchors(space, options, tuple(labels), names, tuple(point for point, _ in given), seeds)


def check_labels(space: Space, labels: Sequence[str]) -> None:
    condition_for(space.model, 1, labels=labels)  # type: ignore[arg-type]
    if labels and not space.responds_to_label:
        raise LimnerError("This run draws the same image for every label: leave --label out.")


# The point of a picture ---------------------------------------------------------------------------------


def distance(x: Tensor, y: Tensor) -> Tensor:
    """[B, C, H, W] twice -> [B]: mean square error, plus the mean absolute error of each Laplacian pyramid level.

    The pyramid loss is that of Bojanowski 2018.
    """
    levels = zip(pyramid(x, least=2), pyramid(y, least=2), strict=True)
    return (x - y).square().flatten(1).mean(1) + sum((a - b).abs().flatten(1).mean(1) for a, b in levels)


@dataclass(frozen=True)
class Projection(JsonResult):
    """The point that ``project`` found."""

    picture: str
    to: str
    latent: str  # .safetensors that holds the point
    label: str
    steps: int
    psnr_start: float  # dB, of the best start
    psnr: float  # dB, of the point


def project(
    run: str | Path, picture: str | Path, to: str | Path = "projection.png",
    options: ProjectOptions = ProjectOptions(), *, device: str = "auto", quiet: bool = False,
) -> Projection:  # fmt: skip
    """Find the point whose image is closest to a picture: a sheet, and the point beside it as .safetensors.

    The best of the centre, of random points with every label, and of the model's encoding of the picture are
    optimised by Adam. Raises LimnerError.
    """
    to, picture = Path(to), Path(picture)
    if to.suffix.lower() != ".png":
        raise LimnerError(f"Cannot write {to}: name a .png for the sheet; the point is kept beside it.")
    beside = to.with_suffix(".safetensors")
    files.refuse_to_replace(to, [picture])
    files.refuse_to_replace(beside, [], beside=to)
    files.check_writable(to)
    space = open_space(run, device)
    check_labels(space, [options.label] if options.label else [])
    if options.each_layer and not isinstance(space.model, Layered):
        raise LimnerError("The layers of this run share one point: leave --each-layer out.")
    target = open_picture(picture, space.spec, space.options)  # [1, C, H, W]
    with bar(f"projecting {picture.name}", quiet) as watch:
        points, labels = candidates(space, target, options)
        distances = distance(space.paint(points, labels), target)
        best = distances.topk(min(STARTS, len(points)), largest=False).indices
        starts, labels = points[best.to(points.device)], [labels[i] for i in best.tolist() if labels]
        start = space.paint(starts[:1], labels[:1])
        point, label = _optimise(space, target, starts, labels, options, watch)
    image = space.paint(point[None], [label])
    psnr_start, psnr_end = (psnr(x, target).clamp(max=99.0).item() for x in (start, image))
    difference = (target - image).abs() - 1  # black where nothing differs
    if space.spec.channels == 4:
        difference[:, 3] = 1.0
    found = ", ".join(filter(None, (f"found: {psnr_end:.1f} dB", label)))
    captions = [picture.name, f"start: {psnr_start:.1f} dB", found, "difference"]
    about = {"run": space.digest, "label": label, "picture": os.fsencode(picture).decode("utf-8", "replace")}
    with files.together():
        save_grid(to, torch.cat([target, start, image, difference]), captions, 4)
        _save_tensors(beside, {"latent": point}, about)
    return Projection(str(picture), str(to), str(beside), label, options.steps, psnr_start, psnr_end)


def _optimise(
    space: Space, target: Tensor, points: Tensor, labels: list[str], options: ProjectOptions, watch: Watch
) -> tuple[Tensor, str]:
    """The best point [D] or [L, D] that Adam reaches from the starts [N, D], and its label."""
    if options.each_layer:
        points = points[:, None].repeat(1, space.model.layers, 1)  # [N, L, D]
    condition, target = space.condition(len(points), labels), target.to(points.device)

    def loss(points: Tensor) -> Tensor:
        penalty = ((points - space.centre) / space.spread).square().flatten(1).mean(1)
        return distance(space.model.paint(points, condition).float(), target) + options.prior * penalty

    best, losses = latents.descend(loss, points, options.steps, options.rate * space.spread, watch)
    i = int(losses.argmin())
    return best[i], labels[i] if labels else ""


@torch.no_grad()
def candidates(space: Space, target: Tensor, options: ProjectOptions) -> tuple[Tensor, list[str]]:
    """Points [N, D] to start from, with a label for each, or no labels at all."""
    classes = [options.label] if options.label else list(space.spec.classes)
    classes = classes if space.responds_to_label else []
    n = max(options.tries, len(classes))
    random = space.points(range(options.seed, options.seed + n), classes, 1.0)
    others = [space.centre[None]]
    if isinstance(space.model, Autoencodes):
        code = space.model.encode(target.to(space.centre.device)).float()
        others += [code] if code.shape[1:] == space.centre.shape else []
    points = torch.cat([random, *(point.expand(max(len(classes), 1), -1) for point in others)])
    return points, [classes[i % len(classes)] for i in range(n)] + classes * len(others) if classes else []


def _save_tensors(path: Path, tensors: dict[str, Tensor], about: dict[str, str]) -> None:
    with files.atomic(path) as unfinished:
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, unfinished, about)


def load_point(path: str | Path, space: Space) -> tuple[Tensor, str]:
    """What ``project`` wrote: a point [D] or [L, D], and its label or "". Raises LimnerError."""
    try:
        about, tensors, _ = read_tensors(Path(path))
        point = tensors["latent"]
    except (OSError, KeyError, files.Damaged) as error:
        raise LimnerError(
            f"{path} is not a point that limner project wrote ({error}): name its .safetensors file."
        ) from None
    layers = (space.model.layers,) if isinstance(space.model, Layered) else ()
    if point.shape not in (space.centre.shape, (*layers, *space.centre.shape)):
        raise LimnerError(f"{path} holds a point of another run: project its picture with this run.")
    if not point.is_floating_point() or not point.isfinite().all():
        raise LimnerError(
            f"{path} is damaged: its point has values that are not finite; project the picture again."
        )
    label = about.get("label", "")
    return point.to(space.centre), label if space.responds_to_label and finder(space.spec.classes)(
        label
    ) >= 0 else ""
