"""plan, apply, cancel, scale, rollback: asking for work, and watching it come."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from llmsched.cli import show, terminal
from llmsched.cli.columns import Columns

if TYPE_CHECKING:
    from llmsched.spec import http_models

FILE = click.option(
    "-f", "--file", "file", required=True, type=click.Path(), help="A spec file (YAML); - is standard input."
)
PLAIN_EVERY_S = 10.0  # of a log without a terminal: a line at a change, and one now and then


@click.command()
@FILE
@show.json_option
def plan(file: str) -> None:
    """Say what would happen now: where, when, at what size, and whose work shrinks or waits. Changes nothing."""
    from llmsched.spec import http_models

    with show.connect() as client:
        planned = client.plan(show.specs_of(file))
    show.answer(http_models.PlannedList(planned=planned), lambda: _print_plan(planned))
    refused = [one for one in planned if one.outcome == "refused"]
    if refused:
        click.get_current_context().exit(3)
    show.next_commands([(f"llmsched apply -f {file}", "do it"), ("llmsched queues", "what others hold")])


def _print_plan(planned: list[http_models.Planned]) -> None:
    table = Columns("NAME", "KIND", "QUEUE", "CHANGE", "AT MIN", "AT MAX", "NOW")
    for one in planned:
        table.add_row(
            one.id,
            one.kind,
            one.queue,
            one.outcome,
            _total(one.at_min),
            _total(one.at_max) if one.max_size != one.min_size else "same",
            _now(one),
        )
    out = show.out()
    table.show()
    for one in planned:
        notes = [*one.diff, *(other.text for other in one.others), *one.reads, *one.warnings]
        if one.memory_needed_bytes:
            notes.append(f"each needs at most about {one.memory_needed_bytes / 1e9:.1f} GB of GPU memory")
        if one.reason is not None:
            notes.insert(0, one.reason.message)
            if one.reason.next_change:
                sooner = "" if one.outcome == "refused" else "start sooner: "
                notes.insert(1, f"{sooner}{one.reason.next_change}")
        for note in notes:  # some name it themselves, as apply says them alone
            out.print(f"  {show.plain(one.id)}: {show.plain(note.removeprefix(f'{one.id}: '))}", soft_wrap=True)


def _now(one: http_models.Planned) -> str:
    if one.outcome == "refused":
        return "refused"
    if one.outcome == "unchanged":
        return "nothing"
    if not one.starts_now:
        fresh = "starts when it is asked" if one.kind == "serve" and one.min_size == 0 else "waits"
        stands = fresh if one.outcome != "changed" else "rolls out" if one.rolls_out else _goes_on(one)
        return f"waits ({one.reason.code})" if one.reason else stands
    where = ", ".join(f"{place.name}" for place in one.placement)
    return f"starts with {one.size}" + (f" on {where}" if where else "")


def _goes_on(one: http_models.Planned) -> str:
    return "goes on as it is" if one.in_place or one.kind == "serve" else "saves and restarts"


def _total(amounts: http_models.Amounts) -> str:
    amount, what = (amounts.gpus, "GPU") if amounts.gpus else (amounts.cpus, "CPU")
    return f"{amount:g} {what}{'s' * (amount > 1)}"


@click.command()
@FILE
@click.option(
    "--wait",
    is_flag=True,
    help="Until what ends has ended, what serves answers, and what follows its input has caught up. Not for what has a "
    "schedule, which begins by that.",
)
@click.option("--again", is_flag=True, help="Run once more what ends, as run N+1.")
@click.option("--timeout", "timeout_s", type=float, help="Seconds to wait at most.")
@show.json_option
def apply(file: str, wait: bool, again: bool, timeout_s: float | None) -> None:
    """Submit or update the workloads of a file. The same file again changes nothing.

    A changed spec prints what changed. An endpoint rolls out: a new replica first, then an old one finishes what it
    serves and leaves, one after the other; a change of its replicas, autoscaling, slo or rollout alone leaves those
    that run as they are. Work that waits starts under the new spec. Work that has begun takes another
    size, queue, priority or limit: it saves, leaves, and goes on from there; a change of what it computes (train, task,
    workdir, environment) is refused, for what it has saved would not fit.

    With --again, work that ends runs once more as NAME@2, NAME@3 and so on, also when nothing changed; NAME alone means
    the newest. An endpoint that lives is updated, never doubled: when it serves run://NAME of the same file, it rolls
    to the new result once that is there. What it serves does not change by itself.
    """
    from llmsched.spec import http_models

    with show.connect() as client:
        run = client.apply(show.specs_of(file), again=again)
        if not wait:
            show.answer(http_models.AppliedList(applied=run.applied), lambda: _print_applied(run.applied))
            _after_apply(run.applied)
            return
        if not show.wants_json():
            _print_applied(run.applied)
        with Watch() as watch:
            by_schedule = {view.id for view in run.views if view.next_run_at is not None}  # maybe tomorrow
            client.wait_all([each for each in run.ids if each not in by_schedule], timeout_s=timeout_s, watch=watch)
        views = run.views
        listed = http_models.WorkloadList(workloads=views, seq=client.health().seq)
    show.answer(listed, lambda: _print_ends(views))
    _after_apply(run.applied)
    if any(view.phase in ("failed", "cancelled") for view in views if view.id not in by_schedule):
        click.get_current_context().exit(4)


def _print_applied(applied: list[http_models.Applied]) -> None:
    for one in applied:
        changed = "changed, rolls out" if one.rolls_out else "changed"
        words = {"created": "submitted", "changed": changed, "unchanged": "unchanged"}
        over = one.phase if one.outcome == "unchanged" and one.phase in ("succeeded", "failed", "cancelled") else ""
        again = f", and has {over.replace('cancelled', 'been cancelled')}; --again runs it once more" if over else ""
        terminal.echo(f"{one.id}: {words[one.outcome]}{again}")
        for line in one.diff:
            terminal.echo(f"  {line}")


def _print_ends(views: list[http_models.WorkloadView]) -> None:
    for view in views:
        begins = f"its schedule is due {show.clock(view.next_run_at)}" if view.next_run_at is not None else ""
        words = show.numbers(view.metrics, 6) or view.message or begins
        terminal.echo(f"{view.id}: {view.phase}" + (f" ({words})" if words else ""))


def _after_apply(applied: list[http_models.Applied]) -> None:
    served = next((one for one in applied if one.kind == "serve" and one.serves != "prefill"), None)
    first = next((one for one in applied if one.kind != "serve"), applied[0])
    lines = [
        ("llmsched status", "how far it is"),
        (f"llmsched why {first.id}", "why it waits, or runs where it does"),
        (f"llmsched logs -f {first.id}", "what it writes"),
    ]
    if served is not None:
        lines[1 if first is served else 2] = _ask_it(served)
    show.next_commands(lines)


def _ask_it(served: http_models.Applied) -> tuple[str, str]:
    from llmsched.data.tasks import KINDS

    name, kind = served.name, KINDS.get(served.serves or "")
    if served.serves == "app":
        return f"llmsched status {name}", "its address; llmsched token key prints what it wants to see"
    if kind is None or "chat/completions" in kind.answers:
        return f"llmsched chat {name}" + (" --image FILE" if kind and "image" in kind.reads else ""), "talk to it"
    if "audio/transcriptions" in kind.answers:
        return f"llmsched transcribe {name} FILE", "what is said in an audio file"
    if "embeddings" in kind.answers:
        return f'llmsched embed {name} "some text"', "its numbers"
    words = {"text": '"some text"', "text_pair": '--pair "another"', "image": "--image FILE", "audio": "--audio FILE"}
    return " ".join(["llmsched classify", name, *(words[role] for role in kind.reads if role in words)]), "its label"


class Watch:
    """Progress of what is waited for: a bar each on a terminal, a line at a change elsewhere. All on stderr."""

    def __init__(self) -> None:
        self._said: dict[str, tuple[str, float]] = {}
        self._bars: Any = None
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> Watch:
        if show.is_terminal():
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
            from rich.table import Column

            name = TextColumn("{task.description}")
            rest = Column(no_wrap=True, overflow="ellipsis", ratio=1)
            words = TextColumn("{task.fields[words]}", table_column=rest)
            self._bars = Progress(name, BarColumn(24), TimeElapsedColumn(), words, console=show.err(), expand=True)
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    def __call__(self, view: http_models.WorkloadView) -> None:
        words = _state_words(view)
        if self._bars is not None:
            self._draw(view, words)
            return
        phase, at = self._said.get(view.id, ("", 0.0))
        if phase != view.phase or time.monotonic() - at > PLAIN_EVERY_S:
            self._said[view.id] = (view.phase, time.monotonic())
            terminal.echo(
                f"{time.strftime('%H:%M:%S')} {view.id} {view.phase}{f': {words}' if words else ''}", err=True
            )

    def _draw(self, view: http_models.WorkloadView, words: str) -> None:
        step, total = view.progress.get("step"), view.progress.get("total_steps")
        if view.id not in self._tasks:
            self._tasks[view.id] = self._bars.add_task(show.plain(view.id), total=None, words="")
        done: dict[str, Any] = {}
        if isinstance(step, int | float) and isinstance(total, int | float):
            done = {"completed": step, "total": total}
        if view.ended or (view.kind == "serve" and view.phase == "running"):
            done = {"completed": total or 1, "total": total or 1}
        text = f"{show.phase(view.phase)} {show.plain(words)}"
        self._bars.update(self._tasks[view.id], words=text, **done)


def _state_words(view: http_models.WorkloadView) -> str:
    if view.reason is not None and view.phase == "waiting":
        return view.reason.message
    if view.ended:
        return show.numbers(view.metrics) or view.message
    if view.kind == "serve":
        return f"{view.size} of {view.wanted if view.wanted is not None else view.min_size} replicas"
    return show.progress(view.progress)


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@show.choice_options
@click.option("--all", "everything", is_flag=True, help="All that has not ended and that you may cancel.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@show.json_option
def cancel(names: tuple[str, ...], choice: show.Choice, everything: bool, yes: bool) -> None:
    """Stop workloads for good: those that are named, or that --user, --queue, --phase, --label or --all choose.

    A training saves a checkpoint first, an endpoint finishes what it serves. Of those that are chosen it shows which
    they are, and asks; without a terminal it wants --yes.
    """
    from llmsched.errors import SpecError
    from llmsched.spec.http_models import WorkloadList

    if not names and not choice and not everything:
        raise SpecError("nothing is named.", code="options", hint="Write a NAME, --user, --queue, --label or --all.")
    if names and (choice or everything):
        raise SpecError("names, and what chooses among all workloads, exclude each other.", code="options")
    with show.connect() as client:
        ids = names or _chosen_to_cancel(client, choice, yes)
        views = [client.cancel(one) for one in ids]
        seq = client.health().seq if len(names) != 1 else 0
    listed = WorkloadList(workloads=views, seq=seq)
    show.answer(views[0] if len(names) == 1 else listed, lambda: _print_cancelled(views))


def _print_cancelled(views: list[http_models.WorkloadView]) -> None:
    for view in views:
        terminal.echo(f"{view.id}: {view.phase}")
    if not views:
        terminal.echo("There is no such workload.")


def _chosen_to_cancel(client: Any, choice: show.Choice, yes: bool) -> list[str]:
    """Ids of those that have not ended and may be cancelled, once somebody has said so. Raises SpecError."""
    from llmsched.errors import SpecError

    phases = [phase for phase in show.LIVE if not choice.phase or phase in choice.phase]
    if not phases:
        raise SpecError("what has ended cannot be cancelled.", code="options", hint="Leave --phase out.")
    found = client.all_workloads(
        user=choice.user, queue=choice.queue, phase=phases, labels=choice.labels or None, parent=choice.parent
    )
    ids = [view.id for view in found.workloads if view.may_change]
    if len(ids) < len(found.workloads):
        terminal.echo(f"{len(found.workloads) - len(ids)} of them are not yours to cancel.", err=True)
    if ids and not yes:
        terminal.echo("\n".join(ids), err=True)
        if not show.is_asked():
            raise SpecError(f"{len(ids)} workloads would be cancelled.", code="options", hint="If so, add --yes.")
        click.confirm(f"Cancel {'these' if len(ids) > 1 else 'this'}?", abort=True, err=True)
    return ids


@click.command()
@click.argument("name")
@click.argument("size", type=click.IntRange(min=0))
@show.json_option
def scale(name: str, size: int) -> None:
    """Ask for another number of workers or replicas, within what the spec allows."""
    with show.connect() as client:
        view = client.scale(name, size)
    show.answer(view, lambda: terminal.echo(f"{view.id}: {view.phase}, asked to hold {size}"))


@click.command()
@click.argument("name")
@click.option("--to", type=click.IntRange(min=1), help="A revision that answered; default: the last one before.")
@show.json_option
def rollback(name: str, to: int | None) -> None:
    """Take an endpoint back to a revision that answered; llmsched status NAME lists them. Applied as a new one.

    NAME:ADAPTER takes back that adapter alone, to what was published under its name before.
    """
    name, _, adapter = name.partition(":")
    if adapter and to is not None:
        raise click.UsageError("--to is a revision of the endpoint; an adapter goes back to the one before.")
    with show.connect() as client:
        view = client.rollback(name, to, adapter=adapter or None)
    now = f"adapter {adapter} goes back" if adapter else f"now revision {view.revision}"
    show.answer(view, lambda: terminal.echo(f"{view.id}: {view.phase}, {now}"))
