"""One deployment in several processes: which of them a call goes to.

Of those that are there, the one with the fewest calls in hand, of equals the one after that which was asked last. Calls
for a multiplexed model go to one copy as long as it has room, so that it is loaded there alone (rendezvous hashing,
Thaler and Ravishankar 1998). Start at `Copies`.
"""

from __future__ import annotations

import concurrent.futures
import threading
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from ray.serve._private.common import RequestMetadata
from ray.serve.deployment import Deployment
from ray.serve.handle import DeploymentHandle

from llmsched.runtime import serve_handles
from llmsched.runtime.serve_apart import Apart, Place
from llmsched.runtime.serve_handles import Asked, Put, Running


class Balanced:
    """A deployment as its handles know it. `most` calls are room enough for one copy; `can_answer`: of the one at a
    place. One that is gone has nothing in hand and fails at once, so it would be given every call."""

    def __init__(self, copies: Sequence[Asked], most: int, can_answer: Callable[[int], bool]) -> None:
        self._copies, self._most, self._can_answer = tuple(copies), most, can_answer
        self._lock = threading.Lock()
        self._in_hand = [0] * len(self._copies)
        self._last = -1

    @property
    def copies(self) -> Sequence[Asked]:
        return self._copies

    def run(self, metadata: RequestMetadata, args: tuple[Any, ...], kwargs: dict[str, Any], put: Put | None) -> Running:
        with self._lock:
            place = self._last = self._choose(metadata.multiplexed_model_id)
            self._in_hand[place] += 1
        try:
            running = self._copies[place].run(metadata, args, kwargs, put)
        except BaseException:
            self._let_go(place)
            raise
        running.add_done_callback(lambda _: self._let_go(place))
        return running

    def _choose(self, model: str) -> int:
        count = len(self._copies)
        there = [place for place in range(count) if self._can_answer(place)] or range(count)
        if model:
            for place in sorted(there, key=lambda one: zlib.crc32(f"{one} {model}".encode()), reverse=True):
                if self._in_hand[place] < self._most:
                    return place
        return min(there, key=lambda one: (self._in_hand[one], (one - self._last - 1) % count))

    def _let_go(self, place: int) -> None:
        with self._lock:
            self._in_hand[place] -= 1


class Copies:
    """As `Apart`, of several."""

    has_check = True

    def __init__(self, deployment: Deployment, app_name: str, most: int, places: Sequence[Place]) -> None:
        self._each: list[Apart] = []
        self._asked: Balanced
        config = deployment._deployment_config
        is_said = "max_ongoing_requests" in config.user_configured_option_names
        self._room = int(config.max_ongoing_requests if is_said else most)
        try:
            for rank, place in enumerate(places):
                self._each.append(Apart(deployment, app_name, most, place, rank, len(places)))
        except BaseException:
            self.close()
            raise

    def begin(self) -> None:
        """All at once. Raises what the first that cannot be made raises."""
        for begun in [one.begun() for one in self._each]:
            begun.result()
        each = self._each
        self._asked = Balanced([one.asked() for one in each], self._room, lambda place: each[place].can_answer)

    def handle(self) -> DeploymentHandle[Any]:
        return serve_handles.handle_of(self._each[0].id, self._asked)

    def check(self) -> concurrent.futures.Future[None]:
        """The words of all."""
        whole: concurrent.futures.Future[None] = concurrent.futures.Future()
        left = [one.check() for one in self._each if one.has_check]
        lock = threading.Lock()
        if not left:
            whole.set_result(None)

        def said(one: concurrent.futures.Future[None]) -> None:
            with lock, suppress(concurrent.futures.InvalidStateError):  # another one has failed
                left.remove(one)
                if (error := one.exception()) is not None:
                    whole.set_exception(error)
                elif not left:
                    whole.set_result(None)

        for one in list(left):
            one.add_done_callback(said)
        return whole

    @property
    def can_answer(self) -> bool:
        return any(one.can_answer for one in self._each)

    @property
    def is_gone(self) -> str:
        return next((why for one in self._each if (why := one.is_gone)), "")

    def close(self) -> None:
        with ThreadPoolExecutor(max(len(self._each), 1)) as pool:
            list(pool.map(Apart.close, self._each))
