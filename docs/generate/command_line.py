"""cli.md: groups, fields and verbs of the three commands."""

from __future__ import annotations

import argparse
import re
from collections.abc import Collection, Iterator
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import Field as DataclassField
from dataclasses import fields, is_dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, get_type_hints

from docs.generate.markdown import code, table
from lynx_exp.config import Config, allowed, config_folder, dataclass_fields, policy_summary
from lynx_exp.help import as_typed
from lynx_exp.prepare.calibrate import CalibrateConfig
from lynx_exp.prepare.command_line import _parser as prepare_parser
from lynx_exp.prepare.train import TrainConfig
from lynx_exp.results.main import parser as results_parser
from lynx_exp.run.launchers.plugin import LauncherConf, SweeperConf
from lynx_exp.run.launchers.ray_launcher import RayConf
from lynx_exp.run.launchers.slurm_launcher import SlurmConf

HEAD = ("field", "type", "default", "allowed", "meaning")
LAUNCHERS = {"packed, one_by_one": LauncherConf, "slurm": SlurmConf, "ray": RayConf}


def page(leave_out: Collection[str] = ()) -> str:
    """Without the options of groups that `leave_out` names."""
    return "\n".join(
        [
            "# Command line\n\n## lynx-exp\n\nRuns one cell, with `-m` or `+study=NAME` a sweep: "
            "`lynx-exp GROUP=OPTION FIELD=VALUE ...`. `lynx-exp --help` shows the same for the cell that its other "
            "arguments describe.\n\n### Groups\n\nA group of `sweeps/` takes a `+`: `+study=demo`.\n",
            *_groups(leave_out),
            "### Fields\n\nThe policy's own parameters: [policies](policies.md).\n",
            table(HEAD, _fields(Config, "")),
            "### Launchers: hydra.launcher.FIELD\n",
            *(f"`hydra/launcher={name}`\n\n{table(HEAD, _fields(kind, ''))}" for name, kind in LAUNCHERS.items()),
            "### Sweeps: hydra.sweeper.FIELD\n",
            table(HEAD, _fields(SweeperConf, "")),
            "## lynx-results\n\nReads what is on disk; loads no model. Exit codes: 0 all well, 1 something failed or "
            "was found wrong, 2 bad input, 130 interrupted.\n",
            *_verbs(results_parser()),
            "## lynx-prepare\n\nWhat comes before a run. Exit codes: 0 done, 2 bad input, 130 interrupted.\n",
            *_verbs(prepare_parser()),
            "### Fields of train\n",
            table(HEAD, _fields(TrainConfig, "")),
            "### Fields of calibrate\n",
            table(HEAD, _fields(CalibrateConfig, "")),
        ]
    )


def _groups(leave_out: Collection[str]) -> Iterator[str]:
    for root, plus in (("conf", ""), ("sweeps", "+")):
        for folder in sorted(path for path in config_folder(root).iterdir() if path.is_dir() and path.name != "hydra"):
            files = sorted(path for path in folder.glob("*.yaml") if path.stem not in leave_out)
            head: tuple[str, ...] = ("option", "what to expect", "cost") if plus else ("option", "what it is")
            rows = [_sweep(path) if plus else (code(path.stem), _about(path)) for path in files]
            if rows:
                yield f"#### {plus}{folder.name}=\n\n" + table(head, rows)


def _about(path: Path) -> str:
    summary = policy_summary(path.stem) if path.parent.name == "policy" else ""
    return summary or _first_sentence(" ".join(_comment(path)))


def _sweep(path: Path) -> tuple[str, ...]:
    """What the header of a file of `sweeps/` says after `Expect` and `Cost`."""
    parts: dict[str, list[str]] = {}
    part: list[str] = []
    for line in _comment(path):
        word = line.partition(" ")[0]
        if word in ("Command", "Cost", "Expect"):
            part = parts.setdefault(word, [])
            line = line.removeprefix(word)
        part.append(line.strip())
    return code(path.stem), *(_first_sentence(" ".join(parts.get(word, []))) for word in ("Expect", "Cost"))


def _comment(path: Path) -> list[str]:
    """The lines of the comment that the file begins with."""
    lines = [line for line in path.read_text().splitlines() if not line.startswith("# @package")]
    while lines and not lines[0].startswith("#"):
        lines.pop(0)
    return [line[1:].strip() for line in takewhile(lambda line: line.startswith("#"), lines)]


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=\w[\w)%])\.(?:\s|$)", text, maxsplit=1)[0]


def _fields(kind: type, prefix: str) -> Iterator[tuple[str, ...]]:
    """Every field below a dataclass, by its full name."""
    declared, limits, hints = dataclass_fields(kind), allowed(kind), get_type_hints(kind)
    for each in fields(kind):
        name = f"{prefix}{each.name}"
        if each.name.startswith("_"):
            continue
        if is_dataclass(hints[each.name]):
            yield from _fields(hints[each.name], f"{name}.")
            continue
        field = declared[each.name]
        limit = str(limits.get(each.name, field.allowed))
        yield code(name), code(field.kind.replace("None", "null")), code(_default(each)), limit, field.docstring


def _default(field: DataclassField[Any]) -> str:
    """Empty: a group's option gives it."""
    value = field.default_factory() if field.default_factory is not NO_DEFAULT else field.default
    return "" if value is NO_DEFAULT or value == "???" else as_typed(value)


def _verbs(parser: argparse.ArgumentParser) -> Iterator[str]:
    verbs = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    helps = {choice.dest: choice.help or "" for choice in verbs._choices_actions}
    for name, verb in verbs.choices.items():
        if hasattr(verb, "add"):
            verb.add(verb)
        rows = [_option(action) for action in verb._actions if not isinstance(action, argparse._HelpAction)]
        yield f"### {parser.prog} {name}\n\n{_sentence(helps[name])}\n\n" + table(
            ("argument", "default", "what it does"), rows
        )


def _option(action: argparse.Action) -> tuple[str, str, str]:
    names = ", ".join(action.option_strings) or str(action.metavar or action.dest)
    if action.option_strings and action.nargs != 0:
        values = "|".join(map(str, action.choices)) if action.choices and action.metavar is None else action.metavar
        names += f" {values or action.dest.upper()}"
    elif not action.option_strings and action.choices:
        names += f": {'|'.join(map(str, action.choices))}"
    default = "" if action.default in (None, False, [], argparse.SUPPRESS) else str(action.default)
    return code(names), code(default), _expanded(action)


def _expanded(action: argparse.Action) -> str:
    return (action.help or "").replace("%%", "%")


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."
