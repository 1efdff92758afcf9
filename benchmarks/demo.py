"""The figures of a demo that has run, as JSON.

make demo; python benchmarks/demo.py runs/demo --record
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from record import record


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, nargs="?", default=Path("runs/demo"))
    parser.add_argument("--record", action="store_true", help="write benchmarks/results/demo.json")
    given = parser.parse_args()
    found = json.loads((given.run / "demo.json").read_text("utf-8"))
    print(json.dumps(found, indent=1))
    if given.record:
        figures = [
            ("training time", round(found["train_seconds"]), "s"),
            ("held-out prompts drawn with every attribute right", round(100 * found["exact"], 1), "%"),
            ("oracle on real held-out pictures", round(100 * found["oracle_on_real"], 1), "%"),
            ("peak memory", found["peak_memory_mb"], "MB"),
            ("images seen", found["images_seen"], ""),
            ("sampling", round(found["sampling_images_per_second"], 1), "images/s"),
        ]
        rows = [{"figure": figure, "value": value, "unit": unit} for figure, value, unit in figures]
        columns, note = (
            {"figure": "figure", "value": "measured", "unit": "unit"},
            f"n = {found['prompts']} prompts",
        )
        print(f"Written: {record('demo', columns, rows, note, command='make demo')}")


if __name__ == "__main__":
    main()
