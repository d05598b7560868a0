"""Cells of a policy of one's own, checked where LYNX_EXP_PATH does not name its folder."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lynx_exp import extensions
from lynx_exp.checks.file_rules import check_identity
from lynx_exp.store.identity import code_digest


def found_of(policy: str) -> list[tuple[Any, ...]]:
    found: list[tuple[Any, ...]] = []
    info = {"cell_id": "a" * 64, "device": "cpu", "dtype": "float32"}
    content: Any = SimpleNamespace(
        folder=Path(f"cell-{'a' * 10}"),
        info=info,
        config={"policy": {"name": policy}},
        provenance={"code_sha256": "of another version"},
        add=lambda *finding: found.append(finding),
    )
    check_identity(content)
    return found


def test_the_policy_and_the_variable_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LYNX_EXP_PATH", raising=False)
    extensions.extension_folders.cache_clear()
    ((rule, file, expected, observed),) = found_of("strongest")
    assert (rule, file) == ("identity", "cell.json")
    assert "LYNX_EXP_PATH" in expected and "not set" in expected and "policy strongest" in observed
    assert found_of("lynx") == found_of("vanilla") == found_of("noise_floor") == []


def test_a_policy_of_the_folder_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies/strongest.py").write_text("")
    monkeypatch.setenv("LYNX_EXP_PATH", str(tmp_path))
    extensions.extension_folders.cache_clear()
    try:
        assert found_of("strongest") == []
        ((_, _, expected, _),) = found_of("weakest")
        assert str(tmp_path) in expected
    finally:
        extensions.extension_folders.cache_clear()


@pytest.mark.parametrize("asks", [{"weights": "affine"}, {"per_layer": "calibrated"}, {"protect": "calibrated"}])
def test_an_id_with_the_content_of_a_file_in_it_is_not_derived_from_the_config(asks: dict[str, str]) -> None:
    """The file may be anywhere by now; such cells were called damaged."""
    found: list[tuple[Any, ...]] = []
    content: Any = SimpleNamespace(
        folder=Path(f"cell-{'a' * 10}"),
        info={"cell_id": "a" * 64, "device": "cpu", "dtype": "float32"},
        config={"policy": {"name": "xshare"} | asks},
        provenance={"code_sha256": code_digest(), "model": {"digest": "m"}, "data_sha256": {}},
        add=lambda *finding: found.append(finding),
    )
    check_identity(content)
    assert found == []
