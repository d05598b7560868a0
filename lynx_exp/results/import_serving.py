"""Results of other programs into a study, beside its cells."""

from __future__ import annotations

import argparse
from pathlib import Path

from lynx_exp.exits import FAILED
from lynx_exp.results.main import print_stderr

HELP = "results of vLLM's own load generator, beside a study's cells: quality and speed in one table and figure"
DESCRIPTION = """\
FILES are what `vllm bench serve --save-result` wrote, or folders of `vllm bench sweep`. Each run is kept in
STUDY/serving; then all of them are shown: latency and throughput by policy and load, the speed-up over the stock
server under the same load, experts by the plugin's report, and the accuracy of the study's cells of the same policy
(at the same batch size, where there is one). A sweep notes each server's setting by itself; a single run needs it
said: `vllm bench serve ... --metadata policy=lynx alpha=3 beta=2` (policy=stock: without the plugin)."""


def add(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--format", required=True, choices=["vllm-bench"], help="vllm-bench: JSON of vllm bench serve")
    verb.add_argument("--to", required=True, type=Path, metavar="STUDY", help="results/STUDY; made if it is not there")
    verb.add_argument("files", nargs="*", type=Path, metavar="FILES", help="none: only show what is there already")


def run(args: argparse.Namespace) -> int:
    from analysis.serving_runs import show
    from lynx_exp.store.files import write_json
    from lynx_exp.store.read_serving import bench_files, damaged_serving, file_of, read_runs

    records = [record for path in bench_files(args.files) for record in read_runs(path)]
    for record in records:
        path = file_of(args.to, record)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, record)
    for path in show(args.to):
        print(path)
    damaged = damaged_serving(args.to)
    for line in damaged:
        print_stderr(f"set aside: {line}")
    return FAILED if damaged else 0
