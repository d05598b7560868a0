"""All rules over a results folder, cell by cell, those of a pair together: no more than one pair is in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lynx_exp.checks.between_rules import check_duplicates, check_machines, check_pair, check_sweeps
from lynx_exp.checks.file_rules import check_config, check_files, check_identity, check_leftovers, check_state
from lynx_exp.checks.findings import Finding
from lynx_exp.checks.folder_content import Content, read_content
from lynx_exp.checks.lane_rules import check_copies, check_plan, check_responses, check_steps
from lynx_exp.checks.measured_rules import check_fidelity, check_timing
from lynx_exp.checks.number_rules import check_numbers, check_samples, check_scores
from lynx_exp.store.find import find_cells
from lynx_exp.store.reading import value_or_empty

Rescore = Callable[[Path], str | None]
"""Score a cell's responses anew: None where that changes nothing, else what it changes. ValueError if it cannot be."""


@dataclass(kw_only=True)
class Validation:
    """What `run` has looked at so far."""

    root: Path
    rescore: Rescore | None = None
    cells: int = 0
    total: int = 0
    finished: int = 0
    not_derived: dict[str, int] = field(default_factory=dict)
    """Metrics that only their task's own code can compute -> cells that have them."""

    def run(self) -> Iterator[Finding]:
        """ValueError if `root` is no folder, or holds neither a cell nor what a sweep asked for."""
        folders, places = find_cells(self.root)
        self.total = len(folders)
        studies = {} if folders == [self.root] else {study: _Study(path=study) for study in places}
        for pair in _pairs(folders):
            whole = []
            for folder in pair:
                content, looked_at = self._check_cell(folder)
                yield from content.findings
                if looked_at:
                    whole.append(content)
                if studies:
                    studies[folder.parent].note(content, looked_at)
            if whole and studies:  # a cell alone is compared with none
                findings, unlike = check_pair(whole)
                yield from findings
                for content in whole:
                    studies[content.folder.parent].differing |= unlike
        for study in studies.values():
            yield from study.check()

    def _check_cell(self, folder: Path) -> tuple[Content, bool]:
        """And whether its rows were looked at."""
        content = read_content(folder, str(folder))
        self.cells += 1
        content.apply(check_leftovers)
        whole = bool(content.apply(check_state))
        if whole:
            self.finished += 1
            for check in (*CHECKS, self._check_scores):
                content.apply(check)
        return content, whole

    def _check_scores(self, content: Content) -> None:
        if self.rescore is not None:
            try:
                changed = self.rescore(content.folder)
            except ValueError as error:
                content.add("rescore", None, "responses that can be scored anew", error)
            else:
                if changed is not None:
                    content.add("rescore", "metrics.json", "what scoring the responses anew gives", changed)
        left = check_scores(content)
        for name in dict.fromkeys(left if self.rescore is None else []):
            self.not_derived[name] = self.not_derived.get(name, 0) + 1


CHECKS = (
    *(check_files, check_identity, check_config, check_plan, check_responses, check_copies, check_steps),
    *(check_samples, check_numbers, check_fidelity, check_timing),
)


@dataclass(kw_only=True)
class _Study:
    """What is kept of a study's cells until all of them have been looked at."""

    path: Path
    ids: dict[Path, str] = field(default_factory=dict)
    provenances: dict[str, Mapping[str, object]] = field(default_factory=dict)
    models: dict[str, str] = field(default_factory=dict)
    requests: dict[str, int | None] = field(default_factory=dict)
    """In the plan of each cell; None: it has not come so far as to have one."""
    differing: set[str] = field(default_factory=set)
    """Fields in which the cells of one pair differ."""

    def note(self, content: Content, whole: bool) -> None:
        self.requests[content.folder.name] = None
        if "cell_id" in content.info:
            self.ids[content.folder] = str(content.info["cell_id"])
        if whole:
            self.provenances[content.folder.name] = content.provenance
            self.models[content.folder.name] = str(content.info["model"])
        content.apply(self._count)

    def _count(self, content: Content) -> None:
        lanes = [lane for plan in content.plan.values() for lane in plan["lanes"]]
        self.requests[content.folder.name] = sum(map(len, lanes)) if content.plan else None

    def check(self) -> Iterator[Finding]:
        yield from check_duplicates(self.ids)
        yield from check_machines(self.path, self.provenances, self.differing, self.models)
        yield from check_sweeps(self.path, self.requests)


def _pairs(folders: Sequence[Path]) -> list[list[Path]]:
    """Cells with one pair id, in the order of the first of each; cells without, each alone."""
    pairs: dict[object, list[Path]] = {}
    for folder in folders:
        named = value_or_empty(folder / "cell.json").get("pair_id")
        pairs.setdefault(named or folder, []).append(folder)
    return list(pairs.values())
