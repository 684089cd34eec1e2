"""An attempt of a train gang: one run of Ray Train on exactly the members' nodes. Start reading at `run`.

Train's own restarts are off: an attempt fails once, and goes on from our own checkpoints in the next one. What the
workers do is in `train.py`.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from typing import Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.util.placement_group import PlacementGroup

from llmsched import sanitize
from llmsched.runtime import deaths, ray_internals, train
from llmsched.runtime.attempt import CLOSE_WITHIN_S, NAMESPACE, PLACED_WITHIN_S, Life, Outcome, resources_of
from llmsched.runtime.ranks import Failure
from llmsched.runtime.ray_internals import Made, Trainer, TrainingFailedError, Watch, is_no_capacity

# Ray Train reads these where `fit` is called and hands them to its processes.
SETTINGS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # a dead worker is noticed within a second
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(int(PLACED_WITHIN_S)),
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # preemption is the scheduler's, and each watcher is a process
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # our log shows what the loop prints
    # For a page of Ray's dashboard alone: an actor for the whole cluster, which the first attempt makes and which ends
    # with it, under the others. Each start of a gang paid a process for it.
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}

_LOOK_EVERY_S = 0.25


class TrainAttempt:
    def __init__(self, life: Life) -> None:
        os.environ.update(SETTINGS)
        self._life = life
        self._left = life.left  # of this try: the next one has another
        self._run_name = life.name.removeprefix("llms/").replace("/", ".")
        self._controller: Any = None

    def run(self) -> None:
        life, members = self._life, self._life.order["members"]
        amounts = {json.dumps([resources_of(one)], sort_keys=True) for one in members}
        if len(amounts) != 1:
            raise Outcome("failed", "a train gang's workers must ask for the same resources", "input")
        trainer = Trainer(
            train.work,
            train_loop_config={"attempt": life.name, "namespace": NAMESPACE},
            backend_config=train.TorchGroup(),
            scaling_config=ScalingConfig(
                num_workers=len(members),
                use_gpu=members[0]["gpus"] > 0,
                resources_per_worker=resources_of(members[0]),
                label_selector=[{"ray.io/node-id": one["node"]} for one in members],
            ),
            run_config=RunConfig(
                name=self._run_name,
                storage_path=life.storage.uri_of("train-runs"),
                failure_config=FailureConfig(max_failures=0, controller_failure_limit=0, max_preemption_failures=0),
                callbacks=[Watch(life.name, NAMESPACE)],
            ),
        )
        if life.is_leaving:
            raise Outcome("released", "stopped before it began")
        try:
            trainer.fit()
        except (TrainingFailedError, ray.exceptions.RayError) as error:
            if not self._is_complete(len(members)):
                raise self._failure(error) from error
            print(f"[llmsched] all ranks are done; Ray Train ended with {sanitize.first_line(error)}", flush=True)
        if life.ranks.did_stop:
            raise Outcome("released", "left as asked", step=life.ranks.stopped_step)
        self._check_all_finished(len(members))

    def _is_complete(self, size: int) -> bool:
        """Whether every rank has said that it is done: what becomes of Ray Train's own processes afterwards, on a busy
        machine for example, takes nothing of that back."""
        ranks = self._life.ranks
        return not ranks.own_failures() and set(range(size)) <= ranks.finished_ranks

    def _check_all_finished(self, size: int) -> None:
        """Success is what every rank has said, not the absence of an error: one may not survive its own telling."""
        if own := self._life.ranks.own_failures():
            raise _outcome_of(own[0])
        if silent := sorted(set(range(size)) - self._life.ranks.finished_ranks):
            raise Outcome("failed", f"rank {silent[0]} ended without saying how; its log may say more", "error")

    def ask_to_leave(self, grace_s: float) -> None:
        """The loop asks `should_stop` by itself, and has until its grace is over."""

    def end(self) -> None:
        """Again and again, for what Ray Train is about to start is there a moment later."""
        until = time.monotonic() + CLOSE_WITHIN_S
        while time.monotonic() < until:
            with suppress(Exception):
                self._kill_controllers()
            if self._left.wait(_LOOK_EVERY_S):
                return

    def let_go(self) -> bool:
        """What Ray Train took is what its controllers made, and those are what this process made: Ray knows both,
        also of a run that nobody has told us of yet."""
        is_gone, until = False, time.monotonic() + CLOSE_WITHIN_S
        while not is_gone and time.monotonic() < until:
            with suppress(Exception):
                made = self._kill_controllers()
                for group in made.groups:
                    ray.util.remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(group))))
                is_gone = not any(made)
            if not is_gone:
                time.sleep(_LOOK_EVERY_S)
        with suppress(Exception):
            self._life.storage.delete(f"train-runs/{self._run_name}")
        return is_gone

    def can_become(self, members: list[dict[str, Any]]) -> bool:
        """Ray Train changes its size by a restart alone."""
        return False

    def become(self, members: list[dict[str, Any]], grace_s: float) -> bool:
        return False

    def controlled_by(self, controller: Any) -> None:
        self._controller = controller

    def _death(self, lost: dict[int, BaseException]) -> Outcome:
        if not lost:
            return Outcome("failed", "another worker went away", "interruption")
        rank = min(lost)
        return Outcome("failed", *self._life.of_death(rank, lost[rank]))

    def _kill_controllers(self) -> Made:
        """What was still there."""
        with suppress(Exception):
            if self._controller is not None:
                ray.kill(self._controller)
        made = ray_internals.made_by(ray.get_runtime_context().get_worker_id())
        for controller in made.controllers:
            with suppress(Exception):
                ray_internals.kill(controller)
        return made

    def _failure(self, error: Exception) -> Outcome:
        """The cause, not the symptom: a dead process, else a rank's own exception, else Ray's words."""
        ranks = self._life.ranks
        own = ranks.own_failures()
        befell = {rank: ray_internals.cause_of(one) for rank, one in getattr(error, "worker_failures", {}).items()}
        lost = {rank: one for rank, one in befell.items() if ray_internals.is_death(one)}
        certain = [one for one in own if one.event == "input"]  # one that ends itself says why first
        if certain or (own and not lost):  # where a process died, what others then say is an echo, in whatever words
            return _outcome_of((certain or own)[0])
        if lost or ranks.heard_of_a_loss():
            return self._death(lost)
        cause = getattr(error, "controller_failure", error)
        if is_no_capacity(cause):
            return Outcome("failed", f"Ray did not place all workers in {PLACED_WITHIN_S:.0f} s", "no-capacity")
        if ray_internals.is_death(cause):
            return Outcome("failed", *deaths.explain("Ray Train's controller", deaths.words_of(cause), deaths.Known()))
        return Outcome("failed", f"{type(cause).__name__}: {sanitize.first_line(cause)}", "interruption")


def _outcome_of(failure: Failure) -> Outcome:
    rank, text, event = failure
    return Outcome("failed", text if event == "input" else f"rank {rank}: {text}", event)
