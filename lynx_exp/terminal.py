"""The console of commands that only print: a reader who has seen enough is no failure."""

from __future__ import annotations

from rich.console import Console


class Terminal(Console):
    """rich's, but a pipe that is closed (`| head`) is the BrokenPipeError that programs know, not an exit code of 1."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        raise BrokenPipeError
