"""One replica as the bridge watches it: what it has been told, what it was asked, and what becomes of it.

An attempt of a replica is one process. When that process has gone, for whatever reason, the attempt is over and the
core decides what follows: Serve's own new process would be a restart that nobody counts. And what is not there is gone
once it has been there: absence is never "not yet" for what has started. Pure: `World` is what was seen, `Calls` asks
the replica. Start reading at `Watched.look`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from llmsched import sanitize
from llmsched.executors.bridge.silence import Pending, Silence
from llmsched.executors.port import LaunchOrder
from llmsched.runtime import start_costs

DEPLOYED_WITHIN_S = 15.0  # after Serve took an application it lists it
BROKEN_FOR_S = 60.0  # a replica that starts has this long to answer once Serve says that it runs
READY_AGAIN_S = 60.0  # Serve may wait for ever for a process that is gone
# What Serve gives a replica to end what it has in hand, once it is deleted. So long before the deadline Serve takes it
# off a node that Ray drains: until then it answers, while another one comes up.
LAST_S = 10.0
HEALTH_EVERY_S = 5.0
_BROKEN = "UNHEALTHY", "DEPLOY_FAILED"


class Application(NamedTuple):
    """What Serve says of one application: a word, and messages of its deployments before its own."""

    says: str  # DEPLOYING | RUNNING | UNHEALTHY | DEPLOY_FAILED | DELETING ...
    message: str = ""


class World(NamedTuple):
    nodes: frozenset[str]
    processes: Mapping[str, set[str]]  # by application
    applications: Mapping[str, Application] | None  # None: Serve does not answer just now
    is_serve_there: bool = True


class Calls(Protocol):
    def ready(self) -> Pending: ...

    def health(self) -> Pending: ...

    def process(self, pid: int) -> Pending: ...


class Answers(NamedTuple):
    """It answers now. `refused`: adapters it could not load, and why. `took`: seconds of its start, by step."""

    refused: Mapping[str, str]
    took: Mapping[str, float] = {}


class Failed(NamedTuple):
    """It never answered, and will not."""

    words: str


class Gone(NamedTuple):
    """It answered, or was about to, and does not any more. `process`: the one that ended, for who knows more of it."""

    words: str
    by_others: bool = False
    process: str = ""
    hung_pid: int = 0  # of one that is there and will not end when it is asked to


class Left(NamedTuple):
    """It was told to leave and has."""


class Idle(NamedTuple):
    """It was told to leave and has nothing in hand any more, or no time left: Serve may take it."""


class Abandoned(NamedTuple):
    """So many of the requests that it has in hand were given up by their clients and do not end."""

    requests: int


class Reported(NamedTuple):
    """Numbers and short words of its app, for people."""

    numbers: Mapping[str, Any]


Seen = Answers | Failed | Gone | Left | Idle | Abandoned | Reported


@dataclass
class Watched:
    order: LaunchOrder
    calls: Callable[[], Calls]
    deployed_at: float | None = None  # since when Serve has the application; None: on its way
    begun_at: float | None = None  # when it was ordered; None: another bridge saw that
    process: str = ""  # of the replica that answered: the name of its actor
    pid: int = 0  # the same, on its node
    leave_by: float | None = None
    is_deleted: bool = False  # Serve was asked to take it
    has_answered: bool = False  # ever
    abandoned: int = 0
    numbers: Mapping[str, Any] = field(default_factory=dict)
    _is_told: bool = False  # that it answers
    _was_listed: bool = False
    _asked: Pending | None = field(default=None, repr=False)
    _asked_at: float = 0.0
    _silence: Silence | None = field(default=None, repr=False)
    _broken_since: float | None = None

    @property
    def is_leaving(self) -> bool:
        return self.leave_by is not None

    @property
    def is_awaited(self) -> bool:
        """Somebody waits for it to answer, or to be gone."""
        return self.is_leaving or (self.deployed_at is not None and not self._is_told)

    def ask_again(self) -> None:
        """It is to be told once more that it answers; whether its process is the same is watched on."""
        self._is_told, self._asked, self.numbers = False, None, {}

    def look(self, world: World, now: float) -> Seen | None:
        mine = world.processes.get(self.order.name, set())
        application = None if world.applications is None else world.applications.get(self.order.name)
        if self.is_leaving:
            is_known = world.applications is not None or not world.is_serve_there
            if is_known and application is None and not mine:
                return Left()
            return Idle() if not self.is_deleted and self._is_idle(mine, now) else None
        if self.deployed_at is None:
            return None
        if not all(member.node in world.nodes for member in self.order.members):
            return Gone("its node is gone")
        taken = self._taken_away(world, application, now)
        if taken is not None:
            return taken
        if self.process and self.process not in mine:
            return Gone("its process has ended", process=self.process)
        if self._is_told:
            return self._health(now)
        if application is None:
            return None
        if application.says == "RUNNING":
            return self._readiness(mine, now)
        if application.says == "DEPLOYING" and mine and self._asked is None:
            self._asked, self._asked_at = self._ask("ready"), now  # so that its answer is there once Serve says it runs
        return Failed(application.message) if application.says in _BROKEN else None

    def leave(self, by: float) -> None:
        """At the latest then; what comes first holds."""
        self.leave_by = by if self.leave_by is None else min(self.leave_by, by)
        self._asked = None

    def _is_idle(self, mine: set[str], now: float) -> bool:
        """The gateway leads nothing new to it."""
        assert self.leave_by is not None
        if not mine or not self.has_answered or now >= self.leave_by - LAST_S:
            return True
        if self._asked is None:
            self._asked = self._ask("health")
            return False
        try:
            facts = self._asked.result(timeout_s=0.01)
        except TimeoutError:
            return False
        except Exception:  # as in `_health`
            facts = {}
        self._asked = None
        return bool(facts.get("in_hand") == 0)

    def _taken_away(self, world: World, application: Application | None, now: float) -> Gone | None:
        """By somebody else, for it is not leaving."""
        assert self.deployed_at is not None
        if world.applications is None:
            if world.is_serve_there or world.processes.get(self.order.name):
                return None
            return Gone("Ray Serve was shut down by somebody", by_others=True)
        if application is not None:
            self._was_listed = True
            if application.says == "DELETING":
                return Gone("its Serve application was deleted by somebody", by_others=True)
        elif self._was_listed or now - self.deployed_at > DEPLOYED_WITHIN_S:
            return Gone("its Serve application was taken away by somebody", by_others=True)
        return None

    def _readiness(self, mine: set[str], now: float) -> Answers | Failed | None:
        if self._asked is None or now - self._asked_at > READY_AGAIN_S:
            self._asked, self._asked_at = self._ask("ready"), now
        if self._asked is None:
            return None
        try:
            facts = self._asked.result(timeout_s=0.01)
        except TimeoutError:
            return None
        except Exception as error:
            self._asked = None
            self._broken_since = now if self._broken_since is None else self._broken_since
            return Failed(sanitize.words(error)) if now - self._broken_since > BROKEN_FOR_S else None
        self._asked, self._asked_at = None, now
        if len(mine) != 1:
            return None  # Serve has just made another: which one answered is not known
        (self.process,), self.pid = mine, int(facts.get("pid", 0))
        whole_s = None if self.begun_at is None or self.has_answered else now - self.begun_at
        self._is_told = self.has_answered = True
        is_fork = facts.get("is_fork") is True
        took = start_costs.with_process(start_costs.read(facts.get("took")), whole_s, is_fork=is_fork)
        return Answers({str(name): str(why) for name, why in facts.get("refused", {}).items()}, took)

    def _ask(self, what: str) -> Pending | None:
        try:
            calls = self.calls()
            return calls.ready() if what == "ready" else calls.health()
        except Exception:  # Serve is away: the next look tries again
            return None

    def _look_at_process(self) -> Pending | None:
        try:
            return self.calls().process(self.pid) if self.pid else None
        except Exception:  # as in `_ask`
            return None

    def _health(self, now: float) -> Gone | Abandoned | Reported | None:
        if self._asked is None:
            if now - self._asked_at >= HEALTH_EVERY_S:
                self._asked, self._asked_at, self._silence = self._ask("health"), now, Silence(now)
            return None
        try:
            facts = self._asked.result(timeout_s=0.01)
        except TimeoutError:
            assert self._silence is not None
            hung = self._silence.verdict(self._look_at_process, now)
            return Gone(hung, hung_pid=self.pid) if hung else None
        except Exception:  # on its way to it, or in it: the next look sees whether its process has ended
            self._asked = None
            return None
        self._asked = None
        if facts["trouble"]:
            return Gone(str(facts["trouble"]))
        abandoned, self.abandoned = self.abandoned, int(facts["abandoned"])
        if self.abandoned != abandoned:
            return Abandoned(self.abandoned)
        numbers, self.numbers = self.numbers, facts.get("numbers") or {}
        return Reported(self.numbers) if self.numbers != numbers else None
