"""What had not ended when a controller of this home ended: told by `down`, asked about by the next `up`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from llmsched.cli import show, terminal

if TYPE_CHECKING:
    from llmsched.client import Client

NAMED = 10


def of_home(folder: Path) -> list[str]:
    """Ids of the workloads that are neither over nor being cancelled, as the store of a home has them, in the order in
    which they came. Nothing may write there meanwhile. A store that cannot be read has none to ask about: the
    controller says what is wrong with it."""
    from llmsched.control import recovery
    from llmsched.control.archive import StoreArchive
    from llmsched.errors import LlmschedError
    from llmsched.store.reading import moment_of

    file = folder / "state.sqlite"
    if not file.exists():
        return []
    try:
        with moment_of(file) as moment:
            state, _ = recovery.fold(moment, StoreArchive(moment))
    except LlmschedError:
        return []
    return [name for name, found in state.workloads.items() if not found.outcome and not found.cancelled]


def named(ids: Sequence[str]) -> str:
    return _listed(ids[:NAMED], len(ids))


def _listed(ids: Sequence[str], count: int) -> str:
    """`a, b and 3 more`"""
    left = count - len(ids)
    return ", ".join(ids) + (f" and {left} more" if left > 0 else "")


def ask(folder: Path) -> bool:
    """Whether they are to go on, as somebody answers. Yes where there are none."""
    ids = of_home(folder)
    if not ids:
        return True
    terminal.echo(f"Not ended yet: {named(ids)}.", err=True)
    return click.confirm("Are they to go on? No cancels them", default=True, err=True)


def tell(client: Client) -> None:
    """That they go on, where nobody was there to ask. The controller says which: it has read the store already."""
    live = client.workloads(active=NAMED, waiting=NAMED, ended=0)
    views = sorted(live.workloads, key=lambda view: (view.submitted_at, view.id))
    ids = [view.id for view in views if not view.ended][:NAMED]
    count = sum(number for phase, number in live.counts.items() if phase in show.LIVE)
    if ids:
        terminal.echo(f"Not ended yet: {_listed(ids, count)}.", err=True)
        terminal.echo("They go on. To begin without them: llmsched up --fresh.", err=True)
