"""reserve and reservations: GPUs promised for a window, to a queue, to people, or to nobody (maintenance)."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from llmsched.cli import show, terminal
from llmsched.cli.columns import Columns

if TYPE_CHECKING:
    from llmsched.spec import http_models


@click.command()
@click.argument("name")
@click.argument("accelerators", required=False)
@click.option("--from", "start", help="When it opens: 2030-01-31T08:00Z; default: now.")
@click.option("--for", "duration", help="How long: 2h, 90m, 3d.")
@click.option("--queue", help="For the work of this queue.")
@click.option("--user", "users", multiple=True, help="For the work of these people; may be given several times.")
@click.option("--maintenance", is_flag=True, help="For nobody: others' work leaves and none may start.")
@click.option("--repeat", help='Again and again: a cron line in UTC, as "0 8 * * 1".')
@click.option("--cancel", is_flag=True, help="Take NAME back.")
@show.json_option
def reserve(
    name: str,
    accelerators: str | None,
    start: str | None,
    duration: str | None,
    queue: str | None,
    users: tuple[str, ...],
    maintenance: bool,
    repeat: str | None,
    cancel: bool,
) -> None:
    """Promise GPUs for a time to a queue, to people, or to nobody.

    Others' work starts there only if it ends before the window opens, and leaves, with its grace, when it does. What is
    reserved like this lies beside the reservations of the cluster file and stays when another file is put in force.
    Needs an operator's token.

    \b
      llmsched reserve release A100:8 --from 2030-01-31T08:00Z --for 4h --queue prod
      llmsched reserve new-fans A100:8 --from 2030-02-01T06:00Z --for 2h --maintenance
      llmsched reserve release --cancel
    """
    from llmsched.errors import SpecError
    from llmsched.spec import http_models

    given = (accelerators, start, duration, queue, users, maintenance, repeat)
    if cancel and any(given):
        raise SpecError("--cancel takes the name alone.", code="options")
    if not cancel and not (accelerators and duration):
        raise SpecError(
            "what to reserve and for how long is missing.",
            code="options",
            hint=f"As in: llmsched reserve {name} A100:8 --for 4h --queue prod",
        )
    if not cancel and maintenance == bool(queue or users):
        raise SpecError(
            "for whom is missing." if not maintenance else "maintenance is for nobody.",
            code="options",
            hint="Give --queue or --user, or else --maintenance.",
        )
    with show.connect() as client:
        if cancel:
            left = client.end_reservation(name)
            show.answer(http_models.ReservationList(reservations=left), lambda: terminal.echo(f"{name} is cancelled."))
            return
        entry: dict[str, Any] = {"name": name, "accelerators": accelerators, "duration": duration}
        entry["start"] = start or datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        entry |= {key: value for key, value in (("queue", queue), ("users", list(users)), ("repeat", repeat)) if value}
        made = client.reserve(entry)
    show.answer(http_models.ReservationList(reservations=made), lambda: _print(made))


@click.command()
@show.json_option
def reservations() -> None:
    """Which GPUs are promised, when, and to whom."""
    from llmsched.spec import http_models

    with show.connect() as client:
        found = client.reservations()
    show.answer(http_models.ReservationList(reservations=found), lambda: _print(found))


def _print(found: list[http_models.ReservationView]) -> None:
    if not found:
        terminal.echo("Nothing is reserved. llmsched reserve --help says how.")
        return
    table = Columns("NAME", "STATE", "OPENS (UTC)", "LASTS", ">GPUS", "FOR")
    short: list[str] = []
    for one in found:
        whom = [f"queue {one.queue}"] if one.queue else []
        whom += [", ".join(one.users)] if one.users else []
        words = " and ".join(whom) or "nobody (maintenance)"
        words += f", on {', '.join(one.nodes)}" if one.nodes else ""
        words += f', again at "{one.repeat}"' if one.repeat else ""
        lacks = one.found is not None and one.found < one.gpus
        what = f"{f'{one.found} of ' if lacks else ''}{one.gpus:g} {one.flavor or ''}".rstrip()
        lasts = show.duration(one.closes - one.opens) if one.opens is not None and one.closes is not None else ""
        table.add_row(one.name, one.state, _time(one.opens), lasts, what, words)
        if lacks:
            short.append(f"{one.name} has found {one.found} of {one.gpus:g} GPUs")
    table.show()
    if short:
        terminal.echo(f"{'; '.join(short)}: others have the rest, or reserved it before. Move or cancel one of them.")


def _time(stamp: float | None) -> str:
    return "" if stamp is None else datetime.fromtimestamp(stamp, UTC).strftime("%Y-%m-%d %H:%M")
