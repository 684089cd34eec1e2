"""What the timeline and the plots are drawn from: who held what when, and why each job waited. Knows no policy."""

from __future__ import annotations

from dataclasses import dataclass, field

from llmsched.core import render
from llmsched.core.explain import Reason


@dataclass(slots=True)
class Stay:
    """One unbroken hold: `nodes` are (node, GPUs there)."""

    gang: str
    start: float
    end: float
    nodes: tuple[tuple[str, int], ...]


@dataclass(slots=True)
class Wait:
    """Why a gang waited, from `start` until `end`."""

    gang: str
    start: float
    end: float
    code: str
    message: str


@dataclass(slots=True)
class Recorder:
    stays: list[Stay] = field(default_factory=list)
    waits: list[Wait] = field(default_factory=list)
    load: list[tuple[float, int, int]] = field(default_factory=list)  # (time, GPUs held, gangs waiting)
    _open: dict[str, tuple[float, tuple[tuple[str, int], ...]]] = field(default_factory=dict)
    _why: dict[str, Wait] = field(default_factory=dict)

    def holds(self, gang: str, now: float, by_node: dict[str, int]) -> None:
        """The gang holds exactly this from now on ({}: nothing)."""
        before = self._open.pop(gang, None)
        if before is not None and now > before[0]:
            self.stays.append(Stay(gang, before[0], now, before[1]))
        if by_node:
            self._open[gang] = (now, tuple(by_node.items()))
            self._answered(gang, now)

    def explains(self, now: float, reasons: dict[str, Reason]) -> None:
        for gang, reason in reasons.items():
            last = self._why.get(gang)
            if last is None or last.code != reason.code:
                self._answered(gang, now)
                self._why[gang] = Wait(gang, now, now, reason.code, render.text(reason.message))

    def _answered(self, gang: str, now: float) -> None:
        last = self._why.pop(gang, None)
        if last is not None and now > last.start:
            last.end = now
            self.waits.append(last)

    def close(self, now: float) -> None:
        for gang in list(self._open):
            self.holds(gang, now, {})
        for gang in list(self._why):
            self._answered(gang, now)
