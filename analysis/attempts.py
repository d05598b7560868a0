"""Rows of samples by response, where several of a document were scored one by one: each ran in a lane of its own."""

from __future__ import annotations

import numpy as np
import pandas as pd


def attempts(samples: pd.DataFrame, responses: pd.DataFrame) -> pd.DataFrame:
    """`samples` with a row for each scored response, and a column `attempt`: a number that a document's n-th response
    has in every cell. Without repeats they are the samples, and `attempt` the document.

    `score`, `request`, `lane` and `new_tokens` are the response's own; other columns stay the document's.
    """
    if "repeat_scores" not in samples or not (several := samples["repeat_scores"].notna().to_numpy()).any():
        return samples.assign(attempt=samples["doc_id"]) if "doc_id" in samples else samples
    most = int(samples.loc[several, "repeat_scores"].map(len).max())
    once = samples[~several]
    each = samples[several]
    counts = each["repeat_scores"].map(len).to_numpy()
    place = np.concatenate([np.arange(count) for count in counts])
    made = each.loc[each.index.repeat(counts)].reset_index(drop=True)
    made["score"] = np.concatenate([np.asarray(scores, dtype=float) for scores in each["repeat_scores"]])
    made["request"] = made["request"].to_numpy(dtype=np.int64) + place
    made["attempt"] = made["doc_id"].to_numpy(dtype=np.int64) * most + place
    keys = ["cell_id", "subtask", "request"]
    own = responses[[*keys, "lane", "new_tokens"]].drop_duplicates(keys)
    as_text = {"cell_id": str, "subtask": str}
    found = made[keys].astype(as_text).merge(own.astype(as_text), on=keys, how="left")
    for name in ("lane", "new_tokens"):
        if found[name].isna().any():
            raise ValueError(f"samples: a response that was scored has no row in responses, which holds its {name}")
        made[name] = found[name].to_numpy(dtype=np.int64)
    single = once.assign(attempt=once["doc_id"].to_numpy(dtype=np.int64) * most)
    return pd.concat([single, made], ignore_index=True) if len(once) else made


def several(documents_N: np.ndarray) -> np.ndarray | None:
    """The names of documents, None where each is there once: then lanes are the only clusters."""
    return documents_N if len(np.unique(documents_N)) < len(documents_N) else None
