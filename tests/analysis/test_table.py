"""Results, macro means and how they are printed."""

from __future__ import annotations

import io
import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_study import POLICIES, FakePolicy, strip_hardware
from rich.console import Console
from rich.text import Text

from analysis import columns, load, print_table
from analysis.compare import results
from analysis.macro import summary
from analysis.study import study as analysed
from analysis.table_formats import as_json, as_markdown
from analysis.verdicts import judged

Write = Callable[..., Path]


@pytest.fixture(scope="module")
def rows(study: Path) -> pd.DataFrame:
    return results(load(study))


def _one(rows: pd.DataFrame, **wanted: object) -> pd.Series:
    for name, value in wanted.items():
        rows = rows[rows[name] == value]
    assert len(rows) == 1
    return rows.iloc[0]


def test_one_row_per_cell_and_subtask_vanilla_first(rows: pd.DataFrame) -> None:
    assert len(rows) == 5 * 5 * 2
    for _, group in rows.groupby(["subtask", "batch_size"]):
        assert group["policy"].tolist() == ["vanilla", "no_drop", "lynx", "lynx_v1_latency", "lynx_v1_latency"]
        assert [label for label in group["policy_label"] if "keep" in label][0].endswith("=4)")


def test_numbers_agree_with_the_records(rows: pd.DataFrame, study: Path) -> None:
    records = load(study)
    row = _one(rows, subtask="mini_gsm8k", batch_size=4, policy_label="lynx_v1_latency(keep_experts=4)")
    own = records.samples[records.samples["cell_id"] == row["cell_id"]]
    assert row["score"] == pytest.approx(100 * own["score"].mean())
    vanilla = _one(rows, subtask="mini_gsm8k", batch_size=4, policy="vanilla")
    assert row["difference"] == pytest.approx(row["score"] - vanilla["score"])
    assert row["difference_low"] < row["difference"] < row["difference_high"]
    steps = records.steps[records.steps["cell_id"] == row["cell_id"]]
    assert row["active_experts"] == pytest.approx(np.average(steps["active_experts"], weights=steps["scored_rows"]))
    assert row["lanes"] == 8
    assert row["speedup_low"] <= row["speedup"] <= row["speedup_high"]
    assert vanilla["speedup"] == 1.0
    assert math.isnan(vanilla["speedup_low"])


def test_every_headline_agrees_with_its_samples(study: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        frame = results(load(study))
    assert caplog.messages == []
    assert set(frame.loc[frame["subtask"] == "mini_wmt16", "unit"]) == {"BLEU"}
    assert frame["difference"].notna().all()


def test_macro_means(rows: pd.DataFrame, study: Path) -> None:
    averaged = summary(load(study), rows)
    assert len(averaged) == 5 * 2
    row = _one(averaged, batch_size=16, series="lynx_v1_latency(keep_experts=4)")
    parts = rows[(rows["batch_size"] == 16) & (rows["series"] == row["series"])]
    assert row["difference"] == pytest.approx(parts["difference"].mean())
    assert parts["difference_low"].mean() <= row["difference_low"] < row["difference"] < row["difference_high"]
    assert row["difference_high"] <= parts["difference_high"].mean()
    assert (row["subtasks"], row["all_subtasks"], row["cells"]) == (5, 5, 4)
    cells = parts.drop_duplicates("cell_id")
    assert row["speedup"] == pytest.approx(math.prod(cells["speedup"]) ** (1 / 4))


def test_seeds_do_not_narrow_the_interval(cell: Write, tmp_path: Path) -> None:
    for seed in (0, 1):
        for policy in (POLICIES[0], POLICIES[5]):
            cell(policy=policy, seed=seed, documents=32)
    records = load(tmp_path)
    frame = results(records)
    row = _one(summary(records, frame), policy="lynx_v1_latency")
    assert row["cells"] == 2
    assert row["difference_se"] == pytest.approx(frame[frame["policy"] == "lynx_v1_latency"]["difference_se"].mean())


def test_settings_are_not_mixed(cell: Write, tmp_path: Path) -> None:
    cell(model="one")
    cell(model="two", dtype="bfloat16")
    records = load(tmp_path)
    averaged = summary(records, results(records))
    assert averaged["setting"].tolist() == ["model one, dtype float32", "model two, dtype bfloat16"]


def test_what_keeps_lanes_full_is_a_setting_and_none_of_a_lane_that_drains(cell: Write, tmp_path: Path) -> None:
    for more in ({"tail": "filler"}, {"tail": "drain"}, {"batching": "static", "waves": 9}):
        cell(**more)
    rows = analysed(tmp_path).rows
    settings = ["batching continuous, tail drain", "batching continuous, tail filler", "batching static"]
    assert rows["setting"].unique().tolist() == settings and len(rows) == len(rows.drop_duplicates("cell_id"))


def _printed(root: Path, width: int = 100, csv: Path | None = None, **more: Any) -> str:
    stream = io.StringIO()
    print_table(root, console=Console(file=stream, width=width), csv=csv, **more)
    return stream.getvalue()


def test_printed_table_fits_a_hundred_columns(study: Path) -> None:
    text = _printed(study, width=160, by="all")
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 100
    assert "mini_truthfulqa: mini_truthfulqa_mc1 · batch size 16" in text
    assert "lynx_v1_latency(keep_experts=4) " in text
    assert text.index("mini_gsm8k · batch size 4") < text.index("mini_gsm8k · batch size 16")
    assert text.index("mean over subtasks · batch size 16") < text.index("mini_wmt16 · batch size 4")


def test_it_begins_with_the_conclusion_and_the_means_alone(study: Path) -> None:
    text = _printed(study)
    assert text.startswith("→ batch size 4: ") and text.index("\n→ batch size 16: ") < text.index("mean over subtasks")
    assert "mini_gsm8k ·" not in text and "--by task" in text and len(text.splitlines()) < 60
    assert "±1, within" not in text and "±1, within" in _printed(study, legend=True)


def test_what_the_hardware_gave_has_a_table_of_its_own(study: Path, cell: Write, tmp_path: Path) -> None:
    text = _printed(study, legend=True)
    at = text.index("what the hardware gave · batch size 16   a plain copy: 20 GB/s")
    lines = text[at:].splitlines()
    assert lines[2].split() == ["policy", "/vanilla", "step", "GB/s", "copy", "/vanilla"]
    vanilla, averaged = lines[3].split(), summary(records := load(study), results(records))
    row = _one(averaged[averaged["batch_size"] == 16], policy="vanilla")
    assert vanilla[0] == "vanilla" and float(vanilla[4]) == round(100 * row["s_mbu"])
    assert float(vanilla[5]) == pytest.approx(1000 * row["j_per_token"], rel=0.01)
    assert "MoE-CAP's S-MBU against a measured rate" in text
    strip_hardware(cell())
    assert "hardware" not in _printed(tmp_path, legend=True) and "S-MBU" not in _printed(tmp_path, by="all")


def test_of_one_subtask_its_own_rows_stand_for_the_means(cell: Write, tmp_path: Path) -> None:
    for policy in (POLICIES[0], POLICIES[5]):
        cell(policy=policy)
    text = _printed(tmp_path)
    assert "mean over" not in text and text.count("\nvanilla ") == 2, "and what the hardware gave"


def test_only_what_is_asked_for(study: Path) -> None:
    text = _printed(study, by="all", policies=["lynx"], tasks=["mini_wmt16"])
    assert "mini_wmt16 · batch size 16" in text and "mini_gsm8k" not in text and "mean over" not in text
    assert "lynx(alpha=3, beta=2)" in text and "\nvanilla" in text and "top_k" not in text
    with pytest.raises(ValueError, match="--policy lynxx: not on record; did you mean lynx.; there are "):
        _printed(study, policies=["lynxx"])
    with pytest.raises(ValueError, match="--task gsm8k: not on record; did you mean mini_gsm8k"):
        _printed(study, tasks=["gsm8k"])


def test_sorted_by_a_column_vanilla_stays_first(study: Path) -> None:
    text = _printed(study, sort="speedup", tasks=["mini_gsm8k"])
    block = text[text.index("· batch size 16") :].splitlines()[3:]
    assert block[0].startswith("vanilla") and block[1].startswith("lynx_v1_latency(keep_experts=")
    with pytest.raises(ValueError, match="--sort tpot: must be one of policy, score"):
        _printed(study, sort="tpot")


def test_json_holds_every_number_and_markdown_the_blocks(study: Path) -> None:
    whole = json.loads(as_json(analysed(study)))
    assert len(whole["means"]) == 10 and len(whole["subtasks"]) == 50 and len(whole["conclusions"]) == 2
    assert whole["means"][0]["policy"] == "vanilla" and whole["means"][0]["difference_low"] is None
    lines = as_markdown(analysed(study)).splitlines()
    rows = [line for line in lines if line.startswith("| lynx(alpha=3, beta=2) |")]
    assert len(rows) == 2 and {line.count("|") for line in lines if line.startswith("|")} == {rows[0].count("|")}


def test_csv_holds_rows_and_means(study: Path, tmp_path: Path) -> None:
    text = _printed(study, csv=tmp_path / "deep" / "table.csv")
    assert "table_summary.csv" in text
    read = pd.read_csv(tmp_path / "deep" / "table.csv")
    assert len(read) == 50
    assert {"difference_low", "speedup_high", "active_experts", "policy_params"} <= set(read.columns)
    assert len(pd.read_csv(tmp_path / "deep" / "table_summary.csv")) == 10


def test_a_cell_without_vanilla_says_so(cell: Write, tmp_path: Path) -> None:
    cell(policy=POLICIES[6], repeats=0)
    text = _printed(tmp_path)
    assert "no vanilla" in text
    row = results(load(tmp_path)).iloc[0]
    assert math.isnan(row["difference"])
    assert math.isnan(row["step_ms"])


def test_phases_other_than_decode_are_named(cell: Write, tmp_path: Path) -> None:
    cell(policy=POLICIES[8], phases="both")
    assert "top_k(k=1) [both]" in _printed(tmp_path)


def test_settings_that_share_a_label_stay_apart(cell: Write, tmp_path: Path) -> None:
    for min_batch in (2, 4):
        params = {"alpha": 3.0, "min_batch": min_batch}
        cell(policy=FakePolicy(name="lynx", params=params, shown=("alpha",)), min_batch=min_batch)
    frame = results(load(tmp_path))
    assert set(frame["policy_label"]) == {"lynx(alpha=3)"}
    assert frame["series"].tolist() == ["lynx(alpha=3.0, min_batch=2)", "lynx(alpha=3.0, min_batch=4)"]


def test_scores_beyond_one_keep_their_unit(cell: Write, tmp_path: Path) -> None:
    folders = [cell(policy=policy) for policy in (POLICIES[0], POLICIES[5])]
    for folder in folders:
        samples = pq.read_table(folder / "samples.parquet").to_pandas()
        samples["score"] *= 30.0
        pq.write_table(pa.Table.from_pandas(samples), folder / "samples.parquet")
        metrics = json.loads((folder / "metrics.json").read_text())
        metrics["metrics"][0]["value"] = samples["score"].mean()
        (folder / "metrics.json").write_text(json.dumps(metrics))
    records = load(tmp_path)
    frame = results(records)
    assert set(frame["unit"]) == {"own"}
    assert frame["score"].tolist() == records.metrics.set_index("cell_id").loc[frame["cell_id"], "value"].tolist()
    assert frame["difference"].iloc[1] == pytest.approx(frame["score"].iloc[1] - frame["score"].iloc[0])
    assert summary(records, frame).empty
    assert "mean over subtasks" not in _printed(tmp_path)


def test_missing_subtasks_are_marked(cell: Write, tmp_path: Path) -> None:
    for task in ("mini_gsm8k", "mini_wmt16"):
        cell(task=task)
    cell(policy=POLICIES[8])
    assert "(1 of 2 subtasks)" in _printed(tmp_path)


def test_a_record_that_contradicts_its_samples_is_reported(
    cell: Write, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = cell()
    metrics = (folder / "metrics.json").read_text()
    value = load(tmp_path).metrics["value"].iloc[0]
    (folder / "metrics.json").write_text(metrics.replace(f'"value": {value}', '"value": 0.123'))
    with caplog.at_level(logging.WARNING):
        results(load(tmp_path))
    assert "12.3 on record" in caplog.text


def test_an_empty_folder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no finished cell"):
        print_table(tmp_path)


def test_a_mean_of_rows_and_of_full_steps_is_over_the_subtasks_that_decode(study: Path) -> None:
    rows = results(load(study))
    one = rows["subtask"] == rows["subtask"].iloc[0]
    rows.loc[one, ["live_rows", "full_steps"]] = np.nan  # choices that are scored in one pass have no step
    means = summary(load(study), rows)
    assert means[["live_rows", "full_steps"]].notna().all(axis=None)
    group = rows[~one & (rows["series"] == "vanilla") & (rows["batch_size"] == 16)]
    shown = means[(means["series"] == "vanilla") & (means["batch_size"] == 16)]
    assert shown["full_steps"].tolist() == pytest.approx([group["full_steps"].mean()])


@pytest.mark.parametrize("width", [80, 100, 160])
def test_a_table_without_styles_is_the_one_with_them(rows: pd.DataFrame, study: Path, width: int) -> None:
    """What is printed row by row where there is no terminal is what rich makes of the whole table."""
    judged_rows = judged(rows, 1.0).head(12).reset_index(drop=True)
    names = [
        "a",
        "a name of a policy that is longer than any column of the table leaves it room for",
        "漢" * 40,
        "a\nb",
    ]
    judged_rows.loc[: len(names) - 1, "series"] = names
    judged_rows.loc[5, ["guard", "score"]] = ["longer", 123456.0]
    for part in (judged_rows, judged_rows.head(0)):
        printed = []
        for show in (columns.print_table, _whole):
            file = io.StringIO()
            show(part, columns.RESULTS, Text("heading"), Console(file=file, width=width))
            printed.append(file.getvalue())
        assert printed[0] == printed[1]
    assert "heading" in printed[0]


def _whole(rows: pd.DataFrame, shown: Any, heading: Any, console: Console) -> None:
    console.print(columns.rich_table(rows, shown, heading))
