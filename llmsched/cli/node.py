"""node, nodes: what there is and who holds it; which of them an operator wants empty."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import click

from llmsched.cli import show, terminal
from llmsched.cli.columns import Columns

if TYPE_CHECKING:
    from llmsched.spec import node_models


@click.group()
def node() -> None:
    """Empty a node before it is worked on, and give it back.

    A node that is drained takes nothing new. What runs there, also what may not be preempted, saves and leaves with its
    grace, and goes on elsewhere; of an endpoint another replica is made first. A node that restarts is still drained.
    What Ray says of nodes that it will take away (ray drain-node, a notice of preemption) does the same by itself.

    \b
      llmsched node list
      llmsched node drain gpu-7 --by 30m
      llmsched node undrain gpu-7
    """


@click.command()
@show.json_option
def nodes() -> None:
    """Nodes, who holds what, and which are to be empty."""
    with show.connect() as client:
        listed = client.nodes()
    show.answer(listed, lambda: _print_nodes(listed))


node.add_command(nodes, "list")


@node.command()
@click.argument("name")
@click.option("--by", "by", metavar="TIME", help="When it is to be empty: 30m, 2h, or 2030-01-31T08:00Z.")
@show.json_option
def drain(name: str, by: str | None) -> None:
    """Have NAME emptied: nothing new goes there, and what runs there leaves.

    Without --by everything has its whole grace, and a replica of an endpoint stays until another one answers. Again
    with another --by: that one holds. Needs an operator's token.
    """
    when = {} if by is None else _time(by)
    with show.connect() as client:
        listed = client.drain_node(name, **when)
    show.answer(listed, lambda: _print_drain(listed, name))


@node.command()
@click.argument("name")
@show.json_option
def undrain(name: str) -> None:
    """Let work go to NAME again, also before it is back. Needs an operator's token."""
    with show.connect() as client:
        listed = client.undrain_node(name)
    show.answer(listed, lambda: terminal.echo(f"{name} is not drained any more."))


def _time(by: str) -> dict[str, float]:
    from llmsched.errors import SpecError
    from llmsched.spec.quantities import parse_duration, parse_stamp

    for key, parse in (("within", parse_duration), ("until", parse_stamp)):
        try:
            return {key: parse(by)}
        except ValueError:
            continue
    raise SpecError(f'"{by}" is no time.', where="--by", hint="As in --by 30m, or --by 2030-01-31T08:00Z.")


def _print_drain(listed: node_models.NodeList, name: str) -> None:
    for one in listed.nodes:
        if name in (one.name, one.id):
            held = (
                f"; it holds {len(one.gangs)} gang{'s' if len(one.gangs) > 1 else ''}" if one.gangs else "; it is empty"
            )
            by = f", to be empty by {show.clock(one.leaves_at)}" if one.leaves_at is not None else ""
            terminal.echo(f"{one.name} is drained{by}{held}. See: llmsched node list")


def _print_nodes(listed: node_models.NodeList) -> None:
    if not listed.nodes:
        terminal.echo("No node has joined yet.")
        _print_others(listed)
        return
    table = Columns("NODE", "FLAVOR", ">GPUS FREE", ">CPUS FREE", ">MEMORY FREE", "HELD BY")
    for one in listed.nodes:
        holders = Counter(gang.rpartition("/")[0] or gang for gang in one.gangs)  # others' have no id
        words = {name: f"{name} x{n}" if n > 1 else name for name, n in holders.items()}
        for excess in one.excess:
            name = excess.gang.rpartition("/")[0] or excess.gang
            words[name] = f"{words.get(name, name)} (+{show.amounts(excess.amounts)} beyond its gang)"
        held = ", ".join(words.values())
        held += f" (others use {one.foreign.gpus:g} GPUs)" if one.foreign.gpus else ""
        table.add_row(
            one.name if one.name != one.id or len(one.id) < 20 else f"{one.id[:8]}...",
            one.flavor or "-",
            f"{one.free.gpus:g}/{one.total.gpus:g}" if one.total.gpus else "-",
            f"{one.free.cpus:g}/{one.total.cpus:g}",
            f"{one.free.memory_bytes / 1e9:.0f}/{one.total.memory_bytes / 1e9:.0f} GB",
            "; ".join(part for part in (_drained(one), held) if part) or "-",
        )
    table.show()
    _print_others(listed)


def _drained(one: node_models.NodeView) -> str:
    if not one.draining:
        return ""
    who = f" by {one.drained_by}" if one.drained_by else ""
    when = f", to be empty by {show.clock(one.leaves_at)}" if one.leaves_at is not None else ""
    return f"draining{who}{when}"


def _print_others(listed: node_models.NodeList) -> None:
    for away in listed.drained_away:
        terminal.echo(f"{away} is drained and not here.")
    for one in listed.types:
        price = f", {one.price_per_hour:g} an hour each" if one.price_per_hour else ""
        coming = f", {one.asked - one.here} asked for" if one.asked > one.here else ""
        kind = f"{one.gpus} {one.flavor or 'GPUs'}"
        terminal.echo(f"{one.name} ({kind}{price}): {one.here} of at most {one.max} here{coming}")
