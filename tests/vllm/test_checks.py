"""Versions and configurations that are refused before any model loads."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from lynx_exp.vllm_plugin.plugin_settings import Settings
from lynx_exp.vllm_plugin.requirements import check_config, check_version
from tests.vllm.fake_vllm import config

LYNX, LANES = Settings.parse({"policy": "lynx"}), Settings.parse({"lanes": True})


@pytest.mark.parametrize("version", ["0.32.0", "0.32.0+cpu", "0.32.1rc1", "0.33.2"])
def test_versions_inside_the_window(version):
    check_version(version)


@pytest.mark.parametrize("version", ["0.31.9", "0.34.0", "1.0", "dev", "0.10.1"])
def test_versions_outside(version):
    with pytest.raises(ValueError, match=f"vllm={version}: this plugin knows the routers of vllm>=0.32,<0.34"):
        check_version(version)


@pytest.mark.parametrize(
    ("fields", "settings", "says"),
    [
        ({"speculative_config": SimpleNamespace()}, LYNX, "speculative_config"),
        ({"pipeline_parallel_size": 2}, LYNX, "pipeline_parallel_size=2: must be 1"),
        ({"prefill_context_parallel_size": 2}, LYNX, "prefill_context_parallel_size"),
        ({"use_ubatching": True}, LYNX, "enable_dbo"),
        ({"use_sequence_parallel_moe": True}, LYNX, "sequence-parallel"),
        ({"data_parallel_size": 2}, LANES, "data_parallel_size=2: lanes=true needs 1"),
        ({"use_v2_model_runner": True}, LANES, "VLLM_USE_V2_MODEL_RUNNER: lanes=true needs 0"),
        ({"async_scheduling": True}, LANES, "async_scheduling=True"),
        ({"enforce_eager": False, "device_type": "cuda"}, LANES, "enforce_eager=True"),
    ],
)
def test_configurations_that_are_refused(fake, fields, settings, says):
    check_config(config(), settings)
    with pytest.raises(ValueError, match=says) as error:
        check_config(config(**fields), settings)
    assert str(error.value).startswith("additional_config.lynx: ") and "\n" not in str(error.value)


def test_what_only_lanes_forbid(fake):
    check_config(config(data_parallel_size=2, async_scheduling=True, enforce_eager=False, device_type="cuda"), LYNX)
    check_config(config(enforce_eager=False), LANES)  # compiled on a CPU: no graph holds the rows of a step


@pytest.mark.parametrize(
    ("name", "value"), [("VLLM_BATCH_INVARIANT", True), ("VLLM_MOE_ROUTING_SIMULATION_STRATEGY", "uniform_random")]
)
def test_variables_that_contradict_a_policy(fake, name, value):
    setattr(sys.modules["vllm.envs"], name, value)
    with pytest.raises(ValueError, match=name):
        check_config(config(), LYNX)


def test_the_process_that_starts_vllm_refuses_it(fake):
    from lynx_exp.vllm_plugin import register

    register()
    make = sys.modules["vllm.engine.arg_utils"].EngineArgs
    make(config()).create_engine_config()
    with pytest.raises(ValueError, match="did you mean lynx"):
        make(config(additional_config={"lynx": {"policy": "lnyx"}})).create_engine_config()
    fake.__version__ = "0.31.0"
    with pytest.raises(ValueError, match="vllm=0.31.0"):
        make(config(additional_config={"lynx": {"policy": "lynx"}})).create_engine_config()
    make(config(additional_config={"other": 1})).create_engine_config()


def test_the_backend_without_vllm_is_refused_in_one_line(monkeypatch):
    from lynx_exp.vllm_backend import startup as opening

    monkeypatch.setattr(opening, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"backend=vllm: vllm is not installed here; `pip install '\.\[vllm\]'`"):
        opening.check_installed()


def test_the_backend_needs_an_engine_that_it_can_step(fake, monkeypatch):
    from lynx_exp.vllm_backend import open_llm
    from lynx_exp.vllm_backend import startup as opening

    monkeypatch.setattr(opening, "check_installed", lambda: None)
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    for name in ("VLLM_USE_V2_MODEL_RUNNER", "VLLM_NO_USAGE_STATS", "VLLM_LOGGING_LEVEL"):
        monkeypatch.setenv(name, "0")
    with pytest.raises(ValueError, match="VLLM_ENABLE_V1_MULTIPROCESSING=1: backend=vllm steps the engine itself"):
        open_llm("lynx_tiny", dtype="float32", device="cpu", max_rows=4)
