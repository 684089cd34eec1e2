"""What people say, counted as it comes: a curve for each key, and an alarm when one surges.

    serve: {app: "workloads.apps.monitor:Monitor", args: {rows: /feed/labelled, key: label, at: created_at}}
    notify: [{url: "https://...", on: [], when: "alerts > 0"}]

Rows are read from files that a `batch` with `follow` writes, and from `{"rows": [...]}`; `model` labels those that have
no key. `{"trend": "negative", "windows": 30}` -> counts and surges, `{"alerts": 20}` -> the last surges of all keys,
`{}` -> how much came. It reports `alerts`, the keys that surge in the two newest windows, which `notify` compares. The
test, its level and where it is from: surge.py. What cannot be counted is set aside, counted, and the last of it named.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException

from llmsched.data.growth import Growth
from llmsched.data.parts import File, Part, Reader
from llmsched.data.rows import Bad, Changed
from llmsched.runtime import progress
from workloads.apps.asking import asked, in_words
from workloads.apps.events import Events
from workloads.apps.windows import Surge, Windows

ROWS_AT_MOST = 10_000  # of one request
NAMED = 5  # rows that were set aside
_EXPECTED = 'expected {"rows": [...]}, {"trend": KEY, "windows": 30}, {"alerts": 20} or {}'


class Monitor:
    """`rows`: a file, folder or pattern that grows. `key`, `at`, `text`, `model`: as `Events` reads a row. `against`:
    windows that one is compared with; `keep`: those that it remembers; `level`: of the test."""

    def __init__(
        self, *, key: str | list[str] = "label", at: str = "at", window_s: float = 86400.0, rows: str = "",
        model: str = "", text: str = "text", against: int = 28, level: float = 0.005, keep: int = 1500,
        follow: float = 5.0,
    ) -> None:  # fmt: skip
        self._events = Events(key, at, text, model)
        self._windows = Windows(window_s, against, level, keep)
        self._lock = threading.Lock()
        self._counted, self._aside, self._named = 0, 0, deque[str](maxlen=NAMED)
        self._trouble, self._has_changed, self._closing = "", False, threading.Event()
        self._waiting: list[File] = []
        if rows:
            self._place = Path(rows)
            self._growth = Growth(self._place, self._place.name, ())  # whoever asks is told no folder of this machine
            threading.Thread(target=self._follow, args=(follow,), daemon=True, name="follow").start()

    async def __call__(self, body: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(body, dict):
            raise HTTPException(422, _EXPECTED)
        match sorted(body):
            case ["rows"] if isinstance(body["rows"], list) and len(body["rows"]) <= ROWS_AT_MOST:
                rows = list(enumerate(body["rows"], 1))
                return await asyncio.to_thread(asked, self._take, rows, "the request")
            case ["trend"] | ["trend", "windows"] if _is_count(body.get("windows", 30)):
                return await asyncio.to_thread(self._trend, body["trend"], body.get("windows", 30))
            case ["alerts"] if _is_count(body["alerts"]):
                return await asyncio.to_thread(self._last, body["alerts"])
            case []:
                with self._lock:
                    return {"rows": self._counted, "set_aside": self._aside, "named": [*self._named],
                            "keys": self._windows.keys, "trouble": self._trouble}  # fmt: skip
        raise HTTPException(422, f"{_EXPECTED}; at most {ROWS_AT_MOST:,} rows, and from 1 to 10,000 windows")

    def check_health(self) -> None:
        """A file that is not what it was: another replica reads all of it anew."""
        if self._has_changed:
            raise RuntimeError(self._trouble)

    def _follow(self, every_s: float) -> None:
        while True:
            try:
                self._look()
                self._trouble = ""
            except Exception as error:  # an endpoint that is away: the next look has it
                self._has_changed = isinstance(error, Changed)
                self._trouble = f"what is new is not counted yet: {in_words(error)}"
                progress.report(trouble=self._trouble)
                print(f"[monitor] {self._trouble}", flush=True)
            if self._closing.wait(every_s):
                return

    def _look(self) -> None:
        """Take in what is new. A restart reads all of it again, so that it knows the same as before."""
        self._waiting += self._growth.look(time.time())
        while self._waiting:
            file = self._waiting[0]
            some = [] if file.why else list(Reader(self._place, [file]).read(Part(0, 0, 0, file.rows)))
            self._take(some or [(1, Bad(file.why))], file.name)
            del self._waiting[0]

    def _take(self, rows: Sequence[tuple[int, Any]], place: str) -> dict[str, Any]:
        """Count rows, which are numbered in `place`. Raises as `Events.of`."""
        events = self._events.of([row for _, row in rows])
        with self._lock:
            before = self._aside
            for (number, _), event in zip(rows, events, strict=True):
                if why := event.why if isinstance(event, Bad) else self._windows.add(event.key, event.at):
                    self._aside += 1
                    self._named.append(f"row {number:,} of {place} {why}")
            aside = self._aside - before
            self._counted += len(rows) - aside
            newest = self._windows.latest - 1
            now = [(key, one) for one, key in self._surges() if one.window >= newest]
            words = "; ".join(f"{key}: {one.seen} where {one.usual:.1f} are usual" for key, one in now)
            keys = {key for key, _ in now}
            progress.report(alerts=len(keys), surge=words, rows=self._counted, set_aside=self._aside, trouble="")
        return {"rows": len(rows) - aside, "set_aside": aside}

    def _surges(self) -> list[tuple[Surge, str]]:
        """Of all keys, in order of time."""
        return sorted((one, key) for key in self._windows.keys for one in self._windows.surges(key).values())

    def _trend(self, key: Any, many: int) -> dict[str, Any]:
        with self._lock:
            if key not in self._windows.keys:
                known = ", ".join(self._windows.keys[:20]) or "none yet"
                raise HTTPException(404, f"nothing was counted by {str(key)[:100]!r}; the keys are {known}")
            latest, surges = self._windows.latest, self._windows.surges(key)
            windows = range(max(latest - many + 1, self._windows.oldest), latest + 1)
            return {"trend": [{"begins": self._begins(one), "count": self._windows.count(key, one),
                               **(_of(surges[one]) if one in surges else {})} for one in windows]}  # fmt: skip

    def _last(self, many: int) -> dict[str, Any]:
        with self._lock:
            return {"alerts": [{"begins": self._begins(one.window), "key": key, "count": one.seen, **_of(one)}
                               for one, key in self._surges()[-many:]]}  # fmt: skip

    def _begins(self, window: int) -> str:
        return datetime.fromtimestamp(self._windows.begins(window), UTC).isoformat()


def _of(one: Surge) -> dict[str, Any]:
    return {"usual": round(one.usual, 2), "chance": float(f"{one.chance:.3g}")}


def _is_count(value: Any) -> bool:
    return type(value) is int and 1 <= value <= 10_000
