"""README and docs/: the site builds without a broken link, pictures are what their code draws, and every command that a
page names can be typed."""

from __future__ import annotations

import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser

from lynx_exp.config import config_folder
from lynx_exp.prepare.command_line import read_calibration, read_recipe
from lynx_exp.results.main import parser as results_parser
from lynx_exp.run.launchers.register import register
from lynx_exp.run.sweeper.compose import Composer
from lynx_exp.tasks.definition import members_of
from tests.test_imports import ALLOWED

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def test_the_site_builds_and_its_links_hold(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sphinx", "-b", "html", "-n", "-W", "--keep-going", "-q", "-E"]
    command += ["-d", str(tmp_path / "cache"), str(ROOT / "docs"), str(tmp_path / "site")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded = re.compile(r'<(?:script|img|iframe)[^>]+src="(?:https?:)?//|<link[^>]+stylesheet[^>]+href="(?:https?:)?//')
    for page in (tmp_path / "site").rglob("*.html"):
        assert not loaded.search(page.read_text(encoding="utf-8")), f"{page.name} loads something from another host"


def anchors(page: Path) -> set[str]:
    """Of a page's headings, as GitHub and MyST name them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_relative_links_hold(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'<img src="([^"]+)"', text):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), f"{target}: no such file"
        assert not anchor or anchor in anchors(path), f"{target}: no such heading"


def test_the_readme_can_be_read() -> None:
    lines = README.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 200
    named = {str(path.relative_to(ROOT)) for path in PAGES if path.parent != ROOT / "docs/reference"}
    linked = set(re.findall(r"\]\((docs/[^)#\s]+\.md)", "\n".join(lines)))
    assert named - linked == {"README.md", "docs/index.md"}, "every page is one click away"


def test_pictures_are_what_their_code_draws() -> None:
    drawn = dict(runpy.run_path(str(ROOT / "docs/pictures/draw.py"))["drawn"]())
    assert set(drawn) == set((ROOT / "docs/pictures").glob("*.svg"))
    for path, content in drawn.items():
        assert path.read_text(encoding="utf-8") == content, "run `python docs/pictures/draw.py`"


def test_the_map_names_every_room_and_arrow() -> None:
    text = (ROOT / "docs/design.md").read_text(encoding="utf-8")
    rooms = {path.parent.name for path in (ROOT / "lynx_exp").glob("*/__init__.py")}
    rows = re.findall(r"^\| `(\w+)` \|.*\| ([^|]+) \|$", text, re.MULTILINE)
    assert {room for room, _ in rows} == rooms
    for room, used in rows:
        arrows = (ALLOWED.get(room, set()) - {room}) & rooms
        assert set(re.findall(r"`(\w+)`", used)) == arrows, f"docs/design.md: what {room} imports"


def commands() -> Iterator[tuple[Path, str]]:
    """Each line of a block of command lines, and runs that a sentence names. What needs files that a page tells to
    write (docs/extending.md, docs/howto/your-*.md) has tests of its own; docs/reference is made from what reads
    commands."""
    for page in PAGES:
        if page.name == "extending.md" or page.parent.name == "reference":
            continue
        for block in re.findall(
            r"^```(?:\w+)?\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
        ):
            for line in block.splitlines():
                if re.match(
                    r"(?:HF_HUB_OFFLINE=1 )?(?:lynx-exp|lynx-results|lynx-prepare|make|python3? |torchrun)\b", line
                ) and not (page.name.startswith("your-") and WRITTEN.search(line)):
                    yield page, line
        yield from ((page, line) for line in re.findall(r"`(lynx-exp [^`]+)`", page.read_text(encoding="utf-8")))


WRITTEN = re.compile(r"strongest|=arc|sums|spread")
"""Names of what the pages tell to write: tests/additions runs these commands."""


def words_of(line: str) -> list[str]:
    words = [word for word in shlex.split(line, comments=True) if not re.match(r"[A-Z_]+=", word)]
    return words[words.index("lynx-exp") :] if "lynx-exp" in words else words


@contextmanager
def composing() -> Iterator[Composer]:
    """As a sweep composes its jobs, which tests/run/test_compose.py holds to what Hydra gives."""
    register()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        parser = OverridesParser.create(config_loader=hydra.config_loader)
        yield Composer(lambda words: compose("config", overrides=words), hydra.config_loader, parser)
    GlobalHydra.instance().clear()


def test_every_command_can_be_typed() -> None:
    seen = set()
    cells: dict[tuple[str, ...], str] = {}
    for page, line in commands():
        program, *rest = words_of(line)
        where = f"{page.name}: {line}"
        seen.add(program)
        if program == "lynx-exp":
            cells.setdefault(one_cell(rest), where)
        elif program == "lynx-results":
            results_parser().parse_args(rest)
        elif program == "lynx-prepare":
            verb, *overrides = rest
            readers = {"train": read_recipe, "calibrate": read_calibration}
            if verb in readers:
                readers[verb](overrides)
            else:
                assert verb == "prefetch", where
                cells.setdefault(one_cell(overrides), where)
        elif program == "make":
            assert re.search(rf"^{rest[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), where
        elif rest[0] == "-m":
            assert rest[1] == "venv" or find_spec(rest[1]), where
        else:
            assert (ROOT / rest[0]).exists(), where
    assert {"lynx-exp", "lynx-results", "lynx-prepare", "make"} <= seen
    with composing() as composer:
        for overrides, where in cells.items():
            config = composer.config(overrides)
            assert all(name.endswith(".yaml") or members_of(name) for name in config.task.subtasks), where


def one_cell(words: list[str]) -> tuple[str, ...]:
    """The overrides, with the first value of every field of which several are given."""
    parsed = OverridesParser.create().parse_overrides(
        [word.replace("=NAME", "=lynx") for word in words if not word.startswith(("-", "..."))]
    )
    overrides = []
    for override in parsed:
        if override.is_sweep_override() and override.is_choice_sweep():
            overrides.append(f"{override.input_line.partition('=')[0]}={override.value().list[0]}")
        else:
            overrides.append(override.input_line)
    return tuple(overrides)


@pytest.mark.parametrize(
    "script", sorted(set(re.findall(r"benchmarks/[a-z_]+\.py", "".join(p.read_text() for p in PAGES))))
)
def test_every_script_is_there(script: str) -> None:
    assert (ROOT / script).exists()
