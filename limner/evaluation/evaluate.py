"""Is it good, and is it copying? A run or a folder of images, measured against real images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from limner import checkpoint, files
from limner.core import Autoencodes, Classifies, DataOptions, Describes, Generates, LimnerError, Translates
from limner.data import open_data, open_like
from limner.device import pick_device
from limner.distributed import Ranks, join
from limner.evaluation import probe
from limner.evaluation.checks import check_enough, check_held_out, other_source_note
from limner.evaluation.clips import DRAWN, moving, rates_note, without_stills
from limner.evaluation.fidelity import BATCH, Samples, draw_samples, measure_samples
from limner.evaluation.images import measuring_size, resized_note, sizes_of
from limner.evaluation.matches import measure_matches, refuse_without_prompts
from limner.evaluation.options import EvaluateOptions
from limner.evaluation.prompts import PromptScore, measure_prompts
from limner.evaluation.real import MIN_IMAGES, Real, as_saved, open_whole
from limner.evaluation.results import Evaluation, HeldOut, Reconstruction
from limner.evaluation.spaces import find_all, measure_beside, trained_in
from limner.evaluation.translation import measure_translation
from limner.inference.pipeline import Pipeline
from limner.inference.texts import open_comparer
from limner.metrics import pixels
from limner.metrics.features import Features
from limner.progress import bar

RECONSTRUCTED = 512  # images at most
MOST = 1000  # images that are drawn or translated, where --n does not say


@dataclass(frozen=True)
class Task:
    """What is measured, how, and by which processes."""

    what: Path  # a run, or a folder of images
    sources: Sequence[str]  # the real images
    options: EvaluateOptions
    to: Path  # folder for what is found
    ranks: Ranks
    quiet: bool
    frames: int = 1  # of clips

    @cached_property
    def features(self) -> list[Features]:  # those of the main figures come first
        return find_all(self.options.features, self.options.weights, self.frames > 1)


def evaluate(
    what: str | Path, sources: Sequence[str], options: EvaluateOptions = EvaluateOptions(), *,
    to: str | Path | None = None, quiet: bool = False, **sampling: Any,
) -> Evaluation | None:  # fmt: skip
    """Measure a run, or a folder of images that any program made, against real images.

    The images that a run draws are compared with the real ones; its features and classes with their labels (see
    ``probe.measure``). ``sampling`` holds fields of the family's Sampling. Writes evaluation.json, drawn.png and
    nearest.png into ``to``. Of several processes (torchrun) each draws and describes its part; the first measures
    and writes, the others return None. Raises LimnerError.
    """
    is_run = Path(what).suffix == ".safetensors" or checkpoint.exists(what)
    beside = checkpoint.folder_of(what) / "evaluation" if is_run else Path(f"{Path(what).name}-evaluation")
    folder = Path(to or beside)
    files.check_writable(folder, folder=True)
    with join(pick_device()) as ranks, files.together():
        task = Task(Path(what), sources, options, folder, ranks, quiet or not ranks.first)
        return _evaluate_run(task, sampling) if is_run else _evaluate_folder(task, sampling)


def _evaluate_run(task: Task, sampling: Mapping[str, Any]) -> Evaluation | None:
    pipeline, ranks, options = Pipeline(task.what), task.ranks, task.options
    task = replace(task, frames=pipeline.spec.frames)
    if options.clip_frames > 1 or options.clip_rate:
        raise LimnerError(
            "--clip-frames and --clip-rate are for a folder: a run knows its own, so leave them out."
        )
    if task.frames > 1 and options.matches:
        raise LimnerError(
            "--matches compares still images with their prompts, and the run draws clips: leave it out."
        )
    with ranks.in_turn():
        real = without_stills(
            open_whole(task.sources, pipeline.spec, pipeline.loaded.run.data, not task.quiet)
        )
    held_out = check_held_out(pipeline, task.sources, real, task.quiet) if ranks.first else None
    per_class, seed = options.labels_per_class, options.seed
    comparer = open_comparer(options.matches) if options.matches else None
    if comparer:
        refuse_without_prompts(pipeline, real)
    understanding = probe.measure(pipeline, task.sources, real, per_class, seed, task.quiet, ranks)
    samples, chosen, prompts, matches, translation = None, None, None, None, None
    if isinstance(pipeline.model, Translates):
        chosen = pipeline.named_sampling(sampling)
        if ranks.first:
            n, opened = options.n or MOST, pipeline.sampling(sampling)
            translation = measure_translation(
                pipeline.model, real, opened, task.features[0], task.to, n, options.seed, task.quiet
            )
            features = task.features[0]
            spaces = [features, replace(features, name=translation.network or "")]
            notes = trained_in(pipeline.loaded.run.model, spaces)
            if translation.kid is None:
                notes.append(
                    f"The kernel distance was not measured: it takes {MIN_IMAGES} pictures on each side."
                )
            translation = replace(translation, notes=notes)
    elif isinstance(pipeline.model, Generates):
        most = MOST if task.frames == 1 else DRAWN
        n, opened = options.n or min(most, len(real)), pipeline.sampling(sampling)
        check_enough(n, real)
        with bar(f"drawing {n:,} {pipeline.spec.noun}s", task.quiet) as watch:
            samples = draw_samples(pipeline, real, n, options.seed, watch, ranks, opened)
        prompts = measure_prompts(pipeline, task.sources, real, seed, task.quiet, ranks, opened)
        chosen = pipeline.named_sampling(sampling)
        if comparer and ranks.first:
            matches = measure_matches(comparer, samples, real, seed, task.quiet)
    reconstruction = None
    if isinstance(pipeline.model, Autoencodes):
        reconstruction = measure_reconstruction(pipeline, real) if ranks.first else None
    elif not samples and not understanding and not translation and ranks.first:
        why = "it does not draw, reconstruct, describe or classify images"
        if isinstance(pipeline.model, Describes | Classifies):
            why = probe.no_labels(real.held_out)
        raise LimnerError(f"There is nothing to measure of {task.what}: {why}.")
    result = Evaluation(
        of=str(task.what), against=list(task.sources), run=pipeline.digest, understanding=understanding,
        sampling=chosen, matches=matches, reconstruction=reconstruction, held_out=held_out,
        translation=translation,
    )  # fmt: skip
    size = (pipeline.spec.height, pipeline.spec.width)
    data, notes = pipeline.loaded.run.data, list[str]()
    if samples and ranks.first:
        notes = resized_note("Real images", sizes_of(task.sources, options=data), size, data.fit)
        notes += other_source_note(pipeline, task.sources)
        notes += trained_in(pipeline.loaded.run.model, task.features)
    return _finish(task, result, real, samples, notes, prompts)


def _evaluate_folder(task: Task, sampling: Mapping[str, Any]) -> Evaluation | None:
    what, options = task.what, task.options
    if options.labels_per_class:
        raise LimnerError(
            f"--labels-per-class probes the features of a run, but {what} is not a run: leave it out."
        )
    if options.matches:
        raise LimnerError(
            f"--matches compares images with the prompts of a run, but {what} is not a run: leave it out."
        )
    if not what.exists():
        raise LimnerError(f"There is neither a run nor a folder of images at {what}.")
    if sampling:
        raise LimnerError(
            f"{', '.join(sampling)} would set how a run draws, but {what} is not a run: leave it out, or name the run."
        )
    task, said = replace(task, frames=options.clip_frames), not task.quiet
    read = DataOptions(frames=options.clip_frames, rate=options.clip_rate)
    unlabelled = replace(read, labels=False, captions=False)
    sizes = sizes_of([str(what)], None, unlabelled)
    size = measuring_size(sizes, task.features[0].side) if sizes else None
    with task.ranks.in_turn():
        made = open_data([str(what)], size=size, progress=said, options=unlabelled)
        whole = open_like(task.sources, made.spec, read, said, channels=None)
    real = without_stills(Real(*whole.split(read.holdout)))
    made = moving(made)
    size = (made.spec.height, made.spec.width)
    notes = resized_note("Images", sizes, size, unlabelled.fit)
    notes += resized_note("Real images", sizes_of(task.sources, options=read), size, unlabelled.fit)
    notes += rates_note(made, whole)
    n = min(options.n or len(made), len(made))
    check_enough(n, real, len(made))
    if (options.n or 0) > n:
        notes.append(f"--n {options.n:,} is more than {what} holds: all {n:,} images were measured.")
    samples = Samples(made.part(made.order(0, n, options.seed)))
    why = f"nobody knows which of the real images {what} was made from"
    held_out = HeldOut(len(real.held_out), False, why)
    result = Evaluation(of=str(what), against=list(task.sources), held_out=held_out)
    return _finish(task, result, real, samples, notes)


def _finish(
    task: Task, result: Evaluation, real: Real, samples: Samples | None, notes: list[str],
    prompts: PromptScore | None = None,
) -> Evaluation | None:  # fmt: skip
    """Measure the samples, and write the result and its sheets into the folder; ``notes`` are said first."""
    if samples:
        seed, k, quiet = task.options.seed, task.options.k, task.quiet
        features, *others = task.features
        fidelity = measure_samples(samples, real, features, task.to, seed, quiet, task.ranks, k)
        beside = measure_beside(samples, real, others, seed, quiet, task.ranks, k)
        if fidelity:
            fidelity = replace(fidelity, other_features=beside, notes=notes + fidelity.notes)
            result = replace(result, fidelity=prompts.add_to(fidelity) if prompts else fidelity)
    if not task.ranks.first:
        return None
    files.write_json(task.to / "evaluation.json", result.to_json())
    return replace(result, to=str(task.to))


def measure_reconstruction(pipeline: Pipeline, real: Real) -> Reconstruction:
    """How well an autoencoder reconstructs held-out images, or training images where none are held out."""
    model = pipeline.model
    assert isinstance(model, Autoencodes)
    data = real.held_out if len(real.held_out) else real.training
    rows = data.order(0, min(RECONSTRUCTED, len(data)), 0)  # random: files of one class may come together
    sums: dict[str, float] = {}
    with torch.inference_mode():
        for at in range(0, len(rows), BATCH):
            image = data.batch(rows[at : at + BATCH]).image
            again = as_saved(model.decode(model.encode(image.to(model.device))).float().cpu())
            values = {"psnr": pixels.psnr(again, image).clamp(max=100)}
            if min(image.shape[-2:]) >= 11:
                values |= {"ssim": pixels.ssim(again, image), "ms_ssim": pixels.ms_ssim(again, image)}
            for name, value in values.items():
                sums[name] = sums.get(name, 0.0) + float(value.sum())
    return Reconstruction(**{name: total / len(rows) for name, total in sums.items()}, n=len(rows))
