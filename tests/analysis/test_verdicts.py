"""What a row's difference is said to amount to, and what stands in the way of trusting any."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from fake_study import POLICIES
from rich.console import Console

from analysis import load, print_table, soundness, statistics
from analysis.compare import flat
from analysis.study import study as read_study
from analysis.verdicts import BETTER, FEW_LANES, NONE, OPEN, PERHAPS_BETTER, PERHAPS_WORSE, WITHIN, WORSE, judged

Write = Callable[..., Path]


def row(value: float, se: float, *, df: float = 60.0, policy: str = "lynx", **more: object) -> dict[str, object]:
    given = {"setting": "", "policy": policy, "paired": True, "unit": "%", "documents": 400, "higher_is_better": True}
    given |= {"lanes": 400, "batch_size": 1}
    return given | flat("difference", statistics.t_interval(value, se, df)) | more


def verdicts(*rows: dict[str, object], margin: float = 1.0) -> list[str]:
    return list(judged(pd.DataFrame(list(rows)), margin)["verdict"])


def test_the_four_verdicts() -> None:
    rows = (row(0.1, 0.3), row(-4.0, 0.8), row(4.0, 0.8), row(-1.5, 1.5))
    assert verdicts(*rows) == [WITHIN, WORSE, BETTER, OPEN]
    assert verdicts(row(-0.5, 0.1)) == [WITHIN], "certain, and small"


def test_nothing_is_said_of_what_cannot_be_compared() -> None:
    bare = math.nan
    rows = (row(0.0, bare, policy="vanilla"), row(bare, bare, paired=False), row(1.0, 0.1, unit="own"), row(1.0, bare))
    assert verdicts(*rows) == [NONE] * 4


def test_lower_may_be_better() -> None:
    assert verdicts(row(-4.0, 0.8, higher_is_better=False)) == [BETTER]


def test_many_rows_raise_the_bar() -> None:
    alone, many = [row(-2.5, 1.0)], [row(-2.5, 1.0)] + [row(0.0, 5.0)] * 9
    assert verdicts(*alone) == [WORSE]
    assert verdicts(*many)[0] == PERHAPS_WORSE
    assert verdicts(row(2.5, 1.0), *many[1:])[0] == PERHAPS_BETTER
    assert judged(pd.DataFrame(many))["documents_needed"].notna().all(), "undecided, all of them"
    apart = [one | {"setting": f"model {number}"} for number, one in enumerate(many)]
    assert verdicts(*apart)[0] == PERHAPS_WORSE, "one table, one family"
    beside = judged(pd.DataFrame(alone), beside=pd.DataFrame(many[1:]))
    assert beside["verdict"].tolist() == [PERHAPS_WORSE] and len(beside) == 1


def test_a_verdict_never_contradicts_the_interval_beside_it() -> None:
    """BLEU's -7.2 [-15.4,-1.8] was undecided once: the interval was a bootstrap's, the verdict a t test's."""
    ends = {"difference_low": -15.4, "difference_high": -1.8}
    assert verdicts(row(-7.2, 3.5, df=24.0, **ends)) == [WORSE]
    assert verdicts(row(-7.2, 3.5, df=24.0, **ends | {"difference_high": 0.1})) == [OPEN]
    assert verdicts(row(-94.0, 5.0, df=3.0, difference_low=-100.0, difference_high=-73.0)) == [WORSE]


def test_too_few_lanes_are_no_equivalence() -> None:
    """One lane in fifty that loses half its documents costs one point, and 25 lanes rarely hold one."""
    (found,) = judged(pd.DataFrame([row(0.1, 0.3, lanes=25, batch_size=16)])).to_dict("records")
    assert (found["verdict"], found["lanes_needed"]) == (FEW_LANES, 236)
    assert verdicts(row(0.1, 0.3, lanes=25, batch_size=16), margin=10.0) == [WITHIN]
    assert verdicts(row(0.1, 0.3, lanes=4, batch_size=1, documents=237)) == [WITHIN], "lanes filled 59 times each"
    assert verdicts(row(-4.0, 0.8, lanes=25)) == [WORSE], "what was seen was seen"


def test_only_open_rows_name_a_number_of_documents() -> None:
    frame = judged(pd.DataFrame([row(0.1, 0.3), row(-1.5, 1.5), row(-1.2, 0.6, df=4.0)]), 1.0)
    needed = statistics.documents_needed(statistics.t_interval(-1.5, 1.5, 60.0), 400, 1.0)
    assert frame["documents_needed"].isna().tolist() == [True, False, False]
    assert frame["documents_needed"].iloc[1] == needed > 400
    assert frame["documents_needed"].iloc[2] > 400, "never fewer than were not enough"


def test_rows_and_means_of_a_study_are_judged(study: Path) -> None:
    found = read_study(study)
    for frame in (found.rows, found.summary):
        assert (frame.loc[frame["policy"] == "vanilla", "verdict"] == NONE).all()
        assert set(frame["verdict"]) >= {NONE, OPEN}
        open_rows = frame[frame["verdict"] == OPEN]
        assert (open_rows["documents_needed"] > open_rows["documents"]).all()
    wide = read_study(study, margin=90.0)
    assert (wide.summary.loc[wide.summary["policy"] != "vanilla", "verdict"] == WITHIN).all()
    gsm8k = found.rows[(found.rows["subtask"] == "mini_gsm8k") & (found.rows["policy_label"] == "no_drop")].iloc[0]
    assert (gsm8k["better"], gsm8k["worse"], gsm8k["p_mcnemar"]) == (0, 0, 1)
    assert found.rows.loc[found.rows["subtask"] == "mini_wmt16", "p_mcnemar"].isna().all()


@pytest.mark.parametrize("margin", [0.0, -1.0, math.nan])
def test_a_margin_must_be_above_zero(margin: float, study: Path) -> None:
    with pytest.raises(ValueError, match="margin=.*must be above 0"):
        read_study(study, margin=margin)


def printed(root: Path) -> str:
    stream = io.StringIO()
    print_table(root, console=Console(file=stream, width=100), by="all")
    return stream.getvalue()


def test_the_table_prints_the_verdict_beside_each_row(study: Path) -> None:
    text = printed(study)
    assert "≥" in text and "two one-sided tests" in text
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 100


def provenance(folder: Path, **changes: str) -> None:
    numerics = {"packages.torch": "2.13.0", "torch.threads": 2, "torch.gpus": [], "cpu": "some CPU", "code": "c" * 64}
    numerics |= {f"packages.{name}": version for name, version in changes.items()}
    (folder / "provenance.json").write_text(json.dumps({"numerics": numerics}))


def test_like_environments_need_no_word(cell: Write, tmp_path: Path) -> None:
    for policy in POLICIES[:3]:
        provenance(cell(policy=policy))
    assert soundness.warnings(load(tmp_path)) == ()


def test_unlike_environments_are_named(cell: Write, tmp_path: Path) -> None:
    for policy in POLICIES[:3]:
        provenance(cell(policy=policy))
    provenance(cell(policy=POLICIES[4]), torch="2.12.0")
    warnings = soundness.warnings(load(tmp_path))
    assert warnings[0] == "unlike environments: packages.torch 2.13.0 (3 cells), 2.12.0 (1 cell)"
    assert warnings[1] == "unlike environments: 1 of 3 cells ran in another one than their vanilla"
    assert len(warnings) == 2
    assert f"! {warnings[0]}" in printed(tmp_path)


def test_settings_may_differ(cell: Write, tmp_path: Path) -> None:
    provenance(cell(device="cpu"))
    provenance(cell(device="cuda"), torch="2.13.0+cu130")
    assert soundness.warnings(load(tmp_path)) == ()


def test_unfinished_cells_are_counted_by_state(cell: Write, tmp_path: Path) -> None:
    cell()
    folders = [
        cell(policy=policy, state=state) for policy, state in ((POLICIES[2], "failed"), (POLICIES[3], "running"))
    ]
    (warning,) = soundness.warnings(load(tmp_path))
    assert warning.startswith("missing: 2 cells not finished (1 failed: MemoryError, 1 running): ")
    assert all(folder.name in warning for folder in folders)
    assert "! missing: 2 cells not finished" in printed(tmp_path)


def test_a_cell_that_says_nothing_is_named(cell: Write, tmp_path: Path) -> None:
    cell()
    folder = cell(policy=POLICIES[2])
    status = json.loads((folder / "status.json").read_text())
    status["invalid"] = ["mini_gsm8k: all 16 responses are empty"]
    (folder / "status.json").write_text(json.dumps(status))
    (warning,) = soundness.warnings(load(tmp_path))
    assert warning == f"not to be trusted: 1 cell: {folder.name} (mini_gsm8k: all 16 responses are empty)"


def test_programs_that_were_not_judged_are_counted():
    told = pd.DataFrame({"verdict": ["passed", None, "transport: a value above 32 MiB", '["passed", "transport: x"]']})
    assert soundness._not_judged(told) == ["2 of 4 programs ended in `transport`: not judged, counted as 0"]
    assert soundness._not_judged(told[:2]) == []
    told.loc[0, "verdict"] = "not started: Cannot allocate memory"
    assert soundness._not_judged(told[:2]) == ["1 of 1 program ended in `not started`: not judged, counted as 0"]


def test_to_choose_rows_afterwards_makes_none_surer(study: Path) -> None:
    """Table, report and recommendation say one verdict: that of a mean is over all means, whatever is shown."""
    whole = read_study(study)
    pd.testing.assert_frame_equal(whole.only().summary, whole.summary)
    shown = whole.only(policies=["lynx"]).summary
    by_name = whole.summary.set_index(["series", "batch_size"])["p_holm"]
    again = shown.set_index(["series", "batch_size"])["p_holm"]
    assert len(again) < len(by_name)
    pd.testing.assert_series_equal(again, by_name.loc[again.index])
    every = whole.only(tasks=sorted(set(whole.rows["task"])))
    pd.testing.assert_frame_equal(every.summary, whole.summary)
    some = sorted(set(whole.rows["task"]))[:1]
    task = whole.only(tasks=some).summary.set_index(["series", "batch_size"])["p_holm"]
    fewer = whole.only(policies=["lynx"], tasks=some).summary.set_index(["series", "batch_size"])["p_holm"]
    assert len(fewer) < len(task)
    pd.testing.assert_series_equal(fewer, task.loc[fewer.index])
