"""What a run says of one picture, and what it makes of one: embed, classify and apply, from memory."""

from __future__ import annotations

import json
from collections.abc import Mapping
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
from limner.serve.messages import Form

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
