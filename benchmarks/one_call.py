"""One network call beside fifty: Frechet distances of runs to the images that they learned from, in three spaces.

    python benchmarks/one_call.py digits=digits emoji=emoji --runs runs/real --families flow,stylegan2 --record

The runs are those of ``benchmarks/real.py`` in RUNS/NAME/FAMILY/FAMILY, the first family the one that takes its time.
Features: the random ones, those of imagenet, and those of a classifier, a `vit` trained first on the images.
The sheet RUNS/NAME-one-call.png has the top of what each drew.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from real import sheet
from record import record

import limner
from limner.evaluation.evaluate import evaluate
from limner.evaluation.options import EvaluateOptions

SPACES = "imagenet", "random", "classifier"
COLUMNS = {"data": "images", "family": "family", "calls": "network calls"}
for _space in SPACES:
    COLUMNS |= {
        _space: f"{_space} (95%)",
        f"{_space}_floor": "its floor",
        f"{_space}_ratio": "of the first's",
    }


def classifier(source: str, to: Path, budget: str, threads: int, size: str) -> Path:
    """A run of `vit` on these images, trained where it is not there yet."""
    if not (to / "model.safetensors").exists():
        height, width = (int(side) for side in size.split("x"))
        limner.train(
            "vit", source, to, budget=budget, size=(height, width), quiet=True, training={"threads": threads}
        )
    return to


def calls_of(run: Path, sampling: dict[str, Any]) -> int:
    """Passes of one image through the run's network, guidance counted too; 1 where a generator draws at once."""
    pipeline, calls = limner.load(run), 0
    if not hasattr(pipeline.model, "network"):
        return 1

    def watch(_network: Any, inputs: tuple[Any, ...], _output: Any) -> None:
        nonlocal calls
        calls += len(inputs[0])

    pipeline.model.get_submodule("network").register_forward_hook(watch)
    pipeline.tensors(1, seed=0, **sampling)
    return calls


def distances(run: Path, source: str, vit: Path, n: int, sampling: dict[str, Any]) -> dict[str, Any]:
    """The Frechet distance, its interval and its floor in each space."""
    found: dict[str, Any] = {}
    for features in ("auto", str(vit)):
        options = EvaluateOptions(n=n, features=features)
        measured = evaluate(
            run, [source], options, to=run.parent / f"measured-{Path(features).name}", **sampling
        )
        assert measured and measured.fidelity
        first = measured.fidelity
        for space in (first, *first.other_features.values()):
            name = "classifier" if features != "auto" and space is first else space.features
            if name in SPACES:
                value = space.frechet
                found[name] = [round(x, 3) for x in (value.value, value.low, value.high)]
                found[f"{name}_floor"] = round(value.floor, 3)
    return found


def rows_of(name: str, source: str, given: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each family on a set of images."""
    folder, rows = given.runs / name, list[dict[str, Any]]()
    vit = classifier(source, folder / "classifier", given.classifier_budget, given.threads, given.size)
    for family in given.families.split(","):
        run, sampling = folder / family / family, dict[str, Any]()
        if not rows:
            guided = calls_of(run, {"steps": 1}) == 2
            sampling = {"steps": given.steps // 2 if guided else given.steps}
        row = {"data": name, "family": family, "calls": calls_of(run, sampling)}
        row |= distances(run, source, vit, given.n, sampling)
        if rows:
            row |= {f"{s}_ratio": round(row[s][0] / rows[0][s][0], 3) for s in SPACES if s in row}
        print(row, flush=True)
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("sets", nargs="+", metavar="NAME=SOURCE")
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--families", default="flow,stylegan2")
    parser.add_argument(
        "--steps", type=int, default=50, help="of the first family, where guidance takes no calls"
    )
    parser.add_argument("--size", default="32x32")
    parser.add_argument("--classifier-budget", default="3m")
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--record", nargs="?", const="one_call_twenty", help="name of the file of results")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    rows = list[dict[str, Any]]()
    for each in given.sets:
        name, _, source = each.partition("=")
        rows += rows_of(name, source, given)
        sheet(given.runs / name, given.families.split(","), given.runs / f"{name}-one-call.png")
    if given.record:
        record(given.record, COLUMNS, rows, f"n = {given.n}; Frechet distances", given.threads)


if __name__ == "__main__":
    main()
