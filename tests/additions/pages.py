"""What a page tells a stranger to write and to type, taken from its text."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
_FILE = re.compile(r"`([\w./]+\.\w+)`[^\n]*\n\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_PROGRAMS = {"lynx-exp": "lynx_exp", "lynx-results": "lynx_exp.results.main"}


def text_of(page: str) -> str:
    return (ROOT / "docs/howto" / page).read_text(encoding="utf-8")


def files_of(page: str) -> dict[str, str]:
    """Name -> content of each file that the page shows."""
    return dict(_FILE.findall(text_of(page)))


def commands_of(page: str, about: str) -> list[str]:
    """The command lines of the page that name `about`."""
    lines = "".join(block for kind, block in _BLOCK.findall(text_of(page)) if not kind).splitlines()
    return [line for line in lines if line.startswith(tuple(_PROGRAMS)) and about in line]


def write(folder: Path, name: str, content: str) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")


def type_command(line: str, folder: Path, *, root: Path = ROOT, path: Path | None = None) -> str:
    """Run one line of a page in `folder`, with the lynx_exp of `root` and LYNX_EXP_PATH=`path`; what it prints."""
    program, *words = shlex.split(line, comments=True)
    more = {"PYTHONPATH": str(root)} | ({} if path is None else {"LYNX_EXP_PATH": str(path)})
    return run([sys.executable, "-m", _PROGRAMS[program], *words], folder, more)


def run(command: list[str], folder: Path, more: Mapping[str, str]) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "LYNX_EXP_PATH"} | dict(more)
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr
