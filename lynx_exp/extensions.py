"""A user's own policies, tasks, models, studies and figures, beside those of this package and without a copy of it.

A folder that is named in LYNX_EXP_PATH, or that an installed package offers as an entry point of the group
`lynx_exp.extensions` (its value: the package that is the folder), holds any of

    policies/NAME.py     a policy, as in lynx_exp/routing/policies, with conf/policy/NAME.yaml
    tasks/NAME.yaml      a task as lm-eval defines them: task=NAME
    figures/NAME.py      a figure, as in analysis/figures
    models/NAME.py       how the routers of a model family hand over their routing, as in lynx_exp/models/odd_families
    conf/, sweeps/       more choices for every group: conf/model/NAME.yaml, sweeps/study/NAME.yaml

Importing this is light, and runs none of the user's code.
"""

from __future__ import annotations

import os
import re
from functools import cache
from hashlib import sha256
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

VARIABLE = "LYNX_EXP_PATH"
GROUP = "lynx_exp.extensions"
PARTS = ("policies", "tasks", "figures", "models", "conf", "sweeps")


@cache
def extension_folders() -> tuple[Path, ...]:
    """Those of LYNX_EXP_PATH, then those of installed packages, each once. ValueError for one that is none."""
    found = [(VARIABLE, Path(name).expanduser()) for name in os.environ.get(VARIABLE, "").split(os.pathsep) if name]
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        found += [(f"entry point {point.name} of {GROUP}", folder) for folder in _package_folders(point.value)]
    folders: list[Path] = []
    for named_by, folder in found:
        if not folder.is_dir():
            raise ValueError(f"{named_by}: {folder} is no folder")
        if not any((folder / part).is_dir() for part in PARTS):
            raise ValueError(f"{named_by}: {folder} has none of the folders {', '.join(PARTS)}")
        if folder.resolve() not in folders:
            folders.append(folder.resolve())
    return tuple(folders)


def _package_folders(package: str) -> list[Path]:
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"{GROUP}: {package} is no package")
    return [Path(place) for place in spec.submodule_search_locations]


def extended(part: str) -> list[str]:
    """The folders called `part` of all extensions: what a package adds to its `__path__`."""
    return [str(folder / part) for folder in extension_folders() if (folder / part).is_dir()]


def added_files(part: str) -> list[Path]:
    """The YAML files that extensions have in their folders called `part`."""
    return [path for folder in extended(part) for path in sorted(Path(folder).glob("*.yaml"))]


def extension_file(part: str, name: str) -> Path | None:
    """The file `name` in the first extension that has it."""
    return next((path for folder in extended(part) if (path := Path(folder) / name).is_file()), None)


def modules(part: str, own: Path) -> tuple[str, ...]:
    """Names of the modules that extensions add to a package that lies in `own`. ValueError for one that it has."""
    names: list[str] = []
    for folder in extended(part):
        for path in sorted(Path(folder).glob("*.py")):
            if path.stem.startswith("_"):
                continue
            if (own / path.name).exists() or path.stem in names:
                raise ValueError(f"{path}: there is a {part} module of that name already; choose another")
            names.append(path.stem)
    return tuple(names)


def task_names() -> tuple[str, ...]:
    """Tasks that extensions define and give no conf/task file: `task=NAME` needs none."""
    names: list[str] = []
    for folder in map(Path, extended("tasks")):
        for path in sorted(folder.glob("*.yaml")):
            defines = re.search(
                rf"^task:\s*[\"']?{re.escape(path.stem)}\b", path.read_text(encoding="utf-8"), re.MULTILINE
            )
            if defines and extension_file("conf/task", path.name) is None and path.stem not in names:
                names.append(path.stem)
    return tuple(names)


def model_sources() -> str | None:
    """SHA-256 of what extensions say of model families, which is part of what a model is; None where they say none."""
    files = sorted(path for folder in extended("models") for path in Path(folder).glob("*.py"))
    return sha256(b"".join(sha256(path.read_bytes()).digest() for path in files)).hexdigest() if files else None


def has_policy(name: str) -> bool:
    """Whether this package or an extension has a policy of this name."""
    own = Path(__file__).parent / "routing/policies" / f"{name}.py"
    return own.is_file() or extension_file("policies", f"{name}.py") is not None


def policy_source(name: str) -> str | None:
    """SHA-256 of an extension's policy, which is part of what its cells are; None for a policy of this package."""
    file = extension_file("policies", f"{name}.py")
    return None if file is None else sha256(file.read_bytes()).hexdigest()
