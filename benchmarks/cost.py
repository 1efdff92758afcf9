"""What does an image cost each family, in training and in drawing, beside flow?

    python benchmarks/cost.py --families r3gan,stylegan2,biggan,progan,dcgan

The ``small`` presets at 3x32x32 on random pixels, each with its own batch, a slice of the one and a slice of flow in
turns; the median of the pairs, with the smallest and the largest ratio. A family that grows is timed fully grown.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch
from pairs import alternate, noise_data
from peers import Limner, machine
from record import record

from limner import families
from limner.core import Condition
from limner.inference.pipeline import generate

GROWN = 10**12  # images seen after which nothing grows any more


def drawer(contestant: Limner, batch: int) -> Callable[[], int]:
    model = contestant.loop.average.eval()

    def act() -> int:
        generate(model, Condition(batch), range(batch), precision=contestant.loop.run.training.precision)
        return batch

    return act


def trainer(contestant: Limner) -> Callable[[], int]:
    def act() -> int:
        contestant.step(0.5)
        return contestant.batch

    return act


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--families", default="r3gan,stylegan2,biggan,progan,dcgan,vae")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of a slice")
    parser.add_argument("--batch", type=int, default=64, help="images drawn at once")
    parser.add_argument("--record", action="store_true", help="write benchmarks/results/cost.json")
    given = parser.parse_args()
    data = noise_data()
    print(machine(torch.get_num_threads()))
    print(f"{'family':<12}{'train/s':>10}{'of flow':>9}{'':>16}{'ms a draw':>12}{'of flow':>10}{'':>16}")
    flow, rows = Limner(data), []
    for name in given.families.split(","):
        other = Limner(data, name=name)
        other.loop.seen = GROWN
        other.loop.model.advance(GROWN)
        acts = [(trainer(other), trainer(flow))]
        if hasattr(families.load(name), "sample"):
            acts.append((drawer(other, given.batch), drawer(flow, given.batch)))
        cells = []
        for own, flows in acts:
            measured = alternate(own, flows, given.seconds, given.pairs)
            rate = statistics.median(a for a, _ in measured)
            ratios = sorted(b / a for a, b in measured)  # of the cost of an image
            cells.append((rate, statistics.median(ratios), ratios[0], ratios[-1]))
        line = (
            f"{name:<12}{cells[0][0]:>10.0f}{cells[0][1]:>8.2f}x   ({cells[0][2]:.2f} to {cells[0][3]:.2f})"
        )
        if len(cells) > 1:
            line += (
                f"{1000 / cells[1][0]:>12.2f}{cells[1][1]:>9.4f}x ({cells[1][2]:.4f} to {cells[1][3]:.4f})"
            )
        print(line, flush=True)
        row = {"family": name, "rate": round(cells[0][0]), "train": [round(x, 2) for x in cells[0][1:]]}
        if len(cells) > 1:
            row |= {"ms": round(1000 / cells[1][0], 2), "draw": [round(x, 4) for x in cells[1][1:]]}
        rows.append(row)
    if given.record:
        columns = {
            "family": "family", "rate": "images/s in training", "train": "training cost, of flow's",
            "ms": "ms an image", "draw": "drawing cost, of flow's",
        }  # fmt: skip
        note = f"small presets, 3x32x32, {given.pairs} pairs, smallest to largest"
        print(f"Written: {record('cost', columns, rows, note)}")


if __name__ == "__main__":
    main()
