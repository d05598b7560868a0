"""`benchmarks/gpu.py` without a card: what becomes of sections that end, fail or overrun; goals; and, slowly, all
sections on a CPU. No test waits for a time to pass: the clock is told what it is by what sections say."""

from __future__ import annotations

import ast
import fcntl
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.on_gpu import driver, goals, records
from benchmarks.on_gpu.sections import MINUTES, SECTIONS, Section

ROOT = Path(__file__).parents[1]
SAY = "import json; say = lambda **r: print(json.dumps(r), flush=True)\n"


class Clock:
    """Seconds; as many go by at each record as it is told."""

    def __init__(self, each: float = 1.0) -> None:
        self.now, self.each, self.seen = 0.0, each, 0

    def __call__(self) -> float:
        return self.now

    def look(self, results: dict[str, Any]) -> None:
        count = sum(len(own["records"]) for own in results["sections"].values())
        self.now += self.each * (count - self.seen)
        self.seen = count


def section(name: str, limit_s: float = 60.0, **more: Any) -> Section:
    return Section(name=name, module=name, limit_s=limit_s, **more)


def run(
    codes: dict[str, str], *sections: Section, clock: Clock, minutes: float = MINUTES, save: Callable = lambda _: None
) -> dict[str, Any]:
    results: dict[str, Any] = {}

    def saved(found: dict[str, Any]) -> None:
        clock.look(found)
        save(found)

    driver.run_sections(
        sections, results, saved, device="cpu", minutes=minutes, scale=1.0, clock=clock,
        command=lambda one, device: ["-c", SAY + codes[one.name]],
    )  # fmt: skip
    return results


def test_records_are_kept_as_they_come_and_written_whole(tmp_path: Path) -> None:
    out, seen = tmp_path / "results" / "card.json", []

    def save(found: dict[str, Any]) -> None:
        driver.write(out, found)
        seen.append(len(json.loads(out.read_text())["sections"]["a"]["records"]))

    code = "print('words'); say(case='x', ms=1.0); print('{no record}'); say(other=1); "
    code += "say(check='c', compared=2, failures=[])"
    results = run({"a": code}, section("a"), clock=Clock(), save=save)
    own = results["sections"]["a"]
    assert (
        own["state"] == "done" and seen == [0, 1, 2, 2] and [path.name for path in out.parent.iterdir()] == [out.name]
    )
    assert own["records"] == [{"case": "x", "ms": 1.0}, {"check": "c", "compared": 2, "failures": []}]
    assert driver.failed(results) == [] and (own["seconds"], own["limit_s"]) == (2.0, 60.0)


def test_a_section_that_overruns_is_cut_with_what_it_had_found(tmp_path: Path) -> None:
    """It says one thing, after which its time is over, and would go on for ever, as would what it has started."""
    lock = tmp_path / "lock"
    child = (
        f"import fcntl, signal; f = open({str(lock)!r}, 'w'); fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True)"
    )
    code = f"""
import signal, subprocess, sys
started = subprocess.Popen([sys.executable, "-c", {child + "; signal.pause()"!r}], stdout=subprocess.PIPE)
started.stdout.readline()
say(case="first")
signal.pause()
"""
    results = run({"a": code, "b": "say(case='second')"}, section("a", 10), section("b", 20), clock=Clock(each=11.0))
    first, second = results["sections"]["a"], results["sections"]["b"]
    assert first["state"] == "cut" and first["records"] == [{"case": "first"}] and first["returncode"] == -9
    assert second["state"] == "done" and second["limit_s"] == 19.0, "30 of both, less 11"
    assert driver.failed(results) == []
    with lock.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # waits for ever if its child still holds it


def test_what_a_section_leaves_behind_holds_nobody_up() -> None:
    """It has ended; a process that it started has its output still, and would have it for ever."""
    code = "import subprocess, sys; say(case='x'); "
    code += "subprocess.Popen([sys.executable, '-c', 'import signal; signal.pause()'])"
    own = run({"a": code}, section("a"), clock=Clock())["sections"]["a"]
    assert own["state"] == "done" and own["records"] == [{"case": "x"}]


def test_errors_and_failed_checks_are_named(tmp_path: Path) -> None:
    codes = {"a": "print('why'); raise SystemExit(3)", "b": "say(check='equal', compared=9, failures=['one', 'two'])"}
    results = run(codes, section("a"), section("b"), clock=Clock())
    assert results["sections"]["a"]["state"] == "failed" and results["sections"]["a"]["tail"] == ["why"]
    assert driver.failed(results) == ["a: ended with 3", "b: equal: 2 of 9 failed"]


def test_what_is_not_installed_is_passed_over_and_leaves_its_time(capsys: pytest.CaptureFixture[str]) -> None:
    codes = {"a": "say(case='x')", "b": "say(case='y')", "c": ""}
    absent = section("absent", 1000, needs=("json", "no_such_module"))
    results = run(codes, absent, section("a", 10), section("b", 10), section("c", 10), clock=Clock(5.0), minutes=0.1)
    found = results["sections"]
    assert found["absent"] == {"state": "passed over", "why": "not installed: no_such_module", "records": []}
    assert [found[name]["limit_s"] for name in "ab"] == [6.0, 1.0], "never more than a tenth of a minute in all"
    assert found["c"] == {"state": "cut", "why": "no time was left for it", "records": []}
    assert "absent: passed over" in capsys.readouterr().out


def test_what_one_leaves_over_the_next_may_use() -> None:
    results = run({"a": "say(case='x')", "b": ""}, section("a", 50), section("b", 20), clock=Clock(2.0))
    assert results["sections"]["b"]["limit_s"] == 68.0


def test_only_records_are_records() -> None:
    assert records.read('{"case": "x"}\n') == {"case": "x"} and records.read('{"benchmark": "y"}') is None
    assert records.read("{") is None and records.read("text") is None and records.read('["case"]') is None


def step(batch: int, policy: str, **numbers: Any) -> dict[str, Any]:
    return {"case": "step", "batch": batch, "name": policy, "policy": policy, "share": "", "layers": 48} | numbers


MADE_UP: dict[str, Any] = {
    "qwen3_30b_a3b": [
        step(16, "vanilla", step_ms=14.0),
        step(64, "vanilla", step_ms=30.0),
        step(1, "vanilla", step_ms=4.0, layers=12),
        *(step(16, policy, realised=0.9 - at / 100, speedup=1.2) for at, policy in enumerate(goals.POLICIES)),
        step(16, "no_drop", realised=0.99, speedup=0.99),
        {"case": "stream", "name": "vanilla", "layers": 48, "step_ms": 25.0},
        {"case": "stream", "name": "oea", "layers": 48, "step_ms": 26.0},
    ],
    "selection": [
        {"case": "layer", "policy": policy, "rows": rows, "experts": 128, "us": us}
        for policy, rows, us in (("router", 16, 99.0), ("oea", 16, 5.0), ("lynx", 64, 9.0), ("coverage", 16, 19.0))
    ],
    "experts": [{"case": "experts", "shape": "qwen3_30b_a3b", "rows": 16, "floor_us": 255.0, "few_rows_us": 265.0}],
    "mixtral_8x7b": [],
}


def test_goals_are_held_against_what_was_measured() -> None:
    sections = {name: {"state": "done", "records": found} for name, found in MADE_UP.items()}
    rows = {row["what"]: row for row in goals.table({"sections": sections})}
    assert len(rows) == len(goals.GOALS), "each has a name of its own"
    values = {what: (row["value"], row["met"]) for what, row in rows.items() if row["met"] is not None}
    assert values == {
        "Qwen3-30B-A3B, 48 layers, vanilla, batch 16: ms a step": (14.0, True),
        "Qwen3-30B-A3B, 48 layers, vanilla, batch 64: ms a step": (30.0, False),
        "xshare, oea, top_k, coverage, v1_latency, batch 16: realised, the least": (0.86, True),
        "no_drop, batch 16: speed of vanilla's": (0.99, True),
        "experts of Qwen3, 16 rows: share of the rate of a copy": (255 / 265, True),
        "selection, E 128, K 8, to 64 rows: us a layer, the most, without coverage": (9.0, False),
        "selection of coverage, 16 rows: us a layer": (19.0, True),
        "accuracy run, 256 rows, vanilla: ms a step": (25.0, True),
        "the same, the slowest policy over vanilla": (26 / 25, False),
    }
    words = dict(zip(rows, (line.split("  ")[-1] for line in goals.lines(list(rows.values()))[1:]), strict=True))
    assert {words[what] for what, (_, met) in values.items() if met} == {"met"}
    assert {words[what] for what, (_, met) in values.items() if not met} == {"MISSED"}
    assert set(words.values()) == {"met", "MISSED", "not measured"}
    sections["experts"] |= {"state": "cut", "records": []}
    assert any(line.endswith("  cut") for line in goals.lines(goals.table({"sections": sections})))
    assert max(len(row["what"]) for row in rows.values()) <= 74


def test_goals_and_limits_are_of_sections_that_there_are() -> None:
    names = [one.name for one in SECTIONS]
    assert len(set(names)) == len(names) and {goal.section for goal in goals.GOALS} <= set(names)
    assert sum(one.limit_s for one in SECTIONS) == 60 * MINUTES
    for one in SECTIONS:
        assert (ROOT / "benchmarks" / "on_gpu" / f"{one.module}.py").exists()


def test_sections_need_torch_transformers_and_triton_alone() -> None:
    """But that one which says what else it needs; and of the project what runs on these."""
    for path in sorted((ROOT / "benchmarks" / "on_gpu").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            found = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            found += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for module in found:
                root, *inner = module.split(".")
                known = {"torch", "transformers", "triton", "benchmarks", "lynx_exp", "__future__"}
                assert root in known | sys.stdlib_module_names, f"{path.name} imports {module}"
                own = inner[:2] if root == "lynx_exp" and inner else ["engine"]
                assert own[0] in ("engine", "models", "routing") or own == ["tasks", "mini"], f"{path.name}: {module}"


def gpu(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_dry_run_lists_sections_and_limits() -> None:
    whole = gpu("--dry-run")
    assert whole.returncode == 0
    assert [line.split()[:2] for line in whole.stdout.splitlines()] == [[s.name, f"{s.limit_s:.0f}"] for s in SECTIONS]
    (line,) = gpu("--dry-run", "--only", "tokens", "--minutes", "1.5").stdout.splitlines()
    assert line.split()[:2] == ["tokens", "90"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--only", "pie"), "--only pie: unknown; there are compile, qwen3_30b_a3b"),
        (("--minutes", "0"), "--minutes 0: must be"),
    ],
)
def test_bad_arguments_are_named(arguments: tuple[str, ...], said: str) -> None:
    ended = gpu(*arguments)
    assert ended.returncode == 2 and said in ended.stderr and "Traceback" not in ended.stderr


@pytest.mark.slow
def test_every_section_runs_from_end_to_end_on_a_cpu(tmp_path: Path) -> None:
    """The smallest shapes; about a minute and a half on two idle cores."""
    out = tmp_path / "cpu.json"
    ended = gpu("--device", "cpu", "--minutes", "20", "--out", str(out))  # on a machine with other work, too
    results = json.loads(out.read_text())
    assert ended.returncode == 0, ended.stdout[-3000:]
    assert {name: own["state"] for name, own in results["sections"].items()} == {s.name: "done" for s in SECTIONS}
    for name, own in results["sections"].items():
        assert own["records"], name
    steps = [record for record in results["sections"]["qwen3_30b_a3b"]["records"] if record.get("case") == "step"]
    assert len(steps) == 9 and all(record["gb_s"] > 0 and record["s_mbu"] > 0 for record in steps)
    cells = [record for record in results["sections"]["lynx-exp"]["records"] if record.get("case") == "cell"]
    assert len(cells) == 2 and all(record["s_mbu"] > 0 for record in cells)


def test_results_say_nothing_of_where_they_were_made() -> None:
    line = f"{driver.ROOT}/lynx_exp/a.py:3 and /opt/x/lib/python3.12/site-packages/torch/b.py:4: error"
    assert driver.without_places(line) == "lynx_exp/a.py:3 and site-packages/torch/b.py:4: error"
    for path in (ROOT / "benchmarks" / "results").glob("*.json"):
        assert not re.search(r'"/|[ ]/(work|opt|home|root|tmp)/', path.read_text()), path.name
