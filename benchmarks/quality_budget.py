"""Which program draws the best images after two minutes, or twenty, on a CPU?

    python benchmarks/quality_budget.py --out runs/quality

    python benchmarks/quality_budget.py --out runs/sprites --sets sprites=pics/sprites@64 --seconds 1200

Every contestant trains for --seconds on the same images without labels, at about the same number of
parameters, in one run, one after another. Then each draws --n images, and the Frechet distance to the real
ones is taken in the features of one small classifier, trained on the real images and their labels before
anything else, in those of a random network, and of one trained on ImageNet where that is there. A folder's images
are RGB, transparent ones on white. Imports, packing the data and one rehearsal step are not counted, for anybody.
The diffusion models draw with as many network calls an image as Limner's default. --out keeps a sheet of samples
for each and results.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peers import DCGAN, PEERS, Limner, as_tensor, available, count, machine
from record import record
from torch import Tensor, nn
from torch.nn import functional as F

import limner
from limner.core import DataOptions, LimnerError
from limner.data import Data
from limner.evaluation.evaluate import as_saved
from limner.metrics.distances import frechet_distance
from limner.metrics.features import Features
from limner.metrics.find import find
from limner.pictures.grid import grid

CHANNELS = {"digits": 1}  # 3 elsewhere
OTHERS = "imagenet", "random"  # features beside the classifier's
FLOOR_DRAWS = 20  # sets of n real images that the floor is the mean of


class Images:
    """A set of images: NAME for one that is built in, at 32x32, or NAME=FOLDER@SIZE."""

    def __init__(self, text: str):
        self.name, _, rest = text.partition("=")
        source, _, size = rest.partition("@")
        self.source, side = source or self.name, int(size or 32)
        self.size, self.channels = (side, side), CHANNELS.get(self.name, 3)

    def open(self, labels: bool) -> Data:
        options = DataOptions(labels=labels, captions=False, channels=self.channels)
        return limner.open_data(self.source, size=self.size, options=options)


class Classifier(nn.Module):
    """The classifier that is measured with: four convolutions to 64 features, and a linear layer on them."""

    def __init__(self, channels: int, classes: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, 32, 3, padding=1), nn.ReLU(),
            nn.Conv2d(32, 32, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(64, 64, 3, stride=2, padding=1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )  # fmt: skip
        self.head = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))  # [B, classes]

    @torch.inference_mode()
    def features(self, images: Tensor) -> np.ndarray:
        """[N, C, H, W] in [-1, 1] -> float64 [N, 64]"""
        return torch.cat([self.body(part) for part in images.split(256)]).double().numpy()


def train_classifier(data: Data, steps: int, batch: int = 64) -> tuple[Classifier, float]:
    """The classifier, always from the same seed, and its accuracy on the images that it learned from."""
    torch.manual_seed(0)
    images, labels = as_tensor(data), torch.from_numpy(data.labels)
    classifier = Classifier(data.spec.channels, len(data.spec.classes))
    optimiser = torch.optim.Adam(classifier.parameters(), lr=1e-3)
    for _ in range(steps):
        rows = torch.randint(len(images), (batch,))
        loss = F.cross_entropy(classifier(images[rows]), labels[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.inference_mode():
        guesses = torch.cat([classifier(part).argmax(1) for part in images.split(256)])
    return classifier.eval(), float((guesses == labels).float().mean())


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """The Frechet distance of two sets of features [N, D]."""
    return frechet_distance(torch.from_numpy(a), torch.from_numpy(b))


def spaces(classifier: Classifier) -> dict[str, Callable[[Tensor], np.ndarray]]:
    """Features of images [N, C, H, W] in [-1, 1], float64 [N, D], by the name of what gives them."""
    found: dict[str, Callable[[Tensor], np.ndarray]] = {"classifier": classifier.features}
    for name in OTHERS:
        try:
            found[name] = partial(described, find(name))
        except LimnerError as error:
            print(f"Without the features {name}: {error}", file=sys.stderr)
    return found


def described(features: Features, images: Tensor) -> np.ndarray:
    return torch.cat([features.of(part) for part in images.split(64)]).double().numpy()


def run_limner(images: Images, out: Path, args: argparse.Namespace) -> tuple[Tensor, dict[str, Any]]:
    """Through the front door: train, load, draw. [n, C, H, W] in [-1, 1] and what it took."""
    result = limner.train(
        "flow", images.source, out, preset=args.preset, budget=f"{args.seconds}s", size=images.size,
        seed=args.seed, quiet=True, data={"labels": False, "captions": False, "channels": images.channels},
        training={"threads": args.threads},
    )  # fmt: skip
    pipeline = limner.load(out)
    calls = 0

    def watch(_network: nn.Module, inputs: tuple[Any, ...], _output: Any) -> None:
        nonlocal calls
        calls += len(inputs[0])

    network = pipeline.model.get_submodule("network")
    handle = network.register_forward_hook(watch)
    start = time.perf_counter()
    drawn = pipeline.tensors(args.n, seed=args.seed)
    sampling = time.perf_counter() - start
    handle.remove()
    return drawn, {
        "parameters": count(network),
        "images_seen": result.seen,
        "train_seconds": result.seconds,
        "sample_seconds": sampling,
        "calls": round(calls / args.n),
    }


def run_peer(
    kind: type, images: Tensor, parameters: int, calls: int, args: argparse.Namespace
) -> tuple[Tensor, dict[str, Any]]:
    """As ``run_limner``, for a peer at that many parameters and network calls an image."""
    torch.manual_seed(args.seed)
    peer = kind(images, parameters)
    peer.step(0.0)  # a rehearsal on the house; Limner's own loop makes one too
    seen, start = 0, time.perf_counter()
    while (passed := time.perf_counter() - start) < args.seconds:
        peer.step(passed / args.seconds)
        seen += peer.batch
    middle = time.perf_counter()
    drawn = peer.sample(args.n, calls)
    return drawn, {
        "parameters": peer.parameters,
        "images_seen": seen,
        "train_seconds": middle - start,
        "sample_seconds": time.perf_counter() - middle,
        "calls": 1 if kind is DCGAN else calls,
    }


def run_set(chosen: Images, out: Path, args: argparse.Namespace) -> dict[str, Any]:
    """All contestants on one set of images; prints a line for each as it ends."""
    name = chosen.name
    classifier, accuracy = train_classifier(chosen.open(labels=True), args.classifier_steps)
    data = chosen.open(labels=False)
    images = as_tensor(data)
    found = spaces(classifier)
    real = {space: features(images) for space, features in found.items()}
    random = np.random.default_rng(args.seed)
    n = min(args.n, len(images))
    samples = [random.choice(len(images), n, replace=False) for _ in range(FLOOR_DRAWS)]
    floors = {
        space: float(np.mean([frechet(each[rows], each) for rows in samples])) for space, each in real.items()
    }
    grid(images[samples[0][:64]]).save(out / f"{name}-real.png")
    print(f"\n{name}: {len(data)} images; the classifier is right on {accuracy:.1%} of them")
    print(f"  {'real images':<30} Frechet distances {_figures(floors)}  (n = {n}: the floor)")

    results: dict[str, Any] = {}
    summary: dict[str, Any] = {
        "images": len(data),
        "classifier_accuracy": accuracy,
        "floors": floors,
        "contestants": results,
    }
    for kind in (Limner, *args.peers):
        if kind is Limner:
            drawn, took = run_limner(chosen, out / f"{name}-limner", args)
            parameters, calls = took["parameters"], took["calls"]
        else:
            drawn, took = run_peer(kind, images, parameters, calls, args)
        grid(drawn[:64]).save(out / f"{name}-{kind.name}.png")
        saved = as_saved(drawn)
        distances = {space: frechet(features(saved), real[space]) for space, features in found.items()}
        results[kind.name] = {"frechet": distances, "n": len(drawn)} | took
        print(
            f"  {kind.name:<30} Frechet distances {_figures(distances)}  (n = {len(drawn)}; "
            f"{took['parameters'] / 1e6:.2f}M parameters, {took['images_seen']:,} images seen in "
            f"{took['train_seconds']:.0f} s; drawn with {took['calls']} calls in {took['sample_seconds']:.0f} s)",
            flush=True,
        )
    if args.peers:
        summary["ratios"] = {space: ratio(results, space) for space in found}
        print(f"  Limner's distances over the best peer's: {_figures(summary['ratios'])}")
    return summary


def ratio(results: dict[str, Any], space: str) -> float:
    """Limner's distance over that of the best peer in these features."""
    best = min(found["frechet"][space] for name, found in results.items() if name != Limner.name)
    return results[Limner.name]["frechet"][space] / best


def _figures(of: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in of.items())


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="a new folder for samples and results.json")
    parser.add_argument("--sets", nargs="+", type=Images, default=[Images("digits"), Images("emoji")])
    parser.add_argument("--seconds", type=float, default=120, help="training time of each contestant")
    parser.add_argument("--n", type=int, default=300, help="images that each draws")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--preset", default="small", help="of Limner's flow")
    parser.add_argument("--classifier-steps", type=int, default=1000)
    parser.add_argument(
        "--peers", nargs="*", choices=[p.name for p in PEERS], default=[p.name for p in PEERS]
    )
    parser.add_argument("--record", nargs="?", const="quality_budget", help="name of the file of results")
    args = parser.parse_args(argv)
    if args.out.exists():
        raise LimnerError(f"{args.out} is there already: name a new folder for --out.")
    args.peers = available([p for p in PEERS if p.name in args.peers])
    args.out.mkdir(parents=True)
    torch.set_num_threads(args.threads)
    summary: dict[str, Any] = {
        "seconds": args.seconds,
        "seed": args.seed,
        **machine(args.threads),
        "sets": {},
    }
    for chosen in args.sets:
        summary["sets"][chosen.name] = run_set(chosen, args.out, args)
        (args.out / "results.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    if args.record:
        keep(summary, args)


def keep(summary: dict[str, Any], args: argparse.Namespace) -> None:
    """One row a set in benchmarks/results/."""
    short = {
        "limner": "limner",
        "dcgan": "dcgan",
        "denoising-diffusion-pytorch": "ddp",
        "diffusers": "diffusers",
    }
    columns = {"data": "images", "features": "features", "floor": "real images (floor)"}
    columns |= {v: k for k, v in short.items()} | {"ratio": "ratio to the best peer"}
    rows = []
    for name, found in summary["sets"].items():
        for space, floor in found["floors"].items():
            row = {"data": name, "features": space, "floor": round(floor, 1)}
            for kind, figures in found["contestants"].items():
                key = short.get(kind, kind)
                row |= {key: round(figures["frechet"][space], 1), f"{key}_seen": figures["images_seen"]}
            rows.append(row | {"ratio": round(found.get("ratios", {}).get(space, 0), 3)})
    note = f"{args.seconds:g} s of training each, n = {args.n}; Frechet distances"
    record(args.record, columns, rows, note, args.threads)


if __name__ == "__main__":
    try:
        main()
    except LimnerError as error:
        sys.exit(f"quality_budget: {error}")
