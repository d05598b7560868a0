"""Scripts that print a table for people, and one line of JSON last. They import one another by the package's name:
`python benchmarks/decode.py` and `python -m benchmarks.decode` need what `make install` does, or PYTHONPATH."""
