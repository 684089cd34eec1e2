"""status, why, story, logs, events, queues: what is going on, in columns and sentences."""

from __future__ import annotations

import sys
import textwrap
import time
from typing import TYPE_CHECKING, Any

import click

from llmsched.cli import show, terminal
from llmsched.cli.columns import Cell, Columns

if TYPE_CHECKING:
    from llmsched.spec import http_models

WAITING_SHOWN = 30
ENDED_SHOWN = 10
REASONS_SHOWN = 3
NARROW = 100
WIDE = 140  # columns, from which a reason mostly fits beside its workload


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@show.choice_options
@click.option(
    "-a", "--all", "everything", is_flag=True, help=f"Not only {WAITING_SHOWN} that wait and {ENDED_SHOWN} that ended."
)
@show.json_option
def status(names: tuple[str, ...], choice: show.Choice, everything: bool) -> None:
    """All workloads, or those that are named or chosen."""
    from llmsched.errors import SpecError
    from llmsched.spec.http_models import WorkloadList

    if names and (choice or everything):
        raise SpecError("names, and what chooses among all workloads, exclude each other.", code="options")
    with show.connect() as client:
        if len(names) == 1:
            view = client.status(names[0])
            serves = view.kind == "serve" and not show.wants_json()
            endpoint = client.health().urls.get("endpoint", "") if serves else ""
            show.answer(view, lambda: _print_one(view, endpoint))
            return
        if names:
            views = [client.status(name) for name in names]
            listed = WorkloadList(workloads=views, seq=client.health().seq)
            show.answer(listed, lambda: _print_all(listed, None, True))
            return
        chosen: Any = choice._asdict() | {"labels": choice.labels or None, "phase": choice.phase or None}
        if everything or show.wants_json():
            listed = client.all_workloads(**chosen)
        else:
            listed = client.workloads(ended=ENDED_SHOWN, waiting=WAITING_SHOWN, **chosen)
        health = client.health()
    show.answer(listed, lambda: _print_all(listed, health, everything, bool(choice)))


def _print_all(
    listed: http_models.WorkloadList, health: http_models.Health | None, everything: bool, is_choice: bool = False
) -> None:
    active = [view for view in listed.workloads if not view.ended and view.phase != "waiting"]
    waiting = [view for view in listed.workloads if view.phase == "waiting"]
    ended = [view for view in listed.workloads if view.ended]
    if not listed.workloads:
        terminal.echo("There is no such workload." if is_choice else "There are no workloads yet.")
    else:
        _print_rows([*active, *waiting, *ended])
        _print_reasons(waiting[: None if everything else REASONS_SHOWN])
        from llmsched.spec.http_models import ENDED

        over = sum(listed.counts.get(phase, 0) for phase in ENDED)
        missing = listed.counts.get("waiting", 0) - len(waiting)
        hidden = sum(listed.counts.values()) - over - listed.counts.get("waiting", 0) - len(active)
        for left, what in ((hidden, "run"), (missing, "wait"), (over - len(ended), "ended")):
            if left > 0:
                terminal.echo(f"... and {left} more that {what}; see them with --all.")
    if health is not None and (health.status != "ready" or health.message):
        terminal.echo(f"\nController: {health.status}. {health.message}".rstrip(), err=True)


def _print_rows(views: list[http_models.WorkloadView]) -> None:
    """Where there is no room, a column that says the same in each row is left out."""
    narrow = terminal.width() < NARROW
    whose = not narrow or len({view.user for view in views}) > 1
    where = not narrow or len({view.queue for view in views}) > 1
    beside = [*(["USER"] if whose else []), *(["QUEUE"] if where else [])]
    table = Columns("NAME", "KIND", *beside, "PHASE", ">SIZE", ">GPUS", ">AGE", "WHAT")
    hidden: list[str] = []
    for view, shown, left in show.families(views):
        _, kind, *rest = _row(view)
        if left:
            hidden.append(f"... and {left} more that {view.parent} asked for; see them with --parent {view.parent}.")
        table.add_row(shown, kind, *([view.user or "-"] if whose else []), *([view.queue] if where else []), *rest)
    table.show()
    for line in hidden:
        terminal.echo(line)


def _print_reasons(waiting: list[http_models.WorkloadView]) -> None:
    """Whole, where the column had to cut them."""
    width = terminal.width()
    if width >= WIDE:
        return
    for place, view in enumerate(waiting):
        if view.reason is not None:
            terminal.echo("\n" * (place == 0), nl=False)
            terminal.echo(textwrap.fill(f"{view.id} waits: {view.reason.message}", width, subsequent_indent="  "))


def _row(view: http_models.WorkloadView) -> tuple[str | Cell, ...]:
    serves = view.kind == "serve"
    wanted = view.wanted if serves and view.wanted is not None else view.max_size
    return (
        view.id,
        view.kind,
        show.phase_cell(view.phase),
        "-" if view.ended else f"{view.size}/{wanted}",
        show.gpus(view.gpus),
        show.since(view.submitted_at),
        _what(view),
    )


def _what(view: http_models.WorkloadView) -> str:
    if view.phase == "waiting" and view.reason is not None:
        return view.reason.message
    if view.phase == "succeeded":
        return show.numbers(view.metrics) or view.message
    if view.ended:
        return view.message
    if view.kind == "serve" and view.size:
        answer = f"{view.size} replica{'' if view.size == 1 else 's'} answer{'s' if view.size == 1 else ''}"
        return f"{answer}; {view.message}" if view.message else answer
    return show.progress(view.progress) or view.message


def _print_one(view: http_models.WorkloadView, endpoint: str) -> None:
    out = show.out()
    out.print(f"[bold]{show.plain(view.id)}[/]  {view.kind}, {show.phase(view.phase)}")
    rows = [
        ("queue", f"{view.queue}, priority {view.priority}" + (f", by {view.user}" if view.user else "")),
        ("submitted", f"{show.clock(view.submitted_at)} ({show.since(view.submitted_at)} ago)"),
    ]
    if view.labels:
        rows.append(("labels", ", ".join(f"{key}={value}" for key, value in view.labels.items())))
    if view.finished_at is not None:
        rows.append(("ended", f"{show.clock(view.finished_at)}, after {_took(view)}"))
    if view.next_run_at is not None:
        rows.append(("next run", f"{show.clock(view.next_run_at)}, by its schedule"))
    if not view.ended:
        held = f", {show.gpus(view.gpus)} GPUs" if view.gpus else ""
        rows.append(("replicas" if view.kind == "serve" else "size", _size(view) + held))
    if view.revision is not None and not view.ended:
        rows.append(("revision", _revision(view)))
    if endpoint and not view.ended:
        rows.append(("endpoint", f"{endpoint}/v1  ({show.reach(endpoint)})"))
    if view.progress and not view.ended:
        rows.append(("progress", show.progress(view.progress)))
    more = {
        "trials": f"llmsched best {view.id}" if view.kind == "tune" else "",
        "asked by": view.parent,
        "metrics": show.numbers(view.metrics, 12),
        "result": view.artifact,
        "restarts": str(view.restarts or ""),
        "waits": view.reason.message if view.reason is not None else "",
        "message": view.message,
    }
    rows += [(name, text) for name, text in more.items() if text]
    rows += [("notify", _notice(each)) for each in view.notices]
    for name, text in rows:
        out.print(f"  {name:<10} {show.plain(text)}", soft_wrap=True)
    gangs = [one for one in view.gangs if one.placement or len(view.gangs) > 1]
    if gangs:
        table = Columns("GANG", "STATUS", ">ATTEMPT", ">GPUS", "WHERE")
        for one in gangs:
            where = ", ".join(f"{place.name} ({place.bundles})" for place in one.placement)
            waits = one.reason.message if one.reason else one.message
            table.add_row(one.id, one.status, str(one.attempt), show.gpus(one.gpus), where or waits)
        out.print()
        table.show()


def _notice(notice: http_models.NoticeView) -> str:
    told = f"{notice.event}: {notice.outcome} to {notice.to}"
    if notice.due is not None:
        told = f"{notice.event}: to be sent to {notice.to} at {show.clock(notice.due)}"
    return told + (f" (try {notice.tries}: {notice.error})" if notice.error else "")


def _size(view: http_models.WorkloadView) -> str:
    if view.kind == "serve" and view.wanted is not None:
        return f"{view.size} of {view.wanted} wanted ({view.min_size}..{view.max_size})"
    return show.size(view.size, view.min_size, view.max_size)


def _revision(view: http_models.WorkloadView) -> str:
    text = str(view.revision)
    if view.answered != view.revision:
        text += " (answers not yet)" if view.answered is None else f" (answers not yet; {view.answered} does)"
    if view.back_to:
        others = ", ".join(map(str, view.back_to))
        text += f"; llmsched rollback {view.id} --to {others}"
    return text


def _took(view: http_models.WorkloadView) -> str:
    return show.duration((view.finished_at or view.submitted_at) - view.submitted_at)


@click.command()
@click.argument("name")
@show.json_option
def why(name: str) -> None:
    """Why it waits, or runs where it does, and the smallest change that would start it."""
    with show.connect() as client:
        view = client.why(name)
    show.answer(view, lambda: _print_why(view))


def _print_why(view: http_models.WhyView) -> None:
    age = (
        f" ({show.since(view.since)})" if view.since and view.phase not in ("succeeded", "failed", "cancelled") else ""
    )
    verb = {"waiting": "waits", "running": "runs", "starting": "starts", "stopping": "stops"}.get(
        view.phase, view.phase
    )
    terminal.echo(f"{view.id} {verb}{age}: {view.text}")
    reason = view.reason
    if reason is not None:
        if reason.counts:
            terminal.echo(f"  {show.counts(reason.counts)}")
        if reason.eta is not None:
            basis = f", {reason.eta_basis}" if reason.eta_basis else ""
            terminal.echo(f"  Earliest start {show.clock(reason.eta)}{basis}.")
        if reason.next_change:
            terminal.echo(f"  Start sooner: {reason.next_change}")
        terminal.echo(f"  Code: {reason.code}")
    for said in view.scaling:
        terminal.echo(f"  {said.text}")
    if len(view.gangs) > 1:
        for one in view.gangs:
            terminal.echo(f"  {one.gang} {one.status}: {one.text}")


@click.command()
@click.argument("name")
@click.option("--before", type=int, metavar="ENTRY", help="What was before an entry, when the story is long.")
@show.json_option
def story(name: str, before: int | None) -> None:
    """Its history, in words."""
    with show.connect() as client:
        view = client.story(name, before=before)
    show.answer(view, lambda: _print_story(view))


def _print_story(view: http_models.StoryView) -> None:
    if view.earlier is not None:
        terminal.echo(f"There is more before this: llmsched story {view.id} --before {view.earlier}")
    if view.compacted:
        terminal.echo("What was before this is not kept any more (history.journal of the cluster file says how long).")
    begin = view.lines[0].at if view.lines else 0.0
    several = len({line.gang for line in view.lines if line.gang}) > 1
    width = terminal.width() if sys.stdout.isatty() else None  # a line of a log stays one line
    for line, before in _without_repeats(view.lines):
        who = f"{line.gang} " if several and line.gang else ""
        more = f", after {before} others" if before else ""
        passed = line.at - begin
        since = f"{passed:.1f} s" if passed < 100 else show.duration(passed)
        text = f"{_time(line.at)}  +{since:>8}  {who}{line.text}{more}"
        terminal.echo(textwrap.fill(text, width, subsequent_indent=" " * 21) if width else text)


def _without_repeats(lines: list[http_models.StoryLine]) -> list[tuple[http_models.StoryLine, int]]:
    """Of checkpoints in a row only the last, with how many there were before it."""
    kept: list[tuple[http_models.StoryLine, int]] = []
    for line in lines:
        last = kept[-1][0] if kept else line
        if kept and line.kind == last.kind == "CheckpointPublished" and line.gang == last.gang:
            kept[-1] = (line, kept[-1][1] + 1)
        else:
            kept.append((line, 0))
    return kept


def _time(stamp: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(stamp))


@click.command()
@click.argument("name")
@click.option("-f", "--follow", is_flag=True, help="Go on until the workload ends.")
@click.option("-n", "--tail", type=click.IntRange(min=0), help="The last so many lines of each rank.")
@click.option("--rank", type=click.IntRange(min=0), help="Only this rank.")
@click.option("--gang", "--replica", "gang", type=click.IntRange(min=0), help="Only this gang (replica), by its index.")
@click.option("--attempt", type=click.IntRange(min=1), help="Another attempt than the newest.")
@show.json_option
def logs(name: str, follow: bool, tail: int | None, rank: int | None, gang: int | None, attempt: int | None) -> None:
    """What a workload wrote. Works after it, and the cluster, are gone.

    Lines of several workers or replicas begin with [GANG.RANK].
    """
    with show.connect() as client:
        view = client.status(name)
        several = view.max_size > 1 or len(view.gangs) > 1
        for line in client.logs(name, follow=follow, tail=tail, rank=rank, gang=gang, attempt=attempt):
            if show.wants_json():
                terminal.echo(line.model_dump_json())
            elif line.note:
                terminal.echo(line.text, err=True)
            else:
                terminal.echo(f"[{line.gang.rpartition('/')[2]}.{line.rank}] {line.text}" if several else line.text)


@click.command()
@click.option("-f", "--follow", is_flag=True, help="Go on; resumes by itself.")
@click.option("--after", type=click.IntRange(min=0), default=0, help="The last number you have seen.")
@show.json_option
def events(follow: bool, after: int) -> None:
    """What the scheduler heard and decided, in order."""
    with show.connect() as client:
        for event in client.events(after, follow=follow):
            if show.wants_json():
                terminal.echo(event.model_dump_json())
            elif event.text:
                who = f"{event.gang or event.workload} " if event.gang or event.workload else ""
                terminal.echo(f"{event.seq:>6}  {_time(event.at)}  {who}{event.text}")


@click.command()
@show.json_option
def queues() -> None:
    """Queues, their quota and their use."""
    with show.connect() as client:
        listed = client.queues()
    show.answer(listed, lambda: _print_queues(listed))


def _print_queues(listed: http_models.QueueList) -> None:
    table = Columns("QUEUE", "COHORT", ">WAITING", ">ACTIVE", ">GPUS", "QUOTA (used of nominal)")
    for queue in listed.queues:
        quota = ", ".join(
            f"{'any' if one.flavor == '*' else one.flavor} {one.used:g} of {one.nominal:g}"
            + (f" (+{one.borrowing_limit:g})" if one.borrowing_limit else "")
            for one in queue.quotas
        )
        table.add_row(
            queue.name,
            queue.cohort or "-",
            str(queue.waiting),
            str(queue.active),
            show.gpus(queue.gpus_used),
            quota or "the whole cluster",
        )
    table.show()
