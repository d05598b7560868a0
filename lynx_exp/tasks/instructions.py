"""What IFEval's scorer needs beside lm-eval, packages and nltk's data for English: known before a model answers."""

from __future__ import annotations

import importlib

PACKAGES = ("nltk", "langdetect", "immutabledict")
"""Which lm-eval's module of instructions imports."""
SENTENCES = "tokenizers/punkt_tab/english/"
"""Where nltk keeps what it splits sentences and words by."""


def check_instructions(task: str) -> None:
    """ValueError, with the command that mends it, where a package or nltk's data is missing.

    lm-eval itself tries to download the data when its module is imported, says that it has even where it has not, and
    fails at the first instruction that counts sentences. langdetect draws at random, so it is given a seed: the same
    responses then always have the same scores.
    """
    missing = [name for name in PACKAGES if not _has(name)]
    if missing:
        raise ValueError(f"task {task}: needs {', '.join(missing)}; pip install '.[ifeval]' in a checkout")
    import langdetect
    import nltk

    try:
        nltk.data.find(SENTENCES)
    except LookupError as error:
        raise ValueError(
            f"task {task}: needs punkt_tab, nltk's data; run `python -m nltk.downloader punkt_tab` where there is "
            "network; elsewhere give the folder that has it as NLTK_DATA"
        ) from error
    langdetect.DetectorFactory.seed = 0


def _has(package: str) -> bool:
    try:
        importlib.import_module(package)
    except ImportError:
        return False
    return True
