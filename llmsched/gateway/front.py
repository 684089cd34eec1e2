"""The endpoint: an ASGI application that checks the key, finds the model, picks a replica and passes the answer on.

It knows replicas only through `replicas.Replica` and imports no Ray, so a test runs it in plain asyncio. It keeps the
last route table it was given for as long as it lives: the controller may be away. Start at `Gateway.__call__`.
"""

from __future__ import annotations

import asyncio
import os
import time
import traceback
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, suppress
from typing import Any
from urllib.parse import unquote

from llmsched.connections import ADMIT
from llmsched.gateway import apps, forms
from llmsched.gateway.bodies import FLEX, WRITES, expected_of, is_streamed, is_usage, json_in, session_of, with_usage
from llmsched.gateway.holds import Holds
from llmsched.gateway.keys import CRITICAL, SHEDDABLE, Key
from llmsched.gateway.limits import (
    BODY_TIMEOUT_S,
    HEARTBEAT_S,
    Disconnected,
    Incoming,
    Receive,
    Send,
    late,
    read_beginning,
    read_body,
)
from llmsched.gateway.open_requests import OpenRequest, OpenRequests
from llmsched.gateway.prefills import Prefills
from llmsched.gateway.rates import Rates
from llmsched.gateway.refusals import OF_CONNECTIONS, UNREADABLE, Refused, encode, error_body, of_connection
from llmsched.gateway.relay import Errand, Relay
from llmsched.gateway.replicas import Chosen, Pool, Replica, ReplicaGone
from llmsched.gateway.replies import refuse, reply, send_end, send_event
from llmsched.gateway.routes import APP_ROUTES, APPS, MODEL_ROUTES
from llmsched.gateway.shares import Shares
from llmsched.gateway.signals import Signals
from llmsched.gateway.spending import Book, Spending
from llmsched.gateway.table import Table, Target
from llmsched.policies.routing import Ask
from llmsched.policies.routing.work import limit_of, prompt_text, tokens_of
from llmsched.runtime.in_hand import LOST

Observe = Callable[[str, str, int, float], None]  # workload, route, HTTP status, seconds


APP_ROUTE = "http"  # of the replica of an app
STREAM_HEADERS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
END: Any = object()  # of a stream; an app may well say None
_OUR_FAULT = "The gateway failed; its log says why."
TABLE_WITHIN_S = 5.0  # the bridge looks twice a second whether the gateway has it
HELD_COMMENT = b": waiting for a replica\n\n"
LAST_WORDS_S = 1.0  # for telling a client why its stream ends


class Gateway:
    """`connect` makes the replica behind a Serve application's name; `observe` hears of every request that ended."""

    def __init__(
        self,
        connect: Callable[[str], Replica],
        *,
        seed: int = 0,
        clock: Callable[[], float] = time.monotonic,
        observe: Observe | None = None,
    ) -> None:
        self._connect = connect
        self._seed = seed
        self._clock = clock
        self._observe = observe
        self._table = Table()
        self._has_table = asyncio.Event()
        self._pools: dict[str, Pool] = {}
        self._routed_at = 0
        self.signals = Signals(clock)
        self._relay = Relay(self.signals, lambda workload: self._holds.wake(workload))
        self._prefills = Prefills(self._relay, self.signals, observe, clock)
        self._holds = Holds(self.signals, self._relay.in_flight)
        self._shares = Shares(self._relay.in_flight, clock)
        self._rates = Rates(clock)
        self.book = Book(os.urandom(8).hex())
        self._open = OpenRequests()

    def route(self, table: Mapping[str, Any]) -> None:
        """Take a new route table (executors.port.RouteTable as JSON data). Requests in flight go on, except those whose
        key is not good for them any more."""
        fresh = Table(table)  # built whole before it replaces the old one: a bad table changes nothing
        pools = {route.workload: self._pools.get(route.workload) for route in fresh.routes.values()}
        for route in fresh.routes.values():
            pool = pools[route.workload] or Pool(route.workload, self._clock)
            pool.update(
                route.replicas, self._connect, routing=route.routing, max_ongoing=route.max_ongoing, seed=self._seed
            )
            pools[route.workload] = pool
        self._pools = {workload: pool for workload, pool in pools.items() if pool is not None}
        self._table, self._routed_at = fresh, int(time.time())
        self._prefills.route(fresh.routes.values(), self._pools)
        self._has_table.set()
        self.signals.latencies.routed({route.workload: route.replicas for route in fresh.routes.values()})
        self._open.check(fresh)
        self._rates.keep_only(fresh.keys, fresh.gateways)
        self._holds.keep_only(self._pools)
        for workload in self._pools:
            self._holds.wake(workload)

    @property
    def version(self) -> int:
        """Of the table in use; 0 before the first."""
        return self._table.version

    def load(self) -> dict[str, dict[str, Any]]:
        """What signals.load has of every workload of the table."""
        return self.signals.load([route.workload for route in self._table.routes.values()])

    # --- one request --------------------------------------------------------------------------------------------

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            incoming = Incoming(receive)
            try:
                await self._http(scope, incoming, send)
            except Refused as refused:
                await refuse(send, refused, incoming, scope["headers"])
            except Disconnected:
                pass
            except Exception:  # a fault of ours must not look like one of the client's
                traceback.print_exc()
                await reply(send, 500, error_body(500, _OUR_FAULT, code="gateway_error"))
        elif scope["type"] == "lifespan":
            await _lifespan(receive, send)
        else:
            socket = apps.Socket(receive, send, "websocket.http.response" in scope.get("extensions", {}))
            try:
                await self._websocket(scope, receive, socket)
            except Refused as refused:
                await socket.refuse(refused)
            except Disconnected:
                pass
            except Exception:
                traceback.print_exc()
                await socket.refuse(Refused(500, _OUR_FAULT, code="gateway_error"))

    async def _http(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        method, path = scope["method"], scope["path"]
        if path == "/healthz":
            await reply(send, 200, {"status": "ok", "version": self.version})
            return
        if path.startswith(UNREADABLE) and (code := path[len(UNREADABLE) :]) in OF_CONNECTIONS:
            raise of_connection(code)
        headers, key = await self._admitted(scope)
        if path == "/v1/models" or path.startswith("/v1/models/"):
            _only(method, "GET", path)
            await reply(send, 200, self._models(path[len("/v1/models/") :], key))
            return
        if path.startswith(APPS):
            target = self._table.app(apps.name_in(path), key)  # before its body is read
            raw, is_whole = await read_beginning(receive, apps.HELD_BYTES)
            body = apps.asked(scope, apps.name_in(path), raw, is_whole)
            await self._app(receive, send, headers, key, target, body)
            return
        if path in APP_ROUTES:
            _only(method, "POST", path)
            raw = await read_body(headers, receive, apps.HELD_BYTES)
            name = apps.model_of(headers, raw)
            target = self._table.app_for(name, path, key)
            await self._app(receive, send, headers, key, target, apps.asked(apps.below(scope, name), name, raw))
            return
        route = MODEL_ROUTES.get(path)
        if route is None:
            raise Refused(404, f"There is nothing at {path}.", code="unknown_url")
        _only(method, "POST", path)
        raw = await read_body(headers, receive, route.most)
        if route.is_form:
            body = forms.fields(headers.get(b"content-type", b"").decode("latin-1"), raw)
        else:
            body = json_in(raw)
        target = self._table.model(body.get("model"), key)
        target.route.check_answers(route.name)
        streams = not route.is_form and is_streamed(body)  # a form has words alone, and no streams
        request = self._begin(key, target, route.name, headers, body, len(raw))
        answer = self._stream if streams else self._call
        work = answer(request, target, route.name, body, send)
        try:
            await request.answer(receive, self._measured(target, route.name, work))
        except Refused as refused:
            if not request.has_begun:
                raise
            with suppress(TimeoutError):  # of a client that does not read
                async with asyncio.timeout(LAST_WORDS_S):
                    await send_event(send, encode(refused.body()))
                    await send_end(send)

    async def _admitted(self, scope: Mapping[str, Any]) -> tuple[dict[bytes, bytes], Key]:
        """The headers of a request and the key that it shows. Raises Refused."""
        if self.version == 0:  # made anew: its table comes within seconds
            with suppress(TimeoutError):
                await asyncio.wait_for(self._has_table.wait(), TABLE_WITHIN_S)
        if self.version == 0:  # a 401 would tell clients that their key is wrong
            raise Refused(503, "The gateway has just started: ask again.", code="starting", retry_after_s=1.0)
        headers = {name.lower(): value for name, value in scope["headers"]}
        key = self._table.keys.check(headers.get(b"authorization", b"").decode("latin-1"))
        scope.get(ADMIT, lambda: None)()
        return headers, key

    async def _app(
        self, receive: Receive, send: Send, headers: Mapping[bytes, bytes], key: Key, target: Target,
        body: dict[str, Any],
    ) -> None:  # fmt: skip
        """One request to an app, whatever its method and path. `body`: of apps.asked."""
        answer = apps.Answer(send)
        request = self._begin(key, target, APP_ROUTE, headers, {}, len(body["body"]))
        upload = apps.Upload() if body["more_body"] else None

        async def work() -> int:
            incoming = upload.incoming() if upload else None
            await apps.carry(self.stream(request, target, APP_ROUTE, body, incoming), answer)
            return answer.status

        async def left() -> Mapping[str, Any]:
            try:
                async with asyncio.timeout(BODY_TIMEOUT_S if upload and not upload.is_whole else None):
                    message = await receive()
            except TimeoutError:
                request.end(late())
                raise
            if upload is not None:
                await upload.put(message)
            if answer.is_over:  # the client has it all; what the app does afterwards goes on
                await asyncio.Event().wait()
            return message

        try:
            await request.answer(left, self._measured(target, "app", work()))
        except Refused as refused:
            if not answer.status:
                raise
            with suppress(TimeoutError):  # of a client that does not read
                async with asyncio.timeout(LAST_WORDS_S):
                    await answer.fail(refused.body())  # if it cannot be told, the connection is cut

    async def _websocket(self, scope: Mapping[str, Any], receive: Receive, socket: apps.Socket) -> None:
        await receive()  # "websocket.connect"
        headers, key = await self._admitted(scope)
        if not scope["path"].startswith(APPS):
            raise Refused(404, f"There is no websocket at {scope['path']}.", code="unknown_url")
        name = apps.name_in(scope["path"])
        target = self._table.app(name, key)
        body = apps.asked(scope, name, b"")
        request = self._begin(key, target, APP_ROUTE, headers, {}, 0)

        async def work() -> int:
            await apps.carry(self.stream(request, target, APP_ROUTE, body, socket.incoming()), socket)
            await socket.end()
            return 101 if socket.is_open else 403

        await request.answer(socket.watch, self._measured(target, "app", work()))

    def _begin(
        self, key: Key, target: Target, route: str, headers: Mapping[bytes, bytes], body: dict[str, Any], size: int
    ) -> OpenRequest:
        """Raises Refused (429)."""
        prompt, pool = tokens_of(prompt_text(body)), self._pools[target.route.workload]
        answer = expected_of(pool.lengths, route, body) if route in WRITES else 0
        spending = Spending(self.book, self._rates, key, target.name, prompt, answer)
        request = self._open.begin(key, target.route.id, target.route.timeout_s, size, spending)
        request.session = session_of(headers, body)
        if body.get("service_tier") == FLEX:
            request.priority = SHEDDABLE
        return request

    async def _measured(self, target: Target, route: str, work: Awaitable[int]) -> None:
        """Run `work`, which answers the client and returns the status it sent."""
        workload, began, status = target.route.workload, self._clock(), 499  # 499: the client left first
        try:
            status = await work
        except Refused as refused:
            status = refused.status
            if refused.code in ("full", "no_replica"):
                self.signals.refused(workload)
            raise
        finally:
            if self._observe is not None:
                self._observe(workload, route, status, self._clock() - began)

    async def _call(self, request: OpenRequest, target: Target, route: str, body: dict[str, Any], send: Send) -> int:
        answer = await self.call(request, target, route, body)
        status = _status(answer)
        await reply(send, status or 200, _error(answer) if status else answer, _retry(answer) if status else ())
        return status or 200

    async def _stream(self, request: OpenRequest, target: Target, route: str, body: dict[str, Any], send: Send) -> int:
        async with aclosing(self.stream(request, target, route, body)) as chunks:
            first = await self._first(request, chunks, send)
            if (status := _status(first)) and not request.has_begun:  # an ordinary error, with its own status
                await reply(send, status, _error(first), _retry(first))
                return status
            await self._begin_stream(request, send)
            try:
                chunk, status = first, 200
                while chunk is not END:
                    if failed := _status(chunk):  # too late for a status: the error is the last event
                        chunk, status = _error(chunk), failed
                    await send_event(send, encode(chunk))
                    chunk = await anext(chunks, END) if status == 200 else END
            except Refused as refused:
                await send_event(send, encode(refused.body()))
                status = refused.status
            except Exception:
                traceback.print_exc()
                await send_event(send, encode(error_body(500, _OUR_FAULT, code="gateway_error")))
                status = 500
            if status == 200:
                await send_event(send, b"[DONE]")
            await send_end(send)
            return status

    async def _begin_stream(self, request: OpenRequest, send: Send) -> None:
        if not request.has_begun:
            request.has_begun = True
            await send({"type": "http.response.start", "status": 200, "headers": STREAM_HEADERS})

    async def _first(self, request: OpenRequest, chunks: AsyncGenerator[Any, None], send: Send) -> Any:
        """The first chunk. The client of a request that is held for long is told so, by comments in the stream."""
        first = asyncio.ensure_future(anext(chunks, END))
        try:
            while not (await asyncio.wait({first}, timeout=HEARTBEAT_S))[0]:
                if request.is_held:
                    await self._begin_stream(request, send)
                    await send({"type": "http.response.body", "body": HELD_COMMENT, "more_body": True})
            return first.result()
        finally:
            if not first.done():  # the generator can be closed only when it rests
                first.cancel()
                await asyncio.wait({first})

    # --- replicas -----------------------------------------------------------------------------------------------

    async def call(self, request: OpenRequest, target: Target, route: str, body: dict[str, Any]) -> Any:
        """The answer of one replica; another one is asked when the chosen one is gone. Raises Refused."""
        pool, gone = self._pools[target.route.workload], set[str]()
        while True:
            chosen = await self._chosen(request, target, pool, body, gone)
            chosen, work = self._prefills.call(request, target, chosen, route, body)
            slot = chosen.slot
            try:
                errand = Errand(pool, chosen, expected_of(pool.lengths, route, body), request.key.id)
                answer = await self._relay.call(errand, work, target.route.timeout_s)
                pool.forgive(slot)
                request.spending.told(answer.get("usage") if isinstance(answer, dict) else None)
                self._learn(request, pool, route, body)
                return answer
            except ReplicaGone:
                pool.avoid(slot)
                gone.add(slot.name)

    async def stream(
        self,
        request: OpenRequest,
        target: Target,
        route: str,
        body: dict[str, Any],
        incoming: AsyncIterator[Any] | None = None,
    ) -> AsyncGenerator[Any, None]:
        """The chunks of one replica, which gets what comes in after the request. Another one is asked only while
        nothing has come yet. Raises Refused."""
        pool, gone, limit_s = self._pools[target.route.workload], set[str](), target.route.timeout_s
        asked = with_usage(body) if route in WRITES else body
        while True:
            chosen = await self._chosen(request, target, pool, body, gone)
            chosen, work = self._prefills.stream(request, target, chosen, route, asked, incoming)
            slot, said = chosen.slot, False
            try:
                errand = Errand(pool, chosen, expected_of(pool.lengths, route, body), request.key.id)
                async with aclosing(self._relay.stream(errand, work, limit_s)) as chunks:
                    async for chunk in chunks:
                        if not said and _has_lost_itself(chunk):
                            raise ReplicaGone(slot.name)
                        said = True
                        if route in WRITES and is_usage(chunk):
                            request.spending.told(chunk["usage"])
                            if asked is not body:
                                continue
                        request.spending.said()
                        yield chunk
                pool.forgive(slot)
                self._learn(request, pool, route, body)
                return
            except ReplicaGone:
                pool.avoid(slot)
                gone.add(slot.name)
                if said:
                    raise Refused(
                        503, "The replica was lost while it answered; ask again.", code="replica_lost"
                    ) from None

    def _learn(self, request: OpenRequest, pool: Pool, route: str, body: dict[str, Any]) -> None:
        """How long an answer became."""
        if route in WRITES and request.spending.completion:
            pool.lengths.saw(limit_of(body), request.spending.completion)

    async def _chosen(
        self, request: OpenRequest, target: Target, pool: Pool, body: dict[str, Any], gone: set[str]
    ) -> Chosen:
        """A replica for this request, which waits where none answers, or others wait already; a critical one also where
        all are full. Raises Refused."""
        model, hold_s = str(body.get("multiplexed", "")), min(target.route.hold_s, target.route.timeout_s)
        ask = Ask(body, prompt_text(body), request.session)
        is_full = pool.capacity() > 0 and not pool.room()
        joins = self._holds.anyone_for_want_of_replicas(pool.workload) if is_full else self._holds.anyone(pool.workload)
        if not joins or not hold_s:
            try:
                self._shares.check(pool, request.key.id, request.priority)
                return pool.choose(ask, gone, model)
            except Refused as refused:
                may_wait = refused.code == "no_replica" or is_full and request.priority == CRITICAL
                if not hold_s or not may_wait:
                    self._shares.turned_away(pool.workload, request.key.id)
                    raise
        request.is_held = True
        try:
            gone.clear()  # who was gone may be back
            return await self._holds.slot(
                pool, request.key.id, request.priority, request.size, hold_s, lambda: pool.choose(ask, gone, model)
            )
        finally:
            request.is_held = False

    def _models(self, name: str, key: Key) -> dict[str, Any]:
        listed = [
            {"id": id, "object": "model", "created": self._routed_at, "owned_by": "llmsched", "parent": parent}
            for id, parent in self._table.models(key)
        ]
        if not name:
            return {"object": "list", "data": listed}
        target = self._table.model(unquote(name), key)
        return next(model for model in listed if model["id"] == target.name)


def _only(method: str, allowed: str, path: str) -> None:
    if method != allowed:
        raise Refused(405, f"{path} answers {allowed}, not {method}.", code="method_not_allowed")


def _status(answer: Any) -> int:
    """The HTTP status of a replica's error answer, else 0."""
    if not (isinstance(answer, dict) and isinstance(answer.get("error"), dict)):
        return 0
    status = answer.get("status")  # an app may say "status" too, and mean something else
    return status if isinstance(status, int) and 400 <= status <= 599 else 0


def _has_lost_itself(answer: Any) -> bool:
    return bool(_status(answer)) and answer["error"].get("code") == LOST


def _error(answer: dict[str, Any]) -> dict[str, Any]:
    return {"error": answer["error"]}


def _retry(answer: dict[str, Any]) -> list[tuple[bytes, bytes]]:
    return [(b"retry-after", b"1")] if answer["status"] in (429, 503) else []


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        kind = (await receive())["type"]
        await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return


def internal_error(message: str) -> dict[str, Any]:
    """What a replica that failed without an answer of its own is taken to have said."""
    return {**error_body(500, message, code="replica_error"), "status": 500}
