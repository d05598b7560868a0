"""The table of a study that is half done says what is missing: what runs, and what was asked for and never began."""

from __future__ import annotations

import io
from pathlib import Path

from fake_study import POLICIES, write_cell
from rich.console import Console

from analysis import load, print_table
from lynx_exp.store.sweeps import SweepCell, write_sweep


def test_cells_that_never_began_are_missing_too(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    write_cell(folder, policy=POLICIES[0], documents=16, repeats=0)
    write_cell(folder, policy=POLICIES[4], documents=16, repeats=0, state="running")
    study = load(folder).cells["path"].iloc[0]
    names = (Path(study).name, "not-there-a", "not-there-b")
    write_sweep(Path(study).parent, [SweepCell(folder=name, name=name, requests=4) for name in names], ["lynx-exp"])
    assert [one for one in load(folder, warn=False).unfinished if one.endswith("(not begun)")] == [
        "not-there-a (not begun)",
        "not-there-b (not begun)",
    ]
    console = Console(file=io.StringIO(), width=200)
    print_table(folder, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "! missing: 3 cells not finished (2 not begun, 1 running): " in text
