"""A model file is one safetensors file that describes itself; a checkpoint adds what an exact resume needs.

A run's folder::

    runs/x/config.json                              the Run
    runs/x/model.safetensors                        the newest checkpoint's averaged weights
    runs/x/checkpoints/000012800/model.safetensors  averaged weights, with a JSON header
                                 live.safetensors   live weights and optimisers
                                 state.json         counters, and the hashes of the files beside it

A checkpoint is written to a temporary folder, flushed and hashed before it is renamed, so a checkpoint with its
final name is complete; later damage is detected by the hashes. Nothing is ever pickled or unpickled.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import json
import os
import re
import shutil
import socket
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from limner import config, families, files
from limner.config import Run, migrate_run
from limner.core import ImageSpec, Model
from limner.fields import from_json, to_json
from limner.settings import LimnerError, __version__, nearest

MODEL, LIVE, STATE = "model.safetensors", "live.safetensors", "state.json"
CHECKPOINTS, LOCK = "checkpoints", ".lock"
Header = dict[str, Any]


class Damaged(LimnerError):
    """A file differs from what was written; an earlier one may be intact."""


# ---- one file


def make_header(run: Run, spec: ImageSpec, seen: int, parents: Mapping[str, str] | None = None) -> Header:
    """The header of a model file; ``parents`` are the digests of the runs that it was built on, by config field."""
    return {
        "format": config.FORMAT,
        "family": run.family,
        "run": run.to_json(),
        "spec": to_json(spec),
        "seen": seen,
        "versions": {"limner": __version__, "torch": torch.__version__},
        "parents": dict(parents or {}),
    }


def write_model(path: str | Path, tensors: Mapping[str, Tensor], header: Header) -> None:
    """Write a model file completely or not at all. Raises LimnerError, as on a full disk."""
    with files.atomic(Path(path)) as unfinished:
        _write_model(unfinished, _plain(tensors), header)
    _sync(Path(path).parent)


def read_model(path: str | Path) -> tuple[Header, dict[str, Tensor]]:
    """The header and the weights of a model file or of a run's folder, verified.

    If a folder's ``model.safetensors`` is damaged or missing, its newest intact checkpoint is read, with a
    warning. ``digest`` in the header is the hash of the file's content. Raises LimnerError.
    """
    return _open(Path(path))[1:]


class Loaded(NamedTuple):
    model: Model
    header: Header
    run: Run
    spec: ImageSpec
    path: Path  # the file


def load(path: str | Path, device: str | torch.device = "cpu") -> Loaded:
    """The model of a file or of a run's folder, with averaged weights, in eval mode. Raises LimnerError."""
    file, header, tensors = _open(Path(path))
    try:
        run = Run.from_json(header["run"])
        spec = from_json(ImageSpec, header["spec"], "spec")
    except (KeyError, LimnerError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise LimnerError(f"This version of Limner cannot use the header of {file}: {reason}") from error
    with torch.device("meta"):  # uses no memory, whatever sizes the header claims
        check_weights(families.build(run.family, run.model, spec), tensors, str(file))
    with torch.random.fork_rng(devices=[]):  # loading must not change the global random state
        model = families.build(run.family, run.model, spec)
    load_weights(model, tensors, str(file))
    return Loaded(model.to(device).eval(), header, run, spec, file)


def folder_of(run: str | Path) -> Path:
    """The folder of a run that is named by its folder or by a file in it, such as model.safetensors."""
    return Path(run) if Path(run).is_dir() else Path(run).parent


def family_of(path: str | Path) -> str:
    """The family of a file or of a run's folder. Raises LimnerError."""
    file, header, _ = _open(Path(path))
    if isinstance(header.get("family"), str):
        return header["family"]
    raise LimnerError(f"This version of Limner cannot use the header of {file}: it has no 'family'")


def load_weights(module: nn.Module, tensors: Mapping[str, Tensor], where: str = "the file") -> None:
    """Copy the weights into the module. Raises LimnerError unless names and shapes are exactly the module's."""
    check_weights(module, tensors, where)
    module.load_state_dict(dict(tensors))


def check_weights(module: nn.Module, tensors: Mapping[str, Tensor], where: str = "the file") -> None:
    """Raises a LimnerError that lists the weights that are missing, unexpected or of another shape."""
    wanted = module.state_dict()
    missing = [name for name in wanted if name not in tensors]
    unexpected = [name for name in tensors if name not in wanted]
    misshapen = [
        f"{name} ({_shape(tensors[name])}, not {_shape(wanted[name])})"
        for name in wanted
        if name in tensors and tensors[name].shape != wanted[name].shape
    ]
    kinds = (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen))
    faults = [f"{len(names)} {kind}: {_some(names)}" for kind, names in kinds if names]
    if faults:
        raise LimnerError(f"The weights of {where} do not fit its settings; {'; '.join(faults)}.")


def _some(names: list[str], n: int = 6) -> str:
    return ", ".join(names[:n]) + (f" and {len(names) - n} more" if len(names) > n else "")


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a number"


def _open(path: Path) -> tuple[Path, Header, dict[str, Tensor]]:
    if path.is_file():
        return path, *_read_model(path)[:2]
    found = [f / MODEL for f in (path, *_checkpoints(path)) if (f / MODEL).is_file()]
    if not found:
        raise LimnerError(f"There is no run and no model at {path}.{_nearby(path)}")
    if found[0].parent != path:
        warnings.warn(f"{path} has no {MODEL}: reading {found[0]}.", stacklevel=3)
    for file, older in itertools.pairwise(found):
        try:
            return file, *_read_model(file)[:2]
        except Damaged as error:
            warnings.warn(f"{error} Reading {older} instead.", stacklevel=3)
    return found[-1], *_read_model(found[-1])[:2]


def _nearby(path: Path) -> str:
    """A hint at runs with similar names."""
    folders = {path.parent, Path("runs")}
    entries = [entry for folder in folders if folder.is_dir() for entry in folder.iterdir()]
    runs = sorted(str(entry) for entry in entries if exists(entry))
    return nearest(str(path), runs) or (f" There are {_some(runs)}." if runs else "")


def _write_model(path: Path, tensors: dict[str, Tensor], header: Header) -> None:
    # The digest covers the header as the text that is stored.
    text = json.dumps({**header, "format": config.FORMAT})
    _write_tensors(path, tensors, {"limner": text, "digest": _digest(text, tensors)})


def _read_model(path: Path) -> tuple[Header, dict[str, Tensor], int]:
    """The header and the weights, renamed as in this version, and the file's format."""
    metadata, tensors = _read_tensors(path)
    if "limner" not in metadata:
        raise LimnerError(
            f"{path} has weights but no Limner header with their family and settings: open a file that Limner wrote."
        )
    digest = _digest(metadata["limner"], tensors)
    if metadata.get("digest") != digest:
        raise Damaged(f"{path} is damaged: its content does not match its hash.")
    try:
        saved = json.loads(metadata["limner"])
        version = saved["format"]
        header, tensors = _migrate(saved, tensors, path)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise Damaged(f"{path} is damaged: its header cannot be read ({error}).") from error
    return {**header, "digest": digest}, tensors, version


def _migrate(header: Header, tensors: dict[str, Tensor], path: Path) -> tuple[Header, dict[str, Tensor]]:
    """The header and the weights, renamed as in this version."""
    version = header["format"]
    if version > config.FORMAT:
        raise LimnerError(
            f"{path} was written by a newer Limner (format {version}; this one reads up to {config.FORMAT}): "
            "upgrade Limner to open it."
        )
    if version == config.FORMAT:
        return header, tensors
    run = migrate_run(header["run"], header["spec"], version)
    tensors = {migrate_weight(header["family"], name, version): value for name, value in tensors.items()}
    return {**header, "run": run, "format": config.FORMAT}, tensors


def migrate_weight(family: str, name: str, version: int) -> str:
    """The current name of a weight of a family in a file of format ``version``."""
    for number in range(version, config.FORMAT):
        name = config.MIGRATIONS[number].weight(family, name)
    return name


def _write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    save_file(tensors, path, metadata)
    os.umask(mask := os.umask(0))
    path.chmod(0o666 & ~mask)  # safetensors makes files readable by their owner only
    _sync(path)


def _read_tensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    with open(path, "rb") as file:
        start = file.read(9)
    # A safetensors file begins with its header's length and a brace; any other file may be a pickle.
    if start[8:] != b"{" and start.startswith((b"\x80", b"PK")):
        kind = "a pickle in a zip archive, as by torch.save" if start[:2] == b"PK" else "a pickle"
        raise LimnerError(
            f"{path} is {kind}, which can run any code when it is opened, so Limner does not open it: "
            "use a safetensors file."
        )
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:  # a broken or hostile file can make the parser raise anything
        raise Damaged(f"{path} is damaged, incomplete, or not a safetensors file ({error}).") from error


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU, contiguous, and without shared memory, as the format needs them."""
    plain: dict[str, Tensor] = {}
    owned: set[int] = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage()
        if storage.nbytes() != tensor.nbytes or storage.data_ptr() in owned:
            tensor = tensor.clone()
        owned.add(tensor.untyped_storage().data_ptr())
        plain[name] = tensor
    return plain


def _digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    """Flush a file's content, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _no_room(path: Path, needed: int, reason: object) -> str:
    free = shutil.disk_usage(path.parent).free
    return (
        f"Could not save {path} ({reason}): it needs {needed:,} bytes and the disk has {free:,} free. "
        "Earlier checkpoints are intact; free space, then continue with --resume."
    )


# ---- a run's folder


class Resumed(NamedTuple):
    header: Header
    model_tensors: dict[str, Tensor]
    live_tensors: dict[str, Tensor]
    state: dict[str, Any]


def exists(run_dir: str | Path) -> bool:
    """Whether a folder holds a checkpoint or a model file."""
    return (Path(run_dir) / MODEL).exists() or bool(_checkpoints(Path(run_dir)))


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
    leaves no partial files. Only the holder of the run's ``lock`` may call this.
    """
    run = Path(run_dir)
    root = run / CHECKPOINTS
    root.mkdir(parents=True, exist_ok=True)
    for leftover in [*root.glob(".tmp-*"), *run.glob(f".{MODEL}.*.tmp")]:  # of a process that was killed
        _remove(leftover)
    model, live = _plain(model_tensors), _plain(live_tensors)
    final, temporary = _name(root, header["seen"]), root / f".tmp-{header['seen']}"
    tensor_bytes = sum(tensor.nbytes for tensor in (*model.values(), *live.values()))
    needed = tensor_bytes + len(json.dumps(state)) + 1_000_000  # headers and hashes
    if shutil.disk_usage(root).free < needed:
        raise LimnerError(_no_room(final, needed, "the disk is full"))
    try:
        temporary.mkdir()
        _write_model(temporary / MODEL, model, header)
        _write_tensors(temporary / LIVE, live, {})
        _write_state(temporary, state)
        _sync(temporary)
        os.rename(temporary, final)
        _sync(root)
        _publish(final / MODEL, run / MODEL)
    except (OSError, SafetensorError, LimnerError) as error:
        reason = error.__context__ if isinstance(error, LimnerError) else error
        raise LimnerError(_no_room(final, needed, reason)) from error
    finally:
        _remove(temporary)
    _prune(root, final, keep)
    return final


def resume(run_dir: str | Path) -> Resumed | None:
    """The newest intact checkpoint, with a warning for each newer damaged one; None if there are no checkpoints.

    Raises LimnerError if all are damaged.
    """
    folders = _checkpoints(Path(run_dir))
    for i, folder in enumerate(folders, 1):
        try:
            return _read_checkpoint(folder)
        except Damaged as error:
            if i == len(folders):
                raise LimnerError(
                    f"No checkpoint of {run_dir} is intact: {error} Restore a copy, or train again with another --out."
                ) from error
            warnings.warn(f"{error} Using {folders[i]} instead.", stacklevel=2)
    return None


@contextlib.contextmanager
def lock(run_dir: str | Path, flag: str = "--out") -> Iterator[None]:
    """Lock a run's folder against a second training. Raises a LimnerError that names the process that has the lock.

    ``flag`` is the option that names another folder.
    """
    folder = Path(run_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / LOCK, "a+")  # noqa: SIM115
    except OSError as error:
        raise LimnerError(
            f"Cannot write a run to {folder} ({error.strerror}): choose another {flag}."
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise LimnerError(
                f"{folder} is in use by {holder}: wait for it, stop it, or choose another {flag}."
            ) from None
        file.truncate(0)
        started = time.strftime("%Y-%m-%d %H:%M:%S")
        print(f"process {os.getpid()} on {socket.gethostname()} since {started}", file=file, flush=True)
        try:
            yield
        finally:
            file.truncate(0)


def _checkpoints(run: Path) -> list[Path]:
    """Newest first."""
    root = run / CHECKPOINTS
    found = root.iterdir() if root.is_dir() else ()
    return sorted((f for f in found if re.fullmatch(r"\d+(\.\d+)?", f.name)), key=_order, reverse=True)


def _order(checkpoint: Path) -> tuple[int, int]:
    """Images seen, and the number of earlier checkpoints with as many."""
    seen, _, again = checkpoint.name.partition(".")
    return int(seen), int(again or 0)


def _name(root: Path, seen: int) -> Path:
    """A name that is free: an earlier checkpoint at as many images, perhaps a damaged one, keeps its own."""
    again = max((_order(f)[1] + 1 for f in _checkpoints(root.parent) if _order(f)[0] == seen), default=0)
    return root / (f"{seen:09d}.{again}" if again else f"{seen:09d}")


def _publish(source: Path, target: Path) -> None:
    """Replace ``target`` by a link to ``source``, atomically."""
    with files.atomic(target) as unfinished:
        try:
            os.link(source, unfinished)
        except OSError:  # a file system without hard links
            shutil.copyfile(source, unfinished)
    _sync(target.parent)


def _prune(root: Path, newest: Path, keep: int) -> None:
    """Keep the newest and ``keep - 1`` before it.

    Others with as many images seen or more are deleted: training returned to an earlier checkpoint, as after one
    was found damaged.
    """
    others = [f for f in _checkpoints(root.parent) if f != newest]
    past = [f for f in others if _order(f)[0] < _order(newest)[0]]
    for folder in set(others) - set(past[: max(keep, 1) - 1]):
        _remove(folder)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _write_state(folder: Path, state: dict[str, Any]) -> None:
    beside = {
        p.name: {"bytes": p.stat().st_size, "sha256": _hash(p)} for p in (folder / MODEL, folder / LIVE)
    }
    content = {"state": state, "files": beside}
    files.write_text(folder / STATE, json.dumps({"digest": _state_digest(content), **content}, indent=1))


def _read_checkpoint(folder: Path) -> Resumed:
    try:
        content = json.loads((folder / STATE).read_text("utf-8"))
        digest = content.pop("digest")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"{folder / STATE} is damaged or missing.") from error
    if digest != _state_digest(content):
        raise Damaged(f"{folder / STATE} is damaged: its content does not match its hash.")
    for name, entry in content["files"].items():
        file = folder / name
        if not file.is_file() or file.stat().st_size != entry["bytes"] or _hash(file) != entry["sha256"]:
            raise Damaged(f"{file} is damaged or missing.")
    header, model, version = _read_model(folder / MODEL)
    live = {}
    for name, value in _read_tensors(folder / LIVE)[1].items():
        part, _, weight = name.partition("/")
        current = migrate_weight(header["family"], weight, version) if part == "model" else weight
        live[f"{part}/{current}"] = value
    return Resumed(header, model, live, content["state"])


def _state_digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _hash(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---- optimisers


def pack_state(state: Any, prefix: str) -> tuple[dict[str, Tensor], Any]:
    """Split a ``state_dict`` into named tensors and JSON, which ``unpack_state`` joins again.

    Dicts (with keys of any plain type), lists, tuples, numbers, text, None and tensors are kept exactly, and so is
    the channels_last layout of a tensor, since it affects the last bit of results. Raises TypeError for others.
    """
    tensors: dict[str, Tensor] = {}

    def pack(value: Any, name: str) -> Any:
        if isinstance(value, Tensor):
            tensors[name] = value
            return {"tensor": name, **({"layout": layout} if (layout := _layout(value)) else {})}
        if isinstance(value, dict):
            return {"dict": [[key, pack(entry, f"{name}.{key}")] for key, entry in value.items()]}
        if isinstance(value, (list, tuple)):
            packed = [pack(entry, f"{name}.{i}") for i, entry in enumerate(value)]
            return packed if isinstance(value, list) else {"tuple": packed}
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        raise TypeError(f"{name} is a {type(value).__name__}, which a checkpoint cannot hold")

    packed = pack(state, prefix)
    return tensors, packed


def unpack_state(tensors: Mapping[str, Tensor], packed: Any) -> Any:
    """The inverse of ``pack_state``."""
    if isinstance(packed, list):
        return [unpack_state(tensors, entry) for entry in packed]
    if not isinstance(packed, dict):
        return packed
    if "tensor" in packed:
        tensor = tensors[packed["tensor"]]
        return tensor.contiguous(memory_format=LAYOUTS[packed["layout"]]) if "layout" in packed else tensor
    if "tuple" in packed:
        return tuple(unpack_state(tensors, entry) for entry in packed["tuple"])
    return {key: unpack_state(tensors, entry) for key, entry in packed["dict"]}


LAYOUTS = {"channels_last": torch.channels_last, "channels_last_3d": torch.channels_last_3d}


def _layout(tensor: Tensor) -> str | None:
    if tensor.is_contiguous():
        return None
    return next((name for name, form in LAYOUTS.items() if tensor.is_contiguous(memory_format=form)), None)
