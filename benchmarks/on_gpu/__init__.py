"""What `benchmarks/gpu.py` runs: sections, each a process of its own with a time limit."""
