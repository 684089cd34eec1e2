"""The program of a `tune` gang on a fake cluster: the real search, in a thread, whose supervisor is the cluster."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from control_harness import Script
from waiting import PATIENCE_S

from llmsched.executors.fake import FakeAttempt, FakeCluster
from llmsched.executors.port import Ended, LaunchOrder, Progress
from llmsched.runtime import artifact, context, elastic, progress
from llmsched.runtime.context import Context, enter
from workloads.search import search
from workloads.search.search import Search, SearchFailed


class Supervisor:
    """Of one attempt, as its program sees it. `is_gone` once the attempt was killed."""

    def __init__(self, cluster: FakeCluster, attempt: FakeAttempt, loop: asyncio.AbstractEventLoop) -> None:
        self.cluster, self.attempt, self.loop = cluster, attempt, loop
        self.name = attempt.order.name

    @property
    def is_gone(self) -> bool:
        return self.cluster.attempts.get(self.name) is not self.attempt

    def ask(self, id: str, body: str) -> str | None:
        key = self.name, id
        if key not in self.cluster.asks and key not in self.cluster.answers and not self.is_gone:
            self._in_loop(lambda: self.cluster.ask(self.name, id, body))
        return self.cluster.answers.get(key)

    def should_stop(self) -> bool:
        return self.is_gone or self.attempt.told.is_set()

    def report(self, values: dict[str, Any]) -> None:
        order = self.attempt.order
        self._in_loop(lambda: self.cluster.say(Progress(order.gang, order.attempt, values)))

    def checkpointed(self, step: int, fraction: float | None) -> None: ...

    def _in_loop(self, act: Any) -> None:
        async def acted() -> None:
            with suppress(KeyError):  # it was killed
                act()

        asyncio.run_coroutine_threadsafe(acted(), self.loop).result(PATIENCE_S)


class Members:
    """Runs the search of each attempt of a tune gang that the cluster launches, one after the other."""

    def __init__(self, cluster: FakeCluster, folder: Path, trials: Any, monkeypatch: Any) -> None:
        self._cluster, self._folder, self._trials = cluster, folder, trials
        self._threads: list[threading.Thread] = []
        self._one = threading.Lock()  # the context of a process
        cluster.script = self._script
        monkeypatch.setattr(search, "LOOK_EVERY_S", 0.01)
        for name in ("_FIRST_LOOK_S", "_LOOK_EVERY_S", "_STOP_EVERY_S", "_PAUSE_S"):
            monkeypatch.setattr(search.ask, name, 0.005)
        monkeypatch.setattr(elastic, "_EVERY_S", 0.0)
        monkeypatch.setattr(progress, "_EVERY_S", 0.0)

    def _script(self, order: LaunchOrder) -> Script:
        if order.kind != "tune":
            return self._trials(order)
        loop = asyncio.get_running_loop()
        loop.call_soon(self._begin, order.name, loop)
        return Script(runs_for_s=None)

    def _begin(self, name: str, loop: asyncio.AbstractEventLoop) -> None:
        attempt = self._cluster.attempts[name]
        thread = threading.Thread(target=self._run, args=(Supervisor(self._cluster, attempt, loop),), daemon=True)
        self._threads.append(thread)
        thread.start()

    def _run(self, life: Supervisor) -> None:
        order = life.attempt.order
        fields = {"name": order.workload, "workload": order.workload, "gang": order.gang, "attempt": order.attempt}
        where = Context.alone(self._folder, order.spec, supervisor=life, epoch=order.epoch, **fields)
        with self._one, enter(where):
            outcome, why = "succeeded", ""
            try:
                Search(order.spec["tune"]).run()
            except SearchFailed as error:
                outcome, why = "failed", str(error)
            except (elastic.Stopped, SystemExit):
                return
            if life.is_gone:
                return
            left = artifact.read_result(where.storage, where.gang, where.attempt, where.epoch)
            ended = Ended(order.gang, order.attempt, outcome, why, "input", left["artifact"], left["metrics"])
            life._in_loop(lambda: life.is_gone or self._cluster._end(life.attempt, ended))

    async def over(self) -> None:
        """No thread of theirs is left."""
        for thread in self._threads:
            await asyncio.to_thread(thread.join, 30)
        assert context.inside() is None
