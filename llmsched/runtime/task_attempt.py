"""An attempt of a task gang: one actor a member, which runs the user's command as a process group of its own.

The first rank that fails ends the gang. What the workers do is in `task.py`; `crew.py` has them between two attempts.
Start reading at `run`.
"""

from __future__ import annotations

import json
import secrets
import time
from contextlib import suppress
from typing import Any

import ray

from llmsched import sanitize
from llmsched.runtime.addressed import Addressed, end_at_once
from llmsched.runtime.attempt import CLOSE_WITHIN_S, NAMESPACE, PLACED_WITHIN_S, Life, Outcome, resources_of
from llmsched.runtime.crew import WarmWorker
from llmsched.runtime.rendezvous import Rendezvous
from llmsched.runtime.task import Ending, TaskWorker


class TaskAttempt:
    AT_ONCE = 8  # calls that a worker answers side by side: it runs, is watched, and is told to stop
    WORKER: type[TaskWorker] = TaskWorker

    def __init__(self, life: Life) -> None:
        self._life = life
        self._left = life.left  # of this try: the next one has another
        self._workers: list[Any] = []
        self._stops: list[Any] = []
        self._can_go_on = False  # its workers, for another attempt

    def run(self) -> None:
        life = self._life
        if life.crew is not None and life.crew.is_there:
            self._workers.extend(life.crew.take(life.order, CLOSE_WITHIN_S))
        for member in life.order["members"][len(self._workers) :]:
            self._workers.append(self._worker(member))
        places = self._placed(self._workers)
        heads = {place["node"]: worker for place, worker in reversed(list(zip(places, self._workers, strict=True)))}
        preparing = [worker.prepare.remote() for worker in heads.values()]
        self._check(self._answers(preparing, [self._workers.index(worker) for worker in heads.values()]))
        meeting = self._meeting([place["ip"] for place in places])
        finds_ray = self._of_worker_0(self._workers[0].open_door.remote(secrets.token_hex(32), self._workers[1:]))
        life.begin()
        runs = []
        for rank, (place, worker) in enumerate(zip(places, self._workers, strict=True)):
            envs = {**self._envs(rank), **finds_ray}
            known = {**place["envs"], **envs, **meeting.processes_of(rank)[0]}
            life.ranks.works_in(rank, place["node"], place["folder"], known, place["pid"])
            runs.append(worker.run.remote(envs, meeting))
        first = list(reversed(heads.values()))  # of each node, worker 0 before all others
        has_all_said = has_succeeded = False
        try:
            said = self._answers(runs, list(range(len(runs))), is_work=True)
            has_all_said = len(said) == len(runs)
            self._check([self._with_its_ray(one) for one in said], has_begun=True)
            has_succeeded = True
        finally:
            self._end_ray()
            self._keep_outputs(first, has_succeeded)
            with suppress(Exception):
                ray.get([worker.clean.remote() for worker in first], timeout=5)
            if life.crew is not None and has_all_said and not life.is_leaving:
                self._can_go_on = self._all_can_go_on()

    def ask_to_leave(self, grace_s: float) -> None:
        self._stops = [worker.stop.remote(grace_s) for worker in self._workers]

    def end(self) -> None:
        """The workers end their processes by themselves when the grace is over: they are given a little time for it."""
        if self._stops:
            ray.wait(self._stops, num_returns=len(self._stops), timeout=CLOSE_WITHIN_S)
        for worker in self._workers:
            with suppress(Exception):
                end_at_once(worker)
        self._left.wait(CLOSE_WITHIN_S)

    def let_go(self) -> bool:
        if self._life.crew is not None and self._can_go_on and not self._life.is_leaving:
            self._life.crew.keep(self._workers)
            return True
        gone = 0
        for worker in self._workers:
            with suppress(Exception):
                end_at_once(worker)
        for worker in self._workers:
            try:
                ray.get(worker.where.remote(), timeout=CLOSE_WITHIN_S)
            except ray.exceptions.ActorDiedError:
                gone += 1
            except Exception:
                continue
        return gone == len(self._workers)

    def can_become(self, members: list[dict[str, Any]]) -> bool:
        """A command begins again at another size."""
        return False

    def become(self, members: list[dict[str, Any]], grace_s: float) -> bool:
        return False

    def controlled_by(self, controller: Any) -> None:
        """Nobody but us runs a task."""

    def _worker(self, member: dict[str, Any]) -> Any:
        return self._hire(member, member["rank"])

    def _hire(self, member: dict[str, Any], rank: int, *more: str) -> Any:
        """An actor on the member's node that holds the member's resources; `more` are arguments of its class."""
        need, life = resources_of(member), self._life
        name = f"{life.name}/rank-{rank}" + (f".{life.resizes}" if life.resizes else "")
        if life.crew is not None:  # its supervisor's name first, which is of another attempt, maybe
            name = f"{life.order['warm']}/{name}"
        worker = (
            ray.remote(max_restarts=0, max_concurrency=self.AT_ONCE)(
                WarmWorker if life.crew is not None else self.WORKER
            )
            .options(
                name=name,
                namespace=NAMESPACE,
                num_gpus=need.pop("GPU", 0),
                num_cpus=need.pop("CPU", 0),
                memory=int(need.pop("memory", 0)) or None,
                resources=need,
                label_selector={"ray.io/node-id": member["node"]},
            )
            .remote(json.dumps(life.order), rank, *more)
        )
        return Addressed(worker, life.name) if life.crew is not None else worker

    def _all_can_go_on(self) -> bool:
        asked = [worker.can_go_on.remote() for worker in self._workers]
        try:
            return all(ray.get(asked, timeout=CLOSE_WITHIN_S))
        except ray.exceptions.RayError:
            return False

    def _meeting(self, addresses: list[str]) -> Rendezvous:
        """Where the ranks of this try meet: a port that worker 0 holds, another one at each try."""
        port = self._of_worker_0(self._workers[0].hold_port.remote())
        return Rendezvous.of(self._life.order, self._life.resizes, addresses, port)

    def _of_worker_0(self, asked: Any) -> Any:
        try:
            return ray.get(asked)
        except ray.exceptions.RayError as error:
            raise Outcome("failed", *self._life.of_death(0, error)) from error

    def _with_its_ray(self, ending: Ending) -> Ending:
        """A rank that failed for want of the gang's own Ray, whose head is beside worker 0: what ended that is why."""
        if ending.message and (lost := self._of_worker_0(self._workers[0].lost_ray.remote())):
            return ending._replace(message=lost.message, event=lost.event)
        return ending

    def _end_ray(self) -> None:
        """Of worker 0 last: it is the head's."""
        for part in (self._workers[1:], self._workers[:1]):
            ending = [worker.end_ray.remote() for worker in part]
            if ending:
                ray.wait(ending, num_returns=len(ending), timeout=CLOSE_WITHIN_S * 3)

    def _keep_outputs(self, workers: list[Any], is_result: bool) -> None:
        """What the commands wrote beside their code; within the grace, when they were asked to leave."""
        try:
            ray.get([worker.keep.remote(part) for part, worker in enumerate(workers)])
            ray.get(workers[0].publish.remote(len(workers), is_result))
        except ray.exceptions.RayError as error:  # with a worker that is gone goes what it wrote
            print(f"{self._life.name}: what it wrote is not kept: {sanitize.first_line(error)}")

    def _envs(self, rank: int) -> dict[str, str]:
        order = self._life.order
        envs = {
            "LLMSCHED_NAME": order["spec"].get("name", order["workload"]),
            "LLMSCHED_WORKLOAD": order["workload"],
            "LLMSCHED_GANG": order["gang"],
            "LLMSCHED_ATTEMPT": order["attempt"],
            "LLMSCHED_RANK": rank,
            "LLMSCHED_WORLD_SIZE": len(order["members"]),
            "LLMSCHED_STORAGE": order["storage"],
            "LLMSCHED_INPUTS": json.dumps(order["inputs"]),
        }
        return {key: str(value) for key, value in envs.items()}

    def _placed(self, workers: list[Any]) -> list[dict[str, Any]]:
        asked = [worker.where.remote() for worker in workers]
        until = time.monotonic() + PLACED_WITHIN_S
        waiting = asked
        while waiting:
            if self._life.is_leaving:
                raise Outcome("released", "stopped before it began")
            if time.monotonic() > until:
                raise Outcome("failed", f"Ray did not place all workers in {PLACED_WITHIN_S:.0f} s", "no-capacity")
            _, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=0.5)
        places: list[dict[str, Any]] = []
        for rank, one in enumerate(asked):
            try:
                places.append(ray.get(one))
            except ray.exceptions.RayError as error:
                death = self._life.of_death(rank, error)
                raise Outcome("failed", f"a worker could not start: {death.message}", death.event) from error
        return places

    def _answers(self, runs: list[Any], ranks: list[int], *, is_work: bool = False) -> list[Ending]:
        """What each call says, or the first failure: one rank that fails ends the gang. `is_work`: a rank whose call
        is over has come to its end."""
        said: list[Ending] = []
        waiting = list(runs)
        while waiting:
            done, waiting = ray.wait(waiting, num_returns=1)
            try:
                said += ray.get(done)
            except ray.exceptions.RayError as error:
                rank = ranks[runs.index(done[0])]
                raise Outcome("failed", *self._life.of_death(rank, error)) from error
            if said[-1].message:
                break
            if is_work:
                self._life.ranks.finished(ranks[runs.index(done[0])])
        return said

    def _check(self, said: list[Ending], *, has_begun: bool = False) -> None:
        """Raises Outcome for what is no success. Who was told to leave and did has left, whatever its exit code,
        unless every rank of it says that it is done."""
        if has_begun and self._life.is_unused:
            return
        failed = next((one for one in said if one.message), None)
        if self._life.is_leaving:
            if has_begun and failed is None and all(one.says_done for one in said):
                return
            raise Outcome("released", _left(said) if has_begun else "stopped before it began")
        if failed is not None:
            raise Outcome("failed", failed.message, failed.event)


def _left(said: list[Ending]) -> str:
    codes = sorted({one.code for one in said if one.code is not None})
    return f"left as asked, with exit code {', '.join(map(str, codes))}" if codes else "left as asked"
