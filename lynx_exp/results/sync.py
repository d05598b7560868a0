"""Cells on disk to Weights & Biases: after an outage, after `wandb` was off, or anew."""

from __future__ import annotations

import argparse
import os
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

from lynx_exp.exits import FAILED
from lynx_exp.results.arguments import add_folder
from lynx_exp.results.main import print_stderr
from lynx_exp.results.selected_cells import finished
from lynx_exp.store.faults import kind_of
from lynx_exp.wording import counted, first_line

if TYPE_CHECKING:
    from lynx_exp.store.read import CellRecord
    from lynx_exp.tracking.wandb_runs import Place

HELP = "log finished cells to Weights & Biases from disk"
DESCRIPTION = """\
Logs every finished cell, and the tables and figures of each study, from the cells' own files: it needs nothing that
wandb may have left. A cell is one run whose id follows from its content, so logging it again updates it; a cell that
was uploaded from here and has not changed since is passed over."""


def add(verb: argparse.ArgumentParser) -> None:
    add_folder(verb)
    verb.add_argument("--project", metavar="NAME", help="(default: the cells' tracker.project)")
    verb.add_argument("--entity", metavar="NAME", help="user or team (default: the cells' tracker.entity)")
    verb.add_argument("--offline", action="store_true", help="write wandb's own files instead of uploading")
    verb.add_argument("--again", action="store_true", help="also what was uploaded and has not changed")


def run(args: argparse.Namespace) -> int:
    from lynx_exp.tracking.study_content import figures_of, tables_of
    from lynx_exp.tracking.wandb_runs import Unreachable, end, is_logged, log_cell, log_study

    found = finished(args.folder)
    records = found.cells
    # what a later `wandb sync` needs lies with the study, not in the home folder
    os.environ.setdefault("WANDB_DATA_DIR", str(records[0].path.parent / "wandb" / "data"))
    mode, started, failed, logged = "offline" if args.offline else "online", monotonic(), found.set_aside, 0
    try:
        for number, record in enumerate(records, 1):
            place, head = place_of(record, args, mode), f"{number}/{len(records)} {record.path.name}"
            if mode == "online" and not args.again and is_logged(record, place):
                print(f"{head}: is there", flush=True)
                continue
            check_room(record.path.parent / "wandb")
            try:
                print(
                    f"{head}: run {log_cell(record, place)}{_left(started, logged, len(records) - number)}", flush=True
                )
                logged += 1
            except (ValueError, OSError) as error:
                failed += 1
                print_stderr(f"{head}: error: {first_line(error)}")
        for study in dict.fromkeys(record.path.parent for record in records):
            place = place_of(next(record for record in records if record.path.parent == study), args, mode)
            check_room(study / "wandb")
            name = next(record.info["study"] for record in records if record.path.parent == study)
            run_id = log_study(study, place, name=name, tables=tables_of(study), figures=figures_of(study))
            print(f"{name} (tables and figures): run {run_id}", flush=True)
    except Unreachable as error:
        print_stderr(
            f"error: wandb: {first_line(error)}; {counted(logged, 'cell')} logged, the same command logs the others"
        )
        return FAILED
    finally:
        end()
    return FAILED if failed else 0


_ROOM = 2**20
"""Bytes: about what wandb writes for a cell."""


def check_room(folder: Path) -> None:
    """ValueError, in one line, where wandb could not write its files: it would say so in many, or not at all."""
    probe = folder / f".room-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(bytes(_ROOM))
    except OSError as error:
        full = kind_of(error) == "disk_full"
        why = "the disk is full, or a quota is" if full else error.strerror or str(error)
        what = "make room" if full else "copy the study to where you may write"
        raise ValueError(f"{folder}: {why}; wandb keeps its files with the study: {what}, then sync again") from error
    finally:
        with suppress(OSError):
            probe.unlink()


def place_of(record: CellRecord, args: argparse.Namespace, mode: str) -> Place:
    """Where the cell's config says, but for what the command says."""
    from lynx_exp.tracking.run_content import config
    from lynx_exp.tracking.wandb_runs import Place

    return Place.of(config(record).get("tracker"), project=args.project, entity=args.entity, mode=mode)


def _left(started: float, done: int, left: int) -> str:
    """What the others will take, once that can be told."""
    spent = monotonic() - started
    if spent < 10 or not left:
        return ""
    seconds = round(spent / (done + 1) * left)
    return f", {seconds // 60}:{seconds % 60:02d} to go"
