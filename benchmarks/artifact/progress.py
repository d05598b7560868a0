"""Shows what runs: on a terminal one line that is renewed, else a line of each experiment now and then."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable

WIDTH = 100
"""Of the line on a terminal, in characters."""


class Progress:
    """The last line of each experiment that runs. Its methods may be called from several threads."""

    def __init__(self, every_s: float = 20.0):
        self._every_s = every_s
        self._lock = threading.Lock()
        self._running: dict[str, str] = {}
        self._live = sys.stdout.isatty()

    def say(self, text: str) -> None:
        """Print a line that stays."""
        with self._lock:
            print(("\r\033[K" if self._live else "") + text, flush=True)

    def of(self, name: str) -> Callable[[str], None]:
        """A callback for the lines of one experiment, which begins now."""
        begun = last = time.monotonic()

        def show(line: str) -> None:
            nonlocal last
            now = time.monotonic()
            clock = f"{name} {(now - begun) / 60:.1f} min"
            with self._lock:
                self._running[name] = f"{clock}  {line}"
                if self._live:
                    room = WIDTH // len(self._running) - 3
                    shown = " | ".join(text[:room] for text in self._running.values())
                    sys.stdout.write(f"\r\033[K  {shown}")
                    sys.stdout.flush()
                elif now - last > self._every_s:
                    last = now
                    print(f"  {clock}  {line[:WIDTH]}", flush=True)

        return show

    def end(self, name: str) -> None:
        """The experiment has ended: its line goes."""
        with self._lock:
            self._running.pop(name, None)
