"""Strings that try to become markup, script or something else to read, in every place that a record holds text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lynx_exp.store.tables import SAMPLES

SCRIPT = "</script><script>window.broken = 1</script>"
IMAGE = '"><img src=x onerror="window.broken = 2">'
COMMENT = "<!--<script>"
SLOT = "{{script}} {{data}} ${broken} \\u003c/script>"
OVERRIDE = "abc\u202edcba\u2066 \u200b\ufeff\x00\x1b[31m\u2028end"
MARKUP = "<b>bold</b> & &amp; 'quoted' \"twice\""
ALL = (SCRIPT, IMAGE, COMMENT, SLOT, OVERRIDE, MARKUP)
LONG = "word" * 3_000
HIDDEN = ("\u202e", "\u2066", "\u200b", "\ufeff", "\x00", "\x1b", "\u2028")


def poison(folder: Path, **info: Any) -> None:
    """Put them into a cell's answers, and `info` into what the cell says of itself."""
    table = pq.read_table(folder / "samples.parquet").to_pylist()
    for number, row in enumerate(table):
        text = ALL[number % len(ALL)]
        row |= {"response": f"{text} {row['response']}", "filtered": text, "target": text, "verdict": text}
        row |= {"sandbox": text, "prompt_hash": text}
    table[0]["response"] = LONG
    pq.write_table(pa.Table.from_pylist(table, SAMPLES), folder / "samples.parquet")
    ran = {"command": list(ALL), "cpu": IMAGE, "python": SCRIPT}
    for name, more in (("cell.json", info), ("provenance.json", ran)):
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(content | more))
