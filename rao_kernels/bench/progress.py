"""What a run does now, how much of it is left, and about how long that takes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.text import Text

from .cases import minutes


class Progress:
    """A line below the tables of a terminal; elsewhere a printed line for each table to come.

    seconds: rough time of each table, in order. What is left is theirs, scaled by how long those
    before took. The line is drawn when it changes: a thread that redraws would take time from what
    is measured.
    """

    def __init__(self, console: Console, seconds: Sequence[float]) -> None:
        self.finished = 0
        self._console, self._seconds = console, seconds
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._began = time.monotonic()
        self._label = ""

    def __enter__(self) -> Progress:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.stop()

    def note(self, label: str, doing: str) -> None:
        """Say that the table `label` is being made, by `doing`."""
        place = f"[{self.finished + 1} of {len(self._seconds)}, about {self.left()} left] {label}"
        if self._console.is_terminal:
            self._live.update(Text(f"{place}: {doing}"), refresh=True)
        elif label != self._label:
            self._console.print(Text(place), soft_wrap=True)
        self._label = label

    def finish(self) -> None:
        """A table is there."""
        self.finished += 1

    def left(self) -> str:
        """Minutes until the last table."""
        done, rest = sum(self._seconds[: self.finished]), sum(self._seconds[self.finished :])
        pace = (time.monotonic() - self._began) / done if done else 1.0
        return minutes(rest * pace)
