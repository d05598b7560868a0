"""What each verb of `lynx-prepare` says after Ctrl-C."""

from __future__ import annotations

INTERRUPTED_LINE = {
    "train": "interrupted; run the same command to continue from the last checkpoint",
    "calibrate": "interrupted; nothing was written",
    "prefetch": "interrupted; complete files stay, the same command fetches the others",
    "lm-eval-task": "interrupted; nothing was written",
}
