"""cluster: a fleet by Ray's own launcher, checked first, a controller on its head; and how it does, from here."""

from __future__ import annotations

import shutil
from pathlib import Path

import click

from llmsched.cli import show, terminal

FILE = click.argument("file", type=click.Path(path_type=Path))
YES = click.option("--yes", "-y", is_flag=True, help="Do not ask.")


@click.group()
def cluster() -> None:
    """A cluster of machines by `ray up`, from a file such as those in cluster/.

    \b
      llmsched cluster up cluster/onprem.yaml        checked first; then Ray, then the controller on the head
      llmsched cluster status cluster/onprem.yaml    from a laptop, by ssh
      llmsched cluster down cluster/onprem.yaml      the work, the controller, Ray, and rented machines
    """


@cluster.command("up")
@FILE
@YES
@click.option("--storage", help="Folder or s3://bucket/prefix on the head for results and logs.")
@click.option("--config", help="The llmsched.yaml to put in force, by its path on the head.")
@click.option("--check", "only_check", is_flag=True, help="Only look for what is wrong; touch nothing.")
@show.json_option
def up(file: Path, yes: bool, storage: str | None, config: str | None, only_check: bool) -> None:
    """Start Ray by FILE and the controller on its head.

    Looked at first, before a machine is touched: that the file is one of Ray's launcher, that nothing of it is still to
    be changed, that Ray will want a token and its dashboard is on loopback, that keys, tokens, programs and credentials
    are here, that the controller's login is out of reach of what runs as Ray's user.
    """
    from llmsched.errors import ClusterError
    from llmsched.executors import launcher

    found = launcher.read(file)
    launcher.check(found)
    if config:
        launcher.check_config(found, config)
    name, kind = found.data.get("cluster_name"), found.data["provider"].get("type")
    terminal.echo(f"{file}: nothing is wrong with it (cluster {name}, provider {kind}).", err=True)
    if not launcher.login(found).sudo:
        terminal.echo("Controller and Ray run as one user there: single-user mode, tokens are labels.", err=True)
        terminal.echo(f"For a boundary between them, see metadata.llmsched in {launcher.EXAMPLE}.", err=True)
    if only_check:
        return
    if not yes:
        click.confirm(f"Start {name}? Machines that are rented cost money", abort=True, err=True)
    launcher.up(found)
    if launcher.login(found).sudo:
        launcher.install(found)
    command = launcher.start_command(found, storage=storage, config=config)
    code = launcher.on_head(found, " ".join([command, *_json()]))
    if code:
        raise ClusterError(
            f"Ray is up; the controller on its head ended with {code}.",
            code="controller",
            hint=f"What it said is above. llmsched cluster down {file} takes Ray down again.",
        )
    show.next_commands(
        [
            (f"llmsched cluster status {file}", "how it does, from here"),
            (f"ray attach {file}", "a shell on the head: llmsched apply, status, why"),
        ]
    )


@cluster.command("down")
@FILE
@YES
@show.json_option
def down(file: Path, yes: bool) -> None:
    """Stop the work and the controller on the head, then Ray; rented machines are ended."""
    from llmsched.executors import launcher

    found = launcher.read(file)
    if not yes:
        click.confirm(f"End {found.data.get('cluster_name')} and all that runs on it?", abort=True, err=True)
    ended = launcher.on_head(found, launcher.command(found, "down", *_json()))
    if ended:
        terminal.echo(f"The controller did not end in good order ({ended}); Ray is taken down all the same.", err=True)
    launcher.down(found)


@cluster.command("status", context_settings={"ignore_unknown_options": True})
@FILE
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
@show.json_option
def status(file: Path, words: tuple[str, ...]) -> None:
    """What runs and waits there, from a laptop: llmsched status, by ssh on the head. WORDS go on to it."""
    from llmsched.errors import ClusterError
    from llmsched.executors import launcher

    found = launcher.read(file)
    columns = shutil.get_terminal_size().columns
    given = launcher.command(found, "status", *words, *_json(), columns=columns)
    code = launcher.on_head(found, given)
    if code == 255:
        raise ClusterError("ssh did not reach the head.", code="ssh", hint="What it said is above.")
    click.get_current_context().exit(code)


def _json() -> list[str]:
    """What the head is asked for as JSON comes from its own command."""
    return ["--json"] if show.wants_json() else []
