"""Exit codes of the commands."""

FAILED = 1
"""A cell failed, or something was found wrong."""
BAD_INPUT = 2
"""Nothing was run."""
REQUEUE = 75
"""Terminated: EX_TEMPFAIL, which asks batch systems to queue the job again."""
INTERRUPTED = 130
