"""usage: GPU-hours by user, queue, workload and day, and tokens by key and model, for people, as CSV or as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from llmsched.cli import show, terminal
from llmsched.cli.columns import Columns

if TYPE_CHECKING:
    from llmsched.spec.usage_models import KeyUsageView, UsageLine, UsageView

BY_KEY = ("key", "user", "model", "day")  # of endpoints
TOKENS = ("requests", "prompt_tokens", "completion_tokens", "cached_tokens")
BY = ("user", "queue", "workload", "day", "flavor")
HELP_BY = f"Any of {', '.join(BY)}, with commas; or of {', '.join(BY_KEY)}."
FIGURES = ("gpu_hours", "own", "borrowed", "starting", "lost", "excess", "cost")
SHOWN = 100  # lines for people


@click.command()
@click.option("--by", default="user,queue", show_default=True, help=HELP_BY)
@click.option("--since", default="30d", show_default=True, help="How long ago (30d), or a day: 2030-01-31.")
@click.option("--until", metavar="DAY", help="The last day; default: today. Days are UTC.")
@click.option("--csv", "as_csv", is_flag=True, help="All lines as CSV on stdout.")
@show.json_option
def usage(by: str, since: str, until: str | None, as_csv: bool) -> None:
    """GPU-hours that were held, and by whom.

    OWN is what a queue's quota covers, BORROWED what it held beyond it. Of both, STARTING went by before attempts ran,
    and LOST is work since the last checkpoint that had to be done again. EXCESS was taken through Ray beyond what gangs
    were given, and is in no other figure but COST. COST is at the prices of flavors in the cluster file, as they were
    then. You see the work that you may see: your own, all as an auditor or operator.

    With key or model in --by: requests that endpoints answered, and their tokens: of prompts (PROMPT), of them those
    that were not read again (CACHED), and of answers (COMPLETION). A key is that of a token, by its id.

    \b
      llmsched usage --by queue --since 7d
      llmsched usage --by key,model
      llmsched usage --by user,day --since 2030-01-01 --until 2030-01-31 --csv > january.csv
    """
    from llmsched.errors import SpecError

    names = [name.strip() for name in by.split(",") if name.strip()]
    known = BY_KEY if {"key", "model"} & {*names} else BY
    wrong = next((name for name in names if name not in known), None)
    if wrong is not None or not names:
        raise SpecError(
            f'"{wrong or by}" is nothing to add up by{" for keys" if known is BY_KEY else ""}.',
            where="--by",
            hint=f"Choose of {', '.join(known)}.",
        )
    if known is BY_KEY:
        _keys(names, since, until, as_csv)
        return
    if as_csv and show.wants_json():
        raise SpecError("--csv and --json are two forms of one answer.", code="options", hint="Choose one.")
    with show.connect() as client:
        if as_csv:
            terminal.echo(client.usage_csv(by=names, since=since, until=until), nl=False)
            return
        view = client.usage(by=names, since=since, until=until, limit=200_000 if show.wants_json() else SHOWN)
    show.answer(view, lambda: _print(view))


def _keys(names: list[str], since: str, until: str | None, as_csv: bool) -> None:
    from llmsched.errors import SpecError

    if as_csv:
        raise SpecError("--csv has GPU-hours alone.", code="options", hint="--json has what keys have used.")
    with show.connect() as client:
        view = client.key_usage(by=names, since=since, until=until)
    show.answer(view, lambda: _print_keys(view))


def _print_keys(view: KeyUsageView) -> None:
    terminal.echo(f"requests and tokens from {view.since} to {view.until} (UTC)")
    figures = (f">{name.removesuffix('_tokens').upper()}" for name in TOKENS)
    table = Columns(*(name.upper() for name in view.by), *figures, last_takes_rest=False)
    for line in view.lines:
        names = (getattr(line, name) or "-" for name in view.by)
        table.add_row(*names, *(f"{getattr(line, name):,}" for name in TOKENS))
    all_of_it = (f"{getattr(view.total, name):,}" for name in TOKENS)
    table.add_row("all", *([""] * (len(view.by) - 1)), *all_of_it)
    table.show()


def _print(view: UsageView) -> None:
    terminal.echo(f"GPU-hours from {view.since} to {view.until} (UTC)")
    table = Columns(
        *(name.upper() for name in view.by),
        *(f">{name.upper().replace('_', ' ')}" for name in FIGURES),
        last_takes_rest=False,
    )
    for line in view.lines:
        names = (getattr(line, name) or "-" for name in view.by)
        table.add_row(*names, *(f"{value:,.2f}" if value else "-" for value in _figures(line)))
    if view.left_out:
        table.add_row(f"{view.left_out} more", *([""] * (len(view.by) + len(FIGURES) - 1)))
    table.add_row("all", *([""] * (len(view.by) - 1)), *(f"{v:,.2f}" if v else "-" for v in _figures(view.total)))
    table.show()
    if view.left_out:
        terminal.echo("--csv and --json have all lines.", err=True)


def _figures(line: UsageLine) -> list[float | None]:
    return [getattr(line, name) for name in FIGURES]
