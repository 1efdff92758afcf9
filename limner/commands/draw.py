"""The command that draws: `limner sample`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from limner import config
from limner.commands import say
from limner.settings import LimnerError


def sample(argv: Sequence[str]) -> int:
    if not argv or argv[0].startswith("-"):
        config.parse_sample(argv)
        return 0
    from limner import folder
    from limner.sample import Painter, bar, condition_for

    device = "auto"
    if "--device" in argv[:-1]:
        device = argv[argv.index("--device") + 1]
    painter = Painter(argv[0], device)
    given = config.parse_sample(argv, painter.model.Sampling)
    asked = given.prompt or given.label
    n = given.n if given.n is not None else 8 * len(asked) or 64
    knobs = {f.name: getattr(given.sampling, f.name) for f in dataclasses.fields(given.sampling)}
    with bar(f"drawing {n} images") as watch:
        images = painter.tensors(n, given.prompt, given.label, given.seed, given.batch, watch, **knobs)
    run = Path(argv[0])
    to = Path(given.to or (run if run.is_dir() else run.parent) / "samples.png")
    condition = condition_for(painter.model, n, given.prompt, given.label)
    if to.suffix.lower() == ".png":
        from limner.data import grid
        from limner.sample import captions_of

        to.parent.mkdir(parents=True, exist_ok=True)
        if n == 1:
            from limner.data import to_pil

            to_pil(images[0]).save(to)
        else:
            grid(images, captions_of(painter.spec, condition)).save(to)
    elif to.suffix:
        raise LimnerError(f"Cannot write {to}: name a .png for one sheet, or a folder for one file an image.")
    else:
        folder.save(images, to, range(given.seed, given.seed + n), condition, painter.spec)
    say(f"{n} images in {to}")
    return 0
