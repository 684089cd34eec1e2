"""What a person does by hand beside a running member: a program at a terminal or with input, a port, files.

Blocking, with threads, for a terminal and sockets are so; from an event loop call it in a thread. Start reading at
`Beside`.
"""

from __future__ import annotations

import shutil
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any

from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from llmsched import copying, versions
from llmsched.channels import CLOSED, FRAME_AT_MOST, Broken, Channel, Channels, Misuse, splice
from llmsched.client.transport import error_in, error_of_body
from llmsched.errors import ClusterError, RequestError, SpecError
from llmsched.spec.by_hand import ByHandRequest, ByHandWord

LOOPBACK = "127.0.0.1"
PORTS_TRIED = 20  # for one that is free, beside one that is taken
_OPEN_WITHIN_S = 10.0


class Beside:
    """One thing done by hand; leaving the `with` ends it. `exit_code` and `message` are of its end, as of ExecLine.

    Raises RequestError, NotAllowed, ClusterError where it may not or cannot begin."""

    def __init__(self, url: str, token: str, path: str, ask: ByHandRequest) -> None:
        self.exit_code: int | None = None
        self.message = "the connection to the controller broke"
        self._begun: list[Channel] = []
        self._began = threading.Condition()
        self._stack = ExitStack()
        self._socket = self._stack.enter_context(_opened(url, token, path))
        self.channels = Channels(self._send, self._note)
        try:
            self._socket.send(ask.model_dump_json())
            first = ByHandWord.model_validate_json(self._socket.recv())
        except ConnectionClosed:
            raise ClusterError(f"the connection to the controller at {url} broke.", code="connection") from None
        if not first.begun:
            self._stack.close()
            self._settle(first)
            if first.error is None:
                raise ClusterError(f"it did not begin: {first.message}.", code="ended")
            raise error_of_body(first.error, 409)
        self._listener = threading.Thread(target=self._listen, daemon=True, name="by hand")
        self._listener.start()

    def __enter__(self) -> Beside:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._stack.close()
        self._listener.join()

    def wait(self) -> int | None:
        """Until it has ended; its exit code."""
        self._listener.join()
        return self.exit_code

    @property
    def has_ended(self) -> bool:
        return not self._listener.is_alive()

    def begun_there(self) -> Channel | None:
        """The channel that the other end has begun: stderr. None: it ended without one."""
        with self._began:
            while not self._begun and self._listener.is_alive():
                self._began.wait(0.1)
            return self._begun[0] if self._begun else None

    def _note(self, channel: Channel) -> None:
        with self._began:
            self._begun.append(channel)
            self._began.notify_all()

    def _send(self, frame: bytes) -> None:
        with suppress(ConnectionClosed):  # the listener sees it too
            self._socket.send(frame)

    def _listen(self) -> None:
        try:
            for message in self._socket:
                if isinstance(message, bytes):
                    self.channels.take(message)
                else:
                    self._settle(ByHandWord.model_validate_json(message))
        except (ConnectionClosed, Misuse):
            pass
        finally:
            self.channels.close(self.message or "it has ended")

    def _settle(self, word: ByHandWord) -> None:
        self.exit_code = word.exit_code
        self.message = word.error.message if word.error else word.message


@contextmanager
def _opened(url: str, token: str, path: str) -> Iterator[ClientConnection]:
    with ExitStack() as stack:
        try:
            asking = connect(
                f"{url.replace('http', 'ws', 1)}{path}",
                additional_headers={"authorization": f"Bearer {token}", versions.HEADER: versions.own()},
                open_timeout=_OPEN_WITHIN_S,
                max_size=FRAME_AT_MOST * 4,
                compression=None,
                proxy=None,  # one of the surroundings has no business between us and loopback
            )
            opened = stack.enter_context(asking)
        except InvalidStatus as refused:
            raise error_in(bytes(refused.response.body or b""), refused.response.status_code, url) from None
        except (OSError, InvalidHandshake):
            raise ClusterError(
                f"no controller answers at {url}.", code="no_controller", hint="Start one: llmsched up."
            ) from None
        yield opened


# -- a port ----------------------------------------------------------------------------------------------------------


def listener(port: int, there: int | None = None) -> socket.socket:
    """On loopback; 0: a free one. Raises RequestError, which names the next free one, when it is taken; `there` is the
    port that it is to stand for."""
    try:
        return socket.create_server((LOOPBACK, port))
    except OverflowError:
        raise SpecError(f"{port} is no port: they go up to 65535.", code="port") from None
    except OSError as error:
        free = next((each for each in range(port + 1, min(port + PORTS_TRIED, 65536)) if _is_free(each)), None)
        hint = "Choose another one." if free is None else f"{free} is free: write {free}:{there or 'REMOTE'}."
        raise RequestError(
            f"port {port} of this machine cannot be used: {error.strerror}.", code="port", hint=hint
        ) from None


def _is_free(port: int) -> bool:
    try:
        with socket.create_server((LOOPBACK, port)):
            return True
    except OSError:
        return False


def forward(beside: Beside, listening: socket.socket, tell: Callable[[str], Any]) -> None:
    """Connections that come here go to the port there, until the other end has ended or `listening` is closed. `tell`
    hears of connections that did not come about."""
    listening.settimeout(0.2)
    numbers = iter(range(0, 2**31, 2))
    while not beside.has_ended:
        try:
            connection, _ = listening.accept()
        except TimeoutError:
            continue
        except OSError:
            return
        connection.settimeout(None)
        channel = beside.channels.open(next(numbers))
        channel.resize(0, 0)  # its first frame, by which the other end connects: also who says nothing may be answered
        threading.Thread(target=_forward_one, args=(channel, connection, tell), daemon=True).start()


def _forward_one(channel: Channel, connection: socket.socket, tell: Callable[[str], Any]) -> None:
    splice(channel, connection)
    if channel.why not in ("", CLOSED):
        tell(channel.why)


# -- files -----------------------------------------------------------------------------------------------------------


def fetch(beside: Beside, path: str, target: Path) -> Path:
    """A file or folder of the worker into `target`, or below it where that is a folder; where it lies. Raises
    RequestError for what is not there or is too much, SpecError for where it cannot lie."""
    channel = beside.channels.open(0)
    channel.resize(0, 0)
    parent = target if target.is_dir() else target.absolute().parent
    if not parent.is_dir():
        raise SpecError(f"there is no folder {parent}.", code="folder")
    staged = Path(tempfile.mkdtemp(prefix=".llmsched-cp-", dir=parent))
    try:
        place = copying.receive(channel, staged, target, PurePosixPath(path).name or "files")
        channel.end()
    except Broken:
        beside.wait()
        raise RequestError(f"{beside.message}.".replace("..", "."), code="copy") from None
    except copying.Refused as refused:
        if beside.has_ended and beside.exit_code:
            raise RequestError(beside.message, code="copy") from None
        raise SpecError(str(refused), code="copy") from None
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return place


def store(beside: Beside, source: Path) -> None:
    """A file or folder of this machine to where `beside` was told. Raises RequestError, SpecError, ClusterError."""
    channel = beside.channels.open(0)
    try:
        copying.send(source, channel)
        channel.end()
    except copying.Refused as refused:
        raise SpecError(str(refused), code="copy") from None
    except Broken:
        pass  # its end says why
    if beside.wait() is None:
        raise ClusterError(f"{beside.message}.", code="ended")
    if beside.exit_code:
        raise RequestError(beside.message, code="copy")
