"""Any source of images -> packed, memory-mapped `Data` -> batches."""

from limner.data.check import Report, check
from limner.data.dataset import Data, Selection, batches
from limner.data.open import open_data, open_like, open_picture, own_size
from limner.data.sources import Oracle, Problem
from limner.settings import BUILT_IN

__all__ = [
    "BUILT_IN", "Data", "Oracle", "Problem", "Report", "Selection", "batches", "check", "open_data", "open_like",
    "open_picture", "own_size",
]  # fmt: skip
