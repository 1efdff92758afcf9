"""What a run says of one picture, and what it makes of one: embed, classify and apply, from memory."""

from __future__ import annotations

import json
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from limner.core import Classifies, Compares, Describes, LimnerError, Model, Translates
from limner.data import picture_from_bytes, whole_from_bytes
from limner.inference.capabilities import has
from limner.inference.footprint import in_use
from limner.inference.networks import class_probabilities, extract_features
from limner.inference.pipeline import Pipeline
from limner.inference.texts import embed_images
from limner.inference.tiles import Translator
from limner.inference.whole_pictures import translate_picture
from limner.serve.engine.answers import encode_whole
from limner.serve.engine.knobs import sampling_for
from limner.serve.engine.memory import is_fatal, release
from limner.serve.engine.sentences import told
from limner.serve.messages import Event, Form, Report, Work
from limner.settings import lacks_memory

MEMORY = 1_500_000_000  # bytes that translating a picture may take besides what the process has; larger ones are tiled
TRANSLATORS = 4  # that are kept, each with what it measured of its network
WHITE = 255, 255, 255


def embed(pipeline: Pipeline, picture: bytes) -> list[float]:
    """The features of a picture, as ``limner embed`` writes them. Raises LimnerError."""
    if isinstance(pipeline.model, Compares):
        features = embed_images(pipeline, _image(pipeline, picture))
    elif isinstance(pipeline.model, Describes):
        features = extract_features(pipeline, _image(pipeline, picture))
    else:
        raise LimnerError("This model does not describe images: choose one that does.")
    return [float(value) for value in features[0].tolist()]


def classify(pipeline: Pipeline, picture: bytes) -> list[tuple[str, float]]:
    """Each class with its probability, the most probable first. Raises LimnerError."""
    if not has(pipeline.loaded, Classifies):
        raise LimnerError("This model does not classify images: choose one that does.")
    probabilities = class_probabilities(pipeline, _image(pipeline, picture))[0]  # [K]
    order = probabilities.argsort(descending=True, stable=True)
    return [(pipeline.spec.classes[i], float(probabilities[i])) for i in order.tolist()]


def _image(pipeline: Pipeline, picture: bytes) -> Tensor:
    """[1, C, H, W], prepared as the images of a source are."""
    return picture_from_bytes(picture, pipeline.spec, pipeline.loaded.run.data)


class Translators:
    """What makes pictures from pictures, by model and settings."""

    def __init__(self, served: Mapping[str, Model]):
        self.served = served  # by id
        self._kept: dict[str, Translator] = {}

    def apply(
        self, name: str, settings: Mapping[str, Any], seed: int, picture: bytes, form: Form
    ) -> bytes:  # fmt: skip
        """What the model makes of a picture at its own size, as ``limner apply`` does. Raises LimnerError."""
        translator = self._translator(name, settings)
        translator.seed = seed
        translator.memory = in_use(translator.model.device) + MEMORY
        given = whole_from_bytes(picture)
        try:
            result, _ = translate_picture(translator, given, WHITE)
        except LimnerError as error:
            if "--memory" not in str(error):
                raise
            height, width = given.pixels.shape[:2]
            raise LimnerError(
                f"An image of {width}x{height} takes more memory than this model may use: scale it down."
            ) from None
        return encode_whole(result, form)

    def _translator(self, name: str, settings: Mapping[str, Any]) -> Translator:
        model = self.served[name]
        if not isinstance(model, Translates):
            raise LimnerError("This model makes no picture from a given one: choose one that does.")
        key = json.dumps([name, dict(settings)], sort_keys=True)
        kept = self._kept.pop(key, None) or Translator(
            model, sampling_for(model, settings, self.served), MEMORY
        )
        self._kept[key] = kept  # the last used stands last
        if len(self._kept) > TRANSLATORS:
            del self._kept[next(iter(self._kept))]
        return kept


@dataclass
class _Begun:
    """A work and how far it is."""

    work: Work
    until: float  # by the monotonic clock
    done: int = 0  # pictures


class Describer:
    """Answers works about pictures one picture at a time, works in turn; ``say`` takes the events."""

    def __init__(self, pipelines: Mapping[str, Pipeline], say: Callable[[Event], None]):
        self.pipelines, self.say = pipelines, say
        self.translators = Translators({name: pipeline.model for name, pipeline in pipelines.items()})
        self.reports = {name: Report(name) for name in pipelines}
        self._waiting = deque[_Begun]()

    @property
    def idle(self) -> bool:
        return not self._waiting

    def waiting(self, model: str) -> int:
        """Pictures of a model that are not answered yet."""
        return sum(len(b.work.pictures) - b.done for b in self._waiting if b.work.model == model)

    def submit(self, work: Work) -> None:
        until = time.monotonic() + work.seconds if work.seconds else float("inf")
        self.say(Event(work.id, "accepted", evaluations=1))
        self._waiting.append(_Begun(work, until))

    def cancel(self, work: int) -> None:
        for begun in [begun for begun in self._waiting if begun.work.id == work]:
            self._waiting.remove(begun)
            self._cancelled(begun)

    def step(self) -> None:
        """Answer one picture, if one waits."""
        if not self._waiting:
            return
        begun = self._waiting.popleft()
        work = begun.work
        if time.monotonic() > begun.until:
            self._cancelled(begun)
            return
        if begun.done == 0:
            self.say(Event(work.id, "begun"))
        if begun.done < len(work.pictures) and not self._answer(work, begun.done):
            return
        begun.done += 1
        if begun.done < len(work.pictures):
            self._waiting.append(begun)
        else:
            self.say(Event(work.id, "ended"))

    def _answer(self, work: Work, index: int) -> bool:
        """Say what is found of a picture; whether that was possible."""
        picture, start = work.pictures[index], time.perf_counter()
        pipeline, event = self.pipelines[work.model], Event(work.id, "answer", index)
        try:
            if work.kind == "embed":
                event = replace(event, value=embed(pipeline, picture))
            elif work.kind == "classify":
                event = replace(event, value=classify(pipeline, picture))
            else:
                seed = work.seeds[index] if index < len(work.seeds) else 0
                made = self.translators.apply(work.model, work.settings, seed, picture, work.form)
                event = replace(event, kind="image", seed=seed, evaluations=1, data=made)
        except LimnerError as error:
            self._fail(work, index, 400, "invalid_request", *told(error))
            return False
        except Exception as error:
            if is_fatal(error):
                raise  # the next engine begins anew
            self._failed(work, index, error)
            return False
        took = time.perf_counter() - start
        report = self.reports[work.model]
        self.reports[work.model] = replace(
            report, calls=report.calls + 1, rows={1: report.calls + 1}, seconds=report.seconds + took,
            images=report.images + 1,
        )  # fmt: skip
        self.say(replace(event, seconds=took))
        return True

    def _failed(self, work: Work, index: int, error: Exception) -> None:
        """A picture that the model cannot be applied to, for want of memory or for a reason that the log has."""
        if not lacks_memory(error):
            traceback.print_exception(error)
            self._fail(work, index, 500, "engine_failed", "This image made the model fail: try another one.")
            return
        release(self.pipelines[work.model].model.device)
        report = self.reports[work.model]
        self.reports[work.model] = replace(report, out_of_memory=report.out_of_memory + 1)
        self._fail(
            work, index, 503, "out_of_memory", "There is not enough memory for this image: scale it down."
        )

    def _fail(
        self, work: Work, index: int, status: int, code: str, message: str, param: str | None = None
    ) -> None:
        self.say(Event(work.id, "failed", index, status=status, code=code, param=param, message=message))
        self.say(Event(work.id, "ended"))

    def _cancelled(self, begun: _Begun) -> None:
        report, left = self.reports[begun.work.model], len(begun.work.pictures) - begun.done
        self.reports[begun.work.model] = replace(report, cancelled=report.cancelled + left)
        self.say(Event(begun.work.id, "ended", cancelled=True))
