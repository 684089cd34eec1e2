"""Endpoints of a simulation: requests come at the rate of a file, and replicas, which are gangs, answer them.

A replica answers `max_ongoing_requests` at a time, each for `service` seconds (`6s..9s`: for 6 s if it is alone, for
9 s where all places are taken); who finds no place waits in line, as at the gateway. What the autoscaler is told is
what the gateway would count and measure. Knows no policy; the simulator says how many replicas answer, and gets the
load. Start reading at `Server.until`.
"""

from __future__ import annotations

import csv
import math
import random
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from llmsched.core.facts import LoadObserved
from llmsched.core.latency import Latency
from llmsched.core.resources import MILLI, Resources
from llmsched.core.workload import Group, Option, Workload
from llmsched.errors import SpecError
from llmsched.policies.autoscaling.lookback import Lookback, is_steady
from llmsched.sim.traces.job import Job
from llmsched.spec.compile import compile_workload
from llmsched.spec.load import load
from llmsched.spec.quantities import parse_duration
from llmsched.spec.serve import ServeSpec

LOOK_S = 10.0  # between two reports of the load; live it is one or two, and the delays of a policy are longer
STEP_S = 1.0  # of the arithmetic
WHERE = "--endpoint"
HINT = "For example --endpoint chat.yaml=day.csv,service=6s,start=40s,patience=10s,past=days_before.csv"
MEASURED_S = 30.0  # between two measurements of latency, as at the gateway
WINDOW_S = 300.0  # in which a target is held or missed


@dataclass(frozen=True, slots=True)
class Endpoint:
    """`curve` is (seconds, requests a second from then on); `past` the same of the time before, which the scheduler has
    seen. A request holds a place for `service_s`, where it is alone, up to `full_s`, where all places are taken; one
    that waited for more than `patience_s` counts as late. A replica answers `start_s` after it was given its GPU."""

    workload: Workload
    curve: tuple[tuple[float, float], ...]
    places: int
    service_s: float
    full_s: float
    start_s: float
    patience_s: float
    past: tuple[tuple[float, float], ...] = ()

    @property
    def ends_s(self) -> float:
        """One step after the last that the file says."""
        return _end(self.curve)

    def told_before(self) -> Iterator[LoadObserved]:
        """What the scheduler has seen of the past, which ends where the curve begins."""
        ended = _end(self.past) if self.past else 0.0
        for at, rate in self.past:
            yield LoadObserved(at - ended, self.workload.id, round(rate * self.service_s, 1))


def parse(text: str) -> Endpoint:
    """`SPEC.yaml=RATE.csv,service=6s,start=40s,patience=10s,past=RATE.csv`. Raises SpecError."""
    spec_file, equals, rest = text.partition("=")
    rate_file, *words = rest.split(",")
    known: dict[str, float] = {"service": 0.0, "start": 30.0, "patience": 10.0}
    full_s, past_file = 0.0, ""
    for word in words:
        name, _, value = word.partition("=")
        if name == "past":
            past_file = value
            continue
        if name not in known:
            raise SpecError(f'"{name}" is not known; expected {", ".join(known)}, past.', where=WHERE, hint=HINT)
        alone, _, full = value.partition("..") if name == "service" else (value, "", "")
        try:
            known[name] = parse_duration(alone)
            full_s = parse_duration(full) if full else full_s
        except ValueError as error:
            raise SpecError(f"{name}: {error}", where=WHERE, hint=HINT) from None
    service_s = known["service"]
    if 0 < full_s < service_s:
        raise SpecError("service: a full replica is no faster than one with one request.", where=WHERE, hint=HINT)
    if not equals or not rate_file or not service_s:
        raise SpecError("needs a spec, a file of rates, and service, above 0.", where=WHERE, hint=HINT)
    spec = _spec(Path(spec_file))
    workload = compile_workload(spec)
    flavors = [option.flavor for option in workload.groups[0].options]
    if {option.resources.gpus_milli for option in workload.groups[0].options} != {MILLI}:
        raise SpecError("a simulated replica has one whole GPU.", where=spec_file, hint='accelerators: "A100:1"')
    one = tuple(Option(flavor, Resources(gpus_milli=MILLI)) for flavor in flavors)
    workload = replace(workload, groups=(Group("workers", 1, one),), user=workload.queue)
    past = _curve(Path(past_file)) if past_file else ()
    times = (service_s, full_s or service_s, known["start"], known["patience"])
    return Endpoint(workload, _curve(Path(rate_file)), spec.max_ongoing_requests, *times, past)


def _end(curve: Sequence[tuple[float, float]]) -> float:
    times = [at for at, _ in curve]
    return times[-1] + (times[-1] - times[-2] if len(times) > 1 else 0.0)


def _spec(file: Path) -> ServeSpec:
    try:
        specs = load(file.read_bytes(), str(file))
    except OSError as error:
        raise SpecError(f"cannot be read: {error.strerror}.", where=str(file)) from None
    serving = [spec for spec in specs if isinstance(spec, ServeSpec)]
    if len(serving) != 1:
        raise SpecError(f"has {len(serving)} specs of kind serve; expected one.", where=str(file))
    return serving[0]


def _curve(file: Path) -> tuple[tuple[float, float], ...]:
    try:
        with file.open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(line for line in stream if not line.startswith("#")))
        curve = tuple((float(row["t_s"]), float(row["rate_rps"])) for row in rows)
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"cannot be read: {error}.", where=str(file)) from None
    except (KeyError, TypeError, ValueError):
        raise SpecError(
            "expected the columns t_s (seconds, ascending) and rate_rps (requests a second), with numbers.",
            where=str(file),
        ) from None
    is_right = all(math.isfinite(at) and math.isfinite(rate) and rate >= 0 for at, rate in curve)
    if not curve or not is_right or any(a[0] >= b[0] for a, b in zip(curve, curve[1:], strict=False)):
        raise SpecError("expected at least one row, times ascending, rates of 0 or more.", where=str(file))
    return curve


class Server:
    """One endpoint as it goes: `replicas` answer now, `waiting` are (when it came, how many)."""

    def __init__(self, endpoint: Endpoint, seed: int) -> None:
        self.endpoint = endpoint
        self.replicas = 0
        self.in_hand = 0.0
        self.waiting: deque[tuple[float, int]] = deque()
        self.queued = 0
        self.look_at = 0.0
        self.requests = self.late = self.missed = 0
        self.waits: dict[float, int] = {}  # whole tenths of a second -> requests
        self.busy_s = 0.0  # seconds of a whole replica, of which the requests in hand are a share
        self.handovers: list[float] = []  # seconds from asking for a replica until it answers
        self.most = 0
        self._at = 0.0
        self._lookback = Lookback(0.0)
        self._ends_s = endpoint.ends_s
        self._began = 0.0  # of what is measured now
        self._area = 0.0
        self._seen = 0.0  # requests in hand when each began, in all
        self._took: dict[float, int] = {}  # whole tenths of a second -> requests
        self.windows = self.missed_windows = 0
        self.changes: list[tuple[float, int]] = []  # when so many answered
        self._window: dict[float, int] = {}
        self._window_ends = WINDOW_S
        self._chance = random.Random(f"{seed}/{endpoint.workload.id}")

    def until(self, now: float) -> None:
        """Let the time pass with as many replicas as answer."""
        while self._at < now:
            step = min(STEP_S, now - self._at)
            self._at += step
            self._pass(step)

    def answering(self, replicas: int, now: float) -> None:
        self.until(now)
        if replicas != self.replicas:
            self._measure_anew()
            self.changes.append((now, replicas))
        self.replicas = replicas
        self.most = max(self.most, replicas)

    def load(self) -> tuple[float, float]:
        """(requests in flight, waiting), as the gateway reports them."""
        return self._lookback.load(self._at), self.queued

    def measured(self) -> tuple[Latency, ...]:
        """Of the last MEASURED_S, once they are over and if nothing came or went meanwhile."""
        lasts, count = self._at - self._began, sum(self._took.values())
        if lasts < MEASURED_S:
            return ()
        found: tuple[Latency, ...] = ()
        if count >= 20 and self.replicas:
            flavor = self.endpoint.workload.groups[0].options[0].flavor or ""
            mean = sum(took * each for took, each in self._took.items()) / count
            load, there = self._area / lasts / self.replicas, self._seen / count / self.replicas
            if is_steady(load, there):
                found = (Latency("", flavor, load, count, mean, latency_p95_s=quantile(self._took, 0.95)),)
        self._measure_anew()
        return found

    def _measure_anew(self) -> None:
        self._began, self._area, self._seen, self._took = self._at, 0.0, 0.0, {}

    def _judge(self) -> None:
        """A window is over: was its 95th percentile within the target?"""
        target_s = self._target_s()
        if self._window and target_s is not None:
            self.windows += 1
            self.missed_windows += (quantile(self._window, 0.95) or 0.0) > target_s
        self._window = {}
        self._window_ends += WINDOW_S

    def _target_s(self) -> float | None:
        slo = self.endpoint.workload.slo
        return slo.latency_p95_s if slo is not None else None

    def _service_s(self) -> float:
        """Of a request that is taken in hand now."""
        end = self.endpoint
        full = self.in_hand / max(self.replicas * end.places, 1.0)
        return end.service_s + (end.full_s - end.service_s) * min(full, 1.0)

    def _pass(self, step: float) -> None:
        end = self.endpoint
        self.in_hand -= min(self.in_hand, self.in_hand * step / self._service_s())
        come = _poisson(self._chance, self._rate() * step)
        if come:
            self.waiting.append((self._at, come))
            self.queued += come
            self.requests += come
        room = int(self.replicas * end.places - self.in_hand)
        while room > 0 and self.waiting:
            came, count = self.waiting[0]
            taken = min(room, count)
            self._begin(self._at - came, taken)
            room -= taken
            if taken == count:
                self.waiting.popleft()
            else:
                self.waiting[0] = (came, count - taken)
        self.busy_s += self.in_hand / end.places * step
        self._area += self.in_hand * step
        if self._at >= self._window_ends:
            self._judge()
        self._lookback.set(self.in_hand, self._at)

    def _begin(self, waited: float, count: int) -> None:
        self.in_hand += count
        self.queued -= count
        self.late += count * (waited > self.endpoint.patience_s)
        key = round(waited, 1)
        self.waits[key] = self.waits.get(key, 0) + count
        self._seen += self.in_hand * count
        alone = round(self._service_s(), 1)  # what is measured begins with a replica's turn, what is judged before it
        took = round(waited + self._service_s(), 1)
        for times, seconds in ((self._took, alone), (self._window, took)):
            times[seconds] = times.get(seconds, 0) + count
        target_s = self._target_s()
        self.missed += count * (target_s is not None and took > target_s)

    def _rate(self) -> float:
        """Of the step of the curve that this moment is in; nothing comes after its end."""
        curve = self.endpoint.curve
        if self._at >= self._ends_s and len(curve) > 1:
            return 0.0
        low, high = 0, len(curve)
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if curve[middle][0] <= self._at else (low, middle)
        return curve[low - 1][1] if low else 0.0

    def close(self) -> None:
        """Who still waits is late by now, or is not judged."""
        for came, count in self.waiting:
            self.late += count * (self._at - came > self.endpoint.patience_s)


def replica_of(endpoint: Endpoint, gang: str) -> Job:
    """What the simulator's books want of a replica: it holds one GPU, takes its time to start, and never ends."""
    workload = endpoint.workload
    leaves = min(workload.grace_s, endpoint.service_s)
    return Job(
        gang, 0.0, 1, ((1, math.inf),), queue=workload.queue, priority=workload.priority,
        start_s=(endpoint.start_s,), leave_s=(leaves,),
    )  # fmt: skip


def quantile(waits: dict[float, int], q: float) -> float | None:
    """Nearest rank."""
    left = math.ceil(q * sum(waits.values()))
    for wait, count in sorted(waits.items()):
        left -= count
        if left <= 0:
            return wait
    return None


def check(endpoints: Sequence[Endpoint], jobs: Sequence[Job]) -> None:
    """Raises SpecError when two have one name."""
    names: Iterator[str] = iter([*(one.workload.id for one in endpoints), *(job.id for job in jobs)])
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise SpecError(f'"{name}" is the name of two: of endpoints, or of an endpoint and a job.', where=WHERE)
        seen.add(name)


def _poisson(chance: random.Random, mean: float) -> int:
    """A draw; of many, by the normal that is as wide."""
    if mean <= 0:
        return 0
    if mean > 50:
        return max(0, round(chance.gauss(mean, math.sqrt(mean))))
    limit, count, product = math.exp(-mean), 0, chance.random()
    while product > limit:
        count += 1
        product *= chance.random()
    return count
