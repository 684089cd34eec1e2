"""best: the trials of a search, the best first."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from llmsched.cli import show, terminal
from llmsched.cli.columns import Columns

if TYPE_CHECKING:
    from llmsched.spec import trial_models

SHOWN = 20


@click.command()
@click.argument("name")
@click.option("-a", "--all", "everything", is_flag=True, help=f"Not only the first {SHOWN}.")
@show.json_option
def best(name: str, everything: bool) -> None:
    """The trials of a search, the best first: what each tried, how far it came and what it reached.

    The result of the best is run://NAME/best in a spec, and comes to this machine with llmsched models pull NAME DIR.
    """
    with show.connect() as client:
        found = client.trials(name)
    show.answer(found, lambda: _print(found, len(found.trials) if everything else SHOWN))


def _print(found: trial_models.TrialTable, shown: int) -> None:
    ended = sum(one.ended for one in found.trials)
    terminal.echo(f"{found.id}: {ended} of {found.total} trials have ended ({found.phase}).")
    short = {path: path.rpartition(".")[2] for path in found.paths}
    if len(set(short.values())) < len(short):
        short = {path: path for path in found.paths}
    values = [f">{name}" for name in short.values()]
    table = Columns("TRIAL", "PHASE", *([f">{found.metric}"] if found.metric else []), ">STEP", *values, "WHAT")
    for one in found.trials[:shown]:
        value = [_number(one.value)] if found.metric else []
        tried = [_number(one.values.get(path)) for path in found.paths]
        table.add_row(one.name, show.phase_cell(one.phase), *value, _number(one.step), *tried, _what(one))
    table.show()
    if len(found.trials) > shown:
        terminal.echo(f"... and {len(found.trials) - shown} more; see them with --all.")
    if found.best is not None and found.phase == "succeeded":
        terminal.echo(f"\nThe best is {found.best}; its result: run://{found.id}/best")


def _what(one: trial_models.TrialView) -> str:
    begun = f"goes on from {one.goes_on_from} at step {one.goes_on_at}" if one.goes_on_from else ""
    return "; ".join(filter(None, (begun, one.message)))


def _number(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value)
