"""`lynx-results VERB ...`: what is on disk, read, checked, compared, drawn, scored anew. No verb loads a model."""

from __future__ import annotations

import argparse
import errno
import os
import re
import sys
from collections.abc import Callable, Collection, Sequence
from importlib import import_module
from typing import Any, NoReturn

from lynx_exp.exits import BAD_INPUT, INTERRUPTED, REQUEUE
from lynx_exp.own_analysis import protect
from lynx_exp.run.interrupt import Preempted, stoppable
from lynx_exp.temporary import check_temporary_folder
from lynx_exp.wording import did_you_mean, first_line

COMMAND = "lynx-results"
VERBS = (
    *("table", "recommend", "pareto", "figures", "report"),
    *("status", "validate", "diff", "gc"),
    *("rescore", "export", "import", "sync", "dashboard"),
)
"""In the order of `--help`. Each is a module of this package, of its own name unless Python or a figure has that."""
MODULES = {"import": "import_serving", "pareto": "pareto_figures"}
TEMPORARY = ("figures", "report", "pareto", "rescore", "export", "sync", "dashboard")
"""Verbs that need a folder for files of a moment: they draw, run programs, or start wandb's process."""

EPILOG = """\
Examples:
  lynx-results table results/demo
  lynx-results table results --csv results.csv
  lynx-results recommend results/demo --margin 1
  lynx-results pareto results/demo
  lynx-results figures results/demo --out paper/figures --paper icml
  lynx-results status results/demo
  lynx-results validate results/demo
  lynx-results diff results/before results/after
  lynx-results report results/demo
  lynx-results rescore results/demo
  lynx-results export --format lm-eval results/demo --out lm_eval
  lynx-results import --format vllm-bench bench/ --to results/served
  lynx-results gc results
  lynx-results sync results/demo --project moe
  lynx-results dashboard results/demo --json

Exit codes: 0 all well, 1 something failed or was found wrong, 2 bad input, 75 terminated (SIGTERM), 130 interrupted."""


def parser() -> argparse.ArgumentParser:
    whole = _OneLine(
        prog=COMMAND,
        description="Read what lynx-exp wrote: tables with intervals, Pareto curves, figures. Score it anew from the "
        "stored responses, or write it in lm-eval's own form: no model is loaded.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = whole.add_subparsers(dest="verb", required=True, metavar="|".join(VERBS), parser_class=_Verb)
    for name in VERBS:
        module = import_module(f"lynx_exp.results.{MODULES.get(name, name)}")
        verb = verbs.add_parser(
            name,
            help=module.HELP,
            description=getattr(module, "DESCRIPTION", None),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        verb.add = module.add
        verb.set_defaults(run=module.run)
    return whole


class _OneLine(argparse.ArgumentParser):
    """Says what is wrong with its arguments in one line, and what may have been meant."""

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"{COMMAND}: error: {self._hinted(message)}; see {self.prog} --help\n")

    def _hinted(self, message: str) -> str:

        if found := re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)$", message):
            known = found[2].replace("'", "").split(", ")
            what = "unknown verb" if self.prog == COMMAND else message.partition(":")[0]
            return f"{found[1]}: {what}; known: {', '.join(known)}{did_you_mean(found[1], known)}"
        if found := re.match(r"unrecognized arguments: (--?[\w-]+)", message):
            return f"{found[1]}: unknown option{did_you_mean(found[1], self.options)}"
        return message

    options: Collection[str] = ()
    """Of the verb that was asked for."""

    def parse_args(self, arguments: Any = None, namespace: Any = None) -> Any:
        asked, more = self.parse_known_args(arguments, namespace)
        if more:
            verbs = next(action for action in self._actions if isinstance(action, argparse._SubParsersAction))
            self.options = list(verbs.choices[asked.verb]._option_string_actions)
            self.error(f"unrecognized arguments: {' '.join(more)}")
        return asked


class _Verb(_OneLine):
    """Has its arguments only once it is the one that is asked for: what they offer may take long to import."""

    add: Callable[[argparse.ArgumentParser], None]

    def parse_known_args(self, *given: object, **more: object) -> Any:
        self.add(self)
        return super().parse_known_args(*given, **more)


def main(arguments: Sequence[str] | None = None) -> None:
    """Exits with 0, 1 (something failed, or was found wrong), 2 (bad input), 75 (terminated) or 130 (interrupted)."""
    try:
        with stoppable():  # before anything that takes time to import
            code = _main(arguments)
    except KeyboardInterrupt as stop:
        word, code = ("terminated", REQUEUE) if isinstance(stop, Preempted) else ("interrupted", INTERRUPTED)
        print_stderr(f"{word}; what is printed is done, the same command does it all")
    if code:
        sys.exit(code)


def _main(arguments: Sequence[str] | None) -> int:
    protect()
    args = parser().parse_args(arguments)
    try:
        if args.verb in TEMPORARY:
            check_temporary_folder()
        return int(args.run(args))
    except ValueError as error:
        print_stderr(f"error: {first_line(error)}")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader left (| head)
        return 0
    except OSError as error:
        print_stderr(f"error: {describe_os_error(error)}")
    return BAD_INPUT


def print_stderr(line: str) -> None:
    print(f"{COMMAND}: {line}", file=sys.stderr)


def describe_os_error(error: OSError) -> str:
    """What could not be read or written, and why, in one line."""
    named = [str(name) for name in (error.filename, error.filename2) if name is not None]
    what = " -> ".join(re.sub(r"(^|/)\.([^/]+)\.[^./]+\.tmp$", r"\1\2", name) for name in named)  # of a write half done
    hint = "; give --out or --csv a place that can be written to" if error.errno in _NOT_WRITABLE else ""
    return " ".join(f"{what + ': ' if what else ''}{error.strerror or first_line(error)}{hint}".split())


_NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)


if __name__ == "__main__":
    main()
