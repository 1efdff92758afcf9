"""How fast does each solver come near the answer? The data is one Gaussian, so that the answer is known.

    python benchmarks/solvers.py --to docs/solvers.svg

The largest error against the network calls spent, on the exploding path with Karras's levels and on the variance
preserving one with levels even in log alpha / sigma; the slope of a line is its solver's order.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from record import record
from torch import Tensor

from limner.core import Denoised
from limner.diffusion import solvers
from limner.diffusion.paths import Exploding, NoiseLevel
from limner.evaluation import report

MEAN, SPREAD = 0.3, 0.5
STEPS = (5, 7, 10, 14, 20, 28, 40, 56, 80, 113, 160, 226, 320)
SOLVERS: dict[str, Callable[[solvers.Problem], solvers.Solver]] = {
    "euler": solvers.euler,
    "heun": solvers.heun,
    "dpm2m": solvers.dpm_2m,
    "dpm3m": solvers.dpm_3m,
    "unipc2": partial(solvers.unipc, order=2),
    "unipc": solvers.unipc,
}


def preserving(steps: int, low: float = 0.01, high: float = 150.0) -> list[NoiseLevel]:
    """Ratios of noise to signal from ``high`` to ``low``, even in their logarithm."""
    ratios = [high * (low / high) ** (i / steps) for i in range(steps + 1)]
    return [NoiseLevel(1 / math.hypot(1, r), r / math.hypot(1, r), r) for r in ratios]


def error(
    solve: Callable[[solvers.Problem], solvers.Solver], levels: Sequence[NoiseLevel]
) -> tuple[int, float]:
    """(network calls, the largest error) of three points of the Gaussian."""
    calls = 0

    def denoise(x: Tensor, level: NoiseLevel) -> Denoised:
        nonlocal calls
        calls += 1
        a, s = level.alpha, level.sigma
        return Denoised((SPREAD**2 * a * x + s**2 * MEAN) / (a**2 * SPREAD**2 + s**2))

    first, last = levels[0], levels[-1]
    x = first.sigma * torch.tensor([-1.2, 0.4, 2.0], dtype=torch.float64)
    *_, step = solvers.drive(solve(solvers.Problem(x, levels, Exploding())), denoise)
    spread = math.hypot(last.alpha * SPREAD, last.sigma) / math.hypot(first.alpha * SPREAD, first.sigma)
    return calls, float((step.x - last.alpha * MEAN - spread * (x - first.alpha * MEAN)).abs().max())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--to", type=Path, default=Path("runs/solvers.svg"))
    parser.add_argument("--record", action="store_true", help="write benchmarks/results/solvers.json")
    given = parser.parse_args()
    to, rows = given.to, []
    lines = {name: [error(solve, preserving(n)) for n in STEPS] for name, solve in SOLVERS.items()}
    print(f"{'solver':<8}{'10 steps':>12}{'40 steps':>12}{'160 steps':>12}{'order':>8}")
    for name, points in lines.items():
        errors = [e for _, e in points]
        order = math.log2(errors[STEPS.index(80)] / errors[STEPS.index(160)])
        cells = "".join(f"{errors[STEPS.index(n)]:>12.2e}" for n in (10, 40, 160))
        print(f"{name:<8}{cells}{order:>8.2f}")
        at = {f"e{n}": float(f"{errors[STEPS.index(n)]:.1e}") for n in (10, 40, 160)}
        rows.append({"solver": name, **at, "order": round(order, 2)})
    if given.record:
        columns = {"solver": "solver", **{f"e{n}": f"{n} steps" for n in (10, 40, 160)}, "order": "order"}
        record(
            "solvers",
            columns,
            rows,
            "largest error on a Gaussian whose denoiser is exact, float64; order from 80 to 160 steps",
        )
    to.parent.mkdir(parents=True, exist_ok=True)
    drawn = report.curves(
        {name: [(float(calls), e) for calls, e in points] for name, points in lines.items()},
        "network calls", "largest error", log=True, log_x=True,
    )  # fmt: skip
    style = "svg{background:#fff;font-family:sans-serif}text{fill:#444;font-size:12px}.grid{stroke:#ddd}"
    drawn = drawn.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    to.write_text(drawn.replace(">", f"><style>{style}</style>", 1) + "\n", encoding="utf-8")
    print(f"Look at {to}.")


if __name__ == "__main__":
    main()
