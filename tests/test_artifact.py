"""The artifact: every number of a page of results is in a claim, and a claim is held against what a run gives."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.artifact import __main__ as artifact
from benchmarks.artifact import measured, page, pages, repeat, verdicts
from benchmarks.artifact.claims import Claims, Experiment, TableClaim, TextClaim, load
from benchmarks.artifact.compare import Tolerance, compare
from benchmarks.artifact.pages import ROOT, Printed, numbers
from lynx_exp.store.files import write_json
from tests.analysis.fake_study import POLICIES, write_cell

RESULTS = [
    "docs/batching.md",
    *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs/results").glob("*.md")),
]
TO_DO = "name it in benchmarks/artifact/claims.yaml, in a claim or among `given`"


@pytest.mark.parametrize("name", RESULTS)
def test_every_number_of_a_page_of_results_is_in_a_claim(name: str) -> None:
    assert load().uncovered(name) == [], f"{name}: {TO_DO}"


def test_the_result_table_of_the_readme_and_the_simulations_are_claimed() -> None:
    claimed = [claim for one in load().experiments for claim in one.claims if isinstance(claim, TableClaim)]
    for name, first in (("README.md", "policy"), ("docs/statistics.md", "scenario")):
        whole = [one for one in pages.tables(pages.read(name)) if one.head[0] == first]
        assert whole and all(any((c.page, c.head) == (name, one.head) for c in claimed) for one in whole), TO_DO


def test_each_claim_finds_its_numbers() -> None:
    """Tables with their headings, sentences that occur once, tolerances of each kind, commands that can be typed."""
    found = load()
    names = [one.name for one in found.experiments]
    assert len(set(names)) == len(names) and [one.minutes for one in found.experiments] == sorted(
        one.minutes for one in found.experiments
    )
    for one in found.experiments:
        assert one.is_run == (not one.note), f"{one.name}: what is not run says why"
        for claim in one.claims:
            assert claim.claimed(), (one.name, claim)
            if isinstance(claim, TextClaim):
                assert len(claim.printed()) >= len(claim.got) and found.tolerance(claim)
                continue
            assert all(len(row) == len(claim.columns) for row in claim.table().rows)
            assert all(found.tolerance(claim, column) for _, _, column, _ in claim.cells())
        if one.is_run:
            assert one.claims and one.command.split()[0] in ("lynx-exp", "python")
            script = re.search(r"benchmarks/\w+\.py", one.command)
            assert script is None or (ROOT / script.group()).exists()


def test_the_page_is_made_from_the_list() -> None:
    text = pages.read(page.PAGE)
    assert page.with_claims(text, load()) == text, "run `make reference`"
    with pytest.raises(ValueError, match="must mark"):
        page.with_claims("nothing", load())


def test_every_task_has_a_note_of_its_licence() -> None:
    listed = re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| (`[^|]+) \|", pages.read("docs/tasks.md"), re.MULTILINE)))
    noted = set(re.findall(r"`(\w+)`", pages.read(page.PAGE).partition("### Data sets")[2].partition("### Inst")[0]))
    assert len(listed) > 8 and set(listed) - noted <= {"custom", "mix"}


def test_numbers_as_pages_print_them() -> None:
    found = [one.text for one in numbers("**-22.6 [-37.7, +16.2]** ±1, 1,281 of fig2, Qwen3-30B; 5.2x, 7.23 to 7.34")]
    assert found == ["-22.6", "-37.7", "+16.2", "±1", "1,281", "5.2", "7.23", "7.34"]
    assert Printed(text="1,281").value == 1281 and Printed(text="0.97").half_step == pytest.approx(0.005)
    assert list(pages.sentence_numbers("# 3\n| 4 |\n`5` and [6](7.md), 8\n```\n9\n```\n")) == ["6", "8"]


@given(st.floats(-1e4, 1e4), st.integers(0, 3))
def test_what_is_printed_is_equal_to_what_it_was_printed_from(value: float, digits: int) -> None:
    printed = Printed(text=f"{value:.{digits}f}")
    assert Tolerance().verdict(printed, value) == "equal"
    beyond = printed.value + 2.2 * printed.half_step
    assert Tolerance().verdict(printed, beyond) == "off" == Tolerance().verdict(printed, math.nan)
    assert Tolerance(absolute=2 * printed.half_step).verdict(printed, beyond) == "within"


@given(st.floats(0.01, 100), st.floats(1.01, 4), st.floats(0.05, 20))
def test_a_time_may_be_so_many_times_more_or_less(value: float, ratio: float, times: float) -> None:
    printed = Printed(text=f"{value:.4f}")
    got = printed.value * times
    verdict = Tolerance(ratio=ratio).verdict(printed, got)
    if abs(got - printed.value) > 2 * printed.half_step and abs(math.log(times)) - math.log(ratio) not in (0.0,):
        inside = 1 / ratio < got / printed.value < ratio
        assert verdict == ("within" if inside else "off")


def test_of_a_time_the_interval_is_not_compared_and_a_missing_number_is_off() -> None:
    cell = "1.21 [1.13, 1.30]"
    times = compare("a", cell, numbers(cell), [1.2, 9.0, 9.0], Tolerance(ratio=1.5, is_time=True))
    assert (times.verdict, times.numbers) == ("within", 1)
    assert compare("a", cell, numbers(cell), [1.2, 9.0, 9.0], Tolerance(ratio=1.5)).verdict == "off"
    points = compare("a", cell, numbers(cell), [1.21], Tolerance(absolute=1))
    assert points.verdict == "off" and points.got == "nothing to compare"


# --- a page and a study of our own


PAGE = """# Ours

| policy | active experts | points | speed-up |
| --- | --- | --- | --- |
{rows}

The control runs {control} experts.
"""


@pytest.fixture
def ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Experiment, Claims, Path]:
    """An experiment whose page prints what its study gave."""
    for policy in (POLICIES[0], POLICIES[1], POLICIES[5], POLICIES[6]):
        write_cell(tmp_path / "results", policy=policy, batch_size=16, documents=64)
    claim = TableClaim(
        page="ours.md",
        head=("policy", "active experts", "points", "speed-up"),
        columns=("series", "active_experts", "difference", "speedup"),
    )
    sentence = TextClaim(
        page="ours.md",
        text=r"runs ([\d.]+) experts",
        got=("means[series=no_drop].active_experts",),
        kind="active_experts",
    )
    one = Experiment(
        name="ours", says="so", command="lynx-exp", minutes=1, writes="study", claims=(claim, sentence), shows="no_drop"
    )
    tolerances = {
        "active_experts": Tolerance(relative=0.03),
        "difference": Tolerance(absolute=1),
        "speedup": Tolerance(ratio=1.3, is_time=True),
    }
    found = measured.StudyOutput(tmp_path / "results")
    means = found._means.set_index("series")
    rows = []
    for series, row in means.iterrows():
        points = (
            "0 ({score:.1f})"
            if series == "vanilla"
            else "{difference:+.1f} [{difference_low:+.1f}, {difference_high:+.1f}]"
        )
        bold = "**" if row["verdict"] == "worse" else ""
        label = f"{series} (control)" if series == "no_drop" else str(series).replace("keep_experts=", "")
        rows.append(
            f"| {label} | {row['active_experts']:.2f} | {bold}{points.format(**row)}{bold} | {row['speedup']:.2f} |"
        )
    control = means.loc["no_drop", "active_experts"]
    (tmp_path / "ours.md").write_text(PAGE.format(rows="\n".join(rows), control=f"{control:.2f}"))
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    return one, Claims(tolerances=tolerances, experiments=(one,), given={}), tmp_path


def ran(one: Experiment, folder: Path, **more: object) -> repeat.Ran:
    told = {"seconds": 60.0, "ended": date(2026, 1, 2), "status": 0, "last": "", "again": True} | more
    return repeat.Ran(experiment=one, folder=folder, **told)  # type: ignore[arg-type]


def test_a_study_is_held_against_its_page(ours: tuple[Experiment, Claims, Path]) -> None:
    one, list_of_claims, folder = ours
    outcome = verdicts.judge(list_of_claims, ran(one, folder))
    assert {each.verdict for each in outcome.compared} == {"equal"} and not outcome.is_off
    assert sum(each.numbers for each in outcome.compared) == 4 + 2 + 3 * 3 + 4 + 1, "experts, points, times, a sentence"
    assert list_of_claims.uncovered("ours.md") == []
    text = (folder / "ours.md").read_text()
    changed = text.replace(f"{re.search(r'no_drop .control. . ([0-9.]+)', text)[1]} |", "3.33 |", 1)  # type: ignore[index]
    (folder / "ours.md").write_text(changed.replace("lynx_v1_latency(8)", "lynx_v1_latency(9)"))
    outcome = verdicts.judge(list_of_claims, ran(one, folder))
    off = {each.where.partition(": ")[2]: each.got for each in outcome.compared if each.verdict == "off"}
    assert "no such row" in off["lynx_v1_latency(9), difference"] and outcome.is_off
    lines = list(verdicts.table([outcome]))
    assert lines[-1] == "1 experiment run, 0 not: off: ours" and any(line.endswith("OFF") for line in lines)


def test_other_weights_are_held_against_their_figure(ours: tuple[Experiment, Claims, Path]) -> None:
    _, listed, folder = ours
    (folder / "results/study/figures").mkdir(parents=True)
    (folder / "results/study/figures/weights.csv").write_text(
        "of,phases,weighing,ratio,ratio_low,ratio_high\ntop_k(k=1),decode,affine,0.84,0.744,0.97\n"
        "top_k(k=1),both,affine,0.9,0.8,1.0\ntop_k(k=1),decode,reference(3),1.34,1.1,1.62\n"
        "oea(k0=1),decode,affine,0.9,0.8,1.0\n"
    )
    (folder / "weights.md").write_text(
        "| policy | affine | reference(3) |\n| --- | --- | --- |\n"
        "| top_k(k=1) | **0.84 [0.74, 0.97]** | **1.35 [1.10, 1.62]** |\n"
        "| top_k(k=1) [both] | 0.90 [0.80, 1.00] | - |\n| oea | 0.90 [0.80, 1.00] | - |\n"
        "| oea(k0=1) | **0.90 [0.80, 1.00]** | - |\n"
    )
    claim = TableClaim(
        page="weights.md", head=("policy", "affine", "reference(3)"),
        columns=("series", "divergence_ratio@affine", "divergence_ratio@reference(3)"),
    )  # fmt: skip
    one = Experiment(name="w", says="", command="lynx-exp", minutes=1, writes="study", claims=(claim,))
    listed = replace(listed, tolerances={"divergence_ratio": Tolerance()}, experiments=(one,))
    found = verdicts.judge(listed, ran(one, folder)).compared
    assert [each.verdict for each in found] == ["equal", "off", "equal", "off", "off"]
    assert "0 such rows" in found[3].got and "bold is what differs from 1" in found[4].got


def test_a_label_is_short_for_series_of_the_same_phases() -> None:
    for label, series, is_short in (
        ("lynx(1, 2)", "lynx(alpha=1, beta=2)", True),
        ("reassign(fraction=0.05) [prefill]", "reassign(fraction=0.05, gate=none) [prefill]", True),
        ("reassign(fraction=0.05)", "reassign(fraction=0.05, gate=none) [prefill]", False),
        ("coverage [both]", "coverage(tolerance=0.2)", False),
        ("top_k(k=1)", "top_k(k=2)", False),
    ):
        assert measured._is_short(label, series) is is_short, label


def test_a_benchmark_is_held_against_its_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    (tmp_path / "ours.md").write_text("ours is 2.0x faster, at 16\n1.5x, and costs 25 %.\n")
    claim = TextClaim(
        page="ours.md", kind="time", text=r"is ([\d.]+)x faster, at 16 ([\d.]+)x, and costs ([\d.]+) %",
        got=("ratio", "cases[batch=16,name=a].at.1", "cost(cases[batch=4].ratio)"),
    )  # fmt: skip
    one = Experiment(name="ours", says="", command="python x", minutes=1, writes="json", claims=(claim,))
    listed = Claims(tolerances={"time": Tolerance(ratio=1.2)}, experiments=(one,), given={})
    line = {"ratio": 2.1, "cases": [{"batch": 16, "name": "a", "at": [0, 4.5]}, {"batch": 4, "ratio": 0.8}]}
    found = [each.verdict for each in verdicts.judge(listed, ran(one, tmp_path, last=json.dumps(line))).compared]
    assert found == ["within", "off", "equal"]
    failed = verdicts.judge(listed, ran(one, tmp_path, status=1, last="why"))
    assert failed.is_off and "ended with 1: why" in failed.why
    assert verdicts.judge(listed, ran(one, tmp_path, last="no JSON")).is_off


def test_what_a_gpu_gave_is_held_against_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    (tmp_path / "ours.md").write_text("a step of 16.2 ms, and 14.1 at 1\n")
    got = ("qwen3[case=step,batch=16,name=vanilla].step_ms", "qwen3[case=step,batch=1].step_ms")
    claim = TextClaim(page="ours.md", kind="time", text=r"of ([\d.]+) ms, and ([\d.]+) at 1", got=got)
    one = Experiment(
        name="gpu", says="", command="x", minutes=1, writes="json", claims=(claim,), needs="gpu", note="needs a GPU: x",
        record="card.json",
    )  # fmt: skip
    steps = [
        {"case": "step", "batch": batch, "name": "vanilla", "step_ms": ms} for batch, ms in ((16, 16.18), (1, 4.5))
    ]
    (tmp_path / "card.json").write_text(json.dumps({"sections": {"qwen3": {"records": [{"case": "built"}, *steps]}}}))
    listed = Claims(tolerances={"time": Tolerance()}, experiments=(one,), given={})
    outcome = verdicts.of_record(listed, one)
    assert [each.verdict for each in outcome.compared] == ["equal", "off"] and outcome.is_off
    assert "by card.json; needs a GPU: x" in outcome.line
    (tmp_path / "card.json").unlink()
    assert verdicts.of_record(listed, one).is_off
    assert not verdicts.of_record(listed, replace(one, record="", claims=())).is_off


def test_what_was_run_is_kept_and_what_failed_is_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "count.py"
    script.write_text(
        "import pathlib, sys\np = pathlib.Path(sys.argv[1]); n = int(p.read_text()) + 1 if p.exists() else 1\n"
        "p.write_text(str(n)); print('begun'); print('{\"ratio\": %d}' % n); sys.exit(n == 1)\n"
    )
    one = Experiment(
        name="count", says="", command=f"python {script} {tmp_path / 'n'}", minutes=1, writes="json", claims=()
    )
    said: list[str] = []
    seen = [
        repeat.repeat(one, tmp_path / "out", again=again, on_line=said.append) for again in (False, False, False, True)
    ]
    assert [(run.status, run.last, run.again) for run in seen] == [
        (1, '{"ratio": 1}', True),
        (0, '{"ratio": 2}', True),
        (0, '{"ratio": 2}', False),
        (0, '{"ratio": 3}', True),
    ]
    assert said.count("begun") == 3 and (tmp_path / "out/log.txt").read_text().count("begun") == 3
    monkeypatch.setattr(repeat, "code_digest", lambda: "another code")
    assert repeat.repeat(one, tmp_path / "out", again=False, on_line=said.append).again


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        artifact.main(["--only", "demoo"])
    assert stopped.value.code == 2 and "--only demoo: unknown; there are bundled_model" in capsys.readouterr().err
    assert artifact.main(["--list", "--out", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(load().experiments)
    assert " ".join(next(line for line in lines if line.startswith("gpu ")).split()).endswith(
        "needs a GPU python benchmarks/gpu.py"
    )
    assert artifact.main(["--compare", "--only", "demo", "gpu", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "1 experiment run, 1 not: nothing is off"
    (tmp_path / "demo").mkdir()
    write_json(tmp_path / "demo/done.json", {"asked": "", "status": 0, "seconds": 1.0, "last": ""})
    assert artifact.main(["--compare", "--only", "demo", "--out", str(tmp_path)]) == 1
    assert "its output cannot be read" in capsys.readouterr().out


def test_the_table_of_simulations_is_read_in_the_order_of_the_scenarios() -> None:
    """With what the page prints as the benchmark's cases every number is equal, and with two of them exchanged none."""
    (one,) = (one for one in load().experiments if one.name == "intervals")
    (claim,) = one.claims
    assert isinstance(claim, TableClaim)
    cases = []
    for row, heading in zip(claim.table().rows, claim.table().is_bold, strict=True):
        if not heading:
            ends = (number.value / 100 for number in numbers(row[2]))
            cases.append({"scenario": row[0]} | dict(zip(("observed", "low", "high"), ends, strict=True)))
    found = list(measured.compared(load(), one, measured.JsonOutput(json.dumps({"cases": cases}))))
    assert {each.verdict for each in found} == {"equal"} and len(found) == len(cases) > 100
    cases[3], cases[4] = cases[4], cases[3]
    found = list(measured.compared(load(), one, measured.JsonOutput(json.dumps({"cases": cases}))))
    assert sum(each.verdict == "off" for each in found) == 2
