"""Functions stay readable: at most 70 lines, and at most eight parameters outside the fields of a dataclass."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "limner"
LINES, PARAMETERS = 70, 8


def functions():
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{path.relative_to(PACKAGE)}:{node.lineno} {node.name}", node


def count(arguments: ast.arguments) -> int:
    """Of what a caller may give; self and cls are not."""
    named = [*arguments.posonlyargs, *arguments.args]
    bound = bool(named) and named[0].arg in ("self", "cls")
    return len(named) - bound + len(arguments.kwonlyargs) + bool(arguments.vararg) + bool(arguments.kwarg)


def test_functions_are_short():
    lengths = {name: node.end_lineno - node.lineno + 1 for name, node in functions()}
    assert not {name: lines for name, lines in lengths.items() if lines > LINES}


def test_functions_take_few_parameters():
    counts = {name: count(node.args) for name, node in functions()}
    assert not {name: n for name, n in counts.items() if n > PARAMETERS}


def test_the_top_floor():
    """A person finds their way by looking: few folders, few files."""
    entries = [entry for entry in PACKAGE.iterdir() if entry.name != "__pycache__"]
    assert len([e for e in entries if e.is_dir()]) <= 15
    assert len([e for e in entries if e.suffix == ".py"]) <= 12
