"""A batch on Ray Data: the driver, which hands out the parts that are left, and the worker that each member is.

What is done with a part is `workloads.batch.work`'s. Ray Data keeps one actor a member and gives each the next part
when it is free; what travels through Ray is which part, and what became of it: rows are read and answers written where
the model is. So nothing of a batch runs beside its members. A member tells what went wrong in its answer, since Ray
Data would try what it raises again. Start reading at `Driver.run`.

A batch that follows its input has no end, which a run of Ray Data has: there the driver gives the parts to the same
members itself, as they come (`_follow`).
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import ray
from ray.data import ActorPoolStrategy, DataContext, from_items
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from llmsched.runtime import (
    calls_door,
    containment,
    context,
    data_internals,
    deaths,
    environment,
    exceptions,
    execute,
    exits,
    failures,
    nested,
    over_memory,
    packages,
    progress,
    pulse,
    redaction,
)
from llmsched.runtime.attempt import NAMESPACE, resources_of
from llmsched.runtime.link import ActorLink

WORK = "workloads.batch.work"
STREAM = "workloads.batch.stream"
_ASK_EVERY_S = 0.5  # whether to leave, and for news, where nothing is under way
IN_LINE = 2  # parts given to a member: the one it is at, and the next


class Over(NamedTuple):
    """How a run ended: `message` says what went wrong, "" nothing did; `left`: it was asked to. `event` as in
    `failures`. `step`: as its progress counts them, so rows that were set aside are among them. `death`: all that Ray
    says of a member that is gone."""

    message: str = ""
    event: str = "error"
    left: bool = False
    step: int = 0
    death: str = ""


class Driver:
    """An actor inside the gang's placement group, without resources of its own. `name` is its own."""

    def __init__(self, order: str, group: PlacementGroup, name: str) -> None:
        self._order: dict[str, Any] = json.loads(order)
        redaction.hide(self._order)
        self._group, self._name = group, name
        self._ranks = itertools.count()

    def enlist(self) -> int:
        """The rank of the member that asks, which is a new one."""
        return next(self._ranks)

    def run(self) -> Over:
        with ExitStack() as stack:
            try:
                _enter(stack, self._order, 0)
                return self._run()
            except ray.exceptions.RayError as error:
                words = deaths.words_of(error)
                return Over(*deaths.explain("a worker", words, deaths.Known()), death=words)
            except BaseException as error:
                exceptions.show(error)
                return Over(exceptions.words(error), failures.event_of(error))

    def _run(self) -> Over:
        if self._order["spec"]["batch"].get("follow"):
            return self._follow()
        supervisor = _supervisor(self._order)
        run = environment.load_entry(f"{WORK}:Run", "kind: batch")(self._order)
        done_of = environment.load_entry("workloads.batch.ledger:Done", "kind: batch").of
        progress.report(**run.numbers())
        left: set[int] = set()
        for said in self._said(run.todo) if run.todo else ():
            if said["message"]:
                return Over(said["message"], said["event"])
            if not said["done"]:
                left.add(said["rank"])
                if len(left) == len(self._order["members"]):
                    break  # what is still in line is not done either
                continue
            run.took(done_of(said["done"]))
            numbers = run.numbers()
            progress.report(**numbers)
            supervisor.checkpointed.remote(numbers["step"], numbers["step"] / numbers["total_steps"])
        step = int(run.numbers()["step"])
        if left:
            return Over(left=True, step=step)
        run.end()
        return Over(step=step)

    def _follow(self) -> Over:
        """Look, give what is new to whoever is free, and take what is done; until it is asked to leave."""
        run = environment.load_entry(f"{STREAM}:Stream", "kind: batch")(self._order)
        done_of = environment.load_entry("workloads.batch.ledger:Done", "kind: batch").of
        supervisor, link = _supervisor(self._order), ActorLink(_supervisor(self._order))
        members = [self._member() for _ in self._order["members"]]
        busy: dict[Any, tuple[Any, Any]] = {member.begin.remote(): (member, None) for member in members}
        free, waiting = deque[Any](), deque(run.todo)
        look_at = 0.0
        while True:
            is_leaving = link.should_stop()
            if is_leaving and not busy:
                break
            if not is_leaving and (now := time.monotonic()) >= look_at:
                waiting += run.look()
                look_at = now + run.look_every_s
            while waiting and free and not is_leaving:
                member, part = free.popleft(), waiting.popleft()
                busy[member.do.remote(json.dumps(part))] = member, part
            for ref in self._done(list(busy)):
                member, part = busy.pop(ref)
                said = ray.get(ref)
                if said["message"]:
                    return Over(said["message"], said["event"])
                if part is not None and said["done"]:
                    run.answered(part, done_of(said["done"]))
                    supervisor.checkpointed.remote(run.rows + run.bad_rows)
                free.append(member)
            progress.report(**run.numbers())
        ray.wait([member.leave.remote() for member in members], num_returns=len(members), timeout=_ASK_EVERY_S)
        return Over(left=True, step=run.rows + run.bad_rows)

    def _done(self, busy: list[Any]) -> list[Any]:
        """Waits for one of them, for as long as nothing else can be asked for."""
        if not busy:
            time.sleep(_ASK_EVERY_S)  # a folder tells nobody that something has come, a supervisor none that it asks
            return []
        done, _ = ray.wait(busy, num_returns=1, timeout=_ASK_EVERY_S)
        return list(done)

    def _member(self) -> Any:
        need = resources_of(self._order["members"][0])
        wanted = ray.remote(max_restarts=0)(Member).options(
            num_gpus=need.pop("GPU", 0),
            num_cpus=need.pop("CPU", 0),
            memory=need.pop("memory", None),
            resources=need or None,
            scheduling_strategy=PlacementGroupSchedulingStrategy(self._group),
        )
        return wanted.remote(_name(self._order), self._name)

    def _said(self, todo: list[Any]) -> Iterator[dict[str, Any]]:
        """What the members say of each part, as it comes."""
        members = self._order["members"]
        bundles = [resources_of(member) for member in members]
        need = dict(bundles[0])
        settings = DataContext.get_current()
        settings.enable_progress_bars = False
        with data_internals.of_group(bundles):
            parts = from_items([{"part": json.dumps(part)} for part in todo], override_num_blocks=len(todo))
            said = parts.map_batches(
                Member,
                batch_size=1,
                compute=ActorPoolStrategy(size=len(members), max_tasks_in_flight_per_actor=IN_LINE),
                # Names alone: Ray shows what a run is made of, and an order may hold secrets.
                fn_constructor_args=(_name(self._order), self._name),
                num_gpus=need.pop("GPU", 0),
                num_cpus=need.pop("CPU", 0),
                memory=need.pop("memory", None),
                resources=need or None,
                scheduling_strategy=PlacementGroupSchedulingStrategy(self._group),
                max_restarts=0,  # a process that is gone ends the attempt, and the scheduler tries again
            )
            for batch in said.iter_batches(batch_size=None, prefetch_batches=0, batch_format="pyarrow"):
                yield from batch.to_pylist()


class Member:
    """What Ray Data makes of each member: called with the name of a part, it says what became of it. `begin` and `do`
    are the same for a driver that asks it without Ray Data."""

    def __init__(self, attempt: str, driver: str) -> None:
        self._stack = ExitStack()  # until it has nothing to do any more
        order = json.loads(ray.get(ray.get_actor(attempt, namespace=NAMESPACE).launch_order.remote()))
        redaction.hide(order)
        self._rank: int = ray.get(ray.get_actor(driver, namespace=NAMESPACE).enlist.remote())
        self._rank %= len(order["members"])
        self._link = ActorLink(_supervisor(order))
        self._wrong: tuple[str, str] | None = None  # why it can do nothing, as (message, event)
        try:
            self._worker = self._made(order)
            self._part_of = environment.load_entry("llmsched.data.parts:Part", "kind: batch")
        except BaseException as error:
            self._wrong = self._told(error)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        said = [self._say(json.loads(str(part))) for part in batch["part"]]
        return {name: [one[name] for one in said] for name in ("rank", "done", "message", "event")}

    def begin(self) -> dict[str, Any]:
        """Says what went wrong before any part."""
        return self._nothing() if self._wrong is None else self._ended()

    def do(self, part: str) -> dict[str, Any]:
        return self._say(json.loads(part))

    def leave(self) -> None:
        self._stack.close()

    def _nothing(self) -> dict[str, Any]:
        return {"rank": self._rank, "done": "", "message": "", "event": ""}

    def _ended(self) -> dict[str, Any]:
        assert self._wrong is not None
        return {**self._nothing(), "message": self._wrong[0], "event": self._wrong[1]}

    def _say(self, part: list[int]) -> dict[str, Any]:
        if self._wrong is None:
            if self._link.should_stop():
                self._stack.close()
                return self._nothing()
            try:
                return {**self._nothing(), "done": self._worker.do(self._part_of(*part)).dump()}
            except BaseException as error:
                self._wrong = self._told(error)
        return self._ended()

    def _made(self, order: dict[str, Any]) -> Any:
        rank, supervisor = self._rank, _supervisor(order)
        member = order["members"][rank]
        threads = max(1, min(int(member["cpus"] or 1), environment.cpu_share(1)))
        os.environ.update(environment.thread_envs(threads))  # before torch is imported, so that its pools obey
        log = environment.LogFile(order["storage"], f"{order['gang']}/{order['attempt']}/logs/{rank}.log")
        self._stack.enter_context(environment.crashes_to(log))
        self._stack.enter_context(environment.output_to(log))
        guard = containment.guard_of(order, rank, is_here=True, on_memory=partial(over_memory.tell, supervisor, rank))
        self._stack.callback(guard.close)
        containment.join_owner(ray.get_runtime_context().gcs_address)
        code = _enter(self._stack, order, rank)
        node = ray.get_runtime_context().get_node_id()
        supervisor.works_in.remote(rank, node, str(code), execute.surroundings(), os.getpid())
        exits.tell(supervisor, rank)
        self._stack.enter_context(pulse.beating(lambda said: supervisor.beat.remote(rank, said)))
        return environment.load_entry(f"{WORK}:Worker", "kind: batch")(order, member)

    def _told(self, error: BaseException) -> tuple[str, str]:
        if isinstance(error, environment.UserError):
            print(error, file=sys.stderr, flush=True)
        else:
            exceptions.show(error)
        self._stack.close()
        return f"rank {self._rank}: {exceptions.words(error)}", failures.event_of(error)

    def __del__(self) -> None:
        """Ray Data lets go of it: its log is whole then."""
        self._stack.close()


def _enter(stack: ExitStack, order: dict[str, Any], rank: int) -> Path:
    """Stand in the workload's code, with its packages and variables, as this rank; the folder. Raises UserError."""
    os.environ.update(calls_door.envs_of(order) | order["envs"])
    environment.check_version(order)
    code = nested.place_for_code()
    stack.callback(nested.drop)
    if order["workdir"]:
        environment.unpack(order["workdir"], code)
    else:
        code.mkdir()
    if (extra := packages.provide(order, code, sys.stdout.write)) is not None:
        extra.enter()
        nested.offer(extra)
    os.chdir(code)
    sys.path.insert(0, str(code))
    where = context.Context(
        name=order["spec"].get("name", order["workload"]),
        workload=order["workload"],
        gang=order["gang"],
        attempt=order["attempt"],
        epoch=order["epoch"],
        rank=rank,
        world_size=len(order["members"]),
        local_dir=code,
        spec=order["spec"],
        storage=order["storage"],
        inputs=order["inputs"],
        supervisor=ActorLink(_supervisor(order)),
    )
    stack.enter_context(context.enter(where))
    return code


def _name(order: dict[str, Any]) -> str:
    return f"llms/{order['gang']}/{order['attempt']}"


def _supervisor(order: dict[str, Any]) -> Any:
    return ray.get_actor(_name(order), namespace=NAMESPACE)
