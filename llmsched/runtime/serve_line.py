"""Questions both ways between two processes of one application, over one connection, and streams of answers.

What is asked, given and answered is pickled as between Serve's own processes; a handle among it leads to where it came
from. A question that cannot be sent, or whose answer cannot, fails alone; when the other process has gone, all that is
open fails. Start at `Line.ask`.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import queue
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from multiprocessing.connection import Connection
from typing import Any

from ray.serve._private.common import DeploymentID, RequestMetadata

from llmsched.runtime import exceptions
from llmsched.runtime.exceptions import WorkError
from llmsched.runtime.serve_handles import Asked, Put, Running, Work, packed, resolved, unpacked

REQUEST = "request"
Answer = Callable[[str, Any, Put | None], Running]  # what is asked, with what, and where items of a stream go


class Line:
    """`answer` begins what the other side asks; `gone` says why nothing more comes, when the other side has ended."""

    def __init__(self, connection: Connection, answer: Answer, gone: Callable[[], str]) -> None:
        self._connection, self._answer, self._gone = connection, answer, gone
        self._numbers = itertools.count()
        self._lock = threading.Lock()  # of the two below
        self._open: dict[int, tuple[_Asking, Put | None]] = {}
        self._ended = ""
        self.is_open = True  # until the other side is known to have ended
        self._begun: dict[int, Running] = {}  # for them
        self._sent: queue.SimpleQueue[bytes] = queue.SimpleQueue()  # nobody waits until the other side reads
        threading.Thread(target=self._write, daemon=True, name="serve line").start()

    def ask(self, what: str, given: Any, put: Put | None = None) -> Running:
        """Of the other side; `put` takes the items of a stream. What comes raises as the work does, or WorkError."""
        number = next(self._numbers)
        asking = _Asking(lambda: self._send("cancel", number))
        with self._lock:
            if self._ended:
                asking.set_exception(WorkError(self._ended))
                return asking
            self._open[number] = asking, put
        try:
            self._send("ask", number, (what, given, put is not None))
        except BaseException:
            with self._lock:
                self._open.pop(number, None)
            raise
        return asking

    @property
    def has_ended(self) -> str:
        """Why nothing more comes, or ""."""
        return self._ended

    def deployment(self, id: DeploymentID) -> Asked:
        """What a handle asks whose deployment is on the other side."""
        return _There(id, self)

    def read(self) -> None:
        """Until the other side has ended."""
        while True:
            try:
                kind, number, data = self._connection.recv_bytes().split(b" ", 2)
            except (EOFError, OSError):
                break
            self._take(kind.decode(), int(number), data)
        self.is_open = False
        self._end()

    def close(self) -> None:
        """The other side hears of it, and `read` ends on both."""
        with suppress(OSError), socket.socket(fileno=os.dup(self._connection.fileno())) as ours:
            ours.shutdown(socket.SHUT_RDWR)

    def _take(self, kind: str, number: int, data: bytes) -> None:
        if kind == "ask":
            self._begin(number, data)
            return
        if kind == "cancel":
            if (running := self._begun.get(number)) is not None:
                running.cancel()
            return
        with self._lock:
            asking, put = (
                self._open.get(number, (None, None)) if kind == "item" else self._open.pop(number, (None, None))
            )
        if asking is None:
            return
        try:
            value = unpacked(data, self.deployment)
        except BaseException as error:
            asking.fail(WorkError(f"what it answered cannot be read here: {exceptions.words(error)}"))
            return
        if kind == "item" and put is not None:
            put(value)
        elif kind == "done":
            asking.set_result(value)
        elif kind == "failed":
            asking.fail(self._theirs(*value))

    def _begin(self, number: int, data: bytes) -> None:
        try:
            what, given, is_stream = unpacked(data, self.deployment)
            running = self._answer(what, given, (lambda item: self._send("item", number, item)) if is_stream else None)
        except BaseException as error:
            self._fail(number, error)
            return
        self._begun[number] = running
        running.add_done_callback(lambda _: self._tell(number, running))

    def _tell(self, number: int, running: Running) -> None:
        self._begun.pop(number, None)
        if (raised := running.exception()) is not None:
            self._fail(number, raised)
            return
        try:
            self._send("done", number, running.result())
        except Exception as error:
            self._fail(number, error)

    def _fail(self, number: int, error: BaseException) -> None:
        whole = b""
        with suppress(Exception):
            whole = packed(error)
        self._send("failed", number, (exceptions.words(error), whole))

    def _theirs(self, words: str, whole: bytes) -> BaseException:
        """What was raised there; in words where it cannot be made again here."""
        with suppress(Exception):
            if isinstance(error := unpacked(whole, self.deployment), BaseException):
                return error
        return WorkError(words)

    def _send(self, kind: str, number: int, value: Any = None) -> None:
        """Raises what pickling raises."""
        self._sent.put(f"{kind} {number} ".encode() + packed(value))

    def _write(self) -> None:
        with suppress(OSError):  # nobody reads any more: `read` hears of it
            while message := self._sent.get():
                self._connection.send_bytes(message)

    def _end(self) -> None:
        why = self._gone()
        with self._lock:
            self._ended = why
            left = [asking for asking, _ in self._open.values()]
            self._open.clear()
        for asking in left:
            asking.fail(WorkError(why))
        for running in list(self._begun.values()):
            running.cancel()
        self._sent.put(b"")


class _Asking(Running):
    def __init__(self, cancel: Callable[[], None]) -> None:
        super().__init__()
        self._ask = cancel

    def cancel(self) -> bool:
        if not self.done():
            self._ask()
        return False

    def fail(self, error: BaseException) -> None:
        if not self.done():
            self.set_exception(error)


class _There:
    """A deployment of the other side."""

    def __init__(self, id: DeploymentID, line: Line) -> None:
        self._id, self._line = id, line

    def run(self, metadata: RequestMetadata, args: tuple[Any, ...], kwargs: dict[str, Any], put: Put | None) -> Running:
        async def work() -> Any:
            given, named = await resolved(args, kwargs)
            return await self._line.ask(REQUEST, (self._id, metadata, given, named), put).until_done()

        return Work(work(), _loop())


@cache
def _loop() -> asyncio.AbstractEventLoop:
    """Of this process, for what waits for the other side."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True, name="serve lines").start()
    return loop
