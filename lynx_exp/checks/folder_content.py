"""A cell's folder, every file of it read once: hashed and parsed from the same bytes."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lynx_exp.checks.findings import Finding, some
from lynx_exp.store.cell_writer import FINISHED_FILES, TIMING_FILES
from lynx_exp.store.file_types import CellInfo, CellStatus, Plan
from lynx_exp.store.identity import UNTOUCHED
from lynx_exp.store.reading import Damaged, Missing, parse, read_bytes
from lynx_exp.store.tables import FIDELITY, OPTIONAL_COLUMNS, RESPONSES, SAMPLES, STEPS, TIMING
from lynx_exp.wording import first_line

T = TypeVar("T")
Columns = Mapping[str, NDArray[Any]]

TABLES = {
    "responses.parquet": RESPONSES,
    "steps.parquet": STEPS,
    "samples.parquet": SAMPLES,
    "timing.parquet": TIMING,
    "fidelity.parquet": FIDELITY,
}
KNOWN = {*FINISHED_FILES, *TIMING_FILES, *TABLES, "DONE"}
"""Names that are a file's."""
MAY_BE_NULL = ("logprob", "greedy", "score", "verdict", "sandbox", "thought", "thought_tokens", "repeat_scores")


@dataclass(kw_only=True)
class Content:
    folder: Path
    where: str
    """The folder, as findings name it."""
    hashes: dict[str, str] = field(default_factory=dict)
    """sha256 of each file."""
    values: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Of each JSON and YAML file that could be read."""
    tables: dict[str, Columns] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    @property
    def info(self) -> CellInfo:
        return cast(CellInfo, self.values.get("cell.json", {}))

    @property
    def config(self) -> dict[str, Any]:
        return self.values.get("config.yaml", {})

    @property
    def status(self) -> CellStatus:
        return cast(CellStatus, self.values.get("status.json", {}))

    @property
    def provenance(self) -> dict[str, Any]:
        return self.values.get("provenance.json", {})

    @property
    def plan(self) -> Plan:
        return cast(Plan, self.values.get("plan.json", {}))

    @property
    def finished(self) -> bool:
        """There is a DONE, whatever it says."""
        return "DONE" in self.hashes

    @property
    def is_vanilla(self) -> bool:
        return self.info.get("policy") == "vanilla"

    @property
    def is_untouched(self) -> bool:
        """No policy was attached."""
        return self.info.get("policy") in UNTOUCHED

    def table(self, name: str) -> Columns | None:
        """Of the responses those that are scored."""
        table = self.tables.get(f"{name}.parquet")
        return _rows(table, filler=False) if table is not None and name == "responses" else table

    def fillers(self) -> Columns:
        """Responses that only kept lanes full; empty where there is no table."""
        table = self.tables.get("responses.parquet")
        return {} if table is None else _rows(table, filler=True)

    def add(self, rule: str, file: str | None, expected: object, found: object) -> None:
        self.findings.append(
            Finding(rule=rule, where=self.where, file=file, expected=str(expected), found=str(found)),
        )

    def apply(self, check: Callable[[Content], T]) -> T | None:
        """Run a check that takes the store's form for granted: where that is not what it finds, it says so."""
        try:
            return check(self)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, OSError) as error:
            said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            self.add("readable", None, "fields and types as the store writes them", first_line(said))
            return None


def _rows(table: Columns, *, filler: bool) -> Columns:
    own = table["filler"].astype(bool) == filler
    return {name: column[own] for name, column in table.items()}


def read_content(folder: Path, where: str) -> Content:
    """All of it. What cannot be read, or is not what DONE names, is a finding, and read no further."""
    content = Content(folder=folder, where=where)
    held = {}
    for path in _files_of(content):
        try:
            held[path.name] = read_bytes(path)
        except Missing:
            pass  # somebody works here
        except Damaged as error:
            content.add("readable", path.name, "a file that can be read", error.reason)
    content.hashes = {name: hashlib.sha256(data).hexdigest() for name, data in held.items()}
    for name, data in held.items():
        if name == "DONE" or name.endswith((".json", ".yaml")) and not name.startswith("."):
            _read_value(content, name, data)
    other = _check_hashes(content, held)
    for name, schema in TABLES.items():
        if name in held and name not in other:
            _read_table(content, name, held[name], schema)
    return content


def _files_of(content: Content) -> list[Path]:
    """All but the folders that a cell may have."""
    try:
        return sorted(path for path in content.folder.iterdir() if not path.is_dir() or path.name in KNOWN)
    except OSError as error:
        content.add("readable", None, "a folder that can be looked into", error.strerror or error)
        return []


def _read_value(content: Content, name: str, data: bytes) -> None:
    try:
        content.values[name] = parse(content.folder / name, data)
    except Damaged as error:
        content.add("readable", name, "what the store writes", error.reason)


def _check_hashes(content: Content, held: Mapping[str, bytes]) -> set[str]:
    """Names of files that are not those of DONE."""
    done = content.values.get("DONE")
    if done is None:
        return set()
    if (json.dumps(done, indent=1) + "\n").encode() != held["DONE"]:
        content.add("hash", "DONE", "the spelling in which the store writes it", "another")
    files = done.get("files")
    if not isinstance(files, dict):
        content.add("readable", "DONE", "the hashes of the cell's files", "none")
        return set()
    other = set()
    for name, digest in files.items():
        if name not in held:
            content.add("readable", name, "a file, for DONE names it", "none")
        elif content.hashes[name] != digest:
            other.add(name)
            unread = "; its rows are not looked at" if name in TABLES else ""
            content.add("hash", name, f"sha256 {str(digest)[:12]}", f"{content.hashes[name][:12]}{unread}")
    return other


def _read_table(content: Content, name: str, data: bytes, schema: pa.Schema) -> None:
    try:
        table = pq.read_table(io.BytesIO(data))
    except (OSError, ValueError, pa.ArrowException) as error:
        content.add("readable", name, "a parquet table", _line(error))
        return
    lacking = [column for column in schema.names if column not in table.column_names]
    if name == "samples.parquet":
        lacking = [column for column in lacking if column not in OPTIONAL_COLUMNS["samples"]]
    if lacking:
        content.add("readable", name, f"columns {', '.join(schema.names)}", f"no {', '.join(lacking)}")
        return
    columns = {}
    for column in schema.names:
        if column in table.column_names:
            values = table.column(column)
            if values.null_count and column not in MAY_BE_NULL:
                content.add("readable", name, f"a value of {column} in every row", f"{values.null_count} without")
                return
            if values.null_count < len(values) and not _same_kind(values.type, schema.field(column).type):
                content.add("readable", name, f"{column} as {schema.field(column).type}", values.type)
                return
            columns[column] = values.to_numpy()
    content.tables[name] = columns


def _same_kind(found: pa.DataType, wanted: pa.DataType) -> bool:
    kinds = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean)
    of_text = [pa.types.is_string(kind) or pa.types.is_large_string(kind) for kind in (found, wanted)]
    return of_text[0] == of_text[1] and all(kind(found) == kind(wanted) for kind in kinds)


def _line(error: Exception) -> str:
    return some([first_line(error)])
