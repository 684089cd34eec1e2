"""What comes in becomes facts: what was asked and what the cluster said, checked and applied one by one, and committed.

Nothing that one request or observation breaks breaks another: it is refused, or its attempt is given up.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from llmsched.control import idempotency, requests
from llmsched.control.cluster import Cluster
from llmsched.control.dispatch import facts_of, given_up
from llmsched.control.inbox import Asked
from llmsched.control.key_usage import KeyUsage
from llmsched.control.live_state import LiveState
from llmsched.control.metrics import Metrics
from llmsched.control.progress import ProgressBook
from llmsched.control.turns import breathe
from llmsched.control.vault import Secrets
from llmsched.core.facts import Fact
from llmsched.errors import Bug, LlmschedError, StoreError
from llmsched.executors import port
from llmsched.store.codec import CodecError
from llmsched.store.journal import Store
from llmsched.store.tables import IdempotencyRow, Row

log = logging.getLogger("llmsched.control")


class Intake:
    def __init__(
        self,
        live: LiveState,
        cluster: Cluster,
        store: Store,
        secrets: Secrets,
        book: ProgressBook,
        key_usage: KeyUsage,
        metrics: Metrics,
    ) -> None:
        self._live = live
        self._cluster = cluster
        self._store = store
        self._secrets = secrets
        self._book = book
        self._key_usage = key_usage
        self._metrics = metrics

    async def take_in(self, asked: list[Asked], seen: list[port.Observation], at: float) -> list[Fact]:
        """The facts of what was asked and seen, committed, and whoever asked answered. What cannot be committed is
        found by halves, and refused or given up alone. Raises StoreError."""
        try:
            facts, answers, rows = await self._check(asked, at)
            await self._observe(seen, at, facts)
            await self._live.commit(at, facts, rows)
        except Exception as error:
            if is_the_stores(error):
                raise
            self._live.fold()
            return await self._take_in_halves([item for item in asked if not item.answer.done()], seen, at, error)
        for item, answer in answers:
            if not item.answer.done():
                item.answer.set_result(answer)
        return facts

    async def _take_in_halves(
        self, asked: list[Asked], seen: list[port.Observation], at: float, error: Exception
    ) -> list[Fact]:
        if asked and seen:
            return [*await self.take_in(asked, [], at), *await self.take_in([], seen, at)]
        if len(asked) > 1 or len(seen) > 1:
            half = (len(asked) + len(seen)) // 2
            first = await self.take_in(asked[:half], seen[:half], at)
            return [*first, *await self.take_in(asked[half:], seen[half:], at)]
        log.error("%s could not be committed", [type(each).__name__ for each in (*asked, *seen)], exc_info=error)
        refuse(asked, broken(error))
        facts = [fact for each in seen for fact in self._give_up(each, error, at)]
        try:
            await self._live.commit(at, facts)
        except Exception as again:
            if is_the_stores(again):
                raise
            log.exception("nor that it is given up")
            self._live.fold()
            return []
        return facts

    async def _check(self, asked: list[Asked], at: float) -> tuple[list[Fact], list[tuple[Asked, Any]], list[Row]]:
        """Requests become facts one by one, each applied before the next is looked at."""
        facts: list[Fact] = []
        answers: list[tuple[Asked, Any]] = []
        rows: dict[tuple[str, str], IdempotencyRow] = {}
        for item in asked:
            await breathe()
            state = self._live.state
            try:
                answer, more = await idempotency.accept(state, self._store, item.request, at, self._secrets, rows)
            except requests.Torn as torn:
                self._live.refold(facts)
                item.answer.set_exception(torn.error)
            except LlmschedError as error:
                item.answer.set_exception(error)
            except Exception as error:
                log.exception("%s failed", type(item.request).__name__)
                self._live.refold(facts)
                item.answer.set_exception(broken(error))
            else:
                facts += more
                answers.append((item, answer))
        return facts, answers, list(rows.values())

    async def _observe(self, seen: list[port.Observation], at: float, facts: list[Fact]) -> None:
        """What the executor saw is added to the facts one by one, each applied before the next is looked at."""
        for item in seen:
            await breathe()
            try:
                found = self._facts_of(item, at)
                for fact in found:
                    self._live.state.apply(fact)
            except Exception as error:  # it would come again after a restart: better to go on without it
                log.exception("%s could not be taken in", type(item).__name__)
                self._live.refold(facts)
                facts += self._give_up(item, error, at)
            else:
                facts += found

    def _give_up(self, seen: port.Observation, error: Exception, at: float) -> list[Fact]:
        """Nobody waits for ever for what could not be taken in: its attempt is lost, and told to leave."""
        lost = given_up(seen, error, at)
        if lost is None:
            return []
        gang = self._live.state.gangs.get(lost.gang)
        try:
            self._live.state.apply(lost)
        except Exception:
            log.exception("%s cannot be given up", lost.gang)
            return []
        if gang is not None:
            self._cluster.stop(gang, lost.attempt)
        return [lost]

    def _facts_of(self, seen: port.Observation, at: float) -> list[Fact]:
        state = self._live.state
        match seen:
            case port.Connected() | port.Disconnected() | port.EndpointSeen():
                return self._cluster.hear(seen, at)
            case port.LaunchAsked():
                gang = state.gangs.get(seen.gang)
                if gang is not None and gang.attempt == seen.attempt and gang.launched_at is not None:
                    self._metrics.launch(seen.at - gang.launched_at)
                return []
            case port.KeyUsageSeen():
                self._key_usage.see(seen)
                return []
            case port.Progress():
                estimate = self._book.see(state, seen, at)
                return [] if estimate is None else [estimate]
            case _:
                return facts_of(state, seen, at)


def is_the_stores(error: Exception) -> bool:
    """Whether the store cannot be written; else it is what was to be written."""
    return isinstance(error, StoreError) and not isinstance(error, CodecError)


def broken(error: Exception) -> Bug:
    """Its text may name anybody's work: that is for the log."""
    return Bug(
        f"the request broke the controller ({type(error).__name__}); its log says more.", hint="Please report it."
    )


def refuse(asked: Sequence[Asked], error: Exception) -> None:
    for item in asked:
        if not item.answer.done():
            item.answer.set_exception(error)
