"""`lynx-exp --help`: every field beside its value, with what it means and may be, from its own declaration."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from lynx_exp import cli
from lynx_exp.config import (
    Config,
    GenerationConfig,
    MeasureConfig,
    ModelConfig,
    PackConfig,
    TaskConfig,
    TrackerConfig,
    VllmConfig,
    allowed,
    dataclass_fields,
    policy_parameters,
    policy_summary,
)
from lynx_exp.config.docstrings import class_fields
from lynx_exp.help import COLUMN, WIDTH, as_typed, entry
from lynx_exp.routing import build_policy, policy_names

NODES = (Config, ModelConfig, TaskConfig, GenerationConfig, MeasureConfig, PackConfig, VllmConfig, TrackerConfig)
FEW_WORDS = 120
"""Characters of a meaning."""


@pytest.mark.parametrize("node", NODES)
def test_every_field_says_in_a_few_words_what_it_means(node):
    declared = dataclass_fields(node)
    assert list(declared) == [field.name for field in dataclasses.fields(node)]
    for name, field in declared.items():
        assert 5 < len(field.meaning) <= FEW_WORDS and field.meaning[0].isupper(), f"{node.__name__}.{name}"


@pytest.mark.parametrize("name", policy_names())
def test_every_parameter_of_a_policy_says_what_it_means(name):
    policy = build_policy(name)
    declared = policy_parameters(name)
    assert set(declared) == {field.name for field in dataclasses.fields(policy) if field.init}
    for parameter, field in declared.items():
        assert 5 < len(field.meaning) <= FEW_WORDS, f"{name}.{parameter}"
    assert 10 < len(policy_summary(name)) < 250


def page(capsys, *arguments: str) -> list[str]:
    assert cli.run([*arguments, "--help"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out.splitlines()


@pytest.mark.parametrize("name", ["vanilla", "coverage", "lexi", "noise_floor"])
def test_the_page_fits_its_width_and_shows_the_policys_own_parameters(name, capsys):
    lines = page(capsys, f"policy={name}")
    assert max(map(len, lines)) <= WIDTH
    for parameter in policy_parameters(name):
        (line,) = (number for number, line in enumerate(lines) if line.startswith(f"  policy.{parameter}="))
        beside = lines[line] if len(lines[line]) > COLUMN else lines[line + 1]
        assert len(beside[COLUMN:]) > 5 and beside[COLUMN - 1] == " "


def test_a_field_stands_beside_its_value_its_meaning_and_what_is_allowed(capsys):
    text = "\n".join(page(capsys, "phases=both", "policy=coverage", "model=hub", "+model.config.a=1"))
    assert "  phases=both                 in which phases the policy acts (decode, prefill, both, none)\n" in text
    assert "mass (mass, log)\n" in text, "a policy's, from its Literal"
    assert "  threads=null                CPU threads" in text and "(1 to\n" in text
    assert "  model.id=???  " in text and "  model.config={a: 1}  " in text
    assert "  policy.match_active=null    active experts that the policy's knob" in text


def test_a_group_is_shown_as_it_is_typed(capsys):
    shown = page(capsys, "+study=demo")
    lines = [line.strip().partition(":")[0] for line in shown if line.startswith("  ") and ":" in line]
    for group in ("+cluster", "+control", "+paper", "+serving", "+study", "model", "policy", "scale (of a study)"):
        assert group in lines
    (field,) = (line for line in shown if line.startswith("  +study: "))
    assert "demo" in field.partition(": ")[2].split(", ")


def test_help_for_a_bad_choice_is_the_usual_line(capsys):
    assert cli.run(["policy=lynxx", "--help"]) == 2
    assert "did you mean lynx?" in capsys.readouterr().err


def test_a_policy_of_ones_own_is_explained_too(tmp_path):
    (tmp_path / "policies").mkdir()
    (tmp_path / "conf/policy").mkdir(parents=True)
    (tmp_path / "policies/mine.py").write_text(
        '"""mine: keep what I like.\n\nMore."""\nimport no_such_module\n'
        "from lynx_exp.routing import LanePolicy\n\nclass Helper:\n    pass\n\nclass Mine(LanePolicy):\n"
        '    count: int = 8\n    """Experts that stay. Of E."""\n    plain: int = 1\n'
    )
    (tmp_path / "conf/policy/mine.yaml").write_text("name: mine\ncount: 8\nplain: 1\nmin_batch: 2\n")
    done = subprocess.run(
        [sys.executable, "-m", "lynx_exp", "policy=mine", "--help"],
        capture_output=True,
        text=True,
        env={"LYNX_EXP_PATH": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[1])},
        check=True,
    )
    lines = done.stdout.splitlines()
    assert "  policy=mine                 keep what I like" in lines, "the module was read, not imported"
    assert "  policy.count=8              experts that stay" in lines
    assert "  policy.plain=1" in lines, "no docstring, no meaning"
    assert "  policy.min_batch=2          lanes with fewer live rows than this run vanilla" in lines


def test_a_field_declared_again_means_the_same(tmp_path):
    file = tmp_path / "a.py"
    file.write_text('class A:\n    x: int = 1\n    """Of A."""\n\nclass B(A):\n    x: int = 2\n    y: "int" = 3\n')
    fields = class_fields(file, "B")
    assert (fields["x"].meaning, fields["y"].meaning) == ("Of A", "")


def test_what_a_field_may_hold_is_what_its_check_takes():
    assert str(allowed(Config)["phases"]) == "decode, prefill, both, none"
    assert str(allowed(Config)["threads"]) == "1 to 1024, or null"
    assert str(allowed(Config)["batch_size"]) == "at least 1"
    assert str(allowed(ModelConfig)["parallel"]) == "tp, ep, or null"
    allowed(Config)["max_failures"].check("max_failures", None)
    for name, value in (("batch_size", 2**21), ("batch_size", None), ("plan_seeds", 1001), ("tail", "fill")):
        with pytest.raises(ValueError, match=f"^{name}=.*: must be "):
            allowed(Config)[name].check(name, value)


@pytest.mark.parametrize(
    ("value", "typed"),
    [(None, "null"), (True, "true"), (1.0, "1.0"), ("auto", "auto"), ([], "[]"), (["a", "b"], "[a, b]"), ({}, "{}")],
)
def test_values_are_shown_as_they_are_typed(value, typed):
    assert as_typed(value) == typed


def test_a_long_value_stands_above_its_meaning():
    lines = entry("task.subtasks=[" + ", ".join(["abcdefgh"] * 30) + "]", "what is asked").splitlines()
    assert max(map(len, lines)) <= WIDTH and lines[-1] == " " * COLUMN + "what is asked"
