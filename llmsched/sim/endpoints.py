"""Endpoints of a simulation: requests come at the rate of a file, and replicas, which are gangs, answer them.

A replica answers `max_ongoing_requests` at a time, each for `service` seconds; who finds no place waits in line, as at
the gateway. What the autoscaler is told is what the gateway would count. Knows no policy; the simulator says how many
replicas answer, and gets the load. Start reading at `Server.until`.
"""

from __future__ import annotations

import csv
import math
import random
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from llmsched.core.resources import MILLI, Resources
from llmsched.core.workload import Group, Option, Workload
from llmsched.errors import SpecError
from llmsched.policies.autoscaling.lookback import Lookback
from llmsched.sim.traces.job import Job
from llmsched.spec.compile import compile_workload
from llmsched.spec.load import load
from llmsched.spec.quantities import parse_duration
from llmsched.spec.serve import ServeSpec

LOOK_S = 10.0  # between two reports of the load; live it is one or two, and the delays of a policy are longer
STEP_S = 1.0  # of the arithmetic
WHERE = "--endpoint"
HINT = "For example --endpoint chat.yaml=day.csv,service=6s,start=40s,patience=10s"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """`curve` is (seconds, requests a second from then on). A request holds a place for `service_s`; one that
    waited for more than `patience_s` counts as late. A replica answers `start_s` after it was given its GPU."""

    workload: Workload
    curve: tuple[tuple[float, float], ...]
    places: int
    service_s: float
    start_s: float
    patience_s: float

    @property
    def ends_s(self) -> float:
        """One step after the last that the file says."""
        times = [at for at, _ in self.curve]
        return times[-1] + (times[-1] - times[-2] if len(times) > 1 else 0.0)


def parse(text: str) -> Endpoint:
    """`SPEC.yaml=RATE.csv,service=6s,start=40s,patience=10s`. Raises SpecError."""
    spec_file, equals, rest = text.partition("=")
    rate_file, *words = rest.split(",")
    known: dict[str, float | None] = {"service": None, "start": 30.0, "patience": 10.0}
    for word in words:
        name, _, value = word.partition("=")
        if name not in known:
            raise SpecError(f'"{name}" is not known; expected {", ".join(known)}.', where=WHERE, hint=HINT)
        try:
            known[name] = parse_duration(value)
        except ValueError as error:
            raise SpecError(f"{name}: {error}", where=WHERE, hint=HINT) from None
    service_s = known["service"]
    if not equals or not rate_file or not service_s:
        raise SpecError("needs a spec, a file of rates, and service, above 0.", where=WHERE, hint=HINT)
    spec = _spec(Path(spec_file))
    workload = compile_workload(spec)
    flavors = [option.flavor for option in workload.groups[0].options]
    if {option.resources.gpus_milli for option in workload.groups[0].options} != {MILLI}:
        raise SpecError("a simulated replica has one whole GPU.", where=spec_file, hint='accelerators: "A100:1"')
    one = tuple(Option(flavor, Resources(gpus_milli=MILLI)) for flavor in flavors)
    workload = replace(workload, groups=(Group("workers", 1, one),), user=workload.queue)
    start_s, patience_s = known["start"] or 0.0, known["patience"] or 0.0
    return Endpoint(workload, _curve(Path(rate_file)), spec.max_ongoing_requests, service_s, start_s, patience_s)


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
        self.requests = self.late = 0
        self.waits: dict[float, int] = {}  # whole tenths of a second -> requests
        self.busy_s = 0.0  # seconds of a whole replica, of which the requests in hand are a share
        self.handovers: list[float] = []  # seconds from asking for a replica until it answers
        self.most = 0
        self._at = 0.0
        self._lookback = Lookback(0.0)
        self._chance = random.Random(f"{seed}/{endpoint.workload.id}")

    def until(self, now: float) -> None:
        """Let the time pass with as many replicas as answer."""
        while self._at < now:
            step = min(STEP_S, now - self._at)
            self._at += step
            self._pass(step)

    def answering(self, replicas: int, now: float) -> None:
        self.until(now)
        self.replicas = replicas
        self.most = max(self.most, replicas)

    def load(self) -> tuple[float, float]:
        """(requests in flight, waiting), as the gateway reports them."""
        return self._lookback.load(self._at), self.queued

    def _pass(self, step: float) -> None:
        end = self.endpoint
        self.in_hand -= min(self.in_hand, self.in_hand * step / end.service_s)
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
        self._lookback.set(self.in_hand, self._at)

    def _begin(self, waited: float, count: int) -> None:
        self.in_hand += count
        self.queued -= count
        self.late += count * (waited > self.endpoint.patience_s)
        key = round(waited, 1)
        self.waits[key] = self.waits.get(key, 0) + count

    def _rate(self) -> float:
        """Of the step of the curve that this moment is in; nothing comes after its end."""
        curve = self.endpoint.curve
        if self._at >= self.endpoint.ends_s and len(curve) > 1:
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
