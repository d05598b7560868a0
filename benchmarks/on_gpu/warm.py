"""Compiles the kernels that the other sections run, on all cores side by side: each process that comes later finds them
in Triton's cache on disk. A job is a small call of what will be called, so nothing here knows how a kernel is built.

With the interpreter there is nothing to compile, and the same jobs show that they run.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any, NamedTuple

from benchmarks.on_gpu.records import case, check

RUN = 7
"""Of `settings`, those that `model` runs."""
PRELOADED = ["experts_kernel", "benchmarks.on_gpu.cases", "lynx_exp.routing.backends.triton.kernels.selection"]
"""Imported once, before the workers are forked; none of them may touch CUDA, which does not survive that."""


MODELS = ("float32", "bfloat16")
"""Types of logits and weights in a model's steps."""


class Job(NamedTuple):
    kind: str
    """selection or experts."""
    shape: tuple[Any, ...]
    dtype: str
    """Of logits and weights; model: as a model in bfloat16 has them."""
    named: tuple[str, dict[str, Any]] = ("", {})


def jobs(tiny: bool, quick: bool) -> Iterator[Job]:
    """In order of worth: what the models' steps run, then what only the checks do."""
    from benchmarks.on_gpu.cases import settings

    if tiny:
        yield Job("experts", (4, 2, 16, 16, 4), "float32")
        yield from (Job("selection", (4, 4, 2), "float32", named) for named in settings(4, 2)[:3])
        return
    if quick:
        yield Job("experts", (128, 8, 2048, 768, 16), "bfloat16")
        yield Job("experts", (8, 2, 4096, 14336, 4), "bfloat16")
        yield from (Job("selection", (16, 128, 8), "model", named) for named in settings(128, 8)[:RUN])
        yield from (Job("selection", (16, 128, 8), "float32", named) for named in settings(128, 8))
        yield from (Job("selection", (16, 8, 2), "float32", named) for named in settings(8, 2))
        return
    for shape in ((128, 8, 2048, 768), (8, 2, 4096, 14336)):
        yield from (Job("experts", (*shape, rows), "bfloat16") for rows in (16, 64, 1, 256))
    for experts, top_k, all_rows in ((128, 8, (16, 64, 1, 256)), (8, 2, (16, 4))):
        for rows in all_rows:
            yield from (
                Job("selection", (rows, experts, top_k), "model", named) for named in settings(experts, top_k)[:RUN]
            )
    for experts, top_k, all_rows in ((128, 8, (16, 64, 1, 256)), (8, 2, (16, 4))):
        for rows in all_rows:
            yield from (
                Job("selection", (rows, experts, top_k), "float32", named) for named in settings(experts, top_k)
            )
    for experts, top_k, rows in ((128, 8, 64), (60, 6, 16), (256, 8, 64)):
        for dtype in ("bfloat16", "float16"):
            yield from (Job("selection", (rows, experts, top_k), dtype, named) for named in settings(experts, top_k))


def do(job: Job, device: str) -> tuple[float, str | None]:
    """(seconds, what went wrong)."""
    import torch

    start = time.monotonic()
    try:
        with torch.inference_mode():
            (_select if job.kind == "selection" else _experts)(job, device)
        if device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.empty_cache()  # the others need it
    except torch.OutOfMemoryError:
        return time.monotonic() - start, None  # of a small card, among so many: compiled when it is run
    except Exception as error:  # a compiler fails in many ways
        return time.monotonic() - start, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return time.monotonic() - start, None


def _select(job: Job, device: str) -> None:
    import torch

    from benchmarks.on_gpu.cases import RULE, decode_step, policy, routed
    from lynx_exp.routing.backends.triton import kernels

    rows, experts, top_k = job.shape
    logits_type, weights_type = MODELS if job.dtype == "model" else (job.dtype, job.dtype)
    logits, dtype = (
        torch.randn(rows, experts, device=device).to(getattr(torch, logits_type)),
        getattr(torch, weights_type),
    )
    with kernels.kernel("triton"):
        policy(job.named)(routed(logits, top_k, dtype), decode_step(rows, device), RULE)


def _experts(job: Job, device: str) -> None:
    from types import SimpleNamespace

    import torch

    from benchmarks.experts_kernel import Experts, routed
    from lynx_exp.models.expert_kernels import few_rows

    E, K, D, I, rows = job.shape  # noqa: E741
    dtype = getattr(torch, job.dtype)
    experts: Any = Experts(SimpleNamespace(), E, D, I, dtype, device)
    few_rows(experts, *routed(rows, K, E, D, dtype, device))


def run(listed: Sequence[Job], device: str, workers: int) -> None:
    """A record once all jobs of a kind are done, and the failures of both."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    failures, start = [], time.monotonic()
    left = {kind: sum(job.kind == kind for job in listed) for kind in ("experts", "selection")}
    spent = dict.fromkeys(left, 0.0)
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        waiting = {pool.submit(do, job, device): job for job in listed}
        for future in as_completed(waiting):
            job, (seconds, wrong) = waiting[future], future.result()
            spent[job.kind] += seconds
            left[job.kind] -= 1
            if wrong is not None:
                failures.append(f"{job.kind} {job.shape} {job.dtype} {job.named[0]}: {wrong}")
            if not left[job.kind]:
                numbers = {"core_s": spent[job.kind], "after_s": time.monotonic() - start, "workers": workers}
                case(f"compiled: {job.kind}", **numbers)
    check("kernels compile", len(listed), failures)


def main() -> None:
    from benchmarks.on_gpu.cases import arguments

    given = arguments(__doc__).parse_args()
    cores = len(os.sched_getaffinity(0))
    run(list(jobs(given.tiny, given.quick)), given.device, 2 if given.tiny else max(1, min(cores, 16)))


if __name__ == "__main__":
    main()
