"""What `lynx-prepare calibrate` makes, for a cell of `lynx-exp` that lacks it."""

from __future__ import annotations

from pathlib import Path

from lynx_exp.config import Config
from lynx_exp.prepare.calibrate import CalibrateConfig, calibrate, measure_policy


def make(config: Config, of_policy: bool) -> list[Path]:
    """Measure and write it.

    Args:
        config: The cell's. `lynx-prepare calibrate` is run with its model, device, number format, threads and batch
            size, and its own defaults otherwise.
        of_policy: Whether what the policy alone takes is wanted (its alignment, or its budgets by layer); else what
            policies must know of the model.

    Returns:
        The files.

    Raises:
        ValueError: In one line, for what cannot be measured.
    """
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # a run has its own
    asked = CalibrateConfig(
        model=config.model,
        policy=dict(config.policy) if of_policy else None,
        batch_size=config.batch_size,
        device=config.device,
        dtype=config.dtype,
        threads=config.threads,
    )
    if of_policy:
        measured = measure_policy(asked)
        file = measured.file()
        measured.save(file)
        return [file]
    file = asked.file()
    calibrate(asked).save(file)
    return [file]
