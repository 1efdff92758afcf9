"""What commands write: whole or not there, the earlier file survives, and the same command goes on."""

from __future__ import annotations

import ast
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from limner import api, cli, files
from limner.settings import LimnerError
from tests.helpers import paint

PACKAGE = Path(files.__file__).parent


# Nothing goes past limner.files --------------------------------------------------------------------------

WRITERS = {
    "write_text", "write_bytes", "save", "save_file", "savez", "savez_compressed", "write_table", "tofile", "dump",
    "to_csv", "savefig", "SummaryWriter", "replace", "rename", "copyfile", "copytree", "link", "symlink", "symlink_to",
}  # fmt: skip
MODULES = {  # whose functions of these names are meant, where others have methods of the same name
    "replace": {"os"}, "rename": {"os"}, "link": {"os"}, "symlink": {"os"}, "dump": {"json"},
}  # fmt: skip
WITHIN = ("files.atomic", "files.atomic_folder")  # what is written inside goes to a temporary place
# Files that are written otherwise, and why a cut one does no harm.
ALLOWED = {
    "files.py",  # the one place
    "checkpoint/",  # into a temporary folder, which is hashed and renamed
    "data/cache.py", "data/pack.py", "data/rows.py",  # the same
    "data/archive.py",  # a temporary file without a name
    "synthesis/folder.py",  # hidden files, listed when they are whole; see its own tests
    "training/journal.py",  # log.jsonl is appended to; a cut last line is left out
    "distributed.py",  # a temporary folder
    "pictures/grid.py",  # Pillow writes to memory
    "evaluation/report.py",  # the same
    "commands/demo.py",  # moves a finished demo aside
}  # fmt: skip
REMOVERS = {"rmtree", "unlink", "remove", "rmdir"}
MAY_REMOVE = {
    "files.py": "temporary files of its own, and folders of an owner that checked them",
    "checkpoint/folder.py": "checkpoints and temporary folders of a run whose lock it holds",
    "commands/demo.py": "files of a demo by their hashes",
    "data/cache.py": "unfinished and damaged entries of the cache",
    "data/pack.py": "scratch files of its own",
    "data/rows.py": "scratch files of its own",
    "synthesis/draw.py": "the lock, and a folder that it made and that is empty",
    "synthesis/folder.py": "images that it lists, or that an interrupted batch left",
    "training/run.py": "a new run's folder before its first checkpoint",
}


def calls() -> Iterator[tuple[str, ast.Call, list[ast.AST]]]:
    """Each call of the package with what it stands within."""
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()

        def walk(node: ast.AST, above: list[ast.AST], name: str = name) -> Iterator[tuple[str, ast.Call, list]]:
            if isinstance(node, ast.Call):
                yield name, node, above
            for child in ast.iter_child_nodes(node):
                yield from walk(child, [*above, node])

        yield from walk(ast.parse(path.read_text("utf-8")), [])


def writes(call: ast.Call) -> bool:
    function = ast.unparse(call.func)
    owner, _, name = function.rpartition(".")
    if function in ("open", "os.fdopen") or name == "open" and owner != "Image":
        modes = [*call.args[0 if owner and owner != "os" else 1 :], *(k.value for k in call.keywords if k.arg == "mode")]
        return any(isinstance(m, ast.Constant) and isinstance(m.value, str) and set(m.value) & set("wax+") for m in modes)
    return name in WRITERS and (name not in MODULES or owner in MODULES[name]) and owner != "files"


def test_every_writer_goes_through_files() -> None:
    offenders = []
    for name, call, above in calls():
        inside = [ast.unparse(item.context_expr) for w in above if isinstance(w, ast.With) for item in w.items]
        if not writes(call) or any(text.startswith(f"{context}(") for text in inside for context in WITHIN):
            continue
        if not any(name == allowed or (allowed.endswith("/") and name.startswith(allowed)) for allowed in ALLOWED):
            offenders.append(f"{name}:{call.lineno} {ast.unparse(call)[:60]}")
    assert not offenders, "use files.atomic, files.write_text, save_picture ..., so that a full disk cuts no file"


def test_only_these_remove_anything() -> None:
    removers = {
        name
        for name, call, _ in calls()
        if ast.unparse(call.func).rpartition(".")[2] in REMOVERS and "." in ast.unparse(call.func)
    }
    assert removers <= MAY_REMOVE.keys(), "a person's own files are never removed: say here what is, and test it"
