"""python.md: the public Python API, signatures and docstrings from the source."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from dataclasses import is_dataclass
from typing import Any

import analysis
from analysis.compare import results
from analysis.study import Study, study
from docs.generate.markdown import code, table
from lynx_exp import engine, routing
from lynx_exp.config import dataclass_fields

SECTIONS: dict[str, tuple[str, tuple[Any, ...]]] = {
    "Running a model": (
        "`from lynx_exp import Engine, build_policy`; the other names from `lynx_exp.engine`.",
        (
            engine.Engine,
            engine.Run,
            engine.LaneResult,
            engine.Timing,
            engine.Fidelity,
            engine.Request,
            engine.BatchPlan,
        ),
    ),
    "Policies": (
        "`from lynx_exp.routing import ...`; a policy of your own: [extending](../extending.md).",
        (routing.build_policy, routing.policy_names, routing.Policy, routing.LanePolicy, routing.Knob, routing.Routing)
        + (routing.StepContext, routing.RouterRule, routing.ModelShape, routing.lane_sum, routing.best_mask),
    ),
    "Results": (
        "`from analysis import load, print_table, write_figures`, `from analysis.study import study`, `from "
        "analysis.compare import results`. Columns: [columns](columns.md), [records](../records.md).",
        (analysis.load, analysis.Records, analysis.print_table, analysis.write_figures, study, Study, results),
    ),
}


def page() -> str:
    parts = ["# Python API\n"]
    for name, (about, items) in SECTIONS.items():
        parts.append(f"\n## {name}\n\n{about}\n")
        parts += [_class(item) if inspect.isclass(item) else _function(item, "###") for item in items]
    return "".join(parts)


def _class(cls: type) -> str:
    text = f"\n### {cls.__name__}\n\n" + _docstring(cls)
    if is_dataclass(cls):
        rows = [
            (code(field.name), code(field.kind), field.docstring)
            for field in dataclass_fields(cls).values()
            if not field.name.startswith("_")
        ]
        text += "\n" + table(("field", "type", "meaning"), rows)
    elif "__init__" in vars(cls):
        text += _function(vars(cls)["__init__"], "####", f"{cls.__name__}(...)")
    return text + "".join(_members(cls))


def _members(cls: type) -> list[str]:
    parts = []
    for base in cls.__mro__:  # engines are made of classes of one idea each
        if base.__module__.partition(".")[0] not in ("lynx_exp", "analysis"):
            continue
        for name, member in vars(base).items():
            if name.startswith("_") or getattr(cls, name, None) is None or _owner(cls, name) is not base:
                continue
            function = member.__func__ if isinstance(member, classmethod | staticmethod) else member
            if inspect.isfunction(function):
                parts.append(_function(function, "####"))
            else:
                getter = getattr(member, "fget", None) or getattr(member, "func", None)
                if inspect.isfunction(getter):
                    parts.append(f"\n#### {name}\n\n" + f"`{_returns(getter)}`. {_docstring(getter)}".strip() + "\n")
    return parts


def _owner(cls: type, name: str) -> type | None:
    return next((base for base in cls.__mro__ if name in vars(base)), None)


def _function(function: Any, level: str, title: str = "") -> str:
    return f"\n{level} {title or function.__name__}\n\n```python\n{_signature(function)}\n```\n\n{_docstring(function)}"


def _signature(function: Any) -> str:
    """As the source has it, an argument a line where it is long."""
    node = _node(function)
    arguments = [part for part in _arguments(node.args) if part.partition(":")[0] not in ("self", "cls")]
    returns = "" if node.returns is None else f" -> {ast.unparse(node.returns)}"
    line = f"{node.name}({', '.join(arguments)}){returns}"
    if len(line) <= 100:
        return line
    return f"{node.name}(\n" + "".join(f"    {part},\n" for part in arguments) + f"){returns}"


def _arguments(args: ast.arguments) -> list[str]:
    positional = [*args.posonlyargs, *args.args]
    missing = len(positional) - len(args.defaults)
    parts = [_argument(each, args.defaults[n - missing] if n >= missing else None) for n, each in enumerate(positional)]
    if args.vararg:
        parts.append(f"*{ast.unparse(args.vararg)}")
    elif args.kwonlyargs:
        parts.append("*")
    parts += [_argument(each, default) for each, default in zip(args.kwonlyargs, args.kw_defaults, strict=True)]
    return parts + ([f"**{ast.unparse(args.kwarg)}"] if args.kwarg else [])


def _argument(argument: ast.arg, default: ast.expr | None) -> str:
    return ast.unparse(argument) + ("" if default is None else f" = {ast.unparse(default)}")


def _returns(function: Any) -> str:
    node = _node(function)
    return "Any" if node.returns is None else ast.unparse(node.returns)


def _node(function: Any) -> ast.FunctionDef:
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function)))).body
    assert isinstance(node, ast.FunctionDef)
    return node


def _docstring(item: Any) -> str:
    return f"{sections_as_lists(inspect.cleandoc(item.__doc__))}\n" if item.__doc__ else ""


def sections_as_lists(text: str) -> str:
    """The sections of a docstring in Google's form as Markdown: `Args:` and `Raises:` are lists of names."""
    lines: list[str] = []
    section = ""
    for line in text.splitlines():
        if line.rstrip(":") in ("Args", "Raises", "Returns", "Yields"):
            section = line.rstrip(":")
            lines += [f"**{section}**", ""]
            continue
        entry = re.match(r"    (\*{0,2}\w+): (.*)", line)
        if section in ("Args", "Raises") and entry is not None:
            lines.append(f"- `{entry[1]}`: {entry[2]}")
        else:
            lines.append(line.strip() if section not in ("Args", "Raises") else f"  {line.strip()}".rstrip())
    return "\n".join(lines)
