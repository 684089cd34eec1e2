"""models: what trainings made, and fetching it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from llmsched.cli import show, terminal
from llmsched.cli.columns import Columns

if TYPE_CHECKING:
    from llmsched.spec import http_models


class _ShowByDefault(click.Group):
    """`models NAME` is `models show NAME`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or args[0] not in (*self.commands, "--help"):
            args = ["show", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_ShowByDefault)
def models() -> None:
    """What trainings made: list the versions of models (models [NAME]), or fetch one (models pull NAME DIR)."""


@models.command("pull")
@click.argument("name")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@show.json_option
def pull_(name: str, folder: Path) -> None:
    """Put a model, NAME (the newest version) or NAME@VERSION, into the new folder DIR, as transformers and PEFT load
    it; or what a run of another kind left, such as the rows of a batch."""
    with show.connect() as client:
        made = client.pull(name, folder)
    said = f"{made.source} is in {made.folder}: {len(made.files)} files, {made.size_bytes / 1e6:.1f} MB"
    show.answer(made, lambda: terminal.echo(said))


@models.command("show")
@click.argument("name", required=False)
@show.json_option
def show_(name: str | None) -> None:
    """What trainings made: each run that succeeded is a version of the model NAME, with its metrics and what it is of.

    A spec takes one as model://NAME (the newest there is now) or model://NAME@VERSION; run://NAME waits for a run
    that is still to succeed. Version N is run N.
    """
    from llmsched.spec import http_models

    with show.connect() as client:
        known = client.models(name)
    show.answer(http_models.ModelList(models=known), lambda: _details(known) if name else _overview(known))


def _overview(known: list[http_models.ModelVersion]) -> None:
    table = Columns("NAME", ">VERSION", "MADE", "OF", "METRICS")
    for one in known:
        made = show.clock(one.made_at)
        table.add_row(one.name, str(one.version), made, _of(one), show.numbers(one.metrics))
    table.show()


def _of(one: http_models.ModelVersion) -> str:
    return (one.base_model or one.loop or "")[-32:]


def _details(known: list[http_models.ModelVersion]) -> None:
    for one in known:
        code = f"workdir {one.workdir_sha256[:12]}" if one.workdir_sha256 else ""
        lines = {
            "made": f"{show.clock(one.made_at)} by {one.user or 'unknown'}, run {one.workload}",
            "of": " ".join(part for part in (one.base_model or one.loop, one.method, one.task) if part),
            "data": ", ".join(one.data),
            "after": ", ".join(one.made_from),
            "code": " ".join(part for part in (f"spec {one.spec_sha256[:12]}", code) if part),
            "metrics": show.numbers(one.metrics, 12),
            "live in": ", ".join(f"{place.to} as {place.kind} {place.name}" for place in one.published),
            "lies at": one.artifact,
        }
        terminal.echo(one.source)
        for word, text in lines.items():
            if text:
                terminal.echo(f"  {word:<8} {text}")
