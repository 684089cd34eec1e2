"""The loop: write, then think, then write, then act. `_round` is the table of contents; start there.

It owns the one live `State`; readers look at it between rounds and change nothing. Everything it knows can be folded
again from the journal, and is, whenever a write fails. It decides nothing itself, and has never heard of Ray.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from llmsched import versions
from llmsched.control import dashboard, execution, lease, planning, requests, snapshot_maker, usage, webhooks
from llmsched.control.asks import Asks
from llmsched.control.authorization import Permissions, Person
from llmsched.control.clock import Clock, RealClock, wait_for_event
from llmsched.control.cluster import Cluster
from llmsched.control.housekeeping import Housekeeping
from llmsched.control.idempotency import is_answered
from llmsched.control.inbox import SEEN_OF_A_ROUND, Asked, Inbox
from llmsched.control.intake import Intake, broken, is_the_stores, refuse
from llmsched.control.key_usage import KeyUsage
from llmsched.control.live_state import LiveState
from llmsched.control.metrics import Metrics
from llmsched.control.notices import Notifier, Post, told_of
from llmsched.control.progress import ProgressBook
from llmsched.control.roles import OPERATOR, SUBMITTER
from llmsched.control.turns import breathe
from llmsched.control.vault import NoSecrets, Secrets, Vault
from llmsched.core import archive
from llmsched.core.answers import Trouble
from llmsched.core.facts import Archived, Fact, Tick
from llmsched.core.scheduler import Plan, plan_starts, turn
from llmsched.core.state import State, WorkloadState
from llmsched.core.usage import Amounts
from llmsched.errors import StoreError
from llmsched.executors import port
from llmsched.policies import registry as policies_known
from llmsched.spec import http_models
from llmsched.spec.cluster import ClusterSpec, ReservationSpec
from llmsched.spec.compile import Compiled, compile_configuration, compile_specs
from llmsched.spec.workload import WorkloadSpec
from llmsched.store.journal import Batch, StaleEpoch, Store, Written
from llmsched.store.tables import ArchiveQuery, ProgressRow, Row

log = logging.getLogger("llmsched.control")
ASIDE_OF_A_ROUND = SEEN_OF_A_ROUND // archive.AT_ONCE
TRY_AGAIN_S = 1.0  # how often a store that failed is tried


class Degraded(StoreError):
    """The store cannot be written: reads work, nothing new is accepted."""

    default_code = "degraded"
    retry_after_s = 2.0


class Controller:
    """`keys`: the tokens that may ask endpoints (as of `Routes.changed`), asked again and again. `vault`: the secrets.
    `make_snapshot`: in a thread, unless the store can be read by another process. `post` sends what `notify` asks for.

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
        make_snapshot: snapshot_maker.Make | None = None,
        post: Post = webhooks.post,
    ) -> None:
        self.vault = vault
        self.started = asyncio.Event()
        self._store = store
        self._executor = executor
        self._clock = clock or RealClock()
        self._secrets: Secrets = vault or NoSecrets()
        self._owner = owner or lease.this_process()
        self._inbox = Inbox()
        self._book = ProgressBook()
        self.key_usage = KeyUsage(store)
        self._metrics = Metrics()
        self._live = LiveState(store, self._clock, self._metrics)
        self.cluster = Cluster(self._live, executor, self._inbox, self._secrets, keys, storage)
        self._intake = Intake(self._live, self.cluster, store, self._secrets, self._book, self.key_usage, self._metrics)
        self._notifier = Notifier(store, lambda: self.state, self._secrets, self._clock, post)
        self._asks = Asks(lambda: self.state, self._ask, self.progress_of, executor, lambda: self._epoch)
        self._housekeeping = Housekeeping(store, make_snapshot or snapshot_maker.in_thread(store))
        self._epoch = 0
        self._started_at = 0.0
        self._degraded = ""
        self._trouble = ""
        self._stopping = False
        self._stop_everything = False
        self._begun = False
        self._closed = asyncio.Event()

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
        only_new: bool = False,
    ) -> list[http_models.Applied]:
        """All of them or none; answered when it is committed. Raises RequestError, StoreError. The same key and the
        same `fingerprint` of the request again get the same answer, without doing it again. `only_new`: a name that
        was ever taken is refused."""
        person, compiled = Person(user, role), await _compiled(specs)
        request = requests.Submission(compiled, person, again, idempotency_key, fingerprint, only_new)
        if any(each.spec.sources() for each in compiled) and not is_answered(self._store, request):
            await planning.check_memory(self.state, compiled, person, again=again)
        return list(await self._ask(request))

    async def cancel(self, name: str, by: str) -> None:
        await self._ask(requests.Cancellation(name, by))

    async def unlist(self, name: str, by: str) -> None:
        """Off the list of Ray's jobs. Raises RequestError unless it has ended."""
        await self._ask(requests.Unlisting(name, by))

    async def scale(self, name: str, size: int, by: str) -> None:
        await self._ask(requests.Rescale(name, size, by))

    async def roll_back(self, name: str, by: str, role: str, to: int | None = None, adapter: str = "") -> None:
        """An endpoint, to revision `to`, or the last that answered before; or an adapter of it alone, to what was
        published under its name before. Raises RequestError where there is none."""
        await self._ask(requests.RollingBack(name, Person(by, role), to, adapter))

    async def configure(self, spec: ClusterSpec, by: str) -> None:
        policies_known.load(compile_configuration(spec, 0).policies)  # or no pass would be possible once it is in force
        await self._ask(requests.Reconfiguration(spec, by))

    async def reserve(self, spec: ReservationSpec, by: str) -> None:
        await self._ask(requests.NewReservation(spec, by))

    async def end_reservation(self, name: str, by: str) -> None:
        await self._ask(requests.EndReservation(name, by))

    async def drain_node(
        self, node: str, by: str, *, within_s: float | None = None, until: float | None = None
    ) -> None:
        """`node`: its name or id. Raises RequestError for one that is unknown, or drained like that already."""
        await self._ask(requests.NodeDrain(node, by, within_s, until))

    async def undrain_node(self, node: str, by: str) -> None:
        await self._ask(requests.NodeUndrain(node, by))

    async def plan(self, specs: Sequence[WorkloadSpec], user: str, role: str = SUBMITTER) -> list[http_models.Planned]:
        """What would happen now, also for who may only look. Changes nothing."""
        person, reader = Person(user, OPERATOR if role == OPERATOR else SUBMITTER), Person(user, role)
        compiled = await _compiled(specs)
        verdicts = await planning.memory_of(self.state, compiled, person)
        planned = await planning.plan(self.state, compiled, person, reader, self._secrets, self.now)
        return [planning.tell_memory(*each) for each in zip(planned, verdicts, strict=True)]

    async def execute(self, command: execution.Command) -> execution.Begun:
        """Begin a command beside a running member. Raises RequestError, ClusterError,
        StoreError: nobody runs anything that the story does not tell."""
        order = execution.order_of(self.state, command, self._epoch)
        await self._ask(execution.note_of(self.state, order, command.by, self._secrets))
        return await execution.begin_command(self._executor, order)

    async def ask_dashboard(
        self, found: WorkloadState | None, path: str, headers: Mapping[str, str]
    ) -> dashboard.Answer:
        """Of the private Ray of a workload; None: of the cluster. Raises RequestError, ClusterError."""
        return await dashboard.ask(self._executor, dashboard.order_of(found, path, headers, self._epoch))

    @property
    def state(self) -> State:
        """The one live state. Read only."""
        return self._live.state

    @property
    def urls(self) -> dict[str, str]:
        return self.cluster.urls

    @property
    def progress(self) -> dict[str, dict[str, Any]]:
        """The last numbers of every gang."""
        return self._book.latest

    @property
    def storage(self) -> str:
        return self.cluster.storage

    @property
    def health(self) -> http_models.Health:
        trouble = self._degraded or self._trouble
        cluster = self.cluster.health
        there = "ready" if cluster.connected else "insecure" if cluster.insecure else "starting"
        status: Any = "degraded" if trouble else there
        return http_models.Health(
            status=status,
            message=trouble or self._live.left_out or cluster.message or self.cluster.endpoint_trouble,
            version=versions.own(),
            seq=self._live.seq,
            started_at=self._started_at,
            epoch=self._epoch,
            cluster=cluster,
            urls=self.urls,
        )

    def metrics(self) -> str:
        """The loop's own figures, as Prometheus reads them."""
        return self._metrics.text(len(self._inbox), len(self.cluster.outbox), bool(self._degraded))

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

    @property
    def now(self) -> float:
        """Its clock's stamp; `state.now` is that of the last thing that happened."""
        return max(self._clock.now(), self.state.now)

    async def usage(self, permissions: Permissions, question: usage.Question) -> dict[tuple[str, ...], Amounts]:
        """Who held how much, as far as one may see. Raises StoreError."""
        return await usage.add_up(self.state, self._live.archive, permissions, question, self.now)

    def archived(self, query: ArchiveQuery) -> list[WorkloadState]:
        """Workloads that ended a while ago and have left the state."""
        return self._live.archive.select(query)

    def notices_of(self, found: WorkloadState) -> list[http_models.NoticeView]:
        """What was and is to be told of it to others. Raises StoreError."""
        return told_of(self._store, found.workload.id)

    def progress_of(self, found: WorkloadState) -> Mapping[str, Mapping[str, Any]]:
        """The last numbers of its gangs, also of one that has left the state."""
        if found.workload.id in self.state.workloads:
            return self._book.latest
        rows = [row for name in found.gangs if (row := self._store.row(ProgressRow, name)) is not None]
        return {row.gang: json.loads(row.data) for row in rows}

    async def follow(self, after: int = 0) -> AsyncIterator[Written]:
        """Every committed entry from `after` on, as it comes, without a gap; ends when the controller does."""
        async for written in self._live.follow(after):
            yield written

    # --- life -------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """From the lease to `stop`. Running work is left alone at the end, unless `stop` said otherwise."""
        beside: list[asyncio.Task[None]] = []
        try:
            await self._begin()
            beside = [asyncio.create_task(each.run()) for each in (self.cluster.outbox, self._notifier, self._asks)]
            while not self._stopping:
                await self._wait()
                await self._round()
        finally:
            self._live.end()
            for task in beside:
                task.cancel()
            self._inbox.refuse(_stopping())
            with _only_noted("housekeeping cannot be ended"):
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
            self._live.fold()
        with _only_noted("the numbers of what runs are not known"):
            rows = (self._store.row(ProgressRow, name) for name in self.state.gangs)
            self._book.recall(row for row in rows if row is not None)
        with _only_noted("nobody is told of what happened while no controller ran"):
            self._notifier.begin()
        self._started_at = self._clock.now()
        self.started.set()

    async def _lead(self) -> None:
        """Become the one that writes, and let the executor begin. Raises StoreError."""
        self._epoch = await lease.take(self._store, self._clock, self._owner)
        self.cluster.begin(self._epoch)
        self._live.fold()
        with _only_noted("when the next snapshot is due is not known"):
            await self._housekeeping.begin(self.state, self._live.archive, self._live.seq, self._live.now)
        log.info("epoch %d: %d entries, %d workloads", self._epoch, self._live.seq, len(self.state.workloads))
        await self._executor.start(self._asks.in_front_of(self._inbox.deliver), self._epoch)

    async def _wait(self) -> None:
        """Until somebody wants something, the plan asked to be woken, or the lease is to be renewed."""
        if self._degraded:
            await self._clock.sleep(TRY_AGAIN_S)
            return
        seconds = self._live.renew_at - self._clock.monotonic()
        if self._live.wake_at is not None and self.cluster.is_there:
            seconds = min(seconds, self._live.wake_at - self._live.now)
        await wait_for_event(self._clock, self._inbox.filled, seconds)

    # --- one round --------------------------------------------------------------------------------------------------

    async def _round(self) -> None:
        """Check and apply what was asked and seen, commit, answer; decide, commit, send. Read this first."""
        if self._degraded and not await self._is_well_again():
            return
        asked, seen = self._inbox.drain()
        at = self._live.now
        try:
            facts = await self._intake.take_in(asked, seen, at)
            seen = []  # they are facts now
            self._notifier.compare(self._book, at)
            facts += await self._put_aside(at)
            if facts or self._is_due(at):
                facts = facts or await self._pass_time(at)
                plan = self._decide()
                notices = self._notifier.rows((*facts, *plan.decisions), at)
                await self._live.commit(at, plan.decisions, [*self._beside(), *notices])
                self._notifier.written(notices)
                self.cluster.send_routes(plan.decisions)  # first: who is about to leave gets no new requests
                await self.cluster.carry_out(plan)
            else:
                self.cluster.send_routes()
            await self._live.renew(at, self._beside)
            self.key_usage.written()
            self._housekeeping.after_round(self.state, self._live.seq, at)
        except StaleEpoch as error:
            refuse(asked, error)
            raise
        except Exception as error:
            if isinstance(error, StoreError) and is_the_stores(error):
                self._degrade(error, asked, seen)
            else:  # whatever it is: people can still see and cancel, and what runs goes on
                self._break_off(error, asked)

    def _beside(self) -> list[Row]:
        """What is written along with whatever is committed next."""
        return [*self._book.unwritten(), *self.key_usage.unwritten(), *self._notifier.unwritten()]

    async def _put_aside(self, at: float) -> list[Fact]:
        """What ended a while ago leaves the state, as fast as it can come in: history is not to pile up there."""
        facts: list[Fact] = []
        while len(facts) < ASIDE_OF_A_ROUND and (archived := self._housekeeping.due(self.state, at)) is not None:
            facts += await self._archive(archived, at)
        return facts

    async def _archive(self, archived: Archived, at: float) -> list[Fact]:
        """For rows that are committed with this very entry."""
        gangs = [gang for name in archived.workloads for gang in self.state.workloads[name].gangs]
        try:
            self.state.apply(archived)
            await self._live.commit(at, [archived])
        except Exception as error:
            if is_the_stores(error):
                raise
            log.exception("nothing leaves the state any more")
            self._housekeeping.puts_aside = False
            self._live.fold()
            return []
        for kept in (self._book, self._notifier):
            kept.forget((*gangs, *archived.replicas))
        return [archived]

    def _is_due(self, at: float) -> bool:
        return self.cluster.is_there and self._live.wake_at is not None and at >= self._live.wake_at

    async def _pass_time(self, at: float) -> list[Fact]:
        tick = Tick(at)
        self.state.apply(tick)
        await self._live.commit(at, [tick])
        return [tick]

    def _decide(self) -> Plan:
        """Without a cluster nothing is decided: what its nodes are is not known."""
        if not self.cluster.is_there:
            return Plan(at=self.state.now)
        began = self._clock.monotonic()
        try:
            policies = self._live.policies
            plan = turn(self.state, (), policies)
            plan_starts(self.state, policies)
        except Exception as error:  # what runs goes on, and people can still see and cancel
            self._break_off(error, [])
            return Plan(at=self.state.now)
        self._tell_of(plan.troubles)
        self._metrics.turn(self._clock.monotonic() - began, plan.decisions)
        self._live.wake_at = plan.wake_at
        return plan

    def _tell_of(self, troubles: tuple[Trouble, ...]) -> None:
        """Wrong answers of policies: scheduling goes on without them, and people are told."""
        told = "; ".join(trouble.what for trouble in troubles)
        if told and told != self._trouble:
            log.error("%s", "; ".join(f"{trouble.what}: {trouble.details}" for trouble in troubles))
        self._trouble = told

    # --- when it fails ----------------------------------------------------------------------------------------------

    def _break_off(self, error: Exception, asked: list[Asked]) -> None:
        """Back to what is committed. What was decided since is decided anew when the next thing happens."""
        log.error("a round was broken off", exc_info=error)
        kind = type(error).__name__  # what it says may name anybody's work: that is for the log
        self._trouble = f"the scheduler failed ({kind}), nothing new starts: the controller's log says why"
        refuse(asked, broken(error))
        self._live.fold()
        self._live.wake_at = None
        self._live.put_off_renewal()
        self.cluster.must_resync = True

    def _degrade(self, error: StoreError, asked: list[Asked], seen: list[port.Observation]) -> None:
        """Nothing in memory that is not on disk: fold again, keep what was seen for later, refuse what was asked."""
        self._degraded = error.message
        log.error("degraded: %s", error)
        refusal = Degraded(error.message, hint="Reads work; try again when the disk has room.")
        refuse(asked, refusal)
        self._inbox.refuse(refusal)
        self._inbox.put_back(seen)
        self.cluster.must_resync = True
        self._live.fold()

    async def _is_well_again(self) -> bool:
        try:
            if not self._epoch:
                await self._lead()
            await asyncio.wrap_future(self._store.commit(Batch(self._live.now)))
        except StaleEpoch:
            raise
        except StoreError as error:
            self._degraded = error.message
            return False
        log.info("the store can be written again")
        self._degraded = ""
        return True

    async def _ask(self, request: requests.UserRequest) -> Any:
        if self._degraded:
            raise Degraded(self._degraded, hint="Reads work; try again when the disk has room.")
        if self._stopping or self._live.ended.is_set():
            raise _stopping()
        return await self._inbox.ask(request)


async def _compiled(specs: Sequence[WorkloadSpec]) -> list[Compiled]:
    found: list[Compiled] = []
    for spec in specs:
        await breathe()
        found += compile_specs([spec])
    return found


@contextmanager
def _only_noted(what: str) -> Iterator[None]:
    """For what keeps no controller from its work; a store that fails does."""
    try:
        yield
    except StoreError:
        raise
    except Exception:
        log.exception(what)


def _stopping() -> StoreError:
    return StoreError("the controller is stopping.", code="stopping", hint="Start it again: llmsched up.")
