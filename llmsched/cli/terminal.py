"""The one place that prints. Words of users and workloads reach a terminal as text, never as something that it obeys.

Everything else in `cli` prints through this; the linter refuses `click.echo` and rich's own Console elsewhere.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import click

from llmsched import sanitize

if TYPE_CHECKING:
    from rich.console import Console


def echo(text: str = "", *, err: bool = False, nl: bool = True) -> None:
    """What a terminal would obey is spelled out: `\\x1b`, in JSON `\\u001b`."""
    click.echo(sanitize.shown(text, in_json=wants_json()), err=err, nl=nl)


def raw(text: str, *, err: bool = False) -> None:
    """What a command wrote that somebody ran: byte for byte into a file or a pipe, as text onto a terminal."""
    stream = sys.stderr if err else sys.stdout
    stream.write(sanitize.shown(text) if stream.isatty() else text)
    stream.flush()


def wants_json() -> bool:
    context = click.get_current_context(silent=True)
    return bool(context and (context.find_root().obj or {}).get("json"))


def error(text: str) -> None:
    click.echo(f"{click.style('error', fg='red', bold=True)}: {sanitize.shown(text)}", err=True)


def is_cut() -> bool:
    """Whether lines end at the edge of a terminal, or where COLUMNS says; what goes into a file or a pipe is whole."""
    return sys.stdout.isatty() or "COLUMNS" in os.environ


WHOLE = 100_000  # columns


def width() -> int:
    """Columns of a line on standard output."""
    return console().width if is_cut() else WHOLE


def console(**options: Any) -> Console:
    """Of rich: what it is given is made text, its own colours stay."""
    from rich.console import Console
    from rich.segment import Segment

    class Plain(Console):
        def render(self, renderable: Any, options: Any = None) -> Any:
            for segment in super().render(renderable, options):
                if segment.control is None:
                    yield Segment(sanitize.shown(segment.text), segment.style)
                else:
                    yield segment

    if not is_cut() and not options:
        options["width"] = WHOLE
    return Plain(highlight=False, emoji=False, **options)


def print_drawn(console: Console, drawn: Any) -> None:
    """What rich draws, without the blanks that would fill every line."""
    with console.capture() as shown:
        console.print(drawn)
    click.echo("\n".join(line.rstrip() for line in shown.get().splitlines()))
