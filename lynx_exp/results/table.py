"""What a study comes to: accuracy, difference to vanilla, step time, speed-up, active experts."""

from __future__ import annotations

import argparse
from pathlib import Path

from lynx_exp.exits import FAILED
from lynx_exp.results.arguments import add_folder, add_margin

HELP = "a line of conclusion, and per policy: accuracy, difference to vanilla, step time, speed-up, active experts"

SORTS = ("policy", "score", "difference", "speedup", "run_speedup", "active_experts", "kl")

SORT_HELP = (
    "order of rows below vanilla: policy (default), by name and parameters; else the best first: the highest score, "
    "difference, speedup (measured in the timed windows) or run_speedup (of the whole run, column `run`), the fewest "
    "active_experts, the smallest kl; what has no number comes last"
)


def add(verb: argparse.ArgumentParser) -> None:
    add_folder(verb)
    verb.add_argument(
        "--by", choices=("mean", "task", "all"), default="mean", help="means over subtasks (default), each, or both"
    )
    verb.add_argument("--policy", action="append", default=[], metavar="NAME", help="only this policy; may be repeated")
    verb.add_argument(
        "--task", action="append", default=[], metavar="NAME", help="only this task or subtask; repeatable"
    )
    verb.add_argument("--sort", choices=SORTS, default="policy", help=SORT_HELP)
    form = verb.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print every number as JSON")
    form.add_argument("--markdown", action="store_true", help="print the tables as Markdown")
    verb.add_argument("--legend", action="store_true", help="say what each column means")
    verb.add_argument("--csv", type=Path, metavar="FILE", help="also write the rows and their intervals")
    add_margin(verb)


def run(args: argparse.Namespace) -> int:
    from analysis.commands import print_table

    if args.json or args.markdown:
        from analysis.study import study
        from analysis.table_formats import as_json, as_markdown

        found = study(args.folder, args.margin).only(args.policy, args.task)
        write = as_json if args.json else as_markdown
        print(write(found, by="all" if args.json else args.by, sort=args.sort))
        return FAILED if found.records.set_aside else 0
    found = print_table(
        args.folder,
        csv=args.csv,
        margin=args.margin,
        by=args.by,
        policies=args.policy,
        tasks=args.task,
        sort=args.sort,
        legend=args.legend,
    )
    return FAILED if found.records.set_aside else 0
