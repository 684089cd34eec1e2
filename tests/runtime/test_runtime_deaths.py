"""What Ray 2.60 says of a dead worker, and what people are told."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from ray._private.serialization import SerializationContext
from ray.core.generated import common_pb2
from ray.core.generated.common_pb2 import NodeDeathInfo
from ray.exceptions import ActorDiedError, RayTaskError

from llmsched.runtime.deaths import Known, explain, pid_in, words_of
from llmsched.runtime.ranks import Ranks

HEAD = "The actor died unexpectedly before finishing this task.\n\tclass_name: RayTrainWorker\n\tpid: 4711\n"
OOM = HEAD + (
    "1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 10.0.0.7, ID: ab12) was "
    "27.71GB used / 28.80GB limit (0.962273), which exceeds the memory usage threshold of 0.95. Killed: "
    "[(pid=4711, actual memory used=1.25GB, worker ID=77)]"
)
NODE = HEAD + (
    "The actor died because its node has died. Node Id: 77ab\n"
    "\tthe actor's node was terminated unexpectedly: health check failed due to missing too many heartbeats"
)
EOF = HEAD + (
    "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker "
    "unexpectedly exits with a connection error code 2. End of file. Some common causes include: (1) the process was "
    "killed by the OOM killer due to high memory usage, (2) ray stop --force was called, or (3) the worker crashed."
)
EXIT = HEAD + "Worker exit type: INTENDED_USER_EXIT Worker exit detail: Worker exits with an exit code 3."
SEGFAULT = "step 4\nFatal Python error: Segmentation fault\n\nCurrent thread 0x0001 (most recent call first):\n"


@pytest.mark.parametrize(
    ("words", "known", "told"),
    [
        (
            OOM,
            Known("node-2"),
            "its process 4711 on node-2 was ended because the node ran out of memory: 27.71 of 28.80 GB were used, "
            "this process used 1.25 GB",
        ),
        (
            NODE,
            Known("node-2"),
            "its node node-2 went away (health check failed due to missing too many heartbeats)",
        ),
        (
            EOF,
            Known("node-2", exited_with=0),
            "its process 4711 on node-2 left by os._exit(0) before its work had returned",
        ),
        (
            EOF,
            Known("node-2", log=SEGFAULT),
            "its process 4711 on node-2 crashed: Segmentation fault; its log shows where",
        ),
        (EXIT, Known("node-2"), "its process 4711 on node-2 exited with code 3 before its work had returned"),
        (
            EOF,
            Known("node-2"),
            "its process 4711 on node-2 was killed: by a signal (kill -9), or by its system for want of memory",
        ),
        ("", Known(), "its process is gone, and Ray says not why"),
        (
            "FromTheFuture: The moon was full.\nMore of it.",
            Known(),
            "its process is gone, and Ray says of it: FromTheFuture: The moon was full.",
        ),
    ],
)
def test_a_dead_worker_is_told_with_who_why_and_where(words: str, known: Known, told: str) -> None:
    assert explain("rank 1", words, known).message == f"rank 1: {told}"


LOST, SIGNAL = "Owner Id: ab Worker exit type: SYSTEM_ERROR Worker exit detail: exit code 9", "was killed: by a signal"
NODE_DIED = "The actor died because its node has died. Node Id: 77ab\n\tthe actor's node was terminated"
# Ray's name of a cause -> (Ray's words, what is told, class of failure)
OF_AN_ACTOR = {
    "UNSPECIFIED": ("", "is gone, and Ray says not why", "interruption"),
    "WORKER_DIED": (EOF, SIGNAL, "interruption"),
    "OWNER_DIED": (
        f"The actor is dead because its owner has died. {LOST}",
        "what had started it is gone",
        "interruption",
    ),
    "NODE_DIED": (
        f"{NODE_DIED} unexpectedly: health check failed",
        "its node n2 went away (health check failed)",
        "interruption",
    ),
    "RAY_KILL": (
        "The actor is dead because it was killed by `ray.kill`.",
        "was ended through Ray (ray.kill)",
        "interruption",
    ),
    "OUT_OF_SCOPE": (
        "The actor is dead because all references to the actor were removed.",
        "nothing referred to it",
        "interruption",
    ),
    "REF_DELETED": (
        "The actor is dead because all references to the actor were removed including lineage ref count.",
        "nothing referred to it",
        "interruption",
    ),
}
OF_A_WORKER = {
    "SYSTEM_ERROR": ("Worker unexpectedly exits with a connection error code 2. End of file.", SIGNAL, "interruption"),
    "INTENDED_SYSTEM_EXIT": ("Worker is idle.", "Ray ended it: Worker is idle.", "interruption"),
    "USER_ERROR": ("A user's hook raised.", "it left before its work had returned: A user's hook raised.", "error"),
    "INTENDED_USER_EXIT": ("Worker exits by calling exit_actor().", "it left before its work had returned", "error"),
    "NODE_OUT_OF_MEMORY": ("Killed.", "the node ran out of memory", "interruption"),
}
OF_A_NODE = {
    "UNSPECIFIED": (": somebody knows", "its node n2 went away (somebody knows)", "interruption"),
    "EXPECTED_TERMINATION": (
        " expectedly: received SIGTERM",
        "its node n2 went away (received SIGTERM)",
        "interruption",
    ),
    "UNEXPECTED_TERMINATION": (
        " unexpectedly: health check failed",
        "its node n2 went away (health check failed)",
        "interruption",
    ),
    "AUTOSCALER_DRAIN_PREEMPTED": (
        " expectedly: spot is preempted",
        "its node n2 went away (spot is preempted)",
        "interruption",
    ),
    "AUTOSCALER_DRAIN_IDLE": (" expectedly: idle for long", "its node n2 went away (idle for long)", "interruption"),
}
IN_PASSING, FOR_RAY = "what had been passed to it through Ray was lost", "Ray failed: "
OF_A_CALL = {
    "WORKER_DIED": (SIGNAL, "interruption"),
    "ACTOR_DIED": ("is gone, and Ray says not why", "interruption"),
    "TASK_EXECUTION_EXCEPTION": ("failed: OSError: the disk is full", "error"),
    "OBJECT_IN_PLASMA": (FOR_RAY, "interruption"),
    "TASK_CANCELLED": ("cancelled by somebody through Ray", "interruption"),
    "ACTOR_CREATION_FAILED": (FOR_RAY, "interruption"),
    "RUNTIME_ENV_SETUP_FAILED": ("Ray could not make the environment of its process", "error"),
    "OWNER_DIED": ("what had started it is gone", "interruption"),
    "DEPENDENCY_RESOLUTION_FAILED": (FOR_RAY, "interruption"),
    "LOCAL_RAYLET_DIED": ("Ray's own process on its node n2 is gone", "interruption"),
    "TASK_PLACEMENT_GROUP_REMOVED": ("its placement group was removed", "interruption"),
    "ACTOR_PLACEMENT_GROUP_REMOVED": ("its placement group was removed", "interruption"),
    "TASK_UNSCHEDULABLE_ERROR": ("Ray could not place it: it says why", "no-capacity"),
    "ACTOR_UNSCHEDULABLE_ERROR": ("Ray could not place it: it says why", "no-capacity"),
    "OUT_OF_DISK_ERROR": ("the disk of its node n2 is full", "interruption"),
    "OUT_OF_MEMORY": ("the node ran out of memory", "interruption"),
    "NODE_DIED": ("its node n2 went away", "interruption"),
    "END_OF_STREAMING_GENERATOR": ("and Ray says of it: ObjectRefStreamEndOfStreamError", "interruption"),
    "ACTOR_UNAVAILABLE": ("cannot be reached through Ray", "interruption"),
    "GENERATOR_TASK_FAILED_FOR_OBJECT_RECONSTRUCTION": (FOR_RAY, "interruption"),
    "WORKER_STARTUP_FAILED": ("Ray failed: it says why", "interruption"),
    "STREAMING_GENERATOR_REPLAY_INCONSISTENT": ("Ray failed: it says why", "interruption"),
} | dict.fromkeys(
    [
        "OBJECT_LOST", "OBJECT_DELETED", "OBJECT_FETCH_TIMED_OUT", "OBJECT_FREED",
        *(f"OBJECT_UNRECONSTRUCTABLE_{why}" for why in (
            "MAX_ATTEMPTS_EXCEEDED", "LINEAGE_EVICTED", "PUT", "RETRIES_DISABLED", "BORROWED", "REF_NOT_FOUND",
            "TASK_CANCELLED", "LINEAGE_DISABLED",
        )),
    ],
    (IN_PASSING, "interruption"),
)  # fmt: skip


@pytest.mark.parametrize("reason", common_pb2.ActorDiedErrorContext.Reason.keys())
def test_every_reason_that_ray_has_for_the_end_of_an_actor_is_told(reason: str) -> None:
    words, told, event = OF_AN_ACTOR[reason]
    context = common_pb2.ActorDiedErrorContext(error_message=words, actor_id=b"\0" * 16, reason=reason)
    check(words_of(ActorDiedError(context)), told, event)


@pytest.mark.parametrize("kind", common_pb2.WorkerExitType.keys())
def test_every_way_that_ray_has_for_a_worker_to_exit_is_told(kind: str) -> None:
    detail, told, event = OF_A_WORKER[kind]
    head = "The actor is dead because its worker process has died. Worker exit type:"
    check(f"{head} {kind} Worker exit detail: {detail}", told, event)


@pytest.mark.parametrize("reason", NodeDeathInfo.Reason.keys())
def test_every_reason_that_ray_has_for_the_end_of_a_node_is_told(reason: str) -> None:
    words, told, event = OF_A_NODE[reason]
    check(NODE_DIED + words, told, event)


@pytest.mark.parametrize("kind", common_pb2.ErrorType.keys())
def test_every_error_that_ray_has_for_a_call_is_told(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Ray itself makes the exception."""
    told, event = OF_A_CALL[kind]
    context = SerializationContext.__new__(SerializationContext)
    info = common_pb2.RayErrorInfo(error_message="it says why")
    monkeypatch.setattr(context, "_deserialize_error_info", lambda *_: info, raising=False)
    failed = RayTaskError("run", "Traceback ...\nOSError: the disk is full", OSError("the disk is full"))
    monkeypatch.setattr(context, "_deserialize_msgpack_data", lambda *_: failed.to_bytes(), raising=False)
    reference = SimpleNamespace(hex=lambda: "ab", owner_address=lambda: b"", call_site=lambda: "here")
    number = str(common_pb2.ErrorType.Value(kind)).encode()
    data = b"" if kind == "ACTOR_DIED" else b"data"
    check(words_of(context._deserialize_object(data, number, reference, None)), told, event)


def check(words: str, told: str, event: str) -> None:
    death = explain("rank 1", words, Known("n2"))
    assert told in death.message and death.event == event, death
    assert ("was killed" in death.message) is (told == SIGNAL)


def test_of_several_ranks_the_dead_one_is_found_by_its_process_else_by_what_it_said_before() -> None:
    ranks = Ranks()
    ranks.works_in(0, "n", "/a", {}, 4710)
    ranks.works_in(1, "n", "/b", {}, 4711)
    assert ranks.of_death(pid_in(EOF)) == 1
    assert ranks.of_death(0) is None and ranks.of_death(99) is None
    ranks.exits[1] = 3
    assert ranks.of_death(0) == 1, "Ray Data does not say which process it was"
