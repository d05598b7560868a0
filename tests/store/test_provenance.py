"""Where a cell came from: hardware as its own tool tells it, what may change numbers, and no names of anybody."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from lynx_exp.store import provenance as module
from lynx_exp.store.provenance import gpu_state, numerics, provenance, scrub

SMI = """#!/bin/sh
case "$1" in
  --query-gpu=*) echo "NVIDIA H100, 580.1, 1980 MHz, 2619 MHz, 700.00 W, Disabled, Enabled, 345 MHz" ;;
  --query-compute-apps=*) echo "{own}, 100 MiB"; echo "1, 7000 MiB" ;;
esac
"""


@pytest.fixture
def smi(tmp_path, monkeypatch):
    def install(script: str) -> None:
        path = tmp_path / "nvidia-smi"
        path.write_text(script)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
        gpu_state.cache_clear()

    yield install
    gpu_state.cache_clear()


def test_gpus_their_clocks_and_who_else_is_there(smi):
    smi(SMI.format(own=os.getpid()))
    assert gpu_state() == {
        "gpus": [
            dict(
                zip(
                    module.GPU_FACTS,
                    ("NVIDIA H100", "580.1", "1980 MHz", "2619 MHz", "700.00 W", "Disabled", "Enabled"),
                    strict=True,
                )
            )
        ],
        "clocks_sm": ["345 MHz"],
        "other_processes": 1,
        "other_memory": ["7000 MiB"],
    }


@pytest.mark.parametrize("script", ["#!/bin/sh\nexit 9\n", "#!/nowhere\n"])
def test_a_tool_that_fails_is_no_tool(script, smi):
    smi(script)
    assert gpu_state() is None


def test_what_may_change_numbers(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    model = {"id": "m", "digest": "d", "dtype": "float32", "device": "cpu", "experts_implementation": "eager"}
    found = provenance("c" * 64, model, {"task": "x"}, {"task": "commit"})
    assert json.loads(json.dumps(found)) == found
    flat = found["numerics"]
    assert flat["environment.OMP_NUM_THREADS"] == "3" and flat["code"] == "c" * 64 and flat["model.digest"] == "d"
    assert flat["packages.torch"] == found["packages"]["torch"]
    assert numerics({}) | {} == {key: None for key in numerics({})}, "older records have none of it"
    assert found["data_revisions"] == {"task": "commit"}
    for personal in (str(Path.home()), os.uname().nodename):
        assert personal not in json.dumps(found)


def test_command_lines_are_scrubbed(monkeypatch):
    home = str(Path.home())
    monkeypatch.setattr("sys.argv", [f"{home}/bin/lynx-exp", f"results={home}/runs"])
    assert provenance("c", {}, {})["command"] == ["lynx-exp", "results=~/runs"]
    assert scrub(f"{home}/x") == "~/x"
