"""Rules between cells: those of one pair, which are compared with one vanilla cell, and those of one study."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from lynx_exp.checks.file_rules import LEFT_BY_A_KILL
from lynx_exp.checks.findings import Finding, some
from lynx_exp.checks.folder_content import Content
from lynx_exp.store.environment import differences
from lynx_exp.store.identity import NOISE_FLOOR, SCHEMA
from lynx_exp.store.sweeps import FOLDER, is_sweep, latest_sweeps


def check_pair(cells: Sequence[Content]) -> tuple[list[Finding], set[str]]:
    """Of the finished cells of one pair, and the fields in which their environments differ."""
    before = {id(cell): len(cell.findings) for cell in cells}
    vanilla = next((cell for cell in cells if cell.is_vanilla), None)
    reference = vanilla or cells[0]
    for cell in cells:
        if vanilla is None:
            cell.add("partner", None, "a finished vanilla cell on the same plan", "none")
        cell.apply(lambda cell: _check_same_plan(cell, reference))
    unlike = {field for cell in cells for field in _check_environment(cell, reference)}
    if vanilla is not None:
        vanilla.apply(lambda vanilla: _check_guards(cells, vanilla))
    return [finding for cell in cells for finding in cell.findings[before[id(cell)] :]], unlike


def _check_same_plan(cell: Content, reference: Content) -> None:
    if cell is reference:
        return
    for stream, plan in cell.plan.items() if cell.info["policy"] != NOISE_FLOOR else ():  # which is to have another one
        other = reference.plan.get(stream)
        if other is None or other["digest"] != plan["digest"] or other["lanes"] != plan["lanes"]:
            found = "another plan" if other is not None else f"no {stream} there"
            cell.add("pairing", "plan.json", f"the plan of {reference.folder.name}", found)
    mine, theirs = _prompts(cell), _prompts(reference)
    wrong = [key for key in mine if key in theirs and mine[key] != theirs[key]]
    if wrong:
        found = f"others at {some([f'{subtask} {request}' for subtask, request in wrong])}"
        cell.add("pairing", "responses.parquet", f"the prompts of {reference.folder.name}", found)


def _prompts(cell: Content) -> dict[tuple[str, int], tuple[object, ...]]:
    """Of each request: document, hash and length."""
    table = cell.table("responses")
    if table is None:
        return {}
    keys = zip(table["subtask"], table["request"].tolist(), strict=True)
    names = ("doc_id", "prompt_hash", "prompt_tokens")
    return dict(zip(keys, zip(*(table[name].tolist() for name in names), strict=True), strict=True))


def _check_environment(cell: Content, reference: Content) -> set[str]:
    found = differences({"reference": reference.provenance, "cell": cell.provenance})
    for field, values in found.items():
        wanted, own = (next(v for v, names in values.items() if name in names) for name in ("reference", "cell"))
        cell.add("environment", "provenance.json", f"{field} {wanted}, as for {reference.folder.name}", own)
    return set(found)


def _check_guards(cells: Sequence[Content], vanilla: Content) -> None:
    import pandas as pd

    from analysis import guards

    known = {cell.folder.name: cell for cell in cells if cell.table("responses") is not None}
    if vanilla.folder.name not in known:
        return
    names = ("subtask", "request", "lane", "new_tokens", "finish_reason")
    frames = [
        pd.DataFrame({"cell_id": name, **{column: (cell.table("responses") or {})[column] for column in names}})
        for name, cell in known.items()
    ]
    partners = dict.fromkeys(known, vanilla.folder.name)
    for (name, subtask), guard in guards.guards_of(pd.concat(frames), partners).items():
        if guards.is_flagged(guard.flag):
            tokens, stops = guard.new_tokens.value, 100 * guard.length_stop_share.value
            before = tokens - guard.new_tokens_difference.value
            stops_before = abs(stops - 100 * guard.length_stop_share_difference.value)
            known[name].add("guard", "responses.parquet",
                            f"responses like vanilla's in {subtask}: {before:.1f} tokens, {stops_before:.0f} % cut off",
                            f"{guard.flag}: {tokens:.1f} tokens, {stops:.0f} % cut off")  # fmt: skip


def check_duplicates(folders: Mapping[Path, str]) -> Iterator[Finding]:
    """Of the cells of one study, by folder: their ids."""
    first: dict[str, Path] = {}
    for folder, cell_id in folders.items():
        if (other := first.setdefault(cell_id, folder)) is not folder:
            yield _finding("duplicate", folder, "cell.json", "an id of its own", f"that of {other.name}")


_OF_A_MODEL = "model."


def check_machines(
    study: Path, provenances: Mapping[str, Mapping[str, object]], unlike: Collection[str], models: Mapping[str, str]
) -> Iterator[Finding]:
    """Differences within a study but for fields that are `unlike` within its pairs, which is worse. What is of a model
    may differ from model to model. `provenances` and `models`: by the cell's folder."""
    found = {name: values for name, values in differences(provenances).items() if not name.startswith(_OF_A_MODEL)}
    for model in dict.fromkeys(models[name] for name in provenances):
        own = differences({name: each for name, each in provenances.items() if models[name] == model})
        found |= {name: values for name, values in own.items() if name.startswith(_OF_A_MODEL)}
    for field, values in found.items():
        if field not in unlike:
            (usual, most), *others = sorted(values.items(), key=lambda item: -len(item[1]))
            rest = "; ".join(f"{value} in {len(cells)} ({some(cells, 1)})" for value, cells in others)
            yield _finding("machines", study, None, f"{field} {usual} in all cells, as in {len(most)}", rest)


def check_sweeps(study: Path, requests: Mapping[str, int | None]) -> Iterator[Finding]:
    """`requests`: those in the plans of the study's cells, by folder name; None where there is no plan."""
    for path in sorted([*study.glob(".*.tmp"), *(study / FOLDER).glob("*")]):
        name = str(path.relative_to(study))
        if name.endswith(".tmp"):
            yield _finding("leftovers", study, name, "cells, and what sweeps asked for", LEFT_BY_A_KILL)
        elif not is_sweep(path):
            yield _finding("readable", study, name, f"what a sweep asked for, schema {SCHEMA}", "something else")
    for cell in {cell.folder: cell for sweep in latest_sweeps(study) for cell in sweep.cells}.values():
        folder = study / cell.folder
        if cell.folder not in requests:
            yield _finding("sweep", folder, None, f"{cell.name}, which a sweep asked for", "no such cell")
        elif requests[cell.folder] not in (cell.requests, None):
            expected = f"the {cell.requests} requests that a sweep asked for"
            yield _finding("sweep", folder, "plan.json", expected, requests[cell.folder])


def _finding(rule: str, where: Path, file: str | None, expected: str, found: object) -> Finding:
    return Finding(rule=rule, where=str(where), file=file, expected=expected, found=str(found))
