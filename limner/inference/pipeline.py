"""From a checkpoint and a condition to images, one seed an image."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from limner import checkpoint, families
from limner.core import (
    Blend,
    Canvas,
    Condition,
    Draws,
    FitsModel,
    Generates,
    ImageSpec,
    LimnerError,
    Model,
    Seed,
    nearest,
)
from limner.data import finder, open_picture
from limner.data.images.formats import SUFFIXES
from limner.data.own_size import open_at_own_size
from limner.device import autocast, pick_device
from limner.fields import Count, Images, check, checked, from_json, join_words
from limner.inference.given_frames import refuse_frames, with_frames
from limner.inference.options import SampleOptions
from limner.inference.precision import choose_bf16, network_name
from limner.inference.prompts import warn_of_prompts
from limner.inference.rank import Ranker, check_candidates
from limner.inference.threads import THREADS
from limner.pictures.grid import to_pil
from limner.progress import Watch, ignore, part

IMAGES_OF_CLIP = 8  # that a clip stands for, in sheets and batches


def condition_for(model: Model, n: int, prompts: Sequence[str] = (), labels: Sequence[str] = ()) -> Condition:
    """The condition of ``n`` images, on the CPU; prompts and labels are taken in turn, over and over.

    Raises LimnerError when the model does not follow prompts or labels, or a label is unknown.
    """
    spec = model.spec
    if prompts and "text" not in model.follows:
        hint = f"; it knows the labels {', '.join(spec.classes[:12])}" if spec.classes else ""
        raise LimnerError(f"This run was not trained on captions, so it takes no --prompt{hint}.")
    if labels and "label" not in model.follows:
        raise LimnerError("This run was not trained on labels, so it takes no --label.")
    index = list(map(finder(spec.classes), labels))
    for label, i in zip(labels, index, strict=True):
        if i < 0:
            known = nearest(label, spec.classes) or f" It knows: {', '.join(spec.classes[:20])}."
            raise LimnerError(f"There is no label {label!r} in this run.{known}")
    return Condition(
        n,
        label=torch.tensor([index[i % len(index)] for i in range(n)]) if index else None,
        text=[prompts[i % len(prompts)] for i in range(n)] if prompts else None,
    )


def generate(
    model: Model, condition: Condition, seeds: Sequence[Seed], sampling: Any = None, batch: int = 64,
    watch: Watch = ignore, precision: str = "float32", on_canvas: Callable[[Canvas], None] | None = None,
) -> Tensor:  # fmt: skip
    """[N, *spec.shape] in [-1, 1] on the CPU.

    ``on_canvas`` is called with each intermediate canvas. Raises LimnerError for a family that does not draw, and
    where a given picture is missing.
    """
    return torch.cat(
        list(generate_batches(model, condition, seeds, sampling, batch, watch, precision, on_canvas))
    )


def generate_batches(
    model: Model, condition: Condition, seeds: Sequence[Seed], sampling: Any = None, batch: int = 64,
    watch: Watch = ignore, precision: str = "float32", on_canvas: Callable[[Canvas], None] | None = None,
) -> Iterator[Tensor]:  # fmt: skip
    """The images of ``generate``, at most ``batch`` at a time.

    Raises LimnerError besides for images that hold NaN, which finite weights of a training gone wrong may draw.
    """
    if not isinstance(model, Generates):
        raise LimnerError(f"The family {model.family} draws no images.")
    if "given" in model.follows and condition.image is None:
        raise LimnerError("This run makes its images from given pictures: name one with --image.")
    sampling = sampling if sampling is not None else model.Sampling()
    in_bf16 = _in_bf16(model, condition, seeds[:batch], sampling, precision) if len(seeds) else False
    for at in range(0, len(seeds), batch):
        rows = slice(at, min(at + batch, len(seeds)))
        asked = condition[rows].to(model.device)
        with torch.inference_mode(), autocast(model.device, in_bf16), THREADS.at_work(model.device):
            canvases = model.sample(asked, sampling, Draws(seeds[rows], model.device))
            for canvas in THREADS.units(canvases, ("draw", model.family, len(seeds[rows]))):
                if on_canvas:
                    on_canvas(canvas)
                done = canvas.done / max(canvas.total, 1)
                watch((rows.start + done * (rows.stop - rows.start)) / len(seeds))
            images = canvas.picture().float().clamp(-1, 1).cpu()  # a sampler yields at least its result
        if bad := int(images.isnan().flatten(1).any(1).sum()):
            raise LimnerError(
                f"{bad} of {len(images)} images drawn hold NaN, so the training of this run has gone wrong: use an "
                "earlier checkpoint, or train again with a lower learning rate."
            )
        yield images


def _in_bf16(model: Any, condition: Condition, seeds: Sequence[Seed], sampling: Any, precision: str) -> bool:
    """Whether to draw in bf16: for auto by timing the first canvas of a batch, which changes nothing."""
    asked, name = condition[: len(seeds)].to(model.device), (model.config, model.spec, type(sampling))

    def run(in_bf16: bool) -> None:
        with torch.inference_mode(), autocast(model.device, in_bf16), THREADS.at_work(model.device):
            next(iter(model.sample(asked, sampling, Draws(seeds, model.device))))

    return choose_bf16(model.device, precision, network_name(model.family, name, len(seeds), "draw"), run)


def captions_of(spec: ImageSpec, condition: Condition) -> list[str] | None:
    """The text, or else the class name, of each image of a condition; None where it has neither, or is blended."""
    if condition.blend is not None:
        return None
    if condition.text is not None:
        return list(condition.text)
    if condition.label is not None:
        return [spec.classes[i] if i >= 0 else "" for i in condition.label.tolist()]
    return None


@dataclasses.dataclass(frozen=True)
class Chosen:
    """The best of the candidates, in the order of ``Pipeline.best``."""

    images: Tensor  # [N, C, H, W] in [-1, 1]
    seeds: list[Seed]
    scores: list[float]  # 100 times the cosine of image and prompt
    condition: Condition  # of the images
    drawn: int  # candidates


def _split(options: Mapping[str, Any]) -> tuple[SampleOptions, dict[str, Any]]:
    """What to draw, and the fields of the family's Sampling."""
    names = {f.name for f in dataclasses.fields(SampleOptions)}
    wanted = SampleOptions(**{name: value for name, value in options.items() if name in names})
    return wanted, {name: value for name, value in options.items() if name not in names}


class Pipeline:
    """A trained model, ready to draw. ``limner.load(run)`` gives one."""

    def __init__(self, run: str | Path, device: str = "auto"):
        self.loaded = checkpoint.load(checked(str, run, "run"), pick_device(checked(str, device, "device")))
        self.model: Model = self.loaded.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.spec = self.model.spec
        self.precision = self.loaded.run.training.precision  # as it was trained
        self.digest = str(self.loaded.header.get("digest", ""))
        scripts = self.loaded.header.get("scripts")  # of its captions; None: not known
        self.scripts = list(map(str, scripts)) if isinstance(scripts, list) else None
        self.rankers: dict[str, Ranker] = {}  # by the run that --rank names: each is read once

    def sample(self, n: int = 1, **options: Any) -> list[Image.Image]:
        """``n`` PIL images; ``options`` as in ``tensors``."""
        return [to_pil(x) for x in self.tensors(n, **options)]

    def tensors(
        self, n: int = 1, *, watch: Watch = ignore, on_canvas: Callable[[Canvas], None] | None = None, **options: Any,
    ) -> Tensor:  # fmt: skip
        """[N, C, H, W] in [-1, 1] on the CPU.

        ``options`` are the fields of ``SampleOptions`` (prompt, label, seed, ...) and of the family's Sampling (steps,
        guidance, ...). Raises LimnerError.
        """
        return torch.cat(list(self.batches(n, watch=watch, on_canvas=on_canvas, **options)))

    def batches(
        self, n: int = 1, *, start: int = 0, watch: Watch = ignore,
        on_canvas: Callable[[Canvas], None] | None = None, **options: Any,
    ) -> Iterator[Tensor]:  # fmt: skip
        """The images of ``tensors`` from number ``start`` on, at most ``batch`` of ``options`` at a time."""
        wanted, others = _split(options)
        start = checked(Images, start, "start")
        if wanted.rank:
            yield from self.best(n, watch=watch, **options).images[start:].split(wanted.batch)
            return
        condition, sampling = self.condition(n, wanted)[start:], self.sampling(others)
        seeds, precision = wanted.seeds(n)[start:], self.precision
        watch = part(watch, start / n, 1 - start / n)
        batch = wanted.batch if self.spec.frames == 1 else max(1, wanted.batch // IMAGES_OF_CLIP)
        yield from generate_batches(
            self.model, condition, seeds, sampling, batch, watch, precision, on_canvas
        )

    def best(self, n: int = 1, *, watch: Watch = ignore, **options: Any) -> Chosen:
        """The ``n`` images that fit their prompts best, by the run ``rank``, of ``candidates`` drawn for each prompt.

        Prompts are used in turn; each gives its best ones, the best first. A chosen image is the one of its seed:
        ``options``, which are as in ``tensors``, draw it again with that. Raises LimnerError.
        """
        wanted, others = _split(options)
        ranker, texts = self.ranking(n, wanted)
        asked = {"prompt": texts} if wanted.prompt else {"label": texts}
        wanted = dataclasses.replace(wanted, **asked)  # type: ignore[arg-type]
        condition = self.condition(wanted.candidates * len(texts), wanted)
        seeds, sampling = wanted.seeds(condition.size), self.sampling(others)
        drawn = generate_batches(self.model, condition, seeds, sampling, wanted.batch, watch, self.precision)
        best = ranker.best(drawn, texts, n)
        return Chosen(best.images, [seeds[i] for i in best.index], best.scores, condition[:n], condition.size)

    def ranking(self, n: int, options: SampleOptions) -> tuple[Ranker, list[str]]:
        """What chooses ``n`` images, and the texts that they are drawn for in turn. Raises LimnerError."""
        prompts, labels = (
            [v] if isinstance(v, str) else list(v or ()) for v in (options.prompt, options.label)
        )
        texts = (prompts or labels)[: checked(Count, n, "--n")]
        if not texts or options.blend or options.between or (prompts and labels):
            raise LimnerError(
                "--rank chooses images by how they fit their prompts: name these with --prompt, without --between and "
                "--blend."
            )
        check_candidates(options.candidates, n, len(texts))
        if options.rank not in self.rankers:
            self.rankers[options.rank] = Ranker(options.rank, self.model.device)
        return self.rankers[options.rank], texts

    def sampling(self, options: Mapping[str, Any]) -> Any:
        """The family's Sampling with these fields, and with the runs and pictures that it names. Raises LimnerError."""
        sampling = self.named_sampling(options)
        loaded: dict[str, Any] = {}
        for f in dataclasses.fields(sampling):
            if not (named := getattr(sampling, f.name)):
                continue
            if f.metadata.get("run"):
                loaded[f.name] = checkpoint.load(named, self.model.device).model
            elif f.metadata.get("picture"):
                picture = open_at_own_size(named, self.spec.given or self.spec, self.loaded.run.data)
                loaded[f.name] = picture.to(self.model.device)
        return dataclasses.replace(sampling, **loaded)

    def named_sampling(self, options: Mapping[str, Any]) -> Any:
        """As ``sampling``, with the paths of the runs that it names: what a record of the drawing holds."""
        sampling: Any = from_json(self.model.Sampling, dict(options), "sampling")
        check(sampling, "--")
        if isinstance(sampling, FitsModel):
            sampling = sampling.fit(self.model)
        return sampling

    def condition(self, n: int, options: SampleOptions) -> Condition:
        """The condition of ``n`` images, with the picture to start from at the run's size. Raises LimnerError."""
        n = checked(Count, n, "--n")
        if options.between and not getattr(self.model.Sampling, "interpolates", True):
            raise LimnerError(
                f"Runs of {self.loaded.run.family} draw tokens, and nothing lies between those of two seeds: leave out "
                "--between."
            )
        if options.blend:
            return self._blend(n, options)
        prompts, labels = ([v] if isinstance(v, str) else v or () for v in (options.prompt, options.label))
        condition = condition_for(self.model, n, prompts, labels)
        warn_of_prompts(self.model, prompts[:n], self.scripts)
        image, mask, follows = options.image, options.mask, self.model.follows
        for name, given in {"image": image, "mask": mask}.items():
            if given and name not in follows and not (name == "image" and "given" in follows):
                able = [family for family in families.names() if name in families.load(family).reads]
                raise LimnerError(
                    f"Runs of {self.loaded.run.family} take no --{name}, those of {join_words(able, 'and')} do: "
                    "leave it out, or name another run."
                )
        if self.spec.frames > 1:
            return with_frames(condition, options, self.spec, self.loaded.run.data)
        refuse_frames(options)
        if not image:
            if mask:
                raise LimnerError("A --mask says which part of an --image to repaint: name that image too.")
            return condition
        data = self.loaded.run.data
        picture = open_picture(image, self.spec.given or self.spec, data).expand(n, -1, -1, -1)
        region = None
        if mask:
            grey = dataclasses.replace(self.spec, channels=1)
            region = (open_picture(mask, grey, data) > 0).float().expand(n, -1, -1, -1)
            if not region.any():
                raise LimnerError(
                    f"The mask {mask} has no white part, so nothing would be repainted: make that part white."
                )
        return dataclasses.replace(condition, image=picture, mask=region)

    def _blend(self, n: int, options: SampleOptions) -> Condition:
        """The way between two ends in ``n`` images."""
        if "blend" not in self.model.follows:
            raise LimnerError(
                f"Runs of {self.loaded.run.family} take no --blend: see `limner families` for those that read one."
            )
        others = options.prompt, options.label, options.image, options.mask, options.between
        if any(others) or options.blend is None:
            raise LimnerError(
                "--blend names both ends, pictures or prompts: leave out --prompt, --label, --image, --mask and "
                "--between."
            )
        one, other = (self._end(n, name) for name in options.blend)
        return dataclasses.replace(one, blend=Blend(other, torch.linspace(0, 1, n)))

    def _end(self, n: int, name: str) -> Condition:
        """``n`` times the picture of this name, or if it names none the prompt."""
        if os.path.isfile(name) or Path(name).suffix.lower() in SUFFIXES:
            picture = open_picture(name, self.spec, self.loaded.run.data)
            return Condition(n, image=picture.expand(n, -1, -1, -1))
        condition = condition_for(self.model, n, [name])
        warn_of_prompts(self.model, [name], self.scripts)
        return condition
