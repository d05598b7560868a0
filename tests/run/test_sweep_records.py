"""A command that is refused leaves no record of cells that `validate` would then miss."""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lynx_exp.run.run_cells import run_cells
from lynx_exp.store.sweeps import read_sweeps


def refusing(_config: Any) -> Any:
    raise ValueError("it cannot be loaded: model.safetensors: cut off")


def test_a_model_that_does_not_load_leaves_nothing(config, bench, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="it cannot be loaded"):
        run_cells([config()], console=Console(file=StringIO()), open_engine=refusing, load=bench.load)
    assert [path for path in (tmp_path / "results").rglob("*") if path.is_file()] == []
    assert not (tmp_path / "results/default").exists()


def test_what_an_earlier_command_wrote_stays(config, bench, tmp_path: Path) -> None:
    bench.run([config()])
    lynx = {"name": "lynx", "alpha": 3.0, "beta": 2}
    with pytest.raises(ValueError, match="it cannot be loaded"):
        run_cells([config(lynx)], console=Console(file=StringIO()), open_engine=refusing, load=bench.load)
    (sweep,) = read_sweeps(tmp_path / "results/default")
    assert [cell.name for cell in sweep.cells] == [cell.name for cell in sweep.cells if "vanilla" in cell.name]


def test_a_record_that_was_there_stays(config, bench, tmp_path: Path) -> None:
    bench.run([config()])
    (done,) = (tmp_path / "results/default").glob("*/DONE")
    done.unlink()
    with pytest.raises(ValueError, match="it cannot be loaded"):
        run_cells([config()], console=Console(file=StringIO()), open_engine=refusing, load=bench.load)
    assert len(read_sweeps(tmp_path / "results/default")) == 1
