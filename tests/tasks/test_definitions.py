"""Tasks by name as lm-eval's own index has them; definitions that cannot be read, in one line."""

from __future__ import annotations

import json

import pytest

from lynx_exp.config import Config, ModelConfig, TaskConfig, TrackerConfig
from lynx_exp.run.load_tasks import tasks_of
from lynx_exp.tasks import TaskSettings, definition, index, load_task
from lynx_exp.tasks.definition import GroupOfTasks, find_definition, members_of, read_definition

TASK = "task: {}\noutput_type: generate_until\ntest_split: test\ndoc_to_text: '{{{{question}}}}'\n"
TASK += "doc_to_target: answer\nmetric_list: [{{metric: exact_match}}]\n"
FILES = {
    "a/plain.yaml": TASK.format("plain"),
    "a/quoted.yaml": TASK.format("quoted").replace("task:", '"task":') + '"tag": [tagged]\n',
    "a/_base.yaml": TASK.format("unused").partition("\n")[2],
    "a/included.yaml": 'include: _base.yaml\n"task": included\ntag: tagged\n',
    "a/other_name.yaml": "{task: flow, output_type: generate_until, test_split: test, doc_to_text: question, "
    "doc_to_target: answer, metric_list: [{metric: exact_match}]}\n",
    "b/group.yaml": "group: both\ntask:\n- plain\n- task: quoted\naggregate_metric_list:\n- metric: exact_match\n",
    "b/outer.yaml": "group: outer\ntask: [both, tagged]\nmetadata: {version: 1}\n",
    "b/shots.yaml": "group: shots\ntask: [plain]\nnum_fewshot: 3\n",
    "b/own.yaml": "group: own\ntask:\n- plain\n- task: plain\n  num_fewshot: 2\n",
    "b/circle.yaml": "group: circle\ntask: [circle]\n",
    "c/python.yaml": "task: python\nclass: !function made.Made\n",
    "c/made.py": "class Made: ...\n",
    "c/extra.yaml": TASK.format("extra") + "process_results: !function needs.score\n",
    "c/needs.py": "import a_package_that_nobody_has\n",
    "c/gone.yaml": TASK.format("gone") + "process_results: !function made.nothing\n",
    "c/exits.yaml": TASK.format("exits") + "process_results: !function leaves.score\n",
    "c/leaves.py": "raise SystemExit('install it')\n",
}


@pytest.fixture(autouse=True)
def stock(tmp_path, monkeypatch):
    """In place of lm-eval's own folder of tasks."""
    folder = tmp_path / "tasks"
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    monkeypatch.setattr(definition, "_lm_eval_tasks", lambda: folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    definition._search.cache_clear()
    return folder


@pytest.mark.parametrize("name", ["plain", "quoted", "included", "flow"])
def test_a_task_is_found_however_its_yaml_is_written(name):
    assert read_definition(find_definition(name))["task"] == name
    assert members_of(name) == (name,)


def test_groups_and_tags_stand_for_their_tasks(tmp_path):
    assert members_of("both") == ("plain", "quoted")
    assert members_of("tagged") == ("included", "quoted")
    assert members_of("outer") == ("plain", "quoted", "included")
    with pytest.raises(GroupOfTasks, match=r"task outer: is a group of tasks, and not one of them \(plain, quoted"):
        load_task("outer")
    own = tmp_path / "own.yaml"
    own.write_text("group: mine\ntask: [quoted, plain]\n")
    assert members_of(str(own)) == ("quoted", "plain")
    data = tmp_path / "rows.jsonl"
    data.write_text(json.dumps({"question": "a", "answer": "b"}) + "\n")
    for names in (["outer"], [str(own), "included", "tagged"]):
        config = Config(
            model=ModelConfig(kind="bundled", id="lynx_tiny"),
            policy={"name": "vanilla"},
            task=TaskConfig(name="custom", subtasks=names, data=str(data)),
            tracker=TrackerConfig(),
        )
        assert sorted(task.name for task in tasks_of(config, load_task, None)) == ["included", "plain", "quoted"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("shots", r"task shots: is a group that changes its tasks \(num_fewshot\); name the tasks themselves"),
        ("own", "task own: is a group that defines or changes tasks of its own"),
        ("circle", "task circle: is a group that contains itself"),
        ("python", "task python: is the Python class Made, which makes its requests and scores by itself"),
        ("extra", r"extra\.yaml: cannot be loaded: ModuleNotFoundError: .*; pip install a_package_that_nobody_has"),
        ("gone", r"gone\.yaml: cannot be loaded: AttributeError: .*no function 'nothing'"),
        ("exits", r"exits\.yaml: cannot be loaded: SystemExit: install it"),
        ("quotd", r"task: unknown 'quotd'; did you mean quoted\?"),
    ],
)
def test_what_does_not_run_says_why_in_one_line(name, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_task(name, settings=TaskSettings(data="nowhere.jsonl"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("task: [a\n", "cannot be loaded: ParserError"),
        ("task: !unknown a\n", "cannot be loaded: ConstructorError"),
        ("task: a\nprocess_docs: !function nowhere.f\n", "cannot be loaded: ImportError"),
        ("task: a\ninclude: gone.yaml\n", "cannot be loaded: FileNotFoundError"),
        ("include: broken.yaml\n", "cannot be loaded: ValueError: Include cycle"),
        ("- a\n", "cannot be loaded: ValueError: Expected YAML dict"),
        ("a: 1\n", "defines no single task"),
        ("\x00", "cannot be loaded: ReaderError"),
    ],
)
def test_a_users_file_that_cannot_be_read_is_one_line(text, message, tmp_path):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"{path}: {message}") as caught:
        load_task(str(path), settings=TaskSettings(data="nowhere.jsonl"))
    assert "\n" not in str(caught.value)


def test_the_index_is_made_once_for_each_lm_eval(stock, tmp_path, monkeypatch):
    made = index.index_of(stock)
    assert {name for name, entry in made.items() if "path" in entry} >= {"plain", "quoted", "included", "flow"}
    monkeypatch.setattr(index, "_build", lambda folder: pytest.fail("made again"))
    assert index.cached_index(stock) == made == index.index_of(stock)
    (file,) = (tmp_path / "cache" / "lynx_exp").iterdir()
    monkeypatch.setattr(index, "version", lambda _: "0.0.1")
    assert index.cached_index(stock) is None
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file.write_text("{")
    assert index.cached_index(stock) is None


def test_a_home_that_cannot_be_written_to_costs_nothing_but_time(stock, tmp_path, monkeypatch):
    (tmp_path / "a file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a file"))
    assert "quoted" in index.index_of(stock)


@pytest.mark.slow
def test_every_name_of_lm_evals_own_index_is_a_task_a_group_or_refused_in_one_line(monkeypatch):
    """Not loaded: thousands of definitions, of which many need packages of their own."""
    monkeypatch.undo()
    folder = definition._lm_eval_tasks()
    known = index.index_of(folder)
    assert len(known) > 10_000
    kinds = {"task": 0, "group": 0, "refused": 0}
    for name in known:
        try:
            kinds["task" if members_of(name) == (name,) else "group"] += 1
        except ValueError as error:
            kinds["refused"] += 1
            assert str(error).startswith("task") and "\n" not in str(error)
    assert kinds["task"] > 12_000 and kinds["group"] > 1_000 and kinds["refused"] < 250
    for name in ("mmlu", "bbh", "ceval-valid", "leaderboard"):
        assert all(find_definition(member).is_file() for member in members_of(name))
