"""The loop: write, then think, then write, then act. `_round` is the table of contents; start there.

It owns the one live `State`; readers look at it between rounds and change nothing. Everything it knows can be folded
again from the journal, and is, whenever a write fails. It decides nothing itself, and has never heard of Ray.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

from llmsched.control import execution, idempotency, lease, planning, recovery, requests
from llmsched.control.archive import StoreArchive
from llmsched.control.authorization import OPERATOR, SUBMITTER, Person
from llmsched.control.clock import Clock, RealClock, wait_for_event
from llmsched.control.dispatch import Refused, Send, Site, event_of, facts_of, given_up, resync, sends_of, stop_now
from llmsched.control.housekeeping import Housekeeping
from llmsched.control.inbox import Asked, Inbox
from llmsched.control.metrics import Metrics
from llmsched.control.outbox import Outbox
from llmsched.control.progress import ProgressBook
from llmsched.control.routes import Routes
from llmsched.control.vault import NoSecrets, Secrets, Vault
from llmsched.core.facts import Configured, Fact, NodeLost, Tick
from llmsched.core.policy import Policies
from llmsched.core.scheduler import Plan, plan_starts, turn
from llmsched.core.state import State, WorkloadState
from llmsched.errors import Bug, LlmschedError, StoreError
from llmsched.executors import port
from llmsched.policies.registry import load as load_policies
from llmsched.spec import http_models
from llmsched.spec.cluster import ClusterSpec, ReservationSpec
from llmsched.spec.compile import compile_specs
from llmsched.spec.workload import WorkloadSpec
from llmsched.store.codec import CodecError, Entry
from llmsched.store.journal import Batch, StaleEpoch, Store, Written
from llmsched.store.tables import ArchiveQuery, IdempotencyRow, ProgressRow, Row

log = logging.getLogger("llmsched.control")
VERSION = version("llmsched")
ORDERS_AT_A_TIME = 50
TRY_AGAIN_S = 1.0  # how often a store that failed is tried
FOLLOW_AT_MOST = 500  # entries a follower reads at a time


class Degraded(StoreError):
    """The store cannot be written: reads work, nothing new is accepted."""

    default_code = "degraded"
    retry_after_s = 2.0


class Controller:
    """`keys`: the tokens that may ask endpoints (as of `Routes.changed`), asked again and again. `vault`: the secrets.

    `run` holds the lease until `stop`; it raises StoreError when the store cannot be opened or is lost to another.
    """

    def __init__(
        self,
        store: Store,
        executor: port.Executor,
        clock: Clock | None = None,
        *,
        storage: str,
        keys: Callable[[], Sequence[dict[str, Any]]] = tuple,
        vault: Vault | None = None,
        owner: str | None = None,
    ) -> None:
        self._archive = StoreArchive(store)
        self.state = State(archive=self._archive)
        self.urls: dict[str, str] = {}
        self.started = asyncio.Event()
        self._store = store
        self._executor = executor
        self._clock = clock or RealClock()
        self._given_storage = storage
        self._keys = keys
        self.vault = vault
        self._secrets: Secrets = vault or NoSecrets()
        self._owner = owner or lease.this_process()
        self._inbox = Inbox()
        self._book = ProgressBook()
        self._metrics = Metrics()
        self._outbox = Outbox(executor, self._inbox.deliver)
        self._grew = asyncio.Event()  # replaced each time it is set
        self._epoch = 0
        self._seq = 0
        self._started_at = 0.0
        self._wake_at: float | None = None
        self._renew_at = 0.0  # monotonic
        self._cluster = http_models.ClusterHealth()
        self._degraded = ""
        self._must_resync = False
        self._stopping = False
        self._stop_everything = False
        self._begun = False
        self._ended = asyncio.Event()  # nothing more is taken in
        self._closed = asyncio.Event()
        self._trouble = ""
        self._left_out = ""  # of the journal, because nothing could take it in
        self._endpoint_trouble = ""  # what is wrong with the gateway
        self._policies: Policies | None = None
        self._routes = Routes(0)
        self._housekeeping = Housekeeping(store)

    # --- what others call -------------------------------------------------------------------------------------------

    async def submit(
        self,
        specs: Sequence[WorkloadSpec],
        *,
        user: str,
        role: str = SUBMITTER,
        again: bool = False,
        idempotency_key: str | None = None,
        fingerprint: str | None = None,
    ) -> list[http_models.Applied]:
        """All of them or none; answered when it is committed. Raises RequestError, StoreError. The same key and the
        same `fingerprint` of the request again get the same answer, without doing it again."""
        person, compiled = Person(user, role), compile_specs(specs)
        if any(each.spec.sources() for each in compiled):
            await planning.check_memory(self.state, compiled, person)
        request = requests.Submission(compiled, person, again, idempotency_key, fingerprint)
        answers: list[http_models.Applied] = await self._ask(request)
        return answers

    async def cancel(self, name: str, by: str) -> None:
        await self._ask(requests.Cancellation(name, by))

    async def scale(self, name: str, size: int, by: str) -> None:
        await self._ask(requests.Rescale(name, size, by))

    async def configure(self, spec: ClusterSpec, by: str) -> None:
        await self._ask(requests.Reconfiguration(spec, by))

    async def reserve(self, spec: ReservationSpec, by: str) -> None:
        await self._ask(requests.NewReservation(spec, by))

    async def end_reservation(self, name: str, by: str) -> None:
        await self._ask(requests.EndReservation(name, by))

    async def plan(self, specs: Sequence[WorkloadSpec], user: str, role: str = SUBMITTER) -> list[http_models.Planned]:
        """What would happen now, also for who may only look. Changes nothing."""
        person, reader = Person(user, OPERATOR if role == OPERATOR else SUBMITTER), Person(user, role)
        compiled = compile_specs(specs)
        verdicts = await planning.memory_of(self.state, compiled, person)
        planned = await planning.plan(self.state, compiled, person, reader, self._secrets)
        return [planning.tell_memory(*each) for each in zip(planned, verdicts, strict=True)]

    async def execute(self, command: execution.Command) -> AsyncGenerator[port.CommandAnswer | None, None]:
        """Begin a command beside a running member; what it says. Raises RequestError, ClusterError,
        StoreError: nobody runs anything that the story does not tell."""
        order = execution.order_of(self.state, command, self._epoch)
        await self._ask(execution.note_of(self.state, order, command.by, self._secrets))
        return await execution.run(self._executor, order)

    @property
    def progress(self) -> dict[str, dict[str, Any]]:
        """The last numbers of every gang."""
        return self._book.latest

    @property
    def storage(self) -> str:
        return self.state.configuration.storage or self._given_storage

    @property
    def health(self) -> http_models.Health:
        trouble = self._degraded or self._trouble
        there = "ready" if self._cluster.connected else "insecure" if self._cluster.insecure else "starting"
        status: Any = "degraded" if trouble else there
        return http_models.Health(
            status=status,
            message=trouble or self._left_out or self._cluster.message or self._endpoint_trouble,
            version=VERSION,
            seq=self._seq,
            started_at=self._started_at,
            epoch=self._epoch,
            cluster=self._cluster,
            urls=self.urls,
        )

    def metrics(self) -> str:
        """The loop's own figures, as Prometheus reads them."""
        return self._metrics.text(len(self._inbox), len(self._outbox), bool(self._degraded))

    def entries(
        self, after: int = 0, workload: str | None = None, *, kinds: Sequence[str] | None = None,
        before: int | None = None, last: int | None = None,
    ) -> list[Written]:  # fmt: skip
        """Committed entries (seq, at, entry) after `after`; of the story of one workload (its id) when asked, or only
        the `last` of them."""
        return self._store.read(after, workload, last, kinds=kinds, before=before, last=last is not None)

    @property
    def floor(self) -> int:
        """Entries up to this one are not kept any more."""
        return self._store.floor()

    def archived(self, query: ArchiveQuery) -> list[WorkloadState]:
        """Workloads that ended a while ago and have left the state."""
        return self._archive.select(query)

    def progress_of(self, found: WorkloadState) -> Mapping[str, Mapping[str, Any]]:
        """The last numbers of its gangs, also of one that has left the state."""
        if found.workload.id in self.state.workloads:
            return self._book.latest
        rows = [row for name in found.gangs if (row := self._store.row(ProgressRow, name)) is not None]
        return {row.gang: json.loads(row.data) for row in rows}

    async def follow(self, after: int = 0) -> AsyncIterator[Written]:
        """Every committed entry from `after` on, as it comes, without a gap; ends when the controller does."""
        after = max(after, self._store.floor())
        while not self._ended.is_set():
            grew = self._grew
            written = self._store.read(after, limit=FOLLOW_AT_MOST)
            for item in written:
                yield item
                after = item.seq
            if not written:
                await grew.wait()

    # --- life -------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """From the lease to `stop`. Running work is left alone at the end, unless `stop` said otherwise."""
        dispatcher: asyncio.Task[None] | None = None
        try:
            await self._begin()
            dispatcher = asyncio.create_task(self._outbox.run())
            while not self._stopping:
                await self._wait()
                await self._round()
        finally:
            self._ended.set()
            self._grew.set()
            if dispatcher is not None:
                dispatcher.cancel()
            self._inbox.refuse(_stopping())
            await self._housekeeping.close()
            try:
                if self._epoch:
                    await self._executor.close(stop_everything=self._stop_everything)
            finally:
                self._store.close()
                self._closed.set()

    async def stop(self, *, stop_everything: bool = False) -> None:
        """End `run` after the round it is in; `stop_everything` also takes down what runs."""
        self._stopping = True
        self._stop_everything = stop_everything
        self._inbox.filled.set()
        if self._begun:
            await self._closed.wait()

    async def _begin(self) -> None:
        self._store.open()
        self._begun = True
        try:
            await self._lead()
        except StoreError as error:
            if error.code != "store_failed":
                raise
            log.error("degraded from the start: %s", error)  # a full disk: what is known can be seen
            self._degraded = error.message
            self._fold()
        self._book.recall(row for name in self.state.gangs if (row := self._store.row(ProgressRow, name)) is not None)
        self._started_at = self._clock.now()
        self.started.set()

    async def _lead(self) -> None:
        """Become the one that writes, and let the executor begin. Raises StoreError."""
        self._epoch = await lease.take(self._store, self._clock, self._owner)
        self._routes = Routes(self._epoch)
        self._fold()
        self._housekeeping.begin()
        log.info("epoch %d: %d entries, %d workloads", self._epoch, self._seq, len(self.state.workloads))
        await self._executor.start(self._inbox.deliver, self._epoch)

    def _fold(self) -> None:
        self._archive = StoreArchive(self._store)
        self.state, self._seq, left_out = recovery.fold_all_that_can(self._store, self._archive)
        self._left_out = f"{left_out[0].message} It was left out." if left_out else ""
        self._policies = None
        self._wake_at = self.state.now

    async def _wait(self) -> None:
        """Until somebody wants something, the plan asked to be woken, or the lease is to be renewed."""
        if self._degraded:
            await self._clock.sleep(TRY_AGAIN_S)
            return
        seconds = self._renew_at - self._clock.monotonic()
        if self._wake_at is not None and self._cluster.connected:
            seconds = min(seconds, self._wake_at - self._stamp())
        await wait_for_event(self._clock, self._inbox.filled, seconds)

    # --- one round --------------------------------------------------------------------------------------------------

    async def _round(self) -> None:
        """Check and apply what was asked and seen, commit, answer; decide, commit, send. Read this first."""
        if self._degraded and not await self._is_well_again():
            return
        asked, seen = self._inbox.drain()
        at = self._stamp()
        try:
            facts = await self._take_in(asked, seen, at)
            seen = []  # they are facts now
            facts += await self._put_aside(at)
            if facts or self._is_due(at):
                facts = facts or await self._pass_time(at)
                plan = self._decide()
                await self._commit(at, plan.decisions, self._book.unwritten())
                self._send_routes()  # first: who is about to leave gets no new requests
                await self._send(plan)
            else:
                self._send_routes()
            await self._renew(at)
            self._housekeeping.after_round(self.state, self._seq, at)
        except StaleEpoch as error:
            _refuse(asked, error)
            raise
        except Exception as error:
            if isinstance(error, StoreError) and _is_the_stores(error):
                self._degrade(error, asked, seen)
            else:  # whatever it is: people can still see and cancel, and what runs goes on
                self._break_off(error, asked)

    async def _take_in(self, asked: list[Asked], seen: list[port.Observation], at: float) -> list[Fact]:
        """The facts of what was asked and seen, committed, and whoever asked answered. What cannot be committed is
        found by halves, and refused or given up alone. Raises StoreError."""
        try:
            facts, answers, rows = self._check(asked, at)
            self._observe(seen, at, facts)
            await self._commit(at, facts, rows)
        except Exception as error:
            if _is_the_stores(error):
                raise
            self._fold()
            return await self._take_in_halves([item for item in asked if not item.answer.done()], seen, at, error)
        self._answer(answers)
        return facts

    async def _take_in_halves(
        self, asked: list[Asked], seen: list[port.Observation], at: float, error: Exception
    ) -> list[Fact]:
        if asked and seen:
            return [*await self._take_in(asked, [], at), *await self._take_in([], seen, at)]
        if len(asked) > 1 or len(seen) > 1:
            half = (len(asked) + len(seen)) // 2
            first = await self._take_in(asked[:half], seen[:half], at)
            return [*first, *await self._take_in(asked[half:], seen[half:], at)]
        log.error("%s could not be committed", [type(each).__name__ for each in (*asked, *seen)], exc_info=error)
        _refuse(asked, _broken(error))
        facts = [fact for each in seen for fact in self._give_up(each, error, at)]
        try:
            await self._commit(at, facts)
        except Exception as again:
            if _is_the_stores(again):
                raise
            log.exception("nor that it is given up")
            self._fold()
            return []
        return facts

    def _break_off(self, error: Exception, asked: list[Asked]) -> None:
        """Back to what is committed. What was decided since is decided anew when the next thing happens."""
        log.error("a round was broken off", exc_info=error)
        kind = type(error).__name__  # what it says may name anybody's work: that is for the log
        self._trouble = f"the scheduler failed ({kind}), nothing new starts: the controller's log says why"
        _refuse(asked, _broken(error))
        self._fold()
        self._must_resync = True
        self._wake_at = None
        self._renew_at = self._clock.monotonic() + lease.RENEW_EVERY_S

    def _check(self, asked: list[Asked], at: float) -> tuple[list[Fact], list[tuple[Asked, Any]], list[Row]]:
        """Requests become facts one by one, each applied before the next is looked at."""
        facts: list[Fact] = []
        answers: list[tuple[Asked, Any]] = []
        rows: dict[tuple[str, str], IdempotencyRow] = {}
        for item in asked:
            try:
                answer, more = idempotency.accept(self.state, self._store, item.request, at, self._secrets, rows)
            except requests.Torn as torn:
                self._refold(facts)
                item.answer.set_exception(torn.error)
            except LlmschedError as error:
                item.answer.set_exception(error)
            except Exception as error:
                log.exception("%s failed", type(item.request).__name__)
                self._refold(facts)
                item.answer.set_exception(_broken(error))
            else:
                facts += more
                answers.append((item, answer))
        return facts, answers, list(rows.values())

    def _observe(self, seen: list[port.Observation], at: float, facts: list[Fact]) -> None:
        """What the executor saw is added to the facts one by one, each applied before the next is looked at."""
        for item in seen:
            try:
                found = self._facts_of(item, at)
                for fact in found:
                    self.state.apply(fact)
            except Exception as error:  # it would come again after a restart: better to go on without it
                log.exception("%s could not be taken in", type(item).__name__)
                self._refold(facts)
                facts += self._give_up(item, error, at)
            else:
                facts += found

    def _give_up(self, seen: port.Observation, error: Exception, at: float) -> list[Fact]:
        """Nobody waits for ever for what could not be taken in: its attempt is lost, and told to leave."""
        lost = given_up(seen, error, at)
        if lost is None:
            return []
        gang = self.state.gangs.get(lost.gang)
        try:
            self.state.apply(lost)
        except Exception:
            log.exception("%s cannot be given up", lost.gang)
            return []
        if gang is not None:
            self._outbox.put([stop_now(gang, lost.attempt, self._site())])
        return [lost]

    def _facts_of(self, seen: port.Observation, at: float) -> list[Fact]:
        match seen:
            case port.Connected():
                return self._connected(seen, at)
            case port.Disconnected():
                changed = {"connected": False, "insecure": seen.is_insecure, "message": seen.message}
                self._cluster = self._cluster.model_copy(update=changed)
                log.warning("disconnected: %s", seen.message)
                return []
            case port.LaunchAsked():
                gang = self.state.gangs.get(seen.gang)
                if gang is not None and gang.attempt == seen.attempt and gang.launched_at is not None:
                    self._metrics.launch(seen.at - gang.launched_at)
                return []
            case port.EndpointSeen():
                self._endpoint_trouble = seen.trouble
                return []
            case port.Progress():
                estimate = self._book.see(self.state, seen, at)
                return [] if estimate is None else [estimate]
            case _:
                return facts_of(self.state, seen, at)

    def _connected(self, seen: port.Connected, at: float) -> list[Fact]:
        """After an absence the executor must hear what is to live, and the state which nodes are gone."""
        self.urls = dict(seen.urls)
        known = self._cluster
        self._cluster = http_models.ClusterHealth(connected=True, id=seen.cluster_id)
        if known.connected and known.id == seen.cluster_id:
            return []
        log.info("connected to %s", seen.cluster_id)
        self._outbox.clear()  # of before: what still counts is said again
        self._must_resync = True
        self._wake_at = at
        self._routes.forget()
        return [NodeLost(at, node) for node in self.state.nodes if seen.nodes and node not in seen.nodes]

    async def _put_aside(self, at: float) -> list[Fact]:
        """What ended a while ago leaves the state, for rows that are committed with this very entry."""
        archived = self._housekeeping.due(self.state, at)
        if archived is None:
            return []
        gangs = [gang for name in archived.workloads for gang in self.state.workloads[name].gangs]
        try:
            self.state.apply(archived)
            await self._commit(at, [archived])
        except Exception as error:
            if _is_the_stores(error):
                raise
            log.exception("nothing leaves the state any more")
            self._housekeeping.puts_aside = False
            self._fold()
            return []
        self._book.forget((*gangs, *archived.replicas))
        return [archived]

    def _is_due(self, at: float) -> bool:
        return self._cluster.connected and self._wake_at is not None and at >= self._wake_at

    async def _pass_time(self, at: float) -> list[Fact]:
        tick = Tick(at)
        self.state.apply(tick)
        await self._commit(at, [tick])
        return [tick]

    def _decide(self) -> Plan:
        """Without a cluster nothing is decided: what its nodes are is not known."""
        if not self._cluster.connected:
            return Plan(at=self.state.now)
        began = self._clock.monotonic()
        try:
            plan = turn(self.state, (), self._current_policies())
            plan_starts(self.state, self._current_policies())
        except Exception as error:  # what runs goes on, and people can still see and cancel
            self._break_off(error, [])
            return Plan(at=self.state.now)
        self._trouble = ""
        self._metrics.turn(self._clock.monotonic() - began, plan.decisions)
        self._wake_at = plan.wake_at
        return plan

    def _current_policies(self) -> Policies:
        if self._policies is None:
            self._policies = load_policies(self.state.configuration.policies)
        return self._policies

    async def _send(self, plan: Plan) -> None:
        """Orders are made now, from the state that was committed; they leave one after the other, later. Between some
        of them everybody else has a turn: the state changes only in a round."""
        if not self._cluster.connected:
            return
        if self._must_resync:
            self._must_resync = False
            self._put(*resync(self.state, self._site()))
            return
        for start in range(0, len(plan.decisions), ORDERS_AT_A_TIME):
            some = plan.decisions[start : start + ORDERS_AT_A_TIME]
            self._put(*sends_of(self.state, some, self._site()))
            await asyncio.sleep(0)

    def _put(self, sends: list[Send], refused: list[Refused]) -> None:
        self._outbox.put(sends)
        for gang, attempt, error in refused:
            self._inbox.deliver(port.NotStarted(gang, attempt, event_of(error), str(error)))

    def _send_routes(self) -> None:
        """The gateway keeps its last table: one that cannot be made holds up nothing else."""
        if not self._cluster.connected:
            return
        try:
            table = self._routes.changed(self.state, self._keys())
        except Exception:
            log.exception("the table of routes cannot be made")
            return
        if table is not None:
            self._outbox.put([Send("route", table)])

    def _site(self) -> Site:
        return Site(self._epoch, self.storage, self._secrets)

    # --- writing ----------------------------------------------------------------------------------------------------

    async def _commit(self, at: float, entries: Sequence[Entry], rows: Iterable[Row] = ()) -> None:
        """On disk when it returns. Raises StoreError."""
        aside = self._archive.unwritten()
        rows = [*rows, *aside]
        if not entries and not rows:
            return
        began = self._clock.monotonic()
        written = await asyncio.wrap_future(self._store.commit(Batch(at, entries, rows)))
        self._archive.written(aside)
        self._metrics.commit(self._clock.monotonic() - began, len(written))
        self._renew_at = self._clock.monotonic() + lease.RENEW_EVERY_S
        for entry in entries:
            if isinstance(entry, Configured):
                self._policies = None
        if written:
            self._seq = written[-1].seq
            self._grew.set()
            self._grew = asyncio.Event()

    async def _renew(self, at: float) -> None:
        if self._clock.monotonic() >= self._renew_at:
            await asyncio.wrap_future(self._store.commit(Batch(at, (), self._book.unwritten())))
            self._renew_at = self._clock.monotonic() + lease.RENEW_EVERY_S

    def _answer(self, answers: list[tuple[Asked, Any]]) -> None:
        for item, answer in answers:
            if not item.answer.done():
                item.answer.set_result(answer)

    # --- when writing fails -----------------------------------------------------------------------------------------

    def _refold(self, facts: Sequence[Fact]) -> None:
        """Back to what is committed, and the facts of this round that stand."""
        self._fold()
        for fact in facts:
            self.state.apply(fact)

    def _degrade(self, error: StoreError, asked: list[Asked], seen: list[port.Observation]) -> None:
        """Nothing in memory that is not on disk: fold again, keep what was seen for later, refuse what was asked."""
        self._degraded = error.message
        log.error("degraded: %s", error)
        refusal = Degraded(error.message, hint="Reads work; try again when the disk has room.")
        _refuse(asked, refusal)
        self._inbox.refuse(refusal)
        self._inbox.put_back(seen)
        self._must_resync = True
        self._fold()

    async def _is_well_again(self) -> bool:
        try:
            if not self._epoch:
                await self._lead()
            await asyncio.wrap_future(self._store.commit(Batch(self._stamp())))
        except StaleEpoch:
            raise
        except StoreError as error:
            self._degraded = error.message
            return False
        log.info("the store can be written again")
        self._degraded = ""
        return True

    # --- small things -----------------------------------------------------------------------------------------------

    async def _ask(self, request: requests.UserRequest) -> Any:
        if self._degraded:
            raise Degraded(self._degraded, hint="Reads work; try again when the disk has room.")
        if self._stopping or self._ended.is_set():
            raise _stopping()
        return await self._inbox.ask(request)

    def _stamp(self) -> float:
        """Never earlier than what the journal says: a clock may have been set back between two runs."""
        return max(self._clock.now(), self.state.now)


def _stopping() -> StoreError:
    return StoreError("the controller is stopping.", code="stopping", hint="Start it again: llmsched up.")


def _is_the_stores(error: Exception) -> bool:
    """Whether the store cannot be written; else it is what was to be written."""
    return isinstance(error, StoreError) and not isinstance(error, CodecError)


def _broken(error: Exception) -> Bug:
    """Its text may name anybody's work: that is for the log."""
    return Bug(
        f"the request broke the controller ({type(error).__name__}); its log says more.", hint="Please report it."
    )


def _refuse(asked: list[Asked], error: Exception) -> None:
    for item in asked:
        if not item.answer.done():
            item.answer.set_exception(error)
