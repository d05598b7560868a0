"""How long figures take from a large folder: reading, statistics and drawing, against ten seconds a figure.

    python benchmarks/figures.py [--rows 1000000] [--repeats 3]

A folder of made-up cells of every study is written first (`made_up.py`): that many rows of decode steps, as many of
single tokens, and some of samples, responses, times; nothing of that is timed. The time of `lynx-results figures DIR
--only NAME`, without starting Python, is printed with the number of pictures that it drew; a picture's time is that of
reading and statistics, and its share of the rest. The last line's ratio is 10 s over the slowest picture's time.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

from analysis import write_figures
from analysis.study import study
from benchmarks.harness import report
from benchmarks.made_up import write

ALLOWED_S = 10.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="of decode steps")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root, out = Path(folder) / "made_up", Path(folder) / "figures"
        cells, rows, tokens = write(root, options.rows)
        print(f"{cells} cells, {rows:,} rows of decode steps, {tokens:,} of single tokens")
        reading = statistics.median(timed(lambda: study(root)) for _ in range(options.repeats))
        print(f"{'reading and statistics':>24} {reading:6.2f} s")
        cases = [measured(root, out, name, options.repeats, reading) for name in drawn(root, out)]
    slowest = min(cases, key=lambda case: case["ratio"])
    report("figures", 1.0, slowest, cases)


def drawn(root: Path, out: Path) -> Iterator[str]:
    """Names of the figures that the folder gives."""
    from analysis.figures import NAMES

    for name in NAMES:
        if write_figures(root, out=out, only=name):
            yield name


def measured(root: Path, out: Path, name: str, repeats: int, reading: float) -> dict[str, Any]:
    pictures = sum(file.suffix in (".pdf", ".tex") for file in write_figures(root, out=out, only=name))
    seconds = [timed(lambda: write_figures(root, out=out, only=name)) for _ in range(repeats)]
    print(f"{name:>24} {statistics.median(seconds):6.2f} s, {pictures} {'picture' if pictures == 1 else 'pictures'}")
    each = sorted(ALLOWED_S / (reading + (took - reading) / pictures) for took in seconds)
    ends = {"ratio": statistics.median(each), "low": each[0], "high": each[-1]}
    took = {"seconds": statistics.median(seconds), "reading_seconds": reading}
    return {"figure": name, "pictures": pictures} | took | ends


def timed(work: Any) -> float:
    start = perf_counter()
    work()
    return perf_counter() - start


if __name__ == "__main__":
    main()
