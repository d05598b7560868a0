"""A policy takes one file and one YAML: the example of docs/extending.md obeys the laws and runs from the command
line."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings

from lynx_exp import cli
from lynx_exp.routing import build, build_policy, policies, policy_names
from lynx_exp.store.read import read_cells
from tests.routing.laws import Case, cases

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def added(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the policy's file and a configuration folder; Python and Hydra look there too."""
    folder = tmp_path_factory.mktemp("added")
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/extending.md").read_text(), re.DOTALL)
    (code,) = (block for block in blocks if "class Strongest" in block)
    assert len(code.splitlines()) < 20
    (folder / "strongest.py").write_text(code)
    (folder / "conf" / "policy").mkdir(parents=True)
    (folder / "conf" / "policy" / "strongest.yaml").write_text("name: strongest\ncount: 8\n")
    policies.__path__.append(str(folder))
    build.policy_names.cache_clear()
    yield folder
    policies.__path__.remove(str(folder))
    sys.modules.pop("lynx_exp.routing.policies.strongest", None)
    build.policy_names.cache_clear()


def test_it_has_a_name_and_checked_parameters(added: Path) -> None:
    assert "strongest" in policy_names()
    assert build_policy("strongest", count=3).label == "strongest(count=3)"
    with pytest.raises(ValueError, match="strongest: count=many: must be of type int"):
        build_policy("strongest", count="many")


def test_it_obeys_the_laws(added: Path) -> None:
    policy: Any = build_policy("strongest", count=3)

    @settings(max_examples=60, deadline=None)
    @given(case=cases())
    def law(case: Case) -> None:
        if not case.fits(policy):
            return
        out = case.run(policy)
        dead = ~case.step.live
        assert torch.equal(out.experts[dead], case.routing.experts[dead])
        kept = policy.keep(case.routing, case.step, case.rule)
        assert (kept.sum(-1) == 3).all()

    law()


def test_it_runs_from_the_command_line(added: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    where = f"hydra.searchpath=[file://{added / 'conf'}]"
    assert cli.run([where, "policy=strongest", "policy.count=4", "task=mini_wmt16", "limit=16", "batch_size=16"]) == 0
    (cell,) = read_cells("results")
    assert cell.info["policy_label"] == "strongest(count=4)"
    assert cell.metrics["active_experts"] <= 4
