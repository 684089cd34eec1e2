"""The process beside a worker that ends whatever the worker's work has started, and outlives the worker to do it.

Run as a script (`python -I -S guardian.py SETTINGS`), with the standard library alone, so that it starts in a few
milliseconds. It leaves the worker's family first: nothing that ends the worker ends it too. Once a second it looks at
the worker's descendants, whatever session or group they made, and remembers them by pid and start time; the worker is
their subreaper, so none leaves its tree while it lives. When the worker is gone, or says "close", it ends all that it
remembers, all their descendants, and all that bear the worker's mark in their environment, and answers what that was.

It never ends what is not the work's: a pid is only a process together with its start time, and Ray's own workers, which
have the mark as well when the work made them through Ray, are ended by Ray. It also weighs the work's memory (see
`Scale`). `LinuxProcesses` works on /proc; there is no guardian elsewhere. Start reading at `Guardian.run`.
"""

# ruff: noqa: PTH123, PTH208
# pathlib alone would double the time that this takes to start.

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import time
from typing import Any, NamedTuple

LOOK_EVERY_S = 1.0
POLITE_S = 1.0  # between SIGTERM and SIGKILL, for what outlived its parent
PATIENCE_S = 20.0  # for what does not even end by SIGKILL: a process in a system call that hangs
STOPS_AT_MOST = 10
LOOKS_FOR_NEW, LOOK_FOR_NEW_S = 10, 0.01
REPORT_WITHIN_S = 5.0  # the worker has this long to tell why it is being ended
TOLERANCE, ALLOWANCE_BYTES = 1.25, 128 * 1024**2  # ended above this much of what was asked for, and a Python beside it
OWNER = "LLMSCHED_OWNED_BY"  # an attempt: all its ranks, and what they made through Ray
COMMAND = "LLMSCHED_COMMAND"  # one command of `exec`
WORKER = "LLMSCHED_STARTED_BY"  # one worker: ranks of one attempt may share a node, and one ends before the other


class Process(NamedTuple):
    """One process for ever: no other has this pid and this start (in clock ticks since the machine's)."""

    pid: int
    started: int


class Row(NamedTuple):
    parent: int
    state: str  # Z: has ended, and its parent has not asked how
    started: int


# -- what /proc says -------------------------------------------------------------------------------------------------


def row_of(pid: int) -> Row | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            words = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return Row(int(words[1]), words[0].decode(), int(words[19]))


def identify(pid: int) -> Process:
    """Raises ProcessLookupError when it is gone."""
    row = row_of(pid)
    if row is None or row.state == "Z":
        raise ProcessLookupError(pid)
    return Process(pid, row.started)


def everyone() -> dict[int, Row]:
    rows = ((int(name), row_of(int(name))) for name in os.listdir("/proc") if name.isdigit())
    return {pid: row for pid, row in rows if row is not None}


def descendants(roots: set[int]) -> set[int]:
    """Pids below these, without them, from the kernel's own lists of children: the cost is the tree's, not the
    machine's."""
    found: set[int] = set()
    open_ = list(roots)
    while open_:
        for child in _children(open_.pop()):
            if child not in found and child not in roots:
                found.add(child)
                open_.append(child)
    return found


def _children(pid: int) -> list[int]:
    children: list[int] = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{thread}/children", "rb") as file:
                children += map(int, file.read().split())
    except OSError:
        pass
    return children


def has_mark(pid: int, mark: str) -> bool:
    """Whether it was started, by whomever, with `mark` ("NAME=value") in its environment; only of our own user's."""
    name, _, value = mark.partition("=")
    return value_of(pid, name) == value


def value_of(pid: int, name: str) -> str:
    """Of a variable in the environment that a process was started with; "" where it is not or may not be read."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            found = [one for one in file.read().split(b"\0") if one.startswith(f"{name}=".encode())]
    except OSError:
        return ""
    return found[0].decode(errors="replace").partition("=")[2] if found else ""


def is_rays(pid: int) -> bool:
    """A worker of Ray, before or after it has taken its title."""
    words = _command(pid)
    return words[:1] != [] and (words[0].startswith("ray::") or any("default_worker.py" in word for word in words))


def name_of(pid: int) -> str:
    return f"{' '.join(_command(pid))[:80]} ({pid})"


def _command(pid: int) -> list[str]:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return [word.decode(errors="replace") for word in file.read().rstrip(b"\0").split(b"\0")]
    except OSError:
        return []


def memory_of(pids: set[int], *, exactly: bool) -> int:
    """Bytes of memory of their own: anonymous, shared without a file on a disk, and in swap.

    `exactly`: pages that several of them share count once (a fork shares its parent's), and Ray's object store, which
    is everybody's, not at all. That costs more to find out.
    """
    total = 0
    exact, most = (b"Pss_Anon:", b"Pss_Shmem:", b"SwapPss:"), (b"RssAnon:", b"RssShmem:", b"VmSwap:")
    for pid in pids:
        found = _sizes(pid, *(("smaps_rollup", exact) if exactly else ("status", most)))
        total += sum(found.values())
        if exactly and found.get(b"Pss_Shmem:"):
            total -= _in_object_store(pid)
    return total


def _sizes(pid: int, file_name: str, words: tuple[bytes, ...]) -> dict[bytes, int]:
    """In bytes."""
    try:
        with open(f"/proc/{pid}/{file_name}", "rb") as file:
            return {line.split()[0]: int(line.split()[1]) * 1024 for line in file if line.startswith(words)}
    except OSError:
        return {}


def _in_object_store(pid: int) -> int:
    """What this process has of Ray's, as a share of pages that others have too. A mapping's line begins with where it
    is; those of its sizes, with their capital names, follow."""
    total, is_rays_store = 0, False
    try:
        with open(f"/proc/{pid}/smaps", "rb") as file:
            for line in file:
                if not line[:1].isupper():
                    is_rays_store = b"/plasma" in line
                elif is_rays_store and line.startswith(b"Pss:"):
                    total += int(line.split()[1]) * 1024
    except OSError:
        pass
    return total


# -- ending ----------------------------------------------------------------------------------------------------------


def owned_by(mark: str, known: set[Process], worker: Process | None = None) -> set[Process]:
    """All that lives of `known` and of what bears the mark, and all that descends from those or from the worker.

    Not the worker, and not who asks."""
    rows = everyone()
    roots = {one.pid for one in known if one.pid in rows and rows[one.pid].started == one.started}
    roots |= {pid for pid in rows if has_mark(pid, mark) and not is_rays(pid)}
    but = {os.getpid()}
    if worker is not None and worker.pid in rows and rows[worker.pid].started == worker.started:
        but.add(worker.pid)
    roots -= but
    below: dict[int, list[int]] = {}
    for pid, row in rows.items():
        below.setdefault(row.parent, []).append(pid)
    found, open_ = set(roots), [*roots, *(but - {os.getpid()})]
    while open_:
        for child in below.get(open_.pop(), ()):
            if child not in found and child not in but:
                found.add(child)
                open_.append(child)
    return {Process(pid, rows[pid].started) for pid in found if rows[pid].state != "Z"}


def send(process: Process, sign: int) -> None:
    """To exactly this process: the handle is taken first, so that its pid cannot become another's in between."""
    with contextlib.suppress(OSError):
        handle = os.pidfd_open(process.pid)
        try:
            row = row_of(process.pid)
            if row is not None and row.started == process.started:
                signal.pidfd_send_signal(handle, sign)
        finally:
            os.close(handle)


def end_all(
    mark: str, known: set[Process], worker: Process | None = None, *, polite_s: float = POLITE_S
) -> tuple[list[str], list[str]]:
    """End everything that bears this mark or is known. Returns the names of what had to be ended, and of what did not
    end."""
    begun = time.monotonic()
    asked: dict[Process, str] = {}
    while left := owned_by(mark, known, worker) or _caught(mark, worker):
        known = known | left  # a child that loses its parent and its mark meanwhile stays known
        now = time.monotonic() - begun
        if now > polite_s + PATIENCE_S:
            return list(asked.values()), [name_of(one.pid) for one in sorted(left)]
        if now >= polite_s:
            left = _stopped(mark, left, worker)
        for one in left:
            name = asked.setdefault(one, "") or name_of(one.pid)
            if now >= polite_s:
                send(one, signal.SIGKILL)
            elif not asked[one]:
                send(one, signal.SIGTERM)
                send(one, signal.SIGCONT)  # a stopped one would never hear of it
            asked[one] = name
        known |= left
        time.sleep(0.02)
    return list(asked.values()), []


def _stopped(mark: str, left: set[Process], worker: Process | None) -> set[Process]:
    """These, and what they began before they were stopped. One that brings another back must not outlive it."""
    stopped: set[Process] = set()
    for _ in range(STOPS_AT_MOST):
        for one in left - stopped:
            send(one, signal.SIGSTOP)
        stopped |= left
        left = owned_by(mark, stopped, worker)
        if left <= stopped:
            break
    return stopped | left


def _caught(mark: str, worker: Process | None) -> set[Process]:
    """What begins a successor and ends, again and again, is in no list of those that live by the time the list is
    read: for a moment only those that are new are looked at, and ended on sight."""
    before = set(os.listdir("/proc"))
    above = 0 if worker is None else worker.pid
    for _ in range(LOOKS_FOR_NEW):
        time.sleep(LOOK_FOR_NEW_S)
        now = set(os.listdir("/proc"))
        new = sorted((int(name) for name in now - before if name.isdigit()), reverse=True)
        found = {pid: row for pid in new if (row := row_of(pid)) and _is_the_works(pid, row, mark, above)}
        if found:
            caught = {Process(pid, row.started) for pid, row in found.items()}
            for one in caught:
                send(one, signal.SIGKILL)
            return caught
        before = now
    return set()


def _is_the_works(pid: int, row: Row, mark: str, above: int) -> bool:
    is_child = bool(above) and row.parent == above
    return row.state != "Z" and pid != os.getpid() and (is_child or has_mark(pid, mark)) and not is_rays(pid)


class Scale:
    """Weighs the work against the memory that it asked for: told once above it, ended above TOLERANCE of it and
    ALLOWANCE_BYTES. action: off | warn | end."""

    def __init__(self, asked: int, action: str) -> None:
        self._asked = asked
        self._ends = action == "end"
        self._is_off = action == "off" or not asked
        self._is_told = False
        self._beside = 0  # what nobody asked for: processes of Ray itself

    def allow(self, more: int) -> None:
        """So many bytes are not the work's own."""
        self._beside += more

    def weigh(self, pids: set[int]) -> dict[str, Any] | None:
        """What to tell the worker, if anything: {"memory": bytes, "is_over": it is to be ended}."""
        if self._is_off or memory_of(pids, exactly=False) - self._beside <= self._asked:
            return None
        used = memory_of(pids, exactly=True) - self._beside
        is_over = self._ends and used > int(self._asked * TOLERANCE) + ALLOWANCE_BYTES
        if used <= self._asked or (self._is_told and not is_over):
            return None
        self._is_told = True
        return {"memory": used, "is_over": is_over}


# -- the process -----------------------------------------------------------------------------------------------------


class Guardian:
    """settings: worker (pid), owner, mark (of the worker's own), memory_bytes, memory_action, counts_worker (its memory
    is the work's)."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._worker = identify(settings["worker"])
        self._mark: str = settings["mark"]
        self._counts_worker: bool = settings["counts_worker"]
        self._scale = Scale(settings["memory_bytes"], settings["memory_action"])
        self._known: set[Process] = set()
        self._is_asked_to_end = False
        signal.signal(signal.SIGTERM, self._on_signal)

    def run(self) -> None:
        handle = os.pidfd_open(self._worker.pid)
        if identify(self._worker.pid) != self._worker:
            raise ProcessLookupError(self._worker.pid)
        watched = select.poll()
        watched.register(handle, select.POLLIN)
        watched.register(0, select.POLLIN)
        _say({"ready": os.getpid()})
        while not self._is_asked_to_end:
            ready = dict(watched.poll(LOOK_EVERY_S * 1000))
            if handle in ready:
                break
            if 0 in ready:
                asked = os.read(0, 4096)
                if b"close" in asked:
                    self._look()
                    ended, left = self._end()
                    _say({"ended": ended, "left": left})
                    return
                for word in asked.split(b"\n"):
                    if word.startswith(b"allow "):
                        self._scale.allow(int(word[6:]))
                if not asked:  # it has let go of the pipe and still lives
                    watched.unregister(0)
            if verdict := self._look():
                _say(verdict)
                if verdict["is_over"]:
                    if self._counts_worker:
                        self._end_worker(watched)
                    break
        ended, left = self._end()
        _say({"ended": ended, "left": left})

    def _look(self) -> dict[str, Any] | None:
        found = descendants({self._worker.pid, *(one.pid for one in self._alive())}) - {os.getpid()}
        rows = ((pid, row_of(pid)) for pid in found)
        self._known = self._alive() | {Process(pid, row.started) for pid, row in rows if row is not None}
        counted = {one.pid for one in self._known} | ({self._worker.pid} if self._counts_worker else set())
        return self._scale.weigh(counted)

    def _alive(self) -> set[Process]:
        return {one for one in self._known if (row := row_of(one.pid)) is not None and row.started == one.started}

    def _end_worker(self, watched: select.poll) -> None:
        """Over its memory: the worker tells why and goes; one that does not is ended."""
        until = time.monotonic() + REPORT_WITHIN_S
        with contextlib.suppress(KeyError):
            watched.unregister(0)
        while (left := until - time.monotonic()) > 0:
            if watched.poll(left * 1000):
                return
        send(self._worker, signal.SIGKILL)

    def _end(self) -> tuple[list[str], list[str]]:
        return end_all(self._mark, self._known, self._worker)

    def _on_signal(self, number: int, frame: object) -> None:
        self._is_asked_to_end = True


def _say(word: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):
        os.write(1, json.dumps(word).encode() + b"\n")


def main() -> None:
    settings = json.loads(sys.argv[1])
    if os.fork():
        os._exit(0)  # nobody's child: Ray ends a worker's children when it ends the worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    with contextlib.suppress(ProcessLookupError):
        Guardian(settings).run()
    os._exit(0)


if __name__ == "__main__":
    main()
