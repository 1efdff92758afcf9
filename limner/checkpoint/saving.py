"""Checkpoints as they are written: complete under their final name, with the one before kept until they are."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from limner import files
from limner.checkpoint.layout import CHECKPOINTS, LIVE, STATE, checkpoints, order, remove
from limner.checkpoint.model_file import MODEL, Header, write_whole
from limner.checkpoint.tensors import plain, write_tensors
from limner.files import sync
from limner.settings import LimnerError


def save(
    run_dir: str | Path,
    model_tensors: Mapping[str, Tensor],
    header: Header,
    live_tensors: Mapping[str, Tensor],
    state: dict[str, Any],
    keep: int = 2,
) -> Path:
    """Add a checkpoint named by ``header['seen']``, link ``model.safetensors`` to it, and delete old ones.

    The previous checkpoint is kept until the new one is on the disk. Raises LimnerError on a full disk, and then
    leaves no partial files. Only the holder of the run's ``lock`` may call this, and only with a sound state.
    """
    run = Path(run_dir)
    root = run / CHECKPOINTS
    model, live = plain(model_tensors), plain(live_tensors)
    final, temporary = root / f"{header['seen']:09d}", root / f".tmp-{header['seen']}"
    tensor_bytes = sum(tensor.nbytes for tensor in (*model.values(), *live.values()))
    needed = tensor_bytes + len(json.dumps(state)) + 1_000_000  # headers and hashes
    try:
        root.mkdir(parents=True, exist_ok=True)
        for leftover in [*root.glob(".tmp-*"), *run.glob(f".{MODEL}.*.tmp")]:  # of a process that was killed
            remove(leftover)
        if shutil.disk_usage(root).free < needed:
            raise OSError("the disk is full")
        final = _name(root, header["seen"])
        temporary.mkdir()
        write_whole(temporary / MODEL, model, header)
        write_tensors(temporary / LIVE, live, {})
        _write_state(temporary, state)
        sync(temporary)
        os.rename(temporary, final)
        sync(root)
        _publish(final / MODEL, run / MODEL)
    except (OSError, SafetensorError, LimnerError) as error:
        reason = error.__context__ if isinstance(error, LimnerError) else error
        raise LimnerError(_no_room(final, needed, reason)) from error
    finally:
        remove(temporary)
    with contextlib.suppress(OSError):  # what cannot be deleted is, after the next save
        _prune(root, final, keep)
    return final


def _no_room(path: Path, needed: int, reason: object) -> str:
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    free = shutil.disk_usage(folder).free
    return (
        f"Could not save {path} ({reason}): it needs {needed:,} bytes and the disk has {free:,} free. "
        "Earlier checkpoints are intact; free space, then continue with --resume."
    )


def _name(root: Path, seen: int) -> Path:
    """A name that is free: an earlier checkpoint at as many images, perhaps a damaged one, keeps its own."""
    again = max((order(f)[1] + 1 for f in checkpoints(root.parent) if order(f)[0] == seen), default=0)
    return root / (f"{seen:09d}.{again}" if again else f"{seen:09d}")


def _publish(source: Path, target: Path) -> None:
    """Replace ``target`` by a link to ``source``, atomically."""
    with files.atomic(target) as unfinished:
        try:
            os.link(source, unfinished)
        except OSError:  # a file system without hard links
            shutil.copyfile(source, unfinished)
    sync(target.parent)


def _prune(root: Path, newest: Path, keep: int) -> None:
    """Keep the newest and ``keep - 1`` before it.

    Others with as many images seen or more are deleted: training returned to an earlier checkpoint, as after one
    was found damaged. A checkpoint leaves its name at once, so that no reader takes half of one for a damaged one.
    """
    others = [f for f in checkpoints(root.parent) if f != newest]
    past = [f for f in others if order(f)[0] < order(newest)[0]]
    for folder in set(others) - set(past[: max(keep, 1) - 1]):
        leaving = root / f".tmp-{folder.name}-old"
        os.rename(folder, leaving)
        remove(leaving)


def _write_state(folder: Path, state: dict[str, Any]) -> None:
    beside = {
        p.name: {"bytes": p.stat().st_size, "sha256": files.sha256(p)}
        for p in (folder / MODEL, folder / LIVE)
    }
    content = {"state": state, "files": beside}
    files.write_text(folder / STATE, json.dumps({"digest": state_digest(content), **content}, indent=1))


def state_digest(content: dict[str, Any]) -> str:
    """The hash of what a state.json holds."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
