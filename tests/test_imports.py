"""Who may import whom, and what nobody may import: read off the source, and off a fresh interpreter."""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "limner"
MODULES = sorted(PACKAGE.rglob("*.py"))

# What each part may import besides itself; a part that is not here stands on top of all that is.
BELOW: dict[str, set[str]] = {"settings": set(), "core": {"settings"}, "networks": set()}
BELOW["diffusion"] = BELOW["losses"] = BELOW["data"] = {"core", "settings"}
BELOW["metrics"] = {"networks", "core", "settings"}
BELOW["families"] = {"networks", "diffusion", "losses", "core", "settings"}
BELOW["files"] = {"settings"}
BELOW["config"] = {"families", "core", "settings", "files"}
BELOW["checkpoint"] = BELOW["config"] | {"config"}
BELOW["optim"] = BELOW["distributed"] = BELOW["device"] = BELOW["report"] = {"core", "settings"}
BELOW["journal"] = BELOW["config"] | {"config", "data"}
WORKERS = {"loop", "sample", "evaluate", "understand", "probe"}  # these may use each other
for worker in WORKERS:
    BELOW[worker] = WORKERS | BELOW["checkpoint"] | {"checkpoint", "data", "metrics"}
    BELOW[worker] |= {"optim", "device", "distributed", "journal", "report"}
BELOW["folder"] = {"core", "settings", "data", "files"}
BELOW["filters"] = BELOW["course"] = BELOW["loop"]
BELOW["api"] = BELOW["loop"] | {"course"}
BELOW["latents"] = set()
BELOW["explore"] = BELOW["loop"] | {"latents"}
BELOW["exchange"] = BELOW["checkpoint"] | {"checkpoint"}
BELOW["synthesize"] = BELOW["loop"] | {"filters", "folder"}
BELOW["training_data"] = BELOW["loop"] | {"synthesize", "api"}


def parts(path: Path) -> list[str]:
    return ["limner", *path.relative_to(PACKAGE).with_suffix("").parts]


def imported(path: Path) -> set[str]:
    """Every module that a file imports anywhere, also inside functions, with relative ones made absolute."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = parts(path)[: -node.level] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            # `from limner import data` names a module too
            found |= {f"{module}.{alias.name}" for alias in node.names} if module == "limner" else {module}
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: ".".join(parts(path)))
def test_one_way(path):
    part = parts(path)[1]
    known = {p.relative_to(PACKAGE).parts[0].removesuffix(".py") for p in MODULES} - {"__init__"}
    used = {name.split(".")[1] for name in imported(path) if name.startswith("limner.")} & known
    if part in BELOW:
        assert used <= BELOW[part] | {part}
    if part == "networks":
        outside = {name.split(".")[0] for name in imported(path)} - {"limner", "torch"}
        assert outside <= sys.stdlib_module_names


def test_families_are_not_named_above():
    """A new family is one new file: nothing above imports one by its name."""
    for path in MODULES:
        if parts(path)[1] != "families":
            assert not [name for name in imported(path) if name.startswith("limner.families.")], path


@pytest.mark.parametrize("path", MODULES, ids=lambda path: ".".join(parts(path)))
def test_never(path):
    """No torchvision, and nothing that runs code from a file."""
    refused = {"torchvision", "pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
    assert not {name.split(".")[0] for name in imported(path)} & refused
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "torch":
            assert node.attr not in ("save", "load"), f"line {node.lineno}"
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            assert isinstance(node.value, ast.Constant) and node.value.value is False, (
                f"line {node.value.lineno}"
            )


def test_torchvision_is_not_installed():
    assert importlib.util.find_spec("torchvision") is None


@pytest.mark.parametrize(
    "module", ["limner", "limner.settings", "limner.config", "limner.families", "limner.cli"]
)
def test_imports_without_torch(module):
    """Help answers at once only because these leave torch alone."""
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
