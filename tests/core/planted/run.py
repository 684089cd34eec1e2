"""Plants bugs that schedulers have had, one at a time, in a copy of the core, and shows that a named test finds each.

python tests/core/planted/run.py [NAME ...]        about two seconds a bug; exit 1 when one goes unnoticed
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[3]
DECISIONS, WALK = "tests/core/test_decisions.py", "tests/core/test_walk.py"
RESERVATIONS = "tests/core/test_reservations.py"


class Bug(NamedTuple):
    """`like` is what it is modelled on; `old` stands exactly once in `file` and becomes `new`."""

    name: str
    like: str
    file: str
    old: str
    new: str
    test: str


BUGS = (
    Bug(
        "one_victim_for_two", "kueue#804", "core/stages/nominate.py",
        "    this.trial.promise(gang, placement)\n", "",
        f"{DECISIONS}::test_a_victim_counts_for_one_beneficiary_only",
    ),
    Bug(
        "the_dead_come_back", "kueue#1654, armada PR #2757", "core/lifecycle.py",
        "    if gang is not None and not gang.is_holding():\n",
        '    TABLE[Status.FINISHED, "retry"] = TABLE[V, "retry"]\n    if False:\n',
        f"{DECISIONS}::test_what_has_ended_stays_ended_whatever_is_said_later",
    ),
    Bug(
        "use_forgotten", "kueue#5334", "core/ledgers.py",
        "        for gang in gangs:\n", "        for gang in ():\n",
        f"{DECISIONS}::test_a_new_configuration_remembers_what_is_in_use",
    ),
    Bug(
        "stale_reclaim", "kueue#14609", "core/stages/preempt.py",
        "                code_now = rules.now(victim, code)\n                if not code_now:\n"
        "                    continue\n                before[victim.id]",
        "                code_now = code\n                before[victim.id]",
        f"{DECISIONS}::test_reclaim_stops_at_the_guarantee_of_the_victims_queue",
    ),
    Bug(
        "success_becomes_failure", "skypilot PR #9868", "core/fold_facts.py",
        '    if fact.outcome == "succeeded":\n',
        '    if fact.outcome == "succeeded" and gang.status is not Status.VACATING:\n',
        f"{DECISIONS}::test_a_success_while_being_evicted_is_a_success",
    ),
    Bug(
        "cancel_lost", "skypilot PR #10061", "core/lifecycle.py",
        '    if record.cancelled:\n        step(world, gang, "cancel")\n        return\n    version = rollout',
        "    version = rollout",
        f"{DECISIONS}::test_a_cancel_of_a_running_gang_is_not_lost_when_its_attempt_is",
    ),
    Bug(
        "rollout_eats_the_endpoint", "a lost replica came back as the version that had just failed", "core/rollout.py",
        "    if answered is not None and record.is_unproven and gang", "    if answered is not None and False and gang",
        "tests/core/test_rollout.py::"
        "test_a_lost_replica_comes_back_as_the_version_that_answered_while_the_new_one_fails",
    ),
    Bug(
        "running_after_preempt", "armada#4541", "core/lifecycle.py",
        '    (R, "bound"): Row(', '    (V, "bound"): Row(R, _began),\n    (R, "bound"): Row(',
        f"{DECISIONS}::test_a_late_word_of_a_start_does_not_revive_who_was_told_to_leave",
    ),
    Bug(
        "eviction_by_name", "armada PR #5053", "core/stages/victims.py",
        "        return (last, code == IN_QUEUE, *first,",
        "        return (victim.id, code == IN_QUEUE, *first,",
        f"{DECISIONS}::test_whoever_is_not_needed_is_spared",
    ),
    Bug(
        "half_a_gang_left", "ray#65147", "core/fold_facts.py",
        "            gang.lost_members, gang.lost_at = True, world.now\n", "            pass\n",
        f"{DECISIONS}::test_a_gang_that_lost_a_node_lets_go_of_the_rest_and_starts_again",
    ),
    Bug(
        "late_supervisor", "ray#41437", "core/lifecycle.py",
        "    if gang is None or gang.attempt != attempt:\n", "    if gang is None:\n",
        f"{DECISIONS}::test_a_fact_of_an_older_attempt_changes_nothing",
    ),
    Bug(
        "nobody_spared", "kueue: minimal set", "core/stages/preempt.py",
        "for victim in reversed(chosen[:-1]):", "for victim in ():",
        f"{DECISIONS}::test_whoever_is_not_needed_is_spared",
    ),
    Bug(
        "evicted_in_vain", "kueue: preempts what does not help", "core/stages/preempt.py",
        "            if found is None:\n                return None\n            found = self",
        "            if found is None:\n                found = chosen[0].held\n            found = self",
        f"{DECISIONS}::test_nobody_is_evicted_when_that_would_not_be_enough",
    ),
    Bug(
        "thinking_is_doing", "kueue: snapshot not restored", "core/trial.py",
        "        self.rollback(0)\n", "",
        f"{WALK}::test_deciding_leaves_the_state_as_it_was",
    ),
    Bug(
        "slots_leak", "apscheduler PR #1121", "core/ledgers.py",
        "                self.quota.release(queue, flavor, gpus)\n", "                pass\n",
        f"{WALK}::test_two_fit_the_third_waits_and_starts_when_one_ends",
    ),
    Bug(
        "no_cluster_no_work", "slurm: an empty state cancels what runs", "core/fold_facts.py",
        '            lifecycle.fails(world, gang, "interruption", gang.message, fact)\n',
        '            lifecycle.step(world, gang, "failed", fact)\n',
        f"{DECISIONS}::test_when_every_node_is_gone_work_waits_for_the_next_ones",
    ),
    Bug(
        "queue_forgotten", "slurm: an empty configuration cancels what waits", "core/commands.py",
        "        if not record.outcome and record.workload.queue not in queues:\n", "        if False:\n",
        f"{DECISIONS}::test_a_configuration_that_forgets_a_queue_with_work_in_it_is_refused",
    ),
    Bug(
        "event_dropped", "etcd#18089", "core/state.py",
        "                enqueue(self, gang)\n                self.version += 1\n", "                pass\n",
        f"{WALK}::test_a_lost_attempt_starts_again_after_a_pause_and_fails_when_retries_are_spent",
    ),
    Bug(
        "second_copy", "apscheduler PR #1121", "core/stages/schedule.py",
        '    elif spec.overlap == "skip" and not record.outcome:\n', "    elif False:\n",
        f"{DECISIONS}::test_a_schedule_starts_run_after_run_and_skips_while_one_goes_on",
    ),
    Bug(
        "stale_for_ever", "ray#62766: an intent nobody acts on", "core/stages/reconcile.py",
        "        if plan.has_come(gang.lost_at + patience):", "        if not patience:",
        f"{DECISIONS}::test_a_stale_gang_is_given_its_grace_and_then_let_go",
    ),
    Bug(
        "moved_from_its_rack", "kueue: node replacement", "core/fold_facts.py",
        "            gang.home = tuple(dict.fromkeys(placed.node for placed in left))\n", "",
        f"{DECISIONS}::test_a_lost_node_is_replaced_inside_the_rack_before_the_gang_is_moved",
    ),
    Bug(
        "evicted_is_failed", "skypilot PR #9868: what was recovered counts as failed", "core/fold_facts.py",
        '    elif gang.leaving == "released" and gang.lost_members:\n', '    elif gang.leaving == "released":\n',
        f"{DECISIONS}::test_preemptions_do_not_count_as_restarts",
    ),
    Bug(
        "reserved_and_given_away", "slurm: reservations on shared nodes", "core/windows.py",
        "        if idle:\n            rests.append", "        if False:\n            rests.append",
        f"{RESERVATIONS}::test_of_a_node_that_is_reserved_in_part_the_rest_is_for_everybody",
    ),
    Bug(
        "a_ring_of_cohorts", "kueue: a cycle of cohorts", "core/commands.py",
        "        if above is not None:\n            circle =", "        if False:\n            circle =",
        f"{DECISIONS}::test_cohorts_in_a_circle_are_refused",
    ),
)  # fmt: skip


def source(bug: Bug) -> Path:
    return ROOT / "llmsched" / bug.file


def is_found(bug: Bug) -> bool:
    """Whether the named test fails with the bug planted."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "llmsched"
        shutil.copytree(ROOT / "llmsched", copy, ignore=shutil.ignore_patterns("__pycache__"))
        target = copy / bug.file
        target.write_text(target.read_text().replace(bug.old, bug.new))
        path = os.pathsep.join([folder, os.environ.get("PYTHONPATH", "")])
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", str(ROOT / bug.test)]
        done = subprocess.run(
            command, cwd=folder, env={**os.environ, "PYTHONPATH": path}, capture_output=True, timeout=120
        )
        return done.returncode == 1


def main(names: list[str]) -> int:
    missed = 0
    for bug in BUGS:
        if names and bug.name not in names:
            continue
        found = is_found(bug)
        missed += not found
        print(
            f"{'found ' if found else 'MISSED'} {bug.name} ({bug.like}) by {bug.test.rpartition('::')[2]}", flush=True
        )
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
