"""All that the journal determines, and what is kept in step with it. How it changes is state.py's."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from copy import copy
from heapq import merge
from typing import Any, Self

from llmsched.core.archive import Archive, MemoryArchive
from llmsched.core.capacity import Capacity, NodeState
from llmsched.core.configuration import Configuration, Taken
from llmsched.core.draining import OperatorDrain
from llmsched.core.ends import Ends
from llmsched.core.estimate import History
from llmsched.core.exchanges import Exchanges
from llmsched.core.facts import Published
from llmsched.core.fleet import Fleet
from llmsched.core.lane import Lanes
from llmsched.core.ledgers import Ledgers
from llmsched.core.open_work import OpenWork
from llmsched.core.outstanding import Outstanding
from llmsched.core.plan import PORTION
from llmsched.core.quota import QuotaTree
from llmsched.core.records import GangState, HoldingGroup, QueueUse, WorkloadState
from llmsched.core.resources import Resources
from llmsched.core.touched import Touched
from llmsched.core.waiting import Waiting
from llmsched.core.workload import named_run, split_run

NOTES_KEPT = 200


class World:
    """Everything below the comment in `__init__` is derived and not part of the digest."""

    def __init__(self, configuration: Configuration | None = None, archive: Archive | None = None) -> None:
        self.now = 0.0
        self.configuration = configuration or Configuration()
        self.ledgers = Ledgers(self.configuration)  # what is held on nodes, in quota, by each queue
        self.workloads: dict[str, WorkloadState] = {}
        self.gangs: dict[str, GangState] = {}
        self.archive = MemoryArchive() if archive is None else archive  # of workloads that ended a while ago
        self.archived: Counter[tuple[str, str, str]] = Counter()  # of those: (user, queue, outcome) -> how many
        self.publications: dict[str, dict[tuple[str, str], Published]] = {}  # target -> (user, name) -> the last
        self.fleet = Fleet()  # nodes that are to come, or to go
        self.drains: dict[str, OperatorDrain] = {}  # by name, also of nodes that are away
        self.ranked_at = 0.0  # stamp of the last pass that may have ranked everybody, see stages/rank.py
        self.starts = self.starts_before = 0  # decided at this moment, and at the last one before that had a fact
        self.lanes = Lanes()  # of those who have waited long
        self.exchanges = Exchanges()  # pairs of gangs of which one has made way for the other
        self.taken: dict[str, Taken] = {}  # by reservations of so many GPUs, see reserved.py
        self.history = History()  # what the runs that succeeded took
        # What follows is derived from the above and kept in step; none of it is part of the digest.
        self.outstanding = Outstanding()  # of those that wait or run
        self.waiting = Waiting(self.outstanding)
        self.ends = Ends()  # of the holding
        self.open_work = OpenWork()
        self.runs: dict[str, tuple[int, int]] = {}  # name -> its newest run, and how many of its runs are here
        self.ended: dict[str, None] = {}  # workloads that are over, the oldest end first
        self.holding: dict[str, None] = {}  # gangs that hold something, oldest launch first
        self.nominated: dict[str, None] = {}
        self.vacating: dict[str, None] = {}
        self.elastic: dict[str, None] = {}  # of the holding, those whose size may vary
        self.movable: dict[str, None] = {}  # of the holding, those that would be faster on another of their flavors
        self.moved: dict[str, None] = {}  # of the vacating, those for whom other places are kept
        self.serving: dict[str, None] = {}  # serve workloads that have not ended
        self.timed: dict[str, None] = {}  # active gangs with a run time, deadline or budget
        self.scheduled: dict[str, None] = {}  # workloads with a schedule
        self.troubled: dict[str, None] = {}  # gangs and endpoints that stages/reconcile.py must look at
        self.exceeding: dict[str, None] = {}  # gangs whose attempt has taken more than they were given
        self.parked: dict[str, None] = {}
        self.dependents: dict[str, list[str]] = {}
        self.children: dict[str, dict[str, None]] = {}  # run -> what it asked for and has not ended
        self.timers: list[tuple[float, str]] = []  # heap: (when who was set back may start, or its deadline; gang)
        self.touched = Touched()
        self.version = 0  # raised by everything but the passing of time
        self.causes = 0  # raised by whatever may turn a refusal into something else, see State.apply
        self.victims = 0  # raised by what matters only where somebody may be evicted or moved
        self.places = 0  # raised by what turns no refusal, and may change where somebody is, goes to, or until when
        self.notes: deque[str] = deque(maxlen=NOTES_KEPT)
        self.memo: dict[str, Any] = {}  # cache: of the scheduler, what the last pass found

    @property
    def capacity(self) -> Capacity:
        return self.ledgers.capacity

    @property
    def nodes(self) -> dict[str, NodeState]:
        return self.ledgers.nodes

    @property
    def quota(self) -> QuotaTree:
        return self.ledgers.quota

    @property
    def use(self) -> dict[str, QueueUse]:
        return self.ledgers.use

    @property
    def groups(self) -> dict[tuple[str, int, bool], HoldingGroup]:
        return self.ledgers.groups

    @property
    def kinds(self) -> dict[Resources, int]:
        return self.ledgers.kinds

    def find(self, name: str) -> WorkloadState | None:
        """The run of that id, in the state or put aside."""
        return self.workloads.get(name) or self.archive.find(name)

    def newest(self, name: str) -> WorkloadState | None:
        """ "name" is the run with the highest number, "name@2" exactly that one."""
        plain, run = split_run(name)
        if not run:
            here = self.runs.get(plain)
            run = str(self.archive.newest_run(plain) if here is None else here[0])
        return self.find(plain if run == "1" else named_run(plain, run))

    def results(self, name: str) -> Iterator[WorkloadState]:
        """Runs of that name that left a result, the newest first."""
        here = [one for one in self.workloads.values() if one.workload.name == name and one.artifact is not None]
        here.sort(key=lambda one: -one.workload.run)
        return merge(here, self.archive.results(name), key=lambda one: -one.workload.run)

    def gangs_of(self, record: WorkloadState) -> list[GangState]:
        return [self.gangs[name] for name in record.gangs]

    def endless(self) -> Iterator[str]:
        """Who holds something and nobody knows until when, oldest launch first."""
        return (name for name in self.holding if name not in self.ends.of)

    def begin_anew(self, gang: str = "") -> None:
        """Something has happened from outside, perhaps to one gang: two may exchange a place once more."""
        if gang:
            self.exchanges.forget(gang)
        self.causes += self.exchanges.begin_anew()

    def is_to_be_ranked(self) -> bool:
        """By rank: whether those who wait must be compared with those who run: when somebody has waited since before
        this quantum. Who came in it may still find room."""
        scheduling = self.configuration.scheduling
        if not self.waiting.count or scheduling.preemption.within_queue != "by_rank":
            return False
        quantum = scheduling.quantum_s
        if quantum <= 0:
            return True
        began = self.now // quantum * quantum
        return self.waiting.longest[0][0] < began

    def may_have_been_cut(self) -> bool:
        """Whether so much was decided at this moment, or the one before, that the ranking may not have got to its end:
        then it goes on in the same quantum. Told by the journal alone, so once more rather than once too little."""
        return max(self.starts, self.starts_before) >= PORTION

    def twin(self) -> Self:
        """The same world with ledgers of its own; all else is shared and must not change."""
        other = copy(self)
        other.ledgers = self.ledgers.twin()
        return other

    def overlay(self) -> Self:
        """The same, for as long as nothing changes here: it costs what is changed there."""
        other = copy(self)
        other.ledgers = self.ledgers.overlay()
        return other

    def note(self, entry: object, why: str) -> None:
        """Write down that an entry was ignored."""
        self.notes.append(f"{self.now:.3f} ignored {type(entry).__name__}: {why}")
