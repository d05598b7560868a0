"""Claims as others would have left them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lynx_exp.store.claims import HOLDER, read_claim
from lynx_exp.store.files import read_json, write_json


def claim_file(folder: Path) -> Path:
    """Of the claim that stands: what says whose it is, and beats."""
    found = read_claim(folder)
    assert found is not None
    return found.path / HOLDER


def rewrite(folder: Path, **changes: Any) -> None:
    """Let the claim that stands be another process's."""
    path = claim_file(folder)
    write_json(path, read_json(path) | changes)


def beat(path: Path, age_s: float = 0.0) -> None:
    """Let the last heartbeat be so old, by the file system's own clock."""
    probe = path.with_name("probe")
    probe.touch()
    stamp = probe.stat().st_mtime_ns - int(age_s * 1e9)
    probe.unlink()
    os.utime(path, ns=(stamp, stamp))
