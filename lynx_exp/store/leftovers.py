"""What in a results folder nobody needs any more: found first, deleted only under a claim on its cell."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import time
from typing import Literal

from lynx_exp.store.claims import CLAIM, STALE_S, Claims, is_held
from lynx_exp.store.done import is_done
from lynx_exp.store.find import find_cells
from lynx_exp.store.hold import ClaimLost
from lynx_exp.store.identity import SCHEMA, code_digest, digest
from lynx_exp.store.question import means, question, read_config_yaml
from lynx_exp.store.reading import value_or_empty
from lynx_exp.store.shapes import fields, integer
from lynx_exp.store.sweeps import FOLDER, latest_sweeps, read_sweeps

Kind = Literal["killed", "damaged", "claim", "journal", "outdated", "superseded", "trace"]

KINDS: Mapping[Kind, str] = {
    "killed": "left by a killed write",
    "damaged": "a damaged lane that was set aside; the lane has run again, or will",
    "claim": "the claim of a process that is gone",
    "journal": "the journal of a finished cell",
    "outdated": "an unfinished cell of other code, which no sweep of this code asks for",
    "superseded": "a finished cell of other code; a newer one of the same question is done",
    "trace": "the stack trace of a failed cell",
}


DRAFTS = (".*.tmp", f"{FOLDER}/.*.tmp", "figures/.*.tmp", "lm-eval/*/.new-*")
"""What killed writes leave in a study beside its cells: of pages and tables, sweeps, figures, exports."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """A file, or a folder with all that it holds."""

    path: Path
    kind: Kind
    cell: Path | None
    """What must be claimed before it goes; None: it is no cell's."""

    @property
    def size(self) -> int:
        """Bytes; 0 of what is gone by now."""
        try:
            paths = self.path.rglob("*") if self.path.is_dir() else [self.path]
            return sum(path.stat().st_size for path in paths if path.is_file())
        except OSError:
            return 0


def find_leftovers(root: Path) -> list[Item]:
    """All that is there, cell by cell; nothing of a cell that somebody works on. ValueError as in `find_cells`."""
    cells, studies = find_cells(root)
    found: list[Item] = []
    for study in studies if cells != [root] else ():
        for pattern in DRAFTS:
            found += [Item(path=path, kind="killed", cell=None) for path in study.glob(pattern) if _is_old(path)]
    others = {cell for cell in cells if _is_other(cell)}
    newest = _newest(cells) if others else {}
    swept = {study: _swept_cells(study) for study in {cell.parent for cell in cells}}
    for cell in cells:
        with suppress(FileNotFoundError):  # somebody begins to work there, or deletes it
            if not is_held(cell):
                found += list(_of_cell(cell, newest, swept[cell.parent], is_other=cell in others))
    return found


def _of_cell(
    cell: Path, newest: Mapping[tuple[Path, str], Path], swept: Collection[str], *, is_other: bool
) -> Iterator[Item]:
    done = is_done(cell)
    if is_other and cell.name not in swept:
        if not (cell / "DONE").exists():
            yield Item(path=cell, kind="outdated", cell=cell)
            return
        key = _question(cell)
        if key is not None and newest.get((cell.parent, key), cell) != cell:
            yield Item(path=cell, kind="superseded", cell=cell)
    if (cell / CLAIM).exists():
        yield Item(path=cell / CLAIM, kind="claim", cell=cell)
    for path in sorted([*cell.glob(".*.tmp"), *(cell / "lanes").glob(".*.tmp")]):
        if _is_old(path):
            yield Item(path=path, kind="killed", cell=cell)
    journal = cell / "lanes"
    if done and journal.is_dir():
        yield Item(path=journal, kind="journal", cell=cell)
        return
    for path in sorted(journal.glob("*.corrupt")):
        yield Item(path=path, kind="damaged", cell=cell)
    if (cell / "error.txt").is_file():
        yield Item(path=cell / "error.txt", kind="trace", cell=cell)


def delete(item: Item, claims: Claims) -> bool:
    """False if somebody works on its cell now, or it is not what it was. OSError if it cannot be deleted."""
    if not item.path.exists():
        return True  # somebody else was faster
    if item.cell is None:
        _remove(item.path)
        return True
    if not claims.take(item.cell):
        return False
    # everything below goes through the claim: between the search and now somebody may have begun to work
    hold = claims.hold(item.cell)
    try:
        if item.path == item.cell:
            if item.kind == "outdated" and (item.cell / "DONE").exists():
                return False  # somebody has finished it meanwhile
            hold.remove(item.cell / "cell.json")  # from here on it is no cell to any reader
            aside = item.cell.with_name(f".{item.cell.name}.tmp")
            item.cell.rename(aside)
            if not (aside / hold.claim.relative_to(item.cell)).is_dir():
                aside.rename(item.cell)  # taken over while this process slept
                return False
            _remove(aside)
        elif item.kind == "claim":
            pass  # it was taken over, and is given back
        elif item.kind == "journal" and not is_done(item.cell):
            return False
        elif item.path.name.startswith(f".{CLAIM}."):
            _remove(item.path)  # a claim that nobody finished making; another's has another name
        else:
            hold.remove(item.path)
        return True
    except ClaimLost:
        return False
    finally:
        claims.give_back(item.cell)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _is_old(path: Path) -> bool:
    """Whether nobody can be writing it just now."""
    try:
        return time() - path.stat().st_mtime > STALE_S
    except OSError:
        return False


def _is_other(cell: Path) -> bool:
    """Whether the cell is of other code, or of an older version. A newer version's is none of our business."""
    info = value_or_empty(cell / "cell.json", fields({"schema": integer}))
    schema, code = info.get("schema"), value_or_empty(cell / "provenance.json").get("code_sha256")
    if isinstance(schema, int) and schema != SCHEMA:
        return schema < SCHEMA
    return code is not None and code != code_digest()


def _swept_cells(study: Path) -> set[str]:
    """Folders of the cells that sweeps of this code planned, or of the code that ran last."""
    current = {code_digest(), None, *(sweep.code for sweep in latest_sweeps(study))}
    return {cell.folder for sweep in read_sweeps(study) if sweep.code in current for cell in sweep.cells}


def _newest(cells: Collection[Path]) -> dict[tuple[Path, str], Path]:
    """The finished cell with the latest end, for each study and question."""
    found: dict[tuple[Path, str], tuple[str, Path]] = {}
    for cell in cells:
        if is_done(cell) and (question := _question(cell)) is not None:
            key, when = (cell.parent, question), str(value_or_empty(cell / "status.json").get("finished"))
            if key not in found or when >= found[key][0]:
                found[key] = when, cell
    return {key: cell for key, (_, cell) in found.items()}


def _question(cell: Path) -> str | None:
    """Equal for cells with the same config, weights and documents; None if they are not known."""
    config, provenance = read_config_yaml(cell), value_or_empty(cell / "provenance.json")
    info = value_or_empty(cell / "cell.json")
    model, data = provenance.get("model"), provenance.get("data_sha256")
    if not config or model is None or data is None:
        return None
    ran = [info.get("dtype"), info.get("device"), model.get("digest"), data]
    return digest([question(config), means(config), ran])
