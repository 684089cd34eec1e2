"""What slows a workload: from its history, what it asks for, what it holds and what it reports. Pure.

Says what nobody measured, too: that nothing was found must not look like everything is well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from llmsched.api.views import numbers, phase
from llmsched.control.gpu_memory import ACCELERATORS, GB, Verdict
from llmsched.control.lookup import spec_of
from llmsched.core import decisions, facts
from llmsched.core.records import GangState, WorkloadState, size_of
from llmsched.core.render import Names, advice, text
from llmsched.core.resources import MILLI
from llmsched.core.state import State
from llmsched.core.status import Status
from llmsched.spec import http_models

WAITS_FOR_DATA = 0.15  # of a step, from which it is worth doing something
STRAGGLES = 1.3  # times the median rank
STARTS_LONG_S = 180.0
WAITED_LONG, LOST_MUCH = 0.5, 0.2  # of its life
MIN_LIFE_S = 30.0  # shares of less say nothing
LITTLE_MEMORY = 0.35  # of what the GPUs have
SHOWN = ("step", "total_steps", "loss", "samples_per_s", "tokens_per_s", "rows_per_s", "data_wait", "rank_step_s",
         "slowest_rank", "slowest_rank_step_s")  # fmt: skip


@dataclass
class Times:
    """Seconds of all gangs together: waiting, starting (launched, and not yet running), running; and how often."""

    waited: float = 0.0
    starting: float = 0.0
    ran: float = 0.0
    preemptions: int = 0
    losses: int = 0
    last_loss: str = ""

    @property
    def all(self) -> float:
        return self.waited + self.starting + self.ran


def diagnose(
    state: State,
    found: WorkloadState,
    progress: Mapping[str, Mapping[str, Any]],
    entries: Iterable[tuple[int, float, Any]],
    memory: Verdict,
    names: Names,
) -> http_models.DiagnosisView:
    """`entries` are all of this workload; `memory` is what its model needs."""
    gangs = [found.known[name] for name in found.gangs]
    live = [one for one in gangs if not one.is_ended()]
    holding = [one for one in live if one.is_holding()]
    leading = next(iter(holding), gangs[0] if gangs else None)
    said = numbers(progress.get(leading.id, {})) if leading else {}
    times = spent(entries, found.finished_at or state.now)
    findings: list[http_models.Finding] = []

    def find(code: str, message: str, advice: str = "") -> None:
        findings.append(http_models.Finding(code=code, message=message, advice=advice))

    _waiting(live, names, find)
    for one in holding:
        if one.stalled:
            find(
                "stalled",
                f"{one.id} does not move: {one.stalled}",
                "llmsched logs shows each rank; it is ended if it goes on",
            )
    _history(times, found.workload.kind, find)
    _starting(holding, state.now, find)
    _request(found, holding, memory, find)
    if found.workload.kind == "serve":
        _load(found, holding, find)
    elif holding:
        _pace(said, find)
    return http_models.DiagnosisView(
        id=found.workload.id,
        phase=phase(found),
        text=_summary(findings, holding, found, names),
        findings=findings,
        numbers={
            **{name: said[name] for name in SHOWN if name in said},
            "waited_s": round(times.waited, 1),
            "starting_s": round(times.starting, 1),
            "running_s": round(times.ran, 1),
            "preemptions": times.preemptions,
            "restarts": sum(one.restarts for one in gangs),
        },
        unknown=_unknown(found, said, memory),
    )


def spent(entries: Iterable[tuple[int, float, Any]], until: float) -> Times:
    """What each gang did from entry to entry, until now or its end."""
    times = Times()
    doing: dict[str, tuple[str, float]] = {}

    def turn(gang: str, to: str, at: float) -> None:
        before, since = doing.get(gang, ("", at))
        if before:
            setattr(times, before, getattr(times, before) + max(0.0, at - since))
        doing[gang] = (to, at)

    submitted = None
    for _, at, entry in entries:
        match entry:
            case facts.Submitted():
                submitted = at if submitted is None else submitted
            case decisions.Launch(gang=gang):
                if gang not in doing and submitted is not None:
                    doing[gang] = ("waited", submitted if gang.endswith("/0") else at)
                turn(gang, "starting", at)
            case facts.Bound(gang=gang):
                turn(gang, "ran", at)
            case decisions.Preempt():
                times.preemptions += 1
            case facts.Lost(gang=gang, message=message) | facts.LaunchFailed(gang=gang, message=message):
                times.losses += 1
                times.last_loss = message
                turn(gang, "waited", at)
            case facts.Released(gang=gang):
                turn(gang, "waited", at)
            case facts.Finished(gang=gang, outcome=outcome):
                turn(gang, "waited" if outcome == "released" else "", at)
    if submitted is not None and not doing:
        doing["/0"] = ("waited", submitted)
    for gang in list(doing):
        turn(gang, "", until)
    return times


# --- one question each --------------------------------------------------------------------------------------------

Find = Callable[..., None]


def _waiting(live: list[GangState], names: Names, find: Find) -> None:
    waiting = [one for one in live if one.status is Status.QUEUED]
    seen = set()
    for one in waiting:
        reason = one.reason
        if reason is not None and reason.code not in seen:
            seen.add(reason.code)
            sooner = advice(reason.message, names)
            who = f"{len(waiting)} of {len(live)} replicas wait: " if len(live) > 1 else "it waits: "
            find(f"waits_{reason.code}", who + text(reason.message, names), sooner and f"sooner: {sooner}")


def _history(times: Times, kind: str, find: Find) -> None:
    saves = kind in ("train", "batch")
    if times.all < MIN_LIFE_S:
        return
    if times.waited > WAITED_LONG * times.all and times.ran:
        find(
            "waited",
            f"it spent {times.waited / times.all:.0%} of its time waiting, {times.ran / times.all:.0%} running",
            "a wider range of workers or another queue may start it sooner; llmsched story tells what it waited for",
        )
    if times.losses:
        find(
            "restarts",
            f"{times.losses} of its attempts were lost or did not start; last: {times.last_loss or 'it did not say'}",
            "llmsched logs --attempt N shows each"
            + ("; checkpoint.every says how much a restart costs" if saves else ""),
        )
    if times.preemptions:
        find(
            "preempted",
            f"it made way {times.preemptions} time{'s' if times.preemptions > 1 else ''} for others",
            "a higher priority or quota of its own keeps it running"
            + ("; a shorter checkpoint.every loses less" if saves else ""),
        )
    if times.starting > LOST_MUCH * times.all:
        find(
            "startup",
            f"{times.starting / times.all:.0%} of its time went into starting",
            "longer runs, or fewer restarts and resizes (elasticity), spread that cost",
        )


def _starting(holding: list[GangState], now: float, find: Find) -> None:
    for one in holding:
        if one.status is Status.LAUNCHING and one.launched_at and now - one.launched_at > STARTS_LONG_S:
            find(
                "starts_long",
                f"{one.id} has been starting for {round((now - one.launched_at) / 60)} min",
                "a model may be downloading or an environment installing: llmsched logs says",
            )


def _request(found: WorkloadState, holding: list[GangState], memory: Verdict, find: Find) -> None:
    workload, spec = found.workload, spec_of(found.workload)
    section = spec.get(workload.kind) or {}
    loads_model = workload.kind in ("train", "serve", "batch") and bool(
        section.get("base_model") or section.get("model")
    )
    option = next((option for option in workload.groups[0].options if option.resources.gpus_milli), None)
    if option is None:
        return
    gpus = option.resources.gpus_milli / MILLI
    if loads_model and gpus > 1:
        find(
            "oversized",
            f"each worker or replica holds {gpus:g} GPUs and our loop and engine use one of them",
            f"accelerators: {option.flavor or 'GPU'}:1, and more workers or replicas",
        )
    known = ACCELERATORS.get(option.flavor or "")
    if memory.needed and known and gpus <= 1 and workload.kind == "serve":
        share = memory.needed / (known[0] * GB * gpus)
        if share < LITTLE_MEMORY:
            fits = max(0.05, round(memory.needed / (known[0] * GB) * 1.25, 2))
            find(
                "oversized",
                f"it needs about {memory.needed / GB:.3g} GB of the {known[0] * gpus:g} GB of GPU memory it holds",
                f"accelerators: {option.flavor}:{fits:g} would leave the rest to others",
            )
    for one in holding:
        size = size_of(one.spec, one.held)
        if workload.kind != "serve" and size < workload.max_size:
            find(
                "small",
                f"it runs with {size} of at most {workload.max_size} workers",
                "it grows when others let go; llmsched queues shows what they hold",
            )
    for warning in memory.warnings:
        if memory.needed is not None:
            find("memory", f"each {warning}")


def _pace(said: Mapping[str, Any], find: Find) -> None:
    wait, median, slowest = (said.get(name) for name in ("data_wait", "rank_step_s", "slowest_rank_step_s"))
    if isinstance(wait, int | float) and wait > WAITS_FOR_DATA:
        find(
            "data",
            f"{wait:.0%} of each step goes into preparing data while the GPU waits",
            "more resources.cpus for each worker, a shorter max_length, or data that is tokenized before",
        )
    if isinstance(median, int | float) and isinstance(slowest, int | float) and slowest > STRAGGLES * median > 0:
        rank = said.get("slowest_rank")
        find(
            "straggler",
            f"rank {rank} takes {slowest / median:.1f} times as long for its part of a step as the median rank "
            f"({slowest:.3g} s, {median:.3g} s), and all others wait for it",
            f"look at its node (llmsched logs --rank {rank}; other work on it: llmsched nodes), or use one kind of GPU",
        )


def _load(found: WorkloadState, holding: list[GangState], find: Find) -> None:
    if found.load is None:
        return
    ongoing, queued, _ = found.load
    running = sum(one.status is Status.RUNNING for one in holding)
    if queued > 0:
        find(
            "overloaded",
            f"{queued:g} requests wait for a replica, {ongoing:g} are being answered by {running}",
            "a larger replicas.max, or a lower autoscaling.target_ongoing_requests"
            if running >= found.workload.max_replicas
            else "more replicas come as soon as there is room; llmsched why tells what is missing",
        )
    elif running and not ongoing and running > found.workload.min_replicas:
        find("idle", f"{running} replicas hold GPUs and nobody asks them", "a shorter autoscaling.downscale_delay_s")


def _unknown(found: WorkloadState, said: Mapping[str, Any], memory: Verdict) -> list[str]:
    unknown = []
    if found.workload.kind == "train" and not found.outcome:
        own = "; a loop of one's own says it with llmsched.runtime.progress.report({})"
        if "data_wait" not in said:
            unknown.append("how long it waits for data" + own.format("data_wait=share"))
        if "slowest_rank_step_s" not in said:
            unknown.append("how long each rank takes")
    if found.workload.kind == "serve" and found.load is None:
        unknown.append("how many requests it has")
    if any(option.resources.gpus_milli for group in found.workload.groups for option in group.options):
        unknown.append("how busy its GPUs are (the Ray dashboard shows it)")
        if memory.needed is None:
            unknown += list(memory.warnings) or ["how much GPU memory it needs"]
    return unknown


def _summary(findings: list[http_models.Finding], holding: list[GangState], found: WorkloadState, names: Names) -> str:
    if findings:
        return f"{len(findings)} thing{'s' if len(findings) > 1 else ''} to look at"
    if holding:
        return "nothing was found that slows it"
    return text(found.message, names) or ("nothing of it runs" if not found.outcome else f"it has {found.outcome}")
