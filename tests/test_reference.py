"""docs/reference is what the code says."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pandas as pd
import pytest

import analysis
from analysis import row_schema
from analysis.study import study
from lynx_exp import Engine
from lynx_exp.checks.findings import RULES
from lynx_exp.config import Config, MeasureConfig
from lynx_exp.results.main import VERBS
from lynx_exp.routing import LanePolicy, Policy, Routing, build_policy
from tests.analysis.fake_study import MIX, POLICIES, write_cell

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "docs/reference"


def test_the_committed_pages_are_what_the_command_makes():
    done = subprocess.run([sys.executable, "-m", "docs.generate", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("cli.md", [f"| `{field.name}` |" for field in fields(Config) if isinstance(field.default, bool | int)]),
        ("cli.md", [f"| `measure.{field.name}` |" for field in fields(MeasureConfig)]),
        ("cli.md", [f"### lynx-results {verb}\n" for verb in VERBS]),
        ("policies.md", [f"\n## {name}\n" for name in ("vanilla", "no_drop", "lynx", "coverage")]),
        ("rules.md", [f"| `{name}` |" for name in RULES]),
        (
            "python.md",
            ["\n### Engine\n", "\n#### generate\n", "\n### build_policy\n", "\n### Routing\n", "\n### load\n"],
        ),
    ],
)
def test_nothing_is_left_out(page, names):
    text = (REFERENCE / page).read_text()
    assert names and not [name for name in names if name not in text]


@pytest.mark.parametrize("page", sorted(path.name for path in REFERENCE.glob("*.md")))
def test_pages_link_to_files_that_are_there_and_name_no_place_or_address(page):
    text = (REFERENCE / page).read_text()
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        assert link.startswith("https://arxiv.org/abs/") or (REFERENCE / link).is_file(), link
    assert not re.search(r"0x[0-9a-f]{6}|/home/|/tmp/", text)


def test_every_row_says_what_its_name_means():
    pages = [page.read_text() for page in REFERENCE.glob("*.md") if page.name != "python.md"]
    lines = [line for page in pages for line in page.splitlines() if line[:3] == "| `"]
    assert len(lines) > 300
    for line in lines:
        assert len(re.split(r"(?<!\\)\|", line)[-2]) > 5, line


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pd.DataFrame]:
    folder = tmp_path_factory.mktemp("study")
    for policy in POLICIES[:2]:
        write_cell(folder, policy=policy)
        write_cell(folder, policy=policy, task=next(iter(MIX)), mixing="shuffled")
    found = study(folder)
    return {"rows": found.rows, "summary": found.summary, "lanes": found.lanes}


@pytest.mark.parametrize("name", row_schema.FRAMES)
def test_every_column_of_a_studys_frames_is_declared(name, frames):
    shown = [column for column in frames[name].columns if not column.startswith("_")]
    assert len(frames[name]) and not [column for column in shown if not row_schema.known(column)]


def test_every_declared_column_is_there(frames):
    there = {column for frame in frames.values() for column in frame.columns}
    assert not {column.name for column in (*row_schema.ESTIMATES, *row_schema.PLAIN)} - there
    for column in row_schema.ESTIMATES:
        assert {f"{column.name}{end}" for end in row_schema.ENDS} <= there


def methods(cls: type) -> list[Callable[..., object]]:
    """Public ones that take arguments, inherited ones of this project too."""
    found = [getattr(cls, name) for name in dir(cls) if not name.startswith("_")]
    own = [
        inspect.unwrap(it) for it in found if inspect.isroutine(it) and it.__module__.startswith(("lynx", "analysis"))
    ]
    return [it for it in own if parameters(it)]


def parameters(function: Callable[..., object]) -> list[str]:
    given = inspect.signature(function).parameters.values()
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    return [f"{stars.get(each.kind, '')}{each.name}" for each in given if each.name not in ("self", "cls")]


API = [
    *(method for cls in (Engine, Policy, Routing, analysis.Records) for method in methods(cls)),
    *(Policy.__call__, LanePolicy.keep, build_policy),
    *(analysis.load, analysis.print_table, analysis.write_figures, study),
]


@pytest.mark.parametrize("function", API, ids=lambda it: it.__qualname__)
def test_the_public_functions_document_each_argument_and_no_other(function: Callable[..., object]) -> None:
    text = inspect.getdoc(function) or ""
    (section,) = re.findall(r"^Args:\n((?:    .*\n?)+)", text, re.MULTILINE)
    assert re.findall(r"^    (\*{0,2}\w+): \S", section, re.MULTILINE) == parameters(function)
    returned = inspect.signature(function).return_annotation
    assert returned in (None, "None") or re.search(r"^(Returns|Yields):\n", text, re.MULTILINE)
