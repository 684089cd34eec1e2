"""A line between two processes of one application over TCP, which begins when both have shown that they know a key.

Neither ever sends the key: each answers the other's random challenge with it (HMAC-SHA256). Whoever does not know it is
left without an answer, and keeps nobody who does from coming in. What follows is not encrypted, as Ray's own lines
within a cluster are not. Start at `Door` on one side, at `reach` on the other.
"""

from __future__ import annotations

import hmac
import secrets
import socket
import threading
import time
from collections import deque
from contextlib import suppress
from multiprocessing.connection import Connection

KEY_BYTES = 32
SHOWN_WITHIN_S = 5.0  # of its first byte on, or it goes
WAITING_AT_MOST = 64  # who have yet to show the key; the one that waits for longest goes
_NONCE = 32
_COMING, _HOME = b"llmsched serve line: comes", b"llmsched serve line: is reached"
# A machine that is gone without a word is noticed within half a minute.
_ALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4, "TCP_USER_TIMEOUT": 30_000}


class NoKey(OSError):
    """The other side does not know the key."""


def new_key() -> bytes:
    return secrets.token_bytes(KEY_BYTES)


class Door:
    """Listens on `host`, an address of this machine, for the one who knows `key`."""

    def __init__(self, host: str, key: bytes) -> None:
        self._key = key
        self._listening = socket.create_server((host, 0), backlog=WAITING_AT_MOST)
        self.address: tuple[str, int] = self._listening.getsockname()[:2]
        self._lock = threading.Lock()
        self._waiting: deque[socket.socket] = deque()
        self._came: socket.socket | None = None
        self._is_open = True
        self._changed = threading.Condition(self._lock)
        threading.Thread(target=self._listen, daemon=True, name="serve door").start()

    def let_in(self, within_s: float) -> socket.socket:
        """The first who showed the key; the door is closed behind it. Raises TimeoutError."""
        with self._changed:
            self._changed.wait_for(lambda: self._came is not None or not self._is_open, within_s)
            came, self._came = self._came, None
        self.close()
        if came is None:
            raise TimeoutError("nobody came who knows the key")
        return came

    def close(self) -> None:
        with self._changed:
            self._is_open = False
            waiting, came = [*self._waiting], self._came
            self._waiting.clear()
            self._came = None
            self._changed.notify_all()
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)  # whoever waits in `accept` hears of it
        self._listening.close()
        for one in waiting:
            _cut(one)
        if came is not None:
            came.close()

    def _listen(self) -> None:
        while True:
            try:
                one, _ = self._listening.accept()
            except OSError:  # closed
                return
            with self._lock:
                if not self._is_open:
                    one.close()
                    return
                self._waiting.append(one)
                if len(self._waiting) > WAITING_AT_MOST:
                    _cut(self._waiting.popleft())
            threading.Thread(target=self._ask, args=(one,), daemon=True, name="serve door asks").start()

    def _ask(self, one: socket.socket) -> None:
        try:
            knows = _asked(one, self._key)
        except OSError:
            knows = False
        with self._changed:
            is_waiting = one in self._waiting
            if is_waiting:
                self._waiting.remove(one)
            if knows and is_waiting and self._is_open and self._came is None:
                self._came = one
                self._changed.notify_all()
                return
        one.close()


def reach(address: tuple[str, int], key: bytes, within_s: float = SHOWN_WITHIN_S) -> socket.socket:
    """The line to who listens there. Raises OSError; NoKey when that is somebody else."""
    one = socket.create_connection(address, within_s)
    try:
        until = time.monotonic() + within_s
        theirs, mine = _received(one, _NONCE, until), secrets.token_bytes(_NONCE)
        one.sendall(mine + _word(key, _COMING, theirs, mine))
        if not hmac.compare_digest(_received(one, _NONCE, until), _word(key, _HOME, theirs, mine)):
            raise NoKey(f"who listens at {address[0]}:{address[1]} does not know the key")
        return _begun(one)
    except BaseException:
        one.close()
        raise


def connection_of(line: socket.socket) -> Connection:
    """The socket is the connection's from now on."""
    return Connection(line.detach())


def _asked(one: socket.socket, key: bytes) -> bool:
    mine, until = secrets.token_bytes(_NONCE), time.monotonic() + SHOWN_WITHIN_S
    one.settimeout(SHOWN_WITHIN_S)
    one.sendall(mine)
    theirs, word = _received(one, _NONCE, until), _received(one, _NONCE, until)
    if not hmac.compare_digest(word, _word(key, _COMING, mine, theirs)):
        return False
    one.sendall(_word(key, _HOME, mine, theirs))
    _begun(one)
    return True


def _word(key: bytes, who: bytes, listens: bytes, comes: bytes) -> bytes:
    return hmac.digest(key, who + listens + comes, "sha256")


def _received(one: socket.socket, count: int, until: float) -> bytes:
    data = b""
    while len(data) < count:
        one.settimeout(max(until - time.monotonic(), 0.001))
        more = one.recv(count - len(data))
        if not more:
            raise ConnectionResetError("it was cut before the key was shown")
        data += more
    return data


def _begun(one: socket.socket) -> socket.socket:
    one.settimeout(None)
    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # small questions, each waited for
    one.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _ALIVE.items():
        if hasattr(socket, name):
            one.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return one


def _cut(one: socket.socket) -> None:
    with suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)  # whoever waits for its word hears of it
