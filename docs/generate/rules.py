"""rules.md: what `lynx-results validate` holds a results folder to."""

from __future__ import annotations

from docs.generate.markdown import code, table
from lynx_exp.checks.findings import RULES


def page() -> str:
    rows = [(code(name), rule.severity, rule.statement) for name, rule in RULES.items()]
    return (
        f"# Rules of validate\n\n`lynx-results validate FOLDER` derives every number of every finished cell from its "
        f"rows again and names each breach of these {len(RULES)} rules: rule, cell, file, expected, found. An error "
        "means exit code 1, a warning only with `--strict`; `--ignore RULE` leaves one out.\n\n"
        + table(("rule", "severity", "what holds"), rows)
    )
