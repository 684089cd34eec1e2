"""One actor per attempt: it runs the work, answers for it, and leaves a receipt that outlives everybody.

Detached, on the head node, never restarted, takes no CPU. Neither the bridge nor the controller need to live for it to
go on; they look it up by name and ask for `status`. It knows one attempt and decides nothing about others. The outcome
is written to the storage, once, before anybody is told. Start reading at `Supervisor._run`.
"""

from __future__ import annotations

import json
import os
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any

import ray
from ray.util.metrics import Gauge
from ray.util.placement_group import PlacementGroup

from llmsched import sanitize
from llmsched.runtime import artifact, execute, redaction
from llmsched.runtime import receipt as receipts
from llmsched.runtime.storage import Storage

NAMESPACE = "llmsched"
PLACED_WITHIN_S = 60.0  # the ledger says that it fits; when Ray does not agree by then, nobody waits on
LINGER_S = 120.0  # after the end, for a bridge that is being restarted
COMMANDS_AT_ONCE = 4  # of people, beside one attempt
CLOSE_WITHIN_S = 10.0  # Ray's own way to end a run, before its actors are killed
RECEIPT_PAUSES_S = (0, 1, 2, 4, 8, 15, 30)
FORCED = "ended by force: it had not left when its grace was over"

# Ray Train reads these where `fit` is called and hands them to its processes.
_TRAIN_SETTINGS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # a dead worker is noticed within a second
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(int(PLACED_WITHIN_S)),
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # preemption is the scheduler's, and each watcher is a process
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # our log shows what the loop prints
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "1",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}


class Outcome(Exception):
    """How an attempt ended, when it did not just succeed. event: error | input | interruption | no-capacity."""

    def __init__(self, outcome: str, message: str = "", event: str = "error", step: int | None = None) -> None:
        message = sanitize.text(redaction.clean(message))  # it is told to everyone
        super().__init__(message)
        self.outcome, self.message, self.event, self.step = outcome, message, event, step


SUCCEEDED = Outcome("succeeded")


class Supervisor:
    """`order` is the LaunchOrder as JSON. Methods are called from several threads."""

    def __init__(self, order: str) -> None:
        os.environ.update(_TRAIN_SETTINGS)
        self._order: dict[str, Any] = json.loads(order)
        redaction.hide(self._order)
        self.name = f"llms/{self._order['gang']}/{self._order['attempt']}"
        self._folder = f"{self._order['gang']}/{self._order['attempt']}"
        self._store = Storage.at(self._order["storage"])
        self._lock = threading.Lock()
        self._started = False
        self._progress: dict[str, Any] = {}
        self._checkpoint: list[Any] | None = None
        self._stop_mode = ""
        self._stop_at = 0.0  # monotonic: when patience ends
        self._stopped_step: int | None = None
        self._did_stop = False
        self._failures: list[tuple[int, str, str]] = []
        self._finished: set[int] = set()
        self._groups: list[str] = []
        self._gauges: dict[str, Gauge] = {}
        self._controller: Any = None
        self._workers: list[Any] = []
        self._places: dict[int, dict[str, Any]] = {}  # rank -> node, folder and variables, for commands beside it
        self._commands: dict[str, Any] = {}
        self._resizes = 0
        self._left = threading.Event()  # set when the work has let go of everything
        self._receipt: receipts.Receipt | None = None
        self._next_members: list[dict[str, Any]] | None = None
        threading.Thread(target=self._live, daemon=True).start()

    # -- asked by the bridge -------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """Plain data: started, progress, checkpoint [step, fraction], placement_groups, receipt or None."""
        with self._lock:
            return {
                "attempt": self._order["attempt"],
                "epoch": self._order["epoch"],
                "started": self._started,
                "size": len(self._order["members"]),
                "stopping": self._stop_mode,
                "progress": dict(self._progress),
                "checkpoint": self._checkpoint,
                "placement_groups": list(self._groups),
                "receipt": None if self._receipt is None else asdict(self._receipt),
            }

    def stop(self, mode: str, grace_s: float) -> None:
        """preempt, drain and stop alike: ask the work to leave, and end it by force after `grace_s` seconds.

        What has not begun has nothing to save and is ended at once. Asking again can only shorten the grace.
        """
        with self._lock:
            grace_s = grace_s if self._started else 0.0
            until = time.monotonic() + max(0.0, grace_s)
            self._stop_at = min(self._stop_at, until) if self._stop_mode else until
            is_first, self._stop_mode = not self._stop_mode, mode
        if is_first:
            threading.Thread(target=self._force, daemon=True).start()

    def resize(self, members: str, grace_s: float) -> None:
        """Hold these members (JSON) instead: the loop saves and leaves, and begins again from there at the new size.

        One that does not leave within the grace is ended and goes back to its last checkpoint; a task begins again.
        """
        self._next_members = json.loads(members)
        self.stop("resize", grace_s)

    def dismiss(self) -> None:
        """The receipt has been read: the actor may leave. Without an end yet, it stays."""
        if self._receipt is not None:
            ray.actor.exit_actor()

    def execute(self, command: str, rank: int, argv: list[str], timeout_s: float) -> Iterator[execute.Said]:
        """Run a person's command where rank `rank` runs. `command` is its id, for `end_command`."""
        place = self._places.get(rank)
        if place is None or not self._started or self._stop_mode:
            yield "end", f"rank {rank} is not at work just now", None
            return
        with self._lock:
            if len(self._commands) >= COMMANDS_AT_ONCE:
                yield "end", f"{COMMANDS_AT_ONCE} commands run beside it already", None
                return
            worker = self._commands[command] = (
                ray.remote(execute.CommandWorker)
                .options(num_cpus=0, max_concurrency=2, label_selector={"ray.io/node-id": place["node"]})
                .remote(json.dumps(self._order))
            )
        try:
            said = worker.run.options(num_returns="streaming").remote(argv, place["folder"], place["envs"], timeout_s)
            for item in said:
                yield ray.get(item)
        except ray.exceptions.RayError as error:
            yield "end", f"its node or its process died: {_first_line(error)}", None
        finally:
            with self._lock:
                self._commands.pop(command, None)
            ray.kill(worker)

    def end_command(self, command: str) -> None:
        with self._lock:
            worker = self._commands.get(command)
        if worker is not None:
            worker.stop.remote()

    def end_commands(self, but: list[str]) -> None:
        """End those that nobody listens to any more: all but these."""
        with self._lock:
            left = [name for name in self._commands if name not in but]
        for command in left:
            self.end_command(command)

    # -- told by the workers -------------------------------------------------------------------------------------

    def order(self) -> str:
        return json.dumps(self._order)

    def started(self) -> None:
        self._started = True

    def works_in(self, rank: int, node: str, folder: str, envs: dict[str, str]) -> None:
        self._places[rank] = {"node": node, "folder": folder, "envs": envs}

    def report(self, values: dict[str, Any]) -> None:
        valid = sanitize.data(values) if isinstance(values, dict) else {}
        with self._lock:
            known = {**self._progress, **valid}
            self._progress = {name: known[name] for name in list(known)[: sanitize.ITEMS_AT_MOST]}
        for name in ("step", "total_steps", "loss"):
            if isinstance(valid.get(name), (int, float)):
                self._gauge(name).set(valid[name], {"workload": self._order["workload"]})

    def checkpointed(self, step: int, fraction: float | None = None) -> None:
        self._checkpoint = [sanitize.whole(step), None if fraction is None else sanitize.finite(fraction)]

    def should_stop(self) -> bool:
        return bool(self._stop_mode)

    def stopped(self, step: int | None) -> None:
        """A rank left because it was asked to, after saving step `step`."""
        self._did_stop, self._stopped_step = True, None if step is None else sanitize.whole(step)

    def finished(self, rank: int) -> None:
        """A rank came to the end of its work."""
        with self._lock:
            self._finished.add(rank)

    def failed(self, rank: int, message: str, is_peer_loss: bool, is_input: bool = False) -> None:
        """A rank raised. `is_peer_loss`: only because another one went away; `is_input`: what it was given is wrong."""
        event = "interruption" if is_peer_loss else "input" if is_input else "error"
        with self._lock:
            self._failures.append((rank, sanitize.text(message), event))

    # -- told by Ray Train's controller --------------------------------------------------------------------------

    def controlled_by(self, controller: Any) -> None:
        self._controller = controller

    def holds(self, group: str) -> None:
        """The run's placement group, by its id in hex: Train gives it no name, so reaping goes by what is kept here."""
        with self._lock:
            self._groups.append(group)
        self._write_attempt()

    # -- the life of the attempt ---------------------------------------------------------------------------------

    def _live(self) -> None:
        end = self._try()
        while self._begin_again(end):
            end = self._try()
        self._write_receipt(end)
        time.sleep(LINGER_S)
        os._exit(0)  # nobody came for it; `exit_actor` works only inside a method

    def _try(self) -> Outcome:
        """Run once, from wherever the last checkpoint is, and let go of everything."""
        try:
            self._write_attempt()
            self._run()
            end = Outcome("released", "left as asked", step=self._stopped_step) if self._did_stop else SUCCEEDED
        except Outcome as found:
            end = found
        except BaseException as error:
            traceback.print_exc()
            end = Outcome("failed", f"{type(error).__name__}: {_first_line(error)}", "interruption")
        if self._stop_mode and end.outcome == "failed":
            end = Outcome("released", FORCED)
        self._let_go()
        self._left.set()
        return end

    def _begin_again(self, end: Outcome) -> bool:
        """True when it only left to change its size."""
        with self._lock:
            if self._stop_mode != "resize" or end.outcome != "released" or self._next_members is None:
                return False
            self._order["members"], self._next_members = self._next_members, None
            self._stop_mode, self._started, self._did_stop, self._stopped_step = "", False, False, None
            self._failures, self._groups, self._workers, self._controller = [], [], [], None
            self._finished = set()
            self._places = {}
            self._resizes += 1
            self._left = threading.Event()
            return True

    def _run(self) -> None:
        """Raises Outcome unless all went well."""
        if self._order["kind"] == "task":
            self._run_task()
        elif "train" in self._order["spec"]:
            self._run_train()
        else:
            raise Outcome("failed", f"kind {self._order['kind']!r} cannot be run yet")

    def _run_train(self) -> None:
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
        from ray.train.v2.api.exceptions import TrainingFailedError

        from llmsched.runtime import train
        from llmsched.runtime.watch import Watch

        members = self._order["members"]
        amounts = {json.dumps([_amounts(one)], sort_keys=True) for one in members}
        if len(amounts) != 1:
            raise Outcome("failed", "a train gang's workers must ask for the same resources")
        need = _amounts(members[0])
        trainer = DataParallelTrainer(
            train.work,
            train_loop_config={"attempt": self.name, "namespace": NAMESPACE},
            backend_config=train.TorchGroup(),
            scaling_config=ScalingConfig(
                num_workers=len(members),
                use_gpu=members[0]["gpus"] > 0,
                resources_per_worker=need,
                label_selector=[{"ray.io/node-id": one["node"]} for one in members],
            ),
            run_config=RunConfig(
                name=self.name.removeprefix("llms/").replace("/", "."),
                storage_path=self._store.uri_of("train-runs"),
                failure_config=FailureConfig(max_failures=0, controller_failure_limit=0, max_preemption_failures=0),
                callbacks=[Watch(self.name, NAMESPACE)],
            ),
        )
        if self._stop_mode:
            raise Outcome("released", "stopped before it began")
        try:
            trainer.fit()
        except (TrainingFailedError, ray.exceptions.RayError) as error:
            self._raise_failure(error)
        if not self._did_stop:
            self._check_all_finished(len(members))

    def _check_all_finished(self, size: int) -> None:
        """Success is what every rank has said, not the absence of an error: one may not survive its own telling."""
        with self._lock:
            own = [one for one in self._failures if one[2] != "interruption"]
            silent = sorted(set(range(size)) - self._finished)
        if own:
            rank, text, event = min(own)
            raise Outcome("failed", text if event == "input" else f"rank {rank}: {text}", event)
        if silent:
            raise Outcome("failed", f"rank {silent[0]} ended without saying how; its log may say more", "error")

    def _raise_failure(self, error: Exception) -> None:
        """The cause, not the symptom: a dead process, else a rank's own exception, else Ray's words."""
        with self._lock:
            own = [one for one in self._failures if one[2] != "interruption"]
            echoes = [text for _, text, event in self._failures if event == "interruption"]
        deaths = {
            rank: one
            for rank, one in getattr(error, "worker_failures", {}).items()
            if isinstance(one, ray.exceptions.RayActorError) or "died" in type(one).__name__.lower()
        }
        if own and not deaths:  # where a process died, what others then say is an echo, in whatever words
            rank, text, event = min(own)
            raise Outcome("failed", text if event == "input" else f"rank {rank}: {text}", event) from error
        if deaths or echoes:
            who = f"rank {min(deaths)}" if deaths else "another worker"
            raise Outcome("failed", f"{who}: its process or its node died", "interruption") from error
        cause = getattr(error, "controller_failure", error)
        if type(cause).__name__ in ("WorkerGroupStartupTimeoutError", "InsufficientClusterResourcesError"):
            text = f"Ray did not place all workers in {PLACED_WITHIN_S:.0f} s"
            raise Outcome("failed", text, "no-capacity") from error
        raise Outcome("failed", f"{type(cause).__name__}: {_first_line(cause)}", "interruption") from error

    def _run_task(self) -> None:
        from llmsched.runtime.task import TaskWorker

        order, text = self._order, json.dumps(self._order)
        Actor = ray.remote(max_restarts=0, max_concurrency=4)(TaskWorker)
        for member in order["members"]:
            need = _amounts(member)
            worker = Actor.options(
                name=f"{self.name}/rank-{member['rank']}" + (f".{self._resizes}" if self._resizes else ""),
                namespace=NAMESPACE,
                num_gpus=need.pop("GPU", 0),
                num_cpus=need.pop("CPU", 0),
                memory=int(need.pop("memory", 0)) or None,
                resources=need,
                label_selector={"ray.io/node-id": member["node"]},
            ).remote(text, member["rank"])
            self._workers.append(worker)
        places = self._placed()
        heads = {place["node"]: worker for place, worker in reversed(list(zip(places, self._workers, strict=True)))}
        self._check(self._answers([worker.prepare.remote() for worker in heads.values()]))
        if self._stop_mode:
            raise Outcome("released", "stopped before it began")
        self._started = True
        runs = []
        for member, worker in zip(order["members"], self._workers, strict=True):
            envs = {
                "RANK": member["rank"],
                "WORLD_SIZE": len(order["members"]),
                "LLMSCHED_NAME": order["spec"].get("name", order["workload"]),
                "LLMSCHED_WORKLOAD": order["workload"],
                "LLMSCHED_GANG": order["gang"],
                "LLMSCHED_ATTEMPT": order["attempt"],
                "LLMSCHED_RANK": member["rank"],
                "LLMSCHED_WORLD_SIZE": len(order["members"]),
                "LLMSCHED_STORAGE": order["storage"],
                "LLMSCHED_INPUTS": json.dumps(order["inputs"]),
                "MASTER_ADDR": places[0]["ip"],
            }
            envs = {key: str(value) for key, value in envs.items()}
            place = places[member["rank"]]
            self.works_in(member["rank"], place["node"], place["folder"], {**place["envs"], **envs})
            runs.append(worker.run.remote(envs))
        try:
            self._check(self._answers(runs))
        finally:
            with suppress(Exception):
                ray.get([worker.clean.remote() for worker in heads.values()], timeout=5)

    def _placed(self) -> list[dict[str, Any]]:
        asked = [worker.where.remote() for worker in self._workers]
        until = time.monotonic() + PLACED_WITHIN_S
        waiting = asked
        while waiting:
            if self._stop_mode:
                raise Outcome("released", "stopped before it began")
            if time.monotonic() > until:
                raise Outcome("failed", f"Ray did not place all workers in {PLACED_WITHIN_S:.0f} s", "no-capacity")
            _, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=0.5)
        try:
            places: list[dict[str, Any]] = ray.get(asked)
            return places
        except ray.exceptions.RayError as error:
            raise Outcome("failed", f"a worker could not start: {_first_line(error)}", "interruption") from error

    def _answers(self, runs: list[Any]) -> list[str]:
        """What each call says, or the first failure: one rank that fails ends the gang."""
        said: list[str] = []
        waiting = list(runs)
        while waiting:
            done, waiting = ray.wait(waiting, num_returns=1)
            try:
                said += ray.get(done)
            except ray.exceptions.RayError as error:
                rank = runs.index(done[0])
                raise Outcome("failed", f"rank {rank}: its process or its node died", "interruption") from error
            if said[-1]:
                break
        return said

    def _check(self, said: list[str]) -> None:
        from llmsched.runtime.task import INPUT_MARK

        trouble = next((text for text in said if text), "")
        if trouble and not self._stop_mode:
            is_input = trouble.startswith(INPUT_MARK)
            raise Outcome("failed", trouble.removeprefix(INPUT_MARK), "input" if is_input else "error")
        if trouble:
            raise Outcome("released", "stopped as asked")

    # -- ending --------------------------------------------------------------------------------------------------

    def _force(self) -> None:
        """A task is told by signal now; a train loop asks `should_stop` and has until its grace is over."""
        left, stops = self._left, []
        if self._order["kind"] == "task":
            grace_s = max(0.0, self._stop_at - time.monotonic())
            stops = [worker.stop.remote(grace_s) for worker in self._workers]
        while time.monotonic() < self._stop_at:
            if left.wait(0.1):
                return
        if stops:
            ray.wait(stops, num_returns=len(stops), timeout=CLOSE_WITHIN_S)
        for end in ("abort", "kill"):
            with suppress(Exception):
                if self._controller is not None:
                    self._controller.abort.remote() if end == "abort" else ray.kill(self._controller)
            if left.wait(CLOSE_WITHIN_S / 2):
                return
        # Ray does not end it: say how it stands and take it down with us.
        self._let_go()
        self._write_receipt(Outcome("released", FORCED))
        os._exit(0)

    def _let_go(self) -> None:
        """Tell Ray to take everything back, and wait until the processes of a task are gone."""
        for worker in self._workers:
            with suppress(Exception):
                ray.kill(worker)
        for worker in self._workers:
            with suppress(Exception):  # a dead actor answers with an error
                ray.get(worker.where.remote(), timeout=CLOSE_WITHIN_S)
        with suppress(Exception):
            if self._controller is not None:
                ray.kill(self._controller)
        for group in self._groups:
            with suppress(Exception):
                ray.util.remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(group))))
        run = f"train-runs/{self.name.removeprefix('llms/').replace('/', '.')}"
        with suppress(Exception):
            self._store.delete(run)

    def _gauge(self, name: str) -> Gauge:
        """What Ray's metrics show of the run, as llmsched_train_step and the like."""
        if name not in self._gauges:
            self._gauges[name] = Gauge(f"llmsched_train_{name}", f"Progress: {name}", tag_keys=("workload",))
        return self._gauges[name]

    def _write_attempt(self) -> None:
        order = self._order
        about = {
            "attempt": order["attempt"],
            "epoch": order["epoch"],
            "kind": order["kind"],
            "members": [{"rank": one["rank"], "node": one["node"]} for one in order["members"]],
            "placement_groups": self._groups,
        }
        self._store.write(f"{self._folder}/attempt.json", json.dumps(about, indent=1).encode())

    def _write_receipt(self, end: Outcome) -> None:
        """Durable first, then told. What a storage that does not answer for a minute never got has not succeeded."""
        receipt = receipts.of(
            {
                "outcome": end.outcome,
                "message": end.message,
                "event": end.event,
                "step": end.step if end.step is not None else self._progress.get("step"),
                "attempt": self._order["attempt"],
                "epoch": self._order["epoch"],
                "started": self._started or self._resizes > 0,
            }
        )
        trouble = ""
        for pause_s in RECEIPT_PAUSES_S:
            time.sleep(pause_s)
            try:
                receipt, trouble = self._stored(receipt), ""
                break
            except Exception as error:
                trouble = f"its receipt could not be written: {sanitize.first_line(error)}"
                print(f"{self.name}: {trouble}", flush=True)
        if trouble and receipt.outcome == "succeeded":
            receipt = replace(receipt, outcome="failed", message=trouble, event="interruption")
        with self._lock:
            self._receipt = self._receipt or receipt

    def _stored(self, receipt: receipts.Receipt) -> receipts.Receipt:
        """The receipt with what the work left behind, as the storage has it now: the first one written stands."""
        order = self._order
        try:
            result = artifact.read_result(order["storage"], order["gang"], order["attempt"], order["epoch"])
        except artifact.ResultUnreadable as error:
            if receipt.outcome == "succeeded":
                receipt = replace(receipt, outcome="failed", message=str(error), event="error")
        else:
            made = result["artifact"] if receipt.outcome == "succeeded" else None
            receipt = replace(receipt, artifact=made, metrics=sanitize.numbers(result["metrics"]))
        key = receipts.key(self._folder)
        if self._store.write_if_absent(key, receipt.dump()):
            return receipt
        return receipts.parse(self._store.read(key))


def _amounts(member: dict[str, Any]) -> dict[str, float]:
    """Ray's resources of one member. A bundle must ask for something: a thousandth of a CPU is nothing to nobody."""
    need = {"GPU": member["gpus"], "CPU": member["cpus"], "memory": float(member["memory_bytes"]), **member["custom"]}
    return {name: amount for name, amount in need.items() if amount} or {"CPU": 0.001}


def _first_line(error: BaseException) -> str:
    return sanitize.first_line(error)
