"""The command that a message gives is whole: what it types is the policy that was asked for."""

from __future__ import annotations

import pytest

from lynx_exp.routing import build_policy
from lynx_exp.routing.alignment import policy_digest
from lynx_exp.routing.calibration import COMMAND, NotMeasured, typed


@pytest.mark.parametrize(
    ("name", "parameters", "words"),
    [
        ("lynx", {}, "policy=lynx"),
        ("lynx", {"alpha": 2.0, "weights": "affine"}, "policy=lynx policy.weights=affine policy.alpha=2.0"),
        ("lynx", {"protect": "calibrated"}, "policy=lynx policy.protect=calibrated"),
        ("xshare", {"budget": 5}, "policy=xshare policy.budget=5"),
    ],
)
def test_words_are_those_of_the_policy(name: str, parameters: dict[str, object], words: str) -> None:
    import yaml

    policy = build_policy(name, **parameters)
    assert typed(policy) == words
    given = dict(word.removeprefix("policy.").split("=", 1) for word in words.split()[1:])
    again = build_policy(name, **{key: yaml.safe_load(value) for key, value in given.items()})
    assert policy_digest(again) == policy_digest(policy)


def test_a_model_is_put_before_the_policy() -> None:
    told = NotMeasured(f"none; {COMMAND} policy=lynx` makes one").of_model("model=lynx_tiny")
    assert str(told) == "none; `lynx-prepare calibrate model=lynx_tiny policy=lynx` makes one"
