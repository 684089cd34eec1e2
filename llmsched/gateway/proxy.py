"""Stands in front of the gateway, as the controller's user: a token that is shown at an endpoint becomes its key here.

    python -m llmsched.gateway.proxy HOME PORT NOTE

The gateway runs as all work does, so work could keep what it is shown. It gets keys alone: whatever else comes in an
`Authorization` header is replaced by the key of it (`spec/endpoint_keys.py`), good or not, which is the gateway's to
say. So this process needs to know no token, and nothing else about a request. Each connection has one of its own to the
gateway, and lives as long: bounds and time limits are the gateway's. What comes back is passed on as it comes.

A process of its own, so that streams outlive the controller. `executors/endpoint_proxy.py` starts two of them, which
share the port, and watches them: whoever connects while one is gone reaches the other. Where
controller and Ray are both gone for long, it ends by itself: nobody may be left to end it.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import signal
import socket
import sys
from collections.abc import Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any

import httptools
import uvloop

from llmsched import connections, file_lock
from llmsched.gateway import upstreams
from llmsched.gateway.heads import Head, shown_to_gateway, without_upgrade
from llmsched.gateway.refusals import HEAD_BYTES, UNREADABLE, Refused, encode, of_connection
from llmsched.gateway.replay import Replay, Room
from llmsched.gateway.upstreams import Place, Upstreams

# In the home, of one each: {"pid", "port"}, locked for as long as that process lives.
NOTES = ("endpoint-proxy.json", "endpoint-proxy-2.json")
GATEWAY = upstreams.FILE
LED = "controller.lock"  # in the home: locked for as long as there is a controller
LEFT_S = 600.0  # without a controller and a gateway: then nobody comes back soon
BEAT_EVERY_S = 2.0  # between touches of the note
BACK_WITHIN_S = 5.0  # a gateway that was killed is; requests wait so long for it
TRY_EVERY_S = 0.1
ASKS_WITHIN_S = 10.0  # where no gateway bounds it
READS_WITHIN_S = 30.0  # a caller the last words that were sent to it
STALLS_AT_MOST_S = 120.0  # a caller who reads nothing of what waits for it
BACKLOG = 2048
DESCRIPTORS = 2 * connections.DESCRIPTORS
UPGRADED = b"HTTP/1.1 101"


def listening_socket(port: int, *, only_held: bool = False) -> socket.socket:
    """On loopback, of this user alone: others of this user may bind the same port, nobody else may, not even while one
    of them is only held and accepts nothing. Raises OSError."""
    found = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        found.bind(("127.0.0.1", port))
        if not only_held:
            found.listen(BACKLOG)
            # Not before: it lets anybody bind a port beside sockets that have it and do not listen. Connections get it
            # from here, so that the port is free again once they and we are gone.
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    except OSError:
        found.close()
        raise
    return found


class Caller(asyncio.Protocol):
    """The connection of a caller. Its requests are read as they come, and written to the gateway's anew."""

    def __init__(self, home: Path, upstreams: Upstreams | None = None, room: Room | None = None) -> None:
        self._upstreams = upstreams or Upstreams(home)
        self._replay = Replay(room or Room())
        self._place: Place | None = None  # of its gateway
        self._transport: Any = None
        self._gateway: Gateway | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._is_away = False  # the gateway
        self._early = b""  # what came before either is known
        self._has_asked = False
        self._is_answered = False  # the gateway has said something
        self._is_over = False  # nothing more is read
        self._is_refused = False
        self._is_raw = False  # another protocol has begun
        self._after_upgrade = b""  # what came before it had
        self._ready: list[bytes] = []  # for the gateway, from one read
        self._stalls: asyncio.TimerHandle | None = None
        self._renew()

    def _renew(self) -> None:
        self._parser: Any = httptools.HttpRequestParser(self)
        self._head = Head(b"", b"", "", [])
        self._size = 0
        self._in_body = self._is_chunked = False

    # --- the connection ---------------------------------------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._connecting = asyncio.create_task(self._connect())

    async def _connect(self, again: Sequence[bytes] = ()) -> None:
        """To a gateway, which is told first what another one was told `again`."""
        loop = asyncio.get_running_loop()
        until = loop.time() + BACK_WITHIN_S
        while self._gateway is None and not self._is_away:
            try:
                await self._connect_to(self._upstreams.places())
            except (FileNotFoundError, ValueError):
                self._is_away = True
            except OSError:  # it may just be made anew, perhaps on another port
                self._is_away = loop.time() > until
                await asyncio.sleep(0 if self._is_away else TRY_EVERY_S)
        if self._is_away:
            loop.call_later(ASKS_WITHIN_S, self._transport.abort)
        if again and self._gateway is None:
            self._is_over = True
            self._tell(_away())
        elif again and self._gateway is not None:
            self._gateway.transport.writelines(again)
        early, self._early = self._early, b""
        self.data_received(early)
        self.go_on()

    async def _connect_to(self, places: Sequence[Place]) -> None:
        """The first of them that is there. Raises OSError."""
        for place in places:
            self._place = place
            try:
                await asyncio.get_running_loop().create_connection(lambda: Gateway(self), *place)
                return
            except OSError:
                if place == places[-1]:
                    raise

    async def _follow(self) -> None:
        """The gateway hung up while nothing was asked: because it is gone, or because it would not wait any longer."""
        assert self._place is not None
        try:
            probe, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, *self._place)
        except OSError:
            await self._connect()
            return
        probe.abort()
        if self._early:  # it has been asked again in the meantime
            await self._connect()
        else:
            self._end()

    def _elsewhere(self, again: Sequence[bytes] | None = None) -> None:
        """On with another gateway; without `again` nothing waits for an answer."""
        self._gateway, self._is_away = None, False
        self._connecting = asyncio.create_task(self._follow() if again is None else self._connect(again))

    def move(self) -> None:
        """See `upstreams.Moves`. What waits for an answer is asked elsewhere; an answer that has begun may go on."""
        if self._is_over or self._is_raw or self._gateway is None:
            return
        again = [] if self._replay.is_idle else self._replay.again()
        if again is not None:
            self._drop_gateway()
            self._elsewhere(again)

    def _drop_gateway(self) -> None:
        if self._gateway is not None:
            assert self._place is not None
            self._upstreams.leave(self, self._place)
            self._gateway.is_dropped = True
            self._gateway.transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        assert self._connecting is not None
        self._is_over = True
        self._connecting.cancel()
        self._replay.close()
        if self._stalls is not None:
            self._stalls.cancel()
        self._drop_gateway()

    def pause_writing(self) -> None:
        if self._gateway is not None:
            _pause(self._gateway.transport)
        self._see_it_read()

    def resume_writing(self) -> None:
        if self._stalls is not None:
            self._stalls.cancel()
        if self._gateway is not None:
            _resume(self._gateway.transport)

    def _see_it_read(self) -> None:
        """While the gateway is not read, its hanging up is not seen either: who reads nothing would stay for ever."""
        unread = self._transport.get_write_buffer_size()

        def look() -> None:
            if self._transport.get_write_buffer_size() < unread:
                self._see_it_read()
            else:
                self._transport.abort()

        self._stalls = asyncio.get_running_loop().call_later(STALLS_AT_MOST_S, look)

    def data_received(self, data: bytes) -> None:
        if self._is_over or not data:
            return
        if self._gateway is None and not self._is_away:  # nobody is there yet to tell
            self._early += data
            _pause(self._transport)
            return
        if self._is_raw:
            self._ready.append(data)
        else:
            self._read(data)
        if self._ready and self._gateway is not None and not self._gateway.transport.is_closing():
            self._gateway.transport.writelines(self._ready)
        self._ready = []

    # --- what the gateway's connection tells ------------------------------------------------------------------------

    def joined(self, gateway: Gateway) -> None:
        if self._is_over:
            gateway.transport.abort()
        else:
            assert self._place is not None
            self._gateway = gateway
            self._upstreams.join(self, self._place)

    def answered(self, data: bytes) -> None:
        self._is_answered = True
        self._replay.answers(data)
        if not (self._is_refused or self._transport.is_closing()):
            self._transport.write(data)

    def upgraded(self) -> None:
        self._is_raw = True
        self.data_received(self._after_upgrade)
        _resume(self._transport)

    def left(self) -> None:
        """The gateway hung up. What it had said is still sent; what it has not answered another one is asked."""
        assert self._place is not None
        self._upstreams.leave(self, self._place)
        if self._is_refused:
            return
        again = None if self._is_over or self._is_raw else self._replay.again()
        if again is not None or (self._replay.is_idle and not self._is_over):
            self._elsewhere(again)
        elif self._replay.is_waiting and not self._is_over:
            self._is_over = True
            self._tell(_lost())
        else:
            self._end()

    def hold(self) -> None:
        _pause(self._transport)

    def go_on(self) -> None:
        if self._gateway is None or not self._gateway.is_asked_to_upgrade:
            _resume(self._transport)

    # --- what httptools reads ---------------------------------------------------------------------------------------

    def _read(self, data: bytes) -> None:
        while data and not self._is_over:
            data = self._to_read_again(data)

    def _to_read_again(self, data: bytes) -> bytes:
        """What is left of it when a request has asked for another protocol."""
        try:
            self._size += len(data)
            self._parser.feed_data(data)
            if self._size > HEAD_BYTES:
                raise of_connection("head")
        except httptools.HttpParserUpgrade as upgrade:
            return self._upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            refused = error.__context__ if isinstance(error.__context__, Refused) else None
            self._refuse(refused or of_connection("bad_request"))
        except Refused as refused:
            self._refuse(refused)
        return b""

    def _upgrade(self, rest: bytes) -> bytes:
        head = self._head
        self._renew()
        if head.method == b"CONNECT":
            self._refuse(of_connection("method_not_allowed"))
        elif head.method == b"GET" and head.has(b"upgrade", b"websocket"):
            if self._gateway is None:
                self._refuse(_away())
                return b""
            # What follows is the caller's own only once the gateway has agreed: until then it could be a request.
            self._gateway.is_asked_to_upgrade = True
            _pause(self._transport)
            self._has_asked = True
            self._replay.lose()
            self._ready.append(shown_to_gateway(head).to_bytes())
            self._after_upgrade = rest
        else:
            return without_upgrade(head).to_bytes() + rest
        return b""

    def on_message_begin(self) -> None:
        self._head = Head(b"", b"", "", [])

    def on_url(self, part: bytes) -> None:
        self._head = self._head._replace(target=self._head.target + part)

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_body:  # else it is a trailer, of which nobody here knows anything
            self._head.headers.append((name, value))

    def on_headers_complete(self) -> None:
        method, version = self._parser.get_method(), self._parser.get_http_version()
        self._head = self._head._replace(method=method, version=version)
        if self._parser.should_upgrade():
            return
        if self._is_away:
            raise _away()
        self._has_asked = True
        self._in_body, self._is_chunked = True, self._head.has(b"transfer-encoding", b"chunked")
        self._replay.begins(method, self._head.target)
        self._pass_on(shown_to_gateway(self._head).to_bytes())

    def on_body(self, body: bytes) -> None:
        self._size = 0  # else nobody here keeps it: what httptools keeps is heads, trailers of any length among them
        self._pass_on(b"%x\r\n%b\r\n" % (len(body), body) if self._is_chunked else body)

    def on_message_complete(self) -> None:
        if self._in_body and self._is_chunked:
            self._pass_on(b"0\r\n\r\n")
        self._in_body, self._size = False, 0

    def _pass_on(self, data: bytes) -> None:
        self._ready.append(data)
        self._replay.passes(data)

    def _refuse(self, refused: Refused) -> None:
        """Nothing more is read. The caller is told why, after the answers to what it asked before."""
        self._is_over = True
        if self._gateway is None or not self._has_asked:
            self._tell(refused)
        elif not self._in_body:
            says = Head(b"GET", f"{UNREADABLE}{refused.code}".encode(), "1.1", [(b"connection", b"close")])
            self._ready.append(says.to_bytes())
        elif self._is_answered:  # in the middle of an answer, perhaps
            self._end()
        else:
            self._tell(refused)
            self._gateway.transport.abort()  # where the rest of that body would be waited for

    def _tell(self, refused: Refused) -> None:
        self._is_refused = True
        body = encode(refused.body())
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *refused.headers()]
        first = f"HTTP/1.1 {refused.status} {HTTPStatus(refused.status).phrase}".encode()
        lines = [first, *(b"%s: %s" % one for one in headers), b"connection: close"]
        self._transport.write(b"\r\n".join([*lines, b"", body]))
        self._transport.write_eof()  # and not closed: with something unread that would take back what was written
        asyncio.get_running_loop().call_later(READS_WITHIN_S, self._transport.abort)

    def _end(self) -> None:
        self._is_over = True
        if self._transport.get_write_buffer_size():
            asyncio.get_running_loop().call_later(READS_WITHIN_S, self._transport.abort)
        self._transport.close()


class Gateway(asyncio.Protocol):
    """The connection to the gateway that belongs to one of a caller."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._first = b""
        self.is_asked_to_upgrade = False
        self.is_dropped = False  # its caller has another one
        self.transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self._caller.joined(self)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.is_dropped:
            self._caller.left()

    def pause_writing(self) -> None:
        self._caller.hold()

    def resume_writing(self) -> None:
        self._caller.go_on()

    def data_received(self, data: bytes) -> None:
        if self.is_dropped:
            return
        self._caller.answered(data)
        if self.is_asked_to_upgrade:
            self._first = (self._first + data)[: len(UPGRADED)]
            if self._first == UPGRADED:
                self.is_asked_to_upgrade = False
                self._caller.upgraded()


def _away() -> Refused:
    return Refused(503, "No endpoint answers now: ask again.", code="starting", retry_after_s=1.0)


def _lost() -> Refused:
    return Refused(503, "The gateway was lost before it answered: it may have been done or not.", code="gateway_lost")


def _pause(transport: Any) -> None:
    if not transport.is_closing():
        transport.pause_reading()


def _resume(transport: Any) -> None:
    if not transport.is_closing():
        transport.resume_reading()


async def serve(home: Path, listener: socket.socket, stop: asyncio.Event, note: str = NOTES[0]) -> None:
    """Until `stop` is set, the home is gone, or nobody is left before whom and for whom to stand."""
    loop = asyncio.get_running_loop()
    gateways, room = Upstreams(home), Room()
    watching = asyncio.create_task(gateways.watch())
    server = await loop.create_server(lambda: Caller(home, gateways, room), sock=listener, backlog=BACKLOG)
    left_at = loop.time()
    try:
        while not stop.is_set() and home.exists():
            with contextlib.suppress(OSError):
                os.utime(home / note)
            if file_lock.is_held(home / LED) or await _answers(gateways):
                left_at = loop.time()
            elif loop.time() - left_at >= LEFT_S:
                break
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), BEAT_EVERY_S)
    finally:
        watching.cancel()
        server.close()


async def _answers(gateways: Upstreams) -> bool:
    """Whether somebody listens where a gateway is."""
    with contextlib.suppress(OSError, ValueError):
        for place in gateways.places():
            with contextlib.suppress(OSError):
                transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, *place)
                transport.abort()
                return True
    return False


async def main(home: Path, port: int, note: str) -> None:
    connections.make_room(DESCRIPTORS)
    noted = (home / note).open("a+")
    fcntl.flock(noted, fcntl.LOCK_EX | fcntl.LOCK_NB)  # one at a time; free again when this process is gone
    noted.truncate(0)  # of whoever had it before
    listener = listening_socket(port)
    noted.write(json.dumps({"pid": os.getpid(), "port": port}))
    noted.flush()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await serve(home, listener, stop, note)


if __name__ == "__main__":
    try:
        uvloop.run(main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]))
    except OSError as problem:
        raise SystemExit(f"the proxy of endpoints: {problem}") from None
