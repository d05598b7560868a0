"""Scores anew, from the stored responses."""

from __future__ import annotations

import argparse

from lynx_exp.results.arguments import add_folder, add_sandbox
from lynx_exp.results.redo import for_every_cell

HELP = "score the stored responses anew, and write what has changed"
DESCRIPTION = """\
Filters, scores and aggregates the stored responses of every finished cell with the lm-eval that is installed now, and
rewrites its samples.parquet and metrics.json where that gives something else. A cell whose documents, prompts or task
definition are no longer what it was asked is refused."""


def add(verb: argparse.ArgumentParser) -> None:
    add_folder(verb)
    add_sandbox(verb)


def run(args: argparse.Namespace) -> int:
    from lynx_exp.run.replay.rescore_cells import WRITTEN, rescore

    given = {"sandbox": args.sandbox, "confirm_unsafe_code": args.confirm_unsafe_code}
    return for_every_cell(args, lambda record: rescore(record, **given), allow_changed=WRITTEN)
