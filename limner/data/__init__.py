"""Any source of images -> packed, memory-mapped `Data` -> batches; and sheets to look at."""

from limner.data.check import Report, check
from limner.data.dataset import Data, batches
from limner.data.pack import open_data, open_like, open_picture, own_size
from limner.data.sources import Problem

__all__ = [
    "Data",
    "Problem",
    "Report",
    "batches",
    "check",
    "open_data",
    "open_like",
    "open_picture",
    "own_size",
]
