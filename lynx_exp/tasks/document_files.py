"""Files of documents: JSON, JSON Lines, both compressed, parquet. What cannot be a document is named by its place."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from lynx_exp.wording import first_line

ENDINGS = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".parquet")

DEEPEST = 64
"""Lists and objects within one another at most: what holds the documents in memory walks them recursively."""

Numbered = list[tuple[str, dict[str, object]]]
"""Documents, each with where it stands: "line 3" of JSON Lines, else "document 3"."""


def read_rows(path: Path) -> list[dict[str, object]]:
    """The documents of one file. ValueError if they cannot be read, naming the line of JSON Lines."""
    return [row for _, row in read_numbered(path)]


def read_numbered(path: Path) -> Numbered:
    """As `read_rows`, with where each stands."""
    try:
        about = path.stat()
    except OSError as error:
        raise ValueError(f"task.data: {path} cannot be read: {error.strerror or error}") from error
    return _read(path, about.st_mtime_ns, about.st_size)


@lru_cache(maxsize=4)
def _read(path: Path, _modified: int, _size: int) -> Numbered:
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet as pq

            found = _counted(pq.read_table(path).to_pylist())
        else:
            raw = path.read_bytes()
            text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8-sig")
            found = _json_rows(text, path)
    except (OSError, EOFError, UnicodeDecodeError) as error:  # pyarrow's errors are among them, or of ValueError
        raise ValueError(f"task.data: {path} cannot be read: {first_line(error)}") from error
    except ValueError as error:
        text = first_line(error)
        raise ValueError(text if text.startswith("task.data") else f"task.data: {path}: {text}") from error
    rows = [(where, row) for where, row in found if isinstance(row, dict)]
    if not rows or len(rows) < len(found):
        raise ValueError(f"task.data: {path}: must hold at least one document, each an object with the task's fields")
    for where, row in rows:
        for field, value in row.items():
            if _depth(value) > DEEPEST:
                raise ValueError(f"task.data: {path}, {where}: field {field}: nested more than {DEEPEST} deep")
    return rows


def misfit(numbered: Numbered, fields: Sequence[str]) -> str | None:
    """Where the first value is that has no place in its field's column, and why; None if each field is one column."""
    for field in fields:
        values = [row.get(field) for _, row in numbered]
        if _is_column(values):
            continue
        low, high = 0, len(values)  # the first `low` are a column, the first `high` are not
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if _is_column(values[:middle]) else (low, middle)
        where, value = numbered[low][0], values[low]
        if not _is_column([value]):
            return f"{where}: field {field}: {_shown(value)} cannot be stored (numbers to 64 bits, texts in UTF-8)"
        other = next(at for at, before in enumerate(values) if before is not None)
        return f"{where}: field {field}: {_shown(value)}, and {_shown(values[other])} in {numbered[other][0]}"
    return None


def _is_column(values: Sequence[object]) -> bool:
    import pyarrow as pa

    try:
        pa.array(values)
    except (ValueError, TypeError, OverflowError, NotImplementedError):
        return False
    return True


def _shown(value: object) -> str:
    text = ascii(value)
    return f"{type(value).__name__} {text if len(text) <= 40 else text[:37] + '...'}"


def _counted(rows: Sequence[object]) -> list[tuple[str, object]]:
    return [(f"document {number}", row) for number, row in enumerate(rows, 1)]


def _json_rows(text: str, path: Path) -> list[tuple[str, object]]:
    """JSON Lines, whose only separator is a line feed; or one JSON value: a list of documents."""
    if path.name.endswith((".json", ".json.gz")):
        try:
            whole = _json(text)
        except ValueError:
            pass  # many files named .json hold lines
        else:
            return _counted(whole if isinstance(whole, list) else [whole])
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                rows.append((f"line {number}", _json(line)))
            except ValueError as error:
                raise ValueError(f"task.data: {path}, line {number}: not JSON ({error})") from error
    return rows


def _json(text: str) -> object:
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _depth(value: object) -> int:
    """Of lists and objects within one another."""
    level, depth = [value], 0
    while containers := [part for part in level if isinstance(part, list | dict)]:
        depth += 1
        level = [inner for part in containers for inner in (part.values() if isinstance(part, dict) else part)]
    return depth
