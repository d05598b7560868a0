"""The held-out items as JSONL files beside their lm-eval task definitions: written here, read here.

The task definitions name `read_rows` as their data set, so that a plain lm-eval run finds the rows from any working
directory and writes no data set cache.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from lynx_exp.tasks.mini import GENERATORS, held_out

if TYPE_CHECKING:
    from datasets import Dataset

FOLDER = Path(__file__).parent / "data"
"""Holds `<rows>.jsonl` and `<task>.yaml`; also what a user hands to lm-eval as its include path."""


def rows_file(rows: str) -> Path:
    """The JSONL file called `rows`; ValueError if there is none."""
    if rows not in GENERATORS:
        raise ValueError(f"rows: unknown {rows!r}, expected one of {', '.join(GENERATORS)}")
    return FOLDER / f"{rows}.jsonl"


def render_rows(rows: str) -> str:
    """The text of the JSONL file: one held-out document a line, numbered by `doc_id`."""
    docs = ({"doc_id": doc_id} | item.doc for doc_id, item in enumerate(held_out(rows)))
    return "".join(json.dumps(doc, ensure_ascii=False) + "\n" for doc in docs)


def write_data(folder: Path = FOLDER) -> list[Path]:
    """Write the held-out rows of every mini task into `folder`; the files' paths. Same bytes on every run."""
    paths = []
    for rows in GENERATORS:
        path = folder / rows_file(rows).name
        path.write_text(render_rows(rows), encoding="utf-8", newline="\n")
        paths.append(path)
    return paths


def read_rows(rows: str, **_: object) -> dict[str, Dataset]:
    """The data set of a mini task, as lm-eval's `custom_dataset` wants it: split name -> rows.

    Further keyword arguments are those that lm-eval passes from a task's metadata; they change nothing here.
    """
    from datasets import Dataset  # slow to import, and only lm-eval needs it

    with rows_file(rows).open(encoding="utf-8") as lines:
        return {"test": Dataset.from_list([json.loads(line) for line in lines])}
