"""What somebody asked for is whole or absent."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from analysis.figures import style
from analysis.outputs import write_bytes, write_csv
from analysis.results_table import write_csv as write_table


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_write_that_fails_leaves_what_was_there(broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = pd.DataFrame({"x": [1]})
    write_table(before, before, before, tmp_path / "t.csv")
    figure, _ = plt.subplots()
    style.save(figure, tmp_path, "f", before)
    found = {path: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*_args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, broken, full)
    after = pd.DataFrame({"x": [2]})
    with pytest.raises(OSError, match=r"No space .*/(t\.csv|f\.pdf)"):
        write_table(after, after, after, tmp_path / "t.csv")
    with pytest.raises(OSError, match=r"No space .*/(t\.csv|f\.pdf)"):
        style.save(figure, tmp_path, "f", after)
    plt.close(figure)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == found, "no file is new, cut or gone"


def test_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link.csv").symlink_to("there/real.csv")
    write_csv(tmp_path / "link.csv", pd.DataFrame({"x": [1]}))
    assert (tmp_path / "link.csv").is_symlink()
    assert (tmp_path / "there/real.csv").read_text() == "x\n1\n"
    assert names(tmp_path / "there") == {"real.csv"}


def test_what_is_no_file_is_written_into(tmp_path: Path) -> None:
    """`--out /dev/stdout`: root would have replaced the device."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_bytes(pipe, b"page")
        assert os.read(reader, 10) == b"page"
    finally:
        os.close(reader)
    assert pipe.is_fifo()
    assert names(tmp_path) == {"pipe"}
