"""In what the environments of cells differ, as far as it can change their results or times."""

from __future__ import annotations

import json
from collections.abc import Mapping

from lynx_exp.store.provenance import numerics

PACKAGES = ("torch", "transformers", "tokenizers", "lm_eval", "sacrebleu", "numpy", "triton", "numba", "vllm")
"""Whose versions can change a number; of the others a cell only tells."""
ABSENT = "none"
"""Value of a variable that is not set, of a package that is not there."""
_OPEN = ("packages.", "environment.")
"""Fields of which a cell records those that there are."""


def fields_of(provenance: Mapping[str, object]) -> dict[str, str]:
    """What of a cell's provenance can change a number: field -> value, as people read it. Older cells lack some."""
    recorded = provenance.get("numerics")
    if isinstance(recorded, Mapping):
        fields = dict(recorded)
    elif provenance:
        fields = {name: value for name, value in numerics(provenance).items() if value is not None}
    else:
        return {}
    packages = {f"packages.{name}" for name in PACKAGES}
    return {
        name: _shown(value) for name, value in fields.items() if not name.startswith("packages.") or name in packages
    }


_NO_BITS = {"cpus", "gpu.facts", "torch.gpus"} | {
    f"environment.{name}"
    for name in (
        *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OMP_WAIT_POLICY", "KMP_AFFINITY"),
        *("CUDA_VISIBLE_DEVICES", "CUDA_LAUNCH_BLOCKING"),
    )
}
"""Fields that change times alone."""


def bits_of(provenance: Mapping[str, object]) -> dict[str, str]:
    """What of a cell's provenance can change a bit of its results on one kind of machine."""
    return {name: value for name, value in fields_of(provenance).items() if name not in _NO_BITS}


def differences(provenances: Mapping[str, Mapping[str, object]]) -> dict[str, dict[str, list[str]]]:
    """Of cells by name: field -> value -> the cells that have it, for each field of which there are several values.

    A field that a cell does not record says nothing about it, but for variables and packages: that one is not there.
    """
    return differing({cell: fields_of(provenance) for cell, provenance in provenances.items()})


def differing(environments: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, list[str]]]:
    """Likewise, of what `fields_of` gives for each cell."""
    known = {cell: fields for cell, fields in environments.items() if fields}
    found: dict[str, dict[str, list[str]]] = {}
    for name in sorted({name for fields in known.values() for name in fields}):
        for cell, fields in known.items():
            value = fields.get(name, ABSENT if name.startswith(_OPEN) else None)
            if value is not None:
                found.setdefault(name, {}).setdefault(value, []).append(cell)
    return {name: values for name, values in found.items() if len(values) > 1}


def _shown(value: object) -> str:
    if value is None:
        return ABSENT
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)
