"""One HTML page of everything: to read, to click through, to send."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from lynx_exp.exits import FAILED
from lynx_exp.results.arguments import add_folder, add_margin
from lynx_exp.results.main import print_stderr
from lynx_exp.run.progress_bar import bar

HELP = "write one HTML page: what ran, Pareto to click on, figures, tables, answers side by side, provenance"
DESCRIPTION = """\
Writes one HTML file that is complete in itself: it opens from disk, on a phone too, and loads nothing. It holds what
ran and on what, an interactive Pareto chart, the figures, the tables of `lynx-results table`, vanilla's and the
policies' answers side by side, guards, warnings, unfinished cells and provenance. Prompts are made anew from the tasks'
data, where that is on this machine; nothing is downloaded."""


def add(verb: argparse.ArgumentParser) -> None:
    add_folder(verb)
    verb.add_argument("--out", type=Path, metavar="FILE", help="where to write (default: FOLDER/report.html)")
    add_margin(verb)
    verb.add_argument("--no-prompts", action="store_true", help="show prompts as hashes only; loads no task")


def run(args: argparse.Namespace) -> int:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before anything that reads it is imported
    from analysis.outputs import write_bytes
    from analysis.page.document import no_prompts, page
    from analysis.study import study
    from lynx_exp.run.replay.prompt_texts import prompts_of

    find = no_prompts if args.no_prompts else prompts_of
    found = study(args.folder, args.margin)
    text = page(args.folder, find_prompts=find, loaded=found, track=bar).encode()
    out = args.out or args.folder / "report.html"
    out.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(out, text)
    print(f"{out} ({len(text) / 2**20:.1f} MiB)")
    for line in found.records.set_aside:
        print_stderr(f"set aside: {line}")
    return FAILED if found.records.set_aside else 0
