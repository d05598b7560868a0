"""The figures of the paper, drawn anew: their numbers from the records, and how every figure must look."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from fake_paper import SECTIONS_MS, STRENGTHS, TASKS, reassign, write_paper
from fake_study import EXPERTS, LAYERS, POLICIES, TOP_K, FakePolicy, write_cell
from matplotlib.figure import Figure
from scipy import stats

from analysis import write_figures
from analysis.figures import NAMES, PAPERS, confidence, style
from analysis.figures.fig9 import layers_of
from analysis.latex import booktabs, escape, number
from analysis.study import study as read_study
from analysis.study_points import merged
from analysis.token_tables import expert_counts
from lynx_exp.results.main import main
from tests.quick_figures import printed_figures

PAPER = ("fig2", "fig3", "fig4", "fig6", "confidence", "fig7", "fig8", "fig9", "fig17", "fig18")
Write = Callable[..., Path]


@pytest.fixture(scope="module")
def paper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_paper(tmp_path_factory.mktemp("paper"))
    for policy, mixing in ((p, m) for p in (POLICIES[0], POLICIES[3]) for m in ("shuffled", "separate")):
        write_cell(root, policy=policy, task="mix", mixing=mixing, batch_size=8, documents=32, repeats=0)
    matched = FakePolicy(name="oea", params={"k0": 1}, keep=0.6, harm=0.02)
    for task in TASKS:
        write_cell(root, policy=matched, task=task, batch_size=8, documents=32, repeats=0, kl=0.01)
    return root


@pytest.fixture(scope="module")
def seen() -> list[tuple[str, Figure, list[str]]]:
    """(name, figure, lines said on it) of every figure that `drawn` drew."""
    return []


@pytest.fixture(scope="module")
def drawn(paper: Path, seen: list[Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    out = tmp_path_factory.mktemp("drawn")
    plain_save, plain_note = style.save, style.note
    said: list[str] = []

    def note(fig: Figure, lines: Any) -> None:
        said[:] = lines
        plain_note(fig, said)

    def save(fig: Figure, folder: Path, name: str, *more: Any) -> list[Path]:
        written = plain_save(fig, folder, name, *more)
        fig.set_dpi(300)
        fig.draw_without_rendering()  # in the style that it was drawn in
        seen.append((name, fig, list(said)))
        return written

    with pytest.MonkeyPatch.context() as patch, printed_figures():
        patch.setattr(style, "save", save)
        patch.setattr(style, "note", note)
        write_figures(paper, out=out)
    yield out


def test_every_figure_is_there(drawn: Path) -> None:
    found = {path.stem for path in drawn.glob("*.pdf")}
    general = {"pareto_speedup", "pareto_active", "active_vs_batch", "step_vs_active", "matched_active", "mixing"}
    assert found >= {*PAPER, *general}
    assert {path.suffix for path in drawn.glob("table2_*")} == {".tex", ".csv"}
    assert set(NAMES) >= {*PAPER, "table2"}


def test_every_axis_names_its_quantity_and_unit(drawn: Path, seen: list[tuple[str, Figure, list[str]]]) -> None:
    for name, fig, _ in seen:
        whole = [text.get_text() for text in (getattr(fig, f"_sup{axis}label") for axis in "xy") if text is not None]
        labels = {"x": [axes.get_xlabel() for axes in fig.axes], "y": [axes.get_ylabel() for axes in fig.axes]}
        labels["y"] += [text for text in whole if text]
        for direction, texts in labels.items():
            given = [text for text in texts if text]
            assert given, f"{name}: no {direction} axis is labelled"
            for text in given:
                assert re.fullmatch(r".{3,}\(.+\)", text, re.DOTALL), f"{name}: {text!r} lacks a quantity or a unit"


def test_what_is_on_the_page_stays_on_it(drawn: Path, seen: list[tuple[str, Figure, list[str]]]) -> None:
    """No text leaves the figure, no panel is squeezed to nothing."""
    fig: Any
    for name, fig, _ in seen:
        renderer, page = fig._get_renderer(), fig.bbox
        for axes in fig.axes:
            assert axes.get_window_extent(renderer).height > 0.3 * 300, name
            for text in (axes.title, axes._left_title, axes.xaxis.label, axes.yaxis.label):
                if text.get_text():
                    box = text.get_window_extent(renderer)
                    inside = min(box.x0, box.y0) >= -3 and box.x1 <= page.x1 + 3 and box.y1 <= page.y1 + 3
                    assert inside, (name, text)


def test_fonts_are_embedded_outlines(drawn: Path) -> None:
    for file in drawn.glob("*.pdf"):
        pdf = file.read_bytes()
        descriptors = pdf.count(b"/Type /FontDescriptor")
        assert b"/Type3" not in pdf and descriptors and pdf.count(b"/FontFile2") == descriptors, file.name
        assert b"CreationDate" not in pdf and b"ModDate" not in pdf


def test_same_records_same_bytes_in_another_process(paper: Path, drawn: Path, tmp_path: Path) -> None:
    """Another hash seed, folder, date and time zone; of each kind of drawing one."""
    environment = os.environ | {"PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo", "SOURCE_DATE_EPOCH": "86400"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    names = ("pareto", "fig3", "confidence", "fig9", "fig18", "table2")
    code = f"from analysis import write_figures\nfrom analysis.study import study\nread = study({str(paper)!r})\n"
    code += f"for name in {names}: write_figures({str(paper)!r}, out={str(tmp_path)!r}, only=name, loaded=read)"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True, capture_output=True)
    files = sorted(path.name for path in tmp_path.iterdir())
    assert {file.partition(".")[0].partition("_")[0] for file in files} == set(names)
    for file in files:
        assert (tmp_path / file).read_bytes() == (drawn / file).read_bytes(), file


def numbers(drawn: Path, name: str) -> pd.DataFrame:
    return pd.read_csv(drawn / f"{name}.csv")


def test_latency_against_active_experts(drawn: Path) -> None:
    prefill = numbers(drawn, "fig2").query("phase == 'prefill'")
    assert sorted(prefill["active"]) == [4, 8, 16, 16]
    assert prefill["slope"].unique() == pytest.approx([1.0]) and prefill["intercept"].iloc[0] == pytest.approx(
        20, abs=0.1
    )
    decode = numbers(drawn, "fig2").query("phase == 'decode'")
    assert decode["slope"].iloc[0] == pytest.approx(0.35, rel=0.1)


def test_expert_usage_adds_up(drawn: Path, paper: Path) -> None:
    frame = numbers(drawn, "fig3")
    assert frame.groupby(["subtask", "steps"])["share"].sum().tolist() == pytest.approx([1.0] * 4)
    one = frame[frame["steps"] == "one"]
    assert (one["tokens"] == 8).all()
    assert one["chance"].unique() == pytest.approx([np.sqrt((EXPERTS - TOP_K) / (TOP_K * 8))])
    whole = frame[(frame["steps"] == "all") & (frame["subtask"] == "mini_gsm8k")]
    (cell,) = (path.parent for path in paper.rglob("vanilla-mini_gsm8k*/tokens.parquet"))
    tokens = pq.read_table(cell / "tokens.parquet").to_pandas()
    counts = tokens[tokens["layer"] == LAYERS // 2 + 1 * (LAYERS % 2 == 0)]["experts"].explode().value_counts()
    who, table = expert_counts(cell, EXPERTS)
    middle = table[(who["layer"] == 1).to_numpy()].sum(axis=0)
    assert middle.sum() == counts.sum() == 32 * 9 * TOP_K
    assert whole["share"].tolist() == pytest.approx((middle / middle.sum()).tolist())


def test_chance_is_what_uniform_routing_shows() -> None:
    rng = np.random.default_rng(0)
    draws = np.stack(
        [rng.permuted(np.tile(np.arange(EXPERTS), (16, 1)), axis=1)[:, :TOP_K].ravel() for _ in range(4000)]
    )
    counts = np.stack([np.bincount(draw, minlength=EXPERTS) for draw in draws])
    spread = np.sqrt((counts.var(axis=1) / counts.mean(axis=1) ** 2).mean())
    assert spread == pytest.approx(np.sqrt((EXPERTS - TOP_K) / (TOP_K * 16)), rel=0.03)


def test_phases_at_equal_strength(drawn: Path) -> None:
    frame = numbers(drawn, "fig4")
    assert set(frame["phases"]) == {"prefill", "decode", "both"}
    assert len(frame) == len(TASKS) * len(STRENGTHS) * 3
    for phases, part in frame.groupby("phases"):
        assert np.allclose(sorted(part["share"].unique()), 100 * np.array(STRENGTHS), atol=2), phases
    assert (frame.sort_values("share").groupby("subtask")["difference"].last() < -20).all()


def test_confidence_sides(drawn: Path) -> None:
    frame = numbers(drawn, "fig6")
    most = (EXPERTS - 1) / EXPERTS**2
    assert sorted(frame["threshold"].unique()) == pytest.approx([1 / most, 3 / most])
    assert set(frame["side"]) == {"high", "low"} and len(frame) == 2 * 2 * len(TASKS)


def test_correlation_by_layer(drawn: Path) -> None:
    frame = numbers(drawn, "confidence")
    assert sorted(frame["layer"].unique()) == list(range(LAYERS))
    assert frame["correlation"].tolist() == pytest.approx([1.0] * len(frame))  # made so
    assert (frame["kl_bin_5"] > frame["kl_bin_1"]).all()


def test_spearman_is_scipys_with_an_interval_that_knows_lanes() -> None:
    rng = np.random.default_rng(3)
    lanes = np.repeat(np.arange(20), 30)
    level = rng.normal(size=20)[lanes]
    x, y = level + rng.normal(size=600), level + rng.normal(size=600)
    value, low, high = confidence.spearman(x, y, lanes)
    assert value == pytest.approx(stats.spearmanr(x, y).statistic)
    alone = confidence.spearman(x, y, np.arange(600))
    assert low < value < high and high - low > 1.3 * (alone[2] - alone[1])
    assert np.isnan(confidence.spearman(x, y, np.zeros(600))[1:]).all()


def test_ranks(drawn: Path) -> None:
    denied, kept = numbers(drawn, "fig7"), numbers(drawn, "fig8")
    assert sorted(denied["rank"].unique()) == list(range(TOP_K)) and sorted(kept["ranks"].unique()) == [1, 2]
    assert denied[denied["rank"] == 0]["difference"].mean() < denied[denied["rank"] == 1]["difference"].mean()
    assert (kept.loc[kept["ranks"] == TOP_K, "difference"] == 0).all()


def test_layer_groups(drawn: Path) -> None:
    frame = numbers(drawn, "fig9")
    what = frame.groupby("what")["group"].apply(lambda groups: sorted(map(str, groups.dropna().unique())))
    assert what["all layers but these disturbed"] == what["these layers alone disturbed"] == ["0", "1", "2"] or [
        group.rstrip(".0") or "0" for group in what["these layers alone disturbed"]
    ] == ["0", "1", "2"]
    assert (frame["what"] == "all layers disturbed").sum() == len(TASKS)


@pytest.mark.parametrize(
    ("text", "layers"), [("1:", [1, 2, 3]), (":-2", [0, 1]), ("0,2:3", [0, 2]), ("-1", [3]), ("3", [3])]
)
def test_layers_are_read_as_they_are_run(text: str, layers: list[int]) -> None:
    from lynx_exp.routing import layer_range

    assert layers_of(text, 4) == layers == sorted(layer_range(text, 4))


def test_speedup_against_batch_size(drawn: Path) -> None:
    frame = numbers(drawn, "fig17")
    assert sorted(frame["batch_size"].unique()) == [4, 8, 16] and set(frame["task"]) == set(TASKS)
    assert frame["speedup"].between(1.1, 1.5).all()
    assert (frame["speedup_low"] < frame["speedup_high"]).all()


def test_sections_add_up(drawn: Path) -> None:
    frame = numbers(drawn, "fig18")
    assert sorted(frame["context"].unique()) == [64, 480] and len(frame) == 4
    lynx = frame[(frame["policy"] == "lynx") & (frame["context"] == 480)].iloc[0]
    assert {name: lynx[f"{name}_ms"] for name in SECTIONS_MS} == pytest.approx(SECTIONS_MS | {"attention": 4.8})
    assert (frame.loc[frame["policy"] == "vanilla", "policy_ms"] == 0).all()


def test_table_two(drawn: Path) -> None:
    tex = (drawn / "table2_b8.tex").read_text()
    rows = [line for line in tex.splitlines() if line.endswith("\\\\")]
    assert r"mini\_gsm8k & vanilla & $" in tex and "lynx(alpha=1, beta=2)" in tex
    assert all(line.count("&") == 7 for line in rows) and tex.count("\\midrule") == 2
    assert tex.index("\\toprule") < tex.index("\\midrule") < tex.index("\\bottomrule") < tex.index("\\end{tabular}")
    frame = numbers(drawn, "table2_b8")
    assert (frame["step_p50_ms"] > 0).all() and frame["speedup"].notna().all()


def test_latex_of_numbers_and_names() -> None:
    assert number(-1.25, -2.5, 0.0, "{:+.1f}") == r"$-1.2$ {\scriptsize [$-2.5$, $+0.0$]}"
    assert number(float("nan")) == "--"
    assert escape(r"a_b & 5 % of {x} \ ±1") == r"a\_b \& 5 \% of \{x\} \textbackslash{} $\pm$1"
    with pytest.raises(ValueError, match="1 cells for 2 columns"):
        booktabs([("a", "l"), ("b", "r")], [[["x"]]])


@pytest.mark.parametrize(("name", "inches"), [("neurips", 5.5), ("icml", 3.25), ("mlsys", 3.25)])
def test_papers_have_their_column(paper: Path, tmp_path: Path, name: str, inches: float) -> None:
    with printed_figures():
        write_figures(paper, out=tmp_path, only="fig7", paper=name)
    png = (tmp_path / "fig7.png").read_bytes()
    assert int.from_bytes(png[16:20]) == round(300 * inches)
    assert b"STIXGeneral" in (tmp_path / "fig7.pdf").read_bytes()
    assert style.width_in() != inches or inches == 6.4, "nothing is left changed"


def test_venues_have_the_widths_of_their_style_files() -> None:
    widths = {name: rc["figure.figsize"][0] for name, rc in style.PAPERS.items()}
    neurips_like = dict.fromkeys(("neurips", "iclr", "colm"), 5.5)
    assert widths == {"icml": 3.25, "mlsys": 3.25, "tmlr": 6.5, "aaai": 3.3} | neurips_like
    assert tuple(widths) == PAPERS, "the command line knows them without matplotlib"


def test_the_command_draws_one(paper: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["figures", str(paper), "--only", "fig8", "--paper", "mlsys", "--out", str(tmp_path / "out")])
    assert capsys.readouterr().out.split() == [str(tmp_path / "out" / f"fig8.{end}") for end in ("pdf", "png", "csv")]
    with pytest.raises(SystemExit) as stop:
        main(["figures", str(paper), "--only", "fig99"])
    assert stop.value.code == 2


def test_an_unknown_paper_is_named(paper: Path) -> None:
    with pytest.raises(ValueError, match="paper 'nature' is unknown; known: neurips, icml, mlsys, iclr"):
        write_figures(paper, paper="nature")


def test_studies_that_were_not_run_are_no_news(cell: Write, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cell()
    cell(policy=POLICIES[3])
    with caplog.at_level(logging.WARNING):
        write_figures(tmp_path)
        assert "fig7" not in caplog.text
        assert write_figures(tmp_path, only="fig7") == []
    assert "figure fig7 skipped: no cell denies a rank (policy=deny_rank; +paper=fig7)" in caplog.text


def test_every_figure_says_what_is_missing(paper: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "some"
    for number_of, phases in enumerate(("prefill", "decode")):
        write_cell(root, policy=reassign(0.25), phases=phases, batch_size=8, documents=32, repeats=0)
        write_cell(root, policy=reassign(0.5), state="failed", seed=number_of)
    for rank in range(2):
        policy = FakePolicy(name="deny_rank", params={"rank": rank}, harm=0.1)
        write_cell(root, policy=policy, batch_size=8, documents=32, repeats=0, **({"seed": 3} if rank else {}))
    write_cell(root, batch_size=8, documents=32, repeats=0)
    lines: dict[str, list[str]] = {}
    plain = style.save
    said: list[str] = []
    monkeypatch.setattr(style, "note", lambda fig, given: said.__setitem__(slice(None), given))

    def save(fig: Figure, folder: Path, name: str, *more: Any) -> list[Path]:
        written = plain(fig, folder, name, *more)
        lines[name] = list(said)
        return written

    monkeypatch.setattr(style, "save", save)
    write_figures(root, out=tmp_path / "out")
    assert {"fig4", "fig7", "active_vs_batch"} <= set(lines)
    for name, given in lines.items():
        assert any(line.startswith("missing: 2 cells not finished (2 failed: MemoryError)") for line in given), name
    assert any("no vanilla partner" in line for line in lines["fig7"])


def test_points_of_several_cells_are_one_row(paper: Path, tmp_path: Path) -> None:
    root = tmp_path / "twice"
    for more in ({}, {"measured": 1, "repeats": 5}):
        for policy in (POLICIES[0], POLICIES[3]):
            kl = 0.01 if policy.name == "lynx" and not more else None
            write_cell(root, policy=policy, **{"repeats": 0, "kl": kl} | more)
    rows = read_study(root).rows
    assert rows["policy"].tolist() == ["vanilla", "lynx"]
    lynx = rows.iloc[1]
    assert lynx["speedup"] > 1 and lynx["kl"] > 0, "timed in one cell, compared in the other"
    assert merged(rows).equals(rows), "nothing more to merge"


def test_a_context_of_its_own_is_a_point_of_its_own(tmp_path: Path) -> None:
    for context in (None, 64, 128):
        folder = write_cell(tmp_path, policy=POLICIES[0], measured=context or 0)
        timing = json.loads((folder / "timing.json").read_text())
        (folder / "timing.json").write_text(json.dumps(timing | {"context": context}))
    assert read_study(tmp_path).rows["series"].tolist() == ["vanilla"], "the task's own prompts stand for all"
    for folder in [path.parent for path in tmp_path.rglob("timing.json")]:
        if json.loads((folder / "timing.json").read_text())["context"] is None:
            for file in folder.iterdir():
                file.unlink()
            folder.rmdir()
    assert sorted(read_study(tmp_path).rows["series"]) == ["vanilla (context 128)", "vanilla (context 64)"]
