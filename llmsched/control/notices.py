"""Who wants to be told of a workload is told by webhook: at least once, in the words that its owner would read.

What is to be told is written with the decisions of its round, so that no crash loses it; `Notifier.run` sends what is
written and not sent yet, and tries again ever later. A receiver tells a second delivery by its id.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from typing import Any

from llmsched import crossings
from llmsched.control import reasons, webhooks
from llmsched.control.authorization import KnownNames, Permissions, Person
from llmsched.control.clock import Clock, wait_for_event
from llmsched.control.lookup import spec_of
from llmsched.control.progress import ProgressBook
from llmsched.control.vault import Secrets
from llmsched.core.decisions import Preempt, RunAgain
from llmsched.core.facts import Submitted
from llmsched.core.message import Message
from llmsched.core.records import WorkloadState
from llmsched.core.render import text
from llmsched.core.state import State
from llmsched.errors import LlmschedError, StoreError
from llmsched.spec import http_models
from llmsched.spec.quantities import write_duration
from llmsched.store.codec import Entry
from llmsched.store.journal import Batch, Store, workload_of
from llmsched.store.tables import NoticeRow

log = logging.getLogger("llmsched.control")
AT_ONCE, AT_ONCE_OF_ONE = 32, 4  # messages on their way: of all, of one user
PENDING_OF_ONE = 1_000  # messages of one user that are to be sent; those beyond are given up
FIRST_PAUSE_S, LONGEST_PAUSE_S = 5.0, 3_600.0  # between two tries: doubled each time
GIVEN_UP_AFTER_S = 86_400.0
BETWEEN_CROSSINGS_S = 60.0  # from one message of a comparison and a gang to the next, which counts all in between
WORDS_AT_MOST = 2_000  # of a message
TO_SEND, SENT, GIVEN_UP, OVER = "to send", "sent", "given up", "over"  # over: it does not wait any more

Post = Callable[[str, bytes, Mapping[str, str], Collection[str]], Awaitable[None]]
Key = tuple[str, str, int]


@dataclass(slots=True)
class _Comparison:
    """Of the numbers of one gang. `key`: of its newest message, `due` at first; `told`: how many crossings of this
    attempt messages cover, `before` without the newest one. `held`: the attempt before ended beyond."""

    attempt: int
    told: int = 0
    before: int = 0
    held: bool = False
    counted: crossings.Crossing | None = None
    key: Key = ("", "", 0)
    due: float = -BETWEEN_CROSSINGS_S


class Notifier:
    """`state` gives the live one. `post` is `webhooks.post`, or what a test has in its place."""

    def __init__(
        self, store: Store, state: Callable[[], State], secrets: Secrets, clock: Clock, post: Post = webhooks.post
    ) -> None:
        self._store, self._state, self._secrets, self._clock, self._post = store, state, secrets, clock, post
        self._watched: dict[str, set[Key]] = {}  # workloads with somebody to tell -> what is written already
        self._unseen: dict[str, None] = {}  # of those, the ones of which something may be new
        self._pending: dict[Key, NoticeRow] = {}
        self._sending: dict[Key, asyncio.Task[None]] = {}
        self._comparisons: dict[str, dict[tuple[int, str], _Comparison]] = {}  # of gangs, by number and words
        self._reported: dict[str, None] = {}  # gangs whose numbers are to be looked at
        self._unsaved: list[NoticeRow] = []
        self._woken = asyncio.Event()

    def begin(self) -> None:
        """After a fold: whom to tell, and what is not sent yet. Raises StoreError."""
        self._watched.clear()
        self._unseen.clear()
        self._comparisons.clear()
        for name in self._state().workloads:
            self._watch(name)
        self._pending = {key_of(row): row for row in self._store.rows(NoticeRow) if row.outcome == TO_SEND}
        self._woken.set()

    # --- what is to be told -----------------------------------------------------------------------------------------

    def rows(self, entries: Iterable[Entry], at: float) -> list[NoticeRow]:
        """What these entries, which the state has, make worth telling: to be committed with what was decided."""
        preempted: list[Preempt] = []
        for entry in entries:
            if isinstance(entry, Submitted):
                self._watch(entry.workload.id)
            elif isinstance(entry, RunAgain):
                newest = self._state().newest(entry.workload.partition("@")[0])
                if newest is not None:
                    self._watch(newest.workload.id)
            elif self._watched and (name := workload_of(entry)) in self._watched:
                self._unseen[str(name)] = None
                if isinstance(entry, Preempt):
                    preempted.append(entry)
        if not self._unseen:
            return []
        found = list(chain.from_iterable(self._of(name, at) for name in self._unseen if name in self._watched))
        for entry in preempted:
            found += self._of_preemption(entry, at)
        return self._bounded(found)

    def written(self, rows: Sequence[NoticeRow]) -> None:
        """They are on disk."""
        for name in [*self._unseen]:
            record = self._state().workloads.get(name)
            if record is None or record.outcome:
                self._watched.pop(name, None)
        self._unseen.clear()
        for row in rows:
            if row.workload in self._watched:
                self._watched[row.workload].add(key_of(row))
            if row.outcome == TO_SEND:
                self._pending[key_of(row)] = row
        if rows:
            self._woken.set()

    def compare(self, book: ProgressBook, at: float) -> None:
        """Look whether numbers that were reported have begun to meet comparisons."""
        found: list[NoticeRow] = []
        self._reported |= dict.fromkeys(book.reported())
        for name in self._reported:
            gang = self._state().gangs.get(name)
            record = None if gang is None else self._state().workloads.get(gang.workload_id)
            for number, target in _targets(record):
                if record is not None and target["when"] is not None:
                    found += self._of_comparison(record, number, target, name, book, at)
        self._reported.clear()
        rows = self._bounded(found)
        self._unsaved += rows
        self._pending |= {key_of(row): row for row in rows if row.outcome == TO_SEND}
        if rows:
            self._woken.set()

    def unwritten(self) -> list[NoticeRow]:
        """Of numbers, which are in no journal: what is new since the last call."""
        rows, self._unsaved = self._unsaved, []
        return rows

    def forget(self, gangs: Iterable[str]) -> None:
        """They have left the state."""
        for gang in gangs:
            self._comparisons.pop(gang, None)

    def _watch(self, name: str) -> None:
        record = self._state().workloads.get(name)
        if any(_targets(record)):
            self._watched[name] = {key_of(row) for row in self._store.rows(NoticeRow, name)}
            self._unseen[name] = None

    def _of(self, name: str, at: float) -> Iterator[NoticeRow]:
        """Level, not edge: whatever has come true of it and is not written."""
        record = self._state().find(name)
        if record is None:
            return
        gangs = [record.known[gang] for gang in record.gangs]
        for number, target in _targets(record):
            for what in target["on"]:
                if (name, what, number) in self._watched[name]:
                    continue
                if what == "waiting" and not record.outcome:
                    due = record.submitted_at + target["after"]
                    yield _row(record, what, number, target, "", max(due, at))
                elif what == record.outcome:
                    words = text(record.message, self._names(record)) or _took(record)
                    yield self._told(record, what, number, target, f"{name} {what}" + (f": {words}" * bool(words)), at)
                elif what == "running" and any(gang.started_at is not None for gang in gangs):
                    yield self._told(record, what, number, target, f"{name} runs", at)

    def _of_preemption(self, entry: Preempt, at: float) -> Iterator[NoticeRow]:
        name = str(workload_of(entry))
        record = self._state().find(name)
        for number, target in _targets(record):
            if record is not None and "preempted" in target["on"]:
                words = self._words(record, entry.why) or entry.reason
                what = f"preempted {entry.gang} {entry.attempt}"
                yield self._told(record, what, number, target, f"{name} was preempted: {words}", at)

    def _of_comparison(
        self, record: WorkloadState, number: int, target: Mapping[str, Any], gang: str, book: ProgressBook, at: float
    ) -> Iterator[NoticeRow]:
        """At most one message a minute of each gang: what follows in that minute is counted, and told at its end."""
        when, attempt = str(target["when"]), book.attempts[gang]
        one = self._comparison(record, (number, when), gang, attempt)
        counted = book.crossed[gang].get(when)
        if counted is None:  # by nobody who reports: by the newest values, then
            newest = crossings.counted([when], book.latest[gang])
            if when not in newest:
                return
            counted = crossings.then(one.counted, newest[when])
        if one.counted is None and one.held and counted.at_first:
            one.told = one.before = 1  # it has stayed beyond since the attempt before
        one.counted = counted
        if counted.times <= one.told:
            return
        waiting = self._pending.get(one.key)
        if waiting is None or waiting.due <= at or waiting.tries:
            what, one.before = f"when {gang} {attempt} {counted.times} {when}", one.told
            one.key, one.due = (record.workload.id, what, number), max(at, one.due + BETWEEN_CROSSINGS_S)
        one.told = counted.times
        often = counted.times - one.before
        words = (
            f"{record.workload.id}: {when} ({counted.value}{f', {often} times since the last message' * (often > 1)})"
        )
        body = self._body(record, one.key[1], words, at, book.latest[gang], times=often)
        yield _row(record, one.key[1], number, {**target, "covers": counted.times}, body, one.due)

    def _comparison(self, record: WorkloadState, which: tuple[int, str], gang: str, attempt: int) -> _Comparison:
        """After a restart what messages cover stands in their rows."""
        known = self._comparisons.setdefault(gang, {})
        one = known.get(which)
        if one is None:
            rows = self._store.rows(NoticeRow, record.workload.id)
            one = known[which] = _Comparison(attempt)
            for row in rows:
                told = row.what.split(" ", 4)
                is_of_it = [*told[:3], row.number, told[-1]] == ["when", gang, str(attempt), *which]
                if is_of_it and row.at > one.due:
                    one.told = one.before = json.loads(row.target)["covers"]
                    one.key, one.due = key_of(row), row.at
                    one.counted = crossings.Crossing(one.told, 0, at_first=True, now=True)
        if one.attempt != attempt:
            held = one.counted.now if one.counted is not None else one.held
            one = known[which] = _Comparison(attempt, held=held, due=one.due)
        return one

    def _told(
        self, record: WorkloadState, what: str, number: int, target: Mapping[str, Any], words: str, at: float
    ) -> NoticeRow:
        return _row(record, what, number, target, self._body(record, what, words, at, {}), at)

    def _body(
        self, record: WorkloadState, what: str, words: str, at: float, reported: Mapping[str, Any], **more: int
    ) -> str:
        workload = record.workload
        reason = next((gang.reason for gang in self._gangs(record) if gang.reason), None)
        return json.dumps(
            {
                "text": words[:WORDS_AT_MOST],  # what Slack and Mattermost show
                "event": what.partition(" ")[0],
                "workload": workload.id,
                "name": workload.name,
                "run": workload.run,
                "kind": workload.kind,
                "queue": workload.queue,
                "user": workload.user,
                "phase": record.phase,
                "at": datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds"),
                "message": self._words(record, record.message),
                "reason": view.message if (view := reasons.view(reason, self._names(record))) else "",
                "metrics": {**reported, **record.metrics},
                "artifact": record.artifact,
                **more,
            }
        )

    def _gangs(self, record: WorkloadState) -> Iterator[Any]:
        return (record.known[gang] for gang in record.gangs if not record.known[gang].is_ended())

    def _words(self, record: WorkloadState, message: Message | None) -> str:
        return text(message, self._names(record))

    def _names(self, record: WorkloadState) -> KnownNames:
        """As its owner may read them."""
        state = self._state()
        return KnownNames(state, Permissions(Person(record.workload.user), state.configuration), record.workload.id)

    def _bounded(self, rows: list[NoticeRow]) -> list[NoticeRow]:
        if not rows:
            return rows
        count = Counter(row.user for row in self._pending.values())
        kept = []
        for row in rows:
            count[row.user] += 1
            if count[row.user] > PENDING_OF_ONE:
                error = f"{PENDING_OF_ONE} messages of {row.user or 'this user'} are to be sent, which is the limit"
                row = row._replace(outcome=GIVEN_UP, error=error)
            kept.append(row)
        return kept

    # --- sending ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until it is cancelled."""
        try:
            while True:
                self._woken.clear()
                await wait_for_event(self._clock, self._woken, self._send_those_due())
        finally:
            for task in self._sending.values():
                task.cancel()

    def _send_those_due(self) -> float:
        """Seconds until somebody else is due."""
        now = self._clock.now()
        busy = Counter(self._pending[key].user for key in self._sending if key in self._pending)
        waiting = sorted((row.due, key) for key, row in self._pending.items() if key not in self._sending)
        begun = self._begun()
        for due, key in waiting:
            if due > now:
                return due - now
            row = self._pending[key]
            user, first = row.user, begun.get((row.workload, row.number), row)
            if first.at < row.at:
                continue  # a receiver hears of one workload in the order in which it came about
            begun[(row.workload, row.number)] = first
            if len(self._sending) < AT_ONCE and busy[user] < AT_ONCE_OF_ONE:
                busy[user] += 1
                self._sending[key] = asyncio.create_task(self._send(self._pending[key]))
        return LONGEST_PAUSE_S  # whoever ends sending wakes it

    def _begun(self) -> dict[tuple[str, int], NoticeRow]:
        """By workload and entry of its `notify`, the first message that is on its way, or was and did not arrive."""
        found: dict[tuple[str, int], NoticeRow] = {}
        for key, row in self._pending.items():
            if row.tries or key in self._sending:
                place = row.workload, row.number
                found[place] = min(found.get(place, row), row, key=lambda one: one.at)
        return found

    async def _send(self, row: NoticeRow) -> None:
        key = key_of(row)
        try:
            after = await self._sent(row)
            await self._write([after])
        except StoreError as error:  # sent again, perhaps: at least once
            log.warning("what became of a message about %s is not written: %s", row.workload, error)
            after = row._replace(due=self._clock.now() + FIRST_PAUSE_S)
        except Exception as error:
            log.exception("a message about %s cannot be sent", row.workload)
            after = row._replace(outcome=GIVEN_UP, error=type(error).__name__)
        finally:
            self._sending.pop(key, None)
            self._woken.set()
        if after.outcome == TO_SEND:
            self._pending[key] = after
        else:
            self._pending.pop(key, None)

    async def _sent(self, row: NoticeRow) -> NoticeRow:
        """The row after one try."""
        body = row.body or self._of_waiting(row)
        if not body:
            return row._replace(outcome=OVER)
        now = self._clock.now()
        row, target = row._replace(body=body), json.loads(row.target)
        for_good = False
        try:
            url = target["url"] or self._secrets.value(row.user, target["url_from"])
            headers = {webhooks.DELIVERY: f"{row.workload}/{row.what}/{row.number}".replace(" ", "/")}
            if target["sign_with"]:
                headers |= webhooks.signed(body.encode(), self._secrets.value(row.user, target["sign_with"]), now)
            await self._post(url, body.encode(), headers, self._state().configuration.notify_hosts)
            return row._replace(outcome=SENT, tries=row.tries + 1, error="")
        except webhooks.Undelivered as failure:
            for_good, error = failure.for_good, failure.message
        except LlmschedError as failure:  # a secret that is not there, an address that is not allowed: may be mended
            error = failure.message
        tried = row._replace(tries=row.tries + 1, error=error)
        if for_good or now - row.at >= GIVEN_UP_AFTER_S:
            log.warning("a message about %s is given up: %s", row.workload, error)
            return tried._replace(outcome=GIVEN_UP)
        return tried._replace(due=now + min(FIRST_PAUSE_S * 2**row.tries, LONGEST_PAUSE_S))

    def _of_waiting(self, row: NoticeRow) -> str:
        """What to say of work that waits still; "" when it does not."""
        record = self._state().find(row.workload)
        if record is None or record.outcome or record.phase != "waiting":
            return ""
        now = self._clock.now()
        reason = next((gang.reason for gang in self._gangs(record) if gang.reason), None)
        why = self._words(record, reason.message) if reason is not None else ""
        waited = write_duration(max(0, round(now - record.submitted_at)))
        said = f"{row.workload} has waited for {waited}" + (f": {why}" if why else "")
        return self._body(record, row.what, said, now, {})

    async def _write(self, rows: Sequence[NoticeRow]) -> None:
        await asyncio.wrap_future(self._store.commit(Batch(self._clock.now(), (), rows)))


def key_of(row: NoticeRow) -> Key:
    return row.workload, row.what, row.number


def told_of(store: Store, workload: str) -> list[http_models.NoticeView]:
    """What was and is to be told of a workload, in order of time. Addresses are secrets: only their hosts are shown."""
    rows = sorted(store.rows(NoticeRow, workload), key=lambda row: (row.at, row.what, row.number))
    return [
        http_models.NoticeView(
            event=row.what.partition(" ")[0],
            to=_shown(json.loads(row.target)),
            outcome=row.outcome,
            tries=row.tries,
            error=row.error,
            due=row.due if row.outcome == TO_SEND else None,
        )
        for row in rows
        if row.outcome != OVER
    ]


def _targets(record: WorkloadState | None) -> Iterator[tuple[int, dict[str, Any]]]:
    if record is None or '"notify":[]' in record.workload.parcel:  # canonical JSON; most have none
        return iter(())
    return enumerate(spec_of(record.workload).get("notify") or ())


def _row(record: WorkloadState, what: str, number: int, target: Mapping[str, Any], body: str, due: float) -> NoticeRow:
    kept = {key: target[key] for key in ("url", "url_from", "sign_with", "covers") if key in target}
    return NoticeRow(
        record.workload.id, what, number, record.workload.user, json.dumps(kept), body, TO_SEND, due, 0, "", due
    )


def _shown(target: Mapping[str, Any]) -> str:
    return webhooks.host_of(target["url"]) if target["url"] else f"secret {target['url_from']}"


def _took(record: WorkloadState) -> str:
    if record.finished_at is None:
        return ""
    return f"after {write_duration(max(0, round(record.finished_at - record.submitted_at)))}"
