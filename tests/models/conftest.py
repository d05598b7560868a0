"""What became of every family is told at the end of the run."""

from __future__ import annotations

from typing import Any

from tests.models.verdicts import SEEN


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not SEEN:
        return
    refused = {family: verdict.reason for family, verdict in SEEN.items() if not verdict.routers}
    terminalreporter.write_sep("-", f"MoE families: {len(SEEN) - len(refused)} passed, {len(refused)} refused")
    for family, reason in sorted(refused.items()):
        terminalreporter.write_line(f"refused: {family}: {reason}")
