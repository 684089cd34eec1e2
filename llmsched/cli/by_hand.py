"""port-forward and cp: bytes to and from where a worker runs. `exec -it` is in exec.py."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath

import click

from llmsched.cli import show, terminal

RANK = click.option("--rank", type=click.IntRange(min=0), default=0, help="Of which worker.  [default: 0]")
GANG = click.option(
    "--gang", type=click.IntRange(min=0), help="Which replica of an endpoint.  [default: the first that runs]"
)


@click.command("port-forward")
@click.argument("name")
@click.argument("port")
@RANK
@GANG
@show.json_option
def port_forward(name: str, port: str, rank: int, gang: int | None) -> None:
    """Answer on a port of this machine with what NAME serves on a port where it runs, until Ctrl-C.

    \b
      llmsched port-forward my-notebook 8888          the same number here
      llmsched port-forward my-notebook 9000:8888     9000 here, 8888 there; 0:8888 takes a free one

    Only this machine reaches it (127.0.0.1). Whoever may change NAME may; its story tells it. Any number of
    connections, 64 at a time.
    """
    from llmsched.client import by_hand
    from llmsched.errors import ClusterError
    from llmsched.spec.by_hand import ByHandRequest

    here, there = _ports(port)
    listening = by_hand.listener(here, there)
    with listening, show.connect() as client:
        ask = ByHandRequest(does="forward", port=there, rank=rank, gang=gang)
        with client.by_hand(name, ask) as beside:
            number = listening.getsockname()[1]
            if show.wants_json():
                terminal.echo(json.dumps({"port": number, "remote": there}))
            else:
                terminal.echo(f"127.0.0.1:{number} is port {there} of {name}. Ctrl-C ends it.")
            by_hand.forward(beside, listening, lambda why: terminal.echo(why, err=True))
            beside.wait()
            raise ClusterError(f"the forwarding is over: {beside.message}.", code="ended")


def _ports(text: str) -> tuple[int, int]:
    words = text.split(":")
    numbers = [int(word) for word in words if word.isascii() and word.isdigit()]
    if not 1 <= len(numbers) == len(words) <= 2 or numbers[-1] == 0 or max(numbers) > 65535:
        raise click.BadParameter(f'"{text}" is no port: write PORT, or LOCAL:REMOTE, such as 9000:8888.')
    return numbers[0], numbers[-1]


@click.command()
@click.argument("source")
@click.argument("target")
@RANK
@GANG
@show.json_option
def cp(source: str, target: str, rank: int, gang: int | None) -> None:
    """Copy a file or folder between this machine and the working folder of a worker of NAME.

    \b
      llmsched cp my-fine-tune:outputs/plot.png .
      llmsched cp ./data my-notebook:data

    Paths of NAME count from its working folder, and end there. At most 10 GiB; what is there already is not
    overwritten. What must outlive NAME belongs into its results: llmsched models pull.
    """
    from llmsched.client import by_hand
    from llmsched.spec.by_hand import ByHandRequest

    fetched, stored = _parted(source), _parted(target)
    if (fetched is None) == (stored is None):
        raise click.UsageError(
            "one of both is NAME:PATH, the other a path of this machine (./a:b where it has a colon)."
        )
    with show.connect() as client:
        if fetched is not None:
            name, path = fetched
            ask = ByHandRequest(does="fetch", path=path, rank=rank, gang=gang)
            with client.by_hand(name, ask) as beside:
                place = str(by_hand.fetch(beside, path, Path(target)))
        else:
            assert stored is not None
            name, path = stored
            here = Path(source)
            if not here.exists():
                raise click.BadParameter(f"there is no {source} on this machine.")
            ask = ByHandRequest(does="store", path=path, name=here.absolute().name, rank=rank, gang=gang)
            with client.by_hand(name, ask) as beside:
                by_hand.store(beside, here)
            place = target
    terminal.echo(json.dumps({"copied": place}) if show.wants_json() else f"copied to {place}")


def _parted(text: str) -> tuple[str, str] | None:
    """(name, path) of a workload; None: a path of this machine."""
    name, colon, path = text.partition(":")
    if not colon or "/" in name or not name:
        return None
    return name, str(PurePosixPath(path or "."))
