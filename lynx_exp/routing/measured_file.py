"""Files of what was measured for one policy on one model and corpus: tables, what they are of, and a hash by which a
change is seen. Which corpus it was is in their names; of several, none is taken. A run takes what was measured in
batches of its own size."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from lynx_exp.routing.calibration import COMMAND, NotMeasured


def save_tables(path: Path, kind: str, tables: Mapping[str, Tensor], about: Mapping[str, Any], *, version: int) -> None:
    """Written in one step; the same tables give the same bytes.

    Args:
        path: Where to.
        kind: What such files hold, in the words of messages.
        tables: By name.
        about: What they are of.
        version: Of the form of such files.
    """
    said = {**about, "format": version, "tables": _digest(tables)}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_bytes(serialize(dict(tables), metadata={_key(kind): json.dumps(said, sort_keys=True)}))
    partial.replace(path)


def load_tables(
    path: Path, kind: str, names: Collection[str], again: str, *, version: int
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `save_tables` wrote.

    Args:
        path: The file.
        kind: As it was saved.
        names: Of the tables.
        again: What makes such a file, for messages.
        version: As it was saved.

    Returns:
        (the tables, what they are of).

    Raises:
        ValueError: In one line, for a file that is something else or has been changed.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get(_key(kind), "{}"))
            tables = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
    except SafetensorError as error:
        raise ValueError(f"{path}: cannot be read ({error}); {again}") from error
    if about.pop("format", None) != version or set(tables) != set(names):
        raise ValueError(f"{path}: holds no {kind} of this version; {again}")
    if about.pop("tables", None) != _digest(tables):
        raise ValueError(f"{path}: its tables do not hash to what it says of them; {again}")
    return tables, about


class Measured(Protocol):
    """What such a file holds."""

    @property
    def provenance(self) -> dict[str, str]:
        """What it was measured on."""


M = TypeVar("M", bound=Measured)


def corpus_tag(provenance: Mapping[str, str]) -> str:
    """8 hex digits for the texts that were read, and the batches in which they were."""
    on = {name: provenance.get(name) for name in _CORPUS}
    return hashlib.sha256(json.dumps(on, sort_keys=True).encode()).hexdigest()[:8]


def fits(provenance: Mapping[str, str], batch_size: int | None) -> bool:
    """Whether it may have been measured in batches of this size: older files do not say in which they were."""
    return batch_size is None or provenance.get("batch_size", str(batch_size)) == str(batch_size)


def the_only_one(
    who: str, found: Sequence[tuple[Path, M]], batch_size: int | None, typed: str
) -> tuple[Path, M] | None:
    """What was measured for a policy on a model; None if nothing was.

    Args:
        who: Who asks, with which a message begins.
        found: What there is of the policy and model, with its files.
        batch_size: In batches of which size it is to be measured; None: nobody said. A file that does not say its own
            is taken where no other is of that size.
        typed: The policy, for `lynx-prepare calibrate`.

    Raises:
        NotMeasured: In one line with the whole command, where it was measured in batches of other sizes alone.
        ValueError: In one line, where it was measured on several corpora, or nobody said the size and it was in
            batches of several: which is meant is not known.
    """
    if batch_size is not None and found:
        others = " and ".join(f"{path} ({_on(measured.provenance)})" for path, measured in found)
        fitting = [pair for pair in found if fits(pair[1].provenance, batch_size)]
        found = [pair for pair in fitting if "batch_size" in pair[1].provenance] or fitting
        if not found:
            raise NotMeasured(
                f"{who}: {others}: not measured in this run's batches of {batch_size}; {COMMAND} {typed}` does that"
            )
    if len(found) > 1:
        each = " and ".join(f"{path} ({_on(measured.provenance)})" for path, measured in found)
        raise ValueError(f"{who}: {each}: which of them is meant? Move all but one out of {found[0][0].parent}/")
    return found[0] if found else None


_CORPUS = ("data_sha256", "max_length", "batch_size")


def _on(provenance: Mapping[str, str]) -> str:
    said = {"data": "data", "data_sha256": "its texts hash to", "max_length": "max_length", "batch_size": "batch_size"}
    return ", ".join(f"{word}={provenance[name][:12]}" for name, word in said.items() if name in provenance)


def _key(kind: str) -> str:
    return f"lynx_exp_{kind}"


def _digest(tables: Mapping[str, Tensor]) -> str:
    total = hashlib.sha256()
    for name in sorted(tables):
        total.update(name.encode() + tables[name].contiguous().numpy().tobytes())
    return total.hexdigest()
