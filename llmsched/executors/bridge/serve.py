"""Serve replicas: one Ray Serve application per replica gang, pinned to its node.

One application each, because that gives exact placement and an exact choice of who leaves. Serve runs their processes;
how many there are, and what follows when one has ended, is not its to decide. What is seen of each is judged in
replica.py, the gateway in front of them is in endpoint.py. Start reading at `Replicas.launch` and `Replicas.look`.
"""

from __future__ import annotations

import re
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import ray
from ray import serve
from ray.exceptions import GetTimeoutError, RayActorError
from ray.serve.exceptions import RayServeException

from llmsched import sanitize
from llmsched.executors.bridge import processes, replica
from llmsched.executors.bridge.deaths import how_it_died
from llmsched.executors.bridge.forks import Forks
from llmsched.executors.bridge.replica import Application, Watched, World
from llmsched.executors.bridge.serve_application import QUIET, application_of
from llmsched.executors.port import (
    AdapterAnswer,
    AdapterOrder,
    Deliver,
    Ended,
    LaunchAsked,
    LaunchOrder,
    Member,
    NotStarted,
    Progress,
    Stalled,
    Started,
    StopOrder,
    Vanished,
)
from llmsched.gateway import serve_internals
from llmsched.gateway.app import DEPLOYMENT
from llmsched.runtime.fork_server import may_fork
from llmsched.runtime.replica import DEFAULT_MAX_ONGOING, INPUT_MARK, MARK

PREFIX = "llms/"
ADAPTER_WITHIN_S = 300.0
SERVE_ANSWERS_WITHIN_S = 5.0
SERVE_HUNG_S = 20.0  # a controller of Serve that does not answer for so long is made anew
SERVE_ABSENT_S = 3.0  # one that is not there for so long, while replicas are, will not come back by itself
LAUNCH_WITHIN_S = 25.0  # while Serve comes back, or somebody shuts it down
LOOK_EVERY_S = 1.0  # at replicas that answer. Where one comes or leaves as often as `look` is called, as somebody waits
LOOKS_PART = 0.2  # of the time at most: Serve's controller is slow where many come


class _Calls:
    """What the bridge asks a replica. Made without asking Serve's controller, which may be slow or away."""

    def __init__(self, application: str, node: str) -> None:
        self._handle = serve_internals.handle(DEPLOYMENT, application)
        self._node = node

    def ready(self) -> Any:
        return self._handle.ready.remote()

    def health(self) -> Any:
        return self._handle.health.remote()

    def process(self, pid: int) -> Any:
        return processes.Look(pid, **processes.on(self._node))


class Replicas:
    """Called from several threads; `_lock` guards the table, never a call to Serve."""

    def __init__(self, deliver: Deliver, mark: Callable[[str], str]) -> None:
        self._deliver, self._mark = deliver, mark
        self._lock = threading.Lock()
        self._deploying = threading.RLock()  # Serve pickles deployments through a global registry: one at a time
        self._live: dict[str, Watched] = {}
        self._forks = Forks()
        self._serve_silent_since: float | None = None
        self._look_at = self._look_sooner_at = 0.0

    # -- orders --------------------------------------------------------------------------------------------------

    def launch(self, order: LaunchOrder) -> None:
        """Deploy the application; `look` says when it answers. One that is there already is adopted."""
        with self._lock:
            if order.name in self._live:
                return
            one = self._live[order.name] = _watched(order)
            one.begun_at = time.monotonic()
        try:
            self._deploy(order)
        except Exception:
            self._forget(order.name)
            raise
        one.deployed_at = time.monotonic()

    def _deploy(self, order: LaunchOrder) -> None:
        """Serve may just be shut down or made anew by somebody: tried until LAUNCH_WITHIN_S are over."""
        tries_until = time.monotonic() + LAUNCH_WITHIN_S
        self._deliver(LaunchAsked(order.gang, order.attempt, time.time()))
        while True:
            try:
                with self._deploying:
                    _start_serve()
                    if order.name not in _applications():
                        _run(application_of(order, self._mark(order.name), self._started_by(order)), order.name)
                return
            except (RayActorError, RayServeException, GetTimeoutError) as error:
                if time.monotonic() > tries_until:
                    raise
                print(f"{order.name}: Serve is asked again: {error}", file=sys.stderr)
                serve_internals.forget_controller()
                time.sleep(0.5)

    def _started_by(self, order: LaunchOrder) -> str:
        return self._forks.words(order.members[0].node) if may_fork(asdict(order)) else ""

    def adopt(self, order: LaunchOrder, was_running: bool) -> None:
        """Watch an application that is there; launch one that never ran; the rest has vanished."""
        with self._lock:
            known = self._live.get(order.name)
            if known is not None:
                known.ask_again()
                return
        if order.name in self.applications():
            with self._lock:
                self._live[order.name] = _watched(order, time.monotonic(), has_answered=was_running)
        elif was_running:
            self._deliver(Vanished(order.gang, order.attempt, "its Serve application is gone", by_others=True))
        else:
            self.launch(order)

    def stop(self, order: StopOrder) -> None:
        """Drain: the gateway leads nothing new to it, and what it has in hand may finish, within `grace_s` seconds;
        then Serve takes it, as `look` sees."""
        by = time.monotonic() + order.grace_s
        is_there = order.name in self.applications()
        with self._lock:
            one = self._live.get(order.name)
            if one is None and is_there:
                workload = order.gang.rpartition("/")[0]
                told = LaunchOrder(workload, order.gang, order.attempt, order.epoch, "serve", (), {}, "")
                one = self._live[order.name] = _watched(told, has_answered=True)  # as far as anybody knows
            if one is not None:
                one.leave(by)
        if one is None:
            self._deliver(Ended(order.gang, order.attempt, "released", "it was gone already"))
        elif not one.has_answered:
            self._take(one)

    def load_adapter(self, order: AdapterOrder) -> None:
        try:
            handle = serve_internals.handle(DEPLOYMENT, f"{PREFIX}{order.gang}/{order.attempt}")
            message = str(handle.load_adapter.remote(order.name, order.uri).result(timeout_s=ADAPTER_WITHIN_S))
        except Exception as error:
            message = _words(sanitize.words(error)) or type(error).__name__
        self._deliver(AdapterAnswer(order.gang, order.attempt, order.name, order.uri, message))

    def _take(self, one: Watched) -> None:
        self.delete(one.order.name)
        one.is_deleted = True

    def delete(self, name: str) -> None:
        """Ask Serve to. What it is slow with, or not there for, is ended by whoever looks for what nobody owns."""
        if serve_internals.controller() is None:
            _end_processes(name)
        else:
            serve_internals.delete(name)

    def reap(self, name: str) -> None:
        """Take away what nobody owns, whether or not Serve knows of it."""
        self.delete(name)
        _end_processes(name)

    def shut_down(self) -> None:
        """Take all our applications away at once; Serve itself too, unless others use it."""
        ours = self.applications()
        for name in ours:
            self.reap(name)
        until = time.monotonic() + 10
        while self.applications() and time.monotonic() < until:
            time.sleep(0.1)
        with suppress(RayActorError, RayServeException, GetTimeoutError):
            if serve_internals.controller() is not None and not _applications():
                serve.shutdown()

    # -- looking -------------------------------------------------------------------------------------------------

    def held(self) -> dict[str, tuple[Member, ...]]:
        """What each replica was ordered to hold, by its attempt's name."""
        with self._lock:
            return {name: one.order.members for name, one in self._live.items()}

    def names(self) -> set[str]:
        with self._lock:
            return set(self._live)

    def applications(self) -> set[str]:
        """Names of our replicas that Serve knows and that are not leaving, or that have a process."""
        processes, _ = serve_internals.processes()
        with suppress(RayActorError, RayServeException, GetTimeoutError):
            listed = _applications()
            leaving = {name for name, one in listed.items() if one.says == "DELETING"}
            return {name for name in (listed.keys() | processes.keys()) - leaving if name.startswith(PREFIX)}
        return {name for name in processes if name.startswith(PREFIX)}

    def look(self) -> None:
        """Compare what is there of every replica with what was told."""
        with self._lock:
            live = list(self._live.values())
        begun = time.monotonic()
        is_due = self._look_at if not any(one.is_awaited for one in live) else self._look_sooner_at
        if not live or begun < is_due:
            return
        world, now = self._world(), time.monotonic()
        self._look_at = begun + LOOK_EVERY_S
        self._look_sooner_at = min(begun + (now - begun) / LOOKS_PART, self._look_at)
        for one in live:
            seen = one.look(world, now)
            if seen is not None:
                self._tell(one, seen, world)
            elif one.leave_by is not None and now > one.leave_by:
                _end_processes(one.order.name)

    def _world(self) -> World:
        nodes = frozenset(one["NodeID"] for one in ray.nodes() if one["Alive"])
        processes, is_serve_there = serve_internals.processes()
        now = time.monotonic()
        try:
            applications = _applications() if is_serve_there else None
        except (RayActorError, RayServeException, GetTimeoutError) as error:
            print(f"Serve does not answer: {error}", file=sys.stderr)
            applications = None
        if applications is not None:
            self._serve_silent_since = None
        elif self._serve_silent_since is None:
            self._serve_silent_since = now
        elif now - self._serve_silent_since > (SERVE_HUNG_S if is_serve_there else SERVE_ABSENT_S):
            self._serve_silent_since = None
            self._renew_serve()
        return World(nodes, processes, applications, is_serve_there)

    def _renew_serve(self) -> None:
        """What Serve runs goes on meanwhile, and a new controller finds it again."""
        hung = serve_internals.controller()
        print(f"Serve's controller {'is hung' if hung is not None else 'has gone'}: made anew", file=sys.stderr)
        if hung is not None:
            ray.kill(hung, no_restart=False)
        else:
            with self._deploying:
                _start_serve()

    def _tell(self, one: Watched, seen: replica.Seen, world: World) -> None:
        gang, attempt = one.order.gang, one.order.attempt
        match seen:
            case replica.Answers():
                self._deliver(Started(gang, attempt, dict(seen.took)))
                if "fork" not in seen.took and may_fork(asdict(one.order)):
                    self._forks.begin(one.order.members[0].node, one.pid)
                for name, uri in one.order.adapters:
                    self._deliver(AdapterAnswer(gang, attempt, name, uri, seen.refused.get(name, "")))
            case replica.Abandoned():
                most = one.order.spec.get("max_ongoing_requests") or DEFAULT_MAX_ONGOING
                words = f"{seen.requests} of {most} requests in hand were given up by their clients and do not end"
                self._deliver(Stalled(gang, attempt, words if seen.requests else ""))
            case replica.Reported():
                self._deliver(Progress(gang, attempt, dict(seen.numbers)))
            case replica.Idle():
                self._take(one)
            case replica.Left():
                self._forget(one.order.name)
                self._deliver(Ended(gang, attempt, "released"))
            case replica.Failed():
                self._end(one)
                event = "input" if INPUT_MARK in seen.words else "error"
                self._deliver(NotStarted(gang, attempt, event, _words(seen.words)))
            case replica.Gone():
                words = seen.words
                if seen.process:
                    words = how_it_died(seen.process) or _serves_words(one, world) or words
                if seen.hung_pid:
                    processes.end(seen.hung_pid, one.order.name, **processes.on(one.order.members[0].node))
                self._end(one)
                self._deliver(Vanished(gang, attempt, words, by_others=seen.by_others))

    def _end(self, one: Watched) -> None:
        """Take away what is left of it, before its GPUs are said to be free."""
        self.reap(one.order.name)
        self._forget(one.order.name)

    def _forget(self, name: str) -> None:
        with self._lock:
            self._live.pop(name, None)


def _watched(order: LaunchOrder, deployed_at: float | None = None, *, has_answered: bool = False) -> Watched:
    node = order.members[0].node if order.members else ""
    return Watched(order, lambda: _Calls(order.name, node), deployed_at, has_answered=has_answered)


# --- Serve --------------------------------------------------------------------------------------------------------


def _start_serve() -> None:
    """Serve, if it is not there, without any proxy: what is deployed through it has no port."""
    serve.start(proxy_location="Disabled", logging_config=QUIET)


def _applications() -> dict[str, Application]:
    """Every application by name. Raises RayActorError, GetTimeoutError when Serve's controller does not answer."""
    controller = serve_internals.controller()
    if controller is None:
        return {}
    found = {}
    for one in serve_internals.statuses(controller, SERVE_ANSWERS_WITHIN_S):
        messages = [each.message for each in one.deployment_statuses if each.message]
        words = "\n".join([*messages, one.app_status.message])
        found[one.name] = Application(one.app_status.status.value, words)
    return found


def _run(application: serve.Application, name: str) -> None:
    target = serve.api.RunTarget(application, name=name, route_prefix=None, logging_config=QUIET)
    # Waiting for the deployment to be created would wait for ever if somebody deletes it meanwhile.
    serve.run_many([target], wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)


def _end_processes(application: str) -> None:
    """Of an application that does not leave by itself, or that nobody waits for."""
    for name in serve_internals.processes()[0].get(application, ()):
        serve_internals.end_process(name)


def _serves_words(one: Watched, world: World) -> str:
    application = (world.applications or {}).get(one.order.name)
    return _words(application.message) if application is not None else ""


def _words(text: str) -> str:
    """What the replica said for people, without Ray's traceback around it."""
    found = re.search(re.escape(MARK) + "(.+)", text)
    if found:
        return found[1].removeprefix(INPUT_MARK.removeprefix(MARK)).strip()[:500]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) > 1:
        print(text, file=sys.stderr)
    return lines[-1][:500] if lines else ""
