"""The rules by name, and what a breach of one says. Imports nothing: `--help` lists them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning"]


@dataclass(frozen=True, kw_only=True)
class Rule:
    severity: Severity
    statement: str
    """What holds where nothing is wrong."""


def _errors(**statement: str) -> dict[str, Rule]:
    return {name: Rule(severity="error", statement=text) for name, text in statement.items()}


def _warnings(**statement: str) -> dict[str, Rule]:
    return {name.replace("_", "-"): Rule(severity="warning", statement=text) for name, text in statement.items()}


RULES: dict[str, Rule] = _errors(
    readable="every file that a cell has is there, whole, and of the form that the store writes",
    schema="the cell is of the version that this program reads (others are checked no further)",
    hash="every file is the one that DONE names",
    state="the cell is done, and its status says so",
    invalid="the cell does not say of itself that it cannot be trusted",
    identity="the cell's id is that of its config, weights, data and code; its folder bears it",
    config="cell.json and plan.json say what config.yaml says",
    plan="each request is in one lane; lanes are no longer than they may be; the digest is the plan's",
    copies="there are as many documents as a full batch has rows, and no lane asks one twice",
    coverage="each request of the plan has one response, from its lane; of a lane's fillers the first have",
    slots="each request decoded in the slot that its lane had free",
    responses="lengths, endings and log-likelihoods are such as there can be",
    steps="a lane's steps and live rows are those that the lengths of its responses make; every layer is there",
    active="in each step between as many experts ran as one token needs and as all live rows can have",
    samples="each document has one sample, of its request's response",
    scores="metrics are the means of the samples' scores (BLEU: of their texts)",
    numbers="active experts, live rows, lengths, share cut off and fidelity are those of the rows",
    fidelity="each request was compared once; what it gave is possible",
    timing="policy and vanilla were timed in the same repeats and steps, after a full warm-up",
    duplicate="no two cells of a study are the same",
    pairing="cells of one pair had the same plan and prompts",
    partner="each cell with a policy has a finished vanilla cell on its plan, in its study",
    environment="cells that are compared with one vanilla cell ran in one environment",
    sweep="every cell that a sweep asked for is there, with as many requests",
    rescore="with --rescore: the responses, scored anew, give the samples and metrics on record",
) | _warnings(
    running="nobody works on the cell just now",
    warm_up="the warm-up settled before steps were timed",
    precision="the times came as near as was asked for (measure.precision)",
    busy="no more wanted to run than there are CPUs when the cell was timed",
    guard="responses are about as long, and as rarely cut off, as vanilla's",
    machines="all cells of a study ran in one environment",
    leftovers="no files of killed writes, no damaged lanes, no journal of a finished cell, no file unknown to DONE",
)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A breach of a rule."""

    rule: str
    """One of `RULES`."""
    where: str
    """A cell's folder, or a study's."""
    file: str | None = None
    expected: str
    found: str

    @property
    def severity(self) -> Severity:
        return RULES[self.rule].severity

    def __str__(self) -> str:
        file = f"{self.file}: " if self.file else ""
        return f"{self.severity}: {self.rule}: {self.where}: {file}expected {self.expected}; found {self.found}"


def some(items: Sequence[object], most: int = 3) -> str:
    """The first of them."""
    shown = ", ".join(str(item) for item in items[:most])
    return f"{shown} and {len(items) - most} more" if len(items) > most else shown


def describe_rules() -> str:
    """A line each, for `--help`."""
    width = max(map(len, RULES))
    return "\n".join(f"  {name:<{width}}  {rule.severity:<7}  {rule.statement}" for name, rule in RULES.items())
