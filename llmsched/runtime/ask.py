"""Asking for more work from inside a workload whose spec says `asks: true`: submit workloads, watch them, end them.

    from llmsched.runtime import ask

    ask.submit({"name": "part-1", "kind": "task", "task": {"run": ["python", "part.py", "1"]}})
    ask.watch("part-1")["part-1"].phase            # waiting, running, succeeded ...
    ask.end("part-1")
    ask.endpoint("assistant"), ask.scale("assistant", 2), ask.rollback("assistant", adapter="tone")    # of `calls`

What is asked for belongs to the owner of the workload, waits in its queue, is called WORKLOAD.NAME, counts in its
budget and ends with it. It goes from worker to supervisor, bridge and controller, and the answer the same way back: no
token, no port. Every question may be asked twice: who submits what is there already is told so. While no controller
runs, a question waits.
"""

from __future__ import annotations

import json
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

from llmsched import errors
from llmsched.runtime import context, elastic
from llmsched.runtime.link import Link

_FIRST_LOOK_S, _LOOK_EVERY_S = 0.02, 0.2  # for an answer: a supervisor calls nobody back
_STOP_EVERY_S = 1.0
_PAUSE_S = 1.0  # before it is asked again, where the controller says that it could not answer just now


@dataclass(frozen=True)
class Child:
    """One workload that was asked for. `phase`: waiting starting running resizing stopping succeeded failed cancelled.
    `progress` are the last numbers that it reported, `metrics` those of its end, `artifact` the uri of its result,
    `values` of a trial what it has at each path of the space.
    """

    name: str
    id: str
    phase: str
    message: str = ""
    progress: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    artifact: str | None = None
    values: dict[str, Any] = field(default_factory=dict)

    @property
    def has_ended(self) -> bool:
        return self.phase in ("succeeded", "failed", "cancelled")


@dataclass(frozen=True)
class Endpoint:
    """One that the spec names in `calls`. `replicas` answer, `wanted` are wanted, `most` may be; `ongoing` requests are
    in flight and `queued` wait, by the gateway's last word. `adapters`: of each that was published the run that made
    it. `revision` counts from 1."""

    name: str
    phase: str
    message: str
    revision: int
    replicas: int
    wanted: int
    most: int
    ongoing: float
    queued: float
    adapters: dict[str, str]


def submit(*specs: dict[str, Any]) -> list[Child]:
    """Ask for workloads, each a spec as data; all of them or none. `queue` is the parent's, and so is `workdir` where a
    spec names none. One that is there already stays, whatever has become of it.

    Raises SpecError, RequestError (too many at once, too deep, another spec under a known name ...).
    """
    return _children(_ask({"ask": "submit", "specs": list(specs)}))


def watch(*names: str) -> dict[str, Child]:
    """How the workloads of these names stand; without those that were never asked for."""
    return {child.name: child for child in _children(_ask({"ask": "watch", "names": list(names)}))}


def end(*names: str) -> None:
    """Cancel them. What has ended stays as it is. Raises RequestError for a name that was never asked for."""
    _ask({"ask": "end", "names": list(names)})


def endpoint(name: str) -> Endpoint:
    """How it stands. Raises RequestError for one that `calls` of the spec does not name."""
    return Endpoint(**_ask({"ask": "endpoint", "endpoint": name}))


def scale(name: str, replicas: int) -> None:
    """Ask for so many replicas, within what the endpoint's spec allows. Raises RequestError, NotAllowed where its
    owner is another."""
    _ask({"ask": "scale", "endpoint": name, "replicas": replicas})


def rollback(name: str, adapter: str = "") -> None:
    """An endpoint goes back to the revision that answered before, or an adapter of it, live, to what was published
    under its name before. Raises RequestError where there is nothing before, NotAllowed."""
    now = endpoint(name)
    away_from = now.adapters.get(adapter) if adapter else now.revision
    _ask({"ask": "rollback", "endpoint": name, "adapter": adapter, "away_from": away_from})


def _children(answer: Any) -> list[Child]:
    return [Child(**one) for one in answer]


def _ask(body: dict[str, Any]) -> Any:
    """The answer, however long it takes. Raises elastic.Stopped when the attempt is asked to leave meanwhile."""
    where = context.current()
    if where.supervisor is None:
        raise errors.ClusterError("nobody answers: this code runs by itself, outside a cluster.")
    if not (where.spec.get("asks") or where.spec.get("kind") == "tune"):
        raise errors.RequestError(
            "this work may ask for nothing.", code="no_asks", hint="Write asks: true in its spec."
        )
    while True:
        answer = json.loads(_answer(where.supervisor, json.dumps(body)))
        if "error" not in answer:
            return answer["ok"]
        error = answer["error"]
        if not error.pop("again", False):
            raise _error_of(error)
        time.sleep(_PAUSE_S)
        _leave_if_asked(where.supervisor)


def _answer(link: Link, body: str) -> str:
    id, pause, asked_at = uuid.uuid4().hex, _FIRST_LOOK_S, time.monotonic()
    while (answer := link.ask(id, body)) is None:
        time.sleep(pause)
        pause = min(1.5 * pause, _LOOK_EVERY_S)
        if time.monotonic() - asked_at > _STOP_EVERY_S:
            asked_at = time.monotonic()
            _leave_if_asked(link)
    return answer


def _leave_if_asked(link: Link) -> None:
    if link.should_stop():
        elastic.leave()


def _error_of(error: dict[str, Any]) -> errors.LlmschedError:
    kinds: dict[str, type[errors.LlmschedError]] = {"SpecError": errors.SpecError, "NotAllowed": errors.NotAllowed}
    kind = kinds.get(error.get("type", ""), errors.RequestError)
    said = {name: str(error.get(name) or "") for name in ("code", "where", "hint")}
    return kind(error["message"], **said)
