"""Any source of images -> packed `Data` -> batches."""

from limner.data.check import Report, check
from limner.data.dataset import Data, Selection, batches
from limner.data.from_memory import (
    mask_from_bytes,
    own_size_from_bytes,
    picture_from_bytes,
    whole_from_bytes,
)
from limner.data.items import Oracle, Problem, finder
from limner.data.open import image_count, image_sizes, open_data, open_like, open_picture
from limner.settings import BUILT_IN

__all__ = [
    "BUILT_IN", "Data", "Oracle", "Problem", "Report", "Selection", "batches", "check", "finder", "image_count",
    "image_sizes", "mask_from_bytes", "open_data", "open_like", "open_picture", "own_size_from_bytes",
    "picture_from_bytes", "whole_from_bytes",
]  # fmt: skip
