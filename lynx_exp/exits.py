"""Exit codes of the commands."""

FAILED = 1
"""A cell failed, or something was found wrong."""
BAD_INPUT = 2
"""Nothing was run."""
INTERRUPTED = 130
