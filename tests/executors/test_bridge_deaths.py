"""What is said of a replica's process that has ended, from what Ray's state API has of it."""

from types import SimpleNamespace

import pytest

from llmsched.executors.bridge import deaths

ENDED = (
    "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker "
    "unexpectedly exits with a connection error code 2. End of file. Some common causes include: (1) ..."
)


@pytest.mark.parametrize(
    ("cause", "said"),
    [
        (
            {"actor_died_error_context": {"error_message": ENDED, "pid": 77}},
            "replica: its process 77 on node-2 was killed: by a signal (kill -9), or by its system for want of memory",
        ),
        (
            {"oom_context": {"error_message": "Task was killed: the node is running low on memory"}},
            "replica: its process 77 on node-2 was ended because the node ran out of memory",
        ),
        (None, ""),
        ({"actor_died_error_context": {"error_message": ""}}, ""),
    ],
)
def test_who_died_where_and_of_what(monkeypatch, cause, said):
    node = {"NodeID": "f00", "Labels": {"llmsched.io/name": "node-2"}, "NodeManagerHostname": "h"}
    monkeypatch.setattr(deaths.ray, "nodes", lambda: [node])
    assert deaths.sentence(SimpleNamespace(pid=77, node_id="f00", death_cause=cause)) == said
