"""The names that a test uses: its own, those of the interpreter, and what it takes from the candidate.

What a test uses to look at an answer must not be the candidate's, or the answer is right by its own word.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import sys

from .described import LIBRARIES
from .objects import is_remote
from .remote import Link
from .values import Value

TRUSTED_MODULES = sys.stdlib_module_names | {"numpy"}
"""Modules that a test may use without importing them, if the candidate did: the tester's own are used instead."""
USUAL_NAMES = {"np": "numpy"}
"""As which everybody imports them."""
COMPARISONS = {
    *("allclose", "approx", "array_equal", "assert_allclose", "assert_almost_equal", "assert_array_almost_equal"),
    *("assert_array_equal", "assert_equal", "isclose"),
}
"""Functions by which tests compare. Beside another name the candidate's own are not taken for them."""
ABSENT = object()


class Names(dict[str, Value]):
    """The tests' global names: their own, else builtins, else what the candidate calls so."""

    def __init__(self, link: Link, test: str, entry_point: str | None) -> None:
        super().__init__({"__name__": "test", "__builtins__": builtins})
        self.link, self.entry_point = link, entry_point
        self.tree = parsed(test)
        self.free = free_names(self.tree)

    def show_types(self) -> None:
        """`type(x)` of the candidate's object is its class, in tests that ask for it."""
        self["type"] = seen_type(self.link)

    def __missing__(self, name: str) -> Value:
        if hasattr(builtins, name):
            raise KeyError(name)  # the interpreter looks there next
        found = self.of_candidate(name)
        if found is ABSENT:
            raise KeyError(name)
        return found

    def of_candidate(self, name: str, tested: bool = False) -> Value:
        """What the candidate calls so; ABSENT; the tester's own of modules, and of functions of a few."""
        kind, content = self.link.ask("name", name)
        if kind == "absent":
            return ABSENT
        if kind == "module":
            return self.module(name, *content)
        if kind == "library" and content in LIBRARIES:
            return getattr(importlib.import_module(content), name)
        others = any(name != other and not hasattr(builtins, other) for other in self.free)
        if not tested and (self.entry_point is not None or others):
            if name in COMPARISONS:
                raise self.link.refused(f"{name} of the program, by which the test would compare")
            if USUAL_NAMES.get(name, name) in TRUSTED_MODULES and used_as_module(self.tree, name):
                raise self.link.refused(f"{name} of the program, which is no module, where the test uses one")
        return self.link.value((kind, content))

    def module(self, name: str, called: object, value: object) -> object:
        expected = USUAL_NAMES.get(name, name)
        if expected in TRUSTED_MODULES and called != expected:
            raise self.link.refused(f"{name} of the program, which is another module")
        if isinstance(called, str) and called in TRUSTED_MODULES:
            return importlib.import_module(called)
        return value

    def under_test(self) -> None:
        """The candidate's own where it has the name of a builtin and is what is tested: the test asks for nothing else
        of the candidate's. Beside another name (`abs(f(2) - 3) < 1e-6`) a builtin is the builtin, whatever the
        candidate says.
        """
        if not self.free or any(not hasattr(builtins, name) for name in self.free):
            return
        replies = {name: self.link.ask("name", name) for name in sorted(self.free)}
        found = {name: answer for name, answer in replies.items() if answer[0] == "value"}
        if len(found) > 1:
            raise self.link.refused("more than one builtin that the program defines anew")
        self |= {name: self.link.value(answer) for name, answer in found.items()}


def seen_type(link: Link) -> type:
    class SeenType(type(type)):  # type: ignore[misc]
        def __call__(cls, *args: Value, **kwargs: Value) -> Value:
            if len(args) == 1 and is_remote(args[0]):
                return link.do("type", args[0])
            return type(*args, **kwargs)

        def __instancecheck__(cls, instance: object) -> bool:
            return isinstance(instance, type)

        def __eq__(cls, other: object) -> bool:
            return other is type or other is cls

        __hash__ = type.__hash__

    return SeenType("type", (type,), {})


def parsed(test: str) -> ast.Module:
    """A test that does not compile says so when it is run."""
    try:
        return ast.parse(test)
    except (SyntaxError, ValueError):
        return ast.Module([], [])


def free_names(tree: ast.Module) -> set[str]:
    """Names that a test uses and nowhere defines."""
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    stored = {node.id for node in names if not isinstance(node.ctx, ast.Load)}
    stored |= {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    stored |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    aliases = (
        alias for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom)) for alias in node.names
    )
    stored |= {(alias.asname or alias.name).partition(".")[0] for alias in aliases}
    return {node.id for node in names} - stored


def used_as_module(tree: ast.Module, name: str) -> bool:
    uses = (node.value for node in ast.walk(tree) if isinstance(node, ast.Attribute))
    return any(isinstance(use, ast.Name) and use.id == name for use in uses)
