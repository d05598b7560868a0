"""The antlr4 4.11 runtime, beside the one of the environment: Hydra needs 4.9, sympy's LaTeX parser needs 4.11."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

PACKAGE = "antlr4-python3-runtime"
VERSION = "4.11.0"
_ATTEMPTS = 5
"""To put the folder in its place, against others that do the same."""


def antlr_folder() -> Path:
    """Where it lies once installed: in the user's cache, `XDG_CACHE_HOME`."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return cache / "lynx_exp" / "antlr4-4.11"


def find_antlr() -> Path | None:
    """The folder to put first on the path, filled if it is not yet; None where the environment's own runtime is 4.11.

    ValueError in one line where it is neither there nor to be had.
    """
    return None if version(PACKAGE).startswith("4.11") else install_antlr()


def install_antlr() -> Path:
    """Have pip fill the folder, unless it is filled. ValueError if pip cannot. Several processes may do so at once."""
    folder = antlr_folder()
    if _filled(folder):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as made:
            new = Path(made) / folder.name
            said = subprocess.run(_pip(new), env=_environment(), capture_output=True, text=True, errors="replace")
            if said.returncode != 0 or not _filled(new):
                raise ValueError(_failure(folder, said.stderr))
            for attempt in range(_ATTEMPTS):
                try:
                    new.rename(folder)
                except OSError:
                    if _filled(folder):  # somebody else came first
                        break
                    with suppress(OSError):  # half of it, as left by a cleaner of caches: away in one step
                        folder.rename(Path(made) / f"half-{attempt}")
                else:
                    break
            if not _filled(folder):
                raise ValueError(_failure(folder, f"{folder} cannot be replaced"))
    except OSError as error:
        raise ValueError(_failure(folder, str(error))) from error
    return folder


def _filled(folder: Path) -> bool:
    runtime, metadata = folder / "antlr4" / "__init__.py", folder / f"antlr4_python3_runtime-{VERSION}.dist-info"
    return runtime.is_file() and (metadata / "METADATA").is_file()


def _pip(folder: Path) -> list[str]:
    return [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--target",
        str(folder),
        f"{PACKAGE}=={VERSION}",
    ]


def _environment() -> dict[str, str]:
    """Without what would have pip look at the environment's own packages, or install elsewhere."""
    other = {"PIP_CONSTRAINT", "PIP_USER", "PIP_TARGET", "PIP_PREFIX", "PIP_REQUIRE_VIRTUALENV"}
    return {name: value for name, value in os.environ.items() if name not in other}


def _failure(folder: Path, said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    reason = lines[-1] if lines else "pip gave no reason"
    return (
        f"{PACKAGE} {VERSION} cannot be installed ({reason}); where there is network run `{shlex.join(_pip(folder))}`"
    )
