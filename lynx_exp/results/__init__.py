"""The command `lynx-results`: one module a verb, each with `HELP`, `add` (its arguments) and `run` (its exit code)."""
