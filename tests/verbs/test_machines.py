"""`machines`: one environment a study; what is of a model, one a model."""

from __future__ import annotations

from pathlib import Path

from lynx_exp.checks.between_rules import check_machines


def test_a_models_weights_differ_from_another_models() -> None:
    def provenance(digest: str, torch: str = "2.13.0") -> dict[str, object]:
        return {"numerics": {"model.digest": digest, "packages.torch": torch}}

    models = {"a": "tiny", "b": "tiny", "c": "large"}
    found = {"a": provenance("1"), "b": provenance("1"), "c": provenance("2")}
    assert list(check_machines(Path("study"), found, (), models)) == []
    (changed,) = check_machines(Path("study"), found | {"b": provenance("3")}, (), models)
    assert changed.rule == "machines" and "model.digest" in changed.expected and "b" in changed.found
    (other,) = check_machines(Path("study"), found | {"c": provenance("2", "2.14.0")}, (), models)
    assert "torch" in other.expected and "2.14.0" in other.found
