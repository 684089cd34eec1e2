"""Serve replicas: one Ray Serve application per replica gang, pinned to its node, and the gateway in front of them.

One application each, because that gives exact placement and an exact choice of who leaves. Serve restarts a replica's
process when it dies; it never decides how many there are. Start reading at `Replicas.launch` and `Replicas.look`.
"""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import ray
from ray import serve
from ray.exceptions import RayActorError

from llmsched.executors.port import (
    AdapterAnswer,
    AdapterOrder,
    Deliver,
    Ended,
    LaunchAsked,
    LaunchOrder,
    LoadSeen,
    Member,
    NotStarted,
    RouteTable,
    Started,
    StopOrder,
    Vanished,
)
from llmsched.executors.ports import free_ports
from llmsched.executors.wire import Settings
from llmsched.gateway import app as gateway
from llmsched.runtime.containment import OWNER
from llmsched.runtime.replica import INPUT_MARK, MARK, ReplicaHost

PREFIX = "llms/"
ADAPTER_WITHIN_S = 300.0
GATEWAY_ANSWERS_WITHIN_S = 10.0
ASK_AGAIN_AFTER_S = 60.0  # Serve may wait for ever for a process that is gone
ROOM_FOR_OUR_CALLS = 8
BROKEN_FOR_S = 60.0  # Serve had this long to bring a replica back
_QUIET = {"enable_access_log": False}
_GONE = "UNHEALTHY", "DEPLOY_FAILED"


@dataclass
class _Replica:
    order: LaunchOrder
    is_started: bool = False
    asked: Any = None  # the `ready` call that is under way
    asked_at: float = 0.0
    is_leaving: bool = False
    leave_by: float = 0.0
    broken_since: float = 0.0


class _Application(NamedTuple):
    """What Serve says of one application: a word, and messages of its deployments before its own."""

    says: str  # DEPLOYING | RUNNING | UNHEALTHY | DEPLOY_FAILED | DELETING ...
    message: str

    @classmethod
    def of(cls, found: Any) -> _Application:
        messages = [one.message for one in found.deployment_statuses if one.message]
        return cls(found.app_status.status.value, "\n".join([*messages, found.app_status.message]))


class Replicas:
    """Called from several threads; `_lock` guards the table, never a call to Serve."""

    def __init__(self, deliver: Deliver, settings: Settings, mark: Callable[[str], str]) -> None:
        self._deliver, self._mark = deliver, mark
        self._host = settings.endpoint_host
        self._lock = threading.Lock()
        self._deploying = threading.RLock()  # Serve pickles deployments through a global registry: one at a time
        self._live: dict[str, _Replica] = {}
        self._table: RouteTable | None = None
        self._gateway: Any = None
        client = serve.context._get_global_client(raise_if_no_controller_running=False)
        self._is_up = client is not None
        self._port = client.http_config.port if client else settings.endpoint_port or free_ports(1, self._host)[0]

    @property
    def endpoint(self) -> str:
        """Where the gateway answers, once the first serve workload is there."""
        return f"http://{self._host}:{self._port}"

    # -- orders --------------------------------------------------------------------------------------------------

    def launch(self, order: LaunchOrder) -> None:
        """Deploy the application; `look` says when it answers. One that is there already is adopted."""
        with self._lock:
            if order.name in self._live:
                return
            self._live[order.name] = _Replica(order)
        try:
            self._bring_up()
            if order.name not in self.applications():
                with self._deploying:
                    self._deliver(LaunchAsked(order.gang, order.attempt, time.time()))
                    self._deploy(self._application(order), order.name)
        except Exception:
            self._forget(order.name)
            raise

    def adopt(self, order: LaunchOrder, was_running: bool) -> None:
        """Watch an application that is there; launch one that never ran; the rest has vanished."""
        with self._lock:
            known = self._live.get(order.name)
            if known is not None:
                known.is_started = False  # to be told again
                return
        if order.name in self.applications():
            with self._lock:
                self._live[order.name] = _Replica(order)
        elif was_running:
            self._deliver(Vanished(order.gang, order.attempt, "its Serve application is gone"))
        else:
            self.launch(order)

    def stop(self, order: StopOrder) -> None:
        """Drain: Serve routes nothing new to it and lets what it serves finish, at most `grace_s` seconds."""
        with self._lock:
            one = self._live.get(order.name)
            if one is not None:
                by = time.monotonic() + order.grace_s
                one.leave_by = min(one.leave_by, by) if one.is_leaving else by
                one.is_leaving = True
        if one is None and order.name not in self.applications():
            self._deliver(Ended(order.gang, order.attempt, "released", "it was gone already"))
            return
        if one is None:
            workload = order.gang.rpartition("/")[0]
            told = LaunchOrder(workload, order.gang, order.attempt, order.epoch, "serve", (), {}, "")
            with self._lock:
                self._live[order.name] = _Replica(told, is_leaving=True, leave_by=time.monotonic() + order.grace_s)
        self.delete(order.name)

    def load_adapter(self, order: AdapterOrder) -> None:
        try:
            handle = serve.get_app_handle(f"{PREFIX}{order.gang}/{order.attempt}")
            message = str(handle.load_adapter.remote(order.name, order.uri).result(timeout_s=ADAPTER_WITHIN_S))
        except Exception as error:
            message = _words(str(error)) or type(error).__name__
        self._deliver(AdapterAnswer(order.gang, order.attempt, order.name, order.uri, message))

    def route(self, table: RouteTable) -> None:
        """Keep the newest table, and push it when there is a gateway; a gateway that comes later gets it then."""
        if self._table is not None and table.version < self._table.version:
            return
        self._table = table
        if table.models:
            self._bring_up()
        if self._is_up:
            self._push()

    def delete(self, name: str) -> None:
        if self._is_up:
            serve.delete(name, _blocking=False)

    def shut_down(self) -> None:
        """Take all our applications away at once; Serve itself too, unless others use it."""
        if not self._is_up:
            return
        for name in [*self.applications(), gateway.NAME]:
            serve.delete(name, _blocking=False)
            _kill_processes(name)
        until = time.monotonic() + 10
        while self.applications() and time.monotonic() < until:
            time.sleep(0.1)
        others = [name for name in self._status() if not _is_ours(name)]
        if not others:
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
        """Names of our replicas' applications that Serve has and that are not leaving."""
        if not self._is_up:
            return set()
        found = self._status()
        return {name for name, one in found.items() if name.startswith(PREFIX) and one.says != "DELETING"}

    def look(self) -> None:
        """Compare what Serve says of every application with what was told."""
        with self._lock:
            live = list(self._live.values())
        if not live or not self._is_up:
            return
        status = self._status()
        nodes = {one["NodeID"] for one in ray.nodes() if one["Alive"]}
        for one in live:
            application = status.get(one.order.name)
            if one.is_leaving:
                self._look_at_leaving(one, application)
            elif application is None:
                continue  # its deployment is on the way
            elif not all(member.node in nodes for member in one.order.members):
                self._lose(one, "its node is gone")
            elif application.says == "RUNNING":
                one.broken_since = 0.0
                self._look_at_readiness(one)
            elif application.says in _GONE:
                self._look_at_broken(one, application)

    def look_at_load(self) -> None:
        """What is in flight, from the gateway's own counts; a gateway without the newest table gets it again."""
        if not self._is_up or self._gateway is None or self._table is None:
            return
        load = self._gateway.load.remote().result(timeout_s=GATEWAY_ANSWERS_WITHIN_S)
        if load.pop("version", 0) != self._table.version:
            self._push()
        for workload, counts in load.items():
            self._deliver(LoadSeen(str(workload), float(counts["ongoing"]), float(counts["queued"])))

    def _look_at_readiness(self, one: _Replica) -> None:
        """Started is said once the replica itself has answered, not when Serve has made its process."""
        if one.is_started:
            return
        if one.asked is None or time.monotonic() - one.asked_at > ASK_AGAIN_AFTER_S:
            one.asked, one.asked_at = serve.get_app_handle(one.order.name).ready.remote(), time.monotonic()
        try:
            facts = one.asked.result(timeout_s=0.05)
        except TimeoutError:
            return
        except Exception as error:
            one.asked = None
            if not one.broken_since:
                one.broken_since = time.monotonic()
            if time.monotonic() - one.broken_since > BROKEN_FOR_S:
                self._fail(one, _words(str(error)))
            return
        one.is_started = True
        self._deliver(Started(one.order.gang, one.order.attempt))
        for name, uri in one.order.adapters:
            message = str(facts.get("refused", {}).get(name, ""))
            self._deliver(AdapterAnswer(one.order.gang, one.order.attempt, name, uri, message))

    def _look_at_broken(self, one: _Replica, application: _Application) -> None:
        if application.says == "DEPLOY_FAILED" and not one.is_started:
            text = application.message
            self._fail(one, _words(text), "input" if INPUT_MARK in text else "error")
            return
        if self._is_starting(one.order.name):  # a large model takes its time to be back
            one.broken_since = 0.0
            return
        one.broken_since = one.broken_since or time.monotonic()
        if time.monotonic() - one.broken_since > BROKEN_FOR_S:
            self._lose(one, f"Serve could not bring it back: {_words(application.message)}")

    def _look_at_leaving(self, one: _Replica, application: _Application | None) -> None:
        if application is None:
            self._forget(one.order.name)
            self._deliver(Ended(one.order.gang, one.order.attempt, "released"))
        elif time.monotonic() > one.leave_by:
            _kill_processes(one.order.name)

    def _fail(self, one: _Replica, message: str, event: str = "error") -> None:
        self._forget(one.order.name)
        self.delete(one.order.name)
        self._deliver(NotStarted(one.order.gang, one.order.attempt, event, message))

    def _lose(self, one: _Replica, message: str) -> None:
        self._forget(one.order.name)
        self.delete(one.order.name)
        self._deliver(Vanished(one.order.gang, one.order.attempt, message))

    def _forget(self, name: str) -> None:
        with self._lock:
            self._live.pop(name, None)

    # -- Serve ---------------------------------------------------------------------------------------------------

    def _bring_up(self) -> None:
        """Serve and the gateway, once: one proxy, on the head, at our port."""
        with self._deploying:
            if self._gateway is not None:
                return
            self._start()
            self._is_up = True
            if gateway.NAME not in self._status():
                on_head = {"resources": {"node:__internal_head__": 0.001}}
                self._deploy(gateway.build(**on_head), gateway.NAME, "/")
            self._gateway = serve.get_app_handle(gateway.NAME)

    def _start(self) -> None:
        """Serve replaces a proxy that is slow to start, and tells whoever waits that it died: the next one may do."""
        for tries_left in (2, 1, 0):
            try:
                serve.start(
                    proxy_location="HeadOnly",
                    http_options={"host": self._host, "port": self._port},
                    logging_config=_QUIET,
                )
                return
            except (RayActorError, TimeoutError) as error:
                if not tries_left:
                    raise
                print(f"Serve is asked to start again: {error}", file=sys.stderr)

    def _status(self) -> dict[str, _Application]:
        """Every application by name.

        Not `serve.status()`: that builds the settings of every deployment anew, which pickles classes for each of them.
        """
        client = serve.context._get_global_client(raise_if_no_controller_running=False)
        found = client.list_serve_statuses() if client else []
        return {one.name: _Application.of(one) for one in found}

    def _is_starting(self, name: str) -> bool:
        """Serve is making a new process for the application."""
        details = serve.context._get_global_client().get_serve_details()["applications"].get(name) or {}
        replicas = [one for each in details.get("deployments", {}).values() for one in each["replicas"]]
        return any(one["state"] == "STARTING" for one in replicas)

    def _deploy(self, application: serve.Application, name: str, route_prefix: str | None = None) -> None:
        target = serve.api.RunTarget(application, name=name, route_prefix=route_prefix, logging_config=_QUIET)
        try:
            # Waiting for the deployment to be created would wait for ever if somebody deletes it meanwhile.
            serve.run_many([target], wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)
        except TimeoutError as error:
            print(f"{name}: {error}", file=sys.stderr)  # of the proxies; the application is on its way

    def _push(self) -> None:
        assert self._table is not None
        if self._gateway is None:
            self._gateway = serve.get_app_handle(gateway.NAME)
        self._gateway.route.remote(asdict(self._table)).result(timeout_s=GATEWAY_ANSWERS_WITHIN_S)

    def _application(self, order: LaunchOrder) -> serve.Application:
        first = order.members[0]
        placing: dict[str, Any] = {"ray_actor_options": _actor_options(first)}
        placing["ray_actor_options"]["runtime_env"] = {"env_vars": {OWNER: self._mark(order.name)}}
        if len(order.members) > 1:  # one bundle a member; the replica sits in the first and its helpers in the others
            placing["placement_group_bundles"] = [_bundle(one) for one in order.members]
            placing["placement_group_bundle_label_selector"] = [_pin(one) for one in order.members]
            placing["ray_actor_options"].pop("label_selector")
        deployment = serve.deployment(ReplicaHost).options(
            name="replica",
            num_replicas=1,
            # The gateway keeps to the spec's number; the rest is for our own calls.
            max_ongoing_requests=int(order.spec.get("max_ongoing_requests") or 32) + ROOM_FOR_OUR_CALLS,
            graceful_shutdown_timeout_s=float(order.spec.get("drain_timeout") or order.grace_s),
            graceful_shutdown_wait_loop_s=0.5,
            max_constructor_retry_count=1,  # trying again is the scheduler's
            health_check_period_s=5,
            logging_config=_QUIET,
            **placing,
        )
        return deployment.bind(json.dumps(asdict(order)))


def _actor_options(member: Member) -> dict[str, Any]:
    return {
        "num_gpus": member.gpus,
        "num_cpus": member.cpus,
        "memory": member.memory_bytes or None,
        "resources": dict(member.custom),
        "label_selector": _pin(member),
    }


def _bundle(member: Member) -> dict[str, float]:
    need = {"GPU": member.gpus, "CPU": member.cpus, "memory": float(member.memory_bytes), **member.custom}
    return {name: amount for name, amount in need.items() if amount} or {"CPU": 0.001}


def _pin(member: Member) -> dict[str, str]:
    return {"ray.io/node-id": member.node}


def _is_ours(name: str) -> bool:
    return name.startswith(PREFIX) or name == gateway.NAME


def _kill_processes(application: str) -> None:
    """End the replica processes of an application that does not leave by itself (or that nobody waits for)."""
    for one in ray.util.list_named_actors(all_namespaces=True):
        if one["name"].startswith(f"SERVE_REPLICA::{application}#"):
            with suppress(ValueError):
                ray.kill(ray.get_actor(one["name"], namespace=one["namespace"]))


def _words(text: str) -> str:
    """What the replica said for people, without Ray's traceback around it."""
    found = re.search(re.escape(MARK) + "(.+)", text)
    if found:
        return found[1].removeprefix(INPUT_MARK.removeprefix(MARK)).strip()[:500]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) > 1:
        print(text, file=sys.stderr)
    return lines[-1][:500] if lines else ""
