"""What one does with the latent of a run: sheets of what lies in it, and the point of a given picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from limner import checkpoint, families, files
from limner.core import (
    Autoencodes,
    Condition,
    DataOptions,
    Directed,
    Draws,
    ImageSpec,
    Latent,
    Layered,
    LimnerError,
)
from limner.data import open_picture
from limner.inference import latents
from limner.inference.pipeline import Pipeline, condition_for
from limner.metrics.pixels import psnr, pyramid
from limner.pictures.grid import grid
from limner.progress import bar

DRAWN = 1024  # points that tell a latent's centre and spread
SIGMAS = (-3, -2, -1, 0, 1, 2, 3)  # along a direction, in deviations
POINTS = 8  # where the pipeline's Jacobian is taken
FRAMES = 16  # of a loop, from one point to the next
LOOPS = 4  # beside each other in one animation
STARTS = 4  # that a projection goes on from
BATCH = 64

By = Literal["auto", "pca", "jacobian", "weights"]
Watch = Callable[[float], None]


# A latent -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Space:
    """The latent of a run, with where its points lie."""

    model: Any  # a Model that is Latent
    spec: ImageSpec
    digest: str
    options: DataOptions  # how the run opened its images
    labels: bool  # whether an image depends on its label; it is given one even where it does not
    drawn: Tensor  # [N, D] points, labels in turn
    centre: Tensor  # [D]
    spread: float  # deviation of a coordinate, over all of them

    def condition(self, n: int, labels: Sequence[str]) -> Condition:
        """Of ``n`` images; the labels are taken in turn, or all there are."""
        labels = labels or (self.spec.classes if "label" in self.model.follows else ())
        return condition_for(self.model, n, labels=labels, device=str(self.model.device))

    def points(self, seeds: Sequence[int], labels: Sequence[str], truncation: float) -> Tensor:
        """[N, D], drawn towards the centre where ``truncation`` is below 1."""
        drawn = self.model.latent(self.condition(len(seeds), labels), Draws(seeds, self.model.device))
        return torch.lerp(self.centre, drawn.float(), truncation)

    @torch.inference_mode()
    def paint(self, points: Tensor, labels: Sequence[str], watch: Watch | None = None) -> Tensor:
        """[N, ..., D] -> [N, *spec.shape] in [-1, 1] on the CPU; one label for all, or one for each."""
        condition, painted = self.condition(len(points), labels), []
        for at in range(0, len(points), BATCH):
            part = slice(at, at + BATCH)
            painted.append(self.model.paint(points[part], condition[part]).float().clamp(-1, 1).cpu())
            if watch:
                watch(min(at + BATCH, len(points)) / len(points))
        return torch.cat(painted)

    def way(self, one: Tensor, other: Tensor, shares: Tensor) -> Tensor:
        """Between two points: along an arc round the centre, but straight where layers have points of their own."""
        if isinstance(self.model, Layered):
            return latents.line(one, other, shares)
        return self.centre + latents.arc(one - self.centre, other - self.centre, shares)

    def directions(self, by: By, count: int, label: str, watch: Watch) -> Tensor:
        """[K, D] of length 1, the strongest first. Raises LimnerError for weights that do not tell."""
        model = self.model
        if by == "auto":
            by = "pca" if isinstance(model, Layered) else "jacobian"  # noise varies alike in all directions
        if by == "weights":
            if not isinstance(model, Directed):
                raise LimnerError(
                    "This family's weights tell no directions: choose --by jacobian, or pca where a mapping "
                    "network makes the points."
                )
            return model.directions()[:count].to(self.centre).detach()
        if by == "pca":
            return latents.principal(self.drawn, count)
        condition = self.condition(POINTS, [label] if label else ())
        paint = partial(model.paint, condition=condition)
        at = self.points(range(POINTS), [label] if label else (), 1.0)
        return latents.strongest(paint, at, count, 0.5 * self.spread, watch=watch)


def open_space(run: str | Path, device: str = "auto") -> Space:
    """Raises LimnerError for a run without a latent."""
    pipeline = Pipeline(run, device)
    model, spec = pipeline.model.requires_grad_(False), pipeline.spec
    if not isinstance(model, Latent):
        able = [name for name in families.names() if issubclass(families.load(name), Latent)]
        raise LimnerError(
            f"{pipeline.loaded.path} is a run of {pipeline.loaded.run.family}, which has no latent to move in: "
            f"use a run of {' or '.join(filter(None, [', '.join(able[:-1]), able[-1]]))}."
        )
    follows = "label" in model.follows
    with torch.inference_mode():
        heeds = follows and _heeds_labels(model, spec)
        label = torch.arange(DRAWN, device=model.device) % len(spec.classes) if follows else None
        drawn = model.latent(Condition(DRAWN, label=label), Draws(range(DRAWN), model.device)).float()
    drawn = drawn.clone()  # of inference no more
    centre = drawn.mean(0)
    spread = (drawn - centre).square().mean().sqrt().item()
    digest = pipeline.loaded.header.get("digest", "")
    return Space(model, spec, digest, pipeline.loaded.run.data, heeds, drawn, centre, spread)


def _heeds_labels(model: Latent, spec: ImageSpec) -> bool:
    """Whether two labels give two pictures of one seed: a run may have been told to leave its labels alone."""
    if len(spec.classes) == 1:
        return True
    painted = []
    for label in (0, len(spec.classes) - 1):
        device = model.device  # type: ignore[attr-defined]
        condition = Condition(1, label=torch.tensor([label], device=device))
        painted.append(model.paint(model.latent(condition, Draws([0], device)), condition))
    return not torch.equal(*painted)


# Sheets -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tour:
    """The points of a latent that the sheets go between."""

    space: Space
    labels: tuple[str, ...]  # a row each, in turn; one empty word where there are none
    names: tuple[str, ...]  # of the points
    given: tuple[Tensor, ...]  # points of projected pictures, [D] or [L, D]; they come first
    seeds: range  # of the other points
    truncation: float
    rows: int
    columns: int
    directions: int
    by: By

    def points(self, label: str) -> Tensor:
        """[N, D] for one label; [N, L, D] where a given one has a point for each layer."""
        drawn = self.space.points(self.seeds, [label] if label else (), self.truncation)
        if any(point.ndim > 1 for point in self.given):
            layers = self.space.model.layers
            return torch.stack([p.expand(layers, -1) for p in (*self.given, *drawn)])
        return torch.stack([*self.given, *drawn])

    def paint(self, points: Tensor, label: str, watch: Watch | None = None) -> Tensor:
        return self.space.paint(points, [label] if label else (), watch)


def interpolation(tour: Tour, path: Path, watch: Watch) -> None:
    """A row for each pair of neighbouring points, its label in turn."""
    images, words = [], []
    shares = torch.linspace(0, 1, tour.columns, device=tour.space.centre.device)
    for row in range(tour.rows):
        label = tour.labels[row % len(tour.labels)]
        one, other = tour.points(label)[row : row + 2]
        images.append(tour.paint(tour.space.way(one, other, shares), label))
        ends = [", ".join(filter(None, (name, label))) for name in tour.names[row : row + 2]]
        words += [ends[0], *[""] * (tour.columns - 2), ends[1]]
        watch((row + 1) / tour.rows)
    _save(grid(torch.cat(images), words, tour.columns), path)


def loops(tour: Tour, path: Path, watch: Watch) -> None:
    """An animation that ends where it began: images side by side, each with a label in turn."""
    films = []
    for i in range(LOOPS):
        label = tour.labels[i % len(tour.labels)]
        stops = tour.points(label)[:LOOPS].roll(-i, 0)
        films.append(tour.paint(latents.loop(stops, FRAMES, tour.space.way), label))
        watch((i + 1) / LOOPS)
    frames = [grid(list(pictures), columns=LOOPS) for pictures in zip(*films, strict=True)]
    with files.whole(path) as unfinished:
        frames[0].save(
            unfinished, "GIF", save_all=True, append_images=frames[1:], duration=80, loop=0
        )  # milliseconds a frame


def plane(tour: Tour, path: Path, watch: Watch) -> None:
    """Between four points, which stand in the corners."""
    side, label = tour.columns, tour.labels[0]
    points = latents.plane(tour.points(label)[:4], side, tour.space.way)  # [side, side, ..., D]
    words = [""] * side**2
    for at, name in zip((0, side - 1, side**2 - side, side**2 - 1), tour.names[:4], strict=True):
        words[at] = ", ".join(filter(None, (name, label)))
    _save(grid(tour.paint(points.flatten(0, 1), label, watch), words, side), path)


def mixing(tour: Tour, path: Path, watch: Watch) -> None:
    """Rows of coarse layers, columns of fine ones (Karras 2019, figure 3), for three places to cross."""
    label, layers = tour.labels[0], tour.space.model.layers
    points = tour.points(label)[:4]
    if points.ndim == 2:
        points = points[:, None].expand(-1, layers, -1)  # [4, L, D]
    made, words = [], []
    for cross in sorted({max(1, layers * share // 4) for share in (1, 2, 3)}):
        for coarse, name in zip(points, tour.names, strict=False):
            made += [torch.cat([coarse[:cross], fine[cross:]]) for fine in points]
            words += [f"{name} to layer {cross}, then {other}" for other in tour.names[:4]]
    _save(grid(tour.paint(torch.stack(made), label, watch), words, 4), path)


def directions(tour: Tour, path: Path, watch: Watch) -> None:
    """A row for each direction, from three deviations below the first point to three above."""
    space, label = tour.space, tour.labels[0]
    found = space.directions(tour.by, tour.directions, label, watch)  # [K, D]
    sigmas = ((space.drawn - space.centre) @ found.T).std(0)  # [K]
    point = tour.points(label)[0]
    steps = torch.tensor(SIGMAS, device=found.device) * sigmas[:, None]  # [K, 7]
    moves = (steps[:, :, None] * found[:, None]).flatten(0, 1)  # [K * 7, D]
    moves = moves.reshape(len(moves), *[1] * (point.ndim - 1), -1)
    words = [
        f"direction {k + 1}: {sigma:+d}\u03c3" if sigma else tour.names[0]
        for k in range(len(found))
        for sigma in SIGMAS
    ]
    _save(grid(tour.paint(point + moves, label), words, len(SIGMAS)), path)
    kept = {"directions": found, "sigmas": sigmas, "centre": space.centre}
    _save_tensors(path.with_suffix(".safetensors"), kept, {"run": space.digest})


SHEETS = {
    "interpolation.png": interpolation,
    "loop.gif": loops,
    "plane.png": plane,
    "directions.png": directions,
}


def explore(
    run: str | Path,
    to: str | Path = "",
    labels: Sequence[str] = (),
    starts: Sequence[str | Path] = (),
    rows: int = 6,
    columns: int = 9,
    directions: int = 6,
    by: By = "auto",
    truncation: float = 1.0,
    seed: int = 0,
    device: str = "auto",
    quiet: bool = False,
) -> dict[str, Any]:
    """Sheets of a latent in the folder ``to`` (RUN/explore): ways between points, and what directions change.

    The points are those of the files in ``starts``, which ``project`` wrote, then of the seeds from ``seed`` on.
    Raises LimnerError.
    """
    if rows < 1 or columns < 2 or directions < 1:
        raise LimnerError("There is nothing to draw: ask for at least 1 row, 2 columns and 1 direction.")
    space = open_space(run, device)
    folder = Path(to or checkpoint.folder_of(run) / "explore")
    check_labels(space, labels)
    given = [load_point(file, space) for file in starts]
    labels = (
        labels or [label for _, label in given if label][:1] or (space.spec.classes if space.labels else [""])
    )
    seeds = range(seed, seed + max(rows + 1, 4))  # as many as are needed where no points are given
    names = [*(Path(file).stem for file in starts), *(f"seed {s}" for s in seeds)]
    points = tuple(point for point, _ in given)
    tour = Tour(space, tuple(labels), tuple(names), points, seeds, truncation, rows, columns, directions, by)
    sheets = SHEETS | ({"mixing.png": mixing} if isinstance(space.model, Layered) else {})
    with bar("exploring", quiet) as watch:
        for number, (name, draw) in enumerate(sheets.items()):

            def share(done: float, number: int = number) -> None:
                watch((number + done) / len(sheets))

            draw(tour, folder / name, share)
    return {
        "run": space.digest,
        "to": str(folder),
        "sheets": [str(folder / name) for name in sheets],
        "points": names[: len(seeds)],
        "labels": [label for label in labels if label],
        "directions": min(directions, len(space.centre)),
    }


def check_labels(space: Space, labels: Sequence[str]) -> None:
    condition_for(space.model, 1, labels=labels)  # type: ignore[arg-type]
    if labels and not space.labels:
        raise LimnerError("This run draws the same whatever the label: leave --label out.")


def _save(sheet: Image.Image, path: Path) -> None:
    with files.whole(path) as unfinished:
        sheet.save(unfinished, "PNG")


# The point of a picture ---------------------------------------------------------------------------------


def distance(x: Tensor, y: Tensor) -> Tensor:
    """[B, C, H, W] twice -> [B]: mean square error, and the mean absolute error of each level of a Laplacian pyramid.

    The pyramid is Bojanowski 2018's, where it alone let latents of photographs be found.
    """
    levels = zip(pyramid(x, least=2), pyramid(y, least=2), strict=True)
    return (x - y).square().flatten(1).mean(1) + sum((a - b).abs().flatten(1).mean(1) for a, b in levels)


def project(
    run: str | Path,
    picture: str | Path,
    to: str | Path = "projection.png",
    steps: int = 300,
    label: str = "",
    rate: float = 0.3,
    prior: float = 0.001,
    each_layer: bool = False,
    tries: int = 256,
    seed: int = 0,
    device: str = "auto",
    quiet: bool = False,
) -> dict[str, Any]:
    """The point whose image is nearest to a picture: a sheet, and the point beside it as .safetensors.

    The nearest of the centre, of ``tries`` random points with every label, and of what the model encodes the
    picture to go down by Adam. Raises LimnerError.
    """
    to, picture = Path(to), Path(picture)
    if to.suffix.lower() != ".png":
        raise LimnerError(f"Cannot write {to}: name a .png for the sheet; the point is kept beside it.")
    if steps < 0 or tries < 1:
        raise LimnerError("A projection takes 0 steps or more, from at least 1 try.")
    space = open_space(run, device)
    check_labels(space, [label] if label else [])
    if each_layer and not isinstance(space.model, Layered):
        raise LimnerError("The layers of this run share one point: leave --each-layer out.")
    target = open_picture(picture, space.spec, space.options)  # [1, C, H, W]
    with bar(f"projecting {picture.name}", quiet) as watch:
        with torch.no_grad():
            points, words = candidates(space, target, label, tries, seed)
            far = distance(space.paint(points, words), target)
        nearest = far.topk(min(STARTS, len(far)), largest=False).indices
        words = [words[i] for i in nearest.tolist()] if words else []
        points = points[nearest.to(points.device)]  # [STARTS, D]
        first = space.paint(points[:1], words[:1])
        if each_layer:
            points = points[:, None].repeat(1, space.model.layers, 1)  # [STARTS, L, D]
        condition, aim = space.condition(len(points), words), target.to(points.device)

        def loss(points: Tensor) -> Tensor:
            stray = ((points - space.centre) / space.spread).square().flatten(1).mean(1)
            return distance(space.model.paint(points, condition).float(), aim) + prior * stray

        best, least = latents.descend(loss, points, steps, rate * space.spread, watch)
    winner = int(least.argmin())
    point, word = best[winner], words[winner] if words else ""
    last = space.paint(point[None], [word] if word else ())
    apart = (target - last).abs() - 1  # black where nothing differs
    if space.spec.channels == 4:
        apart[:, 3] = 1.0
    numbers = [psnr(image, target).clamp(max=99.0).item() for image in (first, last)]
    titles = [
        picture.name,
        f"start: {numbers[0]:.1f} dB",
        ", ".join(filter(None, (f"found: {numbers[1]:.1f} dB", word))),
        "difference",
    ]
    _save(grid(torch.cat([target, first, last, apart]), titles, 4), to)
    beside = to.with_suffix(".safetensors")
    _save_tensors(beside, {"latent": point}, {"run": space.digest, "label": word, "picture": str(picture)})
    return {
        "picture": str(picture), "to": str(to), "latent": str(beside), "label": word, "steps": steps,
        "psnr_start": numbers[0], "psnr": numbers[1],
    }  # fmt: skip


def candidates(space: Space, target: Tensor, label: str, tries: int, seed: int) -> tuple[Tensor, list[str]]:
    """Points [N, D] to start from, with a label for each, or no labels at all."""
    classes = ([label] if label else list(space.spec.classes)) if space.labels else []
    n = max(tries, len(classes))
    drawn = space.points(range(seed, seed + n), classes, 1.0)
    rest = [space.centre[None]]
    if isinstance(space.model, Autoencodes):
        code = space.model.encode(target.to(space.centre.device)).float()
        rest += [code] if code.shape[1:] == space.centre.shape else []
    others = torch.cat([point.expand(max(len(classes), 1), -1) for point in rest])
    words = [classes[i % len(classes)] for i in range(n)] + classes * len(rest) if classes else []
    return torch.cat([drawn, others]), words


def _save_tensors(path: Path, tensors: dict[str, Tensor], about: dict[str, str]) -> None:
    with files.whole(path) as unfinished:
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, unfinished, about)


def load_point(path: str | Path, space: Space) -> tuple[Tensor, str]:
    """What ``project`` wrote: a point [D] or [L, D], and its label or an empty word. Raises LimnerError."""
    try:
        with safe_open(path, "pt") as file:
            point, about = file.get_tensor("latent"), file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise LimnerError(
            f"{path} is no point that limner project wrote ({error}): name its .safetensors."
        ) from None
    layers = (space.model.layers,) if isinstance(space.model, Layered) else ()
    if point.shape not in (space.centre.shape, (*layers, *space.centre.shape)):
        raise LimnerError(f"{path} is a point of another run: project its picture with this one.")
    label = about.get("label", "")
    return point.to(space.centre), label if space.labels and label in space.spec.classes else ""
