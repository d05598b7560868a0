"""Every example runs, as it stands, and prints what it is for."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
SCRIPTS = sorted(path.name for path in EXAMPLES.glob("*.py"))
MOST_LINES = 40


def run(script: str, folder: Path, *arguments: object) -> str:
    """Its output; run in `folder`, with this tree's packages."""
    done = subprocess.run(
        [sys.executable, EXAMPLES / script, *map(str, arguments)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(EXAMPLES.parent)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def code_cells() -> list[str]:
    """Of the notebook."""
    notebook = json.loads((EXAMPLES / "pareto.ipynb").read_text())
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert not any(cell.get("outputs") for cell in notebook["cells"]), "cleared before it is committed"
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_there_are_five_scripts_and_a_notebook_all_listed():
    listed = (EXAMPLES / "README.md").read_text()
    assert len(SCRIPTS) == 5
    assert all(f"| `{name}` |" in listed for name in [*SCRIPTS, "pareto.ipynb"])


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_short_and_say_what_they_show(script):
    text = (EXAMPLES / script).read_text()
    assert len(text.splitlines()) <= MOST_LINES
    assert len(ast.get_docstring(ast.parse(text)) or "") > 40


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """What `run_cells.py` leaves, and what it printed."""
    folder = tmp_path_factory.mktemp("examples")
    return folder / "here/example", run("run_cells.py", folder, "here")


@pytest.mark.slow
def test_cells_from_python(results: tuple[Path, str]):
    folder, printed = results
    assert len(list(folder.glob("*/DONE"))) == 3
    table = [line.split() for line in printed.splitlines()[-4:]]
    assert table[0] == ["policy_label", "score", "active_experts"]
    active = {" ".join(words[:-2]): float(words[-1]) for words in table[1:]}
    assert all(2 <= number <= 16 for number in active.values()) and active["vanilla"] == max(active.values())


@pytest.mark.slow
def test_two_policies_are_compared(results: tuple[Path, str]):
    printed = run("compare_policies.py", results[0].parent, results[0], "lynx", "random_keep")
    (line,) = printed.splitlines()
    assert line.startswith("mini_gsm8k, batch 8: lynx - random_keep = +") and "64 documents in" in line


@pytest.mark.slow
def test_the_notebook_draws_its_figure(results: tuple[Path, str], tmp_path: Path):
    figure = tmp_path / "pareto.png"
    program = "\n".join(code_cells()) + "\nassert len(points) == 3 and 1 <= len(best) <= 3\n"
    environment = os.environ | {"PYTHONPATH": str(EXAMPLES.parent), "MPLBACKEND": "agg"}
    environment |= {"RESULTS": str(results[0]), "FIGURE": str(figure)}
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, check=True)
    assert figure.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_policy_of_ones_own(tmp_path: Path):
    lines = run("own_policy.py", tmp_path).splitlines()
    assert [line.partition(":")[0] for line in lines] == ["strongest", "lynx"]
    active, vanilla = map(float, re.findall(r"(?:: |vanilla )([\d.]+)", lines[0]))
    assert 2 <= active <= 3 < vanilla, "it keeps three, and small lanes fewer"


@pytest.mark.slow
def test_divergence_at_equal_experts(tmp_path: Path):
    lines = run("teacher_forced_kl.py", tmp_path).splitlines()
    kl = {line.partition("(")[0]: float(line.split("): ")[1].split()[0]) for line in lines}
    assert list(kl) == ["random_keep", "lynx_v1_latency", "xshare", "coverage"]
    assert kl["random_keep"] > 10 * max(kl["lynx_v1_latency"], kl["xshare"], kl["coverage"]) > 0


@pytest.mark.slow
def test_steps_are_timed(tmp_path: Path):
    head, *lines = run("time_steps.py", tmp_path).splitlines()
    assert head.startswith("batch") and len(lines) == 9
    for line in lines:
        batch, name, active, ms = line.split()[:4]
        assert int(batch) in (2, 8, 16) and 2 <= float(active) <= 16 and float(ms) > 0
        assert (name == "vanilla") == (len(line.split()) == 6)
