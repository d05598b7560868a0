"""`lynx-results sync` where wandb's files cannot be written: one line that says why and what to do."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from lynx_exp.results.sync import check_room


def test_room_is_there_and_nothing_stays(tmp_path: Path) -> None:
    check_room(tmp_path / "wandb")
    assert list((tmp_path / "wandb").iterdir()) == []


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "the disk is full, or a quota is; wandb keeps its files with the study: make room"),
        (errno.EDQUOT, "the disk is full, or a quota is"),
        (errno.EROFS, "Read-only file system; wandb keeps its files with the study: copy the study"),
        (errno.EACCES, "Permission denied; .* copy the study to where you may write, then sync again$"),
    ],
)
def test_no_room_is_one_line(number: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_self: Path, _content: bytes) -> int:
        raise OSError(number, {errno.EROFS: "Read-only file system", errno.EACCES: "Permission denied"}.get(number, ""))

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(ValueError, match=said) as caught:
        check_room(tmp_path / "wandb")
    assert "\n" not in str(caught.value) and "--out" not in str(caught.value)


def test_a_file_in_the_place_of_the_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "wandb").write_text("")
    with pytest.raises(ValueError, match="wandb: File exists; "):
        check_room(tmp_path / "wandb")
