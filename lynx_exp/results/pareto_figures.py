"""The Pareto figures, and how much each policy's settings dominate."""

from __future__ import annotations

import argparse

from lynx_exp.results.figures import add_drawing, draw

HELP = "draw the Pareto figures: PDF, PNG, and their numbers as CSV"
DESCRIPTION = """\
Accuracy against speed-up and against active experts, as means with 95 % intervals; points that others beat are pale.
The CSV beside a figure says with what probability each point is on the frontier; NAME_families.csv, how large an area
each policy's settings dominate (from vanilla's saving, at 5 points lost)."""
add = add_drawing


def run(args: argparse.Namespace) -> int:
    return draw(args, "pareto")
