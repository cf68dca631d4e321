"""The one place that decides how data, hints, progress and errors reach the terminal.

stdout carries data; stderr carries everything else. `NO_COLOR`, `FORCE_COLOR` and whether each stream is a terminal
are respected by rich.
"""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from whorl.errors import WhorlError, safe_name
from whorl.progress import Progress as Callback

PLAIN_EVERY_S = 30.0


class Sink:
    """Shows tables, records, hints and errors.

    Args:
        as_json: Print exactly one JSON object on stdout, also on refusal.
        quiet: Print only verdicts and paths.
    """

    def __init__(self, *, as_json: bool = False, quiet: bool = False) -> None:
        self.as_json, self.quiet = as_json, quiet
        self._out = Console(soft_wrap=True)
        self._err = Console(stderr=True)

    @property
    def width(self) -> int:
        """Columns of stdout; 140 when it is no terminal."""
        return self._out.width if self._out.is_terminal else 140

    def record(self, data: dict[str, Any]) -> None:
        """The one JSON object of a command."""
        sys.stdout.write(json.dumps(data, indent=1, allow_nan=False) + "\n")

    def line(self, text: str, style: str | None = None) -> None:
        """One line of data on stdout; `style` shows only where colours are allowed."""
        self._out.print(escape(text), style=style, highlight=False)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table of data on stdout; foreign text is escaped."""
        table = Table(title=escape(title), title_justify="left", title_style="bold", header_style="bold")
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*(escape(cell) for cell in row))
        console = self._out if self._out.is_terminal else Console(width=140, soft_wrap=False)
        console.print(table)

    def hint(self, text: str) -> None:
        """A remark on stderr."""
        if not self.quiet:
            self._err.print(escape(text), highlight=False)

    def error(self, error: WhorlError) -> None:
        """A refusal: one JSON object on stdout under --json, and the sentence on stderr."""
        if self.as_json:
            self.record({"status": "refused" if error.exit_code == 3 else "failed", "error": error.to_dict()})
        self._err.print(escape(str(error)), style="red", highlight=False, soft_wrap=True)

    @contextmanager
    def progress(self) -> Iterator[Callback]:
        """A callback that draws a bar on a terminal, or one plain line every 30 seconds."""
        if self.quiet or not self._err.is_terminal:
            yield self._plain_lines()
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self._err, transient=True) as bars:
            tasks: dict[str, Any] = {}

            def draw(what: str, done: int, total: int) -> None:
                if what not in tasks:
                    tasks[what] = bars.add_task(escape(safe_name(what, 50)), total=total)
                bars.update(tasks[what], completed=done, total=total)

            yield draw

    def _plain_lines(self) -> Callback:
        last = time.monotonic()

        def say(what: str, done: int, total: int) -> None:
            nonlocal last
            if not self.quiet and time.monotonic() - last >= PLAIN_EVERY_S:
                last = time.monotonic()
                self._err.print(escape(f"{safe_name(what)}: {done} of {total}"), highlight=False)

        return say
