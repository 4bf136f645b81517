"""Show the current step of a run, the number of tables left, and the time they may take."""

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

    seconds: rough time of each table, in order; the time left is their sum, scaled by the pace so
    far. The line is drawn when it changes; a thread that redraws it would disturb the timing.
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
        """Show that the table `label` is being made, and `doing`, the current step."""
        place = f"[{self.finished + 1} of {len(self._seconds)}, about {self.left()} left] {label}"
        if self._console.is_terminal:
            self._live.update(Text(f"{place}: {doing}"), refresh=True)
        elif label != self._label:
            self._console.print(Text(place), soft_wrap=True)
        self._label = label

    def finish(self) -> None:
        """Count a table as done."""
        self.finished += 1

    def left(self) -> str:
        """Return the minutes until the last table."""
        done, rest = sum(self._seconds[: self.finished]), sum(self._seconds[self.finished :])
        pace = (time.monotonic() - self._began) / done if done else 1.0
        return minutes(rest * pace)
