"""lm-eval's tasks that compare LaTeX, Minerva's among them: asked in this process, scored in another.

Their module insists on version 4.11 of the antlr4 runtime, and sympy's LaTeX parser works with no other; Hydra needs
4.9 in the same environment. So here the module is only imported, which makes the prompts, and its `process_results`
runs in a child process that finds 4.11 first. That also keeps LaTeX written by a model out of this process.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lynx_exp.tasks.antlr import PACKAGE, VERSION, find_antlr
from lynx_exp.tasks.process import Doc, MetricValues, Process

SECONDS = 120.0
"""For one document, after which its scoring has failed. lm-eval's and math-verify's own alarms, of 5 s each, end a
comparison long before; nothing in a document can add up to more than some 40 s of them."""

CHILD = Path(__file__).with_name("math_child.py")


@contextmanager
def math_packages(definition: Path) -> Iterator[None]:
    """In here the functions of a definition can be imported although the antlr4 runtime is not the one they ask for.

    Does nothing to a definition that asks for none. ValueError where math-verify or sympy is missing.
    """
    config = _read(definition)
    functions = [function for function in map(_function, config.values()) if function is not None]
    sources = [source for source in map(_source, {path for path, _ in functions}) if _compares_latex(source)]
    if not sources:
        yield
        return
    # these go by the true version, so they are imported before the fake
    for module in ("math_verify", "sympy.parsing.latex"):
        if any(module in source for source in sources):
            _import(module, str(config.get("task", definition)))
    true = importlib.metadata.version

    def version(distribution_name: str) -> str:
        return VERSION if distribution_name == PACKAGE else true(distribution_name)

    importlib.metadata.version = version
    try:
        yield
    finally:
        importlib.metadata.version = true


def _import(module: str, task: str) -> None:
    try:
        importlib.import_module(module)
    except ImportError as error:
        if not isinstance(error, ModuleNotFoundError):
            raise ValueError(f"task {task}: {module} cannot be imported: {error}") from error
        package = "sympy" if (error.name or "").split(".")[0] == "sympy" else "math-verify"
        raise ValueError(f"task {task}: needs {package}; pip install '.[math]' in a checkout") from error


def scored_elsewhere(definition: Path) -> Process | None:
    """Scoring in a child process, if the definition's `process_results` parses LaTeX; None for any other.

    Installs the antlr4 runtime if it is missing, so that this is known before a model has answered. ValueError if that
    fails.
    """
    config = _read(definition)
    function = _function(config.get("process_results"))
    if function is None or not _compares_latex(_source(function[0])):
        return None
    task = str(config.get("task", definition))
    try:
        antlr = find_antlr()
    except ValueError as error:
        hint = f", or `lynx-prepare prefetch task={task}`"
        raise ValueError(f"task {task}: {error}{hint}") from error
    return ChildProcess(task=task, module=function[0], function=function[1], antlr=antlr)


@dataclass(frozen=True, kw_only=True)
class ChildProcess:
    """Scores filtered responses of all documents, one after the other, in one interpreter."""

    task: str
    module: Path
    """The file that holds the function."""
    function: str
    antlr: Path | None
    """The folder of antlr4 4.11; None where the environment has it."""
    seconds: float = SECONDS
    """Longest for one document."""

    def __call__(self, docs: Sequence[Doc], filtered: Sequence[list[object]]) -> list[MetricValues]:
        """The values of each document's metrics. RuntimeError, naming the document, if the child ends before it did
        them all: it crashed, was killed, or took too long."""
        request = {
            "path": [*([str(self.antlr)] if self.antlr else []), *map(str, sys.path)],
            "module": str(self.module),
            "function": self.function,
            "seconds": self.seconds,
            "items": [[dict(doc), responses] for doc, responses in zip(docs, filtered, strict=True)],
        }
        ended = subprocess.run(
            [sys.executable, "-P", "-s", str(CHILD)],  # -P: the script's folder has a `code.py` that must hide nothing
            input=json.dumps(request).encode(),
            env=_environment(),
            capture_output=True,
        )
        values = [json.loads(line) for line in ended.stdout.splitlines(keepends=True) if line.endswith(b"\n")]
        if ended.returncode != 0 or len(values) != len(docs):
            why = _reason(ended.returncode, ended.stderr.decode(errors="replace"), self.seconds)
            where = f"document {len(values) + 1} of {len(docs)}"
            raise RuntimeError(f"task {self.task}: scoring failed at {where}: {why}")
        return values


def _environment() -> dict[str, str]:
    """Of the child: what the interpreter needs to start, and a fixed order of sets, which sympy goes by."""
    kept = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PYTHONHOME")
    return {name: os.environ[name] for name in kept if name in os.environ} | {"PYTHONHASHSEED": "0", "PYTHONUTF8": "1"}


def _reason(returncode: int, output: str, seconds: float) -> str:
    if "Timeout (" in output:  # faulthandler's
        return f"it took more than {seconds:g} s"
    if returncode < 0:
        return f"killed by {signal.Signals(-returncode).name}"
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return lines[-1][:200] if lines else f"exit status {returncode}"


def _read(definition: Path) -> Mapping[str, object]:
    """The definition with its includes, but no function imported."""
    from lm_eval.tasks._yaml_loader import load_yaml

    return load_yaml(definition, resolve_func=False)


def _function(value: object) -> tuple[Path, str] | None:
    """File and name of an unresolved `!function` with a module beside its definition, as lm-eval looks for it."""
    found = re.fullmatch(r"(/.+)/([\w.]+)\.(\w+)", value) if isinstance(value, str) and len(value) < 1000 else None
    if found is None:
        return None
    path = Path(found[1], found[2].replace(".", "/") + ".py")
    return (path, found[3]) if path.is_file() else None


def _source(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _compares_latex(source: str) -> bool:
    return "parse_latex" in source or "math_verify" in source
