"""The setting to take, and what is against the others."""

from __future__ import annotations

import argparse
from pathlib import Path

from lynx_exp.exits import FAILED
from lynx_exp.results.arguments import add_folder, add_margin

HELP = "the fastest setting that is shown to be within a margin of vanilla, per task and over all"
DESCRIPTION = """\
Per batch size, for each task and over all of them: the fastest setting (or, where no latency was measured, the one
with the fewest active experts) whose accuracy is shown to be within --margin points of vanilla's at 95 %, and what
speaks against each of the others."""


def add(verb: argparse.ArgumentParser) -> None:
    add_folder(verb)
    add_margin(verb)
    verb.add_argument(
        "--by", choices=("speedup", "active_experts"), help="what to rank by (default: speed-up where it was measured)"
    )
    verb.add_argument("--csv", type=Path, metavar="FILE", help="also write every candidate and the reason")


def run(args: argparse.Namespace) -> int:
    from analysis.frontiers import SAVINGS
    from analysis.recommendation import print_recommendations
    from analysis.study import study

    by = next((saving for saving in SAVINGS if saving.column == args.by), None)
    found = study(args.folder, args.margin)
    print_recommendations(found, csv=args.csv, by=by)
    return FAILED if found.records.set_aside else 0
