"""init, schema, config: files to begin with, for editors, and for the cluster."""

from __future__ import annotations

import json
from pathlib import Path

import click

from llmsched.cli import show, terminal

KINDS = ("train", "serve", "batch", "tune", "task", "ray")


@click.command()
@click.argument("kind", type=click.Choice(KINDS))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="A new file; default: standard output.")
@show.json_option
def init(kind: str, output: Path | None) -> None:
    """Write a commented starter spec."""
    from llmsched.errors import RequestError
    from llmsched.spec.init import starter

    text = starter(kind)
    if output is None:
        terminal.echo(json.dumps({"kind": kind, "text": text}) if show.wants_json() else text, nl=show.wants_json())
        return
    try:
        with output.open("x") as file:
            file.write(text)
    except FileExistsError:
        raise RequestError(f"{output} exists.", code="file_exists", hint="Name another, or remove it.") from None
    except OSError as error:
        raise RequestError(f"cannot write {output}: {error.strerror}.", code="file") from None
    if show.wants_json():
        terminal.echo(json.dumps({"kind": kind, "file": str(output)}))
    show.next_commands([(f"llmsched plan -f {output}", "check it"), (f"llmsched apply -f {output}", "run it")])


@click.command()
@click.argument("kind", type=click.Choice((*KINDS, "cluster")), required=False)
@show.json_option
def schema(kind: str | None) -> None:
    """The JSON Schema of a KIND (default: of any workload), for editors."""
    from llmsched.spec.schema import schema as schema_of

    terminal.echo(json.dumps(schema_of(kind), indent=2))


@click.command()
@click.option("-f", "--file", type=click.Path(), help="A cluster file (llmsched.yaml) to put in force.")
@show.json_option
def config(file: str | None) -> None:
    """Show the configuration in force as a cluster file, or put a new version in force and show what it changes.

    \b
      llmsched config > llmsched.yaml     # what is not in it has its default
      llmsched config -f llmsched.yaml
    """
    import yaml

    from llmsched.spec.cluster import load_json
    from llmsched.spec.diff import diff_data
    from llmsched.spec.section import WRITTEN

    with show.connect() as client:
        before = client.config()
        view = client.configure(file) if file else before

    def for_people() -> None:
        now = load_json(view.configuration)
        if not file:
            written = now.model_dump(mode="json", context=WRITTEN, exclude_defaults=True)
            terminal.echo(yaml.safe_dump(written, sort_keys=False, allow_unicode=True, width=100), nl=False)
            return
        changed = diff_data(load_json(before.configuration).written(), now.written())
        for line in changed or ["nothing has changed but the version."]:
            terminal.echo(f"  {line}")
        terminal.echo(f"Configuration version {view.version} is in force.")

    show.answer(view, for_people)
