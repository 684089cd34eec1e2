"""skill and completion: what others read, an agent and a shell."""

from __future__ import annotations

from importlib.resources import files

import click

from llmsched.cli import show, terminal

SHELLS = ("bash", "zsh", "fish")


@click.command()
@show.json_option
def skill() -> None:
    """Print SKILL.md: what an agent should know before it uses llmsched, as its tool wants it in a file."""
    text = files("llmsched").joinpath("SKILL.md").read_text()
    if show.wants_json():
        import json

        terminal.echo(json.dumps({"skill": text}))
    else:
        terminal.echo(text, nl=False)


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
@show.json_option
def completion(shell: str) -> None:
    """Print what SHELL has to read so that it completes commands and options.

    \b
      llmsched completion bash >> ~/.bashrc
      llmsched completion zsh >> ~/.zshrc
      llmsched completion fish > ~/.config/fish/completions/llmsched.fish
    """
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    root = click.get_current_context().find_root().command
    assert found is not None
    source = found(root, {}, "llmsched", "_LLMSCHED_COMPLETE").source()
    if show.wants_json():
        import json

        terminal.echo(json.dumps({"shell": shell, "source": source}))
    else:
        terminal.echo(source)
