"""The Pareto figures."""

from __future__ import annotations

import argparse

from lynx_exp.results.figures import add_drawing, draw

HELP = "draw the Pareto figures: PDF, PNG, and their numbers as CSV"
add = add_drawing


def run(asked: argparse.Namespace) -> int:
    return draw(asked, "pareto")
