"""The replica that saw the longest same beginning of the prompt, whose key-value cache may still hold it.

Affinity yields to balance: when that replica is busier than the least busy one by more than `SLACK`, or twice over,
power of two decides. What is remembered is bounded: the least recently used beginnings are forgotten.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from llmsched.policies.routing import C
from llmsched.policies.routing.power_of_two import PowerOfTwo

BLOCK = 256  # characters; about 64 tokens
BLOCKS = 32  # looked at per request
REMEMBERED = 20_000  # beginnings, of every replica together
SLACK = 4  # requests


class PrefixCache:
    def __init__(self, seed: int) -> None:
        self._balance = PowerOfTwo(seed)
        self._last: OrderedDict[int, str] = OrderedDict()  # hash of a beginning -> replica that saw it last

    def choose(self, candidates: Sequence[C], body: Mapping[str, Any]) -> C:
        beginnings = list(_beginnings(prompt_text(body)))
        chosen = self._warm(candidates, beginnings) or self._balance.choose(candidates, body)
        for beginning in beginnings:
            self._last[beginning] = chosen.name
            self._last.move_to_end(beginning)
        while len(self._last) > REMEMBERED:
            self._last.popitem(last=False)
        return chosen

    def _warm(self, candidates: Sequence[C], beginnings: list[int]) -> C | None:
        least = min(replica.ongoing for replica in candidates)
        by_name = {replica.name: replica for replica in candidates}
        for beginning in reversed(beginnings):
            replica = by_name.get(self._last.get(beginning, ""))
            if replica is not None:
                return replica if replica.ongoing <= max(least + SLACK, 2 * least) else None
        return None


def prompt_text(body: Mapping[str, Any]) -> str:
    """The words of a completion or chat request in order, as far as they matter for sharing a beginning."""
    prompt = body.get("prompt")
    if isinstance(prompt, str):
        return prompt
    messages = body.get("messages")
    if not isinstance(messages, list):
        return ""
    return "\n".join(f"{m.get('role')}:{m.get('content')}" for m in messages if isinstance(m, dict))


def _beginnings(text: str) -> Iterator[int]:
    """Hashes of the first block, the first two, and so on; a last block that is not full counts as well."""
    running = 0
    for start in range(0, min(len(text), BLOCK * BLOCKS), BLOCK):
        running = hash((running, text[start : start + BLOCK]))
        yield running
