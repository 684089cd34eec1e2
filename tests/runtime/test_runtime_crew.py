"""What one task leaves to the next: a supervisor and workers of ours, and nothing of what the user's code did."""

from __future__ import annotations

import inspect
import json
import multiprocessing
import os
import threading
import uuid
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from waiting import PATIENCE_S, has_ended, wait_until

from llmsched.runtime import crew as module
from llmsched.runtime.addressed import Addressed, can_be_left, first_attempt, supervisor_part, warm_name
from llmsched.runtime.crew import Crew
from llmsched.runtime.warm_supervisor import WarmSupervisor


def go_on(folder: Path, mark: str, said: Connection) -> None:
    """In a process of its own: a worker takes whatever it finds below itself for its work's."""

    class Worker(module.TaskWorker):
        def _shared_folder(self) -> Path:
            return folder / str(self._order["gang"]).replace("/", "-")

    module.TaskWorker = Worker  # type: ignore[misc]

    def asked(name: str, run: list[str]) -> str:
        return json.dumps({
            "storage": str(folder / "storage"), "gang": f"{name}/0", "attempt": 1, "epoch": 1, "envs": {},
            "workdir": None, "version": "", "spec": {"task": {"run": run}}, "mark": name + mark,
            "members": [{"rank": 0, "memory_bytes": 0}],
        })  # fmt: skip

    def ran(name: str) -> list[Any]:
        for method in ("prepare", "hold_port"):
            worker.said_to(f"llms/{name}/0/1", method)
        ending = worker.said_to(f"llms/{name}/0/1", "run", {})
        worker.said_to(f"llms/{name}/0/1", "clean")
        return [ending.code, worker.said_to(f"llms/{name}/0/1", "can_go_on")]

    def here() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), threading.active_count()  # noqa: PTH208

    leaves = f"env -i setsid sh -c 'echo $$ > pid; sleep 600' & while [ ! -s pid ]; do :; done; cp pid {folder}"
    worker = module.WarmWorker(asked("leaves", ["sh", "-c", leaves]), 0)
    first, before = ran("leaves"), here()
    worker.begin_next(asked("fails", ["sh", "-c", f'echo "$LLMSCHED_OWNED_BY" > {folder}/mark; exit 3']), 0)
    second = ran("fails")
    late = worker.said_to("llms/leaves/0/1", "stop", 0.0)
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text()
    grown = [now - then for now, then in zip(here(), before, strict=True)]
    worker.said_to("llms/fails/0/1", "stop", 0.0)
    said.send([first, second, late, children, grown, worker.said_to("llms/fails/0/1", "can_go_on")])


def test_a_worker_goes_on_to_another_task_when_nothing_of_the_one_before_lives_and_gathers_nothing(
    tmp_path: Path,
) -> None:
    mark, (heard, said) = f"-{uuid.uuid4().hex}@here", multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=go_on, args=(tmp_path, mark, said), daemon=True)
    process.start()
    said.close()
    first, second, late, children, grown, told = heard.recv()
    process.join(PATIENCE_S)
    assert (first, second) == ([0, True], [3, True])
    assert has_ended(int((tmp_path / "pid").read_text())), "what left its session, its parent and its environment"
    assert (tmp_path / "mark").read_text().strip() == f"fails{mark}", "each task bears its own mark"
    assert late is None and not children and grown == [0, 0]
    assert told is False, "who was told to leave is ended by force, maybe: nobody else gets its worker"


class Actor:
    """A warm actor of Ray's that answers at once."""

    def __init__(self, fails: bool = False) -> None:
        self.heard: list[Any] = []
        self.fails = fails

    def __getattr__(self, name: str) -> Any:
        class Method:
            @staticmethod
            def remote(*words: Any) -> Any:
                self.heard.append((name, *words))
                return self

        return Method


def test_a_crew_is_handed_on_whole_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[Any] = []

    class Ray:
        exceptions = module.ray.exceptions
        kill = staticmethod(killed.append)

        @staticmethod
        def get(asked: list[Actor], timeout: float) -> None:
            if any(one.fails for one in asked):
                raise module.ray.exceptions.ActorDiedError

    monkeypatch.setattr(module, "ray", Ray)
    crew, order = Crew(), {"gang": "next/0", "attempt": 1}
    for fails in (False, True):
        workers = [Actor(), Actor(fails)]
        crew.keep([Addressed(one, "llms/first/0/1") for one in workers])
        taken = crew.take(order, 1.0)
        assert not crew.is_there and ([one.actor for one in taken], killed) == (
            ([], workers) if fails else (workers, [])
        )
        assert [one.heard[0][2] for one in workers] == [0, 1], "each has its rank"
    crew.keep([Addressed(workers[0], "llms/next/0/1")])
    crew.end()
    assert killed[2:] == workers[:1] and not crew.is_there


def test_names_say_whose_a_warm_actor_is_and_only_plain_tasks_have_one() -> None:
    warm = warm_name("llms/sweep.t1@2/0/1")
    assert (warm, first_attempt(warm)) == ("llms-warm/sweep.t1@2/0/1", "llms/sweep.t1@2/0/1")
    assert supervisor_part(f"{warm}/llms/sweep.t9@2/0/1/rank-0") == warm
    assert can_be_left("task", {}) and not can_be_left("train", {}) and not can_be_left("task", {"calls": ["desk"]})


def test_a_call_whose_answer_is_streamed_goes_to_the_method_that_streams() -> None:
    class Recorder(Actor):
        def __getattr__(self, name: str) -> Any:
            method = super().__getattr__(name)
            method.options = staticmethod(lambda **options: method)
            return method

    actor = Recorder()
    known = Addressed(actor, "llms/a/0/1")
    known.execute.options(num_returns="streaming").remote("id", 0)
    known.stop.remote("stop", 1.0)
    assert actor.heard == [
        ("streamed_to", "llms/a/0/1", "execute", "id", 0),
        ("said_to", "llms/a/0/1", "stop", "stop", 1.0),
    ]


def order(gang: str, storage: Path) -> str:
    return json.dumps({
        "workload": gang, "gang": f"{gang}/0", "attempt": 1, "epoch": 1, "kind": "none", "spec": {}, "envs": {},
        "members": [], "storage": str(storage), "inputs": {}, "grace_s": 1.0,
    })  # fmt: skip


def test_what_is_said_to_a_supervisor_reaches_the_attempt_that_is_meant_or_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A report or an order to stop may come when its attempt has ended and another one has its supervisor."""
    monkeypatch.setattr("llmsched.runtime.supervisor.LINGER_S", 0.0)
    ended: list[int] = []
    warm = WarmSupervisor(order("first", tmp_path), "first@here", ended.append)
    first = warm._now
    wait_until(lambda: warm.carries()["receipt"], 30, "the end of the first one")
    wait_until(lambda: ended == [0], 30, "nobody came for it")
    warm.begin_next(order("second", tmp_path), "second@here")
    warm.said_to("llms/first/0/1", "report", {"step": 9})
    warm.said_to("llms/first/0/1", "stop", "stop", 0.0)
    warm.said_to("llms/second/0/1", "report", {"step": 1})
    assert first is not warm._now and json.loads(warm.carries()["order"])["gang"] == "second/0"
    found = warm.said_to("llms/second/0/1", "status")
    assert (found["progress"], found["stopping"], found["leaves"]) == ({"step": 1}, "", False)
    assert warm.said_to("llms/first/0/1", "status") is None
    streamed = [
        [*warm.streamed_to(f"llms/{name}/0/1", "execute", "a command", 0, None)] for name in ("first", "second")
    ]
    assert streamed == [[], [("end", "rank 0 is not at work just now", None)]]
    assert inspect.isgeneratorfunction(WarmSupervisor.streamed_to), "Ray streams what generators say, and nothing else"
    known = warm._now.order
    assert (known["warm"], known["mark"]) == ("llms-warm/first/0/1", "second@here")
    first._end_process(1)
    wait_until(lambda: len(ended) == 2, 30, "the second one's end; the first one's would have ended it too early")
    assert ended == [0, 0]
