"""One session, one replica, as long as that one is not much busier than the others: rendezvous hashing with a bound.

A session keeps its replica when others come, and goes elsewhere while its own is away or has more in hand than BUSIER
times the mean; each session has a second choice of its own. After Thaler and Ravishankar, "Using name-based mappings to
increase hit rates", IEEE/ACM ToN 6(1), 1998, and Mirrokni, Thorup and Zadimoghaddam, "Consistent hashing with bounded
loads", SODA 2018. A request without a session goes to the less busy of two.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from llmsched.policies.routing import Ask, C
from llmsched.policies.routing.power_of_two import PowerOfTwo
from llmsched.policies.routing.work import tokens_of

BUSIER = 1.25
ALWAYS = 2  # requests in hand that are no reason to move


class SessionAffinity:
    def __init__(self, seed: int) -> None:
        self._balance = PowerOfTwo(seed)

    def choose(self, candidates: Sequence[C], ask: Ask) -> tuple[C, int]:
        if not ask.session:
            return self._balance.choose(candidates, ask)
        most = BUSIER * (sum(replica.ongoing for replica in candidates) + 1) / len(candidates)
        fit = [replica for replica in candidates if replica.ongoing < max(most, ALWAYS)] or candidates
        return max(fit, key=lambda replica: _weight(ask.session, replica.name)), tokens_of(ask.text)


def _weight(session: str, name: str) -> bytes:
    return hashlib.blake2b(f"{session}\0{name}".encode("utf-8", "replace"), digest_size=8).digest()
