"""Which vanilla cell each cell is compared with."""

from __future__ import annotations

import pandas as pd

from lynx_exp.config import VANILLA


def partners_of(cells: pd.DataFrame) -> dict[str, str]:
    """Vanilla's cell of each cell's plan (the first, where several recorded different things of it), its own for
    vanilla; "" where there is none."""
    vanilla = {row.pair_id: row.cell_id for row in cells[::-1].itertuples() if row.policy == VANILLA}
    pairs = cells[["cell_id", "pair_id", "policy"]].itertuples(index=False)
    return {cell: cell if policy == VANILLA else vanilla.get(pair, "") for cell, pair, policy in pairs}
