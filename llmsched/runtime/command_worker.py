"""An actor beside a member, for as long as one command, or whatever else a person does there by hand."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from llmsched.runtime import execute, gang_ray, packages, redaction
from llmsched.runtime.by_hand import ByHand


class Ask(NamedTuple):
    """Of a CommandOrder. `does`: run, or as of `ByHand`; `timeout_s` bounds a run."""

    does: str
    words: list[str]
    timeout_s: float


class CommandWorker:
    """`order` is the LaunchOrder as JSON."""

    def __init__(self, order: str) -> None:
        self._order: dict[str, Any] = json.loads(order)
        redaction.hide(self._order)
        self._stop = threading.Event()
        self._by_hand: ByHand | None = None

    def run(self, ask: Ask, folder: str, envs: dict[str, str]) -> Iterator[execute.Said]:
        here = dict(os.environ) if self._order["kind"] == "train" else gang_ray.own(os.environ)
        around = {**here, **self._order["envs"], **envs}
        extra = packages.provide(self._order, Path(folder))  # there already, for the member runs
        if extra is not None:
            around = extra.surround(around)
        if ask.does == "run":
            yield from execute.run(ask.words, folder, around, ask.timeout_s, self._stop)
        else:
            self._by_hand = ByHand(ask.does, ask.words, folder, around, self._stop)
            yield from self._by_hand.said()

    def take(self, frames: list[bytes]) -> None:
        """From whoever asked, who has heard that it has begun."""
        if self._by_hand is not None:
            self._by_hand.take(frames)

    def stop(self) -> None:
        self._stop.set()
