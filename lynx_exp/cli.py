"""The commands `lynx-exp` (run) and `lynx-results` (read, score anew, export). Nothing heavy is imported before it is
needed."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

BAD_INPUT = 2
FAILED_CELLS = 1
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> None:
    """`lynx-exp`: exits with 0 (all done), 1 (a cell failed), 2 (bad input, nothing was run) or 130 (interrupted)."""
    from lynx_exp.launch import ranks

    if not ranks.is_first_rank():
        from lynx_exp.launch.run import follow

        follow()
        sys.exit(0)
    code = run(sys.argv[1:] if arguments is None else arguments)
    if code != INTERRUPTED:
        ranks.dismiss()
    sys.exit(code)


def run(arguments: Sequence[str]) -> int:
    """Run `lynx-exp ARGUMENTS`; the exit code. Bad input prints one line, or with HYDRA_FULL_ERROR=1 the traceback."""
    from lynx_exp.explain import explain

    wants_trace = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions come here instead of being printed by Hydra
    try:
        return _hydra(list(arguments))
    except KeyboardInterrupt as error:
        _say(str(error) or "interrupted; run the same command to continue")
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader left (| head)
        return 0
    except Exception as error:
        line = explain(error, arguments)
        if line is None or wants_trace:
            raise
        _say(f"error: {line}")
        return BAD_INPUT
    finally:
        if not wants_trace:
            del os.environ["HYDRA_FULL_ERROR"]


def _say(line: str, command: str = "lynx-exp") -> None:
    print(f"{command}: {line}", file=sys.stderr)


def _hydra(arguments: list[str]) -> int:
    import hydra
    from omegaconf import DictConfig

    import lynx_exp
    from lynx_exp.config import config_folder, to_config
    from lynx_exp.launch import plugin

    if arguments == ["--version"]:
        print(f"lynx-exp {lynx_exp.__version__} (hydra {hydra.__version__})")
        return 0
    arguments = sorted(arguments, key=lambda argument: argument not in ("-m", "--multirun"))  # argparse wants it first
    _check_flags(arguments)
    plugin.register()
    plugin.LynxLauncher.report = None
    code = 0
    problem: Exception | None = None

    def one_cell(composed: DictConfig) -> None:
        nonlocal code, problem
        try:
            from lynx_exp.launch.run import run_cells

            code = FAILED_CELLS if run_cells([to_config(composed)]).failed else 0
        except Exception as error:  # Hydra would print it with its own words
            problem = error

    before = sys.argv
    sys.argv = ["lynx-exp", *arguments]
    try:
        hydra.main(config_path=str(config_folder()), config_name="config", version_base="1.3")(one_cell)()
    except SystemExit as stop:  # --help and its like
        if stop.code not in (None, 0):
            raise
        return 0
    finally:
        sys.argv = before
    if problem is not None:
        raise problem
    report = plugin.LynxLauncher.report
    return FAILED_CELLS if report is not None and report.failed else code


def _check_flags(arguments: list[str]) -> None:
    """ValueError for a flag that Hydra does not have: its own parser would print its whole usage."""
    from hydra.main import get_args_parser

    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        raise ValueError(f"{message}; see lynx-exp --help")

    parser.error = refuse  # type: ignore[method-assign]
    parser.parse_args(arguments)


def _results_parser() -> argparse.ArgumentParser:
    from analysis.figures import NAMES
    from lynx_exp.config import SANDBOXES

    parser = argparse.ArgumentParser(
        prog="lynx-results",
        description="Read what lynx-exp wrote: tables with intervals, Pareto curves, figures. Score it anew from the "
        "stored responses, or write it in lm-eval's own form: no model is loaded.",
        epilog="Examples:\n  lynx-results table results/demo\n  lynx-results table results --csv results.csv\n"
        "  lynx-results pareto results/demo\n  lynx-results figures results/demo --out paper/figures\n"
        "  lynx-results rescore results/demo\n  lynx-results export --format lm-eval results/demo --out lm_eval",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="table|pareto|figures|rescore|export")
    where = "a study (results/STUDY), or any folder above or below"
    table = verbs.add_parser(
        "table", help="one row a cell: accuracy, difference to vanilla, TPOT, speed-up, active experts"
    )
    table.add_argument("folder", type=Path, help=where)
    table.add_argument("--csv", type=Path, metavar="FILE", help="write the numbers here as well")
    pareto = verbs.add_parser("pareto", help="accuracy against speed-up and against active experts (PDF, PNG, CSV)")
    figures = verbs.add_parser("figures", help="all figures (PDF, PNG, CSV)")
    figures.add_argument("--only", metavar="NAME", help=f"one of {', '.join(NAMES)}")
    for verb in (pareto, figures):
        verb.add_argument("folder", type=Path, help=where)
        verb.add_argument("--out", type=Path, metavar="FOLDER", help="where to draw (default: FOLDER/figures)")
    rescore = verbs.add_parser(
        "rescore",
        help="score the stored responses anew, and write what has changed",
        description="Filters, scores and aggregates the stored responses of every finished cell with the lm-eval that "
        "is installed now, and rewrites its samples.parquet and metrics.json where that gives something else. A cell "
        "whose documents, prompts or task definition are no longer what it was asked is refused.",
    )
    export = verbs.add_parser(
        "export",
        help="write cells as lm-eval's own results and samples files",
        description="For every finished cell a folder with results_DATE.json and samples_TASK_DATE.jsonl, written by "
        "lm-eval itself from the stored responses; DATE is when the cell was finished, so that an export again writes "
        "over the one before.",
    )
    export.add_argument("--format", required=True, choices=["lm-eval"], help="lm-eval: results_*.json, samples_*.jsonl")
    export.add_argument("--out", type=Path, metavar="FOLDER", help="where to write (default: FOLDER/lm-eval)")
    for verb in (rescore, export):
        verb.add_argument("folder", type=Path, help=where)
        verb.add_argument(
            "--sandbox",
            choices=SANDBOXES,
            help="where generated code runs again, if there is any (default: as each cell was run)",
        )
        verb.add_argument("--confirm-unsafe-code", action="store_true", help="needed for --sandbox unsafe")
    return parser


def results(arguments: Sequence[str] | None = None) -> None:
    """`lynx-results`: exits with 0, 1 (a cell could not be scored or exported), 2 (bad input) or 130 (interrupted)."""
    asked = _results_parser().parse_args(arguments)
    code = 0
    try:
        if asked.verb in ("rescore", "export"):
            code = _redo(asked)
        else:
            _read(asked)
    except ValueError as error:
        _say(f"error: {_first_line(error)}", "lynx-results")
        code = BAD_INPUT
    except KeyboardInterrupt:
        _say("interrupted; what is printed is done, the same command does it all", "lynx-results")
        code = INTERRUPTED
    if code:
        sys.exit(code)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _redo(asked: Any) -> int:
    """Every done cell in turn, a line each as it is done; one that cannot be stops no other."""
    from lynx_exp.launch.stored import done_cells
    from lynx_exp.tasks.execute import ExecutionError

    if asked.sandbox == "unsafe" and not asked.confirm_unsafe_code:
        raise ValueError("--sandbox unsafe runs what a model wrote with your rights; add --confirm-unsafe-code")
    records, failed = done_cells(asked.folder), 0
    given = {"sandbox": asked.sandbox, "confirm_unsafe_code": asked.confirm_unsafe_code}
    for number, record in enumerate(records, 1):
        head = f"{number}/{len(records)} {record.path.name}"
        try:
            if asked.verb == "rescore":
                from lynx_exp.launch.rescore import rescore

                print(f"{head}: {rescore(record, **given)}", flush=True)
            else:
                from lynx_exp.launch.export import export_lm_eval

                written = export_lm_eval(record, asked.out or asked.folder / "lm-eval", **given)
                print(f"{head}: {written[0].parent} ({len(written)} files)", flush=True)
        except (ValueError, ExecutionError) as error:
            failed += 1
            _say(f"{head}: error: {_first_line(error)}", "lynx-results")
    return FAILED_CELLS if failed else 0


def _read(asked: Any) -> None:
    import analysis

    if asked.verb == "table":
        analysis.print_table(asked.folder, csv=asked.csv)
        return
    only = "pareto" if asked.verb == "pareto" else asked.only
    for path in analysis.write_figures(asked.folder, out=asked.out, only=only):
        print(path)
