"""What a person does by hand beside a member of a running workload, over channels: a program at a terminal or with
input, bytes to and from a port, files in and out.

The other end is the command line; `channels.py` says how both speak. Everything ends when it does. Programs run as
those of `execute.py` do, but bounded in neither time nor output, which goes no faster than it is read. Start reading
at `ByHand.said`.
"""

from __future__ import annotations

import base64
import fcntl
import os
import pty
import queue
import shutil
import socket
import struct
import subprocess
import tempfile
import termios
import threading
import time
import uuid
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from llmsched import copying
from llmsched.channels import PIECE, Broken, Channel, Channels, Misuse, splice
from llmsched.runtime import execute, redaction
from llmsched.runtime.process import prepare_child

STDERR = 1  # the channel of a program without a terminal; the other end begins even ones
CONNECTS_WITHIN_S = 10.0
_LAST_WORDS_WITHIN_S = 2.0
_LOOK_EVERY_S = 0.2
_FRAMES_AT_ONCE = 32
LEFT = "it was ended, because nobody listens any more"

End = tuple[str, int | None]  # why, and the exit code: as of `execute.run`
Said = execute.Said  # ("begun", "") first, ("frames", base64 with spaces between) ..., ("end", why, exit code)


class ByHand:
    """`does` is attach, terminal, forward, fetch or store; `words` what of: a program and its words, a port, a path (of
    a store, and the name of what comes). `take` is called from another thread than `said`."""

    def __init__(
        self, does: str, words: Sequence[str], folder: str, envs: Mapping[str, str], stop: threading.Event
    ) -> None:
        self._does, self._words = does, list(words)
        self._folder, self._envs, self._stop = folder, envs, stop
        self._out: queue.SimpleQueue[bytes] = queue.SimpleQueue()  # bounded by the windows of the channels
        self._begun: queue.SimpleQueue[Channel] = queue.SimpleQueue()
        self._channels = Channels(self._out.put, self._begun.put)
        self._end: End | None = None

    def take(self, frames: Sequence[bytes]) -> None:
        """From the other end, in order. One that breaks the rules is hung up on."""
        try:
            for frame in frames:
                self._channels.take(frame)
        except Misuse:
            self._stop.set()

    def said(self) -> Generator[Said, None, None]:
        """To its end, or until `stop`."""
        work = threading.Thread(target=self._work, daemon=True, name=self._does)
        work.start()
        yield "begun", ""
        try:
            while work.is_alive() or not self._out.empty():
                if self._stop.is_set():
                    break
                if frames := self._frames():
                    yield "frames", " ".join(base64.b64encode(one).decode() for one in frames)
        finally:
            self._stop.set()
            self._channels.close(LEFT)
            work.join()
        why, code = self._end or (LEFT, None)
        yield "end", why, code

    def _frames(self) -> list[bytes]:
        frames: list[bytes] = []
        with suppress(queue.Empty):
            frames.append(self._out.get(timeout=_LOOK_EVERY_S))
            while len(frames) < _FRAMES_AT_ONCE:
                frames.append(self._out.get_nowait())
        return frames

    def _work(self) -> None:
        do: dict[str, Callable[[], End]] = {
            "attach": self._attach,
            "terminal": self._terminal,
            "forward": self._forward,
            "fetch": self._fetch,
            "store": self._store,
        }
        try:
            self._end = do[self._does]()
        except (Broken, OSError) as error:
            self._end = (str(error), None)
        except copying.Refused as refused:
            self._end = (str(refused), 1)

    def _next_channel(self) -> Channel | None:
        """None: the other end has gone."""
        while not self._stop.is_set():
            with suppress(queue.Empty):
                return self._begun.get(timeout=_LOOK_EVERY_S)
        return None

    # -- a program -----------------------------------------------------------------------------------------------

    def _attach(self) -> End:
        channel = self._next_channel()
        if channel is None:
            return LEFT, None
        mark = uuid.uuid4().hex
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        try:
            process = execute.start(self._words, self._folder, self._envs, mark, **pipes)
        except execute.NotRun as error:
            return str(error), error.code
        assert process.stdin and process.stdout and process.stderr
        errors = self._channels.open(STDERR)
        threading.Thread(target=_feed, args=(channel, process.stdin), daemon=True).start()
        telling = [
            _Teller(process.stdout, channel),
            _Teller(process.stderr, errors),
        ]
        return self._until_it_ends(process, mark, telling)

    def _terminal(self) -> End:
        channel = self._next_channel()
        if channel is None:
            return LEFT, None
        mark = uuid.uuid4().hex
        number, theirs = pty.openpty()
        ours = os.fdopen(number, "r+b", buffering=0)  # closed once no thread has it any more
        _resize(ours, *(channel.size or (24, 80)))
        try:
            process = execute.start(
                self._words,
                self._folder,
                {"TERM": "xterm-256color", **self._envs},
                mark,
                stdin=theirs,
                stdout=theirs,
                stderr=theirs,
                preexec_fn=_at_this_terminal,
            )
        except execute.NotRun as error:
            return str(error), error.code
        finally:
            os.close(theirs)
        channel.on_size = lambda rows, columns: _resize(ours, rows, columns)
        if channel.size:
            _resize(ours, *channel.size)
        threading.Thread(target=_type, args=(channel, ours), daemon=True).start()
        return self._until_it_ends(process, mark, [_Teller(ours, channel)])

    def _until_it_ends(self, process: subprocess.Popen[bytes], mark: str, telling: list[_Teller]) -> End:
        try:
            while process.poll() is None:
                if self._stop.wait(_LOOK_EVERY_S / 4):
                    return LEFT, None
            execute.end(process, mark)
            while any(each.may_say_more() for each in telling):
                if self._stop.wait(_LOOK_EVERY_S / 4):
                    return LEFT, None
            return "", execute.code_of(process)
        finally:
            execute.end(process, mark)

    # -- a port --------------------------------------------------------------------------------------------------

    def _forward(self) -> End:
        while (channel := self._next_channel()) is not None:
            threading.Thread(target=_connect, args=(channel, int(self._words[0])), daemon=True).start()
        return LEFT, None

    # -- files ---------------------------------------------------------------------------------------------------

    def _fetch(self) -> End:
        if (channel := self._next_channel()) is None:
            return LEFT, None
        copying.send(copying.within(Path(self._folder), self._words[0], must_exist=True), channel)
        channel.end()
        with suppress(Broken):
            channel.read()  # until the other end has all of it
        return "", 0

    def _store(self) -> End:
        if (channel := self._next_channel()) is None:
            return LEFT, None
        path, name = self._words
        target = copying.within(Path(self._folder), path, must_exist=False)
        staged = Path(tempfile.mkdtemp(prefix=".llmsched-cp-", dir=self._folder))
        try:
            copying.receive(channel, staged, target, name)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
        return "", 0


def _feed(channel: Channel, sink: IO[bytes]) -> None:
    with suppress(Broken, OSError), sink:
        while data := channel.read():
            sink.write(data)
            sink.flush()


def _type(channel: Channel, terminal: IO[bytes]) -> None:
    with suppress(Broken, OSError):
        while data := channel.read():
            while data:
                data = data[terminal.write(data) :]
        terminal.write(b"\x04")  # as whoever types Ctrl-D


class _Teller(threading.Thread):
    """Passes on what a program writes, without secret values, as fast as it is read at the other end."""

    def __init__(self, source: IO[bytes], channel: Channel) -> None:
        super().__init__(daemon=True)
        self._source, self._channel = source, channel
        self._listens_since: float | None = None
        self.start()

    def run(self) -> None:
        flow = redaction.Flow()
        with suppress(Broken):
            with suppress(OSError):  # a terminal whose programs have all gone
                while data := self._read():
                    self._channel.write(flow.cleaned(data))
            self._channel.write(flow.rest())
            self._channel.end()

    def _read(self) -> bytes:
        self._listens_since = time.monotonic()
        data: bytes = self._source.read(PIECE)
        self._listens_since = None
        return data

    def may_say_more(self) -> bool:
        """Of a program that has ended: what was told to outlive it may hold its output open, and is waited for a
        moment only."""
        since = self._listens_since
        return self.is_alive() and (since is None or time.monotonic() - since < _LAST_WORDS_WITHIN_S)


def _resize(terminal: IO[bytes], rows: int, columns: int) -> None:
    with suppress(OSError, ValueError):
        fcntl.ioctl(terminal.fileno(), termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def _at_this_terminal() -> None:
    """In the child, before exec: Ctrl-C and the like reach whoever is in front there."""
    prepare_child()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def _connect(channel: Channel, port: int) -> None:
    try:
        connection = socket.create_connection(("localhost", port), CONNECTS_WITHIN_S)
    except OSError as error:
        channel.break_off(f"nothing answers on port {port} where it runs: {error.strerror or error}")
        return
    connection.settimeout(None)
    splice(channel, connection)
