"""IFEval's stock scorer on items written here, and what it lacks said before a model answers."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
import warnings
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from lynx_exp.config import config_folder
from lynx_exp.tasks import TaskSettings, load_task
from lynx_exp.tasks.definition import find_definition, members_of
from tests.tasks import real

ROOT = Path(__file__).parents[2]


@pytest.fixture
def punkt(tmp_path_factory, monkeypatch):
    """nltk's data for English, in its own form: trained here on a few sentences, since its own has to be downloaded."""
    nltk, trainer = pytest.importorskip("nltk"), pytest.importorskip("nltk.tokenize.punkt")
    folder = tmp_path_factory.mktemp("nltk")
    english = folder / "tokenizers/punkt_tab/english"
    english.parent.mkdir(parents=True)
    monkeypatch.setattr(nltk.data, "path", [str(folder)])
    trainer.save_punkt_params(
        trainer.PunktTrainer("One is here. Two came! Did it? Yes.\n" * 9).get_params(), str(english)
    )
    return english


ITEMS = (
    ("punctuation:no_comma", {}, "No comma is in this", "One, two"),
    (
        "length_constraints:number_sentences",
        {"relation": "at least", "num_sentences": 3},
        "One came. Two went! Did it?",
        "Only one.",
    ),
    (
        "length_constraints:number_words",
        {"relation": "less than", "num_words": 4},
        "three short words",
        "now four words are",
    ),
    ("detectable_format:json_format", {}, '{"a": 1}', "a: 1"),
    ("detectable_format:title", {}, "<<A title>> and text", "No title"),
    ("change_case:english_lowercase", {}, "all of this is written in small letters", "This is Not"),
    (
        "change_case:capital_word_frequency",
        {"capital_relation": "at least", "capital_frequency": 2},
        "TWO WORDS shout",
        "nobody shouts here",
    ),
    (
        "language:response_language",
        {"language": "de"},
        "Das ist ein ganz gewöhnlicher deutscher Satz über das Wetter.",
        "This is quite an ordinary English sentence about the weather.",
    ),
    ("keywords:existence", {"keywords": ["apple", "pear"]}, "An apple and a pear", "An apple alone"),
    ("startend:end_checker", {"end_phrase": "The end."}, "It is over. The end.", "It goes on"),
)
"""(instruction, its arguments, a response that follows it, one that does not)"""


def ifeval(folder: Path, rows: list[real.Row]):
    return load_task("ifeval", settings=TaskSettings(data=str(real.write_rows(folder / "ifeval.jsonl", rows))))


def row(number: int, *asked: tuple[str, dict]) -> real.Row:
    """As the hub has them: every argument that any instruction takes is there, null where it is not meant."""
    names = sorted({name for _, given, *_ in ITEMS for name in given})
    kwargs = [{name: given.get(name) for name in names} for _, given in asked]
    return {"key": number, "prompt": "Write.", "instruction_id_list": [name for name, _ in asked], "kwargs": kwargs}


def test_the_stock_scorer_says_of_each_instruction_whether_it_was_followed(punkt, tmp_path):
    task = ifeval(tmp_path, [row(at, (name, given)) for at, (name, given, *_) in enumerate(ITEMS)])
    for column, value in ((2, 1.0), (3, 0.0)):
        scores = task.score([item[column] for item in ITEMS])
        assert {name: sample.score for (name, *_), sample in zip(ITEMS, scores.samples, strict=True)} == {
            name: value for name, *_ in ITEMS
        }
        assert scores.headline.metric == "prompt_level_strict_acc"


def test_prompts_and_single_instructions_are_counted_apart(punkt, tmp_path):
    commas, title = (ITEMS[0][0], {}), (ITEMS[4][0], {})
    task = ifeval(tmp_path, [row(0, commas, title), row(1, commas), row(2, title)])
    scores = task.score(["<<A title>>, and a comma", "none", "Preface\n<<A title>>"])
    found = {metric.metric: metric.value for metric in scores.metrics}
    assert [sample.score for sample in scores.samples] == [0.0, 1.0, 1.0]
    assert found["prompt_level_strict_acc"] == pytest.approx(2 / 3)
    assert found["inst_level_strict_acc"] == pytest.approx(3 / 4), "of the four instructions one was not followed"


def test_a_language_is_told_the_same_each_time(punkt, tmp_path):
    import langdetect

    langdetect.DetectorFactory.seed = None
    ifeval(tmp_path, [row(0, (ITEMS[7][0], ITEMS[7][1]))])
    assert langdetect.DetectorFactory.seed == 0


@pytest.mark.parametrize(
    ("absent", "said"),
    [
        (("nltk", "langdetect", "immutabledict"), "needs nltk, langdetect, immutabledict; pip install"),
        (("langdetect",), r"needs langdetect; pip install '\.\[ifeval\]' in a checkout$"),
        (("immutabledict",), r"needs immutabledict; pip install"),
        ((), "needs punkt_tab, nltk's data; run `python -m nltk.downloader punkt_tab` .* as NLTK_DATA$"),
    ],
)
def test_what_is_missing_is_named_before_a_model_answers(absent, said, punkt, tmp_path, monkeypatch):
    for name in absent:
        monkeypatch.setitem(sys.modules, name, None)
    if not absent:
        punkt.rename(punkt.with_name("french"))
    with pytest.raises(ValueError, match=f"^task ifeval: {said}") as caught:
        ifeval(tmp_path, [row(0, (ITEMS[0][0], {}))])
    assert "\n" not in str(caught.value)


def stock_tasks() -> list[str]:
    """Every lm-eval task that a file in conf/task names, of a group its first."""
    files = sorted((config_folder() / "task").glob("*.yaml"))
    named = {name for file in files for name in yaml.safe_load(file.read_text()).get("subtasks") or []}
    stock = sorted(name for name in named if isinstance(name, str) and not name.startswith(("mini_", "?")))
    return [(members_of(name) or (name,))[0] for name in stock]


REFUSED = {"math_verify": "math", "sympy": "math", "antlr4": "math", "langdetect": "ifeval", "immutabledict": "ifeval"}
"""Modules that are looked for when a task is loaded: the extra that a refusal names, or whose task finds it itself."""
REQUIRED = {"datasets", "evaluate", "numpy", "sacrebleu", "rouge_score", "packaging", "nltk", "lm_eval", "tqdm"}
"""Modules that lm-eval itself needs: without them no task loads. nltk is one of rouge_score's."""


@pytest.mark.parametrize("name", stock_tasks())
def test_a_stock_tasks_functions_import_nothing_that_is_not_required_or_refused_by_name(name):
    path = find_definition(name)
    modules, definitions = set(), "".join(file.read_text() for file in path.parent.glob("*.y*ml"))
    for file in path.parent.glob("*.py"):
        source = file.read_text(encoding="utf-8")
        if "__main__" in source and f"!function {file.stem}." not in definitions:
            continue  # a script of lm-eval's authors, which no definition names
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # their escapes
            tree = ast.parse(source)
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                modules |= {each.name.partition(".")[0] for each in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules.add(node.module.partition(".")[0])
    others = modules - set(sys.stdlib_module_names) - {file.stem for file in path.parent.glob("*.py")}
    assert others <= REQUIRED | REFUSED.keys()
    assert all(find_spec(module) is not None for module in others & REQUIRED)


def test_refusals_name_extras_that_are_declared():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for extra in set(REFUSED.values()):
        assert extra in extras
    declared = {re.split(r"[<>=]", package)[0] for package in extras["ifeval"]}
    from lynx_exp.tasks.instructions import PACKAGES

    assert declared == set(PACKAGES)
