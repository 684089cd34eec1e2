"""The commands and what each is for. Nothing else is imported until one is called, so that help is there at once."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Any

import click

from llmsched import versions
from llmsched.cli import terminal

# section -> command -> (module:attribute, what it does)
COMMANDS: dict[str, dict[str, tuple[str, str]]] = {
    "Start": {
        "demo": ("llmsched.cli.demo:demo", "The whole story on one CPU-only machine: fine-tune, serve, ask."),
        "up": ("llmsched.cli.cluster:up", "Start the controller here, and a local Ray where there is none."),
        "down": ("llmsched.cli.cluster:down", "Stop them, and check that nothing is left."),
        "restart": ("llmsched.cli.restart:restart", "Start the controller anew; what runs goes on."),
        "cluster": (
            "llmsched.cli.fleet:cluster",
            "A cluster of machines by ray up, checked first; its status from here.",
        ),
        "doctor": ("llmsched.cli.doctor:doctor", "Check this machine: versions, folders, tokens, controller."),
        "init": ("llmsched.cli.files:init", "Write a commented starter spec."),
    },
    "Work": {
        "plan": ("llmsched.cli.work:plan", "Say what would happen now. Changes nothing."),
        "apply": ("llmsched.cli.work:apply", "Submit or update the workloads of a file."),
        "cancel": ("llmsched.cli.work:cancel", "Stop a workload for good."),
        "scale": ("llmsched.cli.work:scale", "Ask for another number of workers or replicas."),
        "rollback": ("llmsched.cli.work:rollback", "Take an endpoint back to a revision that answered."),
        "reserve": ("llmsched.cli.reserve:reserve", "Promise GPUs for a time to a queue, to people, or to nobody."),
        "node": ("llmsched.cli.node:node", "Empty a node before it is worked on, and give it back."),
        "exec": ("llmsched.cli.exec:execute", "Run a command beside a running worker or replica."),
        "port-forward": ("llmsched.cli.by_hand:port_forward", "Reach a port of a running worker from here."),
        "cp": ("llmsched.cli.by_hand:cp", "Copy files to and from a running worker."),
        "chat": ("llmsched.cli.chat:chat", "Talk to an endpoint."),
        "transcribe": ("llmsched.cli.chat:transcribe", "Ask an endpoint what is said in an audio file."),
        "classify": ("llmsched.cli.chat:classify", "Ask an endpoint for the label of a text."),
        "embed": ("llmsched.cli.chat:embed", "Ask an endpoint for the numbers of a text."),
    },
    "Look": {
        "status": ("llmsched.cli.look:status", "All workloads, or one."),
        "why": ("llmsched.cli.look:why", "Why it waits, or runs where it does, and what would change it."),
        "diagnose": ("llmsched.cli.diagnose:diagnose", "What slows it, and what to do."),
        "best": ("llmsched.cli.best:best", "The trials of a search, the best first."),
        "story": ("llmsched.cli.look:story", "Its whole history, in words."),
        "logs": ("llmsched.cli.look:logs", "What it wrote; also after it, and the cluster, are gone."),
        "events": ("llmsched.cli.look:events", "What the scheduler hears and decides."),
        "queues": ("llmsched.cli.look:queues", "Queues, their quota and their use."),
        "usage": ("llmsched.cli.usage:usage", "GPU-hours by user, queue, workload and day, and what they cost."),
        "reservations": ("llmsched.cli.reserve:reservations", "Which GPUs are promised, when, and to whom."),
        "models": ("llmsched.cli.models:models", "What trainings made: versions, metrics, and what of."),
        "nodes": ("llmsched.cli.node:nodes", "Nodes, who holds what, and which are to be empty."),
        "top": ("llmsched.cli.top:top", "Queue, GPUs and events, live."),
        "web": ("llmsched.cli.web:web", "The address of the same in a browser."),
        "dashboard": ("llmsched.cli.dashboard:dashboard", "Ray's dashboard: of a Ray program, or of the cluster."),
    },
    "More": {
        "config": ("llmsched.cli.files:config", "Show the configuration in force, or put a new one in force."),
        "backup": ("llmsched.cli.backup:backup", "Keep a copy of what the controller remembers."),
        "restore": ("llmsched.cli.backup:restore", "Put a backup back, or go on without what is lost."),
        "fsck": ("llmsched.cli.fsck:fsck", "Check that what the controller keeps is whole."),
        "skill": ("llmsched.cli.more:skill", "What an agent should read before it uses llmsched."),
        "completion": ("llmsched.cli.more:completion", "Completion of commands and options, for your shell."),
        "schema": ("llmsched.cli.files:schema", "The JSON Schema of a kind, for editors."),
        "sim": ("llmsched.cli.sim:sim", "The wind tunnel: traces, scenarios, replays."),
        "secret": ("llmsched.cli.secret:secret", "Keep values that workloads need and nobody may see."),
        "token": ("llmsched.cli.token:token", "Make, list and revoke tokens."),
    },
}
ALL = {name: command for section in COMMANDS.values() for name, command in section.items()}
# What other tools call it, which may be spelt as something else of ours is. Nothing leads to what ends work of others.
MEANT = {
    **dict.fromkeys(("stop", "kill", "delete", "rm", "scancel"), "cancel"),
    **dict.fromkeys(("ls", "ps", "get", "list", "squeue", "queue"), "status"),
    **dict.fromkeys(("run", "submit", "create", "launch", "sbatch", "deploy"), "apply"),
    **dict.fromkeys(("describe", "explain"), "why"),
    **dict.fromkeys(("ssh", "shell", "attach"), "exec"),
    "sinfo": "nodes",
    "history": "story",
    "scp": "cp",
    "start": "up",
}
NEVER_GUESSED = {"down"}  # nobody stops a cluster by following a hint
EPILOG = (
    "LLMSCHED_HOME, LLMSCHED_ADDRESS and LLMSCHED_TOKEN say which controller. Every command has --json. Client and "
    "controller must be of one major version (before 1.0: minor version); down works with any."
)


class LazyGroup(click.Group):
    """Imports a command when it is called; turns errors into one line and their exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(ALL)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in ALL:
            return None
        module, _, attribute = ALL[name][0].partition(":")
        command = getattr(import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and args[0] not in ALL and not args[0].startswith("-"):
            from difflib import get_close_matches

            word = args[0]
            near = [MEANT[word]] if word in MEANT else get_close_matches(word, ALL.keys() - NEVER_GUESSED, n=1)
            ctx.fail(f'there is no command "{word}".' + (f' Did you mean "{near[0]}"?' if near else ""))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for section, commands in COMMANDS.items():
            with formatter.section(section):
                formatter.write_dl([(name, about) for name, (_, about) in commands.items()])

    def invoke(self, ctx: click.Context) -> Any:
        from llmsched.errors import LlmschedError

        try:
            return super().invoke(ctx)
        except LlmschedError as error:
            _tell(ctx, error)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            terminal.echo("\nstopped; what was submitted goes on.", err=True)
            ctx.exit(130)


def _tell(ctx: click.Context, error: Any) -> None:
    if (ctx.obj or {}).get("json"):
        from llmsched.api.auth import error_body

        terminal.echo(error_body(error).model_dump_json(indent=2))
    terminal.error(str(error))


def _version(ctx: click.Context, _: Any, wanted: bool) -> None:
    if wanted:
        terminal.echo(f"llmsched {versions.own()}")
        ctx.exit()


@click.group(cls=LazyGroup, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version.")
def cli() -> None:
    """llmsched: fine-tunes, endpoints, batch and search share one queue of GPUs."""


def main() -> None:
    # Whoever has no plugin of pydantic's looks for one in each command; and none reads a controller's secrets along.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    sys.exit(cli())


if __name__ == "__main__":
    main()
