"""How long a run takes, before it is over: what was declared, or what history says, whichever proved right.

Three sources, each with a track record of real / guessed run time of the gangs that succeeded:

    declared  what the submission says
    steps     its number of steps x the seconds a step took in the last runs of that model, at that many GPUs or, before
              anybody ran at that many, at others (GPU-seconds a step)
    runs      the upper quartile of the last runs of that model by that user, at that size

Runs on one flavor tell nothing of another: each flavor has records of its own, and a gang that asks for none goes by
all of them together. Where a model has run on two, their ratio says how much faster one is (`relative_speed`).

A source is as good as its record is narrow (ratio of the ninth to the first decile). The best one is believed. A
declared time is believed until enough runs have shown how far off such times are; measured steps are presumed right
within PRESUMED until their own record says better; runs are only believed once they have a record narrower than SHARP:
a guess that may be far off is worse for ordering than none. Part of what the journal determines: fed by Finished
through `State.apply`, bounded, no clock. Knows no policy.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Sequence
from itertools import accumulate
from math import inf
from typing import NamedTuple

from llmsched.core.amounts import bundle_milli
from llmsched.core.message import ACTOR, Message, Quote, Ref, say
from llmsched.core.records import GangState, speed
from llmsched.core.resources import MILLI
from llmsched.core.workload import Workload

DECLARED, STEPS, RUNS = "declared", "steps", "runs"
EVERY = "every"  # seconds, not ratios: what the last runs took, whoever's
RUNS_KEPT = 32  # of one kind
KINDS_KEPT = 4096  # kinds of runs; the one unused for longest goes
RATIOS_KEPT = 128  # of one source
ENOUGH = 3  # runs before a record says anything
PRESUMED = 2.0
SHARP = 1.5
UPPER = 0.75  # quantile of the last runs that is taken for the next
BEYOND = 0.25  # who outlives every run of the record is taken to need that part of its time so far again


class Sample:
    """The last few numbers, in order of size as well."""

    __slots__ = ("_by_age", "_sums", "sorted")

    def __init__(self, kept: int) -> None:
        self._by_age: deque[float] = deque(maxlen=kept)
        self.sorted: list[float] = []
        self._sums: list[float] | None = None

    def add(self, value: float) -> None:
        if len(self._by_age) == self._by_age.maxlen:
            del self.sorted[bisect_left(self.sorted, self._by_age[0])]
        self._by_age.append(value)
        insort(self.sorted, value)
        self._sums = None

    def __len__(self) -> int:
        return len(self.sorted)

    def quantile(self, part: float) -> float:
        return self.sorted[min(int(part * len(self.sorted)), len(self.sorted) - 1)]

    def mean_from(self, at: int) -> float:
        """Of the values from index `at` on, by size."""
        if self._sums is None:
            self._sums = list(accumulate(reversed(self.sorted)))
        count = len(self.sorted) - at
        return self._sums[count - 1] / count

    def spread(self) -> float | None:
        """Ninth over first decile; None while too little is known."""
        return self.quantile(0.9) / max(self.quantile(0.1), 1e-9) if len(self) >= ENOUGH else None

    def beyond(self, done: float, low: float, high: float) -> tuple[float, float, float]:
        """Of the values above `done`: the quantile `low`, the mean, the quantile `high`. Who outlives them all is taken
        to need a part of its time so far again."""
        values = self.sorted
        at = bisect_right(values, done)
        last = len(values) - 1
        if at > last:
            return done, done * (1.0 + BEYOND), done * (1.0 + BEYOND)
        count = last + 1 - at
        least, most = at + int(low * count), at + int(high * count)
        return values[least if least < last else last], self.mean_from(at), values[most if most < last else last]

    def parts(self) -> tuple[float, ...]:
        return tuple(self._by_age)


CERTAIN = Sample(1)  # what a guess is taken for while its record is short
CERTAIN.add(1.0)


class Guess(NamedTuple):
    """`seconds` in all at min_size. `sample` x `unit`: what like runs took. `basis` is for people."""

    seconds: float
    source: str
    sample: Sample = CERTAIN
    unit: float = 1.0
    basis: Message | None = None


class Outlook(NamedTuple):
    """Of one gang, in seconds at min_size: the least its whole run may take, what is probably left, what may be."""

    least_s: float
    left_s: float
    most_left_s: float


class History:
    """What the runs that succeeded took."""

    def __init__(self) -> None:
        self.records = {source: Sample(RATIOS_KEPT) for source in (DECLARED, STEPS, RUNS, EVERY)}
        self.kinds: dict[tuple[object, ...], Sample] = {}

    def learn(self, spec: Workload, seconds: float, flavor: str | None = None, here_s: float | None = None) -> None:
        """A run took `seconds` of work at min_size on its first option: `here_s` on `flavor`, where it ran."""
        if seconds <= 0.0:
            return
        self.records[EVERY].add(seconds)
        for guess in (self._declared(spec), self._by_steps(spec), self._by_runs(spec)):
            if guess is not None and not spec.is_elastic():
                self.records[guess.source].add(seconds / guess.seconds)
        if not spec.model:
            return
        gpus, here = _gpus(spec), seconds if here_s is None else here_s
        anywhere = () if flavor is None or _flavor(spec) is not None else (None,)  # for those who ask for no flavor
        for where in (flavor, *anywhere):
            self.sample(spec.user, spec.model, gpus, where).add(here)
            if spec.steps:
                self.sample(spec.model, gpus, where).add(here / spec.steps)
                self.sample(spec.model, where).add(here * gpus / spec.steps)

    def speed(self, spec: Workload, size: int, option: int) -> float:
        """Progress per second at `size` on an option, relative to min_size on the first one."""
        flavor = spec.groups[0].option(option).flavor
        return speed(spec, size, option) * self.relative_speed(spec, option, flavor)

    def speeds(self, spec: Workload, size: int) -> list[float] | None:
        """The same with each option, where all say so or the model has run on all of their flavors; None: nobody knows,
        and its user's order of preference counts."""
        options = spec.groups[0].options
        if not all(option.speedup for option in options):
            first = options[0].flavor
            others = [option.flavor for option in options if option.flavor != first]
            if not others or not spec.model or any(option.speedup for option in options):
                return None
            if not all(self._ratios(spec, flavor) for flavor in others):
                return None
        return [self.speed(spec, size, number) for number in range(len(options))]

    def fastest_first(self, spec: Workload, size: int, count: int) -> Sequence[int]:
        """The first `count` options in the order in which they are tried; as its user has them where nobody knows."""
        speeds = self.speeds(spec, size) if len(spec.groups[0].options) > 1 else None
        if speeds is None:
            return range(count)
        speeds += speeds[-1:] * (count - len(speeds))
        able = [option for option in range(count) if speeds[option] > 0]
        return sorted(able or range(count), key=lambda option: -speeds[option])

    def faster(self, spec: Workload, size: int, here: int, pace: float) -> tuple[tuple[float, int], ...]:
        """(speed, option) of the options of another flavor than that of `here` on which it is known to be faster than
        `pace`, the fastest first."""
        options = spec.groups[0].options
        if len(options) == 1:
            return ()
        found = []
        for number, option in enumerate(options):
            known = option.speedup or option.flavor == options[0].flavor or self._ratios(spec, option.flavor)
            if option.flavor != options[here].flavor and known:
                speed = self.speed(spec, size, number)
                if speed > pace:
                    found.append((speed, number))
        return tuple(sorted(found, key=lambda row: (-row[0], row[1])))

    def relative_speed(self, spec: Workload, option: int, flavor: str | None) -> float:
        """What an option does not say itself: how much faster the model's last runs were on `flavor` than on that of
        the first option. 1 where one of them is unknown."""
        first = spec.groups[0]
        if flavor == first.options[0].flavor or first.option(option).speedup or not spec.model:
            return 1.0
        return next(iter(self._ratios(spec, flavor)), 1.0)

    def _ratios(self, spec: Workload, flavor: str | None) -> list[float]:
        """How much faster the model was on `flavor` than on that of the first option; the most telling kind of run
        first, empty where nothing is known."""
        gpus, first = _gpus(spec), spec.groups[0].options[0].flavor
        found = []
        for kind in ((spec.model, gpus), (spec.model,), (spec.user, spec.model, gpus)):
            known, here = self.kinds.get((*kind, first)), self.kinds.get((*kind, flavor))
            if spec.model and known is not None and here is not None:
                found.append(known.quantile(0.5) / here.quantile(0.5))
        return found

    def guess(self, spec: Workload) -> Guess | None:
        """The best source's; None when there is none to be believed."""
        declared = self._declared(spec)
        if not spec.model:
            return declared
        best, narrowest = declared, inf if declared is None else self.records[DECLARED].spread() or 1.0
        for guess, presumed, limit in ((self._by_steps(spec), PRESUMED, inf), (self._by_runs(spec), inf, SHARP)):
            if guess is not None:
                spread = guess.sample.spread() or self.records[guess.source].spread() or presumed
                if spread < min(narrowest, limit):
                    best, narrowest = guess, spread
        return best

    @property
    def longest_s(self) -> float | None:
        """Of the last runs; None while too few have ended to say anything."""
        every = self.records[EVERY]
        return every.sorted[-1] if len(every) >= ENOUGH else None

    def plan(self, spec: Workload) -> Guess | None:
        """What planned starts go by when nothing was declared: any history is better than none."""
        return self._declared(spec) or self._by_steps(spec) or self._by_runs(spec)

    def of_declared(self, seconds: float, done_s: float, low: float, high: float) -> Outlook:
        """The same of a gang of which nothing is known but that it declares so many seconds."""
        record = self.records[DECLARED]
        like = record if len(record.sorted) >= ENOUGH else CERTAIN
        least, mean, most = like.beyond(done_s / seconds, low, high)
        return Outlook(least * seconds, mean * seconds - done_s, most * seconds - done_s)

    def outlook(self, guess: Guess, done_s: float, low: float, high: float) -> Outlook:
        like, unit = guess.sample, guess.unit
        if len(like) < ENOUGH:
            record = self.records[guess.source]
            like, unit = record if len(record) >= ENOUGH else CERTAIN, guess.seconds
        least, mean, most = like.beyond(done_s / unit, low, high)
        return Outlook(least * unit, mean * unit - done_s, most * unit - done_s)

    def parts(self) -> list[object]:
        """For the digest."""
        kinds = sorted((repr(kind), sample.parts()) for kind, sample in self.kinds.items())
        return [[record.parts() for record in self.records.values()], kinds]

    def _declared(self, spec: Workload) -> Guess | None:
        return Guess(spec.estimated_runtime_s, DECLARED) if spec.estimated_runtime_s else None

    def _by_steps(self, spec: Workload) -> Guess | None:
        if not spec.steps or not spec.model:
            return None
        gpus = _gpus(spec)
        found, share = self.kinds.get((spec.model, gpus, _flavor(spec))), 1.0
        if found is None:
            found, share = self.kinds.get((spec.model, _flavor(spec))), gpus
        if found is None:
            return None
        basis = say("basis.steps", steps=float(spec.steps), runs=len(found), model=Quote(spec.model))
        unit = spec.steps / share
        return Guess(unit * found.quantile(0.5), STEPS, found, unit, basis)

    def _by_runs(self, spec: Workload) -> Guess | None:
        found = self.kinds.get((spec.user, spec.model, _gpus(spec), _flavor(spec))) if spec.model else None
        if found is None:
            return None
        who = Ref(ACTOR, spec.user)
        basis = say("basis.run", by=who, model=Quote(spec.model))
        if len(found) > 1:
            basis = say("basis.runs", runs=len(found), by=who, model=Quote(spec.model))
        return Guess(found.quantile(UPPER), RUNS, found, 1.0, basis)

    def sample(self, *kind: object) -> Sample:
        """The runs of one kind, which becomes the one used last."""
        found = self.kinds.pop(kind, None) or Sample(RUNS_KEPT)
        self.kinds[kind] = found
        if len(self.kinds) > KINDS_KEPT:
            del self.kinds[next(iter(self.kinds))]
        return found


def alike(gang: GangState) -> tuple[object, ...]:
    """All that is believed of its run time by while it waits, but for what history learns."""
    spec = gang.spec
    told = (spec.model, spec.user, spec.steps, spec.estimated_runtime_s)
    measured = (gang.measured, gang.work_left, gang.basis is not None) if gang.measured or spec.is_elastic() else ()
    done = (gang.served_s, gang.served_gpu_s, gang.worked_s, gang.progress_at, gang.relative_speed, gang.option)
    return (*told, *measured, *(done if gang.attempt else ()))


def _flavor(spec: Workload) -> str | None:
    """What its run times are told for."""
    return spec.groups[0].options[0].flavor


def _gpus(spec: Workload) -> float:
    """GPUs of the first group at min_size, at least a fraction of one so that it can be divided by."""
    return max(spec.min_size * bundle_milli(spec, 0), 1) / MILLI
