"""Does everything run on a GPU as on a CPU, and how fast is it there?

    python benchmarks/gpu.py check --record     # every family: trains, resumes, draws what the CPU draws
    python benchmarks/gpu.py speed --record     # images a second and memory of three large networks

``check`` trains the ``tiny`` preset of each family for 20 steps in the precision that `auto` chooses, resumes it for 10
more, and draws (or describes) 4 images on both devices in float32, without TF32. One of them is trained by torchrun
besides. ``speed`` times steps of training on random pixels, and drawing by the preset's default sampling.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from record import record

import limner
from limner import checkpoint, config, families
from limner.core import Compares, Condition, Draws, Generates, ImageSpec, Tokenises, Translates, mix
from limner.data import Data
from limner.distributed import ALONE
from limner.inference.pipeline import generate
from limner.inference.understand import extract_features
from limner.settings import DataOptions, LimnerError
from limner.training.journal import read_log
from limner.training.loop import Loop

STEPS, MORE = 20, 10
TOLERANCE = 2e-3  # between two devices, of pixels in [-1, 1] or of features by their largest
VARIANTS = (  # networks that no family's tiny preset has
    ("autoencoder", {"kind": "vq"}), ("biggan", {"deep": True}), ("ddpm", {"network": "adm"}),
    ("dit", {"predict": "noise"}), ("edm", {"network": "song"}), ("latent", {"network": "ldm"}),
    ("meanflow", {"objective": "jvp"}), ("meanflow", {"objective": "jvp", "network": "transformer"}),
)  # fmt: skip
LARGE = (("dit", "paper", (4, 32)), ("flow", "base", (3, 32)), ("r3gan", "base", (3, 32)))


def paint(folder: Path, seed: int = 0, count: int = 64) -> Path:
    """Small pictures of three classes, with captions."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        path = folder / ("cat", "dog", "owl")[i % 3] / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((16, 16), Image.Resampling.BILINEAR).save(path)
        path.with_suffix(".txt").write_text(f"a {path.parent.name}, number {i}", "utf-8")
    return folder


def outputs(run: Path, device: str) -> torch.Tensor:
    """What a run draws, or how it describes its images, in float32."""
    pipeline = limner.load(run, device)
    pipeline.precision = "float32"
    run = pipeline.loaded.run
    exact = replace(run, training=replace(run.training, precision="float32"))
    pipeline.loaded = pipeline.loaded._replace(run=exact)
    if isinstance(pipeline.model, Generates) and not isinstance(pipeline.model, Translates):
        given = {"label": ["cat"]} if "label" in pipeline.model.follows else {}
        return pipeline.tensors(4, **given)
    noise = torch.rand(4, *pipeline.spec.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    model, there = pipeline.model, noise.to(pipeline.model.device)
    with torch.inference_mode():
        if isinstance(model, Translates):
            return model.translate(there, Condition(4), pipeline.sampling({}), Draws(range(4))).cpu()
        if isinstance(model, Compares):
            return model.embed_images(there).cpu()
        if isinstance(model, Tokenises):
            return model.detokenise(model.tokenise(there)).cpu()
    features = extract_features(pipeline, noise)
    return features / features.abs().max()


def check(
    family: str, model: dict[str, Any], images: Sequence[Path], out: Path, device: str
) -> dict[str, Any]:
    """One row of the table, of two sources where a family needs them. Raises AssertionError or LimnerError."""
    batch = families.load(family).presets["tiny"].training.batch
    sources = images if families.load(family).given_by[:1] in (("pairs",), ("domains",)) else images[:1]
    training = {"samples": 4, "log_every": 1, "device": device}
    start = time.perf_counter()
    for steps in (STEPS, STEPS + MORE):
        limner.train(
            family, list(sources), out, preset="tiny", budget=f"{steps * batch}img", size=16, model=model, quiet=True,
            resume=steps > STEPS, training=training,
        )  # fmt: skip
    resumed = checkpoint.resume(out)
    assert resumed and resumed.state["seen"] >= (STEPS + MORE) * batch and not resumed.state["skipped"]
    logged = [line for line in read_log(out) if "step" in line]
    assert len(logged) == STEPS + MORE, f"{len(logged)} steps are logged"
    here, there = outputs(out, device), outputs(out, "cpu")
    assert here.isfinite().all() and there.isfinite().all()
    assert limner.load(out, device).model.device.type == device
    difference = (here - there).abs().max().item()
    name = ", ".join([family, *(str(value) for value in model.values())])
    return {
        "network": name,
        "precision": "bf16" if resumed.state["bf16"] else "float32",
        "difference": float(f"{difference:.1g}"),
        "within": "yes" if difference <= TOLERANCE else "NO",
        "seconds": round(time.perf_counter() - start, 1),
    }


def check_torchrun(images: Path, out: Path, device: str) -> None:
    """One process, so that the GPU's own way of exchanging gradients is used (NCCL; gloo on a CPU)."""
    several = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=1",
        "-m",
        "--",
    ]
    train = [
        "limner.cli",
        "train",
        "vae",
        str(images),
        "--out",
        str(out),
        "--preset",
        "tiny",
        "--budget",
        "320img",
    ]
    subprocess.run([*several, *train, "--training.device", device], check=True)
    assert checkpoint.exists(out)


def check_all(given: argparse.Namespace) -> None:
    torch.backends.cudnn.allow_tf32 = False
    rows, failed = [], []
    named = [(name, {}) for name in families.names()] + list(VARIANTS)
    chosen = [
        (name, model) for name, model in named if name in given.families.split(",") or not given.families
    ]
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LIMNER_CACHE"] = f"{folder}/cache"
        images = [paint(Path(folder, f"images{seed}"), seed) for seed in (0, 1)]
        for number, (name, model) in enumerate(chosen):
            try:
                rows.append(check(name, model, images, Path(folder, str(number)), given.device))
                print(*rows[-1].values(), sep="\t", flush=True)
            except Exception as error:  # the others are still worth a look
                failed.append(f"{name} {model}: {type(error).__name__}: {error}")
                print(failed[-1], flush=True)
        check_torchrun(images[0], Path(folder, "torchrun"), given.device)
    if given.record:
        columns = {
            "network": "tiny preset", "precision": "trained in", "difference": "largest difference to the CPU",
            "within": f"within {TOLERANCE}", "seconds": "seconds",
        }  # fmt: skip
        note = f"{STEPS} steps, resumed for {MORE}, 4 images drawn or described in float32 on both devices"
        print(f"Written: {record('gpu_check', columns, rows, note)}")
    if failed or any(row["within"] == "NO" for row in rows):
        sys.exit("\n".join(["Not everything runs there:", *failed]))


def loop_of(family: str, preset: str, spec: ImageSpec, given: argparse.Namespace, **training: Any) -> Loop:
    """A loop over random pixels."""
    found = config.find_preset(families.load(family), preset)
    settings = replace(found.training, device=given.device, **training)
    if given.batch:
        settings = replace(settings, batch=given.batch)
    size = (spec.height, spec.width)
    run = config.Run(family, (), preset, size, "1h", 0, found.model, settings, DataOptions())
    pixels = np.random.default_rng(0).integers(
        0, 256, (1024, spec.height, spec.width, spec.channels), dtype=np.uint8
    )
    data = Data(spec, "noise", pixels, np.arange(len(pixels)), [str(i) for i in range(len(pixels))])
    torch.manual_seed(mix(0, "weights"))
    return Loop(run, families.build(family, found.model, spec), data, torch.device(given.device), ALONE)


def rate(act: Callable[[], object], images: int, given: argparse.Namespace) -> float:
    """Images a second of an act that has run before."""
    wait = torch.cuda.synchronize if given.device == "cuda" else lambda: None
    wait()
    start, times = time.perf_counter(), 0
    while not times or time.perf_counter() - start < given.seconds:
        act()
        times += 1
    wait()
    return times * images / (time.perf_counter() - start)


def measure(
    family: str, preset: str, spec: ImageSpec, given: argparse.Namespace, **training: Any
) -> dict[str, Any]:
    """One row: a network in one precision, compiled or not."""
    loop = loop_of(family, preset, spec, given, **training)
    batch, compiled = loop.run.training.batch, loop.run.training.compile

    def step() -> None:
        loop.take_step(0.5)

    def draw() -> None:
        generate(loop.average.eval(), Condition(64), range(64), precision=loop.run.training.precision)

    begin = time.perf_counter()
    for _ in range(3):
        step()
    if given.device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    row = {
        "network": f"{family} {preset}, {'x'.join(map(str, spec.shape))}", "batch": batch,
        "parameters": sum(p.numel() for p in loop.model.parameters()),
        "precision": loop.run.training.precision, "compiled": "yes" if compiled else "no",
        "first": round(time.perf_counter() - begin, 1), "train": round(rate(step, batch, given), 1),
        "memory": round(torch.cuda.max_memory_allocated() / 2**30, 2) if given.device == "cuda" else None,
        "draw": None,
    }  # fmt: skip
    if not compiled:
        draw()
        row["draw"] = round(rate(draw, 64, given), 1)
    print(*row.values(), sep="\t", flush=True)
    torch._dynamo.reset()
    return row


def measure_all(given: argparse.Namespace) -> None:
    chosen = [large for large in LARGE if not given.families or large[0] in given.families.split(",")]
    rows = []
    each = itertools.product(chosen, ("bf16", "float32"), given.compile)
    for (family, preset, (channels, side)), precision, on in each:
        spec = ImageSpec(channels, side, side)
        try:
            rows.append(measure(family, given.preset or preset, spec, given, precision=precision, compile=on))
        except LimnerError as error:  # a network that cannot be compiled
            print(f"{family} in {precision}: {error}", flush=True)
    if given.record:
        columns = {
            "network": "network", "batch": "batch", "parameters": "parameters", "precision": "precision",
            "compiled": "--training.compile", "first": "first 3 steps, s", "train": "training, images/s",
            "memory": "peak memory, GiB", "draw": "drawing 64 at a time, images/s",
        }  # fmt: skip
        note = f"random pixels, no labels; {given.seconds} s each; drawing by the default steps of the family"
        print(f"Written: {record('gpu_speed', columns, rows, note)}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["check", "speed"])
    parser.add_argument("--families", default="", help="names with commas; default: all")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--record", action="store_true", help="write benchmarks/results/gpu_WHAT.json")
    parser.add_argument("--seconds", type=float, default=3.0, help="speed: of each figure")
    parser.add_argument("--batch", type=int, default=0, help="speed: default: the preset's")
    parser.add_argument("--preset", default="", help="speed: default: the large one")
    parser.add_argument("--compile", type=lambda text: [text == "yes"], default=[False, True],
                        help="speed: yes or no; default: both")  # fmt: skip
    given = parser.parse_args()
    (check_all if given.what == "check" else measure_all)(given)


if __name__ == "__main__":
    main()
