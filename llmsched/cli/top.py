"""top: the queue with progress, who holds which GPU, and the last events, live on a terminal or one frame of it.

A workload that holds GPUs has a letter, so that the picture also reads without colours and in a log. Asks through the
client; decides nothing.
"""

from __future__ import annotations

import json
import re
import string
import sys
import time
from dataclasses import dataclass, field
from itertools import cycle
from typing import TYPE_CHECKING

import click

from llmsched.cli import show, terminal
from llmsched.cli.columns import Cell, Columns

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from llmsched.client import Client
    from llmsched.spec import http_models, node_models

COLOURS = ("blue", "yellow", "green", "magenta", "red", "cyan", "bright_blue", "bright_yellow", "bright_green")
LETTERS = string.ascii_lowercase + string.ascii_uppercase
OTHERS, FREE = "#", "."
NAME_WIDTH, BAR_WIDTH, LINE_OF_NODES = 20, 12, 80
EVENTS_SHOWN, ENDED_SHOWN, NODE_LINES = 6, 4, 8
LOOK_BACK = 100  # entries: most of the last ones are checkpoints, which say little
KINDS_NOT_TOLD = ("CheckpointPublished",)


@dataclass
class Frame:
    """What was seen at one moment. `letters` keep their workload from frame to frame."""

    workloads: list[http_models.WorkloadView]
    nodes: list[node_models.NodeView]
    queues: list[http_models.QueueView]
    health: http_models.Health
    events: list[http_models.EventView]
    notice: str = ""
    letters: dict[str, tuple[str, str]] = field(default_factory=dict)


class Eyes:
    """Looks again and again; remembers the events it has seen."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._events: list[http_models.EventView] = []
        self._seen = -1
        self._letters: dict[str, tuple[str, str]] = {}
        self._supply = cycle(zip(cycle(LETTERS), cycle(COLOURS), strict=False))

    def look(self) -> Frame:
        health, listed = self._client.health(), self._client.workloads(ended=ENDED_SHOWN)
        after = self._seen if self._seen >= 0 else max(0, health.seq - LOOK_BACK)
        for event in self._client.events(after, follow=False):
            self._seen = event.seq
            if event.text and event.kind not in KINDS_NOT_TOLD:
                self._events.append(event)
        self._seen = max(self._seen, after)
        del self._events[:-EVENTS_SHOWN]
        self._name([view.id for view in reversed(listed.workloads) if view.gpus])
        nodes, queues = self._client.nodes().nodes, self._client.queues().queues
        return Frame(listed.workloads, nodes, queues, health, list(self._events), letters=dict(self._letters))

    def _name(self, holding: list[str]) -> None:
        """Letters of those that have let go are free again, as long as few want one."""
        self._letters = {name: letter for name, letter in self._letters.items() if name in holding}
        taken = {letter for letter, _ in self._letters.values()}
        for name in holding:
            if name in self._letters:
                continue
            for _ in LETTERS:
                letter = next(self._supply)
                if letter[0] not in taken:
                    break
            self._letters[name] = letter
            taken.add(letter[0])


@click.command()
@click.option("--once", is_flag=True, help="One frame, then end. So it is wherever stdout is not a terminal.")
@click.option("--every", type=click.FloatRange(min=0.2), default=1.0, show_default=True, help="Seconds between frames.")
@show.json_option
def top(once: bool, every: float) -> None:
    """The queue, the GPUs and the last events, live. Ctrl-C ends it.

    Each workload that holds GPUs has a letter in the first column; "." is a free GPU, "#" one that others use.
    """
    with show.connect() as client:
        eyes = Eyes(client)
        if show.wants_json():
            _print_json(eyes.look())
        elif once or not sys.stdout.isatty():
            console = show.out()
            terminal.print_drawn(console, picture(eyes.look(), console.width, None))
        else:
            _live(eyes, every)


def _print_json(frame: Frame) -> None:
    parts = {"workloads": frame.workloads, "nodes": frame.nodes, "queues": frame.queues, "events": frame.events}
    said = {name: [view.model_dump(mode="json") for view in views] for name, views in parts.items()}  # type: ignore[attr-defined]
    terminal.echo(json.dumps({"health": frame.health.model_dump(mode="json"), **said}, indent=2))


def _live(eyes: Eyes, every: float) -> None:
    from rich.live import Live

    from llmsched.errors import ClusterError

    console = show.out()
    frame = eyes.look()
    with Live(console=console, screen=True, auto_refresh=False) as live:
        try:
            while True:
                live.update(picture(frame, console.width, console.height), refresh=True)
                time.sleep(every)
                try:
                    frame = eyes.look()
                except ClusterError as error:  # it may come back
                    frame.notice = f"{error.message} What is shown is old."
        except KeyboardInterrupt:
            return


def picture(frame: Frame, width: int, height: int | None) -> RenderableType:
    """`height` None: as long as it takes."""
    from rich.console import Group
    from rich.text import Text

    grid = _grid(frame, min(width, LINE_OF_NODES) if height is None else width)
    events = [
        Text(f"{time.strftime('%H:%M:%S', time.localtime(event.at))}  ", style="dim") + _told(event)
        for event in frame.events
    ]
    for line in events:
        line.truncate(width, overflow="ellipsis")
    rows = None if height is None else max(3, height - len(grid) - len(events) - 9)
    parts: list[RenderableType] = [_headline(frame, width)]
    if frame.notice:
        parts.append(Text(frame.notice, style="bold red"))
    parts += [Text(), *_queue(frame, rows), Text(), Text("GPUS", style="bold"), *grid]
    if events:
        parts += [Text(), Text("EVENTS", style="bold"), *events]
    return Group(*parts)


def _headline(frame: Frame, width: int) -> Text:
    from rich.text import Text

    total = sum(node.total.gpus for node in frame.nodes)
    held = sum(node.used.gpus + node.foreign.gpus + sum(e.amounts.gpus for e in node.excess) for node in frame.nodes)
    waiting = sum(view.phase == "waiting" for view in frame.workloads)
    active = sum(not view.ended for view in frame.workloads) - waiting
    line = Text("llmsched  ", style="bold")
    line.append(_bar(held, total, 16), style="blue")
    line.append(f" {held:g} of {total:g} GPUs", style="not bold")
    line.append(f"   {active} active, {waiting} waiting", style="not bold")
    if frame.health.status != "ready" or frame.health.message:
        line.append(f"   {frame.health.status}: {frame.health.message or frame.health.cluster.message}", style="red")
    line.truncate(width, overflow="ellipsis")
    return line


def _queue(frame: Frame, rows: int | None) -> list[RenderableType]:
    from rich.text import Text

    active = [view for view in frame.workloads if not view.ended and view.phase != "waiting"]
    waiting = [view for view in frame.workloads if view.phase == "waiting"]
    ended = [view for view in frame.workloads if view.ended]
    if not frame.workloads:
        return [Text("Nothing has been submitted yet.", style="dim")]
    room = rows if rows is not None else 50
    shown = [*active, *waiting, *ended][:room]
    rows_shown = show.families(shown)
    left = len(frame.workloads) - len(rows_shown)
    table = Columns("", "NAME", "PHASE", ">SIZE", "PROGRESS", "WHAT", widest={1: NAME_WIDTH})
    for view, name, _ in rows_shown:
        letter, colour = frame.letters.get(view.id, ("", ""))
        size = "" if view.ended else f"{view.size}/{view.wanted if view.wanted is not None else view.max_size}"
        step, total = view.progress.get("step"), view.progress.get("total_steps")
        has_bar = isinstance(step, int | float) and isinstance(total, int | float) and total > 0
        bar = _bar(step, total, BAR_WIDTH) if has_bar and view.phase not in ("waiting", *ENDS) else ""  # type: ignore[arg-type]
        phase, what = show.phase_cell(view.phase), _what(view, bool(bar))
        table.add_row(Cell(letter, colour), name, phase, size, Cell(bar, "green"), what)
    return [table.drawn(), *([Text(f"and {left} more: llmsched status --all", style="dim")] if left else [])]


ENDS = ("succeeded", "failed", "cancelled")
_IN_TOP = ("loss", "rows_per_s", "bad_rows", "best", "best_trial")  # numbers beside a bar


def _what(view: http_models.WorkloadView, has_bar: bool) -> str:
    if view.phase == "waiting":
        return view.reason.message if view.reason else ""
    if view.phase == "succeeded":
        return show.numbers(view.metrics) or view.message
    if view.ended:
        return view.message
    if view.kind == "serve":
        return view.reason.message if view.reason else "answers" if view.size else view.message
    values = view.progress
    if has_bar:
        values = {name: value for name, value in values.items() if name not in ("step", "total_steps", "phase")}
        done = f"{view.progress['step']:g}/{view.progress['total_steps']:g}"
        if isinstance(unit := view.progress.get("unit"), str):
            done = f"{view.progress['step']:,.10g}/{view.progress['total_steps']:,.10g} {unit}"
        return ", ".join(filter(None, [done, show.numbers({k: v for k, v in values.items() if k in _IN_TOP})]))
    return show.progress(values) or view.message


def _bar(done: float, total: float, width: int) -> str:
    full = round(width * min(1.0, done / total)) if total else 0
    return "━" * full + "·" * (width - full)


def _grid(frame: Frame, width: int) -> list[Text]:
    """Nodes side by side, as many as fit, each with a cell a GPU. Nodes without GPUs are counted."""
    from rich.text import Text

    held: dict[str, list[tuple[str, float]]] = {}
    for view in frame.workloads:
        for gang in view.gangs:
            for place in gang.placement:
                held.setdefault(place.node, []).append((view.id, place.gpus))
    with_gpus = sorted((node for node in frame.nodes if node.total.gpus), key=lambda node: _natural(node.name))
    without = len(frame.nodes) - len(with_gpus)
    cells = [(node, _cells(frame, node, held.get(node.id, []))) for node in with_gpus]
    names = [_short(node.name) + (f" {node.flavor}" if node.flavor else "") for node in with_gpus]
    label = max(map(len, names), default=0)
    widest = max((len(inside) for _, inside in cells), default=0) + label + 4
    per_line = max(1, (width + 2) // widest)
    lines: list[Text] = []
    for at in range(0, len(cells), per_line):
        line = Text()
        for (node, inside), name in zip(cells[at : at + per_line], names[at : at + per_line], strict=True):
            line.append(f"{name:<{label}}  ", style="magenta" if node.draining else "dim")
            line.append_text(inside)
            line.append(" " * (widest - label - 2 - len(inside)))
        lines.append(line)
    if len(lines) > NODE_LINES:
        more = len(cells) - (NODE_LINES - 1) * per_line
        lines[NODE_LINES - 1 :] = [Text(f"and {more} more nodes: llmsched nodes", style="dim")]
    if without:
        lines.append(Text(f"{without} node{'s' if without > 1 else ''} without GPUs", style="dim"))
    return lines or [Text("No node has joined yet.", style="dim")]


def _cells(frame: Frame, node: node_models.NodeView, holders: list[tuple[str, float]]) -> Text:
    """One letter a GPU. A shared GPU shows who has the most of it."""
    from rich.text import Text

    room = [1.0] * -int(-node.total.gpus // 1)
    owner: list[tuple[float, str, str]] = [(0.0, FREE, "dim")] * len(room)
    pieces = [(amount, *frame.letters.get(name, (OTHERS, "dim"))) for name, amount in holders]
    for one in node.excess:  # beyond what it was given, and its all the same
        pieces.append((one.amounts.gpus, *frame.letters.get(one.gang.rpartition("/")[0], (OTHERS, "dim"))))
    pieces.append((node.foreign.gpus, OTHERS, "dim"))
    whole = [(1.0, letter, colour) for amount, letter, colour in pieces for _ in range(int(amount + 1e-6))]
    parts = [(amount % 1, letter, colour) for amount, letter, colour in pieces if amount % 1 > 1e-6]
    for piece in (*whole, *parts):
        at = next((index for index, free in enumerate(room) if free >= piece[0] - 1e-6), None)
        if at is not None:
            room[at] -= piece[0]
            owner[at] = max(owner[at], piece)
    line = Text()
    for _, letter, colour in owner:
        line.append(letter, style=colour)
    return line


def _natural(name: str) -> list[tuple[int, str]]:
    """node-2 before node-10"""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"([0-9]+)", name)]


def _short(name: str) -> str:
    return name if len(name) < 16 else f"{name[:8]}..."


def _told(event: http_models.EventView) -> Text:
    from rich.text import Text

    who = event.workload if event.gang is None or event.gang.endswith("/0") else event.gang
    line = Text(f"{who} " if who else "", style="bold")
    line.append(event.text, style="not bold")
    return line
