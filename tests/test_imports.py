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

# From the ground up. A room may import what stands on lines above its own, and nothing that stands on later ones.
FLOORS = [
    {"fields"},
    {"settings", "watch"},
    {"files", "progress", "device", "distributed"},
    {"core"},
    {"networks"},
    {"text", "losses", "diffusion", "data", "metrics"},
    {"families"},
    {"config"},
    {"checkpoint"},
    {"pictures"},
    {"inference"},
    {"training", "serve"},
    {"api"},
    {"evaluation"},
    {"synthesis"},
    {"commands"},
    {"cli"},
]
HEIGHT = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
# The one file of networks that reads a file, and the one place in the project that reads a pickle.
WEIGHTS = PACKAGE / "networks" / "imagenet.py"
# Rooms that see less than lies below them.
ONLY: dict[str, set[str]] = {
    "networks": set(),
    "text": {"core", "fields", "settings", "files", "networks"},
    "losses": {"core", "settings", "distributed", "networks"},
    "diffusion": {"core", "fields", "settings"},
    "data": {"core", "fields", "settings", "files", "progress"},
    "metrics": {"core", "settings", "networks"},
    "families": {"core", "fields", "settings", "networks", "text", "losses", "diffusion"},
}


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


def rooms_used(path: Path) -> set[str]:
    """The rooms of the package that a file imports from."""
    return {name.split(".")[1] for name in imported(path) if name.startswith("limner.")} & HEIGHT.keys()


# Within `data`, from the ground up; its files stand above all three.
DATA = ["images", "annotations", "sources"]


def test_every_room_has_a_floor():
    rooms = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in MODULES} - {"__init__"}
    assert rooms <= HEIGHT.keys()


def test_one_way():
    offenders = []
    for path in MODULES:
        room = parts(path)[1]
        if room == "__init__":
            continue
        for used in rooms_used(path) - {room}:
            allowed = used in ONLY[room] if room in ONLY else HEIGHT[used] < HEIGHT[room]
            allowed |= path == WEIGHTS and used in ("files", "settings")
            if not allowed:
                offenders.append(f"{'.'.join(parts(path))} -> {used}")
    assert not offenders


def test_one_way_within_data():
    offenders = []
    for floor, room in enumerate(DATA):
        below = {"items", *DATA[: floor + 1]}
        for path in (PACKAGE / "data" / room).glob("*.py"):
            used = {name for name in imported(path) if name.startswith("limner.data.")}
            offenders += [f"{room}/{path.name} -> {name}" for name in used if name.split(".")[2] not in below]
    assert not offenders


def test_no_circles():
    """Not within a room either: no module comes to import itself, inside functions or out."""
    names = {".".join(parts(path)).removesuffix(".__init__"): path for path in MODULES}
    arrows = {name: {n for n in targets(path, names) if n != name} for name, path in names.items()}
    done: set[str] = set()

    def visit(name: str, way: list[str]) -> None:
        assert name not in way, " -> ".join([*way[way.index(name) :], name])
        if name not in done:
            for other in sorted(arrows[name]):
                visit(other, [*way, name])
            done.add(name)

    for name in names:
        visit(name, [])


def targets(path: Path, names: dict[str, Path]) -> set[str]:
    """The modules that a file imports: of `from a import b`, a.b where that is one, else a."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in names else str(node.module))
    return found & names.keys()


def test_networks_are_torch_alone():
    offenders = []
    for path in (PACKAGE / "networks").rglob("*.py"):
        outside = {name.split(".")[0] for name in imported(path)} - {"limner", "torch"}
        outside -= {"safetensors"} if path == WEIGHTS else set()
        offenders += [f"{path.name} -> {name}" for name in outside - sys.stdlib_module_names]
    assert not offenders


def test_families_are_not_named_above():
    """A new family is one new file: nothing above imports one by its name."""
    for path in MODULES:
        if parts(path)[1] != "families":
            assert not [name for name in imported(path) if name.startswith("limner.families.")], path


def test_never():
    """No torchvision, and nothing that runs code from a file."""
    refused = {"torchvision", "pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
    offenders, loads = [], []
    for path in MODULES:
        offenders += [f"{path}: {name}" for name in imported(path) if name.split(".")[0] in refused]
        offenders += [f"{path}: {name}" for name in imported(path) if name.startswith("torch.serialization")]
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.load" and path == WEIGHTS:
                loads.append(node)
            elif isinstance(node, ast.Attribute) and ast.unparse(node) in ("torch.save", "torch.load"):
                offenders.append(f"{path}: line {node.lineno}")
            if (
                isinstance(node, ast.keyword)
                and node.arg == "allow_pickle"
                and ast.unparse(node.value) != "False"
            ):
                offenders.append(f"{path}: line {node.value.lineno}")
    assert not offenders and len(loads) == 1


def test_the_one_pickle_is_checked_before_it_is_read():
    """`torch.load` stands in one function, which takes bytes, and whose one caller gives it checked ones."""
    functions = {
        node.name: ast.unparse(node)
        for node in ast.parse(WEIGHTS.read_text("utf-8")).body
        if isinstance(node, ast.FunctionDef)
    }
    (reader,) = (name for name, text in functions.items() if "torch.load(" in text)
    assert "torch.load(io.BytesIO(content), map_location='cpu', weights_only=True)" in functions[reader]
    (caller,) = (text for name, text in functions.items() if f"{reader}(" in text and name != reader)
    assert "pickled = _checked_pickle()" in caller and f"{reader}(pickled)" in caller


def test_torchvision_is_not_installed():
    assert importlib.util.find_spec("torchvision") is None


@pytest.mark.parametrize(
    "module", ["limner", "limner.settings", "limner.config", "limner.families", "limner.cli"]
)
def test_imports_without_torch(module):
    """Help answers at once only because these leave torch alone."""
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
