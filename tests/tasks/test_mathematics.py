"""Minerva's tasks: asked and scored as lm-eval does with its own antlr4 runtime, beside Hydra, which needs another."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from lynx_exp.tasks import TaskSettings, load_task
from lynx_exp.tasks.antlr import PACKAGE, antlr_folder, find_antlr, install_antlr
from lynx_exp.tasks.definition import find_definition, known_tasks, read_definition
from lynx_exp.tasks.mathematics import ChildProcess, math_packages, scored_elsewhere
from tests.tasks.real import write_rows

NAME = "minerva_math_algebra"


class Case(NamedTuple):
    """A problem with its answer, a response, and what lm-eval makes of it: `exact_match` and `math_verify`."""

    problem: str
    boxed: str
    response: str
    exact: int
    verified: int

    @property
    def row(self) -> dict[str, str]:
        solution = f"This follows at once: $\\boxed{{{self.boxed}}}$."
        return {"problem": self.problem, "level": "Level 1", "type": "Algebra", "solution": solution}


def final(answer: str) -> str:
    return f" We compute.\nFinal Answer: The final answer is {answer}. I hope it is correct."


CASES = (
    Case("What is $2+3$?", "5", final("$5$"), 1, 1),
    Case("What is $3+4$?", "7", final("$8$"), 0, 0),
    Case("Halve $1$.", "\\frac{1}{2}", final("$0.5$"), 1, 1),
    Case("Add $1$ to $x$.", "x+1", final("$1+x$"), 1, 1),
    Case("Factor $x^2-1$.", "(x-1)(x+1)", final("$x^2-1$"), 1, 1),
    Case("What is $\\sqrt 8$?", "2\\sqrt{2}", final("$\\sqrt{8}$"), 1, 1),
    Case("Which $x$ are allowed?", "[2,5)", final("$[2,5)$"), 1, 1),  # equal texts: sympy cannot parse intervals
    Case("Which $x$ are allowed now?", "[2,5)", final("$(2,5)$"), 0, 0),
    Case("Give the point.", "(1,2)", final("$(1,2)$"), 1, 1),
    Case("Give the other point.", "(1,2)", final("$(2,1)$"), 0, 0),
    Case("What does it cost?", "\\$20", final("$\\$20$"), 1, 1),
    Case("How many are they?", "1,000", final("$1000$"), 1, 1),
    Case("Dozen?", "12", " It is $\\boxed{12}$.", 0, 1),  # without the phrase that `exact_match` looks for
    Case("And a third?", "\\frac{1}{3}", final("$\\frac{1}{$"), 0, 0),
    Case("Say something.", "3", "", 0, 0),
    Case("Say something else.", "3", " \ud83d \u2603 \\\\ {{{ $$ $", 0, 0),
)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """One installation of the runtime for all tests here, none of it in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        load_task.__globals__["_load"].cache_clear()
        yield install_antlr()


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_rows(tmp_path_factory.mktemp("data") / f"{NAME}.jsonl", [case.row for case in CASES])


@pytest.fixture(scope="module")
def task(data):
    return load_task(NAME, settings=TaskSettings(data=str(data)))


@pytest.fixture(scope="module")
def scores(task):
    return task.score([case.response for case in CASES])


REFERENCE = """
import json, sys
from lm_eval.api.model import LM
from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager

class Fixed(LM):
    def generate_until(self, requests, disable_tqdm=False):
        return [responses[request.doc_id] for request in requests]
    def loglikelihood(self, requests, disable_tqdm=False):
        raise AssertionError
    loglikelihood_rolling = loglikelihood

definition, responses = json.load(sys.stdin)
made = simple_evaluate(
    model=Fixed(), tasks=[definition], task_manager=TaskManager(include_defaults=False), bootstrap_iters=0
)
asked = [[s["arguments"][0][0], s["exact_match"], s["math_verify"], s["target"]] for s in made["samples"]["reference"]]
print(json.dumps([made["results"]["reference"], asked]))
"""


@pytest.fixture(scope="module")
def reference(cache, data, tmp_path_factory) -> Any:
    """What lm-eval alone reports, in an interpreter that has antlr4 4.11, with nothing of ours."""
    folder = tmp_path_factory.mktemp("reference")
    stock = str(find_definition(NAME))
    files = {"data_files": {"test": str(data), "train": str(data)}}
    definition = {"include": stock, "task": "reference", "dataset_path": "json", "dataset_name": None}
    path = folder / "reference.yaml"
    path.write_text(json.dumps(definition | {"dataset_kwargs": files}), encoding="utf-8")
    ended = subprocess.run(
        [sys.executable, "-P", "-c", REFERENCE],
        input=json.dumps([str(path), [case.response for case in CASES]]),
        env=os.environ | {"PYTHONPATH": str(cache), "HF_HOME": str(folder / "home")},
        capture_output=True,
        text=True,
        cwd=folder,
    )
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


def test_scores_are_those_worked_out_by_hand(scores):
    found = [(sample.scores["exact_match,none"], sample.scores["math_verify,none"]) for sample in scores.samples]
    wrong = [(case.boxed, case.response, got) for case, got in zip(CASES, found, strict=True) if got != case[3:]]
    assert wrong == []
    assert (scores.headline.metric, scores.headline.value) == ("exact_match", sum(c.exact for c in CASES) / len(CASES))


def test_prompts_and_scores_are_those_of_lm_eval_alone(task, scores, reference):
    totals, samples = reference
    assert [request.prompt for request in task.requests] == [prompt for prompt, *_ in samples]
    for request, sample in zip(samples, scores.samples, strict=True):
        assert request[1:] == [*map(sample.scores.get, ("exact_match,none", "math_verify,none")), sample.target]
    assert {metric.metric: metric.value for metric in scores.metrics} == {
        name: totals[f"{name},none"] for name in ("exact_match", "math_verify")
    }


def test_prompts_hold_the_four_examples(task):
    for request, case in zip(task.requests, CASES, strict=True):
        assert request.prompt.count("Problem:") == 5 and request.prompt.count("I hope it is correct.") == 4
        assert "Terrell usually lifts two 20-pound weights 12 times." in request.prompt
        assert request.prompt.endswith(f"Problem:\n{case.problem}\n\nSolution:")
        assert request.until == ("Problem:",)


def test_a_single_document_and_values_that_stay_whole_numbers(task):
    process = task.process
    assert isinstance(process, ChildProcess)
    made = process([{"solution": "$\\boxed{4}$", "answer": "4"}], [[final("$4$")]])
    assert made == [{"exact_match": 1, "math_verify": 1}]
    assert all(type(value) is int for value in made[0].values())
    assert process([], []) == []


@pytest.mark.slow
def test_alarms_end_a_long_comparison(task):
    made = task.process([{"solution": "$\\boxed{2}$", "answer": "2"}] * 2, [[final("$10^{10^{10}}$")], [final("$2$")]])
    assert made == [{"exact_match": 0, "math_verify": 0}, {"exact_match": 1, "math_verify": 1}]


def test_hydra_still_has_its_own_runtime(scores):
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf

    assert importlib.metadata.version(PACKAGE) == "4.9.3"
    assert OverridesParser.create().parse_override("a.b=[1,${c}]").key_or_group == "a.b"
    assert OmegaConf.create({"a": 1, "b": "${a}"}).b == 1
    assert not any("antlr4-4.11" in entry for entry in sys.path)


@pytest.mark.parametrize("name", ["minerva_math_prealgebra", "minerva_math500", "putnam_axiom_original"])
def test_others_that_compare_latex_are_read_and_scored_in_the_same_way(name):
    path = find_definition(name)
    assert callable(read_definition(path)["process_results"])
    assert isinstance(scored_elsewhere(path), ChildProcess)


def test_a_definition_that_includes_the_stock_one(tmp_path, data):
    path = tmp_path / "short.yaml"
    path.write_text(f"include: {find_definition(NAME)}\ntask: short\nnum_fewshot: 1\n")
    short = load_task(str(path), limit=1, settings=TaskSettings(data=str(data)))
    assert short.requests[0].prompt.count("Problem:") == 2
    assert short.score([CASES[0].response]).headline.value == 1.0


@pytest.mark.parametrize("name", sorted({*known_tasks(), "hendrycks_math500"} - {NAME, "minerva_math500"}))
def test_any_other_task_is_left_alone(name):
    path, true = find_definition(name), importlib.metadata.version
    assert scored_elsewhere(path) is None
    with math_packages(path):
        assert importlib.metadata.version is true


def test_the_version_is_told_in_the_context_only():
    true = importlib.metadata.version
    with pytest.raises(KeyError), math_packages(find_definition(NAME)):
        assert importlib.metadata.version(PACKAGE).startswith("4.11") and importlib.metadata.version("sympy")
        raise KeyError
    assert importlib.metadata.version is true


@pytest.mark.parametrize("module, package", [("math_verify", "math-verify"), ("sympy", "sympy")])
def test_a_missing_package_is_one_line(module, package, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError) as error, math_packages(find_definition(NAME)):
        raise AssertionError("entered")
    assert str(error.value) == f"task {NAME}: needs {package}; pip install '.[math]' in a checkout"


def test_another_runtime_that_math_verify_does_not_take_is_one_line(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "4.8")
    for name in [name for name in sys.modules if name.split(".")[0] in ("math_verify", "latex2sympy2_extended")]:
        monkeypatch.delitem(sys.modules, name)
    with (
        pytest.raises(ValueError, match=f"^task {NAME}: math_verify cannot be imported: .*4\\.8"),
        math_packages(find_definition(NAME)),
    ):
        raise AssertionError("entered")


def child(tmp_path: Path, source: str, seconds: float = 60.0) -> ChildProcess:
    module = tmp_path / "scoring.py"
    module.write_text(source)
    return ChildProcess(task="t", module=module, function="process_results", antlr=None, seconds=seconds)


LOST = {
    "an exception": ("raise KeyError('answer')", 60, "KeyError: 'answer'"),
    "killed": ("import os, signal\n  os.kill(os.getpid(), signal.SIGKILL)", 60, "killed by SIGKILL"),
    "ended": ("import os\n  os._exit(0)", 60, "exit status 0"),
    "no number": ("return {'m': 'x'}", 60, "TypeError: m is a str, not a number"),
    "stuck in C": (
        "import ctypes\n  ctypes.PyDLL(None).sleep(60)",  # keeps the interpreter's lock
        0.5,
        "it took more than 0.5 s",
    ),
}


@pytest.mark.parametrize("how", LOST)
def test_a_child_that_dies_is_an_error(how, tmp_path):
    line, seconds, said = LOST[how]
    source = f"def process_results(doc, results):\n if doc['n'] == 1:\n  {line}\n return {{'m': 1}}\n"
    with pytest.raises(RuntimeError) as error:
        child(tmp_path, source, seconds)([{"n": n} for n in range(3)], [["a"]] * 3)
    assert str(error.value) == f"task t: scoring failed at document 2 of 3: {said}"


def test_a_module_that_cannot_be_imported_is_an_error(tmp_path):
    with pytest.raises(RuntimeError, match="^task t: scoring failed at document 1 of 1: ModuleNotFoundError: No mod"):
        child(tmp_path, "import no_such_module")([{}], [["a"]])


def test_the_child_has_an_empty_environment_and_prints_where_it_harms_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("A_SECRET", "1")
    source = "import os, sys\ndef process_results(doc, results):\n print('{}', len(results[0]))\n"
    source += " return {'a': int('A_SECRET' in os.environ), 'b': 0.5, 'c': int('lynx_exp' in sys.modules)}\n"
    assert child(tmp_path, source)([{}], [["\ud800"]]) == [{"a": 0, "b": 0.5, "c": 0}]


def test_the_folder_is_in_the_users_cache(cache, monkeypatch):
    assert antlr_folder() == cache == find_antlr() and cache.parent.name == "lynx_exp"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert antlr_folder() == Path.home() / ".cache" / "lynx_exp" / "antlr4-4.11"


def test_an_environment_with_the_right_runtime_uses_its_own(monkeypatch):
    monkeypatch.setattr("lynx_exp.tasks.antlr.version", lambda name: "4.11.1")
    assert find_antlr() is None


def test_no_network_is_one_line_when_the_task_is_loaded(tmp_path, data, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(ValueError) as error:
        load_task(NAME, limit=1, settings=TaskSettings(data=str(data)))
    said = str(error.value)
    assert "\n" not in said and said.startswith(f"task {NAME}: {PACKAGE} 4.11.0 cannot be installed (ERROR: ")
    assert f"--target {antlr_folder()} {PACKAGE}==4.11.0`" in said
    assert said.endswith(f"or `lynx-prepare prefetch task={NAME}`")
    assert list((tmp_path / "cache" / "lynx_exp").iterdir()) == [], "nothing half done is left"


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(ValueError, match="cannot be installed .*Not a directory") as error:
        find_antlr()
    assert "\n" not in str(error.value)


def test_what_pip_is_told_elsewhere_does_not_come_in_and_half_a_folder_is_replaced(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "constraints.txt").write_text(f"{PACKAGE}==4.9.3\n")
    monkeypatch.setenv("PIP_CONSTRAINT", str(tmp_path / "constraints.txt"))
    monkeypatch.setenv("PIP_USER", "1")
    (antlr_folder() / "antlr4").mkdir(parents=True)
    with ThreadPoolExecutor(2) as pool:  # two processes of a sweep
        folders = [made.result() for made in [pool.submit(install_antlr) for _ in range(2)]]
    assert folders == [antlr_folder()] * 2
    assert (antlr_folder() / "antlr4" / "Parser.py").is_file()
    assert [path.name for path in antlr_folder().parent.iterdir()] == [antlr_folder().name]
