"""Every figure that the records can give."""

from __future__ import annotations

import argparse
from pathlib import Path

from lynx_exp.exits import FAILED
from lynx_exp.results.arguments import add_folder, add_margin
from lynx_exp.results.main import print_stderr
from lynx_exp.run.progress_bar import bar

HELP = "draw every figure that the records can give"


def add(verb: argparse.ArgumentParser) -> None:
    from analysis.figures import names

    known = names()
    verb.add_argument("--only", choices=known, metavar="NAME", help=f"one of: {', '.join(known)}")
    add_drawing(verb)


def add_drawing(verb: argparse.ArgumentParser) -> None:
    add_folder(verb)
    from analysis.figures import PAPERS

    verb.add_argument("--out", type=Path, metavar="FOLDER", help="where to draw (default: FOLDER/figures)")
    verb.add_argument("--paper", choices=PAPERS, help="column width and letters of a conference's style")
    add_margin(verb)


def run(args: argparse.Namespace) -> int:
    return draw(args, args.only)


def draw(args: argparse.Namespace, only: str | None) -> int:
    import analysis
    from analysis.study import study

    found = study(args.folder, args.margin)
    paths = analysis.write_figures(
        args.folder, args.out, only, paper=args.paper, loaded=found, track=bar if only is None else iter
    )
    print(*paths, sep="\n")
    for line in found.records.set_aside:
        print_stderr(f"set aside: {line}")
    return FAILED if found.records.set_aside else 0
