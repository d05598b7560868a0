"""`import analysis` means this project's, also where a command runs in a folder that holds an `analysis` of its own."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

FOLDER = Path(__file__).resolve().parents[1] / "analysis"
"""Beside this package, in a checkout and in an installed wheel alike."""


class _Finder:
    """Answers for the one name; what lies below it is found by the package's own path."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != "analysis":
            return None
        return spec_from_file_location(name, FOLDER / "__init__.py", submodule_search_locations=[str(FOLDER)])


def protect() -> None:
    """For this process; what the commands call first. Nothing where `analysis` is imported already."""
    if _Finder not in sys.meta_path and "analysis" not in sys.modules:
        sys.meta_path.insert(0, _Finder)  # type: ignore[arg-type]  # a class does as well as an instance
