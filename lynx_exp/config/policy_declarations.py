"""What each policy's class says of the policy (`lynx_exp.routing.Policy`): read from its source, without torch."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any

from lynx_exp.config.docstrings import PACKAGE, base_classes, class_node, policy_class, policy_file

VANILLA = "vanilla"
"""The model's own routing: the baseline of every comparison."""
NOISE_FLOOR = "noise_floor"
"""In place of a policy: vanilla again, on another batch plan."""
UNTOUCHED = (VANILLA, NOISE_FLOOR)
"""Where no policy is attached."""


@dataclass(frozen=True, kw_only=True)
class PolicyDeclaration:
    """Class variables of `lynx_exp.routing.Policy`, which says what they mean."""

    kind: str = "per token"
    purpose: str = "method"
    knob: str | None = None
    """Name of the parameter that `match_active` sets."""
    hidden: frozenset[str] = field(default_factory=frozenset)
    """Those of the class and of its bases."""
    color: str | None = None
    marker: str | None = None
    yields_marker: bool = False


_NOISE_FLOOR = PolicyDeclaration(purpose="control", color="#b5a642", marker="x")
"""It has no class: nothing is attached for it."""


def policy_declaration(name: str) -> PolicyDeclaration:
    """Of the policy `name`; for one whose class cannot be found or read (an extension that is not there, or that is not
    Python), that of the base. Running such a policy says what is wrong; its results can be read all the same."""
    if name == NOISE_FLOOR:
        return _NOISE_FLOOR
    file = policy_file(name)
    try:
        found = None if file is None else policy_class(file)
    except (SyntaxError, ValueError):
        found = None
    return _read(PACKAGE / "routing" / "policy.py", "Policy") if file is None or found is None else _read(file, found)


@cache
def _read(file: Path, class_name: str) -> PolicyDeclaration:
    known = {each.name for each in fields(PolicyDeclaration)}
    values: dict[str, Any] = {}
    hidden: set[str] = set()
    for name, value in _class_variables(file, class_name):
        if name == "hidden":
            hidden |= set(value)
        elif name in known:
            values[name] = value
    return PolicyDeclaration(**values, hidden=frozenset(hidden))


def _class_variables(file: Path, class_name: str) -> Iterator[tuple[str, Any]]:
    """Those with a literal value, of the bases first; of a knob its parameter's name."""
    node = class_node(file, class_name)
    for base in base_classes(file, node):
        yield from _class_variables(*base)
    for each in node.body:
        if isinstance(each, ast.Assign) and isinstance(each.targets[0], ast.Name):
            name, value = each.targets[0].id, each.value
        elif isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name) and each.value is not None:
            name, value = each.target.id, each.value
        else:
            continue
        if name == "knob" and isinstance(value, ast.Call):
            value = next(word.value for word in value.keywords if word.arg == "parameter")
        try:
            yield name, ast.literal_eval(value)
        except ValueError:
            continue
