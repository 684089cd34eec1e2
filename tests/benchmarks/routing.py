"""Which replica takes a request: our policies beside Ray Serve's, on simulated replicas.

    python tests/benchmarks/routing.py [--requests 3000] [--seeds 3] [--only SCENARIO ...] > routing.json

Prints one JSON object. The policies, their counts and the estimates of work are the gateway's own; Ray's prefix tree is
Ray's own, with its rule (`PrefixCacheAffinityRouter`: the replica with the longest match where it is 10 % of the prompt
at least, else the one with the smallest tree; `imbalanced_threshold` as it comes, and set to 10). Replicas are
simulated: what our engine does between two steps, with what a prompt and a step take. `cpu`: a step of 4 rows takes
about what was measured (`workloads/inference/packed.py`), a token of a prompt is an estimate; `engine.py --only cost`
measures both. `h100` are the medians of Splitwise for llama2-70b on 8 H100.
Nothing is said of Ray's own way of asking its replicas, which costs time of its own.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import heapq
import itertools
import json
import random
import statistics
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from llmsched.gateway.claim import Claim
from llmsched.policies.routing import Ask, named
from llmsched.policies.routing.text_tree import TextTree
from llmsched.policies.routing.work import CHARACTERS, AnswerLengths, limit_of, tokens_of

TRACE = Path(__file__).parents[2] / "../shared/traces/infer/azure2023_conv.csv.gz"
REPLICAS = 8


class Cost(NamedTuple):
    """Milliseconds. `read`: a token of a prompt; `step`: a step of one row; `row`: of each row more."""

    read: float
    least: int  # tokens that a pass over a prompt takes at least
    most: int  # tokens of prompts between two steps
    step: float
    row: float


COSTS = {"cpu": Cost(1.5, 64, 512, 33.0, 2.0), "h100": Cost(0.1, 512, 2048, 29.5, 0.3)}
ROWS = 32
MEMORY = 24_000  # tokens that a replica keeps of what it read


@dataclass(eq=False)
class Request:
    at: float  # ms
    text: str
    answer: int  # tokens
    limit: int | None
    session: str = ""
    claim: Any = None
    unread: int = 0  # tokens of its prompt, once it is being read
    said: int = 0  # tokens of its answer
    first_at: float = 0.0
    over_at: float = 0.0
    hit: int = 0  # tokens


@dataclass(eq=False)
class Replica:
    """Also a candidate of a policy: `ongoing` and `tokens` are what the gateway counts."""

    name: str
    cost: Cost
    slow: float = 1.0
    ongoing: int = 0
    tokens: int = 0
    waiting: deque[Request] = field(default_factory=deque)
    rows: list[Request] = field(default_factory=list)
    known: TextTree = field(default_factory=lambda: TextTree(MEMORY * CHARACTERS))
    is_running: bool = False

    def turn(self, now: float) -> tuple[float, list[Request], list[Request]]:
        """What is done between now and the moment returned: whose first token came, whose last."""
        took, left, first = 0.0, self.cost.most, []
        while left > 0 and self.waiting and len(self.rows) < ROWS:
            request = self.waiting[0]
            if not request.unread:
                seen = self.known.seen(request.text).get("", 0)
                request.hit = min(seen, len(request.text) - 1) // CHARACTERS
                request.unread = max(1, tokens_of(request.text) - request.hit)
            part = min(request.unread, left)
            left -= max(part, self.cost.least)
            took += max(part, self.cost.least) * self.cost.read
            request.unread -= part
            if request.unread:
                break
            self.waiting.popleft()
            self.known.saw("", request.text)
            self.rows.append(request)
            first.append(request)
        going = [request for request in self.rows if request not in first]
        if going:
            took += self.cost.step + self.cost.row * len(going)
        at, over = now + took * self.slow, []
        for request in [*first, *going]:
            request.said += 1
            request.claim.said()
            if request.said >= request.answer:
                over.append(request)
                self.rows.remove(request)
        return at, first, over


class RayPrefix:
    """The rule of Ray's PrefixCacheAffinityRouter, on its own tree."""

    def __init__(self, seed: int, threshold: float = float("inf")) -> None:
        from ray.llm._internal.serve.routing_policies.prefix_aware.prefix_tree import PrefixTree

        self._tree, self._threshold, self._at = PrefixTree(), threshold, 0
        self._balance = named("power-of-two", seed)

    def choose(self, candidates: Sequence[Replica], ask: Ask) -> tuple[Replica, int]:
        by_name = {replica.name: replica for replica in candidates}
        self._at += 1
        self._tree.add_tenants([name for name in by_name if name not in self._tree.tenant_to_char_count], self._at)
        lengths = [replica.ongoing for replica in candidates]
        names: Sequence[str] | None = None
        if max(lengths) - min(lengths) <= self._threshold:
            matched, tenants = self._tree.prefix_match(ask.text, list(by_name))
            if len(matched) / len(ask.text) < 0.1:
                tenants = self._tree.get_smallest_tenants()
            names = [name for name in tenants or () if name in by_name]
        if names:
            chosen = min((by_name[name] for name in names), key=lambda replica: replica.ongoing)
        else:
            chosen, _ = self._balance.choose(candidates, ask)
        self._tree.insert(ask.text, chosen.name, self._at)
        return chosen, tokens_of(ask.text)


POLICIES: dict[str, Callable[[int], Any]] = {
    **{name: (lambda seed, name=name: named(name, seed)) for name in (
        "power-of-two", "least-tokens", "prefix-cache", "round-robin", "session-affinity")},
    "ray: prefix": RayPrefix,
    "ray: prefix, threshold 10": lambda seed: RayPrefix(seed, 10),
}  # fmt: skip


def run(requests: Sequence[Request], policy: Any, cost: Cost, slow: float) -> list[Request]:
    """All requests, with when their first and last words came. `slow`: how much slower one of the replicas is."""
    replicas = [Replica(f"r{n}", cost, slow if n == 0 else 1.0) for n in range(REPLICAS)]
    lengths, number = AnswerLengths(), itertools.count()
    events: list[tuple[float, int, Any]] = [(request.at, next(number), request) for request in requests]
    heapq.heapify(events)
    while events:
        now, _, what = heapq.heappop(events)
        if isinstance(what, Request):
            body = {"prompt": what.text} | ({"max_tokens": what.limit} if what.limit else {})
            replica, unread = policy.choose(replicas, Ask(body, what.text, what.session))
            what.claim = Claim(replica, unread, lengths.expect(limit_of(body)))
            replica.waiting.append(what)
            if not replica.is_running:
                replica.is_running = True
                heapq.heappush(events, (now, next(number), replica))
            continue
        if isinstance(what, tuple):
            for request in what[1]:
                request.claim.end()
                lengths.saw(request.limit, request.said)
                request.over_at = now
            what = what[0]
        at, first, over = what.turn(now)
        for request in first:
            request.first_at = at
        what.is_running = bool(what.waiting or what.rows or over)
        if what.is_running:
            heapq.heappush(events, (at, next(number), (what, over)))
    assert all(replica.ongoing == replica.tokens == 0 for replica in replicas)
    return list(requests)


# --- what is asked ------------------------------------------------------------------------------------------------


def words(draw: random.Random, tokens: int) -> str:
    """A text of that many tokens, like no other."""
    return "".join(f"{draw.randrange(16**CHARACTERS):0{CHARACTERS}x}" for _ in range(tokens))


def arrivals(draw: random.Random, count: int, per_s: float) -> Iterator[float]:
    at = 0.0
    for _ in range(count):
        at += draw.expovariate(per_s) * 1000
        yield at


def shared_prefixes(draw: random.Random, count: int, per_s: float) -> list[Request]:
    """64 system prompts of 1,500 tokens, some more in use than others; more than one replica keeps."""
    begins = [words(draw, 1500) for _ in range(64)]
    weights = [1 / (n + 1) ** 0.5 for n in range(64)]
    return [
        Request(at, draw.choices(begins, weights)[0] + words(draw, 50), draw.randint(8, 64), 128)
        for at in arrivals(draw, count, per_s)
    ]


def mixed_lengths(draw: random.Random, count: int, per_s: float, says_limits: bool = True) -> list[Request]:
    """One in ten has a prompt of 4,000 tokens and an answer of 300 to 500; the others 150 and 10 to 40."""
    made = []
    for at in arrivals(draw, count, per_s):
        is_long = draw.random() < 0.1
        answer = draw.randint(300, 500) if is_long else draw.randint(10, 40)
        limit = (1024 if is_long else 64) if says_limits else None
        made.append(Request(at, words(draw, 4000 if is_long else 150), answer, limit))
    return made


def no_limits(draw: random.Random, count: int, per_s: float) -> list[Request]:
    """The same, and nobody says how long an answer may become."""
    return mixed_lengths(draw, count, per_s, says_limits=False)


def alike(draw: random.Random, count: int, per_s: float) -> list[Request]:
    """Prompts of 300 tokens and answers of 50 to 150; one replica is three times as slow."""
    return [Request(at, words(draw, 300), draw.randint(50, 150), 256) for at in arrivals(draw, count, per_s)]


def skewed_sessions(draw: random.Random, count: int, per_s: float) -> list[Request]:
    """Dialogues that grow by a question and an answer each time. Half of all requests are of one session in eighty:
    many dialogues at once that begin alike, more than one replica can bear."""
    hot = words(draw, 1000)
    said = {f"s{n}": (hot if n == 0 else words(draw, 400)) for n in range(80)}
    made = []
    for at in arrivals(draw, count, per_s):
        name = "s0" if draw.random() < 0.5 else f"s{draw.randint(1, 79)}"
        asked = said[name] + words(draw, 60)
        answer = draw.randint(20, 80)
        made.append(Request(at, asked, answer, 128, name))
        if name != "s0":
            said[name] = (asked + words(draw, answer)) if len(asked) < 3000 * CHARACTERS else words(draw, 400)
    return made


def azure(draw: random.Random, count: int, per_s: float) -> list[Request]:
    """Lengths of the Azure conversation trace of 2023 (Patel et al., ISCA 2024, CC-BY-4.0), at another rate."""
    with gzip.open(TRACE, "rt") as file:
        rows = list(itertools.islice(csv.DictReader(file), count))
    return [
        Request(at, words(draw, max(1, int(row["prompt_tokens"]))), max(1, int(row["output_tokens"])), None)
        for at, row in zip(arrivals(draw, len(rows), per_s), rows, strict=True)
    ]


class Scenario(NamedTuple):
    make: Callable[[random.Random, int, float], list[Request]]
    per_s: dict[str, float]  # requests a second, by cost
    slow: float = 1.0


SCENARIOS = {
    "shared prefixes": Scenario(shared_prefixes, {"cpu": 3.0, "h100": 26.0}),
    "mixed lengths": Scenario(mixed_lengths, {"cpu": 2.2, "h100": 36.0}),
    "mixed lengths, no limits": Scenario(no_limits, {"cpu": 2.2, "h100": 36.0}),
    "one slow replica": Scenario(alike, {"cpu": 5.0, "h100": 30.0}, slow=3.0),
    "skewed sessions": Scenario(skewed_sessions, {"cpu": 6.0, "h100": 40.0}),
    "azure conversations": Scenario(azure, {"cpu": 1.0, "h100": 16.0}),
}


def oracle(requests: Sequence[Request]) -> int:
    """Tokens that one memory without end, of all replicas together, would know of the prompts."""
    tree, known = TextTree(1 << 40), 0
    for request in requests:
        known += min(tree.seen(request.text).get("", 0), len(request.text) - 1) // CHARACTERS
        tree.saw("", request.text)
    return known


def figures(name: str, cost: str, count: int, seeds: int) -> dict[str, Any]:
    scenario, found = SCENARIOS[name], dict[str, Any]()
    for policy, make in POLICIES.items():
        of_seeds = []
        for seed in range(seeds):
            requests = scenario.make(random.Random(seed), count, scenario.per_s[cost])
            best, tokens = oracle(requests), sum(tokens_of(request.text) for request in requests)
            done = run(requests, make(seed), COSTS[cost], scenario.slow)
            ttft = sorted(request.first_at - request.at for request in done)
            whole = sorted(request.over_at - request.at for request in done)
            hit = sum(request.hit for request in done)
            of_seeds.append({
                "ttft_p50_ms": ttft[len(ttft) // 2],
                "ttft_p99_ms": ttft[len(ttft) * 99 // 100],
                "whole_p50_ms": whole[len(whole) // 2],
                "whole_p99_ms": whole[len(whole) * 99 // 100],
                "hit_share": hit / tokens,
                "hit_of_oracle": hit / best if best > 0.01 * tokens else None,
            })  # fmt: skip
        found[policy] = {key: _middle([each[key] for each in of_seeds]) for key in of_seeds[0]}
        print(f"{name}, {cost}, {policy}: {found[policy]}", file=sys.stderr, flush=True)
    base = found["power-of-two"]
    for each in found.values():
        each["to_power_of_two"] = {
            key: round(each[key] / base[key], 2) for key in ("ttft_p50_ms", "ttft_p99_ms", "whole_p99_ms")
        }
    return found


def _middle(values: Sequence[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return round(statistics.median(numbers), 3) if numbers else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=3000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=list(SCENARIOS), choices=list(SCENARIOS))
    parser.add_argument("--cost", nargs="+", default=list(COSTS), choices=list(COSTS))
    options = parser.parse_args()
    print(json.dumps(
        {
            f"{name}, {cost}": figures(name, cost, options.requests, options.seeds)
            for name in options.only
            for cost in options.cost
        },
        indent=2,
    ))  # fmt: skip


if __name__ == "__main__":
    main()
