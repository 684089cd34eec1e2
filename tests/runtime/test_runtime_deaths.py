"""What Ray 2.60 says of a dead worker, and what people are told."""

from __future__ import annotations

import pytest

from llmsched.runtime.deaths import Known, explain

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
        ("", Known(), "its process was killed: by a signal (kill -9), or by its system for want of memory"),
    ],
)
def test_a_dead_worker_is_told_with_who_why_and_where(words: str, known: Known, told: str) -> None:
    assert explain("rank 1", words, known) == f"rank 1: {told}"
