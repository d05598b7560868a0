"""What may be asked, and how it is refused: one line that names the field."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from lynx_exp.routing import build_policy, policy_names
from lynx_exp.routing.calibration import for_batches
from lynx_exp.vllm_plugin.plugin_settings import VANILLA, Acting, Place, Settings, spec_of

BAD = [
    ("lynx", "must be a mapping"),
    ({}, "policy=None: must be the name"),
    ({"policy": "lnyx"}, "did you mean lynx?"),
    ({"policy": "lynx", "alfa": 2}, "alfa: unknown parameter"),
    ({"policy": "lynx", "alpha": "big"}, "alpha=big"),
    ({"policy": "lynx", "alpha": -1}, "alpha=-1"),
    ({"policy": "lynx", "phases": "encode"}, "phases=encode: must be one of decode, prefill, both, none"),
    ({"policy": "lynx", "count": 1}, "count=1: must be true or false"),
    ({"policy": "lynx", "report": 3}, "report=3: must be the path"),
    ({"lanes": "yes"}, "lanes=yes: must be true or false"),
    ({"lanes": True, "policy": "lynx"}, "policy: not with lanes=true"),
    ({"lanes": True, "phases": "both"}, "phases: not with lanes=true"),
]


@pytest.mark.parametrize(("given", "says"), BAD, ids=[json.dumps(given) for given, _ in BAD])
def test_bad_settings(given, says):
    with pytest.raises(ValueError) as error:
        Settings.parse(given)
    text = str(error.value)
    assert says in text and text.startswith("additional_config.lynx") and "\n" not in text


def test_the_policy_and_what_is_beside_it():
    made = Settings.parse(
        {"policy": "lynx", "alpha": 2, "phases": "both", "layers": "1:", "count": False, "report": "a"}
    )
    assert made.acting == Acting(policy=build_policy("lynx", alpha=2.0), phases="both", layers="1:")
    assert (made.count, made.report, made.lanes) == (False, "a", False)
    assert Settings.parse({"lanes": True}).lanes


@pytest.mark.parametrize("given", [{"policy": "vanilla"}, {"policy": "lynx", "phases": "none"}])
def test_what_never_acts_is_vanilla(given):
    acting = Settings.parse(given).acting
    assert acting is not None and acting.policy is None and acting.label == "vanilla"


@pytest.mark.parametrize("name", [name for name in policy_names() if name != "vanilla"])
def test_a_policy_survives_the_way_into_a_request_and_back(name):
    required = {"lynx_v1_latency": {"keep_experts": 4}, "random_keep": {"keep_experts": 4}}.get(name, {})
    policy = build_policy(name, min_batch=3, **required)
    carried = json.loads(json.dumps(spec_of(policy, "both", "0,2")))
    assert Acting.parse(carried, "x") == Acting(policy=policy, phases="both", layers="0,2")


def test_a_policy_by_layer_survives_too():
    policy = build_policy("top_k", k=[2, 1, 1, 2])
    assert Acting.parse(json.loads(json.dumps(spec_of(policy, "decode", None))), "x").policy == policy
    assert Acting.parse(spec_of(None, "decode", None), "x") == VANILLA


def test_the_size_of_batches_of_what_was_measured_survives_too():
    policy = for_batches(build_policy("xshare", per_layer="calibrated"), 4)
    carried = json.loads(json.dumps(spec_of(policy, "decode", None)))
    assert carried["batch_size"] == 4 and Acting.parse(carried, "x").policy == policy
    assert Acting.parse(carried | {"batch_size": 8}, "x").policy != policy
    assert for_batches(build_policy("xshare"), 4) == build_policy("xshare"), "it takes nothing of the kind"
    with pytest.raises(ValueError, match="^x.batch_size=four: must be a whole number"):
        Acting.parse(carried | {"batch_size": "four"}, "x")


def test_requests_of_equal_policies_share_one():
    known: dict[str, Acting] = {}
    given = [{"lane": 7, "slot": 1, "policy": "lynx", "alpha": 2}, {"alpha": 2, "policy": "lynx", "lane": 8}]
    first, other = (Place.of({"lynx": each}, known) for each in given)
    assert (first.lane, first.slot, other.lane, other.slot) == (7, 1, 8, 0)
    assert first.acting is other.acting


@pytest.mark.parametrize("extra", [None, {}, {"lynx": {"policy": "lynx"}}, {"lynx": 3}])
def test_a_request_without_a_lane_is_refused(extra):
    with pytest.raises(ValueError, match="a request without extra_args"):
        Place.of(SimpleNamespace(extra_args=extra).extra_args, {})
