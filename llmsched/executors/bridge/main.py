"""The bridge: the only process of ours outside Ray that imports it. Carries orders in and observations out.

A child of the controller that speaks JSON lines (`executors.wire`); it decides nothing. It may die at any time:
everything it starts in Ray is detached and found again by name. When Ray cannot be reached it says Disconnected and
exits; a new one is cheaper than a driver that half lives. Start reading at `Bridge.run`.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, BinaryIO

from llmsched import versions
from llmsched.executors import wire
from llmsched.executors.bridge.answering import Answering
from llmsched.executors.bridge.orders import ONCE, Order, Orders
from llmsched.executors.port import (
    AdapterAnswer,
    AdapterOrder,
    AskAnswer,
    CommandInput,
    CommandOrder,
    Connected,
    DashboardOrder,
    Disconnected,
    LaunchOrder,
    NodeGone,
    NotStarted,
    Observation,
    RouteTable,
    StopOrder,
    Vanished,
)

LOOK_AT_NODES_EVERY_S = 1.0
LOOK_AT_REPLICAS_EVERY_S = 0.25  # at most: `Replicas.look`
LOOK_AT_LOAD_EVERY_S = 0.5
LOOK_AT_ATTEMPTS_EVERY_S = 0.25
REAP_EVERY_S = 5.0


class Pipe:
    """Stdin and stdout of the protocol. Whatever else prints, also from C or a child, lands on stderr."""

    def __init__(self) -> None:
        self._out: BinaryIO = os.fdopen(os.dup(1), "wb", buffering=0)
        self._in: BinaryIO = os.fdopen(os.dup(0), "rb")
        os.dup2(2, 1)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        self._lock = threading.Lock()

    def send(self, body: wire.Answer) -> None:
        line = wire.encode_answer(body)
        with self._lock:
            sent = 0
            while sent < len(line):
                sent += self._out.write(line[sent:])

    def receive(self) -> tuple[str, Any] | None:
        """The next order; None when the controller is gone."""
        line = self._in.readline(wire.MAX_LINE_BYTES)
        return wire.decode_order(line) if line else None


class Bridge:
    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe
        self._epoch = 0

    def run(self) -> int:
        """Until the pipe closes or `close` is asked; the exit code."""
        self._pipe.send(wire.Hello(versions.own()))
        first = self._pipe.receive()
        if first is None:
            return 0
        op, settings = first
        if op != "start" or settings.protocol != wire.PROTOCOL:
            print(f"the first line must be start with protocol {wire.PROTOCOL}, got {op}", file=sys.stderr)
            return 2
        self._connect(settings)
        while True:
            received = self._pipe.receive()
            if received is None:
                return 0
            op, body = received
            if op == "ping":
                self._pipe.send(wire.Pong(body.n))
            elif op == "close":
                if body.stop_everything:
                    self._endpoint.shut_down()
                    self._reaper.take_down_everything()
                    self._containment.end_everything()
                self._pipe.send(wire.Closed())
                return 0
            else:
                self._take(op, body)

    def _connect(self, settings: wire.Settings) -> None:
        import logging

        from llmsched.executors.bridge import connection

        self._epoch = settings.epoch
        watchdog = threading.Timer(connection.CONNECT_WITHIN_S, self._lose, ["Ray did not answer in time"])
        watchdog.daemon = True
        watchdog.start()
        try:
            cluster_id, dashboard = connection.connect(settings.address, settings.namespace)
        except Exception as error:
            self._lose(f"no Ray at {settings.address}: {str(error).splitlines()[0] if str(error) else error!r}")
        if dashboard and connection.lets_anyone_in(dashboard):
            hint = "start its nodes with RAY_AUTH_MODE=token and a token"
            self._lose(f"the Ray at {settings.address} lets in whoever asks; {hint}", is_insecure=True)
        logging.getLogger("ray.serve").setLevel(logging.WARNING)

        from llmsched.executors.bridge.commands import Commands
        from llmsched.executors.bridge.containment import Containment
        from llmsched.executors.bridge.endpoint import Endpoint
        from llmsched.executors.bridge.gateway_actor import GatewayActor
        from llmsched.executors.bridge.nodes import Nodes
        from llmsched.executors.bridge.provision import Provision
        from llmsched.executors.bridge.reap import Reaper
        from llmsched.executors.bridge.serve import Replicas
        from llmsched.executors.bridge.train import Attempts
        from llmsched.executors.bridge.warm_pool import WarmPool
        from llmsched.gateway.app import NAME, STANDBY

        self._warm = WarmPool()
        self._warm.learn()
        self._containment = Containment(self._pipe.send, cluster_id, self._warm.carried)
        send = self._containment.deliver
        self._attempts = Attempts(
            send, settings.storage, self._containment.mark, self._warm, self._containment.is_cleared
        )
        self._replicas = Replicas(send, self._containment.mark)
        gateways = [GatewayActor(name, settings.endpoint_host) for name in (NAME, STANDBY)]
        self._endpoint = Endpoint(send, gateways, lambda: self._nodes.able())
        self._commands = Commands(self._pipe.send, self._attempts.supervisor, dashboard)
        self._provision = Provision()
        self._reaper = Reaper(self._attempts, self._replicas, self._warm)
        self._orders = Orders(self._reaper.expect, self._reaper.arrived)
        self._nodes = Nodes(
            self._tell_of_node, lambda: self._attempts.held() | self._replicas.held(), self._containment.look
        )
        urls = {"dashboard": dashboard, "endpoint": self._endpoint.url}
        known = {name: url for name, url in urls.items() if url}
        send(Connected(cluster_id, known, tuple(self._nodes.alive())))
        self._nodes.look()
        watchdog.cancel()
        Answering(self._nodes.alive, lambda: self._lose("Ray does not answer any more")).start()
        self._every(LOOK_AT_NODES_EVERY_S, self._nodes.look)
        self._every(LOOK_AT_ATTEMPTS_EVERY_S, self._attempts.look)
        self._every(LOOK_AT_REPLICAS_EVERY_S, self._replicas.look)
        self._every(LOOK_AT_LOAD_EVERY_S, self._endpoint.look)
        self._every(REAP_EVERY_S, self._reaper.sweep)
        self._every(REAP_EVERY_S, self._containment.sweep)
        self._every(REAP_EVERY_S, self._provision.renew)

    def _tell_of_node(self, seen: Observation) -> None:
        if isinstance(seen, NodeGone):
            self._attempts.node_gone(seen.node)
        self._pipe.send(seen)

    def _take(self, op: str, body: Any) -> None:
        """Orders about one attempt happen in their order, those about different ones side by side."""
        if getattr(body, "epoch", self._epoch) < self._epoch:
            print(f"{op} of epoch {body.epoch} ignored: this is {self._epoch}", file=sys.stderr)
            return
        if isinstance(body, wire.Adopt):
            for live in body.live:
                self._containment.expect(live.order)
                self._adopt(live.order, live.was_running)
            if body.is_last:  # now whoever was not named is nobody's
                self._reaper.arm()
                self._containment.arm()
        elif isinstance(body, LaunchOrder):
            self._containment.expect(body)
            self._launch(op, body)
        elif isinstance(body, StopOrder):
            self._orders.put(Order(body.name, partial(self._stop, body), partial(self._gone, body)))
        elif isinstance(body, AdapterOrder):
            load = partial(self._replicas.load_adapter, body)
            self._orders.put(Order(f"llms/{body.gang}/{body.attempt}", load, partial(self._adapter_unanswered, body)))
        elif isinstance(body, AskAnswer):
            self._attempts.answer(body)
        elif isinstance(body, CommandOrder):
            self._commands.run(body) if op == "execute" else self._commands.end(body)
        elif isinstance(body, CommandInput):
            self._commands.tell(body)
        elif isinstance(body, DashboardOrder):
            self._commands.ask(body) if op == "ask_dashboard" else self._commands.leave(body)
        elif isinstance(body, RouteTable):  # `Endpoint.look` pushes it too, and says what is wrong
            self._orders.put(Order("route", partial(self._endpoint.route, body), partial(_say, "route")))
        elif isinstance(body, wire.Capacity):  # `Provision.renew` asks again
            self._orders.put(
                Order("capacity", partial(self._provision.request, body.bundles), partial(_say, "capacity"))
            )

    def _launch(self, op: str, order: LaunchOrder) -> None:
        begin = self._attempts.resize if op == "resize" else self._attempts.launch
        begin = self._launch_replica if order.kind == "serve" else begin
        # Once: it has tried for long enough itself, and the core tries again elsewhere.
        self._orders.put(Order(order.name, partial(begin, order), partial(self._not_started, order), ONCE))

    def _launch_replica(self, order: LaunchOrder) -> None:
        self._warm.make_way(order)
        self._replicas.launch(order)

    def _stop(self, order: StopOrder) -> None:
        self._replicas.stop(order) if order.kind == "serve" else self._attempts.stop(order)
        with suppress(Exception):  # it is told to stop; who looks on its nodes then wakes what is not awake
            self._containment.wake(order.name)

    def _adopt(self, order: LaunchOrder, was_running: bool) -> None:
        adopt = self._replicas.adopt if order.kind == "serve" else self._attempts.adopt
        unanswered = self._gone if was_running else self._not_started
        self._orders.put(Order(order.name, partial(adopt, order, was_running), partial(unanswered, order)))
        if was_running:
            end = partial(self._commands.end_left_behind, order)
            self._orders.put(Order(order.name, end, partial(_say, f"commands beside {order.name}")))

    def _not_started(self, order: LaunchOrder, why: str) -> None:
        self._containment.deliver(NotStarted(order.gang, order.attempt, "interruption", why))

    def _gone(self, order: LaunchOrder | StopOrder, why: str) -> None:
        """Nobody can say what became of it: what is left of it is ended, then it is told as vanished."""
        self._containment.deliver(Vanished(order.gang, order.attempt, f"Ray could not be asked: {why}"))

    def _adapter_unanswered(self, order: AdapterOrder, why: str) -> None:
        self._pipe.send(AdapterAnswer(order.gang, order.attempt, order.name, order.uri, why))

    def _every(self, seconds: float, look: Callable[[], None]) -> None:
        def loop() -> None:
            while True:
                begun = time.monotonic()
                try:
                    look()
                except Exception:
                    traceback.print_exc()
                time.sleep(max(0.05, seconds - (time.monotonic() - begun)))

        threading.Thread(target=loop, daemon=True, name=look.__qualname__).start()

    def _lose(self, message: str, *, is_insecure: bool = False) -> None:
        self._pipe.send(Disconnected(message, is_insecure))
        os._exit(1)


def _say(what: str, why: str) -> None:
    print(f"{what}: {why}", file=sys.stderr)


def main() -> None:
    code = Bridge(Pipe()).run()
    # Not sys.exit: Ray's own exit hooks would wait for threads that are still looking.
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
