"""Run by path in an interpreter of its own, with another antlr4 runtime: scores answers with a task's own function.

In: one JSON object, `path` (the module path, antlr4 first), `module` (a file), `function`, `seconds` and `items`, each
a document and its responses. Out: a line of JSON for each item. Nothing of this package can be imported here.
"""

from __future__ import annotations

import faulthandler
import importlib.util
import json
import os
import sys


def main() -> None:
    request = json.load(sys.stdin)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what the task's module may print is not an answer
    sys.path[:] = request["path"]
    # sympy's own alarms end a long comparison; this ends the process where one waits in C and no alarm gets through
    faulthandler.dump_traceback_later(request["seconds"], exit=True)
    spec = importlib.util.spec_from_file_location("task_functions", request["module"])
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    process_results = getattr(module, request["function"])
    for doc, responses in request["items"]:
        faulthandler.dump_traceback_later(request["seconds"], exit=True)
        values = process_results(doc, responses)
        for metric, value in values.items():
            if not isinstance(value, int | float):
                raise TypeError(f"{metric} is a {type(value).__name__}, not a number")
        answers.write(json.dumps(values) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
