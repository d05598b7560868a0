"""The last repetition of each experiment: when, where, and its verdicts. In the repository, for docs/artifact.md."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from benchmarks.artifact.pages import ROOT
from benchmarks.artifact.verdicts import Outcome
from lynx_exp.cores import usable_cores
from lynx_exp.store.files import write_json
from lynx_exp.store.identity import code_digest
from lynx_exp.store.provenance import cpu_model

FILE = ROOT / "benchmarks/results/artifact.json"
PACKAGES = ("torch", "transformers", "lm_eval")


@dataclass(frozen=True, kw_only=True)
class Repetition:
    """One experiment, as it came out last."""

    date: str
    machine: str
    packages: Mapping[str, str]
    code: str
    """Digest of the package that ran."""
    minutes: float
    equal: int
    """Numbers that came as printed."""
    within: int
    off: int
    why: str = ""
    """Why nothing was compared; empty if it was."""

    def __str__(self) -> str:
        if self.why:
            return f"failed: {self.why}"
        named = {"equal": self.equal, "within": self.within, "**off**": self.off}
        return ", ".join(f"{count} {name}" for name, count in named.items() if count)


def kept(file: Path = FILE) -> dict[str, Repetition]:
    """What was recorded, by experiment; nothing where there is no file."""
    if not file.exists():
        return {}
    return {name: Repetition(**entry) for name, entry in json.loads(file.read_text(encoding="utf-8")).items()}


def keep(outcomes: Sequence[Outcome], file: Path = FILE) -> None:
    """Put the runs in the place of each experiment's last repetition; others stay."""
    found = kept(file)
    for outcome in outcomes:
        if outcome.ran is None:
            continue
        counts = outcome.counts
        found[outcome.experiment.name] = Repetition(
            date=outcome.ran.ended.isoformat(),
            machine=f"{cpu_model()}, {usable_cores()} cores",
            packages={"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
            code=code_digest()[:12],
            minutes=round(outcome.ran.seconds / 60, 1),
            equal=counts["equal"],
            within=counts["within"],
            off=counts["off"],
            why=outcome.why.partition(":")[0],  # what comes behind names places on this machine
        )
    write_json(file, {name: asdict(found[name]) for name in sorted(found)})
