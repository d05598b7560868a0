"""Write every page of docs/reference, or with `--check` only name those that are not what the code says now.

A policy, task or model that was added since the pages were written is no fault: what they say of the others must hold.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Collection
from pathlib import Path

os.environ.pop("LYNX_EXP_PATH", None)  # what this machine adds is no part of the reference

from analysis import figures
from docs.generate import columns, command_line, policies, python_api, rules
from lynx_exp.config import config_folder

FOLDER = Path(__file__).parents[1] / "reference"
MADE_BY = "<!-- Made by `python -m docs.generate`; change what it reads, not this file. -->\n\n"


def pages(leave_out: Collection[str] = ()) -> dict[str, str]:
    """File name -> content, without the policies and options that `leave_out` names."""
    made = {
        "cli.md": command_line.page(leave_out),
        "policies.md": policies.page(leave_out),
        "columns.md": columns.page(),
        "rules.md": rules.page(),
        "python.md": python_api.page(),
    }
    return {name: MADE_BY + text.rstrip() + "\n" for name, text in made.items()}


def added() -> set[str]:
    """Options of groups of which the page as it is says nothing."""
    page = FOLDER / "cli.md"
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    return {path.stem for path in config_folder().glob("*/*.yaml") if f"\n| `{path.stem}` |" not in text}


def without_figures(made: dict[str, str]) -> dict[str, str]:
    """Without the names of figures of which the page as it is says nothing."""
    page = FOLDER / "cli.md"
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    for name in figures.names():
        if not re.search(rf"one of: pareto[^|\n]*\b{name}\b", text):
            made["cli.md"] = re.sub(rf"(one of: pareto[^|\n]*), {name}\b", r"\1", made["cli.md"])
    return made


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m docs.generate", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a page is out of date")
    check = parser.parse_args().check
    if check:
        stale = [
            name
            for name, text in without_figures(pages(added())).items()
            if not (FOLDER / name).is_file() or (FOLDER / name).read_text(encoding="utf-8") != text
        ]
        for name in stale:
            print(f"docs/reference/{name}: is not what the code says; run python -m docs.generate", file=sys.stderr)
        return 1 if stale else 0
    FOLDER.mkdir(exist_ok=True)
    for name, text in pages().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
