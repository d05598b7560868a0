"""What tasks ask, from the user's cache: as if made anew, whatever is in it."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lynx_exp import cli
from lynx_exp.tasks import EvalTask, TaskSettings, mini_tasks, request_cache
from lynx_exp.tasks.definition import find_definition
from lynx_exp.tasks.load_task import _load
from lynx_exp.tasks.mini.dataset import FOLDER

ASKED = ("name", "kind", "repeats", "headline", "runs_code", "revision", "data_digest", "requests")
PLAIN = TaskSettings()


@pytest.fixture
def again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., EvalTask]:
    """Load a task as a new process does, with an empty cache at first."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def loaded(name: str, **more: object) -> EvalTask:
        return _load.__wrapped__(find_definition(name), 3, replace(PLAIN, **more))

    return loaded


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("lynx_exp/task-*.json"))


@pytest.mark.parametrize("name", mini_tasks())
def test_a_cached_task_asks_and_scores_like_one_made_anew(name: str, again: Callable[..., EvalTask]) -> None:
    made, found = again(name), again(name)
    assert "_built_task" not in vars(found), "lm-eval's own is not needed to ask"
    assert [getattr(found, field) for field in ASKED] == [getattr(made, field) for field in ASKED]
    if made.runs_code:
        return
    answers = ["#### 3"] * 3 if made.kind == "generate" else [(-1.0 - at, False) for at in range(len(made.requests))]
    assert found.score(answers) == made.score(answers)


@pytest.mark.parametrize("damage", [b"", b"\xff\xfe", b"abc\n{}", None, "cut"])
def test_a_damaged_file_is_made_anew(
    damage: bytes | str | None, again: Callable[..., EvalTask], tmp_path: Path
) -> None:
    made = again("mini_gsm8k")
    (file,) = files(tmp_path)
    whole = file.read_bytes()
    if damage is None:  # one letter of a prompt
        file.write_bytes(whole.replace(b"Question", b"Questiom", 1))
    else:
        file.write_bytes(whole[:-9] if damage == "cut" else damage)
    assert again("mini_gsm8k").requests == made.requests
    assert file.read_bytes() == whole


def test_a_forged_file_is_another_task_and_does_not_score(again: Callable[..., EvalTask], tmp_path: Path) -> None:
    made = again("mini_gsm8k")
    (file,) = files(tmp_path)
    spec = request_cache.read_cached(file)
    assert spec is not None
    asked = tuple(replace(request, prompt="What is 1 + 1?") for request in spec.requests)
    request_cache.write_cached(file, replace(spec, requests=asked))
    forged = again("mini_gsm8k")
    assert forged.data_digest != made.data_digest, "which is in the identity of its cells"
    with pytest.raises(ValueError, match="has changed since this run began"):
        forged.score(["1"] * 3)


@pytest.mark.parametrize("text", ["[]", "{", '{"requests": [1]}', '{"name": "x", "requests": []}'])
def test_a_file_of_another_shape_is_made_anew(text: str, again: Callable[..., EvalTask], tmp_path: Path) -> None:
    made = again("mini_gsm8k")
    (file,) = files(tmp_path)
    file.write_text(f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}")
    assert again("mini_gsm8k").requests == made.requests


def test_what_changes_a_task_changes_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    definition = FOLDER / "mini_gsm8k.yaml"
    others = [replace(PLAIN, repeats=2), replace(PLAIN, until=("x",)), replace(PLAIN, system_instruction="Hi")]
    places = {request_cache.cache_path(definition, limit, PLAIN) for limit in (None, 3, 4)}
    places |= {request_cache.cache_path(definition, 3, settings) for settings in others}
    assert len(places | {request_cache.cache_path(FOLDER / "mini_wmt16.yaml", 3, PLAIN)}) == 7
    surroundings = request_cache._surroundings.__wrapped__
    (tmp_path / "tasks").mkdir()
    source = tmp_path / "tasks" / "own.jsonl"
    monkeypatch.setattr(request_cache, "_own", lambda _: [this_file])
    this_file = Path(request_cache.__file__).parents[1] / "tasks" / "request_cache.py"
    before = surroundings()
    monkeypatch.setattr(request_cache, "version", lambda name: f"{name} of tomorrow")
    assert surroundings() != before
    monkeypatch.undo()
    monkeypatch.setattr(request_cache, "_lm_eval_files", lambda: [source])
    source.write_text("one")
    before = surroundings()
    source.write_text("other")
    assert surroundings() != before


def test_documents_and_code_are_in_the_key() -> None:
    """So nothing that is edited can leave a stale file behind."""
    package = Path(request_cache.__file__).parents[1]
    own = set(request_cache._own(package))
    assert own >= {*FOLDER.iterdir(), package / "tasks" / "task.py", package / "engine" / "requests" / "processing.py"}
    assert any(file.name == "task.py" and file.parent.name == "api" for file in request_cache._lm_eval_files())


def test_only_the_mini_tasks_are_kept(tmp_path: Path) -> None:
    other = tmp_path / "mini_gsm8k.yaml"
    other.write_text("task: own")
    assert request_cache.cache_path(other, 3, PLAIN) is None


def test_a_task_that_is_no_longer_what_was_asked_does_not_score(again: Callable[..., EvalTask], tmp_path: Path) -> None:
    again("mini_gsm8k")
    (file,) = files(tmp_path)
    spec = request_cache.read_cached(file)
    assert spec is not None
    request_cache.write_cached(file, replace(spec, data_digest="0"))
    with pytest.raises(ValueError, match="has changed since this run began"):
        again("mini_gsm8k").score(["1"] * 3)


def test_the_latest_files_are_kept_and_a_closed_cache_costs_nothing_but_time(
    again: Callable[..., EvalTask], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_cache, "MOST", 1)
    again("mini_gsm8k"), again("mini_wmt16")
    assert len(files(tmp_path)) == 1
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(again("mini_gsm8k").requests) == 3


def test_a_plan_and_a_skip_need_no_lm_eval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    words = ["task=mini_gsm8k", "limit=1", "batch_size=1", "task.generation.max_gen_toks=1", f"results={tmp_path}/r"]

    def run(*more: str, absent: str = "") -> str:
        code = f"import sys\nfrom lynx_exp.cli import main\nsys.argv[1:] = {[*words, *more]!r}\n"
        code += "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        code += f"found = set(sys.modules) & set({absent!r}.split())\nassert not found, found"
        said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
        assert said.returncode == 0, said.stderr
        return said.stdout

    _load.cache_clear()  # what an earlier test has loaded would not be written to this cache
    assert cli.run(words) == 0
    heavy = "lm_eval datasets pandas transformers"
    assert "1 done, 0 to run" in run("plan=true", absent=heavy)
    assert "1 skipped" in run(absent=heavy)
