"""How slow an endpoint answers at which load of a replica, as measured, and how much load its target allows.

One `Curve` for each model and flavor: levels of load (requests in flight at one replica, in the mean of a while) with
the latencies measured there. What was measured lately counts more. Between levels latency is taken to be straight, and
never to fall with the load: means by pool-adjacent-violators (Ayer et al. 1955), as isotonic regression is done. Beyond
what was measured nothing is believed but a step further. Part of what the journal determines: fed by LoadObserved
through `State.apply`, bounded, no clock. Knows no policy. Start reading at `most_load`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import log2
from typing import NamedTuple

from llmsched.core.workload import Slo

PER_OCTAVE = 4  # levels for each doubling of the load
LEAST_LOAD, MOST_LOAD = 0.05, 1e5
LEVELS_KEPT = 32
CURVES_KEPT = 8  # of one endpoint: models one after the other, and flavors
NEWEST_COUNTS = 0.3  # the part of a level that its newest measurement makes, once there are a few
FORGOTTEN_S = 3 * 86_400.0  # a level that was not measured again for that long
ALONE = 1.0  # a replica with that load, or less, answers one request after the other
SURE = 3  # measurements that are too slow before it is said that nothing helps: one may have met a cold start
AIM = 0.9  # of a target: at the target itself every second measurement would be over it
FURTHER = 1.25  # how many times the highest load that was measured may be tried

TTFT, TPOT, WHOLE = "ttft_p95", "tpot_p95", "latency_p95"


class Latency(NamedTuple):
    """One measurement: `requests` that the replicas of one model and flavor ended in a while in which each had `load`
    in flight. Percentiles of it, in seconds; None where no request told."""

    model: str  # its source, or what was published in its place
    flavor: str  # "": without one
    load: float
    requests: int
    mean_s: float  # of whole answers
    ttft_p95_s: float | None = None
    tpot_p95_s: float | None = None
    latency_p95_s: float | None = None


class Level(NamedTuple):
    """Means of what was measured around one load; `times`: how many measurements. `at`: of the newest."""

    load: float
    times: int
    at: float
    mean_s: float
    ttft_p95_s: float | None = None
    tpot_p95_s: float | None = None
    latency_p95_s: float | None = None


class Curve(NamedTuple):
    """Levels by ascending load."""

    model: str
    flavor: str
    levels: tuple[Level, ...] = ()


class Reach(NamedTuple):
    """What a target allows. `load`: the most at one replica, 0.0 where none is low enough; None: nothing was measured.
    `name`, `target_s`: of the target that binds. `seconds`: what was measured at `at_load`, the nearest load below, or
    the lowest of all."""

    load: float | None
    name: str = ""
    target_s: float = 0.0
    seconds: float = 0.0
    at_load: float = 0.0


def targets(slo: Slo) -> list[tuple[str, float]]:
    """(name, seconds) of those that are set."""
    return [(name, seconds) for name, seconds in zip((TTFT, TPOT, WHOLE), slo, strict=True) if seconds is not None]


def learnt(curves: tuple[Curve, ...], found: Latency, at: float) -> tuple[Curve, ...]:
    """The curves of one endpoint with one measurement more; the curve that it belongs to is last."""
    if not (LEAST_LOAD <= found.load <= MOST_LOAD) or found.requests < 1:
        return curves
    about = found.model, found.flavor
    same = next((curve for curve in curves if curve[:2] == about), Curve(*about))
    levels = {_place(level.load): level for level in same.levels if level.at > at - FORGOTTEN_S}
    place = _place(found.load)
    levels[place] = _merged(levels.get(place), found, at)
    if len(levels) > LEVELS_KEPT:
        del levels[min(levels, key=lambda key: levels[key].at)]
    curve = same._replace(levels=tuple(levels[key] for key in sorted(levels)))
    return (*(c for c in curves if c is not same), curve)[-CURVES_KEPT:]


def newest(curves: Sequence[Curve], flavor: str) -> Curve | None:
    """That of the model that answered last there: a new model is taken to be like the one before until it has."""
    return next((curve for curve in reversed(curves) if curve.flavor == flavor), None)


def most_load(curve: Curve | None, slo: Slo, presumed: float) -> Reach:
    """The most load of a replica at which every target holds with a tenth to spare. Where all that was measured holds,
    the next step beyond, or `presumed` where that is more and the line through what was measured allows it. A target
    that one request alone misses counts as not measured until SURE measurements say so."""
    found = Reach(None)
    for name, target_s in targets(slo):
        points = fitted(curve.levels if curve is not None else (), name)
        if not points:
            continue
        reach = _reach(points, name, target_s, presumed)
        if not reach.load and _times_alone(curve, name) < SURE:
            continue
        if found.load is None or (reach.load is not None and reach.load < found.load):
            found = reach
    return found


def _times_alone(curve: Curve | None, name: str) -> int:
    levels = curve.levels if curve is not None else ()
    return sum(level.times for level in levels if level.load <= ALONE and _of(level, name) is not None)


def mean_s(curve: Curve | None, load: float) -> float | None:
    """Seconds that an answer takes in the mean at a load; as at the nearest level beyond what was measured."""
    points = fitted(curve.levels if curve is not None else (), "mean")
    if not points:
        return None
    if load <= points[0][0]:
        return points[0][1]
    for (low, fast), (high, slow) in zip(points, points[1:], strict=False):
        if load <= high:
            return fast + (slow - fast) * (load - low) / (high - low)
    return points[-1][1]


def within(curve: Curve | None, slo: Slo) -> Callable[[float], float] | None:
    """Share of requests that hold every target, by the load of a replica, where latencies are spread as an exponential
    distribution with the measured 95th percentile is: 0.95 at the target itself. Never rises with the load. None: not
    measured."""
    found = ((fitted(curve.levels if curve is not None else (), name), target_s) for name, target_s in targets(slo))
    known = [(points, target_s) for points, target_s in found if points]
    if not known:
        return None
    return lambda load: min(1.0 - 0.05 ** (target_s / max(_seconds(points, load), 1e-9)) for points, target_s in known)


def fitted(levels: Sequence[Level], name: str) -> list[tuple[float, float]]:
    """(load, seconds) of the levels where it was measured, never falling: neighbours that fall become their mean."""
    blocks: list[tuple[float, float, list[float]]] = []  # seconds, weight, loads
    for level in levels:
        seconds = level.mean_s if name == "mean" else _of(level, name)
        if seconds is None:
            continue
        weight, loads = float(level.times), [level.load]
        while blocks and blocks[-1][0] >= seconds:
            other, more, before = blocks.pop()
            seconds = (seconds * weight + other * more) / (weight + more)
            weight, loads = weight + more, [*before, *loads]
        blocks.append((seconds, weight, loads))
    return [(load, seconds) for seconds, _, loads in blocks for load in loads]


def _reach(points: list[tuple[float, float]], name: str, target_s: float, presumed: float) -> Reach:
    (lowest, fastest), (highest, slowest) = points[0], points[-1]
    aim_s = max(AIM * target_s, min(fastest, target_s))
    if fastest > aim_s:
        less = lowest / 2 if lowest > ALONE else 0.0  # with so few in flight fewer would change nothing
        return Reach(less, name, target_s, fastest, lowest)
    low, fast = lowest, fastest
    for high, slow in points[1:]:
        if slow > aim_s:
            return Reach(low + (high - low) * (aim_s - fast) / (slow - fast), name, target_s, fast, low)
        low, fast = high, slow
    further = highest + (aim_s - slowest) / _slope(points)
    return Reach(min(further, max(FURTHER * highest, presumed)), name, target_s, slowest, highest)


def _slope(points: list[tuple[float, float]]) -> float:
    """Seconds for each request more than were measured: nothing stays as fast for ever."""
    (lowest, fastest), (highest, slowest) = points[0], points[-1]
    slope = (slowest - fastest) / (highest - lowest) if highest > lowest else 0.0
    return max(slope, slowest / highest * 0.1)


def _seconds(points: list[tuple[float, float]], load: float) -> float:
    """At a load: straight between what was measured, and beyond."""
    if load <= points[0][0]:
        return points[0][1]
    for (low, fast), (high, slow) in zip(points, points[1:], strict=False):
        if load <= high:
            return fast + (slow - fast) * (load - low) / (high - low)
    return points[-1][1] + (load - points[-1][0]) * _slope(points)


def _merged(level: Level | None, found: Latency, at: float) -> Level:
    told = (found.ttft_p95_s, found.tpot_p95_s, found.latency_p95_s)
    if level is None:
        return Level(round(found.load, 6), 1, at, round(found.mean_s, 6), *map(_short, told))
    part = max(1 / (level.times + 1), NEWEST_COUNTS)
    load = level.load + (found.load - level.load) * part
    mean = level.mean_s + (found.mean_s - level.mean_s) * part
    known = (level.ttft_p95_s, level.tpot_p95_s, level.latency_p95_s)
    rest = (
        new if old is None else old if new is None else old + (new - old) * part
        for old, new in zip(known, told, strict=True)
    )
    return Level(round(load, 6), min(level.times + 1, 1000), at, round(mean, 6), *map(_short, rest))


def _place(load: float) -> int:
    return round(PER_OCTAVE * log2(load))


def _of(level: Level, name: str) -> float | None:
    return {TTFT: level.ttft_p95_s, TPOT: level.tpot_p95_s, WHOLE: level.latency_p95_s}[name]


def _short(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)
