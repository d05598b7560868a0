"""The simulations of every interval run, and their table and last line agree."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_all_scenarios_run() -> None:
    command = [sys.executable, "benchmarks/intervals.py", "--quick"]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True
    )
    heading, *rows, last = done.stdout.splitlines()
    assert heading.split() == ["scenario", "nominal", "observed", "(95", "%)", "verdict"]
    found = json.loads(last)
    assert found["benchmark"] == "intervals" and found["met"] == (found["ratio"] >= found["goal"])
    assert len(found["cases"]) == len(rows) > 80
    for row, case in zip(rows, found["cases"], strict=True):
        assert row.startswith(f"{case['group']}: {case['scenario']}") and row.endswith(case["verdict"])
        assert 0 <= case["low"] <= case["observed"] <= case["high"] <= 1
        if case["nominal"] == "95 %":
            assert case["verdict"].startswith("short") == (case["observed"] < 0.93)
        elif case["nominal"] == "<= 5 %":
            assert case["verdict"].startswith("short") == (case["observed"] > 0.06)
    groups = {"differences", "equivalence", "means", "bleu", "rare lanes", "plans", "speed-ups", "recommend"}
    assert {case["group"] for case in found["cases"]} == groups
