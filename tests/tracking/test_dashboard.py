"""The workspace and the report: panels over keys that cells really log, without a server, and saved to one."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
import wandb

from lynx_exp.results import main
from lynx_exp.tracking import run_content as content
from tests.tracking.conftest import Write
from tests.tracking.fake_server import serving

pytest.importorskip("wandb_workspaces", reason="wandb-workspaces is not installed (lynx_exp[dashboard])")


def dashboard(*arguments: Any) -> int:
    try:
        main.main(["dashboard", *map(str, arguments)])
    except SystemExit as stop:
        assert isinstance(stop.code, int)
        return stop.code
    return 0


def panels_of(node: Any) -> list[dict[str, Any]]:
    if isinstance(node, dict):
        own = [node] if "viewType" in node else []
        return own + [panel for part in node.values() for panel in panels_of(part)]
    return [panel for part in node for panel in panels_of(part)] if isinstance(node, list) else []


@pytest.mark.parametrize("kind", ["workspace", "report"])
def test_it_is_printed_without_a_server(kind: str, write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    record = write()
    more = ["--report"] if kind == "report" else []
    assert dashboard(record.path.parent, "--json", "--entity", "team", *more) == 0
    printed = json.loads(capsys.readouterr().out)
    panels = panels_of(printed)
    assert {panel["viewType"] for panel in panels} >= {"Scatter Plot", "Bar Chart", "Run History Line Plot", "Weave"}
    logged = {f"summary:{name}" for name in content.summary(record)} | {"summary:score/two"}
    axes = [
        panel["config"][axis] for panel in panels if panel["viewType"] == "Scatter Plot" for axis in ("xAxis", "yAxis")
    ]
    assert set(axes) <= logged and {"summary:active_experts", "summary:speedup", "summary:score/one"} <= set(axes)
    curves = {
        name for panel in panels if panel["viewType"] == "Run History Line Plot" for name in panel["config"]["metrics"]
    }
    assert curves < {name for row in content.curves(record) for name in row} and "steps/one/histogram" in curves
    grouped = {panel["config"].get("groupBy") for panel in panels if panel["viewType"] == "Bar Chart"}
    assert grouped == {"policy_label.value"} and "policy_label" in content.config(record)
    text = json.dumps(printed)
    assert '"name": "group"}, "op": "IN", "value": ["demo"]' in text and "moe" in text and "team" in text


def test_it_is_saved(write: Write, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    record = write()
    with serving() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.address)
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        wandb.teardown()
        assert dashboard(record.path.parent) == 0
        assert f"{server.address}/team/moe?nw=" in capsys.readouterr().out
        (view,) = server.views
        assert "steps/one/active_experts" in view["spec"] and view["entityName"] == "team"
        server.mood = "refusing"
        assert dashboard(record.path.parent, "--entity", "team") == 1
        assert capsys.readouterr().err.splitlines()[-1].startswith("lynx-results: error: wandb: ")
        wandb.teardown()


def test_what_it_needs_is_said(
    write: Write, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record = write()
    assert dashboard(record.path.parent) == 2
    assert "No API key configured" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    monkeypatch.setitem(sys.modules, "wandb_workspaces.reports.v2", None)
    assert dashboard(record.path.parent, "--json") == 2
    assert "pip install '.[dashboard]'" in capsys.readouterr().err
