"""Finished cells as lm-eval's own files: `results_*.json` and `samples_*.jsonl`, written by lm-eval itself.

lm-eval's `evaluate` runs on the tasks that a cell was asked, with a model that repeats the cell's stored responses.
"""

from __future__ import annotations

import copy
import errno
import json
import shutil
import tempfile
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from itertools import groupby
from pathlib import Path
from time import perf_counter, time
from typing import TYPE_CHECKING, Any

from lynx_exp.run.cell_rows import responses_of
from lynx_exp.run.load_tasks import LoadTask, sandbox_of, settings_of
from lynx_exp.run.replay.finished_cells import StoredCell, open_stored
from lynx_exp.store.claims import STALE_S
from lynx_exp.store.files import file_name, sync
from lynx_exp.store.read import CellRecord
from lynx_exp.tasks.code import code_run
from lynx_exp.tasks.load_task import load_task

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from lm_eval.api.task import ConfigurableTask

    from lynx_exp.tasks import EvalTask
    from lynx_exp.tasks.run_programs import Sandbox

_DRAFTS = ".new-"
"""Begins the name of the folder that an export makes; a killed one leaves it."""

Given = dict[tuple[str, int, int], deque[object]]
"""(task, document, number of the request in it) -> responses, one a repeat."""


def export_lm_eval(
    record: CellRecord,
    out: Path,
    *,
    sandbox: str | None = None,
    confirm_unsafe_code: bool = False,
    load: LoadTask = load_task,
) -> list[Path]:
    """Write the cell into `out/<name of its folder>`, over what an earlier export of it left; the files, results first.

    Generated code runs again, all programs side by side, in `sandbox` (None: what the cell was run with). Means have
    lm-eval's analytic standard errors; those that it would bootstrap (BLEU's) are N/A. ValueError if the tasks are no
    longer what the cell was asked, or give other scores than its metrics.json: `lynx-results rescore` is for that.
    """
    cell = open_stored(record, sandbox=sandbox, confirm_unsafe_code=confirm_unsafe_code, load=load)
    results = _evaluated(cell)
    _check_scores(record, results["results"])
    samples = results.pop("samples")
    results |= _run_facts(cell)
    folder = out / record.path.name
    folder.mkdir(parents=True, exist_ok=True)
    # young ones may be a living process's, which exports the same cell
    for killed in folder.glob(f"{_DRAFTS}*"):
        if time() - killed.stat().st_mtime > STALE_S:
            shutil.rmtree(killed)
    with tempfile.TemporaryDirectory(dir=folder, prefix=_DRAFTS) as fresh:
        date = _save(cell, results, samples, Path(fresh))
        stamp = _finished(record)
        for old in [*folder.glob("results_*.json"), *folder.glob("samples_*.jsonl")]:  # results first ...
            old.unlink(missing_ok=True)
        written = []
        for path in sorted(Path(fresh).iterdir(), reverse=True):  # ... and last: they never stand without their samples
            sync(path)
            written.append(path.replace(folder / path.name.replace(date, stamp)))
    sync(folder)
    return sorted(written)


def _evaluated(cell: StoredCell) -> dict[str, Any]:
    """What lm-eval's `evaluate` gives for the stored responses."""
    from lm_eval.api.model import LM
    from lm_eval.evaluator import evaluate

    given: Given = defaultdict(deque)
    shown: dict[str, ConfigurableTask] = {}
    values: dict[str, dict[tuple[str, str], list[object]]] = {}
    for task in cell.tasks:
        rows = iter(responses_of(task, cell.responses[task.name]))
        for member in task.members:
            for instance in member.lm_eval_task.instances:
                key = (member.name, instance.doc_id, instance.idx)
                # in the order in which the cell asked, since equal keys are told apart by their turn alone
                given[key].extend(next(rows) for _ in range(member.repeats))
            values[member.name] = {}
            sandbox = sandbox_of(cell.config) if member.runs_code else None
            shown[member.name] = _for_evaluate(member, values[member.name], sandbox)

    class Replay(LM):
        """Answers as the cell did."""

        def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[object]:
            return [given[request.task_name, request.doc_id, request.idx].popleft() for request in requests]

        loglikelihood = generate_until

        def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
            raise AssertionError("no cell asks for it")

    results = evaluate(
        lm=Replay(),
        task_dict={"tasks": shown, "groups": {}},
        bootstrap_iters=0,
        confirm_run_unsafe_code=True,  # in the sandbox
    )
    for name, of_task in values.items():
        results["results"][name] |= _standard_errors(shown[name], of_task)
    return results


def _for_evaluate(
    member: EvalTask, values: dict[tuple[str, str], list[object]], sandbox: Sandbox | None
) -> ConfigurableTask:
    """The task as `evaluate` is to see it: with the requests that it has, and the documents' metrics computed all at
    once, which are kept in `values`, too."""
    task = copy.copy(member.lm_eval_task)
    instances = [replace(instance, resps=[], filtered_resps={}) for instance in task.instances]
    by_doc = [list(of_doc) for _, of_doc in groupby(instances, key=lambda instance: instance.doc_id)]
    made: deque[Mapping[str, object]] = deque()
    apply = type(task).apply_filters

    def apply_filters() -> None:
        with code_run(sandbox):
            apply(task)
            for name in instances[0].filtered_resps:
                for of_doc_values in member.values(by_doc, name)[0]:
                    made.append(of_doc_values)
                    for metric, value in of_doc_values.items():
                        values.setdefault((metric, name), []).append(value)

    task._instances = instances
    task.build_all_requests = lambda **_: None
    task.apply_filters = apply_filters
    task.doc_iterator = lambda **_: ((of_doc[0].doc_id, of_doc[0].doc) for of_doc in by_doc)
    task.process_results = lambda _doc, _filtered: made.popleft()
    return task


def _standard_errors(task: ConfigurableTask, values: Mapping[tuple[str, str], Sequence[object]]) -> dict[str, float]:
    """lm-eval's own of means; what a task declares no aggregation of is one for lm-eval, such as pass@k of repeats."""
    from lm_eval.api.metrics import mean, mean_stderr

    known = task.aggregation()
    means = {metric for metric, _ in values if known.get(metric, mean) is mean}
    return {
        f"{metric}_stderr,{name}": mean_stderr(of_docs)
        for (metric, name), of_docs in values.items()
        if metric in means and len(of_docs) > 1
    }


def _check_scores(record: CellRecord, found: Mapping[str, Mapping[str, object]]) -> None:
    for row in record.metrics["metrics"]:
        now = found[row["subtask"]].get(f"{row['metric']},{row['filter']}")
        if row["value"] is not None and now != row["value"]:
            raise ValueError(
                f"{row['subtask']}: {row['metric']},{row['filter']} is {now} now, and {row['value']} in metrics.json; "
                "run `lynx-results rescore` first"
            )


def _run_facts(cell: StoredCell) -> dict[str, object]:
    """What `simple_evaluate` adds, of the run that gave the responses, and what only this package knows."""
    config, record = cell.config, cell.record
    info, packages = record.info, record.provenance.get("packages", {})
    return {
        "config": {
            "model": "lynx",
            "model_args": _model_args(cell),
            "model_dtype": info["dtype"],
            "model_revision": config.model.revision or "main",
            "batch_size": config.batch_size,
            "batch_sizes": [config.batch_size],
            "device": info["device"],
            "use_cache": None,
            "limit": config.limit,
            "bootstrap_iters": 0,
            "gen_kwargs": {key: value for key, value in vars(config.task.generation).items() if value is not None},
            "fewshot_seed": config.task.fewshot_seed,
        },
        "git_hash": (record.provenance.get("git") or {}).get("revision"),
        "date": datetime.fromisoformat(record.status["started"]).timestamp(),
        "lm_eval_version": packages.get("lm_eval"),
        "transformers_version": packages.get("transformers"),
        "lynx_exp": {
            name: info.get(name)
            for name in ("cell_id", "pair_id", "study", "policy", "policy_params", "match_active", "phases", "layers")
        }
        | {name: info.get(name) for name in ("batch_size", "batching", "seed")}
        | {name: value for name, value in record.metrics.items() if name not in ("metrics", "by_subtask")},
    }


def _model_args(cell: StoredCell) -> dict[str, object]:
    """With which `lm_eval --model lynx` asks the same of the same model."""
    config = cell.config
    args: dict[str, object] = {"pretrained": cell.record.info["model"], "policy": config.policy_name}
    args |= config.policy_params
    if "matched" in cell.record.metrics:  # the knob as match_active has set it
        matched = cell.record.metrics["matched"]
        args[matched["parameter"]] = matched["value"]
    args |= {"phases": config.phases, "layers": config.layers, "revision": config.model.revision}
    args |= {"decode_batch": config.batch_size, "batching": config.batching, "tail": config.tail, "seed": config.seed}
    args |= {"scoring": config.scoring, "truncate": config.truncate, "dtype": cell.record.info["dtype"]}
    return {key: value for key, value in args.items() if value is not None}


def _save(cell: StoredCell, results: dict[str, Any], samples: Mapping[str, Sequence[object]], folder: Path) -> str:
    """lm-eval's files into `folder`; the date in their names."""
    from lm_eval.loggers import EvaluationTracker

    tracker = EvaluationTracker(output_path=str(folder / "results.json"))
    general, task = tracker.general_config_tracker, cell.config.task
    chat = settings_of(cell.config).chat
    template = None if chat is None else str(chat.tokenizer.chat_template)
    general.log_experiment_args("lynx", _model_args(cell), task.system_instruction, template, task.fewshot_as_multiturn)
    general.start_time = perf_counter() - float(cell.record.status.get("seconds") or 0.0)
    tracker.save_results_aggregated(results=results, samples=dict(samples))
    date: str = getattr(tracker, "date_id", "")
    for name in results["configs"]:
        tracker.save_results_samples(task_name=file_name(name), samples=samples[name])
    expected = {f"results_{date}.json", *(f"samples_{file_name(name)}_{date}.jsonl" for name in results["configs"])}
    found = {path.name for path in folder.iterdir()}
    if not found <= expected:
        raise RuntimeError(f"lm-eval wrote {sorted(found)}, not {sorted(expected)}")
    lines = {f"samples_{file_name(name)}_{date}.jsonl": len(samples[name]) for name in results["configs"]}
    if found != expected or not all(_is_whole(folder / name, lines.get(name)) for name in found):
        raise OSError(errno.EIO, "lm-eval could not write its files: is the disk full?", str(folder.parent))
    return date


def _is_whole(path: Path, lines: int | None) -> bool:
    """Whether a file has all that lm-eval was to write, which only logs what goes wrong there. `lines`: of samples;
    None: one JSON object."""
    content = path.read_bytes()
    if lines is not None:
        return content.count(b"\n") == lines and content.endswith(b"\n" if lines else b"")
    try:
        return isinstance(json.loads(content), dict)
    except ValueError:
        return False


def _finished(record: CellRecord) -> str:
    """In place of today's date, so that an export writes over the one before."""
    finished = record.status["finished"]
    assert finished is not None, "the cell is done"
    moment = datetime.fromisoformat(finished).replace(tzinfo=None)
    return moment.isoformat(timespec="microseconds").replace(":", "-")
