"""secret: values that workloads need and nobody may see. They come from a prompt, a pipe or a file, never from argv."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from llmsched.cli import given, show, terminal
from llmsched.cli.columns import Columns

SHARED = click.option("--shared", is_flag=True, help="For everyone's workloads, not only for yours (operators).")


@click.group()
def secret() -> None:
    """Keep values that workloads need and nobody may see.

    A spec names them (secrets: [HF_TOKEN]) and each attempt finds them in its environment. The controller keeps them
    encrypted, under a key in LLMSCHED_HOME/secret-key or LLMSCHED_SECRET_KEY_FILE: back that file up apart from the
    store. Nothing shows a value again, and logs have *** in its place. A new value reaches what is launched after it.

    \b
      llmsched secret set HF_TOKEN < token.txt
      llmsched secret list
      llmsched secret rm HF_TOKEN
    """


@secret.command("set")
@click.argument("name")
@click.option(
    "--from-file", "file", type=click.Path(path_type=Path), help="Read the value there, all but a last newline."
)
@SHARED
@show.json_option
def set_(name: str, file: Path | None, shared: bool) -> None:
    """Set NAME: asked for on a terminal, else read from standard input."""
    value = _value(name, file)
    with show.connect() as client:
        view = client.set_secret(name, value, shared=shared)
    show.answer(view, lambda: terminal.echo(f"{view.name} is set. In a spec: secrets: [{view.name}]"))


def _value(name: str, file: Path | None) -> str:
    if file is None and sys.stdin.isatty():
        return str(click.prompt(f"Value of {name}", hide_input=True, err=True))
    return given.text(file).removesuffix("\n").removesuffix("\r")


@secret.command("list")
@show.json_option
def list_() -> None:
    """Your own and the shared ones: names, never values."""
    from llmsched.spec import http_models

    with show.connect() as client:
        known = client.secrets()

    def for_people() -> None:
        table = Columns("NAME", "FOR", "SET BY", "SET", last_takes_rest=False)
        for one in known:
            table.add_row(one.name, "everyone" if one.shared else "you", one.set_by, show.clock(one.set_at))
        table.show()

    show.answer(http_models.SecretList(secrets=known), for_people)


@secret.command("rm")
@click.argument("name")
@SHARED
@show.json_option
def rm(name: str, shared: bool) -> None:
    """Remove NAME. What runs keeps the value it was given; what names it does not start again without it."""
    with show.connect() as client:
        view = client.remove_secret(name, shared=shared)
    show.answer(view, lambda: terminal.echo(f"{view.name} is removed."))
