"""Cells as lm-eval's own files."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from lynx_exp.results.arguments import add_folder, add_sandbox
from lynx_exp.results.redo import for_every_cell
from lynx_exp.wording import counted

if TYPE_CHECKING:
    from lynx_exp.store.read import CellRecord

HELP = "write cells as lm-eval's own results and samples files"
DESCRIPTION = """\
For every finished cell a folder with results_DATE.json and samples_TASK_DATE.jsonl, written by lm-eval itself from the
stored responses; DATE is when the cell was finished, so that an export again writes over the one before."""


def add(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--format", required=True, choices=["lm-eval"], help="lm-eval: results_*.json, samples_*.jsonl")
    verb.add_argument("--out", type=Path, metavar="FOLDER", help="where to write (default: FOLDER/lm-eval)")
    add_folder(verb)
    add_sandbox(verb)


def run(args: argparse.Namespace) -> int:
    from lynx_exp.run.replay.lm_eval_export import export_lm_eval

    out = args.out or args.folder / "lm-eval"
    given = {"sandbox": args.sandbox, "confirm_unsafe_code": args.confirm_unsafe_code}

    names: dict[str, Path] = {}

    def act(record: CellRecord) -> str:
        first = names.setdefault(record.path.name, record.path)
        if first != record.path:
            raise ValueError(f"has the name of {first}, and would be written over it; export a study at a time")
        written = export_lm_eval(record, out, **given)
        return f"{written[0].parent} ({counted(len(written), 'file')})"

    return for_every_cell(args, act)
