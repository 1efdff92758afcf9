"""Any source of images -> packed `Data` -> batches."""

from limner.data.check import Report, check
from limner.data.dataset import Data, Selection, batches
from limner.data.items import Oracle, Problem, finder
from limner.data.open import image_count, image_sizes, open_data, open_like, open_picture
from limner.settings import BUILT_IN

__all__ = [
    "BUILT_IN", "Data", "Oracle", "Problem", "Report", "Selection", "batches", "check", "finder", "image_count",
    "image_sizes", "open_data", "open_like", "open_picture",
]  # fmt: skip
