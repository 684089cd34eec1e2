"""The policies as stages ask them: shown views alone, their answers checked before anybody goes by them.

An answer that is none (an exception, the wrong type, no number, a negative cost) is replaced by the one that says
nothing, and told: `Plan.troubles`, and from there the health of the controller. So a faulty policy can be unfair, and
nothing worse: it cannot end a pass, and what it does not see it cannot change.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from math import inf, isfinite
from numbers import Real
from operator import index
from typing import Any, ClassVar, NamedTuple, Self

from llmsched.core.capacity import NodeState
from llmsched.core.records import GangState, WorkloadState
from llmsched.core.resources import Resources
from llmsched.core.views import GangView, NodeView, View, WorkloadView
from llmsched.errors import SpecError

LAST = (inf,)  # the key of a gang for which there is none: after all others
_PLAIN = (int, float, bool)


class Trouble(NamedTuple):
    """A wrong answer of a policy. `details` may name anybody's work: they are for the log."""

    what: str
    details: str


class Checked:
    """One policy. `method` is what it must have."""

    family: ClassVar[str]
    method: ClassVar[str]

    def __init__(self, policy: Any) -> None:
        self.policy = policy
        self.name = type(policy).__name__
        self.trouble: Trouble | None = None  # the first wrong answer of the last pass that asked anything
        self._view: View | None = None  # of a pass that has asked nothing yet
        if not callable(getattr(policy, self.method, None)):
            raise SpecError(
                f"{self.name} is no {self.family} policy: it has no method {self.method}.",
                code="bad_policy",
                where=f"policies.{self.family}",
                hint="llmsched/policies/README.md shows one of each family.",
            )

    @classmethod
    def of(cls, policy: Any) -> Self:
        """Whatever is put in the place of a policy is checked."""
        return policy if isinstance(policy, cls) else cls(policy)

    def begin(self, view: View) -> None:
        """A pass begins."""
        self._view = view

    def _first(self) -> None:
        """Before each question: before the first one of a pass the policy may prepare."""
        if self._view is not None:
            view, self._view = self._view, None
            self.trouble = None
            if hasattr(self.policy, "prepare"):
                self._asked("prepare", self.policy.prepare, view)

    def _asked(self, method: str, ask: Callable[..., Any], *about: object) -> Any:
        """The answer; None when it raised instead."""
        try:
            return ask(*about)
        except Exception as error:
            self._tell(f"{method} raised {type(error).__name__}", str(error))
            return None

    def _tell(self, what: str, details: str) -> None:
        if self.trouble is None:
            self.trouble = Trouble(f"{self.family} policy {self.name}: {what}", details[:200])

    def _tell_answer(self, found: object, expected: str) -> None:
        self._tell(f"{self.method} answered a {type(found).__name__}, expected {expected}", repr(found))

    def _attribute(self, name: str, default: Any, allowed: Callable[[Any], bool], expected: str) -> Any:
        value = getattr(self.policy, name, default)
        if not allowed(value):
            raise SpecError(
                f"{self.name}.{name} is {value!r}, expected {expected}.",
                code="bad_policy",
                where=f"policies.{self.family}",
            )
        return value


class Ordering(Checked):
    family, method = "ordering", "key"

    def __init__(self, policy: Any) -> None:
        super().__init__(policy)
        self.static: bool = self._attribute("static", False, lambda value: isinstance(value, bool), "true or false")
        self.by_priority: bool = self._attribute(
            "by_priority", False, lambda value: isinstance(value, bool), "true or false"
        )
        self.across: str | None = getattr(policy, "across", None)
        self.has_index = not self.static and callable(getattr(policy, "index", None))

    def index(self) -> Index:
        return Index(self)

    def answers_of_index(self, wrong: tuple[str, str] | None) -> None:
        """Its index is asked: what is wrong with that is told as of the policy."""
        if self._view is not None:
            self._first()
        if wrong is not None:
            self._tell(*wrong)

    def key(self, gang: GangState, view: View) -> tuple[Any, ...]:
        """Numbers. Who has no key goes last."""
        if self._view is not None:
            self._first()
        try:
            found = self.policy.key(GangView(gang), view)
        except Exception as error:
            self._tell(f"key raised {type(error).__name__}", str(error))
            return LAST
        if type(found) is tuple:
            for part in found:
                if type(part) not in _PLAIN and not isinstance(part, Real) or part != part:
                    break
            else:
                return found
        self._tell_answer(found, "a tuple of numbers")
        return LAST


class Index:
    """The order of one class, as an ordering policy keeps it. When it is none, everybody is asked for a key."""

    def __init__(self, ordering: Ordering) -> None:
        self._ordering = ordering
        self._index: Any = None
        self._wrong: tuple[str, str] | None = None  # why it is not used any more
        self._guarded("index", lambda: setattr(self, "_index", ordering.policy.index()))
        self._bound: Callable[[float], object] | None = getattr(self._index, "bound", None)

    def _guarded(self, what: str, step: Callable[[], object]) -> None:
        try:
            step()
        except Exception as error:
            self._give_up(what, error)

    def _give_up(self, what: str, error: Exception) -> None:
        self._index = self._bound = None
        self._wrong = f"{what} of its index raised {type(error).__name__}", str(error)

    def put(self, gang: GangState) -> None:
        if self._index is not None:
            self._guarded("put", lambda: self._index.put(GangView(gang)))

    def drop(self, gang: GangState) -> None:
        if self._index is not None:
            self._guarded("drop", lambda: self._index.drop(gang.id))

    def bound(self, now: float) -> tuple[Any, ...]:
        """What the policy's own key of no member is below, where the index knows that without asking for keys; else (),
        which is below everything."""
        if self._bound is None:
            return ()
        if self._ordering._view is not None:
            self._ordering._first()
        try:
            found = self._bound(now)
        except Exception as error:
            self._give_up("bound", error)
            return ()
        if type(found) is tuple:
            for part in found:
                if type(part) not in _PLAIN or part != part:
                    break
            else:
                return found
        self._give_up("bound", TypeError(f"{found!r:.100} is no tuple of numbers"))
        return ()

    def first(
        self, members: Collection[tuple[object, str]], now: float, key: Callable[[str], tuple[Any, ...]]
    ) -> Iterator[tuple[tuple[Any, ...], str]]:
        """(key, gang) of all members, best first."""
        given: set[str] = set()
        self._ordering.answers_of_index(self._wrong)
        if self._index is not None:
            try:
                for _, name in self._index.first(now, key):
                    if name in given:
                        raise ValueError(f"{name} is there twice")
                    found = key(name)  # raises for a stranger
                    given.add(name)
                    yield found, name
            except Exception as error:
                self._give_up("first", error)
                self._ordering.answers_of_index(self._wrong)
        if len(given) < len(members):
            yield from sorted((key(name), name) for _, name in members if name not in given)


class Placing(Checked):
    family, method = "placement", "score"

    def __init__(self, policy: Any) -> None:
        super().__init__(policy)
        self.walk: int = self._attribute("walk", 0, lambda value: value in (-1, 0, 1), "-1, 0 or 1")
        self.alike: bool = self._attribute("alike", False, lambda value: isinstance(value, bool), "true or false")

    def score(self, bundle: Resources, node: NodeState, view: View) -> int:
        """A node without a score is as good as any that has 0."""
        if self._view is not None:
            self._first()
        found = self._asked("score", self.policy.score, bundle, NodeView(node), view)
        if (score := _whole(found)) is None:
            self._tell_answer(found, "a whole number")
            return 0
        return score


class Preemption(Checked):
    family, method = "preemption", "cost"
    forbids = False  # whether it has in this pass: when it will not any more is known to nobody

    def __init__(self, policy: Any) -> None:
        super().__init__(policy)
        self.by_victim: bool = self._attribute(
            "by_victim", False, lambda value: isinstance(value, bool), "true or false"
        )  # fmt: skip
        self._known: dict[str, int | None] = {}  # the costs of this pass, where one is the same for all who ask

    def begin(self, view: View) -> None:
        super().begin(view)
        self.forbids = False
        self._known.clear()

    def cost(self, victim: GangState, beneficiary: GangState, view: View) -> int | None:
        """Nobody is evicted for want of a cost."""
        if not self.by_victim:
            return self._cost(victim, beneficiary, view)
        if victim.id not in self._known:
            self._known[victim.id] = self._cost(victim, beneficiary, view)
        return self._known[victim.id]

    def _cost(self, victim: GangState, beneficiary: GangState, view: View) -> int | None:
        if self._view is not None:
            self._first()
        found = self._asked("cost", self.policy.cost, GangView(victim), GangView(beneficiary), view)
        cost = None if found is None else _whole(found)
        if cost is not None and cost >= 0:
            return cost
        self.forbids = True
        if found is not None:
            self._tell_answer(found, "a whole number of at least 0, or None")
        return None


class Elasticity(Checked):
    family, method = "elasticity", "share"

    def __init__(self, policy: Any) -> None:
        super().__init__(policy)
        self.period_s: float = self._attribute(
            "period_s", 0.0, lambda value: isinstance(value, (int, float)) and 0 <= value < inf, "seconds"
        )

    def share(self, gangs: Sequence[GangState], capacity: float, view: View) -> dict[str, int]:
        """Of those that were asked about; who is left out keeps what the stage gives without a policy."""
        self._first()
        found = self._asked("share", self.policy.share, tuple(GangView(gang) for gang in gangs), capacity, view)
        sizes: dict[str, int] = {}
        try:
            rows = [*found.items()]
        except Exception:
            self._tell_answer(found, "a size for each gang, by its id")
            return sizes
        known = {gang.id for gang in gangs}
        for name, size in rows:
            whole = _whole(size)
            if name not in known or whole is None or whole < 0:
                self._tell_answer({name: size}, "a size of at least 0 for each gang, by its id")
            else:
                sizes[name] = whole
        return sizes

    def weighs(self) -> bool:
        """Whether it says how many replicas are worth it."""
        return callable(getattr(self.policy, "replicas", None))

    def replicas(
        self, serve: WorkloadState, low: int, asked: int, gangs: Sequence[GangState], capacity: int, view: View
    ) -> tuple[int, str]:
        """(replicas, the gang that makes most of the rest, or ""). Without an answer it has all that it asks for."""
        self._first()
        shown = tuple(GangView(gang) for gang in gangs)
        found = self._asked(
            "replicas", self.policy.replicas, WorkloadView(serve), low, asked, shown, capacity, view
        )  # fmt: skip
        if isinstance(found, tuple) and len(found) == 2 and found[1] in {"", *(gang.id for gang in gangs)}:
            count = _whole(found[0])
            if count is not None and low <= count <= asked:
                return count, found[1]
        if found is not None:
            self._tell(
                f"replicas answered {found!r:.100}", f"expected ({low} to {asked}, a gang that was shown, or '')"
            )
        return asked, ""


class Autoscaling(Checked):
    family, method = "autoscaling", "wanted"

    def wanted(self, serve: WorkloadState, memory: str, view: View) -> tuple[int, str]:
        """Without an answer there are as many as there were."""
        self._first()
        found = self._asked("wanted", self.policy.wanted, WorkloadView(serve), memory, view)
        if isinstance(found, tuple) and len(found) == 2 and isinstance(found[1], str):
            replicas = _whole(found[0])
            if replicas is not None and replicas >= 0:
                return replicas, found[1]
        self._tell_answer(found, "(replicas, text)")
        return serve.wanted_replicas, memory

    def ask_again(self, serve: WorkloadState, memory: str, view: View) -> float | None:
        """When to ask it again about this endpoint though nothing is said; None: only when something is. Who does not
        say is asked once a second while it has something in memory."""
        often = view.now + ASK_AGAIN_S
        if not hasattr(self.policy, "ask_again"):
            return often if memory else None
        found = self._asked("ask_again", self.policy.ask_again, WorkloadView(serve), memory, view)
        if found is None:
            return None
        if isinstance(found, int | float) and not isinstance(found, bool) and isfinite(found):
            return max(float(found), often)
        self._tell_answer(found, "a stamp in seconds, or None")
        return often


ASK_AGAIN_S = 1.0


def _whole(value: Any) -> int | None:
    if type(value) is int:
        return value
    try:
        return None if isinstance(value, bool) else index(value)
    except TypeError:
        return None
