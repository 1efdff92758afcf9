"""Which program draws the best images after two minutes on a CPU?

    python benchmarks/quality_budget.py --out runs/quality

Every contestant trains for --seconds on the same images without labels, at about the same number of
parameters, in one run, one after another. Then each draws --n images, and the Frechet distance to the real
ones is taken in the features of one small classifier, trained on the real images and their labels before
anything else. Imports, packing the data and one rehearsal step are not counted, for anybody. The diffusion
models draw with as many network calls an image as Limner's default. --out keeps a sheet of samples for each
and results.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
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
from limner.pictures.grid import grid

CHANNELS = {"digits": 1, "emoji": 3}
SIZE = (32, 32)
FLOOR_DRAWS = 20  # sets of n real images that the floor is the mean of


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


def run_limner(name: str, out: Path, args: argparse.Namespace) -> tuple[Tensor, dict[str, Any]]:
    """Through the front door: train, load, draw. [n, C, H, W] in [-1, 1] and what it took."""
    result = limner.train(
        "flow", name, out, preset=args.preset, budget=f"{args.seconds}s", size=SIZE, seed=args.seed, quiet=True,
        data={"labels": False, "captions": False, "channels": CHANNELS[name]},
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


def run_set(name: str, out: Path, args: argparse.Namespace) -> dict[str, Any]:
    """All contestants on one set of images; prints a line for each as it ends."""

    def open_images(labels: bool) -> Data:
        options = DataOptions(labels=labels, captions=False, channels=CHANNELS[name])
        return limner.open_data(name, size=SIZE, options=options)

    classifier, accuracy = train_classifier(open_images(labels=True), args.classifier_steps)
    data = open_images(labels=False)
    images = as_tensor(data)
    real = classifier.features(images)
    random = np.random.default_rng(args.seed)
    samples = [random.choice(len(real), min(args.n, len(real)), replace=False) for _ in range(FLOOR_DRAWS)]
    floor = float(np.mean([frechet(real[rows], real) for rows in samples]))
    grid(images[samples[0][:64]]).save(out / f"{name}-real.png")
    print(f"\n{name}: {len(data)} images; the classifier is right on {accuracy:.1%} of them")
    print(f"  {'real images':<30} Frechet distance {floor:10.3f}  (n = {len(samples[0])}: the floor)")

    results: dict[str, Any] = {}
    summary: dict[str, Any] = {
        "images": len(data),
        "classifier_accuracy": accuracy,
        "floor": floor,
        "contestants": results,
    }
    for kind in (Limner, *args.peers):
        if kind is Limner:
            drawn, took = run_limner(name, out / f"{name}-limner", args)
            parameters, calls = took["parameters"], took["calls"]
        else:
            drawn, took = run_peer(kind, images, parameters, calls, args)
        grid(drawn[:64]).save(out / f"{name}-{kind.name}.png")
        distance = frechet(classifier.features(as_saved(drawn)), real)
        results[kind.name] = {"frechet": distance, "n": len(drawn)} | took
        print(
            f"  {kind.name:<30} Frechet distance {distance:10.3f}  (n = {len(drawn)}; "
            f"{took['parameters'] / 1e6:.2f}M parameters, {took['images_seen']:,} images seen in "
            f"{took['train_seconds']:.0f} s; drawn with {took['calls']} calls in {took['sample_seconds']:.0f} s)",
            flush=True,
        )
    if args.peers:
        best = min((r["frechet"], n) for n, r in results.items() if n != Limner.name)
        summary |= {"best_peer": best[1], "ratio": results[Limner.name]["frechet"] / best[0]}
        print(f"  Limner's distance is {summary['ratio']:.2f} of the best peer's ({best[1]})")
    return summary


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="a new folder for samples and results.json")
    parser.add_argument("--sets", nargs="+", choices=list(CHANNELS), default=list(CHANNELS))
    parser.add_argument("--seconds", type=float, default=120, help="training time of each contestant")
    parser.add_argument("--n", type=int, default=300, help="images that each draws")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--preset", default="small", help="of Limner's flow")
    parser.add_argument("--classifier-steps", type=int, default=1000)
    parser.add_argument(
        "--peers", nargs="*", choices=[p.name for p in PEERS], default=[p.name for p in PEERS]
    )
    parser.add_argument("--record", action="store_true", help="write benchmarks/results/quality_budget.json")
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
    for name in args.sets:
        summary["sets"][name] = run_set(name, args.out, args)
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
    columns = {"data": "images", "floor": "real images (floor)", **{v: k for k, v in short.items()}}
    rows = []
    for name, found in summary["sets"].items():
        row = {"data": name, "floor": round(found["floor"], 1), "ratio": round(found.get("ratio", 0), 3)}
        for kind, figures in found["contestants"].items():
            key = short.get(kind, kind)
            row |= {key: round(figures["frechet"], 1), f"{key}_seen": figures["images_seen"]}
        rows.append(row)
    note = f"{args.seconds:g} s of training each, 32x32, n = {args.n}; Frechet distance in one classifier's features"
    record("quality_budget", columns | {"ratio": "ratio to the best peer"}, rows, note, args.threads)


if __name__ == "__main__":
    try:
        main()
    except LimnerError as error:
        sys.exit(f"quality_budget: {error}")
