"""exec: a command beside a running member, its output here, its exit code ours."""

from __future__ import annotations

import click

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
@show.json_option
def execute(name: str, command: tuple[str, ...], rank: int, gang: int | None, timeout_s: float) -> None:
    """Run COMMAND where a worker of NAME runs: on its node, in its folder, with its variables.

    \b
      llmsched exec my-fine-tune -- nvidia-smi
      llmsched exec my-fine-tune --rank 1 -- bash -c 'ls -l | head'

    Words are passed as they are; for pipes and wildcards ask for a shell. It has no input, takes nothing from the
    queue, and is ended with its workload, after --timeout, beyond 16 MiB of output, or by Ctrl-C. What it leaves
    running ends with it, but for what is told to stay as long as NAME runs: env -u LLMSCHED_COMMAND setsid -f PROGRAM.
    Secret values show as ***, also in the story of NAME, which tells who ran what.

    The exit code is the command's, but for 2, 3, 4 and 5, which here become 102, 103, 104 and 105: those four are
    llmsched's own (2 wrong words, 3 refused, 4 the cluster failed or ended it, 5 the store failed).
    """
    from llmsched.errors import ClusterError

    code: int | None = None
    said = ""
    with show.connect() as client:
        for line in client.exec(name, command, rank=rank, gang=gang, timeout_s=timeout_s):
            if show.wants_json():
                terminal.echo(line.model_dump_json())
            elif line.stream != "end":
                terminal.raw(line.text, err=line.stream == "stderr")
            if line.stream == "end":
                code, said = line.exit_code, line.text
    if code is None:
        raise ClusterError(f"{command[0]!r} did not end by itself: {said or 'the connection ended'}.", code="ended")
    if code in OURS:
        terminal.echo(f"{command[0]!r} exited with {code}; told as {SHIFT + code}.", err=True)
        code += SHIFT
    click.get_current_context().exit(code)
