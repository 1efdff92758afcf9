"""Drawing tokens one after another: what the cache saves, and whether tokens depend on it or on the batch.

python benchmarks/writing.py same runs/dalle --record
python benchmarks/writing.py time runs/dalle --record
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from record import record
from torch import Tensor

from limner.core import Condition, Draws
from limner.data.sources import shapes
from limner.inference.pipeline import Pipeline
from limner.networks.transformers.text_image import TextImageTransformer

SIDES = (4, 8, 12, 16)  # of square grids of tokens


def tokens_of(model: Any, texts: Sequence[str], at_once: int, **options: Any) -> Tensor:
    """[B, h w], of seeds 0 to B - 1, drawn so many at once."""
    parts = []
    for start in range(0, len(texts), at_once):
        rows = list(texts[start : start + at_once])
        seeds = range(start, start + len(rows))
        parts.append(
            list(model.write(Condition(len(rows), text=rows), model.Sampling(**options), Draws(seeds)))[-1]
        )
    return torch.cat(parts)


def same(run: str, n: int) -> list[dict[str, Any]]:
    """In how many of n pictures all tokens are those of n drawn at once with the cache in the same precision."""
    model = Pipeline(run, "cpu").model
    texts = [scene.caption for scene in shapes.scenes(n, 0, held_out=True)]
    rows = []
    for name, kind in (("float64", torch.float64), ("float32", torch.float32)):
        model.network.to(kind)
        reference = tokens_of(model, texts, n)
        ways: dict[str, Tensor] = {"without the cache": tokens_of(model, texts, n, cache=False)}
        ways |= {f"drawn in {size}s": tokens_of(model, texts, size) for size in (1, 8)}
        for way, tokens in ways.items():
            equal = (tokens == reference).all(1)
            rows.append({"drawn": f"{way}, {name}", "same": int(equal.sum()), "n": n})
    return rows


def seconds(draw: Callable[[], object], least: float = 1.0) -> float:
    """The shortest of several runs that take ``least`` seconds together; one may do."""
    times: list[float] = []
    while sum(times) < least:
        start = time.process_time()
        draw()
        times.append(time.process_time() - start)
    return min(times)


@torch.inference_mode()
def write(network: TextImageTransformer, text: Tensor, cached: bool) -> Tensor:
    """[B, h w], the most probable tokens."""
    image, kept = text.new_zeros(len(text), 0), network.caches(text) if cached else []
    while image.shape[1] < network.grid[0] * network.grid[1]:
        image = torch.cat([image, network.next_logits(text, image, kept).argmax(1, keepdim=True)], dim=1)
    return image


def times(run: str) -> list[dict[str, Any]]:
    """Seconds to draw all tokens with and without the cache, by their number, of a network with the run's blocks."""
    model, rows = Pipeline(run, "cpu").model, []
    config, pieces = model.config, model.vocabulary.size
    for pictures in (1, 16):
        text = model.text_tokens(["a large red circle above a small blue square"] * pictures)
        for side in SIDES:
            network = TextImageTransformer(
                config.blocks, config.layout, pieces, text.shape[1], model.tokenizer.codes, (side, side)
            ).eval()
            with_cache, without = (seconds(partial(write, network, text, cached)) for cached in (True, False))
            rows.append({
                "pictures and tokens": f"{pictures} of {side * side}", "cached": round(with_cache, 4),
                "plain": round(without, 4), "ratio": round(without / with_cache, 2),
            })  # fmt: skip
    return rows


def plot(rows: Sequence[dict[str, Any]]) -> str:
    """An SVG of seconds by tokens, both logarithmic: with the cache as lines, without it dashed."""

    def at(tokens: int, cost: float) -> str:
        return f"{60 + 110 * (math.log2(tokens) - 4):.0f},{300 - 75 * (math.log10(cost) + 2):.0f}"

    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 340" font-family="sans-serif" font-size="12">',
        '<rect width="640" height="340" fill="white"/>',
    ]
    for cost in (0.01, 0.1, 1, 10):
        y = at(16, cost).split(",")[1]
        parts.append(
            f'<path d="M60,{y} H510" stroke="#ddd"/><text x="52" y="{y}" text-anchor="end">{cost} s</text>'
        )
    for pictures, colour in (("1", "#1f77b4"), ("16", "#d62728")):
        some = [row for row in rows if row["pictures and tokens"].startswith(f"{pictures} of ")]
        tokens = [int(row["pictures and tokens"].split()[-1]) for row in some]
        for key, dashes in (("cached", ""), ("plain", ' stroke-dasharray="5 4"')):
            points = [at(n, row[key]) for n, row in zip(tokens, some, strict=True)]
            line = f'points="{" ".join(points)}" fill="none" stroke="{colour}" stroke-width="2"{dashes}'
            x, y = points[-1].split(",")
            words = f"{pictures}, {'with' if key == 'cached' else 'without'} the cache"
            parts.append(f'<polyline {line}/><text x="{int(x) + 6}" y="{y}" fill="{colour}">{words}</text>')
    for n in tokens:
        parts.append(f'<text x="{at(n, 1).split(",")[0]}" y="320" text-anchor="middle">{n} tokens</text>')
    return "\n".join([*parts, "</svg>", ""])


COLUMNS = {
    "same": {"drawn": "drawn", "same": "pictures with the same tokens", "n": "n"},
    "time": {
        "pictures and tokens": "pictures and tokens", "cached": "CPU seconds with the cache",
        "plain": "CPU seconds without", "ratio": "times as fast",
    },
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", choices=COLUMNS)
    parser.add_argument("run")
    parser.add_argument("--n", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--to", default="", help="time: an .svg to write")
    parser.add_argument("--record", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    rows = same(given.run, given.n) if given.table == "same" else times(given.run)
    for row in rows:
        print(row)
    if given.to:
        Path(given.to).write_text(plot(rows), "utf-8")
    if given.record:
        record(f"writing-{given.table}", COLUMNS[given.table], rows)


if __name__ == "__main__":
    main()
