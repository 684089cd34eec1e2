"""What a worker's work starts ends with it. The worker here is a plain process, its children as wild as users' are."""

from __future__ import annotations

import json
import mmap
import os
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from waiting import PATIENCE_S, has_ended, wait_until

from llmsched.runtime import containment, guardian

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="containment works on /proc")

# A worker: it holds a guard, runs the user's code in itself, and does what it is told.
WORKER = """
import os, sys, threading
from llmsched.runtime.containment import Guard
settings = eval(sys.argv[1])
guard = Guard(**settings, on_memory=lambda word: print("MEMORY", word.is_over, word, flush=True))
exec(sys.argv[2])
print("READY", flush=True)
for line in sys.stdin:
    if line.strip() == "close":
        print("CLOSED", tuple(guard.close()), flush=True)
    else:
        exec(line)
        print("DONE", flush=True)
"""
SLEEP = "[sys.executable, '-c', 'import time; time.sleep(600)']"
BORN = f"""
import subprocess, sys, os, time
def born(*, command={SLEEP}, **how):
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, **how)
    print("CHILD", child.pid, flush=True)
    return child
"""
WILD = {
    "in the background": "born()",
    "in a session of its own": "born(start_new_session=True)",
    "a daemon, forked twice": f"""
reading, writing = os.pipe()
if os.fork() == 0:
    os.setsid()
    child = subprocess.Popen({SLEEP}, start_new_session=True)
    os.write(writing, str(child.pid).encode())
    os._exit(0)
os.wait()
print("CHILD", int(os.read(reading, 20)), flush=True)
""",
    "a daemon without its environment": f"""
reading, writing = os.pipe()
if os.fork() == 0:
    os.setsid()
    child = subprocess.Popen({SLEEP}, start_new_session=True, env={{}})
    os.write(writing, str(child.pid).encode())
    os._exit(0)
os.wait()
print("CHILD", int(os.read(reading, 20)), flush=True)
""",
    "that ignores SIGTERM": """
born(command=[sys.executable, "-c", "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)"])
""",
    "forked, without a program of its own": """
pid = os.fork()
if pid == 0:
    os.setsid()
    time.sleep(600)
print("CHILD", pid, flush=True)
""",
    "stopped": "born().send_signal(19)",
}


# Not one process but one after another, each with the end of a pipe: it is at its end when none of them is left.
BRINGS_BACK = """
import os, signal, subprocess, sys
signal.signal(15, signal.SIG_IGN)
while len(sys.argv[1]) < 2:
    again = [sys.executable, "-c", os.environ["AGAIN"], sys.argv[1] + "x"]
    subprocess.Popen(again, start_new_session=True, close_fds=False, env={"AGAIN": os.environ["AGAIN"]}).wait()
signal.pause()
"""
MOVES_ON = """
import os, time
while True:
    os.setsid() if os.getsid(0) != os.getpid() else None
    time.sleep(0.02)
    if os.fork():
        os._exit(0)
"""
RESTLESS = {
    "two that bring each other back": f"""
again = {BRINGS_BACK!r}
command = [sys.executable, "-c", again, "x"]
born(command=command, start_new_session=True, close_fds=False, env={{"AGAIN": again}})
""",
    "one that begins a successor and ends, again and again": f"""
born(command=[sys.executable, "-c", {MOVES_ON!r}], close_fds=False)
""",
}


class Worker:
    def __init__(
        self, code: str = "", owner: str | None = None, pass_fds: tuple[int, ...] = (), **settings: object
    ) -> None:
        self.owner = owner or f"llms/test-{uuid.uuid4().hex[:8]}/0/1@here"
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, repr(settings), BORN + code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, containment.OWNER: self.owner},
            pass_fds=pass_fds,
        )
        self.children: list[int] = []
        self.hear("READY")

    def hear(self, until: str) -> str:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("CHILD"):
                self.children.append(int(line.split()[1]))
            if line.startswith(until):
                return line.removeprefix(until).strip()
        raise AssertionError(f"the worker ended before {until}")

    def do(self, line: str, until: str = "DONE") -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.hear(until)

    def is_watched(self) -> bool:
        return containment.guardians_of(self.owner) == 1


@pytest.fixture
def worker() -> Iterator[Callable[..., Worker]]:
    begun: list[Worker] = []

    def begin(code: str = "", **settings: object) -> Worker:
        begun.append(Worker(code, **settings))
        return begun[-1]

    yield begin
    for one in begun:
        one.process.kill()
        one.process.wait()
    for one in begun:
        wait_until(lambda one=one: not containment.guardians_of(one.owner), what="its guardian goes with it")
        for child in one.children:
            if not has_ended(child):
                os.kill(child, signal.SIGKILL)
        one.process.communicate()


def test_children_of_every_kind_end_when_the_work_is_done(worker: Callable[..., Worker]) -> None:
    one = worker("\n".join(WILD.values()))
    ended, left = eval(one.do("close", "CLOSED"))
    assert [kind for kind, child in zip(WILD, one.children, strict=True) if not has_ended(child)] == []
    assert len(ended) == len(WILD) and left == []
    assert one.process.poll() is None  # the worker itself goes on


def test_children_of_every_kind_end_when_the_worker_is_killed(worker: Callable[..., Worker]) -> None:
    one = worker("\n".join(WILD.values()))
    worker_has_been_looked_at(one)
    one.process.kill()
    for kind, child in zip(WILD, one.children, strict=True):
        wait_until(lambda child=child: has_ended(child), what=kind)


@pytest.mark.parametrize("is_killed", [False, True], ids=["done", "killed"])
@pytest.mark.parametrize("code", RESTLESS.values(), ids=RESTLESS)
def test_those_that_come_back_or_move_on_are_ended_too(
    worker: Callable[..., Worker], code: str, is_killed: bool
) -> None:
    reading, writing = os.pipe()
    one = worker(code + f"\nos.close({writing})", pass_fds=(writing,))
    os.close(writing)
    worker_has_been_looked_at(one)
    one.children.clear()
    if is_killed:
        one.process.kill()
    else:
        ended, left = eval(one.do("close", "CLOSED"))
        assert ended and not left
    assert os.read(reading, 1) == b"", "nobody holds the other end any more"
    os.close(reading)


def worker_has_been_looked_at(one: Worker) -> None:
    """Twice the guardian's clock has ticked: it knows what the worker had by then."""
    beside = guardian_of(one)
    before = ticks_of(beside)
    wait_until(lambda: ticks_of(beside) >= before + 2, what="the guardian looks")


def guardian_of(one: Worker) -> int:
    found = [pid for pid in guardian.everyone() if json.dumps(one.owner) in " ".join(guardian._command(pid))]
    return next(pid for pid in found if "guardian.py" in " ".join(guardian._command(pid)))


def ticks_of(pid: int) -> int:
    """How often the process has slept and been woken."""
    return int(Path(f"/proc/{pid}/status").read_text().split("\nvoluntary_ctxt_switches:")[1].split()[0])


@pytest.mark.parametrize("owner", [None, "llms/both/0/1@here"], ids=["of other work", "of the same gang"])
def test_what_another_worker_started_is_not_ended(worker: Callable[..., Worker], owner: str | None) -> None:
    """Ranks of one gang may share a machine, and one is done before the other."""
    mine, other = (worker(WILD["in a session of its own"], owner=owner) for _ in range(2))
    mine.do("close", "CLOSED")
    assert has_ended(mine.children[0]) and not has_ended(other.children[0])


def test_ray_s_own_workers_bear_the_mark_and_are_left_to_ray(worker: Callable[..., Worker]) -> None:
    one = worker()
    rays = subprocess.Popen(
        ["ray::Nested", "-c", "import time; time.sleep(600)"],
        executable=sys.executable,
        env={**os.environ, containment.OWNER: one.owner},
    )
    try:
        assert eval(one.do("close", "CLOSED")) == ([], [])
        one.process.kill()
        one.process.wait()
        assert containment.clear_node(one.owner) == {"ended": [], "left": []}
        assert rays.poll() is None
    finally:
        rays.kill()
        rays.wait()


def test_what_both_the_worker_and_its_guardian_left_is_cleared_by_its_mark(worker: Callable[..., Worker]) -> None:
    one = worker(WILD["in a session of its own"])
    os.kill(guardian_of(one), signal.SIGKILL)
    one.process.kill()
    one.process.wait()
    assert not has_ended(one.children[0])
    cleared = containment.clear_node(one.owner)
    assert has_ended(one.children[0])
    assert len(cleared["ended"]) == 1 and cleared["left"] == []


def test_a_worker_without_its_guardian_clears_up_itself(worker: Callable[..., Worker]) -> None:
    one = worker(WILD["a daemon without its environment"])
    os.kill(guardian_of(one), signal.SIGKILL)
    wait_until(lambda: not one.is_watched())
    one.do("close", "CLOSED")
    assert has_ended(one.children[0])


def test_a_process_is_its_owner_s_however_little_it_has_of_its_environment(worker: Callable[..., Worker]) -> None:
    one = worker(WILD["a daemon without its environment"])
    assert containment.owners_of([one.children[0], os.getpid()]) == [one.owner, ""]
    one.do("close", "CLOSED")


def test_without_an_owner_there_is_nothing_to_guard() -> None:
    guard = containment.Guard(environment={})
    assert guard.close() == ([], [])


def test_what_ends_the_worker_s_family_leaves_the_guardian(worker: Callable[..., Worker]) -> None:
    """Ray ends the children of a worker and its process group when it ends the worker."""
    one = worker()
    beside = guardian_of(one)
    row = guardian.row_of(beside)
    assert row is not None and row.parent != one.process.pid
    assert os.getpgid(beside) != os.getpgid(one.process.pid) and os.getsid(beside) != os.getsid(one.process.pid)


MIB = 1024**2


def test_work_over_its_memory_is_told_and_ended(worker: Callable[..., Worker]) -> None:
    eats = f"b = b'x' * {400 * MIB}; import time; time.sleep(600)"
    one = worker(memory_bytes=100 * MIB, memory_action="end")
    said = one.do(f"born(command=[sys.executable, '-c', {eats!r}], start_new_session=True)", "MEMORY True")
    assert re.match(r"used \d{3} MB of the 105 MB of memory it asked for, on ", said)
    wait_until(lambda: has_ended(one.children[0]))
    assert one.process.poll() is None


def test_a_worker_whose_own_memory_is_over_has_time_to_tell_and_is_ended(worker: Callable[..., Worker]) -> None:
    one = worker(memory_bytes=100 * MIB, memory_action="end", counts_worker=True)
    one.do(f"b = b'x' * {400 * MIB}", "MEMORY True")
    assert one.process.wait(PATIENCE_S) == -signal.SIGKILL


def test_a_warning_is_said_once_and_nothing_ended(worker: Callable[..., Worker]) -> None:
    one = worker(memory_bytes=50 * MIB, memory_action="warn", counts_worker=True)
    one.do(f"b = b'x' * {400 * MIB}", "MEMORY False")
    worker_has_been_looked_at(one)
    assert eval(one.do("close", "CLOSED")) == ([], [])


def test_memory_within_what_was_asked_is_not_spoken_of() -> None:
    mine = {os.getpid()}
    used = guardian.memory_of(mine, exactly=True)
    assert used > 0
    assert guardian.Scale(2 * used, "end").weigh(mine) is None
    assert guardian.Scale(0, "end").weigh(mine) is None  # nothing was asked for
    assert guardian.Scale(used // 4, "off").weigh(mine) is None
    assert guardian.Scale(used // 4, "warn").weigh(mine) == {"memory": pytest.approx(used, rel=0.2), "is_over": False}


def test_memory_that_is_shared_without_a_file_counts_and_ray_s_object_store_does_not() -> None:
    before = guardian.memory_of({os.getpid()}, exactly=True)
    with mmap.mmap(-1, 64 * MIB) as own:
        own.write(b"x" * (64 * MIB))
        used = guardian.memory_of({os.getpid()}, exactly=True)
        assert used - before == pytest.approx(64 * MIB, rel=0.2)
        assert guardian.memory_of({os.getpid()}, exactly=False) >= used
    store = Path("/dev/shm") / f"plasma-{uuid.uuid4().hex}"
    try:
        store.write_bytes(b"x" * (64 * MIB))
        with store.open("r+b") as file, mmap.mmap(file.fileno(), 0) as everybodys:
            assert sum(everybodys[::4096]) > 0
            assert guardian.memory_of({os.getpid()}, exactly=True) - before < 16 * MIB
    finally:
        store.unlink()


def test_pages_that_forked_children_share_count_once() -> None:
    shared = b"x" * (64 * MIB)
    children = []
    for _ in range(2):
        if (child := os.fork()) == 0:
            signal.pause()
        children.append(child)
    try:
        alone, all_ = guardian.memory_of({os.getpid()}, exactly=True), {os.getpid(), *children}
        assert guardian.memory_of(all_, exactly=True) < guardian.memory_of(all_, exactly=False) - 100 * MIB
        assert alone < guardian.memory_of(all_, exactly=True)
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    assert shared
