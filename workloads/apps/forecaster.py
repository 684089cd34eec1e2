"""What a forecast loop has learnt, asked for the next curve, with a band, while what really came is compared with it.

    serve: {app: "workloads.apps.forecaster:Forecaster", args: {model: "run://demand", history: /feed/demand.jsonl}}
    notify: [{url: "https://...", on: [], when: "odd > 0"}]

`history` has a row for each time, in order, from the first that the loop has learnt from; new ones go to its end.
`{"forecast": [{"temperature": 21.5}, ...]}`, with what is known of each time ahead, or `{"forecast": 48}` where the
loop reads nothing of that kind -> `{"first": 17520, "curve", "low", "high", "band"}`. `{}` -> how much came, and the
`odd` times: what came lay as far outside of the band that was said as the band is wide. It reports how many of them are
of the last curve.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from starlette.exceptions import HTTPException

from llmsched.data.growth import Growth
from llmsched.data.parts import File, Part, Reader
from llmsched.data.rows import Bad, Changed
from llmsched.runtime import progress
from workloads.apps.asking import in_words
from workloads.loops.forecast import Learnt

LARGEST = 1e30  # of a number in a row: what is made of larger ones may be none
NAMED = 20  # odd times, and rows that were set aside
BANDS = {0.5: (0.25, 0.75), 0.8: (0.1, 0.9), 0.9: (0.05, 0.95)}


class Forecaster:
    """`model`: the result of workloads.loops.forecast. `band`: what share of the times that it did not learn from came
    out inside."""

    def __init__(self, *, model: str, history: str, band: float = 0.9, follow: float = 5.0) -> None:
        if band not in BANDS:
            raise ValueError(f"band is one of {', '.join(map(str, BANDS))}, not {band!r}")
        self._band, self._learnt = band, Learnt(Path(model))
        self._rows = deque[list[float]](maxlen=2 * self._learnt.needed)  # a number, and what is known of its time
        self._count, self._aside = 0, 0
        self._said: dict[int, tuple[float, float]] = {}  # by time: the band
        self._odd, self._named = deque[dict[str, Any]](maxlen=NAMED), deque[str](maxlen=NAMED)
        self._lock, self._closing = threading.Lock(), threading.Event()
        self._trouble, self._has_changed = "", False
        self._place, self._waiting = Path(history), list[File]()
        self._growth = Growth(self._place, self._place.name, ())  # whoever asks is told no folder of this machine
        threading.Thread(target=self._follow, args=(follow,), daemon=True, name="follow").start()

    def __call__(self, body: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            if body == {}:
                return {"rows": self._count, "set_aside": self._aside, "named": [*self._named], "odd": [*self._odd],
                        "trouble": self._trouble}  # fmt: skip
            if not isinstance(body, dict) or set(body) != {"forecast"}:
                raise HTTPException(422, 'expected {"forecast": [what is known of each time ahead]} or {}')
            return self._forecast(self._known(body["forecast"]))

    def check_health(self) -> None:
        """A history that is not what it was: another replica reads all of it anew."""
        if self._has_changed:
            raise RuntimeError(self._trouble)

    def _known(self, ahead: Any) -> torch.Tensor:
        """[horizon, columns]"""
        names, many = self._learnt.known, self._learnt.ahead
        if not names and ahead == many:
            return torch.empty(many, 0)
        if not names or not isinstance(ahead, list) or len(ahead) != many:
            wanted = f"{many} objects with {', '.join(names)}" if names else f"the number {many}"
            raise HTTPException(422, f'"forecast" is {wanted}: one for each time ahead')
        found = [_numbers(row, names) for row in ahead]
        if lacks := next((f"row {at} {one}" for at, one in enumerate(found, 1) if isinstance(one, str)), ""):
            raise HTTPException(422, f'"forecast": {lacks}')
        return torch.tensor(found)

    def _forecast(self, known: torch.Tensor) -> dict[str, Any]:
        if (many := len(self._rows)) < self._learnt.needed:
            raise HTTPException(409, f"{many:,} rows came, and it takes {self._learnt.needed:,} to begin")
        said = self._learnt.curve(torch.tensor([*self._rows]), self._count - many, known, BANDS[self._band])
        if not all(each.isfinite().all() for each in said):
            raise HTTPException(422, 'with such numbers in "forecast" and the history the curve is not finite')
        curve, low, high = ([round(value, 4) for value in each.tolist()] for each in said)
        self._said = {self._count + at: pair for at, pair in enumerate(zip(low, high, strict=True))}
        return {"first": self._count, "curve": curve, "low": low, "high": high, "band": self._band}

    def _follow(self, every_s: float) -> None:
        while True:
            try:
                self._waiting += self._growth.look(time.time())
                while self._waiting:
                    self._take(self._waiting[0])
                    del self._waiting[0]
                self._trouble, self._has_changed = "", False
            except Exception as error:  # a disk that is away: the next look has it
                self._has_changed = isinstance(error, Changed)
                self._trouble = f"the history cannot be read: {in_words(error)}"
                progress.report(trouble=self._trouble)
                print(f"[forecaster] {self._trouble}", flush=True)
            if self._closing.wait(every_s):
                return

    def _take(self, file: File) -> None:
        names = [self._learnt.column, *self._learnt.known]
        if file.why:  # no other replica could read it either
            with self._lock:
                self._aside += 1
                self._named.append(f"{file.name}: {file.why}")
            print(f"[forecaster] set aside: {file.name}: {file.why}", flush=True)
        rows = [] if file.why else list(Reader(self._place, [file]).read(Part(0, 0, 0, file.rows)))
        for number, row in rows:  # read whole before the first counts: what fails in the middle is read again
            values = _numbers(row, names)
            with self._lock:
                if isinstance(values, str):  # its time has passed for all that: as a season ago
                    self._aside += 1
                    self._named.append(f"row {number:,} of {file.name} {values}")
                    at = len(self._rows) - self._learnt.season
                    values = self._rows[at] if at >= 0 else [0.0] * len(names)
                else:
                    self._compare(values[0])
                self._rows.append(values)
                self._count += 1
        odd = sum(one["time"] in self._said for one in self._odd)
        progress.report(odd=odd, rows=self._count, set_aside=self._aside, trouble="")

    def _compare(self, value: float) -> None:
        low, high = self._said.get(self._count, (value, value))
        if not low - (high - low) <= value <= high + (high - low):
            self._odd.append({"time": self._count, "value": value, "low": low, "high": high})


def _numbers(row: Any, names: Sequence[str]) -> list[float] | str:
    """Its numbers by these names, or what is wrong with it."""
    if not isinstance(row, dict):
        return row.why if isinstance(row, Bad) else "is not an object with named fields"
    found = []
    for name in names:
        try:
            found.append(float(row[name]))
        except (TypeError, ValueError, KeyError, OverflowError):
            return f"has no number {name!r}"
        if not abs(found[-1]) <= LARGEST:
            return f"has no number {name!r} that is finite and within 1e30"
    return found
