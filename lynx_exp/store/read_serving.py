"""Results of vLLM's own load generator beside the cells of a study: read, brought to one form, kept in `serving/`."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any, cast

from lynx_exp.config import default_parameters, did_you_mean, label_policy
from lynx_exp.store.file_forms import fault
from lynx_exp.store.reading import Damaged, read_bytes, read_value, value_or_empty
from lynx_exp.store.shapes import anything, count, either, fields, items, maybe, number, text, wrong

FOLDER = "serving"
"""Of a study."""
STOCK = "stock"
"""Label of a server without the plugin's setting."""
METRICS = ("ttft", "tpot", "itl", "e2el")
STATISTICS = ("mean", "median", "p99")
_WHOLE = ("request_throughput", "output_throughput", "total_token_throughput", "request_goodput")
_COUNTS = ("num_prompts", "completed", "failed", "total_input_tokens", "total_output_tokens", "max_concurrency")
_OWN = ("policy", "phases", "layers", "count", "report", "lanes")


def bench_files(paths: Iterable[Path]) -> Iterator[Path]:
    """The files, and in folders every result of one run below (not the summaries that `vllm bench sweep` makes of
    them). ValueError for a path that does not exist, or a folder without any."""
    for path in paths:
        if path.is_file():
            yield path
            continue
        if not path.is_dir():
            raise ValueError(f"{path}: no such file or folder")
        found = [file for file in sorted(path.rglob("*.json")) if file.stem != "warmup" and _has_runs(file)]
        if not found:
            raise ValueError(f"{path}: holds no result of `vllm bench serve --save-result`")
        yield from found


def _has_runs(path: Path) -> bool:
    """Also a damaged file that had some: who reads it says so."""
    try:
        return any(map(is_run, _values(path)))
    except Damaged:
        return path.is_file() and b'"request_throughput"' in path.read_bytes()


def _values(path: Path) -> list[Any]:
    """The JSON values of a file, one after another: `--append-result` adds one a run."""
    try:
        text = read_bytes(path).decode("utf-8-sig")
        decoder, at, found = json.JSONDecoder(), 0, list[Any]()
        while rest := len(text[at:].lstrip()):
            value, at = decoder.raw_decode(text, len(text) - rest)
            found.append(value)
    except RecursionError as error:
        raise Damaged(path, "nested too deep") from error
    except ValueError as error:
        if isinstance(error, Damaged):
            raise
        raise Damaged(path, f"is not JSON: {error}") from error
    return found


def is_run(content: object) -> bool:
    """Whether this is what `vllm bench serve` saved of one run."""
    return isinstance(content, dict) and "request_throughput" in content and "median_tpot_ms" in content


def read_bench(path: Path) -> dict[str, object]:
    """The only run of a file, as `read_runs`."""
    found = read_runs(path)
    if len(found) != 1:
        raise ValueError(f"{path}: holds {len(found)} runs, not one")
    return found[0]


def read_runs(path: Path) -> list[dict[str, object]]:
    """Every run of a file in our form: policy, load, throughput, TTFT / TPOT / ITL / E2EL in milliseconds, and the
    experts that the server's plugin counted, where its report is at hand. ValueError if there is something else in it,
    or a run of no use."""
    try:
        contents = _values(path)
    except Damaged as error:
        raise ValueError(f"{path}: not a result of `vllm bench serve --save-result`: {error.reason}") from error
    if not contents or not all(map(is_run, contents)):
        raise ValueError(f"{path}: not a result of `vllm bench serve --save-result`")
    records = []
    for place, content in enumerate(contents, 1):
        # a file may hold many runs: an error names the one
        head = f"{path}: run {place}" if len(contents) > 1 else str(path)
        if reason := fault(content, _RUN):
            raise ValueError(f"{head}: {reason}")
        if not content.get("completed"):
            raise ValueError(f"{head}: no request was completed: its numbers say nothing")
        records.append(_record(content, path, place if len(contents) > 1 else None))
    return records


_RATE = either(maybe(number), lambda value: None if value == "inf" else wrong(value, "a number of requests a second"))
_METRICS = [f"{statistic}_{metric}_ms" for statistic in STATISTICS for metric in METRICS]
_RUN = fields(
    {"duration": number, "completed": maybe(count), "request_throughput": number, "median_tpot_ms": maybe(number)},
    {
        **dict.fromkeys((*_COUNTS, "run_number"), maybe(count)),
        **dict.fromkeys((*_WHOLE, *_METRICS, "burstiness"), maybe(number)),
        "request_rate": _RATE,
    },
)
"""What `vllm bench serve` saves, as far as it is read."""


def _record(content: Mapping[str, object], path: Path, place: int | None) -> dict[str, object]:
    """`place`: of the run in its file, where there are several."""
    setting = setting_of(content, path)
    # of the run, not of the file: more runs appended to it leave the earlier ones what they are
    whole = path.read_bytes() if place is None else json.dumps(content, sort_keys=True).encode()
    record: dict[str, object] = {
        "source": path.name,
        "sha256": hashlib.sha256(whole).hexdigest(),
        "date": content.get("date"),
        "model": PurePath(str(content.get("model_id"))).name,
        "request_rate": _finite(content.get("request_rate")),
        "burstiness": content.get("burstiness"),
        "duration_s": content["duration"],
        # `vllm bench sweep` numbers repeats; of runs that were appended to one file the place is all there is
        "run_number": content.get("run_number") or (0 if place is None else place - 1),
    }
    record |= {name: content.get(name) for name in (*_COUNTS, *_WHOLE)}
    for metric in METRICS:
        for statistic in STATISTICS:
            record[f"{metric}_{statistic}_ms"] = content.get(f"{statistic}_{metric}_ms")
    record |= _policy(setting)
    record["experts"] = _experts(setting, path)
    return record


def setting_of(content: Mapping[str, object], path: Path) -> dict[str, object] | None:
    """The plugin's setting of the server: `vllm bench sweep` notes it as it is; of a single run it is in the metadata
    (`--metadata policy=lynx alpha=3`). None: the server had none."""
    more = content.get("additional_config")
    if isinstance(more, str):
        more = _number(more)
    if isinstance(more, dict) and isinstance(more.get("lynx"), dict | None):
        return more.get("lynx")
    if more is not None:
        raise ValueError(f"{path}: additional_config: {str(more)[:40]!r}, not the settings of a server")
    name = content.get("policy")
    if not isinstance(name, str) or name == STOCK:
        return None
    known = default_parameters(name)
    if known is None:
        raise ValueError(f"{path}: metadata policy={name}: unknown policy{did_you_mean(name, _policies())}")
    given = {key: _number(content[key]) for key in (*known, *_OWN) if key in content and key != "policy"}
    return {"policy": name} | given


def _policies() -> list[str]:
    from lynx_exp.config import config_folder

    return sorted(path.stem for path in (config_folder() / "policy").glob("*.yaml"))


def _policy(setting: Mapping[str, object] | None) -> dict[str, object]:
    if setting is None:
        return {"policy": STOCK, "policy_label": STOCK, "phases": "none"}
    name, layers = str(setting.get("policy", "vanilla")), cast("str | None", setting.get("layers"))
    given = {key: value for key, value in setting.items() if key not in _OWN}
    label = label_policy(name, (default_parameters(name) or {}) | given, layers)
    return {"policy": name, "policy_label": label, "phases": setting.get("phases", "decode")}


_REPORT = fields(
    {"decode_steps": count, "experts_before": items(number), "experts_after": items(number), "by_rows": anything}
)
"""What the plugin writes, as far as it is read."""


def _experts(setting: Mapping[str, object] | None, path: Path) -> dict[str, object] | None:
    """What the plugin counted over the life of the server: its report, where the setting says, or beside the file."""
    named = None if setting is None else setting.get("report")
    if not isinstance(named, str):
        return None
    for place in (Path(named), *(folder / PurePath(named).name for folder in path.parents[:5])):
        report = value_or_empty(place, _REPORT)
        if report.get("decode_steps") and report["experts_before"] and report["experts_after"]:
            before, after = (sum(report[key]) / len(report[key]) for key in ("experts_before", "experts_after"))
            return {
                "before": before,
                "after": after,
                "decode_steps": report["decode_steps"],
                "by_rows": report["by_rows"],
            }
    return None


def _finite(value: object) -> float | None:
    """vLLM writes an unlimited rate as the string `inf`."""
    return None if value in (None, "inf") else float(cast(float, value))


def _number(raw: object) -> object:
    """Metadata are strings."""
    try:
        return json.loads(raw) if isinstance(raw, str) else raw
    except (ValueError, RecursionError):
        return raw


def file_of(study: Path, record: Mapping[str, object]) -> Path:
    """Where a study keeps a run: the same run is always the same file."""
    slug = re.sub(r"[^A-Za-z0-9.]+", "_", f"{record['model']}-{record['policy_label']}").strip("_")
    return study / FOLDER / f"{slug[:80]}-{str(record['sha256'])[:10]}.json"


def read_serving(study: Path) -> list[dict[str, Any]]:
    """All runs that a study keeps; one that is damaged is left out: `damaged_serving` names it."""
    return [record for record in _kept(study) if isinstance(record, dict)]


def damaged_serving(study: Path) -> list[str]:
    """File and reason of each run that is kept and cannot be read."""
    return [f"{FOLDER}/{record}" for record in _kept(study) if not isinstance(record, dict)]


_NUMBERS = [f"{metric}_{statistic}_ms" for metric in METRICS for statistic in STATISTICS]
_KEPT = fields(
    {
        **dict.fromkeys(("model", "policy", "policy_label", "phases", "sha256"), text),
        **dict.fromkeys(("request_rate", *_NUMBERS, *_WHOLE), maybe(number)),
        **dict.fromkeys(("max_concurrency", "num_prompts"), maybe(count)),
        "run_number": count,
        "experts": maybe(fields({"before": number, "after": number})),
    }
)
"""What `import` keeps of a run."""


def _kept(study: Path) -> Iterator[dict[str, object] | Damaged]:
    for path in sorted((study / FOLDER).glob("*.json")):
        try:
            yield read_value(path, _KEPT)
        except Damaged as error:
            yield error
