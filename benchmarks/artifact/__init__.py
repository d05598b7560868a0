"""Every number of README and docs that a command can repeat, and the command: `python -m benchmarks.artifact`."""
