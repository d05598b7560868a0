"""The pictures of docs/concepts.md, as SVG: `python docs/pictures/draw.py` writes them beside this file.

What they show follows from the small examples below; a test holds that the files are what this code draws."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from html import escape
from pathlib import Path

INK, FAINT, LINE = "#24292f", "#6e7781", "#8c959f"
BLUE, ORANGE, GREEN, GREY, PALE = "#5b8fc7", "#e0934a", "#6aa97c", "#c9d1d9", "#eef1f4"


class Picture:
    """A white sheet of `width` by `height` pixels, and what lies on it."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height, self.parts = width, height, list[str]()

    def box(self, x: float, y: float, w: float, h: float, fill: str, edge: str = "#ffffff", thick: float = 1) -> None:
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="2" fill="{fill}" stroke="{edge}" '
            f'stroke-width="{thick:g}"/>'
        )

    def text(self, x: float, y: float, words: str, *, size: int = 13, at: str = "start", ink: str = INK) -> None:
        self.parts.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size}" text-anchor="{at}" fill="{ink}">{escape(words)}</text>'
        )

    def line(self, *points: tuple[float, float], arrow: bool = False, ink: str = LINE) -> None:
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        end = ' marker-end="url(#tip)"' if arrow else ""
        self.parts.append(f'<polyline points="{path}" fill="none" stroke="{ink}" stroke-width="1.5"{end}/>')

    def svg(self, title: str) -> str:
        tip = (
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
            f'orient="auto"><path d="M0,0 L8,4 L0,8 z" fill="{LINE}"/></marker></defs>'
        )
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" width="{self.width}" '
            f'height="{self.height}" role="img" font-family="system-ui, -apple-system, Segoe UI, Arial, sans-serif">'
        )
        sheet = f'<rect width="{self.width}" height="{self.height}" fill="#ffffff"/>'
        return "\n".join([head, f"<title>{escape(title)}</title>", tip, sheet, *self.parts, "</svg>"]) + "\n"


def lane() -> Picture:
    """Four requests, eight experts, two of them a token: the model's own choice, and one within a smaller set."""
    own = [(0, 3), (1, 3), (0, 6), (4, 7)]
    kept = [(0, 3), (3, 0), (0, 4), (4, 3)]
    picture = Picture(720, 232)

    def choices(left: int, chosen: list[tuple[int, int]], head: str, colour: str) -> None:
        active = {expert for pair in chosen for expert in pair}
        picture.text(left, 24, head)
        for expert in range(8):
            ink = INK if expert in active else GREY
            picture.text(left + 26 * expert + 11, 46, str(expert), size=11, at="middle", ink=ink)
        for row, pair in enumerate(chosen):
            for expert in range(8):
                picture.box(left + 26 * expert, 54 + 32 * row, 22, 26, colour if expert in pair else PALE)
        picture.text(left, 204, f"{len(active)} active experts: {', '.join(map(str, sorted(active)))}")

    for row in range(4):
        picture.text(84, 72 + 32 * row, f"request {row + 1}", at="end", ink=FAINT)
    choices(98, own, "the routers' choice, two experts a token", GREY)
    picture.line((318, 116), (440, 116), arrow=True)
    picture.text(378, 104, "policy", at="middle")
    picture.text(378, 136, "sees all four rows", size=11, at="middle", ink=FAINT)
    choices(456, kept, "the new routing", BLUE)
    return picture


def pack() -> Picture:
    """Three lanes of three cells over fourteen decode steps; a row holds one request after the other."""
    cells = [
        ("policy A, batch 4", BLUE, [[5, 6, 3], [3, 8, 3], [7, 4, 3], [4, 4, 6]]),
        ("vanilla, batch 4", GREY, [[6, 5, 3], [4, 7, 3], [7, 7], [3, 6, 5]]),
        ("policy B, batch 2", ORANGE, [[8, 6], [5, 4, 5]]),
    ]
    picture = Picture(720, 300)
    top, left, step = 44, 124, 26
    picture.text(left, 24, "decode steps", ink=FAINT)
    picture.line((left + 96, 20), (left + 160, 20), arrow=True)
    height = sum(len(rows) for _, _, rows in cells) * 20 + 2 * 12
    picture.box(6, top, 84, height, PALE, LINE)
    for line, words in enumerate(("prompts,", "prefilled", "once for", "all lanes")):
        picture.text(48, top + height / 2 - 22 + 17 * line, words, at="middle")
    y = top
    for name, colour, rows in cells:
        middle = y + len(rows) * 10
        picture.line((92, middle), (left - 6, middle), arrow=True)
        for requests in rows:
            x = left
            for length in requests:
                picture.box(x, y, step * length, 18, colour)
                x += step * length
            y += 20
        end = left + 14 * step + 8
        picture.line((end, middle - len(rows) * 10 + 2), (end + 6, middle - len(rows) * 10 + 2), (end + 6, y - 4))
        picture.line((end, y - 4), (end + 6, y - 4))
        picture.text(end + 14, middle + 4, f"{name}: one lane")
        y += 12
    picture.parts.append(
        f'<rect x="{left + 8 * step}" y="{top - 5}" width="{step}" height="{height + 8}" rx="3" fill="none" '
        f'stroke="{INK}" stroke-width="2"/>'
    )
    picture.text(
        left + 8.5 * step, top + height + 24, "one forward pass; each policy is called on its own rows", at="middle"
    )
    return picture


def phases() -> Picture:
    """The token rows of one step of a server: three requests that decode, and pieces of two prompts."""
    picture = Picture(720, 214)
    picture.text(20, 24, "token rows of one step")
    names = ["decode"] * 3 + ["prompt a"] * 3 + ["prompt b"] * 2
    for row, name in enumerate(names):
        y = 36 + 21 * row
        picture.box(20, y, 150, 18, BLUE if name == "decode" else GREY)
        picture.text(95, y + 13, name, size=11, at="middle")
    picture.line((178, 66), (300, 66), arrow=True)
    picture.box(306, 46, 110, 40, PALE, LINE)
    picture.text(361, 71, "policy", at="middle")
    picture.line((420, 66), (500, 66), arrow=True)
    picture.text(508, 71, "new routing of these rows")
    picture.line((178, 152), (500, 152), arrow=True)
    picture.text(508, 157, "the routers' own routing")
    picture.text(338, 142, "not seen, not changed", size=11, at="middle", ink=FAINT)
    return picture


LENGTHS = [4, 9, 3, 6, 5, 4, 7, 3]
"""Decode steps of eight requests."""
SLOTS = 4


def seats(continuous: bool) -> Iterator[tuple[int, int, int, int]]:
    """(request, slot, first step, steps): requests enter the first slot that is free, or all slots when all are."""
    free = [0] * SLOTS
    for request, length in enumerate(LENGTHS):
        if not continuous and request % SLOTS == 0:
            free = [max(free)] * SLOTS
        slot = min(range(SLOTS), key=lambda slot: (free[slot], slot))
        yield request, slot, free[slot], length
        free[slot] += length


def batching() -> Picture:
    """The same eight requests in a lane of four slots, both ways."""
    picture = Picture(720, 290)
    left, step, high = 118, 29, 22
    for part, (name, continuous) in enumerate((("static", False), ("continuous", True))):
        top = 40 + 130 * part
        placed = list(seats(continuous))
        last = max(first + steps for _, _, first, steps in placed)
        picture.text(16, top - 12, f"batching={name}")
        for slot in range(SLOTS):
            picture.text(left - 10, top + high * slot + 15, f"slot {slot + 1}", size=11, at="end", ink=FAINT)
            end = max(first + steps for _, where, first, steps in placed if where == slot)
            picture.box(left, top + high * slot, step * last, high - 3, PALE)
            if continuous and end < last:
                picture.box(left + step * end, top + high * slot, step * (last - end), high - 3, ORANGE)
                picture.text(left + step * (end + last) / 2, top + high * slot + 14, "filler", size=11, at="middle")
        for request, slot, first, steps in placed:
            picture.box(left + step * first, top + high * slot, step * steps, high - 3, BLUE)
            middle = left + step * (first + steps / 2)
            picture.text(middle, top + high * slot + 14, str(request + 1), size=11, at="middle")
        full = sum(
            continuous or sum(first <= now < first + steps for _, _, first, steps in placed) == SLOTS
            for now in range(last)
        )
        picture.text(left + step * last + 12, top + 48, f"{full} of {last} steps full")
    picture.text(left, 284, "Numbers are requests; a filler is a document that is not scored.", size=11, ink=FAINT)
    return picture


def teacher_forcing() -> Picture:
    """Three rows of one lane: prompts, then tokens that are given."""
    rows = [(5, 4), (3, 5), (4, 2)]
    colours = [BLUE, ORANGE, GREEN, "#b48ac2", "#d4b94c"]
    picture = Picture(720, 236)
    left, cell, widest = 110, 38, max(prompt for prompt, _ in rows)
    start = left + cell * widest
    picture.text(left, 24, "prompt", ink=FAINT)
    picture.text(start, 24, "given tokens")
    for row, (prompt, given) in enumerate(rows):
        y = 54 + 40 * row
        picture.text(left - 14, y + 20, f"row {row + 1}", at="end", ink=FAINT)
        for place in range(prompt):
            picture.box(start - cell * (prompt - place), y, cell - 3, 30, PALE)
        for token in range(given):
            picture.box(start + cell * token, y, cell - 3, 30, colours[token])
    for step in range(max(given for _, given in rows)):
        picture.text(start + cell * step + 17, 46, f"t={step + 1}", size=11, at="middle", ink=FAINT)
    right = start + cell * 5 + 16
    for line, words in enumerate(
        ("The tokens of one colour are", "one batch for the policy,", "as if decoded in one step.")
    ):
        picture.text(right, 78 + 20 * line, words)
    picture.line((left, 186), (left, 194), (start + cell * 5 - 3, 194), (start + cell * 5 - 3, 186))
    picture.text((left + start + cell * 5) / 2, 216, "one forward pass over all of them", at="middle")
    return picture


PICTURES: dict[str, Callable[[], Picture]] = {
    "lane": lane,
    "pack": pack,
    "phases": phases,
    "batching": batching,
    "teacher_forcing": teacher_forcing,
}


def drawn() -> Iterator[tuple[Path, str]]:
    """Each picture's file and content."""
    for name, draw in PICTURES.items():
        yield Path(__file__).with_name(f"{name}.svg"), draw().svg((draw.__doc__ or name).strip())


if __name__ == "__main__":
    for path, content in drawn():
        path.write_text(content, encoding="utf-8")
