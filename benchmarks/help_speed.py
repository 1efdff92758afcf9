"""How long does help take, as a whole process?

python benchmarks/help_speed.py --record
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

from record import record

CALLS = (
    "--help", "train --help", "train flow --help", "sample --help", "evaluate --help", "compare --help",
    "synthesize --help", "classify --help", "explore --help", "families",
)  # fmt: skip


def milliseconds(words: list[str], runs: int) -> list[float]:
    """[median, fastest, slowest] of a command's whole process."""
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "limner.cli", *words], stdout=subprocess.DEVNULL, check=True)
        times.append(1000 * (time.perf_counter() - start))
    return [round(f(times)) for f in (statistics.median, min, max)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--record", action="store_true", help="write benchmarks/results/help_speed.json")
    given = parser.parse_args()
    rows = []
    for call in CALLS:
        rows.append({"call": f"limner {call}", "ms": milliseconds(call.split(), given.runs)})
        print(f"{rows[-1]['call']:<28}{rows[-1]['ms'][0]:>6} ms", flush=True)
    if given.record:
        note = f"whole processes, median of {given.runs}, fastest to slowest"
        print(f"Written: {record('help_speed', {'call': 'call', 'ms': 'ms'}, rows, note)}")


if __name__ == "__main__":
    main()
