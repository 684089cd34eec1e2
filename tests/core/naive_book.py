"""What workloads held, added up anew between every two entries of a journal: slow, and with no book kept in step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from llmsched.core.facts import CheckpointPublished
from llmsched.core.records import GangState, amount_of
from llmsched.core.state import State
from llmsched.core.status import Status

Figures = tuple[dict[Any, int], dict[Any, int], dict[Any, int], dict[Any, int]]


class NaiveBook:
    """In GPU-microseconds: all that was held, by workload, day and flavor; borrowed, by queue and day; of what was
    held, before an attempt ran, by workload; and what had to be done again, by workload."""

    def __init__(self) -> None:
        self._held: Counter[Any] = Counter()
        self._borrowed: Counter[Any] = Counter()
        self._starting: Counter[Any] = Counter()
        self._lost: Counter[Any] = Counter()
        self._unsaved: Counter[str] = Counter()
        self._holding: dict[str, int] = {}

    def found(self) -> Figures:
        return dict(+self._held), dict(+self._borrowed), dict(+self._starting), dict(+self._lost)

    def before(self, state: State, entry: Any) -> None:
        now, at = round(state.now * 1000), round(max(getattr(entry, "at", 0.0), state.now) * 1000)
        for day in range(now // 86_400_000, at // 86_400_000 + 1):
            span = min(at, (day + 1) * 86_400_000) - max(now, day * 86_400_000)
            if span > 0:
                self._pass(state, day, span)
        self._holding = {gang.id: gang.attempt for gang in state.gangs.values() if gang.is_holding()}

    def _pass(self, state: State, day: int, span: int) -> None:
        by_queue: Counter[tuple[str, str | None]] = Counter()
        for gang in state.gangs.values():
            for flavor, gpus in self._of(state, gang):
                by_queue[gang.spec.queue, flavor] += gpus
                self._held[gang.workload_id, day, flavor or ""] += gpus * span
                if gang.started_at is None:
                    self._starting[gang.workload_id] += gpus * span
                else:
                    self._unsaved[gang.id] += gpus * span
        quotas = {queue.name: dict(queue.quotas) for queue in state.configuration.queues}
        if not any(quotas.values()):
            return
        rows: Counter[tuple[str, str]] = Counter()
        for (queue, flavor), gpus in by_queue.items():
            rows[queue, flavor if flavor in quotas[queue] else "*"] += gpus  # type: ignore[index]
        for (queue, row), gpus in rows.items():
            own = quotas[queue][row].nominal_milli if row in quotas[queue] else 0
            self._borrowed[queue, day] += max(0, gpus - own) * span

    def _of(self, state: State, gang: GangState) -> Iterator[tuple[str | None, int]]:
        for placed in gang.held:
            yield state.nodes[placed.node].node.flavor, amount_of(gang.spec, placed).gpus_milli

    def after(self, state: State, entry: Any) -> None:
        for name, attempt in self._holding.items():
            gang = state.gangs.get(name)
            if gang is not None and gang.is_holding():
                if isinstance(entry, CheckpointPublished) and (entry.gang, entry.attempt) == (name, attempt):
                    self._unsaved[name] = 0
                continue
            unsaved = self._unsaved.pop(name, 0)
            if gang is not None and gang.status is Status.QUEUED and gang.spec.kind != "serve":
                self._lost[gang.workload_id] += unsaved


def booked(state: State) -> Figures:
    """The same figures, as the books have them."""
    held: Counter[Any] = Counter()
    borrowed: Counter[Any] = Counter()
    starting: Counter[Any] = Counter()
    lost: Counter[Any] = Counter()
    books = {name: book.items() for name, book in state.ledgers.meter.until(state.now).items()}
    put_aside = {
        name: {(used.day, used.queue, used.flavor): used.amounts for used in record.usage}.items()
        for name, record in state.archive.records.items()  # type: ignore[attr-defined]
    }
    assert not books.keys() & put_aside.keys()
    for name, book in {**books, **put_aside}.items():
        for (day, queue, flavor), amounts in book:
            held[name, day, flavor] += amounts.own + amounts.borrowed
            borrowed[queue, day] += amounts.borrowed
            starting[name] += amounts.starting
            lost[name] += amounts.lost
    return dict(+held), dict(+borrowed), dict(+starting), dict(+lost)
