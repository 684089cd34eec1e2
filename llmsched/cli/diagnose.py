"""diagnose: what slows a workload and what to do, in sentences; what nobody measured is said as well."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import click

from llmsched.cli import show, terminal

if TYPE_CHECKING:
    from llmsched.spec import http_models

NAMES = {  # of the numbers worth a line, in order
    "samples_per_s": "samples/s {:g}",
    "tokens_per_s": "tokens/s {:g}",
    "data_wait": "waits for data {:.0%}",
    "rank_step_s": "step of the median rank {:.3g} s",
    "slowest_rank_step_s": "of the slowest {:.3g} s",
}


@click.command()
@click.argument("name")
@show.json_option
def diagnose(name: str) -> None:
    """What slows a workload: waiting, restarts, data, stragglers, requests larger than needed. And what to do.

    Says what is not known, too; a loop of one's own tells more by reporting data_wait, rank_step_s, slowest_rank and
    slowest_rank_step_s.
    """
    with show.connect() as client:
        view = client.diagnose(name)
    show.answer(view, lambda: _print(view))


def _print(view: http_models.DiagnosisView) -> None:
    width = terminal.width()
    terminal.echo(f"{view.id} ({view.phase}): {view.text}.")
    spent = [(name, view.numbers.get(f"{name}_s")) for name in ("waited", "starting", "running")]
    said = [f"{name} {show.duration(value)}" for name, value in spent if isinstance(value, int | float)]
    step, total = view.numbers.get("step"), view.numbers.get("total_steps")
    said += [f"step {step:g} of {total:g}"] if isinstance(step, int | float) and isinstance(total, int | float) else []
    for name, words in NAMES.items():
        value = view.numbers.get(name)
        if isinstance(value, int | float):
            said.append(words.format(value))
    _wrapped(", ".join(said), "  ", "  ", width)
    for finding in view.findings:
        _wrapped(f"{finding.message.rstrip('.')}.", "- ", "  ", width)
        if finding.advice:
            _wrapped(finding.advice, "  -> ", "     ", width)
    if view.unknown:
        _wrapped(f"Not known: {'; '.join(view.unknown)}.", "", "  ", width)


def _wrapped(text: str, first: str, later: str, width: int) -> None:
    if text:
        terminal.echo(textwrap.fill(text, width, initial_indent=first, subsequent_indent=later))
