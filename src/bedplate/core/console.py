"""Console: shows events and results to whoever is there - a person at a terminal, a log file, or a program.

    rich    a terminal: one live line with step, loss, speed and time left
    plain   no terminal: a line every 30 s, and at once when something changes
    json    a program: each event as a JSON line on stderr, one JSON value with the result on stdout

stdout is for data, stderr is for people. A Console is a listener for EventLog: `Run.open(..., listeners=(console,))`.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NoReturn, TextIO

import rich.box
import rich.console
import rich.live
import rich.table
import rich.text

from bedplate.core.errors import BedplateError
from bedplate.core.narrate import Pace, describe

Mode = Literal["rich", "plain", "json"]

INTERRUPTED = 130
"""Exit code of a command that was interrupted."""
PLAIN_EVERY_S = 30.0
"""How often a line of progress is written where there is no terminal."""


class Console:
    """Shows events, results and errors in one of three modes.

    Args:
        mode: "rich", "plain" or "json".
        out: where data goes (stdout).
        err: where people look (stderr).
        clock: seconds; decides when the next plain line is due.
    """

    def __init__(
        self, mode: Mode = "plain", out: TextIO | None = None, err: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.mode = mode
        colour = mode == "rich" and not os.environ.get("NO_COLOR")
        self.stdout = _writer(out or sys.stdout, colour)
        self.stderr = _writer(err or sys.stderr, colour, terminal=mode == "rich")
        self._clock = clock
        self._last_line = -PLAIN_EVERY_S
        self._pace = Pace()
        self._live: rich.live.Live | None = None
        self._turn = threading.RLock()  # events may come from a saving thread as well as from the step loop

    @classmethod
    def create(cls, *, json: bool = False, plain: bool = False) -> Console:
        """The Console that suits this process: JSON when asked for, rich at a terminal, else plain."""
        if json:
            return cls("json")
        return cls("plain" if plain or not sys.stderr.isatty() or os.environ.get("TERM") == "dumb" else "rich")

    def __call__(self, event: dict[str, Any]) -> None:
        """Show one event."""
        with self._turn:
            if self.mode == "json":
                self._line(json.dumps(event, ensure_ascii=False))
            elif event.get("event") in ("step", "progress"):
                self._show_pace(self._pace.after(event))
            elif (text := describe(event)) and event.get("event") != "run_failed":  # whoever raised it prints the error itself
                if event["event"] in ("stage_started", "stage_finished", "run_finished"):
                    self._end_live()
                    self._pace, self._last_line = Pace(), -PLAIN_EVERY_S
                self._line(text, style="yellow" if text.startswith("warning") else "")

    def say(self, text: str) -> None:
        """A line for people, on stderr. Silent under --json."""
        if self.mode != "json":
            with self._turn:
                self._line(text)

    def print(self, text: str) -> None:
        """Result text for people, on stdout. Silent under --json."""
        if self.mode != "json":
            self.close()
            self.stdout.print(rich.text.Text(printable(text)), soft_wrap=True)

    def stream(self, pieces: Iterable[str]) -> None:
        """Result text for people as it comes, on stdout, with a newline at its end. Silent under --json, but always read to its end."""
        self.close()
        for piece in pieces:
            if self.mode != "json":
                self.stdout.file.write(printable(piece))
                self.stdout.file.flush()
        if self.mode != "json":
            self.stdout.file.write("\n")
            self.stdout.file.flush()

    def show(self, picture: rich.console.RenderableType) -> None:
        """Anything that rich can draw, on stdout. Silent under --json."""
        if self.mode != "json":
            self.close()
            self.stdout.print(picture)

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[object]], title: str = "") -> None:
        """A table for people, on stdout; columns of numbers are set right. Silent under --json."""
        if self.mode != "json":
            self.close()
            print_table(self.stdout, columns, rows, title)

    def data(self, value: Any) -> None:
        """The command's result as one JSON value on stdout. Silent without --json."""
        if self.mode == "json":
            self.stdout.file.write(json.dumps(value, ensure_ascii=False, indent=2, default=str) + "\n")
            self.stdout.file.flush()

    def stopped(self, value: Any) -> NoReturn:
        """End a command whose work a signal stopped politely, with the exit code of an interruption: what stands behind `&&` must not begin.

        Args:
            value: the command's result so far, see `data`.
        """
        self.say("stopped; the same command goes on from here")
        self.data(value)
        raise SystemExit(INTERRUPTED)

    def error(self, error: BedplateError) -> None:
        """`error:` and `hint:` on stderr."""
        self.close()
        if self.mode == "json":
            record = {"event": "error", "error": error.message, "hint": error.hint, "exit_code": error.exit_code}
            self._line(json.dumps(record, ensure_ascii=False))
            return
        for word, text, style in (("error", error.message, "bold red"), ("hint", error.hint, "bold cyan")):
            if text:
                self.stderr.print(rich.text.Text.assemble((f"{word}: ", style), text), soft_wrap=True)

    def close(self) -> None:
        """Take the live line away; a later event brings it back."""
        with self._turn:
            self._end_live()

    def _line(self, text: str, style: str = "") -> None:
        if self.mode == "rich":
            self.stderr.print(rich.text.Text(text, style=style), soft_wrap=True)
        else:
            self.stderr.file.write(text + "\n")
            self.stderr.file.flush()

    def _show_pace(self, pace: Pace) -> None:
        if self.mode == "rich":
            if self._live is None:
                self._live = rich.live.Live(console=self.stderr, transient=True, refresh_per_second=8)
                self._live.start()
            self._live.update(rich.text.Text(pace.line(), no_wrap=True, overflow="ellipsis"))
        elif self._clock() - self._last_line >= PLAIN_EVERY_S or pace.complete:
            self._last_line = self._clock()
            self._line(pace.line())

    def _end_live(self) -> None:
        if self._live is not None:
            live, self._live = self._live, None
            live.update(rich.text.Text(""))
            live.stop()
            if self._pace.line():
                self.stderr.print(rich.text.Text(self._pace.line()), soft_wrap=True)


def printable(text: str) -> str:
    """The text without what would steer a terminal: models and files may say anything, escape sequences too."""
    return text.translate(_STEERING)


_STEERING = {number: "\ufffd" for number in (*range(32), *range(127, 160)) if chr(number) not in "\n\t"} | {13: None}
"""Control characters of ASCII and Latin-1."""


def print_table(console: rich.console.Console, columns: Sequence[str], rows: Iterable[Sequence[object]], title: str = "") -> None:
    """Print a table; cells are shown as they are (no markup), numbers to the right.

    Args:
        console: where to.
        columns: the headings.
        rows: one sequence of cells a row; None is an empty cell.
    """
    rows = [list(row) for row in rows]
    heading = rich.text.Text(title) if title else None
    table = rich.table.Table(title=heading, box=rich.box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    for index, column in enumerate(columns):
        cells = [row[index] for row in rows if row[index] is not None]
        numeric = bool(cells) and all(isinstance(cell, (int, float)) for cell in cells)
        table.add_column(rich.text.Text(column), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(rich.text.Text(_cell(cell)) for cell in row))
    console.print(table)


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _writer(file: TextIO, colour: bool, terminal: bool | None = None) -> rich.console.Console:
    return rich.console.Console(
        file=file,
        no_color=not colour,
        color_system="auto" if colour else None,
        force_terminal=terminal or None,
        highlight=False,
        markup=False,
        emoji=False,
    )
