"""What had not ended when a controller of this home ended: told by `down`, asked about by the next `up`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from llmsched.cli import show, terminal

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
    """`a, b and 3 more`"""
    shown = ", ".join(ids[:NAMED])
    return f"{shown} and {len(ids) - NAMED} more" if len(ids) > NAMED else shown


def goes_on(ids: Sequence[str], resume: bool | None) -> bool:
    """Whether they are to go on: as was said, as somebody answers, or, where nobody is there to ask, yes."""
    if not ids or resume is not None:
        return resume is not False
    terminal.echo(f"Not ended yet: {named(ids)}.", err=True)
    if not show.is_asked():
        terminal.echo("They go on. To begin without them: llmsched up --fresh.", err=True)
        return True
    return click.confirm("Are they to go on? No cancels them", default=True, err=True)
