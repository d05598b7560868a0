"""No test reaches for a hub or a tracker's server; small tensors are not spread over threads."""

from __future__ import annotations

import os
import signal

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads that wait for one another cost more than they save here
os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is imported: its kernels then run without a GPU

import pytest
from hypothesis import settings  # after the environment is set

os.fsync = lambda _descriptor: (
    None
)  # no test cuts the power, and to wait for the disk is most of what a small run takes

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # a shell ignores it for what it runs in the background, and what tests interrupt would inherit that
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A busy machine is no failure. The fast suite tries the same cases each time, so that what it says of a commit is said
# of that commit; `make fuzz` and the slow tests draw new ones.
settings.register_profile("same", deadline=None, derandomize=True)
settings.register_profile("new", deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))

LONG = (
    *("tests/kills/test_kills.py", "tests/verbs/test_damage.py", "tests/verbs/test_validate.py"),
    *("tests/analysis/test_paper_figures.py", "tests/models/test_families.py", "tests/prepare/test_prefetch.py"),
    *("tests/routing/test_kernels_of_all.py", "tests/routing/test_kernels.py", "tests/routing/test_laws.py"),
    "tests/run/test_packs.py",
    *("tests/tasks/sandbox/", "tests/tasks/test_lm_eval_model.py", "tests/tasks/test_mathematics.py"),
)
"""Those that take longest, in the fast suite or in the slow one: first, so that no process is left alone with one."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not item.nodeid.startswith(LONG))
