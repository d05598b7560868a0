"""Where the definition of a task lies, and reading it: the mini tasks in this package, lm-eval's own, a user's YAML."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import nullcontext
from difflib import get_close_matches
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lynx_exp.tasks.mini.dataset import FOLDER

STOCK: Mapping[str, str] = {
    "gsm8k": "gsm8k/gsm8k.yaml",
    "gsm8k_cot": "gsm8k/gsm8k-cot.yaml",
    "humaneval": "humaneval/humaneval.yaml",
    "mbpp": "mbpp/mbpp.yaml",
    "minerva_math_algebra": "minerva_math/minerva_math_algebra.yaml",
    "truthfulqa_gen": "truthfulqa/truthfulqa_gen.yaml",
    "truthfulqa_mc1": "truthfulqa/truthfulqa_mc1.yaml",
    "truthfulqa_mc2": "truthfulqa/truthfulqa_mc2.yaml",
    "wmt16-en-de": "translation/wmt16_en-de.yaml",
}
"""Tasks of `conf/task`, by where lm-eval defines them: its index of all tasks takes many seconds to build."""


HEADLINES: Mapping[str, str] = {"truthfulqa_gen": "bleu_acc"}
"""Where a definition's first metric does not stand for the task: `bleu_max` is how near the nearest true answer is in
words, `bleu_acc` whether that is nearer than the nearest false one."""


def mini_tasks() -> tuple[str, ...]:
    """The tasks whose items are in the package, sorted."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))


def known_tasks() -> tuple[str, ...]:
    """The names of `conf/task`, sorted. `find_definition` takes any other name of lm-eval's, too."""
    return tuple(sorted([*mini_tasks(), *STOCK]))


def find_definition(name: str) -> Path:
    """The YAML file that defines the task `name`, or `name` itself if it is such a file. ValueError if there is none.

    A task that neither `conf/task` nor this package knows is searched in all of lm-eval's files: about a second.
    """
    if name.endswith((".yaml", ".yml")):
        path = Path(name).expanduser()
        if not path.is_file():
            raise ValueError(f"task.subtasks: {name} is not a file; give a task's YAML, or a name that lm-eval knows")
        return path
    if name in mini_tasks():
        return FOLDER / f"{name}.yaml"
    folder = _lm_eval_tasks()
    known = folder / STOCK[name] if name in STOCK else None
    found = known if known is not None and known.is_file() else _search(folder, name)
    if found is None:
        close = get_close_matches(name, known_tasks(), n=1)
        hint = f"; did you mean {close[0]!r}?" if close else "."
        known_names = ", ".join(known_tasks())
        raise ValueError(f"task: unknown {name!r}{hint} Known tasks: {known_names}, and every task of lm-eval's own")
    return found


def _lm_eval_tasks() -> Path:
    spec = find_spec("lm_eval")  # does not import it
    assert spec is not None and spec.submodule_search_locations, "lm-eval is a dependency of this package"
    return Path(spec.submodule_search_locations[0]) / "tasks"


@cache
def _search(folder: Path, name: str) -> Path | None:
    """The file in `folder` with a line `task: NAME`."""
    wanted = re.compile(rb"^task:\s*[\"']?" + re.escape(name.encode()) + rb"[\"']?\s*(#.*)?$", re.MULTILINE)
    return next((path for path in sorted(folder.rglob("*.yaml")) if wanted.search(path.read_bytes())), None)


def read_definition(path: Path) -> dict[str, Any]:
    """The definition with its `include`s and functions resolved. ValueError if it is not one task."""
    from lm_eval.tasks._yaml_loader import load_yaml

    from lynx_exp.tasks.code import sandboxed_code_eval
    from lynx_exp.tasks.mathematics import math_packages

    runs_code = "code_eval" in functions_of(path)
    with sandboxed_code_eval() if runs_code else nullcontext(), math_packages(path):
        config = load_yaml(path)
    if not isinstance(config.get("task"), str):
        raise ValueError(f"{path}: defines no single task (a line `task: NAME`); name one task of the group instead")
    for key in ("tag", "group", "task_list"):
        config.pop(key, None)
    return config


@cache
def functions_of(path: Path) -> str:
    """The source of the Python files beside a definition and beside what it includes: where its functions are."""
    from lm_eval.tasks._yaml_loader import load_yaml

    config = load_yaml(path, resolve_func=False, recursive=False)
    included = config.get("include") or []
    bases = [path.parent / name for name in (included if isinstance(included, list) else [included])]
    beside = [file.read_text(encoding="utf-8") for file in sorted(path.parent.glob("*.py"))]
    return "".join([*beside, *(functions_of(base) for base in bases if base.parent.resolve() != path.parent.resolve())])
