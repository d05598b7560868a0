"""Calibrated policies in the plugin: this model's own file serves, another model's is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lynx_exp.models import fingerprint
from lynx_exp.vllm_plugin.plugin_settings import Acting
from tests.routing.laws import calibration
from tests.vllm.fake_vllm import TOP_K


@pytest.mark.parametrize("policy", ["sere", "static_mask"])
def test_a_calibration_of_another_model_is_refused(start, policy):
    with pytest.raises(ValueError, match=f"{policy}: calibration=auto: made for a"):
        start({"policy": policy})


def test_with_this_models_calibration_its_experts_alone_serve(start, tmp_path):
    engine = start({"lanes": True})
    worker = engine.worker.lynx_bind.__self__
    layers = worker._layers
    facts = calibration(layers[0].num_experts, TOP_K, len(layers))
    replace(facts, fingerprint=fingerprint(layers)).save(tmp_path / "mine.safetensors")
    facts.save(tmp_path / "other.safetensors")
    asked = {"policy": "static_mask", "keep_experts": TOP_K}
    with pytest.raises(ValueError, match="made for another model"):
        engine.worker.lynx_bind(asked | {"calibration": str(tmp_path / "other.safetensors")})
    acting = Acting.parse(asked | {"calibration": str(tmp_path / "mine.safetensors")}, "here")
    policy, _ = worker._bind(acting)
    kept = policy.kept(torch.device("cpu"))
    assert kept.sum(-1).tolist() == [TOP_K] * len(layers)
