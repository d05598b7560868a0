"""No test reaches for a hub or a tracker's server; small tensors are not spread over threads."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads that wait for one another cost more than they save here
os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is imported: its kernels then run without a GPU

from hypothesis import settings  # after the environment is set

settings.register_profile("untimed", deadline=None)  # a busy machine is no failure
settings.load_profile("untimed")
