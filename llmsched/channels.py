"""Several streams of bytes, in both directions, over one connection that carries frames: what a person does by hand
beside a worker travels so, from the command line through API, controller and bridge, none of which looks inside.

Either end opens a channel by its first frame. A sender has at most WINDOW bytes on the way that the receiver has not
read, so whoever reads slowly holds up one channel and nobody's memory, and a peer that breaks this is hung up on.
Knows threads and no event loop. Start reading at `Channels`.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress

WINDOW = 256 * 1024  # bytes
PIECE = 32 * 1024
AT_ONCE = 64  # channels
FRAME_AT_MOST = PIECE + 64
_HEAD = struct.Struct(">BI")  # kind, channel
_COUNT = struct.Struct(">I")
_SIZE = struct.Struct(">HH")
_WHY_AT_MOST = 500  # characters
DATA, READ, END, BREAK, SIZE = range(5)
CLOSED = "the connection was closed"


class Broken(Exception):
    """The channel is over before its end; why, for people."""


class Misuse(Exception):
    """The peer does not keep to this: hang up."""


class Channel:
    """Made by `Channels`. Calls block; one thread may read while another writes."""

    def __init__(self, number: int, post: Callable[[int, int, bytes], None]) -> None:
        self.number = number
        self.size: tuple[int, int] | None = None  # rows and columns of the terminal at the other end
        self.on_size: Callable[[int, int], None] = lambda rows, columns: None
        self._post = post
        self._changed = threading.Condition()
        self._inbox: deque[bytes] = deque()
        self._unread = 0
        self._left = WINDOW
        self._has_ended = self._did_end = False
        self._broken: str | None = None

    def read(self) -> bytes:
        """What has come, at least one byte; b"" at its end. Raises Broken."""
        with self._changed:
            while not self._inbox and not self._has_ended and self._broken is None:
                self._changed.wait()
            data = b"".join(self._inbox)
            self._inbox.clear()
            self._unread = 0
            if not data and self._broken is not None and not self._has_ended:
                raise Broken(self._broken)
        if data:
            self._post(READ, self.number, _COUNT.pack(len(data)))
        return data

    def write(self, data: bytes) -> None:
        """All of it, as the other end reads. Raises Broken."""
        rest = memoryview(data)
        while rest:
            with self._changed:
                while self._left == 0 and self._broken is None:
                    self._changed.wait()
                if self._broken is not None or self._did_end:
                    raise Broken(self._broken or "it was ended here")
                piece = rest[: min(self._left, PIECE)]
                self._left -= len(piece)
            self._post(DATA, self.number, bytes(piece))
            rest = rest[len(piece) :]

    def end(self) -> None:
        """Nothing more will be written here; reading goes on."""
        with self._changed:
            if self._did_end or self._broken is not None:
                return
            self._did_end = True
        self._post(END, self.number, b"")

    def break_off(self, why: str) -> None:
        """Both directions are over."""
        if self._break(why):
            self._post(BREAK, self.number, why[:_WHY_AT_MOST].encode(errors="replace"))

    def resize(self, rows: int, columns: int) -> None:
        """Tell the size of the terminal at this end."""
        self._post(SIZE, self.number, _SIZE.pack(rows, columns))

    @property
    def why(self) -> str:
        """It was broken off; "" when it was not."""
        return self._broken or ""

    @property
    def is_over(self) -> bool:
        """Nothing will come and nothing may go."""
        return self._broken is not None or (self._has_ended and self._did_end)

    def _break(self, why: str) -> bool:
        with self._changed:
            if self._broken is not None:
                return False
            self._broken = why or "it was broken off"
            self._changed.notify_all()
            return True

    def _take(self, kind: int, payload: bytes) -> None:
        with self._changed:
            if kind == DATA:
                self._unread += len(payload)
                if self._unread > WINDOW:
                    raise Misuse("more came than was asked for")
                if not self._has_ended and self._broken is None and payload:
                    self._inbox.append(payload)
            elif kind == READ:
                self._left = min(WINDOW, self._left + _COUNT.unpack(payload)[0])
            elif kind == END:
                self._has_ended = True
            elif kind == SIZE:
                self.size = _SIZE.unpack(payload)
            self._changed.notify_all()
        if kind == BREAK:
            self._break(payload.decode(errors="replace"))
        if kind == SIZE:
            self.on_size(*_SIZE.unpack(payload))


class Channels:
    """One end of a connection. `send` takes each frame to the other, in order, and may block; `opened` is called with
    each channel that the other end begins, and must not block."""

    def __init__(self, send: Callable[[bytes], None], opened: Callable[[Channel], None] | None = None) -> None:
        self._send, self._opened = send, opened
        self._lock = threading.Lock()
        self._known: dict[int, Channel] = {}
        self._highest = -1  # of the numbers of the other end: those up to it are open, or were
        self._closed: str | None = None

    def open(self, number: int) -> Channel:
        """A channel that this end begins, under a number that it has not used yet."""
        channel = Channel(number, self._post)
        with self._lock:
            self._sweep()
            if len(self._known) >= AT_ONCE:
                channel._break(f"{AT_ONCE} are open already")
            elif self._closed is not None:
                channel._break(self._closed)
            else:
                self._known[number] = channel
        return channel

    def take(self, frame: bytes) -> None:
        """A frame of the other end. Never blocks. Raises Misuse."""
        if len(frame) < _HEAD.size or len(frame) > FRAME_AT_MOST:
            raise Misuse(f"a frame of {len(frame)} bytes")
        kind, number = _HEAD.unpack_from(frame)
        begun = None
        with self._lock:
            channel = self._known.get(number)
            if channel is None and self._opened is not None and number > self._highest and self._closed is None:
                self._sweep()
                if len(self._known) >= AT_ONCE:
                    raise Misuse(f"more than {AT_ONCE} channels")
                channel = begun = self._known[number] = Channel(number, self._post)
                self._highest = number
        if channel is None:
            return  # of one that is over
        try:
            channel._take(kind, frame[_HEAD.size :])
        except struct.error:
            raise Misuse(f"a frame of kind {kind} that is none") from None
        if begun is not None and self._opened is not None:
            self._opened(begun)

    def close(self, why: str) -> None:
        """The connection is gone: so is every channel."""
        with self._lock:
            self._closed = why
            known, self._known = list(self._known.values()), {}
        for channel in known:
            channel._break(why)

    def _sweep(self) -> None:
        self._known = {number: channel for number, channel in self._known.items() if not channel.is_over}

    def _post(self, kind: int, number: int, payload: bytes) -> None:
        if self._closed is None:
            self._send(_HEAD.pack(kind, number) + payload)


def splice(channel: Channel, connection: socket.socket) -> None:
    """Pass bytes both ways, to the end of both; close the connection."""
    back = threading.Thread(target=_pass_back, args=(connection, channel), daemon=True)
    back.start()
    try:
        while data := channel.read():
            connection.sendall(data)
        with suppress(OSError):
            connection.shutdown(socket.SHUT_WR)
    except (Broken, OSError):
        _sever(channel, connection)
    back.join()
    connection.close()


def _pass_back(connection: socket.socket, channel: Channel) -> None:
    try:
        while data := connection.recv(PIECE):
            channel.write(data)
        channel.end()
    except (Broken, OSError):
        _sever(channel, connection)


def _sever(channel: Channel, connection: socket.socket) -> None:
    channel.break_off(CLOSED)
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
