"""What each field means, from the docstring under it, and each policy's parameters: read from the source, not imported.

A policy's module imports torch, which takes seconds; its file says the same in milliseconds. The first sentence of a
field's docstring is its meaning in a few words; what follows is for the reference.
"""

from __future__ import annotations

import ast
import re
import sys
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from lynx_exp.extensions import extension_file

PACKAGE = Path(__file__).parents[1]

_ENDS = re.compile(r"\.(?=\s)|\.$")


@dataclass(frozen=True, kw_only=True)
class Field:
    """One field of a class, as its source declares it."""

    name: str
    kind: str
    """Its annotation."""
    docstring: str
    """On one line; empty if it has none."""
    allowed: str = ""
    """What it may hold, where that is declared beside the docstring."""

    @property
    def meaning(self) -> str:
        """The docstring's first sentence, without its full stop."""
        return _ENDS.split(self.docstring, maxsplit=1)[0]

    def named(self, name: str, allowed: str = "") -> Field:
        """The same under its full name."""
        return replace(self, name=name, allowed=allowed or self.allowed)


@cache
def class_fields(file: Path, class_name: str) -> dict[str, Field]:
    """Fields of the class `class_name` in `file`, those of its bases first where their source can be found. A field
    that a class declares again without a docstring means what it means in the base."""
    fields: dict[str, Field] = {}
    node = class_node(file, class_name)
    for base in base_classes(file, node):
        fields |= class_fields(*base)
    for each, after in zip(node.body, [*node.body[1:], None], strict=True):
        if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name) and not _is_given_by_nobody(each):
            name = each.target.id
            inherited = fields[name].docstring if name in fields else ""
            fields[name] = Field(
                name=name,
                kind=ast.unparse(each.annotation),
                docstring=_docstring(after) or inherited,
                allowed=", ".join(_literals(each.annotation)),
            )
    return fields


def dataclass_fields(config: type) -> dict[str, Field]:
    """Likewise of a class that is imported."""
    return class_fields(Path(str(sys.modules[config.__module__].__file__)), config.__name__)


def policy_file(name: str) -> Path | None:
    """Where the policy's class is, in the package or an extension; None for one that has no class of its own."""
    own = PACKAGE / "routing" / "policies" / f"{name}.py"
    return own if own.is_file() else extension_file("policies", f"{name}.py")


def policy_parameters(name: str) -> dict[str, Field]:
    """The parameters that the policy's class takes; empty for a policy that has no class of its own."""
    file = policy_file(name)
    found = None if file is None else policy_class(file)
    if file is None or found is None:
        return {}
    return {key: value for key, value in class_fields(file, found).items() if not key.startswith("_")}


def policy_class(file: Path) -> str | None:
    """The one class in a policy's file that is a policy, beside helpers of its own: they all have a `min_batch`."""
    names = [each.name for each in _tree(file).body if isinstance(each, ast.ClassDef)]
    return next((name for name in reversed(names) if "min_batch" in class_fields(file, name)), None)


def policy_summary(name: str) -> str:
    """What the policy does, on one line: the first sentence of its module's docstring, without its name."""
    file = policy_file(name)
    text = "" if file is None else " ".join((ast.get_docstring(_tree(file)) or "").split())
    return _ENDS.split(text.removeprefix(f"{name}: "), maxsplit=1)[0]


def class_node(file: Path, name: str) -> ast.ClassDef:
    """The class as `file` defines it."""
    return next(each for each in _tree(file).body if isinstance(each, ast.ClassDef) and each.name == name)


def base_classes(file: Path, node: ast.ClassDef) -> list[tuple[Path, str]]:
    """(file, name) of its bases, as far as their source can be found."""
    found = [_find_class(file, base.id) for base in node.bases if isinstance(base, ast.Name)]
    return [each for each in found if each is not None]


@cache
def _tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


def _find_class(file: Path, name: str) -> tuple[Path, str] | None:
    """(file, name) of the class that `name` means in `file`, through imports from this package; None if not found."""
    for node in _tree(file).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return file, name
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{PACKAGE.name}."):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    place = PACKAGE.joinpath(*str(node.module).split(".")[1:])
                    module = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
                    return _find_class(module, alias.name) if module.is_file() else None
    return None


def _docstring(node: ast.stmt | None) -> str:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
        return " ".join(node.value.value.split())
    return ""


def _is_given_by_nobody(node: ast.AnnAssign) -> bool:
    """Whether it is a variable of the class, or a field that no caller sets."""
    value = node.value
    unset = isinstance(value, ast.Call) and any(
        keyword.arg == "init" and ast.unparse(keyword.value) == "False" for keyword in value.keywords
    )
    return unset or ast.unparse(node.annotation).startswith("ClassVar")


def _literals(annotation: ast.expr) -> list[str]:
    """What a `Literal` allows; empty for other kinds."""
    if not (isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) == "Literal"):
        return []
    parts = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
    return [str(part.value) for part in parts if isinstance(part, ast.Constant)]
