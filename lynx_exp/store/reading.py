"""The one way to read a file of a study: whole, of the form that the store writes, or `Damaged` with the reason."""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from lynx_exp.store.file_forms import fault, form_of
from lynx_exp.store.files import read_plain
from lynx_exp.store.shapes import Shape
from lynx_exp.store.tables import OPTIONAL_COLUMNS, TABLES

DEEPEST = 64
"""Levels of lists and objects; the store writes six."""
LONGEST_YAML = 2**20
"""Characters of a config.yaml; the store writes a few thousand."""
_SHOWN = 120
"""Characters of a reason."""


class Damaged(ValueError):
    """A file that is not what the store writes. As text: the file's name and the reason, one line."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path.name}: {one_line(reason)}")
        self.path, self.reason = path, one_line(reason)


class Missing(Damaged):
    """A file that is not there."""


def one_line(reason: str) -> str:
    line = " ".join(str(reason).split()) or "cannot be read"
    return line if len(line) <= _SHOWN else line[: _SHOWN - 3] + "..."


def read_bytes(path: Path) -> bytes:
    """Of a plain file; a pipe, a device or a folder in its place is damage, not something to wait for."""
    try:
        content = read_plain(path)
    except FileNotFoundError as error:
        raise Missing(path, "is missing") from error
    except OSError as error:
        raise Damaged(path, f"cannot be read ({error.strerror or error})") from error
    if content is None:
        raise Damaged(path, "is not a file")
    return content


def read_value(path: Path, shape: Shape | None = None) -> dict[str, Any]:
    """Of a JSON or YAML file, of the form that its name asks for, or `shape`. Damaged if it is anything else."""
    return parse(path, read_bytes(path), shape)


def value_or_empty(path: Path, shape: Shape | None = None) -> dict[str, Any]:
    """The same; what is damaged counts as not there. For who can go on without it."""
    try:
        return read_value(path, shape)
    except Damaged:
        return {}


def parse(path: Path, data: bytes, shape: Shape | None = None) -> dict[str, object]:
    """`read_value` of what was read from `path`."""
    if not data.strip():
        raise Damaged(path, "is empty")
    is_yaml = path.suffix in (".yaml", ".yml")
    try:
        text = data.decode()
        value: dict[str, object] = parse_yaml(text) if is_yaml else json.loads(text, parse_constant=_refuse)
    except RecursionError as error:
        raise Damaged(path, "nested too deep") from error
    except ValueError as error:
        raise Damaged(path, f"is not {'YAML' if is_yaml else 'JSON'}: {error}") from error
    if _brackets(data) > DEEPEST and _is_deep(value):
        raise Damaged(path, "nested too deep")
    found = fault(value, shape or form_of(path.name))
    if found is not None:
        raise Damaged(path, found)
    return value


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no number of it")


def _brackets(data: bytes) -> int:
    """No fewer than levels, in JSON."""
    return data.count(b"[") + data.count(b"{")


def _is_deep(value: object) -> bool:
    level = [value]
    for _ in range(DEEPEST):
        level = [
            part
            for item in level
            for part in (item.values() if isinstance(item, dict) else item if isinstance(item, list) else ())
            if isinstance(part, dict | list)
        ]
        if not level:
            return False
    return True


_Loader: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Yaml(_Loader):  # type: ignore[misc, valid-type]  # PyYAML has no types, and its fast loader may not be there
    """As OmegaConf reads and writes it: 1e-05 is a number, 2026-01-01 a text.

    Not OmegaConf's own loader: that one is private and in Python alone, and thousands of cells are read at a time; nor
    does it bound depth or refuse aliases, as what may have been damaged needs.
    """

    yaml_implicit_resolvers = {
        first: [each for each in resolvers if not each[0].endswith(":timestamp")]
        for first, resolvers in _Loader.yaml_implicit_resolvers.items()
    }


_Yaml.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def parse_yaml(text: str) -> Any:
    """ValueError if it is none, or of a kind that no config is: too long, too deep (libyaml's recursion would end the
    process), or with aliases (a few lines can stand for gigabytes)."""
    if len(text) > LONGEST_YAML:
        raise ValueError(f"{len(text)} characters, more than any config has")
    try:
        if sum(map(text.count, "[{-?:")) > DEEPEST or "*" in text:
            _check_events(text)
        return yaml.load(text, Loader=_Yaml)
    except (yaml.YAMLError, RecursionError, OverflowError) as error:
        raise ValueError(str(error)) from error


def _check_events(text: str) -> None:
    level = 0
    for event in yaml.parse(text, Loader=_Loader):
        level += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if level > DEEPEST:
            raise ValueError("nested too deep")
        if isinstance(event, yaml.AliasEvent):
            raise ValueError("aliases, which no config has")


def read_rows(path: Path, columns: Sequence[str] | None = None, repeated: Sequence[str] = ()) -> pa.Table:
    """A table of a cell: `columns` of it (None: all that are there), `repeated` ones as dictionaries. Columns that
    older cells lack are null. Damaged if it is no such table."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise Damaged(path, "is not a file")
        file = pq.ParquetFile(pa.OSFile(str(path)), read_dictionary=list(repeated))  # given a path, it looks twice
        names, wrong = _compared(path.stem, file.schema_arrow)
        if wrong is not None:
            raise Damaged(path, wrong)
        wanted = list(names) if columns is None else [name for name in columns if name in names]
        table = file.read(columns=wanted, use_threads=False)  # files are small, and there are thousands
    except FileNotFoundError as error:
        raise Missing(path, "is missing") from error
    except OSError as error:
        raise Damaged(path, f"cannot be read ({error.strerror or error})") from error
    except (pa.ArrowException, ValueError, KeyError, MemoryError) as error:
        if isinstance(error, Damaged):
            raise
        raise Damaged(path, f"cannot be read ({error})") from error
    for name in columns or ():
        if name not in table.column_names:
            table = table.append_column(name, pa.nulls(table.num_rows))
    return table if columns is None else table.select(list(columns))


@lru_cache(maxsize=256)
def _compared(table: str, found: pa.Schema) -> tuple[tuple[str, ...], str | None]:
    """Names of the columns that are there, and what is wrong with them. Thousands of files have few schemas."""
    schema = TABLES[table]
    held = dict(zip(found.names, found.types, strict=True))
    may_lack = OPTIONAL_COLUMNS[table]
    if lacking := [name for name in schema.names if name not in held and name not in may_lack]:
        return tuple(held), f"has no column {', '.join(lacking)}"
    for name, kind in zip(schema.names, schema.types, strict=True):
        if name in held and held[name] != kind and not _same_kind(held[name], kind):
            return tuple(held), f"{name} is {held[name]}, not {kind}"
    return tuple(held), None


def _same_kind(found: pa.DataType, wanted: pa.DataType) -> bool:
    """Of one kind, whatever the width; a column of nulls is of any."""
    if pa.types.is_dictionary(found):
        found = found.value_type
    if pa.types.is_null(found):
        return True
    kinds = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_list)
    is_text = [pa.types.is_string(kind) or pa.types.is_large_string(kind) for kind in (found, wanted)]
    return is_text[0] == is_text[1] and all(kind(found) == kind(wanted) for kind in kinds)
