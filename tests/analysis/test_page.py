"""The HTML report: its numbers are the table's, nothing is dropped in silence, no text in it becomes markup."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from html import unescape
from html.parser import HTMLParser
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import hostile
import pandas as pd
import pytest
from fake_study import POLICIES, FakePolicy, write_cell
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

import analysis
from analysis.labels import series_of
from analysis.page import browse, document, text
from analysis.page.document import page
from analysis.recommendation import print_recommendations

Write = Callable[..., Path]
VANILLA, LYNX, HARMFUL = POLICIES[0], POLICIES[3], POLICIES[5]


class Page(HTMLParser):
    """Elements with their attributes, the text of each section, the rows of each table."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.sections: dict[str, str] = {}
        self.rows: list[list[str]] = []
        self._section, self._raw, self._in_cell = "", "", False
        self.scripts: list[str] = []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag == "section":
            self._section = dict(attributes)["id"] or ""
            self.sections[self._section] = ""
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self._in_cell = True
        elif tag == "script":
            self.scripts.append("")
        self._raw = tag if tag == "script" else ""

    def handle_endtag(self, tag: str) -> None:
        self._raw = ""
        if tag == "section":
            self._section = ""
        elif tag in ("td", "th"):
            self._in_cell = False

    def handle_data(self, data: str) -> None:
        if self._raw:
            self.scripts[-1] += data
        elif self._section:
            self.sections[self._section] += data
            if self._in_cell:
                self.rows[-1][-1] += data

    @property
    def data(self) -> dict[str, Any]:
        return json.loads(self.scripts[0])


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes most of a page's time."""
    monkeypatch.setattr(document, "pictures", lambda *_: [])


@pytest.fixture(scope="module")
def whole(study_page: str) -> Page:
    return Page(study_page)


@given(st.text())
@example(hostile.OVERRIDE)
@example("\ud800")
def test_text_is_shown_whole_and_harmless(given: str) -> None:
    shown = text.visible(given)
    assert not any(text._is_hidden(letter) for letter in shown)
    assert text.visible(shown) == shown
    kept = [letter for letter in given.replace("\r\n", "\n") if not text._is_hidden(letter)]
    assert re.sub(r"⟨U\+[0-9A-F]{4,}⟩", "", shown) == re.sub(r"⟨U\+[0-9A-F]{4,}⟩", "", "".join(kept))
    assert unescape(text.escape(given)) == shown and not set("<>\"'") & set(text.escape(given))
    inside = text.script_json([shown])
    assert json.loads(inside) == [shown] and inside.isascii() and not set("<>&") & set(inside)


def test_its_tables_are_those_of_the_command_line(study: Path, whole: Page) -> None:
    file = StringIO()
    analysis.print_table(study, console=Console(file=file, width=400), by="all")
    printed = {" ".join(line.split()) for line in file.getvalue().splitlines()}
    rows = {" ".join(" ".join(cells).split()) for cells in whole.rows}
    known = {
        line
        for line in printed
        if re.match(r"(vanilla|no_drop|lynx|random_keep)", line)
        and "would take" not in line
        and not re.match(r"\w+\([^)]*(?!.*\))", line)  # a name that goes on in the next line
    }
    assert len(known) > 30 and known <= rows


def test_figures_are_inside(whole: Page) -> None:
    images = [attributes for tag, attributes in whole.tags if tag == "img"]
    assert {image["alt"] for image in images} > {"pareto_speedup", "pareto_active_tasks", "step_vs_active"}
    for image in images:
        picture = Image.open(BytesIO(base64.b64decode((image["src"] or "").partition(",")[2])))
        assert picture.width == pytest.approx(2 * int(image["width"] or 0), abs=1)
        assert len(picture.getcolors() or ()) > 8, "something is drawn"
    assert "How many experts a layer runs" in whole.sections["figures"]
    assert "figure mixing skipped" in whole.sections["figures"]


@pytest.mark.usefixtures("no_figures")  # whose bytes have a test of their own
def test_the_same_records_give_the_same_bytes(cell: Write, tmp_path: Path) -> None:
    cell()
    cell(policy=LYNX)
    assert page(tmp_path) == page(tmp_path)


def test_points_are_the_numbers_of_the_results(study: Path, whole: Page) -> None:
    records = analysis.load(study)
    rows = analysis.compare.results(records)
    chart = whole.data["chart"]
    assert set(chart["across"]) == {"speedup", "active_experts", "step_ms"} and chart["up"] == ["difference", "score"]
    single = {(point["series"], point["task"], point["batch"]): point for point in chart["points"]}
    assert len(single) == len(chart["points"]) == len(rows) + 5 * 2, "and the means of five policies, two batch sizes"
    for row in rows.to_dict("records"):
        task = row["subtask"] if row["task"] == row["subtask"] else f"{row['task']}: {row['subtask']}"
        values = single[row["series"], task, row["batch_size"]]["values"]
        for name in ("score", "speedup", "active_experts"):
            numbers = [row[f"{name}{end}"] for end in ("", "_low", "_high")]
            expected = [None if pd.isna(number) else pytest.approx(number, abs=1e-6) for number in numbers]
            assert values[name] == expected


@pytest.mark.usefixtures("no_figures")
def test_what_is_missing_is_said(cell: Write, tmp_path: Path) -> None:
    cell(batch_size=4)
    cell(batch_size=4, policy=LYNX)
    cell(batch_size=16, policy=LYNX)
    folder = cell(batch_size=32, policy=LYNX, state="failed")
    (folder / "plan.json").write_text(json.dumps({"mini_gsm8k": {"lanes": [[0], [1], [2]]}}))
    (folder / "lanes").mkdir()
    (folder / "lanes" / "mini_gsm8k-00000.json").write_text("{}")
    got = Page(page(tmp_path)).sections
    assert "missing: 1 cell not finished (1 failed: MemoryError): lynx-mini_gsm8k-b32" in got["overview"]
    assert "rows without a vanilla partner, and so without difference: 1" in got["overview"]
    assert "no vanilla partner: lynx(alpha=1, beta=2), batch size 16, mini_gsm8k" in got["checks"]
    assert "MemoryError: too big" in got["unfinished"] and "1 of 3" in got["unfinished"]
    assert "3 of 4" in got["overview"]


@pytest.mark.usefixtures("no_figures")
def test_unlike_environments_are_said(cell: Write, tmp_path: Path) -> None:
    for policy, cpu in ((VANILLA, "one"), (LYNX, "other"), (HARMFUL, "one")):
        folder = cell(policy=policy)
        told = {"cpu": cpu, "torch": {"threads": 2}, "command": [cpu], "numerics": {"cpu": cpu, "torch.threads": 2}}
        (folder / "provenance.json").write_text(json.dumps(told))
    got = Page(page(tmp_path)).sections
    for section in ("overview", "checks"):
        assert "unlike environments: cpu one (2 cells), other (1 cell)" in got[section]
        assert "unlike environments: 1 of 2 cells ran in another one than their vanilla" in got[section]
    assert "one (2); other (1)" in got["provenance"] and "torch.threads" in got["provenance"]


@pytest.mark.usefixtures("no_figures")
def test_flags_and_doubts_are_said(cell: Write, tmp_path: Path) -> None:
    cell(documents=32)
    folder = cell(documents=32, policy=FakePolicy(name="lynx", params={"alpha": 1.0}, longer=9))
    timing = json.loads((folder / "timing.json").read_text()) | {"stable": False, "precision_reached": False}
    (folder / "timing.json").write_text(json.dumps(timing))
    status = json.loads((folder / "status.json").read_text()) | {"notes": ["halved for memory"]}
    status["invalid"] = ["every response is empty"]
    (folder / "status.json").write_text(json.dumps(status))
    source = Page(page(tmp_path))
    assert "rows with responses outside vanilla's band: 1" in source.sections["overview"]
    assert "findings that answers are invalid: 1" in source.sections["overview"]
    checks = source.sections["checks"]
    assert f"invalid: {folder.name}: every response is empty" in checks
    assert "longer" in checks and "(+9.0)" in checks and f"{folder.name}: halved for memory" in checks
    assert "step times had not settled" in checks
    assert "5 windows did not reach the precision asked for: 1 cell" in checks
    assert [point["guard"] for point in source.data["chart"]["points"]] == ["", "longer"]


def test_one_cell_of_vanilla_is_a_page_too(cell: Write, tmp_path: Path) -> None:
    cell(repeats=0)
    source = Page(page(tmp_path))
    assert "pareto" not in source.sections and len(source.data["browser"]["groups"][0]["docs"]) == 16
    assert "Not drawn" in source.sections["figures"] and "skipped" in source.sections["figures"]


def test_nothing_finished_is_no_page(cell: Write, tmp_path: Path) -> None:
    cell(state="failed")
    with pytest.raises(ValueError, match="holds no finished cell; unfinished: vanilla-.*MemoryError"):
        page(tmp_path)


def test_samples_pair_every_policy_with_vanilla(study: Path, whole: Page) -> None:
    records = analysis.load(study)
    data = whole.data["browser"]
    texts = data["texts"]
    assert len(set(texts)) == len(texts)
    assert len(data["groups"]) == 5 * 2 and {tuple(pair) for pair in data["shown"].values()} == {(32, 32)}
    labels = series_of(records.cells)
    cells = records.cells.set_index("cell_id")
    keys = zip(cells["policy_label"], cells["policy_params"], cells["phases"], strict=True)
    cells["series"] = [labels[key] for key in keys]
    for group in data["groups"]:
        assert [run["policy"] for run in group["runs"]][0] == "vanilla" and len(group["runs"]) == 5
        for run in group["runs"]:
            of = cells[(cells["series"] == run["series"]) & (cells["batch_size"] == group["batch"])].index
            subtask = group["task"].split(": ")[-1]
            own = records.samples[records.samples["cell_id"].isin(of) & (records.samples["subtask"] == subtask)]
            expected = own.set_index("doc_id")
            assert expected.index.is_unique
            for doc, row in zip([about[0] for about in group["docs"]], run["rows"], strict=True):
                assert texts[row[1]] == expected.loc[doc, "filtered"]
                assert row[2] is None or row[2] == expected.loc[doc, "score"]
                assert row[6] == expected.loc[doc, "lane"]


@pytest.mark.usefixtures("no_figures")
def test_a_full_page_keeps_what_changed(cell: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cell(documents=200)
    cell(documents=200, policy=HARMFUL)
    records = analysis.load(tmp_path)
    scores = records.samples.pivot(index="doc_id", columns="cell_id", values="score")
    changed = set(scores.index[scores.nunique(axis=1) > 1])
    assert 10 < len(changed) < 60
    monkeypatch.setattr(browse, "PAGE_LETTERS", 12_000)
    data = Page(page(tmp_path)).data["browser"]
    docs = {about[0] for about in data["groups"][0]["docs"]}
    assert changed < docs and len(docs) < 150 and data["shown"]["mini_gsm8k"] == [len(docs), 200]
    monkeypatch.setattr(browse, "PAGE_LETTERS", 1)
    assert len(Page(page(tmp_path)).data["browser"]["groups"][0]["docs"]) == 1, "at least one of each subtask"


def test_the_middle_of_a_long_text_is_left_out() -> None:
    long = "a" * browse.TEXT_LETTERS + "the end"
    shown = browse.shortened(long)
    assert shown.startswith("aaa") and shown.endswith("the end") and "7 letters left out" in shown
    assert browse.shortened(long[:-7]) == long[:-7]


@pytest.fixture
def poisoned(tmp_path: Path) -> Path:
    for policy in (VANILLA, LYNX):
        folder = write_cell(tmp_path, policy=policy, repeats=0)
        label = hostile.IMAGE if policy is LYNX else "vanilla"
        hostile.poison(folder, model=hostile.SCRIPT, policy_label=label, study=hostile.COMMENT)
    failed = write_cell(tmp_path, policy=LYNX, batch_size=16, state="failed")
    status = json.loads((failed / "status.json").read_text())
    status["error"] = {"class": hostile.SLOT, "message": hostile.SCRIPT + hostile.OVERRIDE}
    (failed / "status.json").write_text(json.dumps(status))
    return tmp_path


@pytest.mark.usefixtures("no_figures")
def test_hostile_text_stays_text(poisoned: Path) -> None:
    prompts = {text: text for text in hostile.ALL}
    source = page(poisoned, find_prompts=lambda cells: (prompts, list(hostile.ALL)))
    read = Page(source)
    assert source.count("<script") == source.count("</script>") == 2 and len(read.scripts) == 2
    assert "img" not in {tag for tag, _ in read.tags}
    assert not [name for _, attributes in read.tags for name in attributes if name.startswith("on")]
    assert not any(letter in source for letter in hostile.HIDDEN)
    for said in (hostile.SCRIPT, hostile.IMAGE):
        assert said in read.sections["overview"] + read.sections["provenance"]
    assert hostile.SLOT in read.sections["unfinished"] and "⟨U+202E⟩" in read.sections["unfinished"]
    texts = read.data["browser"]["texts"]
    assert any(found.startswith(hostile.SCRIPT) for found in texts) and text.visible(hostile.OVERRIDE) in texts
    assert any("letters left out" in found for found in texts)


def test_only_its_own_script_may_run(whole: Page) -> None:
    (policy,) = [a["content"] or "" for tag, a in whole.tags if a.get("http-equiv") == "Content-Security-Policy"]
    digest = base64.b64encode(hashlib.sha256(whole.scripts[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in policy and policy.startswith("default-src 'none';")
    links = [value for _, a in whole.tags for name, value in a.items() if name in ("src", "href") and value]
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in links)


def test_the_recommendation_is_that_of_the_command_line(study: Path, whole: Page) -> None:
    found = analysis.study.study(study)
    file = StringIO()
    print_recommendations(found, console=Console(file=file, width=400))
    printed = {" ".join(line.split()) for line in file.getvalue().splitlines()}
    known = {line for line in printed if re.match(r"(lynx|coverage|top_k)", line)}
    assert len(known) > 10
    assert known <= {" ".join(" ".join(cells).split()) for cells in whole.rows}
    assert "none: no candidate" in whole.sections["recommendation"]
    assert {"bold", "yellow", "dim"} <= {attributes.get("class") for tag, attributes in whole.tags if tag == "span"}
    assert any(point["verdict"].startswith("undecided; ") for point in whole.data["chart"]["points"])
