"""What a study comes to, in a line for each batch size: the setting to take, else why none is shown to be safe."""

from __future__ import annotations

import pandas as pd

from analysis import verdicts
from analysis.layout import count, title
from analysis.recommendation import ALL, ALONE, RECOMMENDED, recommendations
from analysis.study import Study
from lynx_exp.wording import counted


def conclusions(study: Study) -> list[str]:
    """One line per (setting, batch size), of all subtasks together; empty if no policy was compared with vanilla."""
    frame = recommendations(study)
    if frame.empty:
        return []
    several = frame["scope"].nunique() > 1
    lines = []
    for (setting, batch), block in frame.groupby(["setting", "batch_size"], sort=True):
        overall = block[block["scope"] == ALL] if (block["scope"] == ALL).any() else block
        if several and not (block["scope"] == ALL).any():
            continue
        place = title(f"batch size {batch}", str(setting))
        lines.append(f"{place}: {_of(overall, study.margin)}")
    return lines


def _of(block: pd.DataFrame, margin: float) -> str:
    taken = block[block["why"] == RECOMMENDED]
    worse = int((block["verdict"] == verdicts.WORSE).sum())
    lose = "loses" if worse == 1 else "lose"
    losing = f"; {worse} of {counted(len(block), 'setting')} {lose} more than chance" if worse else ""
    if len(taken):
        best = taken.iloc[0]
        return f"{best['series']} is within ±{margin:g} of vanilla at {_saving(best)}{losing}"
    alone = block[block["why"] == ALONE]
    if len(alone):
        first = alone.iloc[0]
        losing = f"; taken alone {first['series']} is, at {_saving(first)}{losing}"
        return f"no setting is shown to be within ±{margin:g} as one of {len(block)} and to save anything{losing}"
    open_rows = block[block["verdict"].isin(verdicts.UNDECIDED) & block["documents_needed"].notna() & block["saves"]]
    if len(open_rows):
        least = open_rows.loc[open_rows["documents_needed"].idxmin()]
        needs = f"; {least['series']} would take {count(least['documents_needed'])} documents if it changes nothing"
        return f"no setting is shown to be within ±{margin:g} and to save anything{needs}{losing}"
    return f"no setting is shown to be within ±{margin:g} and to save anything{losing}"


def _saving(row: pd.Series) -> str:
    if row["saving"] == "speedup":
        return f"{row['value']:.2f} times vanilla's speed"
    return f"{row['value']:.1f} active experts"
