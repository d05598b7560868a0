"""Where a cell came from: hardware as its own driver tells it, what may change numbers, and no names of anybody."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pynvml
import pytest

from lynx_exp.store.gpu_state import gpu_state
from lynx_exp.store.provenance import numerics, provenance, scrub


class Process:
    def __init__(self, pid: int, usedGpuMemory: int | None) -> None:
        self.pid, self.usedGpuMemory = pid, usedGpuMemory


def unsupported(*_: object) -> None:
    raise pynvml.NVMLError_NotSupported()


@pytest.fixture
def driver(monkeypatch):
    """Answers in place of the driver's; only functions that the real `pynvml` has can be given one."""

    def install(**answers: object) -> None:
        for name, answer in answers.items():
            monkeypatch.setattr(pynvml, f"nvml{name}", answer if callable(answer) else lambda *_, it=answer: it)
        gpu_state.cache_clear()

    clocks = {pynvml.NVML_CLOCK_SM: 1980, pynvml.NVML_CLOCK_MEM: 2619}
    processes = [Process(os.getpid(), 100 * 2**20), Process(-1, 7000 * 2**20), Process(-2, None)]
    install(
        Init=None, Shutdown=None, DeviceGetCount=1, DeviceGetHandleByIndex="gpu", DeviceGetName="NVIDIA H100",
        SystemGetDriverVersion="580.1", DeviceGetMaxClockInfo=lambda _, clock: clocks[clock],
        DeviceGetPowerManagementLimit=700_000, DeviceGetMigMode=[0, 0], DeviceGetEccMode=[1, 1],
        DeviceGetClockInfo=345, DeviceGetComputeRunningProcesses=processes,
    )  # fmt: skip
    yield install
    gpu_state.cache_clear()


FACTS = {
    "name": "NVIDIA H100",
    "driver_version": "580.1",
    "clocks.max.sm": "1980 MHz",
    "clocks.max.mem": "2619 MHz",
    "power.limit": "700.00 W",
    "mig.mode.current": "Disabled",
    "ecc.mode.current": "Enabled",
}


def test_gpus_their_clocks_and_who_else_is_there(driver):
    assert gpu_state() == {
        "gpus": [FACTS],
        "clocks_sm": ["345 MHz"],
        "other_processes": 2,
        "other_memory": ["7000 MiB", "[N/A]"],
    }


def test_what_a_card_does_not_have_hides_nothing_else(driver):
    driver(DeviceGetMigMode=unsupported, DeviceGetEccMode=unsupported)
    state = gpu_state()
    assert state is not None
    assert state["gpus"] == [FACTS | {"mig.mode.current": "[N/A]", "ecc.mode.current": "[N/A]"}]


def fail(*_: object) -> None:
    raise pynvml.NVMLError_Unknown()


@pytest.mark.parametrize("function", ["Init", "DeviceGetCount", "DeviceGetName"])
def test_a_driver_that_fails_is_no_driver(function, driver):
    driver(**{function: fail})
    assert gpu_state() is None


def test_a_driver_that_lists_no_processes_tells_the_rest(driver):
    driver(DeviceGetComputeRunningProcesses=fail)
    state = gpu_state()
    assert state is not None and (state["gpus"], state["other_processes"]) == ([FACTS], 0)


def test_without_the_package_nothing_is_known(driver, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
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
