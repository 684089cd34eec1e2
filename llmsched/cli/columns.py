"""Rows under column names, without frames. Cells are text, whoever wrote it; only `Cell` gives one a colour.

On a terminal rich fits them to its width. What goes into a file or a pipe is whole and has no colours, and is drawn
here: rich takes longer over a hundred rows than the controller over the question.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, NamedTuple

from llmsched import sanitize
from llmsched.cli import terminal

if TYPE_CHECKING:
    from rich.table import Table

GAP = 2
FIRST_AT_MOST = 28  # columns on a terminal, of whatever names a row


class Cell(NamedTuple):
    text: str
    style: str = ""  # of rich: "bold green"


class Columns:
    """A name with `>` before it is of numbers, at the right. The last column takes what is left of the line and ends in
    ... when that is too little."""

    def __init__(self, *names: str, last_takes_rest: bool = True, widest: dict[int, int] | None = None) -> None:
        """`widest`: at most so many columns of a terminal for the column of that index."""
        self._names = [name.lstrip(">") for name in names]
        self._right = [name.startswith(">") for name in names]
        self._last_takes_rest = last_takes_rest
        self._widest = widest or {0: FIRST_AT_MOST}
        self._rows: list[list[Cell]] = []

    def add_row(self, *cells: str | Cell) -> None:
        self._rows.append([cell if isinstance(cell, Cell) else Cell(cell) for cell in cells])

    def show(self) -> None:
        """Without the blanks that would fill every line."""
        if terminal.is_cut():
            terminal.print_drawn(terminal.console(), self.drawn())
        else:
            terminal.echo("\n".join(self._lines()))

    def drawn(self) -> Table:
        """For rich."""
        from rich.table import Table
        from rich.text import Text

        takes_rest = self._last_takes_rest and terminal.is_cut()  # where nothing is cut the rest is 100,000 blanks
        made = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold", expand=takes_rest)
        for index, name in enumerate(self._names):
            is_last = index == len(self._names) - 1
            made.add_column(
                Text(name),
                justify="right" if self._right[index] else "left",
                no_wrap=True,
                overflow="ellipsis",
                ratio=1 if is_last and takes_rest else None,
                max_width=self._widest.get(index) if terminal.is_cut() else None,
            )
        for row in self._rows:
            made.add_row(*(Text(cell.text, cell.style) for cell in row))
        return made

    def _lines(self) -> Iterator[str]:
        rows = [self._names, *([sanitize.shown(cell.text).expandtabs() for cell in row] for row in self._rows)]
        lines = [line for row in rows for line in zip_longest(*(text.split("\n") for text in row), fillvalue="")]
        widths = [max(map(_width, column)) for column in zip(*lines, strict=True)]
        return (self._line(line, widths) for line in lines)

    def _line(self, line: Sequence[str], widths: Sequence[int]) -> str:
        parts = []
        for text, width, right in zip(line, widths, self._right, strict=True):
            blanks = " " * (width - _width(text))
            parts.append(blanks + text if right else text + blanks)
        return (" " * GAP).join(parts).rstrip()


def _width(text: str) -> int:
    """Columns of a terminal."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)
