"""docs/howto/your-*.md, followed to the letter, in a folder of one's own (LYNX_EXP_PATH)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from analysis import row_schema
from lynx_exp import extensions
from lynx_exp.models import odd_families
from lynx_exp.run.launchers import register
from tests.additions.pages import commands_of, files_of, text_of, type_command, write
from tests.additions.swapped_model import write_checkpoint


@pytest.mark.slow
def test_a_policy(tmp_path: Path) -> None:
    page = "your-policy.md"
    files = files_of(page)
    assert set(files) == {"strongest.py", "strongest.yaml"}
    for place, name in (("policies", "strongest.py"), ("conf/policy", "strongest.yaml")):
        assert f"`mine/{place}/{name}`" in text_of(page)
        write(tmp_path / "mine" / place, name, files[name])
    first, second = commands_of(page, "strongest")
    (table,) = commands_of(page, "lynx-results table")
    assert "2 cells: 2 done" in type_command(first, tmp_path, path=tmp_path / "mine")
    assert "1 cell: 1 done" in type_command(second, tmp_path, path=tmp_path / "mine")
    assert "strongest(count=4)" in type_command(table, tmp_path, path=tmp_path / "mine")


@pytest.mark.slow
def test_a_task(tmp_path: Path) -> None:
    page = "your-task.md"
    files = files_of(page)
    assert set(files) == {"arc.yaml", "sums.yaml", "documents/sums.jsonl"}
    assert "`mine/conf/task/`" in text_of(page) and "`mine/tasks/`" in text_of(page)
    write(tmp_path, "mine/tasks/sums.yaml", files["sums.yaml"])
    write(tmp_path, "sums.yaml", files["sums.yaml"])
    write(tmp_path, "documents/sums.jsonl", files["documents/sums.jsonl"])
    by_name, by_path = commands_of(page, "sums")
    assert "1 cell: 1 done" in type_command(by_name, tmp_path, path=tmp_path / "mine")
    assert "1 cell: 1 done" in type_command(by_path, tmp_path)


def test_a_name_for_tasks_of_lm_eval(tmp_path: Path) -> None:
    files = files_of("your-task.md")
    write(tmp_path, "mine/conf/task/arc.yaml", files["arc.yaml"])
    write_arc(tmp_path / "documents")
    _, line = commands_of("your-task.md", "=arc")
    said = type_command(f"{line.partition('#')[0]} plan=true batch_size=2", tmp_path, path=tmp_path / "mine")
    assert "arc" in said and "nothing was run" in said


def write_arc(folder: Path) -> None:
    choices = {"text": ["ice", "iron", "oil", "salt"], "label": ["A", "B", "C", "D"]}
    rows = [{"id": str(n), "question": f"What melts at {n}?", "choices": choices, "answerKey": "A"} for n in range(4)]
    for name in ("arc_easy", "arc_challenge"):
        write(folder, f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def test_the_figure_takes_documented_columns() -> None:
    (code,) = files_of("your-figure.md").values()
    page = (Path(__file__).parents[2] / "docs/reference/columns.md").read_text()
    for column in ("series", "active_experts", "score"):
        assert f'"{column}"' in code and row_schema.known(column) and f"`{column}`" in page


@pytest.mark.slow
def test_a_figure(tmp_path: Path) -> None:
    page = "your-figure.md"
    assert "`mine/figures/`" in text_of(page)
    ((name, code),) = files_of(page).items()
    write(tmp_path / "mine/figures", name, code)
    words = "lynx-exp -m policy=vanilla,lynx task=mini_gsm8k limit=8 batch_size=4 study_name=demo"
    type_command(words, tmp_path)
    (line,) = commands_of(page, "--only spread")
    assert "spread.png" in type_command(line, tmp_path, path=tmp_path / "mine")


@pytest.mark.slow
def test_a_model_family(tmp_path: Path) -> None:
    page = "your-model.md"
    assert "`mine/models/`" in text_of(page)
    write(tmp_path / "mine/models", "swapped.py", files_of(page)["swapped.py"])
    model = write_checkpoint(tmp_path / "model")
    (line,) = commands_of(page, "trust_remote_code")
    line = line.replace("PATH_OR_HUB_ID", str(model)) + " task=mini_truthfulqa limit=4 batch_size=2"
    with pytest.raises(AssertionError, match="SwappedTopKRouter.*not a router of a known form"):
        type_command(line, tmp_path)
    assert "1 cell: 1 done" in type_command(line, tmp_path, path=tmp_path / "mine")


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A folder that LYNX_EXP_PATH names, looked at anew."""
    write(tmp_path, "conf/.keep", "")
    monkeypatch.setenv("LYNX_EXP_PATH", str(tmp_path))
    caches = (extensions.extension_folders, odd_families.odd_families)
    for cache in caches:
        cache.cache_clear()
    yield tmp_path
    for cache in caches:
        cache.cache_clear()


def test_a_family_that_says_too_little_or_too_much_is_one_line(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(odd_families, "__path__", [*odd_families.__path__, str(mine / "models")])
    write(mine, "models/nothing.py", "ROUTER = 'SomeRouter'\n")
    with pytest.raises(ValueError, match=r"nothing.py: must have ROUTER, .* and FORM or REFUSED$"):
        odd_families.odd_families()


def test_what_extensions_say_of_families_is_part_of_a_models_identity(mine: Path) -> None:
    assert extensions.model_sources() is None
    write(mine, "models/one.py", "A = 1\n")
    one = extensions.model_sources()
    write(mine, "models/one.py", "A = 2\n")
    assert one is not None and extensions.model_sources() not in (None, one)


def test_only_definitions_without_a_choice_of_their_own_become_one(mine: Path) -> None:
    write(mine, "tasks/one.yaml", "task: one\n")
    write(mine, "tasks/two.yaml", "task: two\n")
    write(mine, "conf/task/two.yaml", "name: two\nsubtasks: [two]\n")
    write(mine, "tasks/_shared.yaml", "output_type: generate_until\n")
    assert extensions.task_names() == ("one",)
    register.register()  # harmless again


def test_a_router_of_a_family_that_is_known_needs_no_file() -> None:
    assert odd_families.odd_families() == {}
