"""Results of vLLM's own load generator beside the cells of a study: read, brought to one form, kept in `serving/`."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

from lynx_exp.config import default_parameters, did_you_mean, label_policy
from lynx_exp.store.files import read_json

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
        found = [file for file in sorted(path.rglob("*.json")) if is_run(read_json(file)) and file.stem != "warmup"]
        if not found:
            raise ValueError(f"{path}: holds no result of `vllm bench serve --save-result`")
        yield from found


def is_run(content: Any) -> bool:
    """Whether this is what `vllm bench serve` saved of one run."""
    return isinstance(content, dict) and "request_throughput" in content and "median_tpot_ms" in content


def read_bench(path: Path) -> dict[str, Any]:
    """One run in our form: policy, load, throughput, TTFT / TPOT / ITL / E2EL in milliseconds, and the experts that the
    server's plugin counted, where its report is at hand. ValueError if it is something else, or of no use."""
    content = read_json(path)
    if not is_run(content):
        raise ValueError(f"{path}: not a result of `vllm bench serve --save-result`")
    if not content.get("completed"):
        raise ValueError(f"{path}: no request was completed: its numbers say nothing")
    setting = setting_of(content, path)
    record: dict[str, Any] = {
        "source": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "date": content.get("date"),
        "model": PurePath(str(content.get("model_id"))).name,
        "request_rate": _finite(content.get("request_rate")),
        "burstiness": content.get("burstiness"),
        "duration_s": content["duration"],
        "run_number": content.get("run_number", 0),
    }
    record |= {name: content.get(name) for name in (*_COUNTS, *_WHOLE)}
    for metric in METRICS:
        for statistic in STATISTICS:
            record[f"{metric}_{statistic}_ms"] = content.get(f"{statistic}_{metric}_ms")
    record |= _policy(setting)
    record["experts"] = _experts(setting, path)
    return record


def setting_of(content: Mapping[str, Any], path: Path) -> dict[str, Any] | None:
    """The plugin's setting of the server: `vllm bench sweep` notes it as it is; of a single run it is in the metadata
    (`--metadata policy=lynx alpha=3`). None: the server had none."""
    more = content.get("additional_config")
    if isinstance(more, str):
        more = json.loads(more)
    if isinstance(more, dict):
        return more.get("lynx")
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


def _policy(setting: Mapping[str, Any] | None) -> dict[str, Any]:
    if setting is None:
        return {"policy": STOCK, "policy_label": STOCK, "phases": "none"}
    name, layers = setting.get("policy", "vanilla"), setting.get("layers")
    given = {key: value for key, value in setting.items() if key not in _OWN}
    label = label_policy(name, (default_parameters(name) or {}) | given, layers)
    return {"policy": name, "policy_label": label, "phases": setting.get("phases", "decode")}


def _experts(setting: Mapping[str, Any] | None, path: Path) -> dict[str, Any] | None:
    """What the plugin counted over the life of the server: its report, where the setting says, or beside the file."""
    named = None if setting is None else setting.get("report")
    if named is None:
        return None
    for place in (Path(named), *(folder / PurePath(named).name for folder in path.parents[:5])):
        report = read_json(place)
        if isinstance(report, dict) and report.get("decode_steps"):
            before, after = (sum(report[key]) / len(report[key]) for key in ("experts_before", "experts_after"))
            return {
                "before": before,
                "after": after,
                "decode_steps": report["decode_steps"],
                "by_rows": report["by_rows"],
            }
    return None


def _finite(value: Any) -> float | None:
    """vLLM writes an unlimited rate as the string `inf`."""
    return None if value in (None, "inf") else float(value)


def _number(text: Any) -> Any:
    """Metadata are strings."""
    try:
        return json.loads(text)
    except (TypeError, ValueError):
        return text


def file_of(study: Path, record: Mapping[str, Any]) -> Path:
    """Where a study keeps a run: the same run is always the same file."""
    slug = re.sub(r"[^A-Za-z0-9.]+", "_", f"{record['model']}-{record['policy_label']}").strip("_")
    return study / FOLDER / f"{slug[:80]}-{record['sha256'][:10]}.json"


def read_serving(study: Path) -> list[dict[str, Any]]:
    """All runs that a study keeps."""
    found = (read_json(path) for path in sorted((study / FOLDER).glob("*.json")))
    return [record for record in found if isinstance(record, dict)]
