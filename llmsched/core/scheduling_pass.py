"""What the stages of one pass share: the world as the pass thinks of it, its plan, and by whose taste it decides.

Knows no stage and no rule.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from llmsched.core.decisions import Launch
from llmsched.core.explain import Reason
from llmsched.core.fair import Shares, mode_of
from llmsched.core.message import Message, say
from llmsched.core.plan import Plan
from llmsched.core.policy import Policies
from llmsched.core.records import GangState
from llmsched.core.shapes import Key, Shape
from llmsched.core.trial import Afterwards, Trial
from llmsched.core.turns import has_turned
from llmsched.core.views import View
from llmsched.core.workload import Placement

_UNKNOWN = object()
UNREAD = Reason("nodes", say("nodes.unfit"))

Planned = tuple[float, Message]  # when somebody starts, and whose end that is


class Pass:
    """One pass over the state of a trial. `plan` is where its decisions and times to be asked again go."""

    def __init__(self, trial: Trial, policies: Policies, plan: Plan | None = None) -> None:
        self.trial = trial
        self.state = trial.state
        self.policies = policies
        self.plan = Plan(trial.now) if plan is None else plan
        self.view = View(trial.state)
        self.keys: dict[str, Key] = {}  # of gangs by which somebody was put in order
        self.told: dict[Shape, Reason | None] = {}  # why classes wait, as this pass has found so far;
        self.unread: dict[Shape, Planned | None] = {}  # of these it is worked out when somebody reads it
        self.told_alone: dict[str, Reason | None] = {}  # why a gang waits for a reason of its own
        self.owed: dict[str, float] = {}  # who is owed a start, and for how long it then runs at least: stages/owe.py
        self.owed_later: dict[
            str, None
        ] = {}  # those of them that wait for the end of others: nobody makes way for them
        self.exchanged: dict[tuple[str, str], None] = {}  # (who starts, in whose place): a pair does so once
        self._begin()
        self._later: Later | None = None
        self._shares: object = _UNKNOWN

    def _begin(self) -> None:
        """Policies prepare for this pass, when they are first asked."""
        self.policies.begin(self.view)

    def reason_of(self, shape: Shape) -> Reason | None:
        """Of whom no more is known than that it finds no room: UNREAD."""
        if shape in self.told:
            return self.told[shape]
        return UNREAD if shape.is_unread or shape in self.unread else shape.reason

    def own_reason_of(self, gang: GangState) -> Reason | None:
        """None: it waits for what its class waits for."""
        if gang.id in self.told_alone or gang.shape is None or not self._is_told(gang.shape):
            return self.told_alone.get(gang.id, gang.own_reason)
        return None

    def _is_told(self, shape: Shape) -> bool:
        """Whether this pass has found why all of a class wait: what one of it was told before is so no more."""
        return shape in self.unread or self.told.get(shape) is not None

    def tell(self, shape: Shape, reason: Reason | None) -> None:
        """Why all of a class wait; None: what was told of it is not so any more."""
        self.told[shape] = reason
        self.unread.pop(shape, None)

    def tell_alone(self, gang: GangState, reason: Reason | None) -> None:
        """Why a gang waits, whatever is told of its class; None: for what its class waits for."""
        self.told_alone[gang.id] = reason

    def tell_who_ask(self, shapes: Sequence[Shape], planned: Mapping[Shape, Planned]) -> None:
        """All of these classes wait for room; how much of it there is may be counted when somebody reads it. `planned`:
        when somebody of a class starts."""
        asked: dict[Shape, Planned | None] = dict.fromkeys(shapes)
        asked.update((shape, start) for shape, start in planned.items() if shape in asked)
        self.unread.update(asked)
        for shape in [shape for shape in self.told if shape in self.unread]:
            del self.told[shape]

    def write_reasons(self, ask: Callable[[Shape], Reason]) -> None:
        """The only place where a pass changes what people read: at its end."""
        gangs = self.state.gangs
        for shape in (*self.told, *self.unread):
            for name in [*shape.told_alone] if shape.told_alone and self._is_told(shape) else ():
                if (gang := gangs.get(name)) is not None and gang.shape is shape:
                    gang.own_reason = None
                del shape.told_alone[name]
        for shape, reason in self.told.items():
            shape.reason = reason
        for shape, planned in self.unread.items():
            if planned is None:
                shape.answer_with(ask, self.policies)
            else:
                shape.answer_with(partial(_with_start, ask, planned))
        for name, reason in self.told_alone.items():
            gangs[name].own_reason = reason
            if reason is not None and (of := gangs[name].shape) is not None:
                of.told_alone[name] = None

    def exchanged_with(self, gang: GangState) -> list[str]:
        """Those that may not be evicted for it, nor it for them, as they have exchanged a place: see exchanges.py."""
        state = self.state
        return [
            name
            for name, made in state.exchanges.of(gang.id).items()
            if made.by_rank or not has_turned(state.configuration, made.at, state.now)
        ]

    def launch(self, gang: GangState, placement: Placement, why: Message) -> None:
        _ = self.shares  # as they stand before anybody starts
        self.trial.hold(gang, placement)
        self.trial.begun[gang.id] = placement
        self.plan.decisions.append(Launch(gang.id, gang.attempt + 1, placement, why, self.owed_s(gang)))

    def has_held(self, gang: GangState, seconds: float, basis: Message | None = None) -> bool:
        """Whether it has held what it does, unchanged, for so long; if not, the plan asks again when it has."""
        if not gang.is_holding() or gang.launched_at is None:
            return seconds <= 0
        return self.plan.has_come(max(gang.launched_at, gang.resized_at or 0.0) + seconds, basis)

    def owed_s(self, gang: GangState) -> float:
        """For how long it runs at least when it starts, by the lane."""
        return self.owed.get(gang.id, gang.owed_s)

    def let_go_of_quota(self) -> None:
        """Idle quota is not kept for its owners any more: they are asked again."""
        if self.trial.let_go_of_quota():
            self._later = None

    @property
    def shares(self) -> Shares | None:
        """What queues are compared by, where shares count. As they stood when first asked for."""
        if self._shares is _UNKNOWN:
            mode = mode_of(self.state, self.policies.ordering.across)
            self._shares = Shares.of(self.state, mode) if mode else None
        return self._shares  # type: ignore[return-value]

    def later(self) -> Later:
        """The same pass in the world as it will be when everybody who is on the way out has gone. Never inside a mark
        of its trial."""
        trial = self.trial.afterwards()
        if self._later is None:
            self._later = Later(self, trial)
        return self._later


def _with_start(ask: Callable[[Shape], Reason], planned: Planned, shape: Shape) -> Reason:
    reason = ask(shape)
    if reason.eta is not None and reason.eta < planned[0]:
        return reason
    return reason._replace(eta=planned[0], eta_basis=planned[1])


class There(Pass):
    """The same pass in another world."""

    def __init__(self, now: Pass, trial: Trial) -> None:
        super().__init__(trial, now.policies, now.plan)
        self._now = now
        self.exchanged = now.exchanged

    def _begin(self) -> None:
        """It is a part of the pass that has begun."""

    @property
    def shares(self) -> Shares | None:
        now = self._now.shares
        return now and replace(now, state=self.state)


class Later(There):
    """See `Pass.later`."""

    trial: Afterwards
