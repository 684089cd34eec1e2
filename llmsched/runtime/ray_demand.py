"""What is asked of a gang's own Ray that the gang does not have: it waits there for ever, and somebody should say so.

Ray's head writes down what waits (`ray status` shows the same), and its dashboard hands it out. What merely waits for
its turn is not told. Pure, but for `Watch`, which asks.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from llmsched.runtime import dashboard

EVERY_S = 6.0  # Ray itself looks every five
_ANSWERS_WITHIN_S = 2.0  # who asks gives a sign of life every few seconds
_PATH = "/api/cluster_status"
_MANY = {"GPU": "GPUs", "CPU": "CPUs"}
_LEFT_OUT = ("node:", "bundle_group")  # what Ray adds to say where

Shape = Mapping[str, float]


class Watch:
    """Of the Ray whose head's dashboard is at `url`."""

    def __init__(self, url: str, token: str, members: Sequence[Mapping[str, Any]]) -> None:
        self._url, self._token, self._members = url, token, members
        self._asked_at, self._said = float("-inf"), ""

    def read(self) -> str:
        """As `in_vain`; seldom asked anew."""
        if time.monotonic() - self._asked_at >= EVERY_S:
            self._asked_at = time.monotonic()
            with suppress(ValueError, KeyError, TypeError):  # Ray has not written it yet, or writes something else
                self._said = in_vain(self._ask(), max((int(one.get("gpus") or 0) for one in self._members), default=0))
        return self._said

    def _ask(self) -> dict[str, Any]:
        said = dashboard.ask(self._url, self._token, _PATH, {"accept": "application/json"}, silence_s=_ANSWERS_WITHIN_S)
        body = b"".join(base64.b64decode(one[1]) for one in said if one[0] == "body")
        status: dict[str, Any] = json.loads(body)["data"]["clusterStatus"]["loadMetricsReport"]
        return status


def in_vain(status: Mapping[str, Any], gpus_of_a_node: int) -> str:
    """As "4 GPUs; its gang has 2". Empty: what waits can begin once others there let go. `status`: Ray's report."""
    has = {name: float(total) for name, (_, total) in (status.get("usage") or {}).items()}
    if not has:
        return ""
    for shape in _together(status):
        for name, amount in shape.items():
            if name.startswith(_LEFT_OUT) or amount <= has.get(name, 0.0):
                continue
            there = has.get(name, 0.0)
            return f"{_amount(name, amount)}; its gang has {_amount(name, there) if name == 'memory' else f'{there:g}'}"
    for shape in _each(status):
        if shape.get("GPU", 0.0) > gpus_of_a_node:
            return f"{_amount('GPU', shape['GPU'])} on one node; a node of its gang has {gpus_of_a_node}"
    return ""


def _each(status: Mapping[str, Any]) -> Iterator[Shape]:
    """What must be found on one node: a task, an actor, a bundle."""
    yield from (shape for shape, _ in status.get("resourceDemand") or ())
    for group, _ in status.get("pgDemand") or ():
        yield from (shape for shape, _ in group["bundles"])


def _together(status: Mapping[str, Any]) -> Iterator[Shape]:
    """What must be there at once."""
    yield from (shape for shape, _ in status.get("resourceDemand") or ())
    for group, _ in status.get("pgDemand") or ():
        whole: dict[str, float] = {}
        for shape, count in group["bundles"]:
            for name, amount in shape.items():
                whole[name] = whole.get(name, 0.0) + amount * count
        yield whole


def _amount(name: str, amount: float) -> str:
    if name == "memory":
        return f"{amount / 1e9:.3g} GB of memory"
    return f"{amount:g} {_MANY.get(name, name) if amount != 1 else name}"
