"""What the demo shows: on a terminal a live table with progress bars under a scrolling story, elsewhere plain lines.

Knows wire models and words, asks nobody.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from rich.console import Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from llmsched.cli import terminal
from llmsched.client import Client
from llmsched.errors import LlmschedError
from llmsched.spec import http_models

PLAIN_EVERY_S = 10.0
WIDTH = 100
STYLES = {"running": "green", "succeeded": "bold green", "waiting": "yellow", "failed": "bold red", "starting": "cyan"}
TOLD = ("Launch", "Preempt", "Resize", "Nominate", "Drain", "LoadAdapter", "Published", "Bound", "Finished", "Lost")


class Screen:
    """`began` is the monotonic second that counts as zero in the margin."""

    def __init__(self, began: float) -> None:
        self._began = began
        self._console = terminal.console(file=sys.stderr)
        if not self._is_terminal():
            self._console.width = WIDTH
        self._live = Live(console=self._console, refresh_per_second=4, transient=True) if self._is_terminal() else None
        self._said_at = 0.0
        self._talking = threading.Lock()  # an answer is streaming: decisions wait for its end

    def _is_terminal(self) -> bool:
        return self._console.is_terminal and not self._console.is_dumb_terminal

    def __enter__(self) -> Screen:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def say(self, text: str, *, who: str = "") -> None:
        line = Text(f"{time.monotonic() - self._began:6.1f} s  ", style="dim")
        if who:
            line.append(f"{who:<10} ", style="bold cyan")
        line.append(text)
        self._console.print(line, soft_wrap=True)

    def box(self, title: str, text: str) -> None:
        self._console.print(Panel(Text(text), title=title, title_align="left", border_style="cyan", width=WIDTH))

    def plan(self, planned: Sequence[http_models.Planned]) -> None:
        table = Table(title="llmsched plan -f spec.yaml: what would happen now", title_justify="left", width=WIDTH)
        for column in ("workload", "kind", "GPUs", "would start", "otherwise waits for"):
            table.add_column(column)
        for one in planned:
            where = ", ".join(f"{place.bundles} on {place.name}" for place in one.placement)
            waits = one.reason.message if one.reason and not one.starts_now else ""
            table.add_row(one.name, one.kind, f"{one.at_min.gpus:g}", where if one.starts_now else "", waits)
        self._console.print(table)

    def queue(self, views: Sequence[http_models.WorkloadView]) -> None:
        """The queue as it is now; nothing: take the table away."""
        if self._live:
            self._live.update(_table(views) if views else Group(), refresh=True)
        elif views and time.monotonic() - self._said_at > PLAIN_EVERY_S:
            self._said_at = time.monotonic()
            self.say("   ".join(f"{view.name}: {_phase(view)}" for view in reversed(views)))

    @contextmanager
    def streaming(self, model: str) -> Iterator[Callable[[str], None]]:
        """A writer of the pieces of one answer."""
        with self._talking:
            if self._live:
                self._live.stop()
            self._console.print(Text(f"{'':9} {model} > ", style="bold green"), end="")
            try:
                yield lambda piece: self._console.print(Text(piece), end="", soft_wrap=True)
            finally:
                self._console.print()
                if self._live:
                    self._live.start()

    def decisions_of(self, client: Client) -> None:
        """From now on, what the scheduler decides and what comes of it, in words."""

        def tell() -> None:
            with suppress(LlmschedError, RuntimeError):  # the controller has gone: the story is over
                for event in client.events(0, follow=True):
                    if event.kind in TOLD:
                        with self._talking:
                            self.say(f"{event.workload}: {event.text}", who="scheduler")

        threading.Thread(target=tell, name="llmsched-demo-events", daemon=True).start()

    def farewell(self, home: Path, urls: dict[str, str], *, stays: bool) -> None:
        lines = [f"{name:<10} {url}" for name, url in urls.items()]
        if stays:
            lines += ["", f"export LLMSCHED_HOME={home}", "llmsched chat assistant:support-tone"]
            lines += ["llmsched story support-tone", "llmsched down   # when done"]
            self.box("it stays up; next", "\n".join(lines))
        else:
            lines += ["", "llmsched demo --keep            # the same, and it stays up", "llmsched init train"]
            lines += ["llmsched up --nodes 2x2:A100    # a cluster of your own"]
            self.box("live until now; next", "\n".join(lines))


def _phase(view: http_models.WorkloadView) -> str:
    step, total, loss = (view.progress.get(key) for key in ("step", "total_steps", "loss"))
    if view.phase != "running" or view.kind == "serve" or not total:
        return view.phase
    return f"{step}/{total}" + (f" loss {loss:.3f}" if isinstance(loss, float) else "")


def _table(views: Sequence[http_models.WorkloadView]) -> Table:
    table = Table(width=WIDTH)
    for column in ("workload", "phase", "GPUs", "", "loss", "waits for"):
        table.add_column(column, max_width=40, no_wrap=column != "waits for")
    for view in reversed(views):
        step, total, loss = (view.progress.get(key) for key in ("step", "total_steps", "loss"))
        bar: ProgressBar | str = ""
        if isinstance(step, int | float) and isinstance(total, int | float) and total:
            bar = ProgressBar(total=float(total), completed=float(step), width=20)
        waits = view.reason.message if view.reason else ""
        shown = f"{loss:.3f}" if isinstance(loss, float) else ""
        table.add_row(
            view.name, Text(view.phase, style=STYLES.get(view.phase, "")), f"{view.gpus:g}", bar, shown, waits
        )
    return table
