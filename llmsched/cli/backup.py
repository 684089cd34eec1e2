"""backup and restore: what this home remembers, into a folder or a file and back."""

from __future__ import annotations

from pathlib import Path

import click

from llmsched.cli import show, terminal


@click.command()
@click.argument("target", type=click.Path(path_type=Path))
@click.option("--with-secret-key", is_flag=True, help="Put the key of the secrets in as well: then it opens them all.")
@show.json_option
def backup(target: Path, with_secret_key: bool) -> None:
    """Keep a copy of what LLMSCHED_HOME remembers in TARGET, a new folder or a .tar or .tar.gz file.

    The controller may run meanwhile. In it: the store (specs, stories and results' places of everybody's work), the key
    that its checksums are under, and digests of tokens; for its owner alone. Not in it: results and checkpoints, which
    lie in the storage, and the key of the secrets, which is best kept elsewhere.
    """
    from llmsched.api import backup as backups
    from llmsched.client.transport import default_home

    made = backups.make(default_home(), target, with_secret_key=with_secret_key)
    _answer(made, f"{made.path}: {made.seq} entries, {made.bytes >> 10} KiB ({', '.join(made.files)}).")
    if not with_secret_key:
        terminal.echo("The key of the secrets is not in it: keep secret-key elsewhere.", err=True)


@click.command()
@click.argument("source", type=click.Path(path_type=Path), required=False)
@click.option("--accept-loss", is_flag=True, help="Without a backup: go on from what is there, and lose the rest.")
@show.json_option
def restore(source: Path | None, accept_loss: bool) -> None:
    """Put the backup SOURCE in the place of what LLMSCHED_HOME remembers; the controller must not run.

    The backup is checked first, and what is replaced is moved aside. Then llmsched up: what still runs of what the
    backup knows is adopted, what it does not know is ended.
    """
    from llmsched.api import backup as backups
    from llmsched.client.transport import default_home
    from llmsched.errors import SpecError

    if (source is None) != accept_loss:
        raise SpecError("give a backup, or --accept-loss to go on without one.", code="options")
    home = default_home()
    done = backups.restore(home, source) if source is not None else backups.accept_loss(home)
    age = f", {show.duration(max(done.seconds_old, 0.0))} old" if done.seconds_old is not None else ""
    lost = f" {done.lost} entries written after it are lost." if done.lost else " Nothing is known to be lost."
    moved = f" What was here lies in {done.moved_to}." if done.moved_to else ""
    _answer(done, f"{done.seq} entries{age}, from epoch {done.epoch} on.{lost}{moved}")
    terminal.echo("Next: llmsched fsck, then llmsched up", err=True)


def _answer(done: object, text: str) -> None:
    import json

    terminal.echo(json.dumps(done._asdict(), indent=2) if terminal.wants_json() else text)  # type: ignore[attr-defined]
