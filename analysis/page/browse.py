"""The samples that the page carries: vanilla's and each policy's answers to the same documents, every text once.

A sweep's answers do not fit on one page. Documents whose score a policy changed come first, then the others in their
order, of every subtask alike, until the page is full; the page says how many it shows.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypedDict

import numpy as np
import pandas as pd

from analysis.labels import series_of, settings_of
from analysis.load import Records
from analysis.page.text import visible
from analysis.pairing import partners_of
from lynx_exp.store.read import CellRecord
from lynx_exp.store.row_types import SampleRow

PAGE_LETTERS = 1_500_000
"""Letters of all texts together, and about 30 for each answer."""
CANDIDATES = 250
"""Documents of a subtask that are looked at."""
TEXT_LETTERS = 6_000
"""Of a longer text the middle is left out: how it begins and what it ends in are what one looks for."""
_ROW_LETTERS = 30

Key = tuple[str, str]
"""(pair id, subtask)"""


class _Run(TypedDict):
    """A cell, as the page tells it from others."""

    task: str
    batch_size: int
    seed: int
    policy: str
    cell: str
    setting: str
    series: str


@dataclass(kw_only=True)
class _Texts:
    """Every text once, by number."""

    numbers: dict[str, int] = field(default_factory=dict)

    def add(self, text: object) -> int:
        """-1 for a missing one."""
        if not isinstance(text, str):
            return -1
        return self.numbers.setdefault(shortened(visible(text)), len(self.numbers))


def shortened(text: str) -> str:
    left_out = len(text) - TEXT_LETTERS
    if left_out <= 0:
        return text
    head = TEXT_LETTERS * 2 // 3
    return f"{text[:head]}\n[… {left_out} letters left out …]\n{text[head + left_out :]}"


def browser(records: Records, cells: Sequence[CellRecord], prompts: Mapping[str, str]) -> dict[str, object]:
    """Texts, and groups of runs that answered the same requests in the same lanes, as JSON.

    `cells`: those of `records`. `prompts`: prompt hash -> text; a prompt that is not there is shown by its hash.
    """
    texts, runs = _Texts(), _runs(records, cells)
    ranked = {subtask: docs[:CANDIDATES] for subtask, docs in ranked_documents(records).items()}
    answers: dict[tuple[str, str, int], SampleRow] = {}
    for cell in cells:
        for row in _rows(cell, ranked):
            answers[cell.info["cell_id"], row["subtask"], row["doc_id"]] = row
    by_document: dict[tuple[str, int], list[SampleRow]] = {}
    for (_, subtask, doc), row in answers.items():
        by_document.setdefault((subtask, doc), []).append(row)
    chosen = _within_page(ranked, by_document, prompts)
    groups = []
    for (_, subtask), members in runs.items():
        docs = sorted(doc for doc in chosen[subtask] if any((run["cell"], subtask, doc) in answers for run in members))
        if docs:
            groups.append(_group(subtask, docs, members, answers, prompts, texts))
    of = records.samples.groupby("subtask", observed=True)["doc_id"].nunique()
    return {
        "texts": list(texts.numbers),
        "groups": groups,
        "shown": {visible(str(name)): [len(chosen[name]), int(of[name])] for name in ranked},
    }


def ranked_documents(records: Records) -> dict[str, list[int]]:
    """Of each subtask all documents: first those whose score (of a corpus metric: filtered answer) most cells changed
    from vanilla's, then by number."""
    partners = partners_of(records.cells)
    samples = {key: part for key, part in records.samples.groupby(["cell_id", "subtask"], observed=True)}
    changed: dict[str, Counter[int]] = {}
    for (cell, subtask), own in samples.items():
        counts = changed.setdefault(str(subtask), Counter())
        other = samples.get((partners[cell], subtask))
        counts.update(dict.fromkeys(own["doc_id"].tolist(), 0))
        if other is not None and other is not own:
            counts.update(_changed(own, other))
    return {subtask: sorted(counts, key=lambda doc: (-counts[doc], doc)) for subtask, counts in sorted(changed.items())}


def _changed(own: pd.DataFrame, other: pd.DataFrame) -> list[int]:
    docs, mine, theirs = np.intersect1d(own["doc_id"].to_numpy(), other["doc_id"].to_numpy(), return_indices=True)
    column = "filtered" if own["score"].isna().all() else "score"
    differ = own[column].to_numpy()[mine] != other[column].to_numpy()[theirs]
    numbers: list[int] = docs[differ].tolist()
    return numbers


def _runs(records: Records, cells: Sequence[CellRecord]) -> dict[Key, list[_Run]]:
    """Of each group its cells, vanilla first, in the order of the tables."""
    settings, labels = settings_of(records.cells), series_of(records.cells)
    subtasks = records.samples.drop_duplicates(["cell_id", "subtask"]).groupby("cell_id", observed=True)["subtask"]
    held = {str(cell): [str(name) for name in names] for cell, names in subtasks}
    found: dict[Key, list[_Run]] = {}
    order = sorted(records.cells.to_dict("records"), key=lambda row: (row["policy"] != "vanilla", row["policy_label"]))
    for row in order:
        run: _Run = {
            "task": row["task"],
            "batch_size": row["batch_size"],
            "seed": row["seed"],
            "policy": row["policy"],
            "cell": row["cell_id"],
            "setting": settings[row["cell_id"]],
            "series": labels[row["policy_label"], row["policy_params"], row["phases"]],
        }
        for subtask in held.get(row["cell_id"], ()):
            found.setdefault((row["pair_id"], subtask), []).append(run)

    def place(key: Key) -> tuple[str, str, int, int, str]:
        first = found[key][0]
        return key[1], first["setting"], first["batch_size"], first["seed"], key[0]

    return {key: found[key] for key in sorted(found, key=place)}


def _rows(cell: CellRecord, wanted: Mapping[str, Sequence[int]]) -> Iterable[SampleRow]:
    sets = {subtask: set(docs) for subtask, docs in wanted.items()}
    for row in cell.samples().to_pylist():
        if row["doc_id"] in sets.get(row["subtask"], ()):
            yield row


def _within_page(
    ranked: Mapping[str, Sequence[int]],
    by_document: Mapping[tuple[str, int], Sequence[SampleRow]],
    prompts: Mapping[str, str],
) -> dict[str, set[int]]:
    """The documents that fit, subtasks in turns; at least one of each."""
    chosen: dict[str, set[int]] = {subtask: set() for subtask in ranked}
    known: set[str] = set()
    room = PAGE_LETTERS
    for place in range(max(map(len, ranked.values()), default=0)):
        for subtask, docs in ranked.items():
            if place >= len(docs):
                continue
            rows = by_document.get((subtask, docs[place]), ())
            new = {text for row in rows for text in _texts_of(row, prompts)} - known
            cost = sum(min(len(text), TEXT_LETTERS) for text in new) + _ROW_LETTERS * len(rows)
            if cost <= room or not chosen[subtask]:
                chosen[subtask].add(docs[place])
                known |= new
                room -= cost
    return chosen


def _texts_of(row: SampleRow, prompts: Mapping[str, str]) -> list[str]:
    texts = [row["response"], row["filtered"], row["target"], prompts.get(row["prompt_hash"])]
    return [text for text in texts if isinstance(text, str)]


def _group(
    subtask: str,
    docs: Sequence[int],
    runs: Sequence[_Run],
    answers: Mapping[tuple[str, str, int], SampleRow],
    prompts: Mapping[str, str],
    texts: _Texts,
) -> dict[str, object]:
    first = runs[0]
    about = []
    for doc in docs:
        row = next(answers[run["cell"], subtask, doc] for run in runs if (run["cell"], subtask, doc) in answers)
        prompt_hash = row["prompt_hash"]
        about.append([doc, texts.add(row["target"]), texts.add(prompts.get(prompt_hash)), visible(str(prompt_hash))])
    return {
        "setting": visible(first["setting"]),
        "task": visible(subtask if first["task"] == subtask else f"{first['task']}: {subtask}"),
        "batch": int(first["batch_size"]),
        "seed": int(first["seed"]),
        "docs": about,
        "runs": [
            {
                "series": visible(run["series"]),
                "policy": visible(run["policy"]),
                "rows": [_answer(answers.get((run["cell"], subtask, doc)), texts) for doc in docs],
            }
            for run in runs
        ],
    }


def _answer(row: SampleRow | None, texts: _Texts) -> list[int | float | None] | None:
    """[response, filtered, score, verdict, why it ended, tokens, lane]"""
    if row is None:
        return None
    score = row["score"]
    return [
        texts.add(row["response"]),
        texts.add(row["filtered"]),
        None if score is None or math.isnan(score) else round(score, 6),
        texts.add(row["verdict"]),
        texts.add(row["finish_reason"]),
        row["new_tokens"],
        row["lane"],
    ]
