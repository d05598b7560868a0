"""Which changes make another cell, and which do not."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lynx_exp.config import Config, ModelConfig, Role, TaskConfig, TrackerConfig
from lynx_exp.config.roles import own_uses, plain, uses
from lynx_exp.store.identity import (
    NOT_PAIRED,
    SCIENTIFIC,
    USES,
    Ids,
    cell_ids,
    code_digest,
    digest,
    flatten,
    folder_digest,
)
from tests.store.known_ids import configs, ids

AROUND: dict[str, Any] = {"model_digest": "m", "data_digests": {"t": "d"}, "code": "c"}


def base() -> dict[str, Any]:
    return asdict(
        Config(
            model=ModelConfig(kind="hub", id="a/b"),
            policy={"name": "lynx", "alpha": 3.0, "beta": 2},
            task=TaskConfig(name="t", subtasks=["t"]),
            tracker=TrackerConfig(),
        )
    )


def changed(name: str) -> dict[str, Any]:
    config = deepcopy(base())
    *parents, last = name.split(".")
    node = config
    for parent in parents:
        node = node[parent]
    node[last] = (
        {"name": "top_k", "k": 1}
        if name == "policy"
        else "another"
        if not isinstance(node[last], list)
        else ["another"]
    )
    return config | effective(name, config)


def effective(name: str, config: dict[str, Any]) -> dict[str, Any]:
    """What `config` needs for the field to have an effect."""
    if name in ("layers", "fidelity"):
        return {"policy": {"name": "top_k", "k": 1}}
    if name == "task.mixing":
        return {"task": config["task"] | {"weights": [1.0]}}
    if name in ("waves", "tail"):
        return {"batching": "continuous"}
    if name.startswith("vllm."):
        return {"backend": "vllm"}
    if name.startswith("measure.") and name != "measure.latency":
        return {"measure": config["measure"] | {"latency": True}}
    return {}


def schema_fields(cls: type = Config, prefix: str = "") -> set[str]:
    hints = get_type_hints(cls)
    names = set()
    for f in fields(cls):
        nested = hints[f.name]
        names |= schema_fields(nested, f"{prefix}{f.name}.") if is_dataclass(nested) else {f"{prefix}{f.name}"}
    return names


def test_every_field_has_exactly_one_role():
    assert set(USES) == schema_fields() == set(flatten(base()))
    assert all(isinstance(use.role, Role) for use in USES.values())


def test_a_field_without_a_role_is_refused_in_plain_words():
    @dataclass
    class Node:
        known: int = plain(1, role=Role.COSMETIC)
        temperature: float = 1.0

    with pytest.raises(
        ValueError, match=r"Node\.temperature: has no role, .*declare one, as in `temperature: "
    ) as error:
        uses(Node)
    assert "\n" not in str(error.value)


def test_conditions_name_fields_that_there_are():
    known = {*USES, "policy.name"}
    assert {use.unless[0] for use in USES.values() if use.unless is not None} <= known
    assert list(own_uses(Config)) == [f.name for f in fields(Config)]
    places = sorted(use.setting for use in own_uses(Config).values() if use.setting)
    assert places == list(range(1, len(places) + 1)), "of the parts of a setting's name"


def test_known_cells_keep_their_ids():
    """Those of the version that first declared roles at the fields: made by the lists of names that were before."""
    known = json.loads((Path(__file__).parent / "known_ids.json").read_text())
    wrong = [config for config, was, now in zip(configs(), known, ids(), strict=True) if was != now]
    assert not wrong and len(set(known)) > 100


def test_a_field_of_no_cell_is_refused():
    with pytest.raises(ValueError, match="^temperature: no field of a cell"):
        cell_ids(base() | {"temperature": 1}, **AROUND)


@pytest.mark.parametrize("name", SCIENTIFIC)
def test_scientific_fields_make_another_cell(name):
    reference = base() | effective(name, base())
    cell, pair, sizes = cell_ids(reference, **AROUND)
    other_cell, other_pair, other_sizes = cell_ids(changed(name), **AROUND)
    assert cell != other_cell
    assert (pair == other_pair) == (name in NOT_PAIRED)
    assert (sizes == other_sizes) == (name == "batch_size")


@pytest.mark.parametrize("name", [name for name in USES if name not in SCIENTIFIC])
def test_other_fields_do_not(name):
    assert cell_ids(changed(name), **AROUND) == cell_ids(base(), **AROUND)


@pytest.mark.parametrize("part", ["model_digest", "data_digests", "code"])
def test_model_data_and_code_do(part):
    other = AROUND | {part: {"t": "other"} if part == "data_digests" else "other"}
    assert set(cell_ids(base(), **other)).isdisjoint(cell_ids(base(), **AROUND))


def test_settings_without_effect_have_one_form():
    vanilla = base() | {"policy": {"name": "vanilla"}}
    assert cell_ids(vanilla | {"phases": "both"}, **AROUND) == cell_ids(vanilla | {"phases": "decode"}, **AROUND)
    for name, value in (("windows", 3), ("max_windows", 99), ("repeats", 3), ("precision", 0.5), ("new_tokens", 2)):
        assert base()["measure"][name] != value
        unmeasured = base() | {"measure": base()["measure"] | {name: value}}
        assert cell_ids(unmeasured, **AROUND) == cell_ids(base(), **AROUND)


def test_what_came_later_to_every_policy_is_nothing_at_its_default():
    policy, own = base()["policy"], cell_ids(base(), **AROUND)
    usual = policy | {"weights": "renormalize", "k2": None}
    assert cell_ids(base() | {"policy": usual}, **AROUND) == own
    for more in ({"weights": "original"}, {"weights": "reference", "k2": 4}):
        other = cell_ids(base() | {"policy": usual | more}, **AROUND)
        assert other.cell != own.cell and other.pair == own.pair


def test_how_steps_run_has_an_effect_on_a_gpu_alone():
    for device, same in (("cpu", True), ("cuda", False)):
        here = base() | {"device": device}
        assert (cell_ids(here | {"steps": "eager"}, **AROUND) == cell_ids(here, **AROUND)) is same


def test_waves_are_of_continuous_batching_alone():
    static, continuous = (
        {waves: cell_ids(base() | {"batching": batching, "waves": waves}, **AROUND) for waves in (1, 4, 5)}
        for batching in ("static", "continuous")
    )
    assert len(set(static.values())) == 1
    assert all(len({getattr(ids, name) for ids in continuous.values()}) == 3 for name in Ids._fields)
    assert set(static.values()).isdisjoint(continuous.values())


def test_a_plan_is_that_of_its_seed_and_rows_alone_have_one():
    """plan_seed null is the seed; how many seeds a multirun takes makes no other cell; a batch of one is one cell."""
    both = base() | {"seed": 3, "batch_size": 4}
    assert cell_ids(both | {"plan_seed": 3}, **AROUND) == cell_ids(both | {"plan_seed": None}, **AROUND)
    assert cell_ids(both | {"plan_seed": 4}, **AROUND).pair != cell_ids(both, **AROUND).pair
    alone = both | {"batch_size": 1}
    assert cell_ids(alone | {"plan_seed": 4}, **AROUND) == cell_ids(alone, **AROUND)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), JSON, max_size=4))
def test_the_order_of_keys_does_not_matter(value):
    assert digest(value) == digest(dict(reversed(value.items())))


def test_whole_floats_are_integers_and_tuples_are_lists():
    assert digest({"a": 3.0, "b": (1, 2)}) == digest({"a": 3, "b": [1, 2]})
    assert digest({"a": 3.5}) != digest({"a": 3})


def test_code_digest_follows_the_source(tmp_path):
    source = tmp_path / "routing" / "policies" / "new.py"
    source.parent.mkdir(parents=True)
    source.write_text("a = 1\n")
    (tmp_path / "store").mkdir()
    before = code_digest(tmp_path)
    (tmp_path / "store" / "read.py").write_text("not science\n")
    code_digest.cache_clear()
    assert code_digest(tmp_path) == before
    source.write_text("a = 2\n")
    code_digest.cache_clear()
    assert code_digest(tmp_path) != before


def test_a_model_may_move_but_not_change(tmp_path):
    digests = []
    for name, weights in (("one", b"w"), ("two", b"w"), ("three", b"x")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(weights)
        (folder / "README.md").write_text(name)
        digests.append(folder_digest(folder))
    assert digests[0] == digests[1] != digests[2]
