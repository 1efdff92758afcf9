"""Style transfer: how near painted pictures are to their style and to their content, beside optimised ones, and speed.

    python benchmarks/style.py runs/style photos/ --styles waves.jpg,mosaic.png --paintings paintings/ --record

`style` (small) and, with --paintings, `microast` (small) are trained there if they are not yet. Distances are the
losses of the run of `style`, each feature map's over the mean square of what it aims at: of Gram matrices, summed over
maps, and of the content's map; means over held-out pictures and styles. Gatys 2016 optimises the pixels for the same
losses, from noise and from the picture itself, until each picture has the style distance that the run's has, or for
--steps; its distances are those of that moment. Speed is that of one call on 1024x1024 pixels, without tiles; memory
the peak of `limner apply` on 4000x3000.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from memory import peak
from PIL import Image
from record import record
from torch import Tensor

import limner
from limner import families
from limner.checkpoint import exists, load
from limner.core import Condition, Draws, ImageSpec
from limner.data import open_like
from limner.evaluation.real import as_saved
from limner.families._restyle import maps_of
from limner.families.style import LAYERS, Style
from limner.losses.perceptual import network_title
from limner.losses.style import gram_matrix
from limner.pictures.grid import save_grid

COLUMNS = {
    "painter": "painter", "parameters": "parameters", "n": "pictures", "style": "style distance",
    "nearer": "the given picture's over it", "content": "content distance", "reached": "reached its style",
    "seconds": "seconds, 1024x1024", "mb": "peak of 4000x3000, MB",
}  # fmt: skip
RATE = 0.05  # learning rate of Gatys' optimisation, by Adam


class Ruler:
    """The style and content distances of a run of `style`, for each picture by itself."""

    def __init__(self, model: Style):
        self.model, self.targets = model, model.style_grams()

    def maps(self, image: Tensor) -> list[Tensor]:
        return maps_of(self.model.config, image, LAYERS)

    def content_of(self, image: Tensor) -> Tensor:
        return self.maps(image)[self.model.config.content_map]

    def __call__(self, image: Tensor, content: Tensor, style: int) -> tuple[Tensor, Tensor]:
        """[B, C, H, W] and the map of their contents -> distances [B] to the style and to the content."""
        maps = self.maps(image)
        near = [share(gram_matrix(x), target[style]) for x, target in zip(maps, self.targets, strict=True)]
        return torch.stack(near).sum(0), share(maps[self.model.config.content_map], content)


def share(found: Tensor, wanted: Tensor) -> Tensor:
    """[B]: mean squared differences over the mean square of what is wanted."""
    wanted = wanted.expand_as(found)
    return (found - wanted).square().flatten(1).mean(1) / wanted.square().flatten(1).mean(1)


def optimise(
    ruler: Ruler, image: Tensor, style: int, wanted: Tensor, steps: int, noise: bool
) -> dict[str, Tensor]:
    """Gatys' pictures and their distances [B], each from when it first has the style distance ``wanted`` [B]."""
    c = ruler.model.config
    with torch.no_grad():
        content = ruler.content_of(image)
    generator = torch.Generator().manual_seed(0)
    x = 0.2 * torch.randn(image.shape, generator=generator) if noise else image.clone()
    x.requires_grad_(True)
    optimiser = torch.optim.Adam([x], RATE)
    taken = torch.zeros(len(image), dtype=torch.bool)
    found = {"image": image.clone(), "style": wanted.clone(), "content": wanted.clone()}
    for step in range(steps + 1):
        near, far = ruler(x, content, style)
        now = ~taken & (near <= wanted) if step < steps else ~taken
        for name, value in (("image", x), ("style", near), ("content", far)):
            found[name][now] = value.detach()[now]
        if step == steps or (taken | now).all():
            return found | {"reached": (taken | (near <= wanted)).float()}
        taken |= now
        optimiser.zero_grad()
        (c.style * near + c.content * far).sum().backward()
        optimiser.step()
        with torch.no_grad():
            x.clamp_(-1, 1)
    raise AssertionError


def train(given: argparse.Namespace, family: str) -> Path:
    """The run of a family, trained now if it is not there."""
    out = given.out / family
    if not exists(out):
        two = family == "microast"
        limner.train(
            family, [given.source, given.paintings] if two else given.source, out, preset=given.preset,
            budget=given.budget, size=given.size, model={} if two else {"styles": given.styles},
            training={"threads": given.threads},
        )  # fmt: skip
    return out


def style_pictures(model: Style, given: argparse.Namespace) -> list[Tensor]:
    """[1, C, h, w] of each style, as the run holds it."""
    return [model.seen(picture[None]) for picture in model.pictures]


def measure(given: argparse.Namespace) -> list[dict[str, Any]]:
    loaded = load(train(given, "style"))
    model = loaded.model.eval()
    assert isinstance(model, Style)
    data = open_like(given.source, loaded.spec, loaded.run.data, progress=False)
    held = data.split(loaded.run.data.holdout)[1]
    image = held.batch(held.order(0, min(len(held), given.n), 0)).image
    ruler = Ruler(model)
    rows: dict[str, dict[str, list[Tensor]]] = {}
    sheet: list[tuple[str, Tensor]] = []
    other: Any = load(train(given, "microast")).model.eval() if given.paintings else None
    for style, name in enumerate(model.names):
        draws, condition = Draws(range(len(image))), Condition(len(image))
        with torch.no_grad():
            content = ruler.content_of(image)
            painted = model.translate(image, condition, model.Sampling(style=name), draws)
            made = {"the given picture": image, f"style {given.preset}": as_saved(painted).float()}
            if other is not None:
                of_picture = other.Sampling(style=style_pictures(model, given)[style])
                made[f"microast {given.preset}"] = as_saved(
                    other.translate(image, condition, of_picture, draws)
                ).float()
            for painter, pictures in made.items():
                add(rows, painter, *ruler(pictures, content, style))
                sheet.append((f"{painter}, {name}", pictures))
        few = slice(0, given.gatys)
        wanted = ruler(made[f"style {given.preset}"], content, style)[0][few]
        for start, noise in (("noise", True), ("the picture", False)):
            found = optimise(ruler, image[few], style, wanted.detach(), given.steps, noise)
            add(rows, f"Gatys, from {start}", found["style"], found["content"], found["reached"])
            sheet.append((f"Gatys from {start}, {name}", found["image"]))
    save_sheet(given, image, sheet)
    return [row(painter, kept, rows["the given picture"]) for painter, kept in rows.items()]


def add(rows: dict[str, dict[str, list[Tensor]]], painter: str, style: Tensor, content: Tensor,
        reached: Tensor | None = None) -> None:  # fmt: skip
    kept = rows.setdefault(painter, {"style": [], "content": [], "reached": []})
    for name, value in (("style", style), ("content", content), ("reached", reached)):
        if value is not None:
            kept[name].append(value.detach())


def row(painter: str, kept: dict[str, list[Tensor]], of_given: dict[str, list[Tensor]]) -> dict[str, Any]:
    style, content = (float(torch.cat(kept[name]).mean()) for name in ("style", "content"))
    few = len(kept["style"][0])
    before = float(torch.cat([x[:few] for x in of_given["style"]]).mean())
    found = {"painter": painter, "n": few, "style": round(style, 4), "nearer": round(before / style, 1)}
    found["content"] = round(content, 4)
    if kept["reached"]:
        found["reached"] = f"{100 * float(torch.cat(kept['reached']).mean()):.0f}%"
    return found


def save_sheet(given: argparse.Namespace, image: Tensor, sheet: list[tuple[str, Tensor]]) -> None:
    """A row for each of a few contents: the picture, then each painter's."""
    columns = [("given", image), *(entry for entry in sheet if not entry[0].startswith("the given"))]
    count = min(given.gatys, 4, len(image))
    pictures = [pictures[i] for i in range(count) for _, pictures in columns]
    save_grid(given.out / "painted.png", pictures, [name for name, _ in columns] * count, len(columns))


@torch.inference_mode()
def seconds(translate: Callable[[Tensor], object], side: int = 1024) -> float:
    """Of one call on a square picture: the median of three."""
    picture = torch.rand(1, 3, side, side).contiguous(memory_format=torch.channels_last)
    taken = []
    for _ in range(4):
        start = time.perf_counter()
        translate(picture)
        taken.append(time.perf_counter() - start)
    return round(float(np.median(taken[1:])), 3)


def speed(family: str, preset: str) -> dict[str, Any]:
    """The size and the time of a network; its weights do not matter."""
    cls = families.load(family)
    spec = ImageSpec(3, 64, 64, given=ImageSpec(3, 64, 64) if family == "microast" else None)
    model: Any = families.build(family, cls.presets[preset].model, spec).eval()
    model = model.to(memory_format=torch.channels_last)
    found = seconds(lambda x: model.translate(x, Condition(1), model.Sampling(), Draws([0])))
    parameters = sum(p.numel() for p in model.network.parameters())
    return {"parameters": parameters, "seconds": found}


def apply_peak(run: Path, memory: str) -> int:
    """Megabytes of `limner apply` on 4000x3000 pixels."""
    with tempfile.TemporaryDirectory() as folder:
        pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
        large = Image.fromarray(pixels).resize((4000, 3000))
        large.save(given := Path(folder) / "large.png")
        return peak(
            "apply", str(run), str(given), "--to", str(Path(folder) / "painted.png"), "--memory", memory
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="folder of the runs")
    parser.add_argument("source", help="photographs")
    parser.add_argument("--styles", default="mosaic,waves", help="as --model.styles")
    parser.add_argument("--paintings", default="", help="folder that microast learns from; none: without it")
    parser.add_argument("--preset", default="small")
    parser.add_argument("--size", type=int, default=128, help="pixels a side of what is trained on")
    parser.add_argument("--budget", default="20m", help="of each training")
    parser.add_argument("--n", type=int, default=32, help="held-out pictures, at most")
    parser.add_argument("--gatys", type=int, default=4, help="of them that are optimised too")
    parser.add_argument("--steps", type=int, default=300, help="of an optimisation, at most")
    parser.add_argument("--memory", default="2GB", help="as that of limner apply")
    parser.add_argument("--speed", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--record", action="store_true", help="write benchmarks/results/style.json")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    rows = {found["painter"]: found for found in measure(given)}
    if given.speed:
        for family, preset in (("style", given.preset), ("style", "paper"), ("microast", given.preset)):
            name = f"{family} {preset}"
            rows[name] = rows.get(name, {"painter": name}) | speed(family, preset)
        rows[f"style {given.preset}"]["mb"] = apply_peak(given.out / "style", given.memory)
    for found in rows.values():
        print(found)
    if given.record:
        loaded = load(given.out / "style")
        used = network_title(loaded.model.config.features)  # type: ignore[union-attr,operator]
        note = f"Features of the losses: {used}. {given.budget} of training each, at {given.size} pixels."
        record("style", COLUMNS, [*rows.values()], note, given.threads)


if __name__ == "__main__":
    main()
