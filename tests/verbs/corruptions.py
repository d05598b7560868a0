"""Single corruptions of a study, and the rules that each breaks: the first is the one meant for it, the others see what
follows from it. All but the first group leave DONE in agreement, as a faulty writer would."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lynx_exp.store.claims import Claims
from lynx_exp.store.files import read_json, write_json
from tests.store.claiming import rewrite
from tests.verbs.study import cell_of, edit, seal


@dataclass(frozen=True)
class Corruption:
    name: str
    do: Callable[[Path], Any]
    """On a copy of the study."""
    rules: tuple[str, ...]

    def __str__(self) -> str:
        return self.name


def of(name: str, rules: str, file: str, change: Callable[[Any], Any], task: str = "both", policy: str = "lynx"):
    """A change to the value, or the rows, of one file of one cell."""
    return Corruption(name, lambda study: edit(cell_of(study, task, policy), file, change), tuple(rules.split()))


def to(name: str, rules: str, do: Callable[[Path], Any], task: str = "both", policy: str = "lynx") -> Corruption:
    """Something done to the folder of one cell."""
    return Corruption(name, lambda study: do(cell_of(study, task, policy)), tuple(rules.split()))


def at(*path: Any, value: Any) -> Callable[[Any], None]:
    """Sets an item deep in a value."""

    def change(whole: Any) -> None:
        for key in path[:-1]:
            whole = whole[key]
        whole[path[-1]] = value

    return change


def replan(stream: str, change: Callable[[list[list[int]]], Any], what: str = "lanes") -> Callable[[Any], None]:
    """Other lanes, or fillers of them, with the digest that they have."""

    def changed(plan: Any) -> None:
        of = plan[stream]
        change(of[what])
        whole = of["lanes"] if of["batching"] == "static" else [of["lanes"], of["batch_size"], of["fillers"]]
        of["digest"] = hashlib.sha256(json.dumps(whole).encode()).hexdigest()

    return changed


def in_both(change: Callable[[list[dict[str, Any]]], Any]) -> Callable[[Path], None]:
    """The same to a response and to the sample made of it."""

    def do(folder: Path) -> None:
        for table in ("responses", "samples"):
            edit(folder, table, change)

    return do


def with_requests(numbers: dict[int, dict[str, Any]]) -> Callable[[list[dict[str, Any]]], None]:
    def change(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            if row["subtask"] in ("mini_truthfulqa_gen", "mini_wmt16"):
                row.update(numbers.get(row["request"], {}))

    return change


def swap_slots(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        if row["subtask"] == "mini_truthfulqa_gen" and row["lane"] == 0:
            row["slot"] = {0: 1, 1: 0}.get(row["slot"], row["slot"])


def copied(rows: list[dict[str, Any]]) -> None:
    """Of every document the first."""
    for row in rows:
        row |= {name: rows[0][name] for name in ("subtask", "doc_id", "prompt_hash")}


def first(subtask: str, /, **changes: Any) -> Callable[[list[dict[str, Any]]], None]:
    """Changes the first row of a subtask."""

    def change(rows: list[dict[str, Any]]) -> None:
        next(row for row in rows if row["subtask"] == subtask).update(changes)

    return change


def claimed(folder: Path, pid: int) -> None:
    """As a process of this machine would."""
    claims = Claims()
    assert claims.take(folder)
    rewrite(folder, pid=pid, born="0" if pid != os.getpid() else BORN)


BORN = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19] if Path("/proc/self/stat").exists() else ""


def flip(folder: Path, name: str) -> None:
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)


def forget_steps(folder: Path) -> None:
    done = read_json(folder / "DONE")
    del done["files"]["steps.parquet"]
    write_json(folder / "DONE", done)


def exchange(lanes: list[list[int]]) -> None:
    """The first requests of two lanes."""
    lanes[0][0], lanes[1][0] = lanes[1][0], lanes[0][0]


def other_seed(folder: Path) -> None:
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace("\nseed: 0\n", "\nseed: 1\n"))
    edit(folder, "cell.json", at("seed", value=1))
    edit(folder, "plan.json", at("mix", "seed", value=1))


def every_cpu(study: Path) -> None:
    for policy in ("vanilla", "lynx"):
        edit(cell_of(study, "both", policy), "provenance.json", at("numerics", "cpu", value="another"))


def sweep_file(study: Path) -> Path:
    (file,) = (study / "sweeps").glob("*.json")
    return file


def asks_for_more(study: Path) -> None:
    content = read_json(sweep_file(study))
    content["cells"][0]["requests"] += 1
    write_json(sweep_file(study), content)


def renamed_column(folder: Path) -> None:
    import pyarrow.parquet as pq

    table = pq.read_table(folder / "responses.parquet")
    pq.write_table(table.rename_columns(["lane2" if n == "lane" else n for n in table.column_names]),
                   folder / "responses.parquet")  # fmt: skip
    seal(folder)


def cut(folder: Path) -> None:
    file = folder / "steps.parquet"
    file.write_bytes(file.read_bytes()[:-30])
    seal(folder)


def touch(name: str, content: str = "") -> Callable[[Path], None]:
    def do(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content)

    return do


GEN, MC, WMT = "mini_truthfulqa_gen", "mini_truthfulqa_mc1", "mini_wmt16"


def table() -> Iterator[Corruption]:
    yield to("a table is gone", "readable", lambda folder: (folder / "samples.parquet").unlink())
    yield to("cell.json is gone", "readable", lambda folder: (folder / "cell.json").unlink())
    yield to("cell.json is no JSON", "readable hash", lambda folder: (folder / "cell.json").write_text("{"))
    yield to("provenance changed by hand", "hash", lambda f: write_json(f / "provenance.json", read_json(
        f / "provenance.json") | {"command": ["other"]}))  # fmt: skip
    yield to("a flipped bit in the responses", "hash", lambda folder: flip(folder, "responses.parquet"))
    yield to("a flipped bit in the status", "hash", lambda f: (f / "status.json").write_text(
        (f / "status.json").read_text().replace('"failures": 0', '"failures": 1')))  # fmt: skip
    yield to("DONE forgets a file", "hash", forget_steps)
    yield to("DONE is spelt otherwise", "hash", lambda f: (f / "DONE").write_text(json.dumps(read_json(f / "DONE"))))
    yield to("DONE is no JSON", "readable", lambda folder: (folder / "DONE").write_text("{"))
    yield to("no DONE", "state", lambda folder: (folder / "DONE").unlink())
    yield Corruption("a sweep's file is no JSON", lambda study: sweep_file(study).write_text("{"), ("readable",))

    yield to("half a table", "readable", cut)
    yield to("a column of another name", "readable", renamed_column)
    yield of("a field of another type", "readable", "metrics.json", at("by_subtask", value=[1]))
    yield of("an older schema", "schema", "cell.json", at("schema", value=0))
    yield of("a status that says failed", "state", "status.json", at("state", value="failed"))
    yield of("a cell that says it is invalid", "invalid", "status.json", at("invalid", value=["all cut off"]))
    yield to("all cut off, and not said", "invalid numbers guard", lambda folder: in_both(
        lambda rows: [row | {"finish_reason": "length"} for row in rows])(folder), WMT, "top_k")  # fmt: skip
    yield to("a folder of another name", "identity sweep", lambda f: f.rename(f.with_name("lynx-0123456789")))
    yield of("another pair", "identity partner", "cell.json", at("pair_id", value="0" * 64))
    yield of("another id", "identity", "cell.json", at("cell_id", value="0" * 64))
    yield to("another seed, everywhere", "identity", other_seed, "mix", "vanilla")
    yield of("another limit in cell.json", "config", "cell.json", at("limit", value=6))
    yield of("another parameter in cell.json", "config", "cell.json", at("policy_params", "alpha", value=2.0))
    yield of("another seed in the plan", "config", "plan.json", at(GEN, "seed", value=1))

    yield of("a digest of another plan", "plan", "plan.json", at("mix", "digest", value="0" * 64), "mix", "vanilla")
    yield of("a request planned twice", "plan coverage", "plan.json",
             replan("mix", lambda lanes: lanes[1].__setitem__(0, lanes[0][0])), "mix", "vanilla")  # fmt: skip
    yield of("a lane too long", "plan coverage", "plan.json",
             replan("mix", lambda lanes: lanes[0].extend(lanes.pop(1))), "mix", "vanilla")  # fmt: skip
    yield of("an empty lane", "plan", "plan.json", replan("mix", lambda lanes: lanes.append([])), "mix", "vanilla")
    yield of("another plan than vanilla's", "pairing coverage fidelity", "plan.json", replan(GEN, exchange))
    twice = replan(WMT, lambda fillers: fillers[0].__setitem__(0, fillers[0][1]), "fillers")
    yield of("a filler planned twice", "plan coverage pairing", "plan.json", twice, WMT, "top_k")
    yield of("a filler's response of another lane", "coverage", "responses", lambda rows: [
        row | {"lane": 1 - row["lane"]} if row["filler"] else row for row in rows], WMT, "top_k")  # fmt: skip
    yield of("two copies in a batch", "copies samples numbers", "responses", copied, "mix", "vanilla")
    yield of("a scored row too many", "steps numbers", "steps", at(0, "scored_rows", value=1), "mix", "vanilla")
    yield of("a response lost", "coverage samples numbers", "responses", lambda rows: rows[1:])
    yield of("a response twice", "coverage copies numbers", "responses", lambda rows: [rows[0], *rows])
    yield of("a response of an unknown subtask", "coverage samples", "responses", first(MC, subtask="other"))
    yield to("a request in another lane", "coverage", in_both(with_requests({0: {"lane": 7}})))
    yield to("two slots swapped", "slots", in_both(swap_slots))
    yield to("an ending that there is not", "responses", in_both(with_requests({0: {"finish_reason": "tired"}})))
    yield of("a likelihood above one", "responses", "responses", first(MC, logprob=0.5))
    yield of("a likelihood that is no number", "responses", "responses", first(MC, logprob=float("nan")))
    yield of("a likelihood of what was generated", "responses", "responses", first(GEN, logprob=-1.0))
    yield of("an empty prompt", "responses pairing", "responses", first(GEN, prompt_tokens=0))

    yield of("the last step lost", "steps numbers", "steps", lambda rows: rows[:-4], "mix", "vanilla")
    yield of("no decode step, and not said", "invalid steps numbers timing", "steps", lambda rows: [
        row for row in rows if row["subtask"] != GEN])  # fmt: skip
    yield of("a layer lost", "steps numbers", "steps", lambda rows: [r for r in rows if r["layer"] != 2])
    yield of("a step twice", "steps numbers", "steps", lambda rows: [*rows, rows[0]])
    yield of("a live row too many", "steps numbers", "steps", lambda rows: [
        row | {"live_rows": row["live_rows"] + (row["step"] == 4)} for row in rows])  # fmt: skip
    yield of("more experts than there are", "active numbers", "steps", at(0, "active_experts", value=17))
    yield of(
        "fewer experts than a token has", "active numbers", "steps", at(0, "active_experts", value=1), "mix", "vanilla"
    )

    yield of("a sample lost", "samples scores", "samples", lambda rows: rows[1:])
    yield of("a sample twice", "samples scores", "samples", lambda rows: [rows[0], *rows])
    yield of("another text in a sample", "samples", "samples", first(GEN, response="Something else"))
    yield of("a sample of an unknown request", "samples", "samples", first(GEN, request=99))
    yield of("a sample of another's response", "samples", "samples", lambda rows: first(
        GEN, request=(rows[0]["request"] + 1) % 5)(rows))  # fmt: skip

    yield of("another metric", "scores", "metrics.json", at("metrics", 0, "value", value=0.123))
    yield of("a metric that is no number", "scores", "metrics.json", at("metrics", 1, "value", value=None))
    yield of(
        "two headlines", "scores", "metrics.json", lambda m: m["metrics"].append(m["metrics"][0] | {"metric": "x"})
    )
    yield of("a metric of more samples", "scores", "metrics.json", at("metrics", 0, "samples", value=6))
    yield of("another BLEU", "scores", "metrics.json", at("metrics", 0, "value", value=99.5), WMT, "top_k")
    yield of("another answer behind the BLEU", "scores", "samples", first(WMT, filtered="Ein Fehler."), WMT, "top_k")
    yield of("another score of a document", "scores", "samples", first(GEN, score=0.25))
    yield of("other active experts", "numbers", "metrics.json", at("active_experts", value=4.0))
    yield of("another share cut off", "numbers", "metrics.json", at("by_subtask", GEN, "length_stop_share", value=0.5))
    yield of("another divergence", "numbers", "metrics.json", at("kl", value=1.0))
    yield of("a number lost", "numbers", "metrics.json", lambda metrics: metrics.pop("live_rows") and None)
    yield of(
        "numbers of a subtask lost", "numbers", "metrics.json", lambda metrics: metrics["by_subtask"].pop(GEN) and None
    )

    yield of("more tokens that agree than there are", "fidelity numbers", "fidelity", at(0, "agreeing", value=99))
    yield of("a negative divergence", "fidelity numbers", "fidelity", at(0, "kl", value=-1.0))
    yield of("mass that was lost twice", "fidelity", "fidelity", at(0, "retained", value=-1.0))
    yield of("mass of no prompt", "fidelity", "fidelity", at(0, "prompt_retained", value=2.0))
    yield of("a request compared twice", "fidelity numbers", "fidelity", lambda rows: [rows[0], *rows])
    yield of("a timed step lost", "timing", "timing", lambda rows: rows[:-1])
    yield of("a step that was not run", "timing", "timing", at(0, "start_step", value=9999))
    yield of("timed with other companions", "timing", "timing", at(0, "live_rows", value=9))
    yield of("a step of no time", "timing", "timing", at(0, "ms", value=0.0))
    yield of("no times of vanilla", "timing", "timing", lambda rows: [r for r in rows if r["name"] != "vanilla"])
    yield of("half a warm-up", "timing", "timing.json", lambda info: info["warmup_round_ms"]["policy"].__delitem__(
        slice(1, None)))  # fmt: skip
    yield of("times of another attempt", "timing", "timing.json", at("attempt", value=2))
    yield of("timed at another batch size", "timing", "timing.json", at("batch_size", value=4))
    yield of("times less precise than asked for", "precision", "timing.json", at("precision_reached", value=False))
    yield of("timed while others were at work", "busy", "timing.json", at("other_threads", value=2.5))
    yield of("more bytes than were read", "timing", "timing.json", at("vanilla_step_gb", value=1.0))
    yield of("another share of the bandwidth", "timing", "timing.json", at("policy_s_mbu", value=0.99))
    yield of("a rate lost", "timing", "timing.json", lambda info: info.pop("policy_gb_s") and None)
    yield of("a warm-up that never settled", "warm-up", "timing.json", at("stable", value=False))

    yield to("a copy of a cell", "duplicate identity", lambda f: shutil.copytree(f, f.with_name("copy-0123456789")))
    yield to("other prompts than vanilla's", "pairing", in_both(with_requests({0: {"prompt_hash": "0" * 16}})))
    yield to("no vanilla", "partner sweep", shutil.rmtree, "both", "vanilla")
    yield to("vanilla unfinished", "state partner", lambda folder: (folder / "DONE").unlink(), "both", "vanilla")
    yield of("another torch", "environment", "provenance.json", at("numerics", "packages.torch", value="2.0.0"))
    yield of("another number of CPUs", "environment", "provenance.json", at("numerics", "cpus", value=64))
    yield Corruption("two pairs on two machines", every_cpu, ("machines",))
    yield to("a cell that a sweep asked for is gone", "sweep", shutil.rmtree, "mix", "vanilla")
    yield Corruption("a sweep that asked for more", asks_for_more, ("sweep",))

    yield to("somebody works on it", "running", lambda folder: claimed(folder, os.getpid()))
    yield to("a claim of the dead", "leftovers", lambda folder: claimed(folder, 2**22 + 1))
    yield to("what a kill left", "leftovers", touch(".metrics.json.abcd.tmp"))
    yield to("the journal of a finished cell", "leftovers", touch("lanes/mini_wmt16-00000.json"))
    yield to("a file of somebody else", "leftovers", touch("notes.txt"))
    yield Corruption("what a kill left of a sweep", touch("sweeps/.x.json.abcd.tmp"), ("leftovers",))


CORRUPTIONS = tuple(table())
