"""Fast replay: a heap, a simulated clock and the very `core.turn()` of production.

A trace becomes facts, decisions go to `sim/executor.py`, whose answers are the next facts. Everything follows from the
trace, the options and one seed; the digest of the decisions proves it. Start reading at `simulate`.
"""

from __future__ import annotations

import gc
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from llmsched.core import decisions, facts, render
from llmsched.core.configuration import Configuration, Queue
from llmsched.core.decisions import Decision
from llmsched.core.node_types import node_of
from llmsched.core.nodes import Node
from llmsched.core.policy import Policies
from llmsched.core.resources import MILLI
from llmsched.core.scheduler import turn
from llmsched.core.state import State
from llmsched.core.status import Status
from llmsched.core.workload import Placement, gang_id
from llmsched.errors import Bug, SpecError
from llmsched.policies import registry
from llmsched.sim.audit import Audit
from llmsched.sim.endpoints import LOOK_S, Endpoint, Server, replica_of
from llmsched.sim.executor import SimExecutor
from llmsched.sim.faults import Faults
from llmsched.sim.provider import STARTUP_S, Provider, Shortage, Stay
from llmsched.sim.recorder import Recorder
from llmsched.sim.runtimes import Estimates, Runtime, workload_of
from llmsched.sim.traces.job import Job

LEAVE_S = 1.0  # a loop that saves at its next step; its size is of no matter, that it comes in a later pass is
STALLED_AFTER = 10_000  # turns at one instant: decisions and facts chase each other, which is a bug of ours


@dataclass(frozen=True, slots=True)
class Options:
    nodes: tuple[Node, ...]
    configuration: Configuration
    estimates: Estimates = Estimates()
    restart_cost_s: float = 0.0
    leave_s: float = LEAVE_S  # how long work that is told to leave holds its places; the grace that jobs ask for
    seed: int = 0
    until_s: float | None = None
    faults: Faults = Faults()
    joining: tuple[tuple[float, Node], ...] = ()  # (when, node): nodes that come whether asked for or not
    drains: tuple[facts.DrainBegun | facts.DrainEnded, ...] = ()
    startup_s: float = STARTUP_S  # from asking for a node of a type until it joins
    shortages: tuple[Shortage, ...] = ()
    trace: str = ""  # where the jobs come from, for complaints
    endpoints: tuple[Endpoint, ...] = ()


@dataclass(slots=True)
class Outcome:
    """What happened to one job. `finished_s` is None when the run ended first; `why` then says what it waited for."""

    job: Job
    finished_s: float | None
    served_s: float
    gpu_s: float
    lost_gpu_s: float
    starts: int
    first_start_s: float | None
    why: str = ""


@dataclass(slots=True)
class Run:
    options: Options
    outcomes: list[Outcome]
    digest: str
    ended_s: float
    turn_s: list[float] = field(default_factory=list)  # wall-clock seconds of each turn
    wall_s: float = 0.0
    preemptions: int = 0
    resizes: int = 0
    quota_violations: int = 0
    node_losses: int = 0
    nodes_asked: int = 0
    nodes_released: int = 0
    stays: list[Stay] = field(default_factory=list)  # every node that was ever there
    servers: list[Server] = field(default_factory=list)  # of the endpoints, as they ended
    replica_gpu_s: dict[str, float] = field(default_factory=dict)  # held by the replicas of each endpoint


def simulate(
    jobs: Sequence[Job], options: Options, recorder: Recorder | None = None, policies: Policies | None = None
) -> Run:
    """Replay `jobs` (sorted by submit_s), under `policies` in the place of those that the configuration names. Raises
    SpecError for a job that can never fit or an unknown policy."""
    gc_was = gc.get_threshold()
    gc.set_threshold(500_000, 50, 50)  # records live long and have no cycles: collecting often only costs time
    try:
        return _Replay(jobs, options, recorder, policies).run()
    finally:
        gc.set_threshold(*gc_was)


def with_queues(configuration: Configuration, jobs: Sequence[Job]) -> Configuration:
    """The configuration, with a queue for every one the trace names. Those it does not know have no quota."""
    known = {queue.name for queue in configuration.queues}
    extra = sorted({job.queue for job in jobs} - known)
    if not extra:
        return configuration
    return replace(configuration, queues=(*configuration.queues, *(Queue(name) for name in extra)))


class _Replay:
    def __init__(
        self, jobs: Sequence[Job], options: Options, recorder: Recorder | None, policies: Policies | None
    ) -> None:
        self.jobs = jobs
        self.options = options
        self.recorder = recorder
        self.policies = policies or registry.load(options.configuration.policies)
        self.state = State()
        self.runtimes: dict[str, Runtime] = {}
        self.provider = Provider(options.configuration, options.startup_s, options.shortages)
        self.audit = Audit(options.configuration, options.nodes)
        self.hash = hashlib.sha256()
        self.result = Run(options, [], "", 0.0)
        self.placed: dict[str, dict[str, int]] = {}  # gang -> node -> GPUs it holds there
        self.first_start: dict[str, float] = {}
        self.owner: dict[str, str] = {}  # replica -> endpoint
        self.answered: set[str] = set()  # replicas
        self.starts: dict[str, int] = {}
        self.finished: dict[str, float] = {}
        self.next_job = 0
        self.nodes = {node.id: node for node in options.nodes}
        self.servers = {each.workload.id: Server(each, options.seed) for each in options.endpoints}
        self.executor = SimExecutor(self.runtimes, self.nodes, options.restart_cost_s, options.leave_s)
        self.failures = {name: options.faults.of_node(name) for name in self.nodes}
        largest = _most_gpus(options)
        self.flavors = [flavor for flavor in largest if flavor is not None]
        for job in jobs:
            least = job.runtimes[0][0]
            most = max(largest.get(flavor, 0) for flavor in job.flavors())
            if least > most:
                kind = "GPUs" if None in job.flavors() else f"{' or '.join(map(str, job.flavors()))} GPUs"
                raise SpecError(
                    f"column num_gpus: job {job.id} needs {least} {kind}, there are {most}.",
                    where=f"{options.trace}:{job.row}" if options.trace else f"row {job.row}",
                    code="impossible",
                    hint="Give a larger --nodes or node_types, or leave the job out.",
                )

    def run(self) -> Run:
        began = time.perf_counter()
        options = self.options
        begins: list[facts.Fact] = [facts.Configured(0.0, options.configuration)]
        begins += [facts.NodeJoined(0.0, node) for node in options.nodes]
        for each in options.endpoints:
            begins += [facts.Submitted(0.0, each.workload), *each.told_before()]
        self._turn(0.0, begins)
        for node in options.nodes:
            self.provider.joined(node, 0.0)
        for when, node in options.joining:
            self.executor.at(when, facts.NodeJoined(when, node))
        for drain in options.drains:
            self.executor.at(drain.at, drain)
        for node in options.nodes:
            self._next_failure(node.id)
        wake: float | None = None
        now = 0.0
        same = 0
        while not self._is_over():
            following = self._next_at(wake)
            if following is None or (options.until_s is not None and following > options.until_s):
                break
            same = same + 1 if following == now else 0
            if same > STALLED_AFTER:
                raise Bug(f"the simulation stands still at {now:.0f} s.", code="stalled")
            now = following
            found = self._nodes_come_and_go(self._facts(now), now)
            self._let_go(now)
            wake = self._turn(now, found or [facts.Tick(now)])
        stopped = options.until_s is not None and not self._is_over()
        self.result.ended_s = options.until_s if stopped and options.until_s is not None else now
        self.result.wall_s = time.perf_counter() - began
        self._conclude()
        return self.result

    def _nodes_come_and_go(self, found: list[facts.Fact], now: float) -> list[facts.Fact]:
        """Keep the books of nodes; a node that was called off while it started does not come."""
        kept: list[facts.Fact] = []
        for fact in found:
            if isinstance(fact, facts.NodeJoined):
                if fact.node.id not in self.nodes:
                    if fact.node.node_type is not None and not self.provider.is_coming(fact.node):
                        continue
                    self.nodes[fact.node.id] = fact.node
                    self.failures[fact.node.id] = self.options.faults.of_node(fact.node.id, now)
                    self._next_failure(fact.node.id)
                    self.audit.joined(fact.node)
                self.provider.joined(fact.node, now)
            elif isinstance(fact, facts.NodeLost):
                if fact.node not in self.state.nodes:
                    continue
                self.executor.node_lost(self.state, fact.node, now)
                self.provider.left(fact.node, now)
                if fact.node not in self.state.fleet.releasing:
                    self.result.node_losses += 1
                    self._next_failure(fact.node)
                    self._rent(self.state.fleet.requested, now)  # an autoscaler replaces what is lost unasked
                kept += [fact, *self.executor.due(now)]
                continue
            kept.append(fact)
        return kept

    def _rent(self, counts: Sequence[tuple[str, int]], now: float) -> None:
        begun = self.provider.request(counts, [*self.state.fleet.releasing], now)
        self.result.nodes_asked += len(begun)
        for when, node in begun:
            self.executor.at(when, facts.NodeJoined(when, node))

    def _next_failure(self, node: str) -> None:
        """Schedule the next loss of a node, and the return of one that nobody rents: a rented one is replaced."""
        found = next(self.failures[node], None) if node in self.failures else None
        if found is not None:
            lost, back = found
            self.executor.at(lost, facts.NodeLost(lost, node))
            if self.nodes[node].node_type is None:
                self.executor.at(back, facts.NodeJoined(back, self.nodes[node]))

    def _is_over(self) -> bool:
        if self.next_job < len(self.jobs) or len(self.finished) < len(self.jobs):
            return False
        return all(server.look_at > server.endpoint.ends_s for server in self.servers.values())

    def _next_at(self, wake: float | None) -> float | None:
        times = [self.executor.next_at(), wake, *(server.look_at for server in self.servers.values())]
        if self.next_job < len(self.jobs):
            times.append(self.jobs[self.next_job].submit_s)
        known = [t for t in times if t is not None]
        return min(known) if known else None

    def _facts(self, now: float) -> list[facts.Fact]:
        """Everything that happened up to now: what the executor has to say first, then new submissions."""
        found = self.executor.due(now)
        options = self.options
        while self.next_job < len(self.jobs) and self.jobs[self.next_job].submit_s <= now:
            job = self.jobs[self.next_job]
            self.next_job += 1
            factor = options.estimates.factor(options.seed, job.id)
            grace_s = max(job.leave_s, default=options.leave_s)
            workload = workload_of(job, options.estimates, factor, grace_s, self.flavors)
            told = None if workload.estimated_runtime_s is None else factor
            self.runtimes[gang_id(job.id, 0)] = Runtime(job, at=now, told_factor=told)
            found.append(facts.Submitted(job.submit_s, workload))
        for name, server in self.servers.items():
            if server.look_at <= now:
                server.until(now)
                server.look_at = now + LOOK_S
                found.append(facts.LoadObserved(now, name, *server.load(), server.measured()))
        return found

    def _serve(self, now: float) -> None:
        """Tell each endpoint how many of its replicas answer, and keep the books of those that are new."""
        for name, server in self.servers.items():
            gangs = [self.state.gangs[gang] for gang in self.state.workloads[name].gangs]
            answering = [gang for gang in gangs if gang.status is Status.RUNNING]
            server.answering(len(answering), now)
            for gang in answering:
                if gang.id not in self.answered:
                    self.answered.add(gang.id)
                    server.handovers.append(now - gang.submitted_at)

    def _let_go(self, now: float) -> None:
        """Keep the books of who has left, or is done."""
        for gang in self.executor.finished:
            self.finished[gang] = now
        for gang in self.executor.gone:
            self._hold(gang, now, {})
        self.executor.finished.clear()
        self.executor.gone.clear()

    def _turn(self, now: float, found: list[facts.Fact]) -> float | None:
        began = time.perf_counter()
        plan = turn(self.state, found, self.policies)
        self.result.turn_s.append(time.perf_counter() - began)
        if plan.decisions:
            self._replicas(plan.decisions, now)
            self.executor.carry_out(plan.decisions, now)
            gave = False
            for decision in plan.decisions:
                gave |= self._note(decision, now)
            if gave:
                self.audit.check()
        self._serve(now)
        if self.recorder is not None:
            self.recorder.explains(now, plan.reasons)
            self.recorder.load.append((now, sum(r.size for r in self.running()), self.state.waiting.count))
        return plan.wake_at

    def _replicas(self, decided: Sequence[Decision], now: float) -> None:
        """Replicas come to be by a decision, jobs by the trace."""
        for decision in decided:
            if isinstance(decision, decisions.Launch) and decision.gang not in self.runtimes:
                self.owner[decision.gang] = name = self.state.gangs[decision.gang].workload_id
                self.runtimes[decision.gang] = Runtime(replica_of(self.servers[name].endpoint, decision.gang), at=now)

    def running(self) -> list[Runtime]:
        return [self.runtimes[name] for name in self.placed]

    def _note(self, decision: Decision, now: float) -> bool:
        """Keep the books of one decision; True when it gave GPUs out."""
        if isinstance(decision, decisions.RequestCapacity):
            self._rent(decision.counts, now)
        elif isinstance(decision, decisions.ReleaseNode):
            self.result.nodes_released += 1
        kind = type(decision).__name__
        gang = getattr(decision, "gang", getattr(decision, "workload", getattr(decision, "node", "")))
        self.hash.update(f"{now:.3f} {kind} {gang} {getattr(decision, 'attempt', '')}".encode())
        if isinstance(decision, (decisions.Launch, decisions.Resize)):
            by_node = _by_node(decision.placement)
            self.hash.update(repr(tuple(by_node.items())).encode())
            self._hold(decision.gang, now, by_node)
            if isinstance(decision, decisions.Launch):
                self.starts[gang] = self.starts.get(gang, 0) + 1
                self.first_start.setdefault(gang, now)
            else:
                self.result.resizes += 1
            return True
        if isinstance(decision, decisions.Preempt):
            self.result.preemptions += 1
        return False

    def _hold(self, gang: str, now: float, by_node: dict[str, int]) -> None:
        queue = self.runtimes[gang].job.queue
        before = self.placed.pop(gang, None)
        if before:
            self.audit.changed(queue, before, -1)
        if by_node:
            self.placed[gang] = by_node
            self.audit.changed(queue, by_node, 1)
        if self.recorder is not None:
            self.recorder.holds(gang, now, by_node)

    def _conclude(self) -> None:
        result = self.result
        result.quota_violations = self.audit.violations
        result.digest = self.hash.hexdigest()
        result.stays = self.provider.stays
        result.servers = [*self.servers.values()]
        for server in result.servers:
            server.until(result.ended_s)
            server.close()
        for gang, owner in self.owner.items():
            runtime = self.runtimes[gang]
            runtime.settle(max(result.ended_s, runtime.at))
            result.replica_gpu_s[owner] = result.replica_gpu_s.get(owner, 0.0) + runtime.gpu_s
        for job in self.jobs[: self.next_job]:
            gang = gang_id(job.id, 0)
            runtime = self.runtimes[gang]
            runtime.settle(max(result.ended_s, runtime.at))
            why = ""
            if gang not in self.finished:
                known = self.state.gangs[gang]
                told = known.reason.message if known.reason else known.message
                why = render.text(told) or known.status.value
            result.outcomes.append(
                Outcome(
                    job,
                    self.finished.get(gang),
                    runtime.served_s,
                    runtime.gpu_s,
                    runtime.lost_gpu_s,
                    self.starts.get(gang, 0),
                    self.first_start.get(gang),
                    why,
                )
            )
        if self.recorder is not None:
            self.recorder.close(result.ended_s)


def _most_gpus(options: Options) -> dict[str | None, int]:
    """GPUs that there could ever be, by flavor and in all (None)."""
    most: dict[str | None, int] = {None: 0}
    every = [*options.nodes, *(node for _, node in options.joining)]
    rented = [(node_of(options.configuration, t), t.max) for t in options.configuration.node_types]
    for node, count in [*((node, 1) for node in every), *rented]:
        amount = count * node.total.gpus_milli // MILLI
        most[None] += amount
        if node.flavor is not None:
            most[node.flavor] = most.get(node.flavor, 0) + amount
    return most


def _by_node(placement: Placement) -> dict[str, int]:
    counts: dict[str, int] = {}
    for placed in placement:
        counts[placed.node] = counts.get(placed.node, 0) + 1
    return counts
