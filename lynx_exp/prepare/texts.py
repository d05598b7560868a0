"""The texts of a calibration: mini items made for it, or a file's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

MINI = "mini"


def read_texts(data: str, count: int, seed: int) -> list[str]:
    """The calibration texts, `count` at most. ValueError, naming file and line, for what cannot be read."""
    if data == MINI:
        return list(islice(_mini_texts(seed), count))
    path = Path(data).expanduser()
    if not path.is_file():
        raise ValueError(f"data={data}: must be {MINI}, or a file: .jsonl with a field `text`, else one text a line")
    texts: list[str] = []
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if len(texts) == count:
                    break
                if line.strip():
                    texts.append(_jsonl_text(line, f"data={data}: line {number}") if path.suffix == ".jsonl" else line)
    except UnicodeDecodeError as error:
        raise ValueError(f"data={data}: is not text in UTF-8") from error
    if not texts:
        raise ValueError(f"data={data}: holds no text")
    return [text.rstrip("\r\n") for text in texts]


def _mini_texts(seed: int) -> Iterator[str]:
    from lynx_exp.tasks.mini import GENERATORS, training_items

    for items in zip(*(training_items(task, f"calibration-{seed}") for task in GENERATORS), strict=True):
        yield from (item.prompt + item.answer for item in items)


def _jsonl_text(line: str, where: str) -> str:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where}: is not JSON ({error})") from error
    if not isinstance(row, dict) or not isinstance(row.get("text"), str):
        raise ValueError(f"{where}: has no field `text`")
    return row["text"]
