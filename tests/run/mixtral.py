"""Mixtral-8x7B's real tokenizer, from the package that carries it."""

from __future__ import annotations

import shutil
from importlib.resources import files
from pathlib import Path
from typing import Any


def mixtral_tokenizer(folder: Path) -> Any:
    """As transformers loads it from a folder of its own form; BOS stands before every text, as in Mixtral's config."""
    from transformers import AutoTokenizer, LlamaTokenizer

    source = folder / "source"
    source.mkdir()
    with (files("mistral_common") / "data" / "tokenizer.model.v1").open("rb") as data:
        (source / "tokenizer.model").write_bytes(data.read())
    LlamaTokenizer.from_pretrained(source, add_bos_token=True).save_pretrained(folder / "tokenizer")
    shutil.rmtree(source)
    return AutoTokenizer.from_pretrained(folder / "tokenizer")
