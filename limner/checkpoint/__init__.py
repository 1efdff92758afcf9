"""A model file is one safetensors file that describes itself; a checkpoint adds what an exact resume needs.

A run's folder::

    runs/x/config.json                              the Run
    runs/x/model.safetensors                        the newest checkpoint's averaged weights
    runs/x/checkpoints/000012800/model.safetensors  averaged weights, with a JSON header
                                 live.safetensors   live weights and optimisers
                                 state.json         counters, the held-out loss, the hashes of the files beside it

A checkpoint is written to a temporary folder, flushed and hashed before it is renamed, so a checkpoint with its
final name is complete; later damage is detected by the hashes. Nothing is ever pickled or unpickled.
"""

from limner.checkpoint.layout import (
    CHECKPOINTS,
    LIVE,
    LOCK,
    STATE,
    Lock,
    checkpoints,
    exists,
    folder_of,
    lock,
    remove,
)
from limner.checkpoint.model_file import MODEL, Header, make_header, migrate_weight, write_model
from limner.checkpoint.optimiser_state import pack_state, unpack_state
from limner.checkpoint.reading import Loaded, Resumed, family_of, load, read_model, resume, run_of
from limner.checkpoint.saving import save
from limner.checkpoint.weights import check_weights, load_weights, not_finite
from limner.files import Damaged

__all__ = [
    "CHECKPOINTS", "LIVE", "LOCK", "MODEL", "STATE", "Damaged", "Header", "Loaded", "Lock", "Resumed",
    "check_weights", "checkpoints", "exists", "family_of", "folder_of", "load", "load_weights", "lock",
    "make_header", "migrate_weight", "not_finite", "pack_state", "read_model", "remove", "resume", "run_of", "save",
    "unpack_state", "write_model",
]  # fmt: skip
