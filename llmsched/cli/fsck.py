"""fsck: whether what this home keeps is whole. Reads only, offline or beside a running controller."""

from __future__ import annotations

import click

from llmsched.cli import show


@click.command()
@click.option("--files", is_flag=True, help="Look for the files of results and checkpoints too, wherever they lie.")
@click.option("--storage", help="Where checkpoints lie, if it was given to llmsched up.")
@show.json_option
def fsck(files: bool, storage: str | None) -> None:
    """Check that what LLMSCHED_HOME keeps is whole. Changes nothing.

    Pages and schema of the store, checksums and order of the journal, the state folded from it and its safety rules,
    the tables that status is answered from, secrets, permissions. The controller may run meanwhile, or not at all. Ends
    with 5 when something is broken.
    """
    from llmsched.api.fsck import examine
    from llmsched.client.transport import default_home

    checks = list(examine(default_home(), files=files, storage=storage))
    show.checks(checks)
    if any(check.result == "broken" for check in checks):
        click.get_current_context().exit(5)
