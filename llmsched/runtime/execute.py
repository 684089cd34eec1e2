"""A command that a person runs beside a member of a running workload: its words in, its output out, within bounds.

`llmsched exec`. The words are a list and no shell sees them. It runs on the member's node, in its folder, with its
variables, as a process group of its own, and takes no GPU or CPU from the ledger: a look, not a second workload. Secret
values are hidden in what it says, as in a log. Start reading at `run`.
"""

from __future__ import annotations

import codecs
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import IO, Any

from llmsched.runtime import containment, guardian, redaction
from llmsched.runtime.process import prepare_child
from llmsched.spec import own_variables

OUTPUT_AT_MOST = 16 * 1024 * 1024  # bytes; a command that says more is ended
CHUNK = 64 * 1024
_LAST_WORDS_WITHIN_S = 2.0  # children that outlive the command may hold its output open
_LOOK_EVERY_S = 0.2
_GROUP_ENDS_WITHIN_S = 1.0  # after SIGKILL

# What a member's process has that a command beside it must have too: who it is, its GPUs, its Python.
_WHO = own_variables.MEETING
_WHERE = ("CUDA_VISIBLE_DEVICES", "VIRTUAL_ENV", "PATH")

Said = tuple[str, str] | tuple[str, str, int | None]  # ("stdout" | "stderr", text) ..., ("end", message, exit code)


def surroundings() -> dict[str, str]:
    """The variables of this process that a command beside it is given."""
    named = (*_WHO, *_WHERE, *containment.DRIVER_ENVS)
    return {name: text for name, text in os.environ.items() if name in named or name.startswith("LLMSCHED_")}


def run(
    argv: Sequence[str], folder: str, envs: Mapping[str, str], timeout_s: float, stop: threading.Event
) -> Generator[Said, None, None]:
    """Run it to its end, to `timeout_s`, to OUTPUT_AT_MOST, or until `stop`; the last item is ("end", why, exit code).

    Whatever it started, in sessions of its own too, has ended before its end is told. The code is None when it was
    ended by us; as of a shell 126 or 127 when it could not be run, 128 + N by signal N.
    """
    mark = uuid.uuid4().hex
    try:
        process = start(argv, folder, envs, mark, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    except NotRun as error:
        yield "stderr", f"{error}\n"
        yield "end", "", error.code
        return
    try:
        for item in _listen(process, timeout_s, stop):
            if item[0] == "end" and (left := end(process, mark)):
                yield "stderr", f"llmsched: what it left running was ended with it: {', '.join(left)}\n"
            yield item
    finally:
        end(process, mark)


class NotRun(Exception):
    """There is no such program, or it cannot be run; `code` is a shell's for that."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def start(
    argv: Sequence[str], folder: str, envs: Mapping[str, str], mark: str, **options: Any
) -> subprocess.Popen[bytes]:
    """In a session of its own, known by `mark`, and gone with the thread that calls this. `options` as Popen's. Raises
    NotRun."""
    usual = {"stdin": subprocess.DEVNULL, "preexec_fn": prepare_child}
    try:
        return subprocess.Popen(
            list(argv),
            cwd=folder,
            env={**envs, guardian.COMMAND: mark},
            bufsize=0,
            start_new_session=True,
            **{**usual, **options},
        )
    except (OSError, ValueError) as error:
        missing = isinstance(error, FileNotFoundError)
        message = f"cannot run {argv[0]!r}: {getattr(error, 'strerror', None) or error}"
        raise NotRun(message, 127 if missing else 126) from None


def code_of(process: subprocess.Popen[bytes]) -> int | None:
    """As a shell tells it: 128 + N by signal N; None while it runs."""
    code = process.poll()
    return 128 - code if code is not None and code < 0 else code


def end(process: subprocess.Popen[bytes], mark: str) -> list[str]:
    """Itself and what it left running; the names of what had left its process group."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if sys.platform != "linux":
        return []
    bears = f"{guardian.COMMAND}={mark}"
    until = time.monotonic() + _GROUP_ENDS_WITHIN_S
    while time.monotonic() < until and any(_is_of(one.pid, process) for one in guardian.owned_by(bears, set())):
        time.sleep(0.01)  # killed, and not gone yet: no word about these
    return guardian.end_all(bears, set(), polite_s=0.0)[0]


def _is_of(pid: int, leader: subprocess.Popen[bytes]) -> bool:
    with suppress(ProcessLookupError):
        return os.getpgid(pid) == leader.pid
    return False


def _listen(process: subprocess.Popen[bytes], timeout_s: float, stop: threading.Event) -> Iterator[Said]:
    assert process.stdout is not None and process.stderr is not None
    heard: queue.Queue[tuple[str, bytes]] = queue.Queue(maxsize=16)  # a slow listener slows the command down
    over = threading.Event()
    for name, source in (("stdout", process.stdout), ("stderr", process.stderr)):
        threading.Thread(target=_read, args=(name, _cleaned(source), heard, over), daemon=True).start()
    decoders = {name: codecs.getincrementaldecoder("utf-8")("replace") for name in ("stdout", "stderr")}
    until, left, said = time.monotonic() + timeout_s, OUTPUT_AT_MOST, ""
    open_streams, ended_at = set(decoders), None
    try:
        while open_streams and not said:
            now = time.monotonic()
            if stop.is_set():
                said = "it was ended, because nobody listens any more"
            elif now > until:
                said = f"it was ended after {timeout_s:g} s"
            elif ended_at is not None and now - ended_at > _LAST_WORDS_WITHIN_S:
                break
            try:
                name, data = heard.get(timeout=_LOOK_EVERY_S)
            except queue.Empty:
                if ended_at is None and process.poll() is not None:
                    ended_at = now
                continue
            if not data:
                open_streams.discard(name)
            elif len(data) > left:
                said = f"it was ended: it wrote more than {OUTPUT_AT_MOST >> 20} MiB"
            left -= len(data)
            if text := decoders[name].decode(data, final=not data):
                yield name, text
        while not said and process.poll() is None:  # it closed its output and goes on
            if stop.wait(_LOOK_EVERY_S) or time.monotonic() > until:
                said = f"it was ended after {timeout_s:g} s"
    finally:
        over.set()
    yield "end", said, None if said else code_of(process)


def _cleaned(source: IO[bytes]) -> IO[bytes]:
    """The same without secret values."""
    if not redaction.hides():
        return source
    read, write = os.pipe()
    redaction.pump(source, os.fdopen(write, "wb", buffering=0))
    return os.fdopen(read, "rb", buffering=0)


def _read(name: str, source: IO[bytes], heard: queue.Queue[tuple[str, bytes]], over: threading.Event) -> None:
    with source:
        while True:
            data = source.read(CHUNK)
            while not over.is_set():
                with suppress(queue.Full):
                    heard.put((name, data), timeout=_LOOK_EVERY_S)
                    break
            if not data or over.is_set():
                return
