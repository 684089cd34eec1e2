"""Numbers for people: one line a report in progress.jsonl, and the newest values to the supervisor.

Rank 0 speaks for the gang. Reporting never slows a loop (at most two messages a second, what came between is merged)
and never stops it (a supervisor that does not listen is said once), but for a trial that waits for the verdict of its
search (`rungs.py`). The last report always arrives. What an endpoint's app reports is kept by its replica until the
bridge next asks how it is (`of_endpoint`): the newest of each name, and no file, as endpoints have no end.
"""

from __future__ import annotations

import json
import math
import sys
import threading
import time
import weakref
from collections.abc import Mapping
from typing import Any

from llmsched import crossings, sanitize
from llmsched.runtime import context, redaction, rungs
from llmsched.runtime.link import Link
from llmsched.runtime.storage import Storage

_EVERY_S = 0.5
_EVERY_S_WHERE_APPENDING_IS_DEAR = 10.0
_LONGEST = 300  # characters of a string


class _Outbox:
    """What was reported and not yet delivered. Guarded by `lock`: the timer delivers from its own thread."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.news: dict[str, Any] = {}
        self.lines: list[str] = []
        self.told_at = self.written_at = -math.inf
        self.timer: threading.Timer | None = None
        self.complained = False

    def add(self, values: dict[str, Any], comparisons: list[str]) -> None:
        with self.lock:
            self.news.update(values)
            if crossed := crossings.counted(comparisons, values):
                self.news[crossings.NAME] = crossings.joined(self.news.get(crossings.NAME, {}), crossed)
            self.lines.append(json.dumps({"at": round(time.time(), 3), **values}))
            self.deliver()

    def deliver(self, *, now: bool = False) -> None:
        """Send what is due (`now`: everything); the rest waits for a timer."""
        with self.lock:
            where = context.inside()
            if where is None:
                return
            if self.timer is not None:
                self.timer.cancel()
                self.timer = None
            clock = time.monotonic()
            if self.news and (now or clock - self.told_at >= _EVERY_S):
                news, self.news, self.told_at = self.news, {}, clock
                self._tell(where.supervisor, news)
            store = Storage.at(where.storage)
            pause = _EVERY_S if store.append_is_cheap else _EVERY_S_WHERE_APPENDING_IS_DEAR
            if self.lines and (now or clock - self.written_at >= pause):
                text, self.lines, self.written_at = "".join(f"{line}\n" for line in self.lines), [], clock
                store.append(f"{where.folder}/progress.jsonl", text.encode())
            if self.news or self.lines:
                self.timer = threading.Timer(_EVERY_S, self.deliver)
                self.timer.daemon = True
                self.timer.start()

    def _tell(self, supervisor: Link | None, news: dict[str, Any]) -> None:
        if supervisor is None:
            return
        try:
            supervisor.report(news)
        except Exception as error:  # whatever Ray says: a report is not worth a training run
            if not self.complained:
                self.complained = True
                print(f"progress: the supervisor does not listen: {error}", file=sys.stderr, flush=True)


class OfEndpoint:
    """The newest numbers of an endpoint's app, from any of its threads, and how often they met its comparisons."""

    def __init__(self, comparisons: list[str]) -> None:
        self._lock = threading.Lock()
        self._newest: dict[str, Any] = {}
        self._comparisons = comparisons
        self._crossed: dict[str, crossings.Crossing] = {}

    def add(self, values: dict[str, Any]) -> None:
        with self._lock:
            for name, value in values.items():
                if name in self._newest or len(self._newest) < sanitize.ITEMS_AT_MOST:
                    self._newest[name] = value
            self._crossed = crossings.joined(self._crossed, crossings.counted(self._comparisons, values))

    def newest(self) -> dict[str, Any]:
        with self._lock:
            return self._newest | ({crossings.NAME: self._crossed} if self._crossed else {})


_outbox = _Outbox()
_of_endpoint: weakref.ref[OfEndpoint] | None = None
context.on_leave(lambda: _outbox.deliver(now=True))


def of_endpoint(spec: Mapping[str, Any]) -> OfEndpoint:
    """From now on what this process reports is an endpoint's of this spec, and kept there while somebody holds it."""
    global _of_endpoint
    kept = OfEndpoint(crossings.comparisons_of(spec))
    _of_endpoint = weakref.ref(kept)
    return kept


def report(step: int | None = None, total_steps: int | None = None, **values: Any) -> None:
    """Say how far the work is. Values are numbers, booleans or short strings; other ranks than 0 say nothing.

    Names with dots go in as `**{"eval.accuracy": 0.9}`. Raises TypeError for anything else than plain values.
    Outside llmsched it prints.
    """
    given = {"step": step, "total_steps": total_steps, **values}
    plain = plain_values({name: value for name, value in given.items() if value is not None})
    where = context.inside()
    if where is None and _of_endpoint is not None and (kept := _of_endpoint()) is not None:
        kept.add(plain)
    elif where is None:
        print("progress: " + " ".join(f"{name}={value}" for name, value in plain.items()), flush=True)
    elif where.rank == 0 and plain:
        _outbox.add(plain, crossings.comparisons_of(where.spec))
        if (trial := rungs.trial_here(where)).is_at_one(plain):
            flush()
            trial.wait()


def flush() -> None:
    """Deliver what was reported, now. Leaving the context does it too."""
    _outbox.deliver(now=True)


def plain_values(values: dict[str, Any]) -> dict[str, Any]:
    """Every value as JSON knows it, under a readable name. Raises TypeError for what is no plain value."""
    some = list(values.items())[: sanitize.ITEMS_AT_MOST]
    return {sanitize.line(name, sanitize.NAME_AT_MOST): plain_value(name, value) for name, value in some}


def plain_value(name: str, value: Any) -> Any:
    """`value` as JSON knows it: one-element tensors and arrays become numbers; numbers that are not finite, or of more
    than 64 bits, become words."""
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, (bool, int, float)):
        return sanitize.number(value)
    if isinstance(value, str):
        return sanitize.text(redaction.clean(value), _LONGEST)
    raise TypeError(f"cannot report {name}={value!r}: expected a number, a boolean or a short string")
