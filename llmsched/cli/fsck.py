"""fsck: whether what this home keeps is whole. Reads only, offline or beside a running controller."""

from __future__ import annotations

import json

import click

from llmsched.cli import show

MARKS = {"ok": "[green]ok[/]     ", "broken": "[red]broken[/] ", "unknown": "[yellow]unknown[/]"}


@click.command()
@click.option("--files", is_flag=True, help="Look for the files of results and checkpoints too, wherever they lie.")
@click.option("--storage", help="Where checkpoints lie, if it was given to llmsched up.")
@show.json_option
def fsck(files: bool, storage: str | None) -> None:
    """Check that what LLMSCHED_HOME keeps is whole. Changes nothing.

    Pages of the store, checksums and order of the journal, the state folded from it and its safety rules, the tables
    that status is answered from, secrets, permissions. The controller may run meanwhile, or not at all. Ends with 5
    when something is broken.
    """
    from llmsched.api.fsck import examine
    from llmsched.client.transport import default_home

    checks = list(examine(default_home(), files=files, storage=storage))
    if show.wants_json():
        click.echo(json.dumps({"checks": [check._asdict() for check in checks]}, indent=2))
    else:
        out = show.out()
        for check in checks:
            out.print(f"{MARKS[check.result]}  {check.name:<12} {show.plain(check.detail)}", soft_wrap=True)
            if check.hint:
                out.print(f"{'':<23}{show.plain(check.hint)}", soft_wrap=True)
    if any(check.result == "broken" for check in checks):
        click.get_current_context().exit(5)
