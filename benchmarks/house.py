"""The size of the package: rooms, lines, the longest function, the most parameters, beside an earlier commit.

python benchmarks/house.py --before COMMIT --record
"""

from __future__ import annotations

import argparse
import ast
import subprocess
from pathlib import Path, PurePosixPath

from record import record

ROOT = Path(__file__).parents[1]


def git(*words: str) -> str:
    return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True).stdout


def sources(commit: str) -> dict[PurePosixPath, str]:
    """The package's files at a commit, by path."""
    names = git("ls-tree", "-r", "--name-only", commit, "limner").splitlines()
    return {PurePosixPath(n): git("show", f"{commit}:{n}") for n in names if n.endswith(".py")}


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    a = function.args
    named = [*a.posonlyargs, *a.args]
    bound = bool(named) and named[0].arg in ("self", "cls")
    return len(named) - bound + len(a.kwonlyargs) + bool(a.vararg) + bool(a.kwarg)


def figures(commit: str) -> dict[str, int]:
    files = sources(commit)
    nodes = [node for text in files.values() for node in ast.walk(ast.parse(text))]
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    top = {path.parts[1] for path in files}
    return {
        "folders on the top floor": sum(not name.endswith(".py") for name in top),
        "files on the top floor": sum(name.endswith(".py") for name in top),
        "lines": sum(text.count("\n") for text in files.values()),
        "statements": sum(isinstance(node, ast.stmt) for node in nodes),
        "longest function, lines": max((f.end_lineno or 0) - f.lineno + 1 for f in functions),
        "most parameters of a function": max(map(parameters, functions)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--before", required=True, help="the earlier commit")
    parser.add_argument("--record", action="store_true", help="write benchmarks/results/house.json")
    given = parser.parse_args()
    before, now = figures(given.before), figures("HEAD")
    rows = [{"figure": name, "before": before[name], "now": now[name]} for name in now]
    for row in rows:
        print(f"{row['figure']:<32}{row['before']:>8,}{row['now']:>8,}")
    if given.record:
        columns = {"figure": "limner/", "before": f"at {given.before}", "now": "now"}
        print(f"Written: {record('house', columns, rows)}")


if __name__ == "__main__":
    main()
