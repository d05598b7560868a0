"""The shape of the code in numbers: `python -m tests.structure [FOLDER ...]`, a column for each checkout.

Rooms are folders with Python files; an arrow is an import between two of them, in a function or for a type too. A
circle is a set of files that reach one another by imports. The jail of the sandbox is run as a package of its own and
has no arrows to the rest."""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
TOPS = ("lynx_exp", "analysis")
BLOCK = 8
"""Lines of code that stand twice, word for word, make a repeated block."""

WITH_ANY = re.compile(r"(?m)^.*\bAny\b")


def files_of(root: Path = ROOT) -> list[Path]:
    """Every file of the package but those of the jail."""
    return sorted(path for top in TOPS for path in (root / top).rglob("*.py") if "jail" not in path.parts)


def module_of(path: Path, root: Path = ROOT) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def edges_of(paths: Sequence[Path], root: Path = ROOT) -> dict[str, set[str]]:
    """Module -> the modules among these that it imports, for types and inside functions too. `from package import
    module` is an arrow to the module."""
    modules = {module_of(path, root) for path in paths}
    edges: dict[str, set[str]] = {}
    for path in paths:
        module, edges[module_of(path, root)] = module_of(path, root), set()
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                below = [f"{node.module}.{alias.name}" for alias in node.names]
                names = [name if name in modules else str(node.module) for name in below]
            edges[module] |= {name for name in names if name in modules} - {module}
    return edges


def circles(edges: Mapping[str, set[str]]) -> list[list[str]]:
    """Rings of modules that import one another, taken out one after the other until none is left."""
    left, rings = dict(edges), []
    while left:
        try:
            list(TopologicalSorter(left).static_order())
            return rings
        except CycleError as error:
            ring = set(error.args[1])
            rings.append(sorted(ring))
            left = {name: after - ring for name, after in left.items() if name not in ring}
    return rings


def between_rooms(edges: Mapping[str, set[str]], room_of: Mapping[str, str]) -> dict[str, set[str]]:
    """Room -> the other rooms that its files import."""
    rooms: dict[str, set[str]] = {room: set() for room in room_of.values()}
    for module, used in edges.items():
        rooms[room_of[module]] |= {room_of[name] for name in used} - {room_of[module]}
    return rooms


def code_and_comments(text: str) -> tuple[int, int]:
    """Lines with code, and lines with a comment; docstrings are code."""
    code, comments = set(), set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            comments.add(token.start[0])
        elif token.type not in (tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER):
            code |= set(range(token.start[0], token.end[0] + 1))
    return len(code), len(comments)


def repeated_blocks(texts: Iterable[str]) -> int:
    """Runs of `BLOCK` lines of code that stand in more than one place; imports and lines of a bracket alone do not
    count. A longer run counts once for each of its lines but the last `BLOCK - 1`."""
    seen: Counter[tuple[str, ...]] = Counter()
    for text in texts:
        lines = [line.strip() for line in text.splitlines()]
        lines = [line for line in lines if re.search(r"\w", line) and not line.startswith(("import ", "from ", "#"))]
        seen.update({tuple(lines[at : at + BLOCK]) for at in range(len(lines) - BLOCK + 1)})
    return sum(count - 1 for count in seen.values() if count > 1)


def shared_names(paths: Sequence[Path]) -> list[str]:
    """Names of modules that are more than one file's."""
    names = Counter(path.stem for path in paths if path.stem != "__init__")
    return sorted(name for name, count in names.items() if count > 1)


def numbers(root: Path) -> dict[str, str]:
    everything = sorted(path for top in TOPS for path in (root / top).rglob("*.py"))
    texts = [path.read_text() for path in everything]
    paths = files_of(root)
    edges = edges_of(paths, root)
    rooms = between_rooms(
        edges, {module_of(path, root): ".".join(path.parent.relative_to(root).parts) for path in paths}
    )
    lengths = [text.count("\n") for text in texts]
    counted = [code_and_comments(text) for text in texts]
    code, comments = (sum(column) for column in zip(*counted, strict=True))
    rings = circles(edges)
    return {
        "rooms": f"{len(rooms)}",
        "arrows between rooms": f"{sum(map(len, rooms.values()))}",
        "circles of files": f"{len(rings)}" + (f" (of up to {max(map(len, rings))})" if rings else ""),
        "files": f"{len(everything)}",
        "lines": f"{sum(lengths)}",
        "longest file, lines": f"{max(lengths)}",
        "module names that two files share": f"{len(shared_names(everything))}",
        "lines with Any": f"{sum(len(WITH_ANY.findall(text)) for text in texts)}",
        "lines with a comment": f"{comments} ({100 * comments / code:.1f} % of those with code)",
        f"repeated blocks of {BLOCK} lines": f"{repeated_blocks(texts)}",
        "lines of README": f"{(root / 'README.md').read_text().count(chr(10))}",
    }


def main(folders: Sequence[str]) -> None:
    columns = [numbers(Path(folder).resolve()) for folder in folders or [str(ROOT)]]
    width = max(map(len, columns[0]))
    for name in columns[0]:
        print(name.ljust(width), *(column[name].rjust(24) for column in columns))


if __name__ == "__main__":
    main(sys.argv[1:])
