"""Where the definition of a task lies, and reading it: the mini tasks in this package, lm-eval's own, a user's YAML."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from lynx_exp.extensions import extension_file
from lynx_exp.tasks.index import Entry, cached_index, group_entry, index_of
from lynx_exp.tasks.mini.dataset import FOLDER
from lynx_exp.tasks.yaml_definition import TaskDefinition
from lynx_exp.wording import did_you_mean

STOCK: Mapping[str, str] = {
    "aime24": "aime/aime24.yaml",
    "aime25": "aime/aime25.yaml",
    "gpqa_diamond_cot_zeroshot": "gpqa/cot_zeroshot/gpqa_diamond_cot_zeroshot.yaml",
    "gsm8k": "gsm8k/gsm8k.yaml",
    "gsm8k_cot": "gsm8k/gsm8k-cot.yaml",
    "humaneval": "humaneval/humaneval.yaml",
    "ifeval": "ifeval/ifeval.yaml",
    "mbpp": "mbpp/mbpp.yaml",
    "minerva_math500": "minerva_math/minerva_math500.yaml",
    "minerva_math_algebra": "minerva_math/minerva_math_algebra.yaml",
    "truthfulqa_gen": "truthfulqa/truthfulqa_gen.yaml",
    "truthfulqa_mc1": "truthfulqa/truthfulqa_mc1.yaml",
    "truthfulqa_mc2": "truthfulqa/truthfulqa_mc2.yaml",
    "wmt16-en-de": "translation/wmt16_en-de.yaml",
}
"""Tasks of `conf/task`, by where lm-eval defines them: its index of all tasks takes many seconds to build."""


_YAML = (".yaml", ".yml")

HEADLINES: Mapping[str, str] = {"truthfulqa_gen": "bleu_acc", "minerva_math500": "math_verify"}
"""Where a definition's first metric does not stand for the task: `bleu_max` is how near the nearest true answer is in
words, `bleu_acc` whether that is nearer than the nearest false one. Minerva's `exact_match` looks for the phrase of
its examples, which a model that thinks and puts its answer in a box does not say; `math_verify` takes both."""


def mini_tasks() -> tuple[str, ...]:
    """The tasks whose items are in the package, sorted."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))


def known_tasks() -> tuple[str, ...]:
    """The names of `conf/task`, sorted. `find_definition` takes any other name of lm-eval's, too."""
    return tuple(sorted([*mini_tasks(), *STOCK]))


class GroupOfTasks(ValueError):
    """A name of several tasks where one is asked for. ValueError itself, of those that cannot stand for their tasks."""

    def __init__(self, name: str) -> None:
        self.members = members_of(name)
        super().__init__(f"task {name}: is a group of tasks, and not one of them ({', '.join(self.members[:3])}, ...)")


def find_definition(name: str) -> Path:
    """The YAML file that defines the task `name`, or `name` itself if it is such a file. ValueError if there is none.
    GroupOfTasks if it names several.

    A task that neither `conf/task` nor this package knows is searched in lm-eval's index.
    """
    if name.endswith(_YAML):
        return _existing(name)
    if name in mini_tasks():
        return FOLDER / f"{name}.yaml"
    added = extension_file("tasks", f"{name}.yaml")
    if added is not None:
        return added
    folder = _lm_eval_tasks()
    known = folder / STOCK[name] if name in STOCK else None
    if known is not None and known.is_file():
        return known
    entry = _entry(folder, name)
    if "path" not in entry:
        raise GroupOfTasks(name)
    return folder / entry["path"]


def members_of(name: str) -> tuple[str, ...]:
    """The tasks of a group or tag of lm-eval's, or of a YAML file that defines a group; a task is its own only member.
    ValueError for what lm-eval does not know, and for a group that changes its tasks."""
    return tuple(dict.fromkeys(_members(name, ())))


def _members(name: str, within: tuple[str, ...]) -> Iterator[str]:
    if name in within:
        raise ValueError(f"task {name}: is a group that contains itself")
    if name.endswith(_YAML):
        definition = _unresolved(_existing(name))
        entry: Entry = group_entry(definition) if "group" in definition else {}
    elif name in known_tasks():
        entry = {}
    else:
        entry = _entry(_lm_eval_tasks(), name)
    if "not" in entry:
        raise ValueError(f"task {name}: {entry['not']}")
    if "members" not in entry:
        yield name
    for member in entry.get("members", ()):
        yield from _members(member, (*within, name))


def _existing(name: str) -> Path:
    path = Path(name).expanduser()
    if not path.is_file():
        raise ValueError(f"task.subtasks: {name} is not a file; give a task's YAML, or a name that lm-eval knows")
    return path


def _entry(folder: Path, name: str) -> Entry:
    """What lm-eval has by this name; a plain task is found without an index, as long as there is none."""
    index = cached_index(folder)
    if index is None:
        found = _search(folder, name)
        if found is not None:
            return {"path": str(found.relative_to(folder))}
        index = index_of(folder)
    if name not in index:
        hint = did_you_mean(name, [*known_tasks(), *index], cutoff=0.7) or "."
        known_names = ", ".join(known_tasks())
        raise ValueError(f"task: unknown {name!r}{hint} Known tasks: {known_names}, and every task of lm-eval's own")
    return index[name]


def _lm_eval_tasks() -> Path:
    spec = find_spec("lm_eval")  # does not import it
    assert spec is not None and spec.submodule_search_locations, "lm-eval is a dependency of this package"
    return Path(spec.submodule_search_locations[0]) / "tasks"


@cache
def _search(folder: Path, name: str) -> Path | None:
    """The file in `folder` with a line `task: NAME`."""
    wanted = re.compile(rb"^task:\s*[\"']?" + re.escape(name.encode()) + rb"[\"']?\s*(#.*)?$", re.MULTILINE)
    return next((path for path in sorted(folder.rglob("*.yaml")) if wanted.search(path.read_bytes())), None)


def read_definition(path: Path) -> TaskDefinition:
    """The definition with its `include`s and functions resolved. ValueError if it is not one task, or cannot be read:
    wrong YAML, a function that is not there, a package that is not installed."""
    from lm_eval.tasks._yaml_loader import load_yaml

    from lynx_exp.tasks.code import sandboxed_code_eval
    from lynx_exp.tasks.instructions import check_instructions
    from lynx_exp.tasks.mathematics import math_packages

    _unresolved(path)  # what is wrong with the YAML itself
    with _about_the_file(path):
        runs_code = "code_eval" in functions_of(path)
    if "punkt_tab" in functions_of(path):
        check_instructions(path.stem)
    with sandboxed_code_eval() if runs_code else nullcontext(), math_packages(path), _about_the_file(path):
        config = load_yaml(path)
    if "group" in config and config.get("task"):
        raise GroupOfTasks(str(path))
    if not isinstance(config.get("task"), str):
        raise ValueError(f"{path}: defines no single task (a line `task: NAME`); name one task of the group instead")
    if "class" in config:
        made = getattr(config["class"], "__name__", config["class"])
        raise ValueError(
            f"task {config['task']}: is the Python class {made}, which makes its requests and scores by itself; only "
            "tasks that their YAML defines run here"
        )
    for key in ("tag", "group", "task_list"):
        config.pop(key, None)
    return config


@contextmanager
def _about_the_file(path: Path) -> Iterator[None]:
    """Whatever a definition's own code, or YAML, raises: in one line with the file."""
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a module may even exit where its package is missing
        missing = f"; pip install {error.name}" if isinstance(error, ModuleNotFoundError) and error.name else ""
        said = " ".join(str(error).split())[:300]
        raise ValueError(f"{path}: cannot be loaded: {type(error).__name__}: {said}{missing}") from error


def plain_definition(path: Path) -> Mapping[str, object]:
    """The definition with its `include`s, functions by their names: none of its own code runs."""
    return _unresolved(path)


def _unresolved(path: Path) -> Mapping[str, object]:
    """The definition as it is written, functions by their names."""
    from lm_eval.tasks._yaml_loader import load_yaml

    with _about_the_file(path):
        return load_yaml(path, resolve_func=False)


@cache
def functions_of(path: Path) -> str:
    """The source of the Python files beside a definition and beside what it includes: where its functions are."""
    from lm_eval.tasks._yaml_loader import load_yaml

    config = load_yaml(path, resolve_func=False, recursive=False)
    included = config.get("include") or []
    bases = [path.parent / name for name in (included if isinstance(included, list) else [included])]
    beside = [file.read_text(encoding="utf-8") for file in sorted(path.parent.glob("*.py"))]
    return "".join([*beside, *(functions_of(base) for base in bases if base.parent.resolve() != path.parent.resolve())])
