"""The arrows between the subpackages, and what the light ones may import."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.structure import circles, code_and_comments, edges_of, files_of, repeated_blocks, shared_names

ROOT = Path(__file__).parents[1]
ALLOWED = {
    "routing": {"routing"},
    "models": {"models", "routing"},
    "engine": {"engine", "models", "routing"},
    "vllm_plugin": {"vllm_plugin", "models", "routing"},
    "vllm_backend": {"vllm_backend", "vllm_plugin", "engine", "models", "routing"},
    "tasks": {"tasks", "engine", "models", "routing"},
    "store": {"store", "config", "engine", "models", "routing"},
    "tracking": {"tracking", "store", "config"},
    "run": {"run", "tracking", "store", "tasks", "vllm_backend", "engine", "models", "routing", "config"},
    "checks": {"checks", "store"},
    "prepare": {"prepare", "run", "store", "tasks", "engine", "models", "routing", "config", "explain", "exits"},
    "lm_eval_model": {
        "lm_eval_model",
        "lm_eval_arguments",
        "lm_eval_hook",
        "run",
        "tasks",
        "engine",
        "routing",
        "config",
    },
    "lm_eval_arguments": {"tasks", "routing", "config"},
    "lm_eval_hook": set(),
    "config": {"config"},
    "exits": set(),
    "extensions": set(),
    "cores": set(),
    "wording": set(),
    "terminal": set(),
    "own_analysis": set(),
    "temporary": set(),
    "explain": {"config"},
    "help": {"config"},
}
"""A subpackage or module of lynx_exp, and those that it may import. `cli` and `results` may import everything."""

EVERYWHERE = {"extensions", "cores", "temporary", "wording"}
"""Light, and import nothing of the rest: where a user's own files are, how many cores there are, where temporary files
go, words for people."""


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, anywhere in it."""
    package = ".".join(path.relative_to(ROOT).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:  # the jail is a package of its own, which is run without this one
                assert path.parent.name == "jail", f"{path}: relative import in {package}"
                continue
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def inner(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if parts[0] == "lynx_exp" and len(parts) > 1 else None


def sources(part: str) -> list[Path]:
    folder = ROOT / "lynx_exp" / part
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]


@pytest.mark.parametrize("part", ALLOWED)
def test_imports_point_one_way(part):
    known = {path.stem for path in (ROOT / "lynx_exp").iterdir() if not path.name.startswith("_")} - {"conf", "sweeps"}
    for path in sources(part):
        used = {inner(module) for module in imports(path)} & known
        used -= EVERYWHERE
        assert used <= ALLOWED[part], f"{path.relative_to(ROOT)} imports {sorted(used - ALLOWED[part])}"


def test_no_file_imports_itself_by_way_of_others():
    rings = circles(edges_of(files_of()))
    assert not rings, rings


NAMED_BY_WHAT_THEY_ADD = ("analysis/figures", "lynx_exp/routing/policies", "lynx_exp/models/odd_families")
"""A figure, a policy and a family have the name that users type: whoever adds one need not know all other files."""


def test_a_name_means_one_file():
    shared = shared_names(
        [path for path in files_of() if not str(path.relative_to(ROOT)).startswith(NAMED_BY_WHAT_THEY_ADD)]
    )
    assert not shared, f"{shared}: give one of the files another name"
    assert shared_names([Path("a/x.py"), Path("b/x.py"), Path("a/__init__.py"), Path("b/__init__.py")]) == ["x"]


BELOW = {
    "engine.requests": set(),
    "engine.kv_cache": {"requests"},
    "engine.decoding": {"requests", "kv_cache"},
    "engine.timing": {"requests", "kv_cache", "decoding"},
    "run.sweeper": set(),
    "run.launchers": {"sweeper", ""},
    "run.replay": {""},
}
"""A folder inside a subpackage, and those beside it that it may import; "" are the files of the subpackage itself."""


@pytest.mark.parametrize("room", BELOW)
def test_rooms_of_a_subpackage_point_one_way(room):
    part, _, own = room.partition(".")
    top = f"lynx_exp.{part}"
    rooms = {name.partition(".")[2] for name in BELOW if name.startswith(f"{part}.")}
    edges = edges_of(files_of())
    for module, used in edges.items():
        if not module.startswith(f"{top}.{own}."):
            continue
        for name in used:
            first = name.removeprefix(f"{top}.").partition(".")[0]
            where = first if first in rooms else ""
            if name.startswith(f"{top}.") and where != own:
                assert where in BELOW[room], f"{module} imports {name}"


def test_a_circle_is_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]
    assert circles({"a": {"b"}, "b": set()}) == []


def test_code_comments_and_repetitions_are_counted():
    text = '"""Two\nlines."""\n\nx = 1  # why\n# more\n'
    assert code_and_comments(text) == (3, 2)
    block = "\n".join(f"x{at} = {at}" for at in range(9))
    assert repeated_blocks([block, "y = 0\n" + block]) == 2 and repeated_blocks([block]) == 0


def test_every_part_is_listed():
    parts = {
        path.stem for path in (ROOT / "lynx_exp").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert parts - {"__init__", "__main__", "cli", "results"} <= set(ALLOWED), "a new subpackage needs its arrows"


@pytest.mark.parametrize("part", ["routing", "models", "engine", "vllm_plugin", "vllm_backend"])
def test_the_science_needs_only_torch_and_transformers(part):
    for path in sources(part):
        outside = {module.split(".")[0] for module in imports(path)} - {
            "lynx_exp",
            "torch",
            "transformers",
            "safetensors",  # a dependency of transformers
            "numpy",  # the same
            "psutil",  # wheels for every system, no dependencies
            "triton",
            "__future__",
        }
        if part.startswith("vllm"):
            outside -= {"vllm"}
        if path.name == "native.py":  # the optional compiled loops; without numba the torch definitions run
            outside -= {"numba"}
        if path.name == "energy.py":  # the optional driver; without it nothing is counted
            outside -= {"pynvml"}
        if path.name == "adapter.py":  # only for a model with an adapter
            outside -= {"peft"}
        assert outside <= sys.stdlib_module_names, f"{path.relative_to(ROOT)} imports {sorted(outside)}"


def test_analysis_knows_files_only():
    for path in sorted((ROOT / "analysis").rglob("*.py")):
        for module in imports(path):
            if module.split(".")[0] == "lynx_exp":
                allowed = (
                    "lynx_exp.store.read",
                    "lynx_exp.store.question",
                    "lynx_exp.store.row_types",
                    "lynx_exp.store.cell_columns",
                    "lynx_exp.store.environment",
                    "lynx_exp.store.find",
                    "lynx_exp.store.files",
                    "lynx_exp.store.step_times",
                    "lynx_exp.store.sweeps",
                    "lynx_exp.store.table_columns",
                    "lynx_exp.store.timing_info",
                    "lynx_exp.config",
                    "lynx_exp.extensions",
                    "lynx_exp.terminal",
                    "lynx_exp.wording",
                )
                assert module.startswith(allowed), f"{path.relative_to(ROOT)} imports {module}"


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("lynx_exp.cli", "torch pandas transformers lm_eval hydra wandb matplotlib"),
        ("lynx_exp.run.launchers.register", "torch pandas transformers lm_eval wandb matplotlib"),
        ("lynx_exp.config, lynx_exp.config.docstrings", "torch pandas transformers lm_eval wandb hydra omegaconf yaml"),
        ("lynx_exp.store.read", "torch pandas transformers lm_eval wandb hydra omegaconf"),
        ("lynx_exp.results.main", "torch pandas transformers lm_eval hydra wandb matplotlib pyarrow"),
        ("lynx_exp.prepare.command_line", "torch pandas transformers lm_eval wandb"),
        ("lynx_exp.run.run_cells", "torch pandas transformers lm_eval wandb matplotlib"),
        ("lynx_exp.models, lynx_exp.engine", "torch transformers"),
    ],
)
def test_nothing_heavy_is_imported_before_it_is_needed(module, absent):
    code = f"import sys, {module}; found = set(sys.modules) & set('{absent}'.split()); assert not found, found"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_plan_needs_no_modelling_code(tmp_path):
    """What it says of a model comes from its configuration and the heads of its files: transformers' models take
    seconds to import."""
    code = "import sys; from lynx_exp import cli; code = cli.run(['plan=true']); "
    code += "found = {'transformers.modeling_utils', 'matplotlib', 'wandb'} & set(sys.modules); "
    code += "assert code == 0 and not found, found"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "fits" in done.stdout


def test_no_console_reads_emoji_codes() -> None:
    """Rich would print `layers=a:b:` as a picture."""
    for folder in ("lynx_exp", "analysis"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Console" and node.keywords:
                    assert any(word.arg == "emoji" for word in node.keywords), f"{path}:{node.lineno}"
