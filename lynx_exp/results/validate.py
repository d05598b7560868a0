"""Whether everything on disk holds together."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from lynx_exp.checks.findings import RULES, describe_rules
from lynx_exp.exits import FAILED
from lynx_exp.results.arguments import add_folder, add_sandbox
from lynx_exp.wording import counted

if TYPE_CHECKING:
    from lynx_exp.checks.all_rules import Rescore, Validation
    from lynx_exp.checks.findings import Finding

HELP = "check that all holds together: files, plans, rows, numbers, partners; exit 1 on a breach"
DESCRIPTION = f"""\
Derives every number of every finished cell from its rows again, and checks each cell against its plan, its
partners and its study. A line for each breach: the rule, the cell, the file, what was expected and what was
found. No model is loaded and nothing is written.

Rules:
{describe_rules()}

Exit codes: 0 no error, 1 an error (with --strict a warning, too), 2 bad input."""


def add(verb: argparse.ArgumentParser) -> None:
    add_folder(verb)
    verb.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    verb.add_argument("--strict", action="store_true", help="warnings count as errors")
    verb.add_argument(
        "--ignore", action="append", default=[], choices=RULES, metavar="RULE", help="leave out a rule (repeatable)"
    )
    verb.add_argument("--rescore", action="store_true", help="also score every stored response anew")
    add_sandbox(verb)


def run(args: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.progress import Progress

    from lynx_exp.checks.all_rules import Validation

    validation = Validation(root=args.folder, rescore=_rescorer(args) if args.rescore else None)
    findings: list[Finding] = []
    console = Console(emoji=False, stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("validate", total=None)
        for finding in validation.run():
            progress.update(task, completed=validation.cells, total=validation.total)
            if finding.rule not in args.ignore:
                findings.append(finding)
                if not args.json:
                    print(finding, flush=True)
    counts = Counter[str](finding.severity for finding in findings)
    if args.json:
        print(json.dumps(_summary(validation, findings), indent=1))
    else:
        print(_closing(validation, counts))
    return FAILED if counts["error"] or (args.strict and counts["warning"]) else 0


def _summary(validation: Validation, findings: list[Finding]) -> dict[str, object]:
    return {
        "cells": validation.cells,
        "finished": validation.finished,
        "errors": sum(finding.severity == "error" for finding in findings),
        "warnings": sum(finding.severity == "warning" for finding in findings),
        "not_derived": validation.not_derived,
        "findings": [{"severity": finding.severity} | asdict(finding) for finding in findings],
    }


def _closing(validation: Validation, counts: Counter[str]) -> str:
    found = ", ".join(counted(counts[name], name) for name in ("error", "warning"))
    text = f"{validation.finished} of {counted(validation.cells, 'cell')} finished and checked: {found}"
    if validation.not_derived:
        names = ", ".join(sorted(validation.not_derived))
        text += f"; not derived again: {names} (--rescore does it)"
    return text


def _rescorer(args: argparse.Namespace) -> Rescore:
    from lynx_exp.run.replay.rescore_cells import score_anew
    from lynx_exp.store.read import read_cell
    from lynx_exp.tasks.run_programs import ExecutionError

    if args.sandbox == "unsafe" and not args.confirm_unsafe_code:
        raise ValueError("--sandbox unsafe runs what a model wrote with your rights; add --confirm-unsafe-code")

    def changed(folder: Path) -> str | None:
        given = {"sandbox": args.sandbox, "confirm_unsafe_code": args.confirm_unsafe_code}
        try:
            found, _, _ = score_anew(read_cell(folder), **given)
        except ExecutionError as error:
            raise ValueError(str(error)) from error
        return str(found) if found.changes or found.samples else None

    return changed
