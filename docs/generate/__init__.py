"""docs/reference, made from the code: `python -m docs.generate` writes it, `--check` says what is out of date."""
