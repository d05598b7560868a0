"""One row a cell: accuracy, difference to vanilla, decode step, speed-up, active experts."""

from __future__ import annotations

import argparse
from pathlib import Path

from lynx_exp.exits import FAILED
from lynx_exp.results.arguments import add_folder, add_margin

HELP = "one row a cell: accuracy, difference to vanilla and what it amounts to, decode step, speed-up, active experts"


def add(verb: argparse.ArgumentParser) -> None:
    add_folder(verb)
    verb.add_argument("--csv", type=Path, metavar="FILE", help="also write the rows and their intervals")
    add_margin(verb)


def run(asked: argparse.Namespace) -> int:
    from analysis.report import print_table

    return FAILED if print_table(asked.folder, csv=asked.csv, margin=asked.margin).records.aside else 0
