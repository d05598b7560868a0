"""The HTML report in a real browser: opened from disk, clicked through, at the width of a desk and of a phone."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import hostile
import pytest
from chromium import Browser, find_chromium
from fake_study import POLICIES, write_cell
from PIL import Image

from analysis.page import document, text
from analysis.page.document import page

CHROMIUM = find_chromium()
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (Debian: apt install chromium)")
DESK, PHONE = 1280, 390


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    assert CHROMIUM is not None
    tab = Browser(CHROMIUM, tmp_path_factory.mktemp("profile"))
    yield tab
    tab.close()


@pytest.fixture(scope="module")
def file(study_page: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(study_page)
    return path


@pytest.fixture
def desk(browser: Browser, file: Path) -> Iterator[Browser]:
    """The page at a desk; nothing may have gone wrong in its console by the end."""
    browser.open(file, width=DESK)
    yield browser
    assert browser.errors == []


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [DESK, PHONE])
def test_it_opens_everywhere_and_loads_nothing(browser: Browser, file: Path, width: int, dark: bool) -> None:
    browser.open(file, width=width, dark=dark)
    assert browser.errors == []
    assert {re.split("[:;]", url)[0] for url in browser.requests} == {"file", "data"}
    assert sum(url.startswith("file:") for url in browser.requests) == 1
    assert browser.evaluate("document.documentElement.scrollWidth") <= width, "nothing sticks out sideways"
    wide = "[...document.querySelectorAll('main *')].filter(one => !one.closest('.scroll, svg, select, .tip') &&"
    assert (
        browser.evaluate(f"{wide} one.getBoundingClientRect().right > innerWidth + 1).map(one => one.outerHTML)") == []
    )
    small = "[...document.querySelectorAll('main button, main select')].map(one => one.getBoundingClientRect().height)"
    assert min(browser.evaluate(small)) >= 28, "a finger can hit it"
    light = browser.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (max(light) < 60) == dark


def test_a_screenshot_shows_something(browser: Browser, file: Path, tmp_path: Path) -> None:
    for width in (DESK, PHONE):
        browser.open(file, width=width)
        browser.screenshot(tmp_path / f"{width}.png")
        with Image.open(io.BytesIO((tmp_path / f"{width}.png").read_bytes())) as picture:
            assert picture.width == width and picture.height > 2000
            colours = picture.convert("RGB").getcolors(1 << 24) or []
        assert len(colours) > 200 and max(count for count, _ in colours) < 0.9 * picture.width * picture.height


def test_points_tell_their_parameters(desk: Browser) -> None:
    point = '.point[data-series="lynx_v1_latency(keep_experts=4)"][data-batch="16"] .target'
    assert desk.evaluate("document.querySelector('.tip').hidden")
    desk.hover(point)
    (tip,) = desk.text(".tip")
    assert "keep_experts=4, phases=decode" in tip and re.search(
        r"active experts\s+\d\.\d\d \[\d\.\d\d, \d\.\d\d\]", tip
    )
    assert re.search(r"difference to vanilla\s+−\d+\.\d \[−\d+\.\d, [−+]\d+\.\d\] points", tip)
    assert re.search(r"decode speed-up\s+\d\.\d\d \[\d\.\d\d, \d\.\d\d\] × vanilla", tip)
    desk.hover("h1")
    assert desk.evaluate("document.querySelector('.tip').hidden")
    desk.click(point)
    assert (
        "lynx_v1_latency(keep_experts=4)" in desk.text(".pinned h3")[0] and "batch size 16" in desk.text(".pinned")[0]
    )
    assert desk.count(".point.chosen") == 1


def test_points_can_be_reached_by_keyboard(desk: Browser) -> None:
    desk.evaluate("document.querySelector('.point').focus()")
    assert not desk.evaluate("document.querySelector('.tip').hidden")
    desk.press("Enter")
    assert desk.count(".pinned .card") == 1


def test_filters(desk: Browser) -> None:
    panels, policies = "#chart .panel", "#chart [aria-label=policies] .chip"
    assert desk.count(panels) == 2 and desk.count(".point") == 2 * 5
    desk.click("#chart [aria-label='batch sizes'] .chip")
    assert desk.text("#chart .panel h3") == ["batch size 16"] and desk.count(".point") == 5
    names = desk.text(policies)
    desk.click(policies, names.index("lynx_v1_latency"))
    assert desk.count(".point") == 3 and not desk.count('.point[data-series^="lynx_v1_latency"]')
    assert (
        desk.evaluate(f"document.querySelectorAll('{policies}')[{names.index('lynx_v1_latency')}].ariaPressed")
        == "false"
    )
    desk.choose("#chart select", "mini_truthfulqa: mini_truthfulqa_mc1")
    assert desk.count(panels) == 2, "another task has its own batch sizes"
    assert desk.count(".point") == 2 * 3
    desk.click("#chart .plain")
    assert desk.text("#chart .plain") == ["none"] and desk.count(".point") == 2 * 5


def test_axes_can_be_chosen(desk: Browser) -> None:
    shown = "[...document.querySelectorAll('.axis')].map(one => one.textContent)"
    assert "decode speed-up (× vanilla)" in desk.evaluate(shown)
    desk.choose("#chart .field:nth-of-type(2) select", "active experts")
    assert "active experts (per layer and step)" in desk.evaluate(shown)
    placed = desk.evaluate(
        "[...document.querySelectorAll('.panel:last-child .point')].map(one => [one.dataset.series,"
        "one.querySelector('.target').getBoundingClientRect().x])"
    )
    where = dict(placed)
    assert where["lynx_v1_latency(keep_experts=4)"] < where["lynx_v1_latency(keep_experts=8)"] < where["vanilla"]


def test_samples_turn_page_by_page(desk: Browser) -> None:
    desk.choose("#samples select", "mini_gsm8k · batch 16")
    desk.choose("#samples .field:nth-of-type(2) select", "lynx_v1_latency(keep_experts=4)")
    kinds = dict(re.fullmatch(r"(.+) (\d+)", chip).groups() for chip in desk.text("#samples .chip"))  # type: ignore[union-attr]
    assert kinds["all"] == "32" and int(kinds["score changed"]) == int(kinds["lost"]) + int(kinds["gained"]) > 1
    desk.click("#samples .chip", 4)
    assert desk.text(".position") == ["1 of 32"] and desk.text(".sample h3")[0].startswith("document 0")
    desk.click("[aria-label='next sample']")
    assert desk.text(".position") == ["2 of 32"] and desk.text(".sample h3")[0].startswith("document 1")
    desk.press("ArrowRight")
    desk.press("ArrowLeft")
    desk.press("ArrowLeft")
    desk.press("ArrowLeft")
    assert desk.text(".position") == ["32 of 32"], "round to the last"
    desk.click("#samples .chip", 1)
    assert desk.text(".answer .badge.good") == ["score 1"] and desk.text(".answer .badge.bad") == ["score 0"]
    assert "lost lost" in " ".join(desk.text(".answer:last-child mark")), "the words that were put in"
    desk.click("#samples input")
    assert desk.count("mark") == 0


def test_from_a_point_to_its_answers(desk: Browser) -> None:
    desk.click('.point[data-series="lynx_v1_latency(keep_experts=4)"][data-batch="4"] .target')
    desk.click(".pinned button")
    assert (
        "lynx_v1_latency(keep_experts=4)" in desk.text(".answer header")[1] and "batch 4" in desk.text(".sample h3")[0]
    )


def test_tables_unfold_and_the_theme_turns(desk: Browser) -> None:
    closed = desk.count("#tables details:not([open])")
    assert closed == 5 * 2
    desk.click("[data-unfold]")
    assert desk.count("#tables details:not([open])") == 0
    before = desk.evaluate("getComputedStyle(document.body).backgroundColor")
    desk.click("#theme")
    assert desk.evaluate("getComputedStyle(document.body).backgroundColor") != before


@pytest.mark.parametrize("mine, theirs", [
    ("", ""), ("a b c", "a b c"), ("a b c", ""), ("one two three", "one 2 three"), ("x y x y", "y x y x"),
    ("end)", "end"), ("größe naïve 数学", "größe naive 数"), ("a  b\n c", "a b c"), ("w " * 4000, "v " * 4000),
])  # fmt: skip
def test_the_diff_keeps_every_letter(desk: Browser, mine: str, theirs: str) -> None:
    first, second = desk.evaluate(f"compared({json.dumps(mine)}, {json.dumps(theirs)})")
    assert ["".join(part for _, part in pieces) for pieces in (first, second)] == [mine, theirs]
    shared = ["".join(part for same, part in pieces if same) for pieces in (first, second)]
    assert shared[0] == shared[1]
    assert (mine == theirs) == all(same for same, _ in [*first, *second])
    if mine == "one two three":
        assert first == [[True, "one "], [False, "two"], [True, " three"]]


def test_a_time_that_is_not_final_is_pale_and_beats_nobody(
    browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(document, "pictures", lambda *_: [])
    for policy in (POLICIES[0], POLICIES[3]):
        folder = write_cell(tmp_path, policy=policy)
    timing = json.loads((folder / "timing.json").read_text()) | {"precision_reached": False}
    (folder / "timing.json").write_text(json.dumps(timing))
    file = tmp_path / "report.html"
    file.write_text(page(tmp_path))
    browser.open(file)
    assert browser.count(".point") == 2 and browser.count(".point.faint") == 1 == browser.count(".unsure")
    browser.hover(".point.faint .target")
    assert re.search(r"decode speed-up\s+\d\.\d\d \[[^]]+\]~ × vanilla", browser.text(".tip")[0])
    browser.choose("#chart .field:nth-of-type(2) select", "active experts")
    assert browser.count(".unsure") == 0 == browser.count(".point.faint"), "experts are counted, not timed"
    assert browser.errors == []


def test_a_sweep_with_holes_still_charts_what_is_sound(
    browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(document, "pictures", lambda *_: [])
    write_cell(tmp_path, policy=POLICIES[3], model="a")  # without a vanilla
    for policy in (POLICIES[0], POLICIES[3]):
        write_cell(tmp_path, policy=policy, model="b")
    file = tmp_path / "report.html"
    file.write_text(page(tmp_path))
    browser.open(file)
    assert browser.count(".point") == 2, "it opens at the setting that has something to show"
    assert "false" not in browser.text("#chart")[0] and "null" not in browser.text("#samples")[0]
    browser.choose("#chart select", "model a")
    assert browser.text("#chart .empty") == ["No point here has both decode speed-up and difference to vanilla."]
    assert browser.errors == []


def test_hostile_text_does_nothing_but_show(browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(document, "pictures", lambda *_: [])
    for policy in (POLICIES[0], POLICIES[3]):
        folder = write_cell(tmp_path, policy=policy)
        label = hostile.IMAGE if policy is POLICIES[3] else "vanilla"
        hostile.poison(folder, model=hostile.SCRIPT, policy_label=label, task=hostile.SCRIPT, study=hostile.COMMENT)
    file = tmp_path / "report.html"
    file.write_text(page(tmp_path, find_prompts=lambda cells: ({one: one for one in hostile.ALL}, [])))
    for width in (DESK, PHONE):
        browser.open(file, width=width)
        browser.click("#samples .chip", 4)
        seen = set()
        for _ in range(16):
            shown = "[...document.querySelectorAll('.sample pre, .sample code, .badge')].map(one => one.textContent)"
            seen.update(browser.evaluate(shown))
            browser.click("[aria-label='next sample']")
        browser.hover(".point .target")
        assert hostile.IMAGE in browser.text(".tip")[0]
        browser.click(".point .target")
        assert browser.evaluate("window.broken") is None and browser.errors == []
        assert browser.count("script") == 2 and browser.count("img") == 0
        assert {text.visible(one) for one in hostile.ALL} <= seen
        assert browser.evaluate("document.documentElement.scrollWidth") <= width, "a word of 12,000 letters is broken"
