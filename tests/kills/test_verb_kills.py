"""A verb of `lynx-results` is killed, interrupted or terminated at counted steps of the file system: no half file is
taken for whole, and the same command afterwards leaves the bytes of a run that nobody disturbed."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lynx_exp.config import TaskConfig
from lynx_exp.run.replay.rescore_cells import WRITTEN
from lynx_exp.run.run_cells import run_cells
from lynx_exp.store.claims import CLAIM
from lynx_exp.store.files import read_json
from lynx_exp.store.identity import SCHEMA
from lynx_exp.store.leftovers import find_leftovers
from lynx_exp.store.read import read_cells
from tests.kills.verb_zygote import Zygote
from tests.run.real_cells import bundled
from tests.verbs.corruptions import claimed
from tests.verbs.study import BOTH, LYNX, MEASURE, VANILLA, cell_of, edit

pytestmark = pytest.mark.slow

NOBODY = 2**22 + 1
"""No process has this number."""
OLDER = "older"
"""The name of a cell in a form of before, for `gc`."""
ENDS = {signal.SIGINT: (130, "interrupted"), signal.SIGTERM: (75, "terminated")}


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of three cells and one setting, timed, with programs to run; read only."""
    root = tmp_path_factory.mktemp("ran")
    both = {"task": BOTH, "batch_size": 3, "limit": 3, "measure": MEASURE, "batching": "static"}
    code = TaskConfig(name="mini_humaneval", subtasks=["mini_humaneval"])
    grid = [bundled(root, policy=policy, **both) for policy in (VANILLA, LYNX)]
    assert run_cells([*grid, bundled(root, **both | {"task": code, "measure": MEASURE.__class__()})]).failed == 0
    return root / "default"


@pytest.fixture(scope="module")
def zygote(ran: Path) -> Iterator[Zygote]:
    made = Zygote(ran)
    yield made
    made.close()


def litter(study: Path) -> None:
    """Something of most kinds, for `gc`."""
    for cell in read_cells(study):
        (cell.path / "lanes").mkdir()
        (cell.path / "lanes" / "a-00000.json").write_text("{}")
    claimed(cell_of(study, "mini_humaneval", "vanilla"), NOBODY)
    (study / ".report.html.x.tmp").write_text("half")
    older = shutil.copytree(cell_of(study), study / OLDER)
    (older / "DONE").unlink()
    for name, change in (("cell.json", {"schema": SCHEMA - 1}), ("provenance.json", {"code_sha256": "before"})):
        (older / name).write_text(json.dumps(read_json(older / name) | change))
    age(study)


def other_scores(study: Path) -> None:
    """Two cells whose scores are not what scoring anew gives."""
    for task in ("both", "mini_humaneval"):
        cell = cell_of(study, task, "vanilla")
        edit(cell, "samples", lambda rows: [row | {"score": 0.5} for row in rows])
        edit(cell, "metrics.json", lambda told: told | {"metrics": [row | {"value": 0.5} for row in told["metrics"]]})


VERBS: dict[str, tuple[tuple[str, ...], Callable[[Path], Any], int]] = {
    "report": (("report", "study"), lambda study: None, 4),
    "figures": (("figures", "study", "--only", "pareto"), lambda study: None, 12),
    "export": (("export", "--format", "lm-eval", "study"), lambda study: None, 24),
    "rescore": (("rescore", "study"), other_scores, 40),
    "gc": (("gc", "study", "--delete"), litter, 30),
}
"""Verb -> its command, what there must be to do, and how many kills."""


def age(study: Path) -> None:
    """As if nobody had written for an hour."""
    for path in study.rglob("*"):
        if path.name.startswith("."):
            os.utime(path, (1, 1))


def content(folder: Path) -> dict[str, bytes]:
    """Of each file its bytes, but for what is of the moment: when, and how long, and how old a file is."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file() and "wandb" not in path.parts:
            found[str(path.relative_to(folder))] = _timeless(path)
    return found


def _timeless(path: Path) -> bytes:
    of_the_moment = {"DONE": ("seen", "seen_sha256"), "status.json": ("notes",)}.get(path.name, ())
    if path.name.startswith("results_"):
        of_the_moment = ("total_evaluation_time_seconds",)
    value = read_json(path) if of_the_moment else None
    if not isinstance(value, dict):
        return path.read_bytes()
    kept = {key: entry for key, entry in value.items() if key not in of_the_moment}
    if path.name == "DONE":
        kept["files"] = {key: entry for key, entry in kept["files"].items() if key != "status.json"}
    elif path.name == "status.json":
        kept["notes"] = [note[:8] for note in value["notes"]]  # the word, not the date
    return json.dumps(kept).encode()


def is_draft(name: str) -> bool:
    return any(
        part.startswith(".") and (part.endswith(".tmp") or part.startswith(".new-")) for part in Path(name).parts
    )


def check_whole(study: Path, before: dict[str, bytes], after: dict[str, bytes], verb: str) -> None:
    """Each file is as it was, or as it will be; and readers use what is whole, and name the rest."""
    now = {name: data for name, data in content(study).items() if not is_draft(name) and CLAIM not in Path(name).parts}
    torn = [name for name, data in now.items() if data not in (before.get(name), after.get(name))]
    assert torn == []
    assert verb in ("gc", "export") or not before.keys() - now.keys() - {CLAIM}, "nothing was lost"
    for cell in read_cells(study):
        # only where a cell was being scored anew, and no number of it is shown meanwhile
        if cell.set_aside is not None and cell.path.name != OLDER:
            assert verb == "rescore" and "is not the file that DONE names" in cell.set_aside
    assert all(cell.set_aside is None or cell.path.name == OLDER for cell in read_cells(study, allow_changed=WRITTEN))


@pytest.fixture(scope="module", params=VERBS)
def case(request: Any, zygote: Zygote, ran: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the verb makes of the study when nobody disturbs it, and how many steps it takes."""
    words, prepare, kills = VERBS[request.param]
    root = tmp_path_factory.mktemp(request.param)
    shutil.copytree(ran, root / "start" / "study")
    prepare(root / "start" / "study")
    shutil.copytree(root / "start", root / "whole", copy_function=shutil.copy2)
    before = content(root / "whole" / "study")
    done = zygote.run(root / "whole", *words)
    assert done["status"] == 0, done
    after = content(root / "whole" / "study")
    assert after != before and len(done["events"]) > 4, done
    made = {"verb": request.param, "words": words, "start": root / "start", "before": before, "after": after}
    return made | {"events": done["events"], "kills": kills}


def points(number_of_events: int, most: int) -> list[int]:
    """All, or so many of them, the first and the last among them."""
    if number_of_events <= most:
        return list(range(number_of_events))
    inner = random.Random(20261127).sample(range(1, number_of_events - 1), most - 2)
    return [0, *sorted(inner), number_of_events - 1]


def test_killed(case: dict[str, Any], zygote: Zygote, tmp_path: Path) -> None:
    for at in points(len(case["events"]), case["kills"]):
        folder = tmp_path / str(at)
        shutil.copytree(case["start"], folder, copy_function=shutil.copy2)
        killed = zygote.run(folder, *case["words"], at=at)
        assert killed["status"] == -signal.SIGKILL, (at, killed["err"], killed["events"])
        check_whole(folder / "study", case["before"], case["after"], case["verb"])
        age(folder / "study")
        again = zygote.run(folder, *case["words"])
        assert again["status"] == 0, (at, case["events"][at], again)
        age(folder / "study")
        assert zygote.run(folder, "gc", "study", "--delete")["status"] == 0
        assert find_leftovers(folder / "study") == []
        assert content(folder / "study") == case["after"], (at, case["events"][at])
        shutil.rmtree(folder)


@pytest.mark.parametrize("number", ENDS, ids=["SIGINT", "SIGTERM"])
def test_stopped(number: signal.Signals, case: dict[str, Any], zygote: Zygote, tmp_path: Path) -> None:
    code, word = ENDS[number]
    for at in points(len(case["events"]), max(3, case["kills"] // 4)):
        folder = tmp_path / str(at)
        shutil.copytree(case["start"], folder, copy_function=shutil.copy2)
        stopped = zygote.run(folder, *case["words"], at=at, number=number)
        if stopped["status"] == 0 and at == len(case["events"]) - 1:
            continue  # the last step of all: it was done
        line = f"lynx-results: {word}; what is printed is done, the same command does it all"
        assert (stopped["status"], stopped["err"].splitlines()[-1:]) == (code, [line]), (
            at,
            case["events"][at],
            stopped,
        )
        assert "Traceback" not in stopped["err"]
        check_whole(folder / "study", case["before"], case["after"], case["verb"])
        made = {name for name in content(folder / "study").keys() - case["before"].keys()}
        left = [name for name in made if is_draft(name) or CLAIM in Path(name).parts]
        # what was given up and is not yet gone may stay: a claim, a cell that is being deleted
        given_up = [name for name in left if f".{CLAIM}." in name or name.startswith(f".{OLDER}.")]
        assert left == given_up, (at, case["events"][at])
        assert zygote.run(folder, *case["words"])["status"] == 0
        age(folder / "study")
        assert zygote.run(folder, "gc", "study", "--delete")["status"] == 0
        assert content(folder / "study") == case["after"], (at, case["events"][at])
        shutil.rmtree(folder)
