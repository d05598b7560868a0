"""Where a test does something to its own process that the program would have seen in one.

A plain process has one standard output, one random generator, one environment; here the test and the program have one
each. A program that passes does so all the same. Of one that fails, where the test sets such a thing and the program
uses it, nothing is known.
"""

# ruff: noqa: E501 (rules in a line each are read more easily than in three)

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Callable
from types import TracebackType

from .remote import Link

FILES = r"\bopen\b|\bPath\b|\bos\.|\bshutil\b|\bcsv\b|\bglob\b|read_\w+\(|write_\w+\(|sqlite3|zipfile|tarfile|loadtxt"
STATE = [
    (r"redirect_std|sys\.std(?:out|err)\s*=|capsys", r"\bprint\b|\bstdout\b|\bstderr\b|\blogging\b", "what the program prints"),
    (r"sys\.stdin\s*=|builtins\.input|\binput\s*=", r"\binput\b|\bstdin\b", "what the program reads"),
    (r"\bseed\(|\bset_?state\(", r"\brandom\b", "the state of random numbers"),
    (r"\bos\.environ\b|\bputenv\b|\bsetenv\b", r"\benviron\b|\bgetenv\b", "environment variables"),
    (r"\b(?:get|set|local)context\(", r"\b[dD]ecimal\b", "the context of decimal numbers"),
    (r"\bopen\(|\bwrite_(?:text|bytes)\(|\bmkdir|\btempfile\b|\bchdir\(|\bunlink\(|\bread_(?:text|bytes)\(|\bos\.path\.", FILES, "files"),
    (r"assertLogs|addHandler|basicConfig|caplog", r"\blogging\b|\bprint\b", "log records"),
    (r"catch_warnings|simplefilter|assertWarns|\.warns\(", r"\bwarn", "warnings"),
    (r"\basyncio\b|\bawait\b", r"\basync\b", "coroutines"),
    (r"\bsetlocale\(|\btzset\(", r"\blocale\b|\btime\b", "locale or time zone"),
]  # fmt: skip
"""In the test; in the program; what they have two of."""
BY_REASON = [
    ("raised RecursionError", r"\bsetrecursionlimit\(", "the limit on recursion"),
    ("raised ValueError", r"\bset_int_max_str_digits\(", "the limit on digits"),
    ("raised PermissionError", r"\bl?chmod\(|\bcopy(?:mode|stat|2)?\(|\bcopytree\(|\bchown\(|\btruncate\(", "a change of a file's modes, which no program may make"),
    ("raised Error", r"\bcopytree\(|\bmove\(", "a change of a file's modes, which no program may make"),
]  # fmt: skip
"""What was raised; in test or program; why that may be."""
ORDERED = r"\b(?:list|tuple|iter|next|enumerate|zip|str|repr)\(|\.join\(|\.pop\(\)"
"""What a test may do with a set beside comparing it."""


def why_it_may_differ(test: str, source: str, failure: str, link: Link) -> str:
    """Why a failed program might pass in a plain process; '' if nothing is known of the kind."""
    if link.doubt:
        return link.doubt
    if link.disordered and re.search(ORDERED, test):
        return "the order of a set, which is another in the test's process"
    for reason, there, what in BY_REASON:
        if failure == reason and re.search(there, f"{test}\n{source}"):
            return what
    for here, there, what in STATE:
        if re.search(here, test) and re.search(there, source):
            return f"{what}, of which test and program have their own"
    try:
        tree = ast.parse(test)
    except (SyntaxError, ValueError):
        return ""
    for name in replaced(tree):
        if re.search(rf"\b{re.escape(name)}\b", source):
            return f"{name}, which the test replaces for itself alone"
    try:
        stored = tuple(name for name in sorted(stored_names(tree)) if not hasattr(builtins, name))
        names = link.ask("reads", stored)[1] if stored else ()
        if names:
            return f"{names[0]}, a global name that the test sets for itself alone"
    except BaseException:  # whatever the program answers, or its end, is no reason to lose the verdict
        return link.untransportable
    return ""


def replaced(tree: ast.AST) -> set[str]:
    """What the test patches, or sets in a module that it has imported."""
    aliases = [it for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom)) for it in node.names]
    modules = {(alias.asname or alias.name).partition(".")[0] for alias in aliases}
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and re.search(r"\bpatch\b|\bsetattr$", ast.unparse(node.func)):
            texts = [it.value for it in node.args if isinstance(it, ast.Constant) and type(it.value) is str]
            found |= {text.rpartition(".")[2] for text in texts}
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            base = ast.unparse(node.value).partition(".")[0]
            found |= {node.attr} if base in modules else set()
    return found - {""}


def stored_names(tree: ast.Module) -> set[str]:
    """Global names that a test defines, but for what it imports."""
    found = {node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))}
    todo: list[ast.AST] = [node for node in tree.body]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda, ast.comprehension)):
            todo += ast.iter_child_nodes(node)
    return found | {name for node in ast.walk(tree) if isinstance(node, ast.Global) for name in node.names}


def harmless_bodies(tree: ast.Module, names: dict[str, object]) -> Callable[[TracebackType | None], bool]:
    """Whether an exception comes from a `with` of the test in which nothing was judged: no name in it is one that the
    candidate could have had a hand in. A context of the program may swallow that one, as a plain process would let it.
    """
    lines: dict[int, bool] = {}
    for node in ast.walk(tree):
        if isinstance(node, (ast.With, ast.AsyncWith)):
            inside = [part for line in node.body for part in ast.walk(line)]
            used = {part.id for part in inside if isinstance(part, ast.Name)}
            good = not any(isinstance(part, (ast.Assert, ast.Await)) for part in inside) and all(
                hasattr(builtins, name) and not dict.__contains__(names, name) for name in used
            )
            for line in range(node.body[0].lineno, (node.end_lineno or node.lineno) + 1):
                lines[line] = lines.get(line, True) and good

    def comes_from_one(trace: TracebackType | None) -> bool:
        return trace is not None and trace.tb_frame.f_code.co_filename == "<test>" and lines.get(trace.tb_lineno, False)

    return comes_from_one
