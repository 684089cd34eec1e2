"""What work asks for (`runtime/ask.py`): submissions, looks and ends, with the rights of its owner and no more than it
has itself; what it asks of endpoints is ask_endpoints.py's.

A submission takes the way of everybody's, so the same checks hold and nothing is answered before it is committed. Every
question may come twice: one that is there already is answered as it is. Start reading at `Asks._answer` and `child_of`.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

from llmsched import sanitize
from llmsched.control import ask_endpoints, planning, requests
from llmsched.control.authorization import KnownNames, Permissions, Person
from llmsched.control.lookup import child_name, child_named, spec_of
from llmsched.core.commands import CHILDREN_AT_ONCE
from llmsched.core.records import WorkloadState
from llmsched.core.render import text
from llmsched.core.state import State
from llmsched.core.workload import Workload
from llmsched.errors import ClusterError, LlmschedError, RequestError, SpecError, StoreError
from llmsched.executors import port
from llmsched.spec.compile import Compiled, compile_workload
from llmsched.spec.load import load_json
from llmsched.spec.tune import GOES_ON_FROM, trial, values_of
from llmsched.spec.workload import MOST_LABELS, FiniteSpec

log = logging.getLogger("llmsched.control")
AT_ONCE = 16  # questions that are looked into
KINDS = ("train", "task", "batch", "ray")

Request = Callable[[requests.UserRequest], Awaitable[Any]]
Progress = Callable[[WorkloadState], Mapping[str, Mapping[str, Any]]]


class Asks:
    """`request` brings one before the loop; `progress` has the last numbers of a workload's gangs."""

    def __init__(
        self,
        state: Callable[[], State],
        request: Request,
        progress: Progress,
        executor: port.Executor,
        epoch: Callable[[], int],
    ) -> None:
        self._state, self._request, self._progress = state, request, progress
        self._executor, self._epoch = executor, epoch
        self._heard: deque[port.AskSeen] = deque()
        self._filled = asyncio.Event()
        self._beside: set[asyncio.Task[None]] = set()

    def in_front_of(self, deliver: port.Deliver) -> port.Deliver:
        """Takes in what is asked, and hands on all else."""

        def heard(seen: port.Observation) -> None:
            if isinstance(seen, port.AskSeen):
                self._heard.append(sanitize.record(seen))
                self._filled.set()
            else:
                deliver(seen)

        return heard

    async def run(self) -> None:
        """Until it is cancelled."""
        places = asyncio.Semaphore(AT_ONCE)
        try:
            while True:
                await self._filled.wait()
                self._filled.clear()
                while self._heard:
                    await places.acquire()
                    task = asyncio.create_task(self._take(self._heard.popleft()))
                    self._beside.add(task)
                    task.add_done_callback(self._beside.discard)
                    task.add_done_callback(lambda _: places.release())
        finally:
            for task in self._beside:
                task.cancel()

    async def _take(self, seen: port.AskSeen) -> None:
        """What breaks at one question breaks no other: it is asked again."""
        try:
            await self._answer(seen)
        except ClusterError:  # nobody is there to bring the answer
            return
        except Exception:
            log.exception("a question of %s could not be answered", seen.gang)

    async def _answer(self, seen: port.AskSeen) -> None:
        state = self._state()
        gang = state.gangs.get(seen.gang)
        if gang is None or gang.attempt != seen.attempt or not gang.is_holding():
            return  # nobody is there to hear it
        try:
            answer = {"ok": await self._do(state.workloads[gang.workload_id].workload, _read(seen.body))}
        except LlmschedError as error:
            answer = {"error": _told(error)}
        except Exception as error:
            log.exception("a question of %s failed", seen.gang)
            answer = {"error": {"message": f"the controller failed at it ({type(error).__name__}); its log says more."}}
        told = port.AskAnswer(seen.gang, seen.attempt, self._epoch(), seen.id, json.dumps(answer))
        await self._executor.answer(told)

    async def _do(self, parent: Workload, asked: dict[str, Any]) -> Any:
        spec = spec_of(parent)
        if not (spec.get("asks") or parent.kind == "tune"):
            raise RequestError("this work may ask for nothing.", code="no_asks", hint="Write asks: true in its spec.")
        owner = Person(parent.user)
        match asked.get("ask"):
            case "submit":
                specs = _some(asked, "specs")
                compiled = [child_of(parent, spec, data, f"$[{place}]") for place, data in enumerate(specs)]
                if any(each.spec.sources() for each in compiled):
                    await planning.check_memory(self._state(), compiled, owner, again=False)
                await self._request(requests.Submission(compiled, owner))
                return self._views(parent, [each.spec.name for each in compiled])
            case "watch":
                return self._views(parent, _some(asked, "names"))
            case "end":
                for name in _some(asked, "names"):
                    await self._end(parent, str(name))
                return None
            case verb if verb in ask_endpoints.VERBS and parent.kind != "tune":
                return await ask_endpoints.do(self._state, self._request, parent, spec, asked)
            case other:
                raise RequestError(f"nobody answers {sanitize.line(other, 60)!r}.", code="bad_ask")

    async def _end(self, parent: Workload, name: str) -> None:
        found = child_named(self._state(), parent, name)
        if found is None:
            raise RequestError(
                f'{parent.id} asked for no "{sanitize.line(name, 60)}".', code="unknown_workload", http_status=404
            )
        if not found.outcome and not found.cancelled:
            try:
                await self._request(requests.Cancellation(found.workload.id, parent.user, by_parent=True))
            except RequestError as error:
                if error.code != "ended":  # by itself, meanwhile
                    raise

    def _views(self, parent: Workload, names: list[Any]) -> list[dict[str, Any]]:
        state = self._state()
        known = KnownNames(state, Permissions(Person(parent.user), state.configuration), parent.id)
        found = ((str(name), child_named(state, parent, str(name))) for name in names)
        return [self._view(parent, name, record, known) for name, record in found if record is not None]

    def _view(self, parent: Workload, name: str, record: WorkloadState, known: KnownNames) -> dict[str, Any]:
        numbers = self._progress(record)
        values = values_of(spec_of(parent), spec_of(record.workload)) if parent.kind == "tune" else {}
        return {
            "values": values,
            "name": name,
            "id": record.workload.id,
            "phase": record.phase,
            "message": text(record.message, known),
            "progress": dict(next((numbers[gang] for gang in record.gangs if gang in numbers), {})),
            "metrics": dict(record.metrics),
            "artifact": record.artifact,
        }


def child_of(parent: Workload, above: Mapping[str, Any], data: Any, where: str) -> Compiled:
    """`above` is the parent's spec. Raises SpecError, and RequestError for what is more than the parent has."""
    if not isinstance(data, dict):
        raise SpecError("expected a workload's spec, as data.", where=where)
    if parent.kind == "tune":  # of its spec alone: it asks for its trials, and for nothing else
        data = _trial(above, data, where)
    filled = {"queue": parent.queue, "priority": parent.priority, "workdir": above.get("workdir"), **data}
    spec = load_json(filled, where)
    if not isinstance(spec, FiniteSpec) or spec.kind not in KINDS:
        hint = "It asks for its trials itself: submit it beside this one." if spec.kind == "tune" else ""
        raise _narrower(where, "kind", spec.kind, f"one of {', '.join(KINDS)}: it must end", hint)
    if spec.asks:
        raise RequestError(
            f"{where}: what a workload has asked for may ask for nothing itself.",
            code="too_deep",
            hint="Ask for it in the workload above.",
        )
    if spec.queue != parent.queue:
        raise _narrower(where, "queue", spec.queue, f'"{parent.queue}", its parent\'s', "Leave it out.")
    if spec.priority > parent.priority:
        raise _narrower(where, "priority", str(spec.priority), f"at most its parent's, {parent.priority}")
    for key, wanted in (("secrets", spec.secrets), ("calls", spec.calls)):
        if more := [name for name in wanted if name not in (above.get(key) or ())]:
            raise _narrower(where, key, more[0], "one that its parent has", f"Name it in {key} of {parent.name} too.")
    for key in ("schedule", "notify"):
        if getattr(spec, key):
            raise _narrower(where, key, "", "none", f"Write it in the spec of {parent.name}.")
    if spec.workdir is not None and spec.workdir != above.get("workdir"):
        raise _narrower(where, "workdir", spec.workdir, "its parent's", "Leave it out.")
    compiled = compile_workload(spec)
    model = compiled.model if compiled.model != spec.name else parent.name  # its siblings take as long as it does
    return Compiled(spec, replace(compiled, name=child_name(parent, spec.name), parent=parent.id, model=model))


def _trial(search: Mapping[str, Any], asked: dict[str, Any], where: str) -> dict[str, Any]:
    """Beside its values it may say from which trial it goes on; the label of it is for `best`."""
    values, donor = asked.get("values"), asked.get("goes_on_from")
    named = {"name", "values"} | ({"goes_on_from", "at_step"} if donor is not None else set())
    if set(asked) != named or not isinstance(values, dict) or set(values) != set(search["tune"]["space"]):
        raise SpecError('expected "name", and "values" with each path of the space.', where=where)
    made = trial(search, asked["name"], values)
    labels = made.get("labels") or {}
    if donor is not None and len(labels) < MOST_LABELS:
        made["labels"] = {**labels, GOES_ON_FROM: f"{donor}/{asked['at_step']}"}
    return made


def _narrower(where: str, key: str, got: str, expected: str, hint: str = "") -> RequestError:
    said = f', got "{sanitize.line(got, 60)}"' if got else ""
    return RequestError(f'{where}: "{key}": expected {expected}{said}.', code="beyond_parent", hint=hint)


def _read(body: str) -> dict[str, Any]:
    try:
        asked = sanitize.asked(body)
    except ValueError as error:
        raise RequestError(f"what was asked is no JSON: {sanitize.first_line(error)}.", code="bad_ask") from None
    if not isinstance(asked, dict):
        raise RequestError("what was asked is no object.", code="bad_ask")
    if flaw := sanitize.first_flaw(asked):
        raise RequestError(f"{flaw[0]}: {flaw[1]}.", code="bad_ask")
    return asked


def _some(asked: Mapping[str, Any], key: str) -> list[Any]:
    found = asked.get(key)
    if not isinstance(found, list) or not 1 <= len(found) <= CHILDREN_AT_ONCE:
        raise RequestError(f'"{key}": expected a list of 1 to {CHILDREN_AT_ONCE}.', code="bad_ask")
    return found


def _told(error: LlmschedError) -> dict[str, Any]:
    """`again`: it is not the question's fault."""
    again = isinstance(error, StoreError | ClusterError) or error.code == "busy"
    kind = next(cls.__name__ for cls in (SpecError, RequestError, LlmschedError) if isinstance(error, cls))
    told = {"type": kind, "message": error.message, "code": error.code, "where": error.where, "hint": error.hint}
    return {**told, "again": again}
