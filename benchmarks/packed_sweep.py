"""A sweep of 48 cells in packs, against the same cells one at a time, and against `lm_eval --model hf`.

    python benchmarks/packed_sweep.py [--limit 32] [--repeats 3]

4 tasks x 4 policies x batch sizes 1, 4 and 16 on the bundled model, in one process with the model loaded, through
the launcher: prompts, decoding, scoring by lm-eval, records on disk. Every side writes the same cells, and they are
compared byte for byte.

    packed      what `lynx-exp -m` does
    one cell    cells one after the other, the lanes of a cell packed
    one lane    cells one after the other, each lane alone: a batch of 1, 4 or 16, as any harness decodes it; experts
                computed in the way that is fastest for it, prompts prefilled anew for every cell
    lm_eval     lm-eval's own `hf` model on the same items at each batch size, vanilla: its milliseconds per generated
                token and per scored choice, times the tokens and choices of all cells

The last line's ratio is one lane / packed; its goal is 10. lm_eval / packed is in the cases; its goal is 20.
"""

from __future__ import annotations

import argparse
import filecmp
import shutil
import statistics
import tempfile
from io import StringIO
from pathlib import Path
from time import perf_counter
from typing import Any

import pyarrow.parquet as pq
from rich.console import Console

from benchmarks.harness import interleave, paired_ratio, report
from lynx_exp import Engine
from lynx_exp.config import Config, ModelConfig, PackConfig, TaskConfig, TrackerConfig
from lynx_exp.run.run_cells import run_cells
from lynx_exp.tasks.load_task import load_task

GOAL, GOAL_LM_EVAL = 10.0, 20.0
TASKS = {
    "mini_gsm8k": ["mini_gsm8k"],
    "mini_humaneval": ["mini_humaneval"],
    "mini_truthfulqa": ["mini_truthfulqa_gen", "mini_truthfulqa_mc1"],
    "mini_wmt16": ["mini_wmt16"],
}
POLICIES: list[dict[str, Any]] = [
    {"name": "vanilla"},
    {"name": "lynx", "alpha": 1.0, "beta": 2},
    {"name": "oea", "k0": 1},
    {"name": "lynx_v1_latency", "keep_experts": 8},
]
BATCHES = [1, 4, 16]
SCIENCE = ("responses.parquet", "steps.parquet", "samples.parquet", "metrics.json")


def configs(results: Path, limit: int, max_rows: int) -> list[Config]:
    return [
        Config(
            model=ModelConfig(kind="bundled", id="lynx_tiny"),
            policy=dict(policy),
            task=TaskConfig(name=task, subtasks=list(subtasks)),
            tracker=TrackerConfig(),
            batch_size=batch,
            limit=limit,
            pack=PackConfig(max_rows=max_rows),
            results=str(results),
        )
        for task, subtasks in TASKS.items()
        for policy in POLICIES
        for batch in BATCHES
    ]


class Side:
    """One way to run all cells, into a folder of its own, emptied each time."""

    def __init__(self, root: Path, name: str, limit: int) -> None:
        self.root, self.name, self.limit = root / name.replace(" ", "_"), name, limit
        experts = "per_expert" if name == "one lane" else "auto"
        self.engine = Engine.from_pretrained("lynx_tiny", experts_implementation=experts)

    def __call__(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)
        cells = configs(self.root, self.limit, 1 if self.name == "one lane" else 256)
        if self.name == "packed":
            self._run(cells, packed=True)
            return
        for cell in cells:
            self._run([cell], packed=False)

    def _run(self, cells: list[Config], packed: bool) -> None:
        def fresh(config: Config) -> Engine:
            engine = Engine(self.engine.model, self.engine.tokenizer, max_rows=config.pack.max_rows)
            engine.calibration = self.engine.calibration
            return engine

        done = run_cells(cells, packed=packed, console=Console(file=StringIO()), open_engine=fresh)
        assert all(outcome.state == "done" for outcome in done.outcomes), done


def folders(side: Side) -> dict[str, Path]:
    return {path.parent.name: path.parent for path in side.root.glob("*/*/DONE")}


def differing(one: Side, other: Side) -> int:
    """Cells whose science files differ."""
    mine, theirs = folders(one), folders(other)
    assert mine.keys() == theirs.keys()
    return sum(
        not all(filecmp.cmp(folder / file, theirs[name] / file, shallow=False) for file in SCIENCE)
        for name, folder in mine.items()
    )


def work(side: Side) -> dict[int, tuple[int, int]]:
    """Batch size -> generated tokens and scored choices of all its cells."""
    found = dict.fromkeys(BATCHES, (0, 0))
    for name, folder in folders(side).items():
        batch = next(b for b in BATCHES if f"-b{b}-" in name)
        table = pq.read_table(folder / "responses.parquet", columns=["new_tokens", "finish_reason"]).to_pylist()
        tokens = sum(row["new_tokens"] for row in table if row["finish_reason"] != "scored")
        choices = sum(row["finish_reason"] == "scored" for row in table)
        found[batch] = found[batch][0] + tokens, found[batch][1] + choices
    return found


def lm_eval_seconds(side: Side, limit: int, batch: int) -> tuple[float, float]:
    """(seconds per generated token, seconds per scored choice) of lm-eval's hf model on the same items."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    model, tokenizer = side.engine.model, side.engine.tokenizer
    assert tokenizer is not None
    model.set_experts_implementation("grouped_mm")  # transformers' own choice
    lm: Any = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch, device="cpu")
    tokens, seconds, choices, scoring = 0, 0.0, 0, 0.0
    for name in (subtask for subtasks in TASKS.values() for subtask in subtasks):
        task = load_task(name, limit=limit)
        kind = "generate_until" if task.kind == "generate" else "loglikelihood"
        instances = []
        for number, request in enumerate(task.requests):
            second: Any = request.continuation
            if kind == "generate_until":
                second = {"until": list(request.until), "max_gen_toks": request.max_new_tokens, "do_sample": False}
            instances.append(Instance(kind, {}, (request.prompt, second), number))
        start = perf_counter()
        answers = getattr(lm, kind)(instances, disable_tqdm=True)
        spent = perf_counter() - start
        if kind == "generate_until":
            seconds += spent
            tokens += sum(len(tokenizer(answer, add_special_tokens=False).input_ids) + 1 for answer in answers)
        else:
            scoring += spent
            choices += len(instances)
    model.set_experts_implementation("per_expert_exact")
    return seconds / tokens, scoring / choices


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, default=32, help="documents of each subtask")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sides = {name: Side(Path(folder), name, arguments.limit) for name in ("packed", "one cell", "one lane")}
        seconds = interleave(sides, arguments.repeats)
        packed = sides["packed"]
        differ = {name: differing(packed, side) for name, side in sides.items() if side is not packed}
        done = work(packed)
        lm_eval: list[float] = []
        for _ in range(arguments.repeats):
            rates = {batch: lm_eval_seconds(packed, arguments.limit, batch) for batch in BATCHES}
            lm_eval.append(sum(done[b][0] * rates[b][0] + done[b][1] * rates[b][1] for b in BATCHES))
        seconds["lm_eval"] = lm_eval
    tokens, choices = (sum(counts[i] for counts in done.values()) for i in (0, 1))
    print(f"{len(configs(Path(), 1, 1))} cells, {tokens} generated tokens, {choices} scored choices, lynx_tiny")
    print(f"{'side':>10} {'seconds':>8} {'ms/token':>9} {'/ packed':>9} {'95 %':>15}  cells that differ from packed")
    cases = []
    for name, times in seconds.items():
        ratio, low, high = paired_ratio(times, seconds["packed"])
        middle = statistics.median(times)
        case = {"side": name, "seconds": middle, "ratio": ratio, "low": low, "high": high, "differ": differ.get(name)}
        if name == "lm_eval":
            case |= {"goal": GOAL_LM_EVAL, "met": ratio >= GOAL_LM_EVAL}
        cases.append(case)
        shown = "" if differ.get(name) is None else differ[name]
        print(
            f"{name:>10} {middle:>8.1f} {middle / tokens * 1e3:>9.3f} {ratio:>9.2f} [{low:6.2f},{high:6.2f}]  {shown}"
        )
    report("packed_sweep", GOAL, next(case for case in cases if case["side"] == "one lane"), cases)


if __name__ == "__main__":
    main()
