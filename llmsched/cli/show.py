"""How answers look: models as JSON on stdout, or words and columns; what is not the answer goes to stderr."""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from llmsched.cli import terminal
from llmsched.cli.columns import Cell
from llmsched.cli.terminal import wants_json as wants_json

if TYPE_CHECKING:
    from pydantic import BaseModel
    from rich.console import Console  # noqa: TID251

    from llmsched.client import Client
    from llmsched.spec import http_models

PHASE_COLOURS = {
    "waiting": "yellow",
    "starting": "cyan",
    "running": "green",
    "resizing": "cyan",
    "stopping": "magenta",
    "succeeded": "bold green",
    "failed": "bold red",
    "cancelled": "dim",
}


LIVE = ("waiting", "starting", "running", "resizing", "stopping")  # phases of what has not ended
CHECK_COLOURS = {"ok": "green", "warn": "yellow", "unknown": "yellow", "fail": "red", "broken": "red"}


def json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """--json on every command, kept where errors find it too."""

    def remember(ctx: click.Context, _: Any, wanted: bool) -> None:
        ctx.find_root().ensure_object(dict)["json"] = wanted

    return click.option(
        "--json", is_flag=True, is_eager=True, expose_value=False, callback=remember, help="The API's model on stdout."
    )(command)


def connect() -> Client:
    from llmsched.client import Client

    return Client()


def specs_of(file: str) -> Any:
    """What plan and apply are given: a file, or with "-" what stands on standard input. Raises SpecError."""
    if file != "-":
        return file
    from llmsched.spec import load
    from llmsched.spec.document import MAX_BYTES

    return load.load(sys.stdin.buffer.read(MAX_BYTES + 1), "standard input")


class Choice(NamedTuple):
    """Which workloads are meant, where they are not named."""

    user: str | None
    queue: str | None
    phase: tuple[str, ...]
    labels: dict[str, str]
    parent: str | None

    def __bool__(self) -> bool:
        return any(self)


def choice_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--user, --queue, --phase, --label and --parent, which the command gets as one `choice`."""

    @functools.wraps(command)
    def chosen(
        *words: Any,
        user: str | None,
        queue: str | None,
        phase: tuple[str, ...],
        label: tuple[str, ...],
        parent: str | None,
        **more: Any,
    ) -> Any:
        return command(*words, choice=Choice(user, queue, phase, dict(map(_label, label)), parent), **more)

    with_options: Callable[..., Any] = chosen
    for option in (
        click.option(
            "-l", "--label", multiple=True, metavar="KEY=VALUE", help="Only with this label of the spec; repeatable."
        ),
        click.option(
            "--phase", multiple=True, type=click.Choice([*PHASE_COLOURS]), help="Only in this phase; repeatable."
        ),
        click.option("--parent", metavar="NAME", help="Only what this workload asked for, as a search its trials."),
        click.option("--queue", help="Only of this queue."),
        click.option("--user", help="Only of this user."),
    ):
        with_options = option(with_options)
    return with_options


def _label(text: str) -> tuple[str, str]:
    from llmsched.errors import SpecError

    key, equals, value = text.partition("=")
    if not key or not equals:
        raise SpecError(f'"{text}" is no label.', code="options", hint="Write KEY=VALUE, as team=nlp.")
    return key, value


def answer(model: BaseModel, for_people: Callable[[], None]) -> None:
    """The model with --json, else what `for_people` prints."""
    if wants_json():
        terminal.echo(model.model_dump_json(indent=2))
    else:
        for_people()


def out() -> Console:
    return terminal.console()


def err() -> Console:
    return terminal.console(stderr=True)


def checks(found: Sequence[Any]) -> None:
    """What was looked at: NamedTuples of name, result, detail and hint; as {"checks": [...]} with --json."""
    if wants_json():
        terminal.echo(json.dumps({"checks": [check._asdict() for check in found]}, indent=2))
        return
    console = out()
    for name, result, detail, hint in found:
        colour = CHECK_COLOURS[result]
        console.print(f"[{colour}]{result:<7}[/]  {name:<14} {plain(detail)}", soft_wrap=True)
        if hint:
            console.print(f"{'':<24}{plain(hint)}", soft_wrap=True)


def next_commands(lines: Iterable[tuple[str, str]]) -> None:
    """What is useful now, on stderr."""
    rows = list(lines)
    width = max((len(command) for command, _ in rows), default=0)
    terminal.echo("\nNext:", err=True)
    for command, about in rows:
        terminal.echo(f"  {command:<{width}}   {about}", err=True)


def reach(url: str) -> str:
    """How an address of this machine alone is reached from another one."""
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    if parts.hostname not in ("127.0.0.1", "localhost", "::1"):
        return "from any machine that reaches it"
    return f"this machine only; from elsewhere: ssh -N -L {parts.port}:{parts.hostname}:{parts.port} USER@HOST"


def phase(name: str) -> str:
    """For a line that rich reads."""
    colour = PHASE_COLOURS.get(name)
    return f"[{colour}]{name}[/]" if colour else name


CHILDREN_SHOWN = 6  # of one workload, below it


def families(views: Sequence[http_models.WorkloadView]) -> list[tuple[http_models.WorkloadView, str, int]]:
    """(workload, its name, how many of its parent's children are left out after it): each below what asked for it, and
    no more of them than a few."""
    there = {view.id for view in views}
    children: dict[str, list[http_models.WorkloadView]] = {}
    for view in views:
        if view.parent in there:
            children.setdefault(view.parent, []).append(view)
    rows = []
    for view in views:
        if view.parent in there:
            continue
        rows.append((view, view.id, 0))
        below = children.get(view.id, [])
        for place, child in enumerate(below[:CHILDREN_SHOWN], 1):
            left = len(below) - place if place == CHILDREN_SHOWN else 0
            rows.append((child, f"  {child.id.removeprefix(view.name)}", left))
    return rows


def phase_cell(name: str) -> Cell:
    return Cell(name, PHASE_COLOURS.get(name, ""))


def plain(text: str) -> str:
    """Text of others in a place where rich reads markup."""
    from rich.markup import escape

    return escape(text)


def is_terminal() -> bool:
    return sys.stderr.isatty() and not wants_json()


def is_asked() -> bool:
    """Whether somebody is there who can answer a question."""
    return sys.stdin.isatty() and sys.stderr.isatty()


# --- numbers in words ---------------------------------------------------------------------------------------------


def duration(seconds: float | None) -> str:
    """45 s, 4 min, 2 h 05, 3 d 4 h"""
    if seconds is None:
        return "-"
    whole = max(0, round(seconds))
    if whole < 100:
        return f"{whole} s"
    if whole < 5400:
        return f"{round(whole / 60)} min"
    if whole < 172800:
        return f"{whole // 3600} h {whole % 3600 // 60:02d}"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def since(stamp: float | None) -> str:
    return duration(None if stamp is None else time.time() - stamp)


def clock(stamp: float) -> str:
    """14:20, with the date when it is not today."""
    then, now = time.localtime(stamp), time.localtime()
    return time.strftime("%H:%M" if then[:3] == now[:3] else "%Y-%m-%d %H:%M", then)


def amounts(it: http_models.Amounts) -> str:
    """`3 GPUs, 1 CPU`"""
    parts = [(it.gpus, "GPU"), (it.cpus, "CPU"), (it.memory_bytes / 1e9, "GB")]
    return ", ".join(f"{n:.3g} {noun}{'s' if n > 1 and noun != 'GB' else ''}" for n, noun in parts if n) or "nothing"


def gpus(amount: float) -> str:
    return f"{amount:g}" if amount else "-"


def counts(values: dict[str, int]) -> str:
    """2 nodes, 0.5 GPUs needed"""
    words = [
        f"{count / 1000:g} GPUs {what.removesuffix('_milli')}" if what.endswith("_milli") else f"{count} {what}"
        for what, count in values.items()
    ]
    return ", ".join(words).replace("_", " ")


def size(now: int, low: int, high: int) -> str:
    """2 of 4, or 2 of 1..4"""
    return f"{now} of {low if low == high else f'{low}..{high}'}"


def numbers(values: dict[str, Any], limit: int = 4) -> str:
    """loss 0.412, accuracy 0.91"""
    shown = [(name, value) for name, value in values.items() if isinstance(value, float | int) and value is not True]
    return ", ".join(f"{name} {value:.4g}" for name, value in shown[:limit])


def progress(values: dict[str, Any]) -> str:
    """step 120/500, loss 0.412; of a batch: rows 4,000/20,000, rows_per_s 310"""
    step, total = values.get("step"), values.get("total_steps")
    unit, form = ("step", "g") if not isinstance(values.get("unit"), str) else (values["unit"], ",.10g")
    parts = []
    if isinstance(values.get("phase"), str):
        parts.append(str(values["phase"]))
    if isinstance(step, int | float):
        of = f"/{total:{form}}" if isinstance(total, int | float) else ""
        parts.append(f"{unit} {step:{form}}{of}")
    rest = {name: value for name, value in values.items() if name not in ("step", "total_steps", "phase", "epoch")}
    words = numbers(rest, 3)
    return ", ".join([*parts, words] if words else parts)
