"""The figures of `lynx-results figures`, drawn anew from the records of the page and carried inside it."""

from __future__ import annotations

import base64
import importlib
import io
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from PIL import Image

from analysis import figures
from analysis.figures import Track
from analysis.page.text import escape
from analysis.study import Study

COLOURS = 96
"""Of a picture's palette: lines, markers and the edges of letters need no more, and the file is a quarter."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    module: str
    """Of `analysis.figures`."""
    name: str
    """As the file is called."""
    caption: str
    uri: str
    width: int
    height: int
    """Pixels, at 300 an inch."""


def pictures(study: Study, track: Track = iter) -> list[Picture]:
    """Every figure that the records can give; why one is not drawn is logged. The study's warnings, which a file of its
    own carries, stand at the top of the page instead."""
    study = replace(study, warnings=())
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for module in track(figures.names()):
            about = importlib.import_module(f"analysis.figures.{module}").__doc__ or module
            caption = about.strip().split("\n\n")[0].replace("\n", " ")
            for file in figures.draw(study, Path(folder) / module, only=module, pictures=True):
                if file.suffix == ".png":  # some figures add a table of their own
                    found.append(picture(module, file, caption))
    return found


def gallery(pictures: Iterable[Picture]) -> str:
    """HTML: a figure for each caption, with its pictures side by side; a single one has the whole width."""
    groups = []
    for caption, found in groupby(pictures, key=lambda one: one.caption):
        same = list(found)
        images = "".join(
            f'<img src="{one.uri}" width="{one.width // 2}" height="{one.height // 2}" alt="{escape(one.name)}">'
            for one in same
        )
        alone = ' class="alone"' if len(same) == 1 else ""
        groups.append(f"<figure{alone}><figcaption>{escape(caption)}</figcaption><div>{images}</div></figure>")
    return "".join(groups)


def picture(module: str, file: Path, caption: str) -> Picture:
    with Image.open(file) as image:
        small = image.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    small.save(buffer, "PNG", optimize=True)
    uri = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return Picture(module=module, name=file.stem, caption=caption, uri=uri, width=small.width, height=small.height)
