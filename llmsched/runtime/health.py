"""Whether the work of one try still moves, from what its ranks say of themselves. Pure: the clock is the caller's.

Which signal means what, and how long it may last, stands here. None of them is the time that a step takes: an honest
step may take hours, and shows it by a thread that computes, or by one that is somewhere else than before.

    a rank has come to its end and every other one waits       in torch.distributed, at the same line    DONE_*
    the same, by processes that do nothing                     at the same line, with no CPU time        IDLE_*
    every rank waits for the others, and none computes         in torch.distributed                      ALL_WAIT_*
    a process is stopped (SIGSTOP)                             its node says so, or its worker           STOPPED_*
    a process says nothing, and has no CPU time                its node says so                          SILENT_*
    a node does not say how a silent process is                                                          NODE_*
    a rank waits where the ranks meet, another never came      by the connections of its processes       MEET_*
    nobody reports any more, and no process has CPU time       much longer than between reports before   QUIET_*
    something waits in the gang's own Ray for more than it has by what Ray says; never ended                WANTS_SAID_S
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from math import log2
from typing import NamedTuple

HEARD_WITHIN_S = 10.0  # a rank speaks every three seconds; one that has not for so long is looked at on its node
TIME = "<time>"  # in a sentence: how long it has lasted
ASLEEP = 0.05  # of one CPU: a process that uses less does nothing of its own
# Seconds after which it is said, and after which the work is ended as failed.
DONE_SAID_S, DONE_ENDED_S = 20.0, 60.0
IDLE_SAID_S, IDLE_ENDED_S = 60.0, 1800.0  # it may wait for something outside: as long as Gloo itself would
ALL_WAIT_SAID_S, ALL_WAIT_ENDED_S = 120.0, 900.0
STOPPED_SAID_S, STOPPED_ENDED_S = 10.0, 120.0
SILENT_SAID_S, SILENT_ENDED_S = 60.0, 600.0
NODE_SAID_S, NODE_ENDED_S = 30.0, 120.0
MEET_SAID_S, MEET_ENDED_S = 60.0, 1800.0  # it may prepare something first: as long as torch itself would wait
MEET_DONE_SAID_S, MEET_DONE_ENDED_S = 20.0, 600.0  # it has ended, and will never come
QUIET_SAID_S, QUIET_ENDED_S, QUIET_TIMES = 600.0, 1800.0, 20.0  # and so many times the longest pause before
WANTS_SAID_S = 12.0  # nodes of a Ray that comes up join one after the other


class Pulse(NamedTuple):
    """What a rank says of itself, every few seconds."""

    at: str = ""  # the line that its loop is in: "all_reduce, called in bl.py:15"; empty: a command, which cannot tell
    waits: bool = False  # for other ranks, in torch.distributed
    cpu_s: float = 0.0  # of its process and of what that started, so far
    is_stopped: bool = False  # what it watches is stopped by a signal
    has_met: bool | None = None  # of a command: it has come to where the ranks meet (MASTER_PORT); None: no such place
    wants: str = ""  # of a command: what waits in its own Ray in vain: "4 GPUs; its gang has 2"


class Look(NamedTuple):
    """What a rank's node says of its process."""

    is_stopped: bool
    cpu_s: float


class Verdict(NamedTuple):
    """`message` is for people; `event` is set when the work is to be ended, as in `failures`."""

    message: str
    event: str = ""


@dataclass
class _Rank:
    heard_at: float
    pulse: Pulse
    same_since: float  # how long it has been at this line
    cpu_then: float  # its CPU time at that moment
    stopped_since: float | None = None
    looked_at: float | None = None  # since it was heard: the first look
    look: Look | None = None
    cpu_first: float | None = None  # its CPU time at the first look
    wants_since: float = 0.0

    def is_asleep(self, now: float) -> bool:
        return self.pulse.cpu_s - self.cpu_then <= ASLEEP * max(now - self.same_since, 1.0)


@dataclass
class Health:
    ranks: dict[int, _Rank] = field(default_factory=dict)
    _reported_at: float | None = None
    _reports: int = 0
    _longest_pause_s: float = 0.0

    def heard(self, rank: int, pulse: Pulse, now: float) -> None:
        known = self.ranks.get(rank)
        if known is None or (*pulse[:2], pulse.has_met) != (*known.pulse[:2], known.pulse.has_met):
            same_since, cpu_then = now, pulse.cpu_s
        else:
            same_since, cpu_then = known.same_since, known.cpu_then
        stopped_since = None
        if pulse.is_stopped:
            stopped_since = now if known is None or known.stopped_since is None else known.stopped_since
        wants_since = known.wants_since if known is not None and known.pulse.wants == pulse.wants else now
        self.ranks[rank] = _Rank(now, pulse, same_since, cpu_then, stopped_since, wants_since=wants_since)

    def reported(self, now: float) -> None:
        if self._reported_at is not None:
            self._longest_pause_s = max(self._longest_pause_s, now - self._reported_at)
        self._reported_at = now
        self._reports += 1

    def silent(self, finished: Collection[int], now: float) -> list[int]:
        """Ranks that must be looked at on their nodes."""
        return [n for n, one in self.ranks.items() if n not in finished and now - one.heard_at > HEARD_WITHIN_S]

    def looked(self, rank: int, look: Look | None, now: float) -> None:
        """What a look brought; None: the node did not answer."""
        one = self.ranks[rank]
        one.look = look
        if one.looked_at is None:
            one.looked_at = now
        if look is not None:
            one.cpu_first = look.cpu_s if one.cpu_first is None else one.cpu_first
            if not look.is_stopped:
                one.stopped_since = None
            elif one.stopped_since is None:
                one.stopped_since = one.heard_at

    def verdict(self, finished: Collection[int], now: float) -> Verdict | None:
        """What is wrong, the surest first; None: nothing that can be seen."""
        alive = {n: one for n, one in sorted(self.ranks.items()) if n not in finished}
        if not alive:
            return None
        for rank, one in alive.items():
            found = self._of_process(rank, one, now)
            if found is not None:
                return found
        found = self._of_gang(alive, sorted(finished), now) or self._of_meeting(alive, sorted(finished), now)
        return found or self._of_own_ray(alive, now) or self._of_reports(alive, now)

    def _of_process(self, rank: int, one: _Rank, now: float) -> Verdict | None:
        who = f"rank {rank}'s process"
        if one.stopped_since is not None:
            lasts = now - one.stopped_since
            return _judge(f"{who} is stopped (SIGSTOP) for {TIME}", lasts, STOPPED_SAID_S, STOPPED_ENDED_S,
                          "interruption")  # fmt: skip
        lasts = now - one.heard_at
        if lasts <= HEARD_WITHIN_S:
            return None
        if one.looked_at is not None and one.look is None:
            text = f"rank {rank} has said nothing for {TIME}, and its node does not answer"
            return _judge(text, lasts, NODE_SAID_S, NODE_ENDED_S, "interruption")
        is_working = one.look is not None and one.look.cpu_s - (one.cpu_first or 0.0) > ASLEEP * lasts
        what = "though it computes" if is_working else "and does nothing"
        found = _judge(f"{who} has said nothing for {TIME}, {what}", lasts, SILENT_SAID_S, SILENT_ENDED_S,
                       "interruption")  # fmt: skip
        return found and (found._replace(event="") if is_working else found)

    def _of_gang(self, alive: dict[int, _Rank], finished: list[int], now: float) -> Verdict | None:
        if not all(one.pulse.at for one in alive.values()):
            return None
        lasts = min(now - one.same_since for one in alive.values())
        all_wait = all(one.pulse.waits for one in alive.values())
        all_sleep = all(one.is_asleep(now) for one in alive.values())
        first, where = next((rank, one.pulse.at) for rank, one in alive.items())
        if finished and (all_wait or all_sleep):
            text = f"rank {finished[0]} has returned, and rank {first} has waited for {TIME} ({where})"
            if all_wait:
                text += ": for ranks that will not come. All ranks must make the same calls"
                return _judge(text, lasts, DONE_SAID_S, DONE_ENDED_S, "error")
            return _judge(text, lasts, IDLE_SAID_S, IDLE_ENDED_S, "error")
        if all_wait and all_sleep and len(alive) > 1:
            text = f"all {len(alive)} ranks have waited for each other for {TIME} (rank {first}: {where})"
            return _judge(text, lasts, ALL_WAIT_SAID_S, ALL_WAIT_ENDED_S, "error")
        return None

    def _of_meeting(self, alive: dict[int, _Rank], finished: list[int], now: float) -> Verdict | None:
        """Ranks of commands: some wait for others that never joined their process group."""
        waiting = [(rank, one) for rank, one in alive.items() if one.pulse.has_met]
        if not waiting:
            return None
        first, one = max(waiting, key=lambda each: each[1].same_since)
        lasts = now - one.same_since
        absent = [rank for rank in sorted(self.ranks) if not self.ranks[rank].pulse.has_met]
        if not absent:
            return None
        who = next((rank for rank in absent if rank in finished), absent[0])
        text = "has come to its end" if who in finished else "has not joined"
        text = f"rank {who} {text}, and rank {first} waits for it in its process group for {TIME}"
        said, ended = (MEET_SAID_S, MEET_ENDED_S) if who not in finished else (MEET_DONE_SAID_S, MEET_DONE_ENDED_S)
        found = _judge(f"{text}: every rank must call init_process_group", lasts, said, ended, "error")
        is_idle = all(each.is_asleep(now) for each in alive.values())
        return found and (found if is_idle else found._replace(event=""))

    def _of_own_ray(self, alive: dict[int, _Rank], now: float) -> Verdict | None:
        """It may compute all the while, and is never ended for it: with `max_runtime` it ends."""
        for one in alive.values():
            if one.pulse.wants and now - one.wants_since >= WANTS_SAID_S:
                return Verdict(f"something waits in its own Ray for {one.pulse.wants}")
        return None

    def _of_reports(self, alive: dict[int, _Rank], now: float) -> Verdict | None:
        if self._reported_at is None or self._reports < 3:
            return None
        lasts, usual = now - self._reported_at, QUIET_TIMES * self._longest_pause_s
        first, one = next(iter(alive.items()))
        text = (
            f"nothing has been reported for {TIME} (before, at most {_time(self._longest_pause_s)} passed): "
            f"rank {first} is at {one.pulse.at or 'a line it does not tell'}"
        )
        is_dead = all(
            each.pulse.at and each.is_asleep(now) and now - each.same_since > QUIET_SAID_S for each in alive.values()
        )
        found = _judge(text, lasts, max(QUIET_SAID_S, usual), max(QUIET_ENDED_S, usual), "error")
        return found and (found if is_dead else found._replace(event=""))


def _judge(text: str, lasts_s: float, said_s: float, ended_s: float, event: str) -> Verdict | None:
    """`text` may hold TIME. What is said again is said anew only when it has lasted twice as long."""
    if lasts_s < said_s:
        return None
    is_over = lasts_s >= ended_s
    told_s = lasts_s if is_over else said_s * 2.0 ** int(log2(lasts_s / said_s))
    return Verdict(text.replace(TIME, f"{'' if is_over else 'over '}{_time(told_s)}"), event if is_over else "")


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
