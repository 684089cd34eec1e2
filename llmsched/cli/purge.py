"""`down --purge`: a home is removed with all that it has kept. Nothing may run there any more."""

from __future__ import annotations

from pathlib import Path

import click

from llmsched.api import home
from llmsched.cli import placement, show, terminal
from llmsched.errors import SpecError
from llmsched.executors import ray_user


def confirm(folder: Path, yes: bool) -> None:
    """Raises SpecError where nobody is there to ask, click.Abort when the answer is no."""
    if yes or not folder.exists():
        return
    terminal.echo(f"This removes {' and '.join(map(str, _kept(folder)))}, and cannot be undone.", err=True)
    if not show.is_asked():
        raise SpecError("--purge removes history and results.", code="options", hint="If so, add --yes.")
    click.confirm("Remove them?", abort=True, err=True)


def _kept(folder: Path) -> list[Path]:
    """The home, and its results where they lie in a folder that is its own."""
    own = [folder, Path(home.default_storage(folder))]
    return [place for place in own if place.exists()]


def remove(folder: Path) -> None:
    """The home, what its Ray's user has kept for it, and the results that lie where llmsched chose."""
    if not folder.exists():
        return
    known = home.isolation(folder)
    elsewhere = known.storage if known and known.storage and not _is_own(folder, known) else ""
    placement.forget(folder)
    if not show.wants_json():
        terminal.echo(f"Removed {folder}." + (f" Results stay in {elsewhere}, which you named." if elsewhere else ""))


def _is_own(folder: Path, known: home.Isolation) -> bool:
    """Whether results lie where llmsched chose: then they go with the home."""
    user = ray_user.find(known.ray_user) if known.ray_user else None
    own = [folder, Path(home.default_storage(folder)), *([ray_user.folder_of(user, folder)] if user else [])]
    return "://" not in known.storage and any(Path(known.storage).is_relative_to(place) for place in own)
