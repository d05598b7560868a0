"""Every kind of damage that a file of a study can have."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lynx_exp.store.files import read_json

DEEP = "[" * 100_000 + "]" * 100_000


def wrong_types(path: Path) -> None:
    """Every field holds something that it never does."""
    value: Any = read_json(path)
    wrong = {name: [[3]] if not isinstance(item, list) else 3 for name, item in value.items()}
    path.write_text(json.dumps(wrong) if isinstance(value, dict) else "3")


def huge_numbers(path: Path) -> None:
    def changed(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: changed(item) for name, item in value.items()}
        return 2**70 if isinstance(value, int | float | str) or value is None else value

    path.write_text(json.dumps(changed(read_json(path))))


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def text(content: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(content)


ANY: dict[str, Callable[[Path], object]] = {
    "gone": Path.unlink,
    "empty": text(""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "bytes of something else": lambda path: path.write_bytes(bytes(range(256)) * 9),
    "a pipe": a_pipe,
    "a folder": a_folder,
}
JSON: dict[str, Callable[[Path], object]] = {
    "null": text("null"),
    "a list": text("[]"),
    "an object": text("{}"),
    "a list of lists": text('{"attempts": [[1]], "metrics": [1], "packages": [1], "files": 5, "cells": {}}'),
    "deep": text(DEEP),
    "deep inside": text('{"state": ' + DEEP + "}"),
    "not finite": text('{"state": NaN, "seconds": Infinity, "schema": 1e999}'),
    "wrong types": wrong_types,
    "huge numbers": huge_numbers,
}
YAML: dict[str, Callable[[Path], object]] = {
    "null": text("null"),
    "a list": text("- 1"),
    "deep": text("a: " + DEEP),
    "deep blocks": text("- " * 5_000),
    "aliases": text("a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\n"),
    "an unknown tag": text("a: !!python/object:os.system {}"),
    "a syntax error": text("a: [1\nb: }"),
}


def of(name: str) -> dict[str, Callable[[Path], object]]:
    """Those of a file of this name."""
    if name.endswith(".parquet"):
        return ANY
    return ANY | (YAML if name.endswith(".yaml") else JSON)
