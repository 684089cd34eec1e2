"""The key that endpoints take in the place of a token.

Requests to an endpoint are read by processes that run as all work does. A token of the API that came so far could be
seen by work, and would be as good as its owner; a key is good for endpoints alone, and leads back to no token.
Where Ray runs as another user, the gateway knows keys alone, and a proxy before it puts one in the place of a token
(`gateway/proxy.py`). In single-user mode, where work can read every token in the home, the gateway knows both.
`llmsched token key` prints the key of a token, for programs to keep.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import NamedTuple

PREFIX = "llmk_"
PRIORITIES = ("sheddable", "standard", "critical")  # of requests with a key, the lowest first


class Terms(NamedTuple):
    """On which a key may ask: who goes first where replicas are full, and how much it may ask for in a minute; None: as
    much as there is. Tokens are those of prompts and answers."""

    priority: str = "standard"
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None


def key_of(token: str) -> str:
    return key_of_digest(hashlib.sha256(token.encode()).hexdigest())


def key_of_digest(sha256: str) -> str:
    """The same for who keeps of a token its SHA-256 in hex alone."""
    return PREFIX + hmac.new(sha256.encode(), b"key of endpoints", hashlib.sha256).hexdigest()
