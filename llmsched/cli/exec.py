"""exec: a command beside a running member, its output here, its exit code ours."""

from __future__ import annotations

import sys
from typing import Literal

import click
from click.core import ParameterSource

from llmsched.cli import show, terminal

OURS = range(2, 6)  # exit codes that mean something of llmsched's own
SHIFT = 100


@click.command("exec", context_settings={"allow_interspersed_args": True})
@click.argument("name")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("--rank", type=click.IntRange(min=0), default=0, help="Of which worker.  [default: 0]")
@click.option(
    "--gang", type=click.IntRange(min=0), help="Which replica of an endpoint.  [default: the first that runs]"
)
@click.option("--timeout", "timeout_s", type=float, default=600.0, help="Seconds, then it is ended.  [default: 600]")
@click.option("-i", "--stdin", "with_input", is_flag=True, help="Give it what comes in here.")
@click.option("-t", "--tty", "with_terminal", is_flag=True, help="Give it this terminal, with -i.")
@show.json_option
def execute(
    name: str,
    command: tuple[str, ...],
    rank: int,
    gang: int | None,
    timeout_s: float,
    with_input: bool,
    with_terminal: bool,
) -> None:
    """Run COMMAND where a worker of NAME runs: on its node, in its folder, with its variables.

    \b
      llmsched exec my-fine-tune -- nvidia-smi
      llmsched exec my-fine-tune --rank 1 -- bash -c 'ls -l | head'
      llmsched exec -it my-fine-tune -- bash

    Words are passed as they are; for pipes and wildcards ask for a shell. It takes nothing from the queue, and is ended
    with its workload, after --timeout, beyond 16 MiB of output, or by Ctrl-C. With -i or -t it has neither bound, and
    ends with this command; at a terminal Ctrl-C is the program's. What it leaves
    running ends with it, but for what is told to stay as long as NAME runs: env -u LLMSCHED_COMMAND setsid -f PROGRAM.
    Secret values show as ***, also in the story of NAME, which tells who ran what.

    The exit code is the command's, but for 2, 3, 4 and 5, which here become 102, 103, 104 and 105: those four are
    llmsched's own (2 wrong words, 3 refused, 4 the cluster failed or ended it, 5 the store failed).
    """
    code: int | None
    if with_input or with_terminal:
        if show.wants_json():
            raise click.UsageError("--json is for a command without -i and -t.")
        if click.get_current_context().get_parameter_source("timeout_s") is not ParameterSource.DEFAULT:
            raise click.UsageError("--timeout is for a command without -i and -t: with them it ends when you leave.")
        code, said = _by_hand(name, command, rank, gang, with_terminal)
        _leave(command, code, said)
        return
    code = None
    said = ""
    with show.connect() as client:
        for line in client.exec(name, command, rank=rank, gang=gang, timeout_s=timeout_s):
            if show.wants_json():
                terminal.echo(line.model_dump_json())
            elif line.stream != "end":
                terminal.raw(line.text, err=line.stream == "stderr")
            if line.stream == "end":
                code, said = line.exit_code, line.text
    _leave(command, code, said)


def _by_hand(
    name: str, command: tuple[str, ...], rank: int, gang: int | None, with_terminal: bool
) -> tuple[int | None, str]:
    """Its exit code, and what was said of its end."""
    from llmsched.cli.own_terminal import at_a_terminal, with_pipes
    from llmsched.spec.by_hand import ByHandRequest

    if with_terminal and not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise click.UsageError("-t needs a terminal here; with -i alone it gets what comes in.")
    does: Literal["terminal", "attach"] = "terminal" if with_terminal else "attach"
    ask = ByHandRequest(does=does, command=list(command), rank=rank, gang=gang)
    with show.connect() as client, client.by_hand(name, ask) as beside:
        (at_a_terminal if with_terminal else with_pipes)(beside)
        code = beside.wait()
        if code in (126, 127) and beside.message:
            terminal.echo(beside.message, err=True)
        return code, beside.message


def _leave(command: tuple[str, ...], code: int | None, said: str) -> None:
    """With its exit code, or one of ours. Raises ClusterError where it has none."""
    from llmsched.errors import ClusterError

    if code is None:
        raise ClusterError(f"{command[0]!r} did not end by itself: {said or 'the connection ended'}.", code="ended")
    if code in OURS:
        terminal.echo(f"{command[0]!r} exited with {code}; told as {SHIFT + code}.", err=True)
        code += SHIFT
    click.get_current_context().exit(code)
