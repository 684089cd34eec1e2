"""A node of a private Ray: what `ray start` is told, and what becomes of it. A script stands for Ray."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from waiting import PATIENCE_S, wait_until

from llmsched.runtime import private_ray, task
from llmsched.runtime.containment import Cleared, OverMemory
from llmsched.runtime.health import Health, Pulse
from llmsched.runtime.private_ray import DidNotStart, RayNode, Share
from llmsched.runtime.ranks import Ranks
from llmsched.runtime.ray_attempt import _changes, _Node
from llmsched.runtime.ray_member import Joined, RayMember
from llmsched.runtime.task import Ending, TaskWorker
from llmsched.runtime.task_attempt import TaskAttempt

MEMBER = {"rank": 0, "node": "n", "cpus": 4.0, "gpus": 2.0, "memory_bytes": 10_000_000_000, "custom": {"FPGA": 1.0}}
LABELS = {"ray.io/node-id": "ff", "ray.io/accelerator-type": "A100", "zone": "a"}
# Does what `ray start --block` does, as far as it can be seen from outside.
RAY = """
import json, os, pathlib, signal, sys
folder = next(pathlib.Path(word.partition("=")[2]) for word in sys.argv if word.startswith("--temp-dir="))
(folder / "told.json").write_text(json.dumps({"argv": sys.argv[1:], "env": dict(os.environ), "cwd": os.getcwd()}))
if HOW == "fails":
    sys.exit("RuntimeError: the port is taken")
(folder / "session_latest").mkdir()
(folder / "session_latest" / "gcs_server_port_ab12").write_text("4711")
print("Ray runtime started.", flush=True)
if HOW == "lasts":
    signal.pause()
print("2026 ERR s.py:1 -- gcs_server [exit code=-9]")
sys.exit("2026 ERR s.py:2 -- Remaining processes will be killed.")
"""


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Callable[..., RayNode]]:
    nodes: list[RayNode] = []

    def make(how: str = "lasts", envs: dict[str, str] | None = None) -> RayNode:
        script = tmp_path / f"{how}.py"
        script.write_text(RAY.replace("HOW", repr(how)))
        nodes.append(RayNode("secret", Share.of(MEMBER, LABELS), envs or {}, [sys.executable, str(script)]))
        return nodes[-1]

    yield make
    for node in nodes:
        node.stop()
        node.clean()
        assert not node.folder.exists()


def told(node: RayNode) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((node.folder / "told.json").read_text())
    return found


def test_the_head_tells_its_address_and_shares_no_port_token_or_folder(
    made: Callable[..., RayNode], tmp_path: Path
) -> None:
    head, other = made(envs={"MINE": "1"}), made()
    for one in (head, other):
        one.start("127.0.0.2", tmp_path)
    assert head.address == "127.0.0.2:4711" and head.dashboard != other.dashboard
    argv = told(head)["argv"]
    assert {"start", "--head", "--port=0", "--block", "--dashboard-host=127.0.0.1"} <= set(argv)
    ports = [[word for word in told(one)["argv"] if "client-server-port" in word] for one in (head, other)]
    assert ports[0] != ports[1]
    assert told(head)["cwd"] == str(tmp_path)
    token = Path(told(head)["env"]["RAY_AUTH_TOKEN_PATH"])
    assert token.read_text() == "secret" and token.stat().st_mode & 0o777 == 0o600
    assert head.folder in token.parents and head.folder != other.folder
    assert "secret" not in json.dumps(told(head)) and told(head)["env"]["MINE"] == "1"
    assert len(f"{head.folder}{private_ray._LONGEST_SOCKET}") <= 107


def test_another_node_joins_the_head(made: Callable[..., RayNode], tmp_path: Path) -> None:
    node = made()
    node.start("127.0.0.2", tmp_path, "10.0.0.1:99")
    assert "--address=10.0.0.1:99" in told(node)["argv"] and "--head" not in told(node)["argv"]
    assert (node.address, node.envs["RAY_ADDRESS"], node.dashboard) == ("10.0.0.1:99", "10.0.0.1:99", "")


def test_a_node_is_told_its_share_of_the_machine_and_the_machines_labels() -> None:
    options = Share.of(MEMBER, LABELS).options()
    assert options[:4] == [
        "--num-cpus=4", "--num-gpus=2", "--object-store-memory=3000000000", "--memory=7000000000"
    ]  # fmt: skip
    assert json.loads(options[4].partition("=")[2]) == {"FPGA": 1.0, "accelerator_type:A100": 1.0}
    assert options[5] == "--labels=ray.io/accelerator-type=A100,zone=a"
    plain = Share.of({"cpus": 1.0}, LABELS)
    assert (plain.labels, plain.memory, plain.custom) == ({"zone": "a"}, 0, {})  # no GPU of the machine is its own
    assert Share.of(MEMBER, {}, store=2_000_000_000)[2:4] == (8_000_000_000, 2_000_000_000)


def test_one_that_does_not_come_up_says_why(made: Callable[..., RayNode], tmp_path: Path) -> None:
    with pytest.raises(DidNotStart, match="ended with code 1; last line: RuntimeError: the port is taken"):
        made("fails").start("127.0.0.2", tmp_path)


def test_one_that_ends_by_itself_is_known_from_one_that_was_stopped(
    made: Callable[..., RayNode], tmp_path: Path
) -> None:
    ends, stopped = made("ends"), made()
    ends.start("127.0.0.2", tmp_path)
    assert ends.wait(PATIENCE_S) and not ends.was_stopped
    assert ends.last_words() == ": gcs_server [exit code=-9]"
    stopped.start("127.0.0.2", tmp_path)
    stopped.stop()
    assert stopped.wait(0) and stopped.was_stopped


def test_what_holds_a_node_keeps_no_process_when_it_is_stopped_twice(
    made: Callable[..., RayNode], tmp_path: Path
) -> None:
    node = made()
    node.start("127.0.0.2", tmp_path)
    assert node._process is not None
    node._process.send_signal(signal.SIGKILL)
    wait_until(lambda: node.wait(0), 30, "its end")
    node.stop()


def members(nodes: str) -> list[dict[str, Any]]:
    return [{"rank": rank, "node": node, "gpus": 1.0} for rank, node in enumerate(nodes)]


def nodes(where: str) -> list[_Node]:
    return [_Node(one, None, {}, Joined(), None) for one in members(where)]


@pytest.mark.parametrize(
    ("before", "after", "stays", "goes", "comes"),
    [
        ("ab", "abc", "ab", "", "c"),
        ("abc", "a", "a", "bc", ""),
        ("abc", "cab", "abc", "", ""),  # only the order is another: nobody moves
        ("aab", "ac", "a", "ab", "c"),
        ("ab", "bc", "b", "a", "c"),  # the head would go: begun again (can_become)
    ],
)
def test_a_change_of_size_moves_nobody_who_may_stay(before: str, after: str, stays: str, goes: str, comes: str) -> None:
    stay, go, come = _changes(nodes(before), members(after))
    assert ["".join(one.member["node"] for one in part) for part in (stay, go)] == [stays, goes]
    assert "".join(one["node"] for one in come) == comes


def test_a_rank_that_left_is_neither_waited_for_nor_counted() -> None:
    ranks = Ranks()
    for rank in range(3):
        ranks.works_in(rank, f"node-{rank}", "/", {})
    ranks.left(1)
    ranks.works_in(3, "node-3", "/", {})  # another one came in its place
    places = [ranks.place_of(number) for number in range(4)]
    assert [place and place.node for place in places] == ["node-0", "node-2", "node-3", None]
    health = Health()
    for rank in range(3):
        health.heard(rank, Pulse(), 0.0)
    assert health.silent(ranks.finished_ranks, 1000.0) == [0, 2]


class Member(RayMember):
    """A member whose Ray is a script, in a folder of the test."""

    def __init__(self, folder: Path, node: RayNode, run: list[str]) -> None:
        order = {
            "storage": str(folder / "storage"), "gang": "r/0", "attempt": 1, "epoch": 1, "envs": {"MODE": "mine"},
            "spec": {"ray": {"run": run}}, "members": [MEMBER],
        }  # fmt: skip
        super().__init__(json.dumps(order), 0, json.dumps(MEMBER), "secret")
        self._folder, self._node = folder, node

    def _tell(self, said: Pulse) -> None:
        pass


def test_the_program_finds_its_own_ray_and_nothing_of_the_shared_one(
    made: Callable[..., RayNode], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_JOB_ID", "of the shared Ray")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/of/the/shared/ray")
    node = made(envs=Member(tmp_path, made(), [])._envs({}))
    node.start("127.0.0.2", tmp_path)
    tells = "import os; print({k: v for k, v in os.environ.items() if k.startswith('RAY_')}, os.environ['MODE'])"
    member = Member(tmp_path, node, ["python", "-c", tells])
    assert member.program({"LLMSCHED_RANK": "0"}) == Ending(code=0)
    said = member._log.path.read_text()
    assert "'RAY_ADDRESS': '127.0.0.2:4711'" in said and said.endswith(" mine\n")
    assert str(node.folder) in said and "shared" not in said and "secret" not in said


def test_a_node_that_ends_by_itself_is_told_and_tried_again_and_one_that_is_stopped_is_not(
    made: Callable[..., RayNode], tmp_path: Path
) -> None:
    ends, stopped = made("ends"), made()
    for node in (ends, stopped):
        node.start("127.0.0.2", tmp_path)
    told = Member(tmp_path, ends, []).watch()
    assert (told.message, told.event) == (
        "a node of its Ray ended by itself: gcs_server [exit code=-9]",
        "interruption",
    )
    member = Member(tmp_path, stopped, [])
    member.close()
    assert member.watch() == Ending(code=0)


def test_a_task_s_worker_knows_its_own_ray_that_ended_by_itself(
    made: Callable[..., RayNode], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = {"storage": str(tmp_path), "gang": "t/0", "attempt": 1, "envs": {}, "spec": {"task": {"run": ["true"]}}}
    ended = Ending("a node of its own Ray ended by itself: gcs_server [exit code=-9]", "interruption")
    for how, said in (("ends", ended), ("lasts", None)):
        worker = TaskWorker(json.dumps(order), 0)
        assert worker.lost_ray() is None
        monkeypatch.setattr(task, "_RAY_TELLS_WITHIN_S", 60.0 if said else 0.0)
        worker._node = made(how)
        worker._node.start("127.0.0.2", tmp_path)
        assert worker.lost_ray() == said


def test_a_ray_that_was_ended_because_the_program_took_too_much_memory_is_not_said_to_have_ended_by_itself(
    made: Callable[..., RayNode], tmp_path: Path
) -> None:
    order = {"storage": str(tmp_path), "gang": "t/0", "attempt": 1, "envs": {}, "spec": {"task": {"run": ["true"]}}}
    worker = TaskWorker(json.dumps(order), 0)
    worker._node = made("ends")
    worker._node.start("127.0.0.2", tmp_path)
    over = OverMemory(2_000_000_000, 1_000_000_000, is_over=True)
    worker._on_memory(over)
    assert worker.lost_ray() == Ending(f"rank 0: {over}", "input")  # not tried again
    worker._watch_ray(worker._node)
    assert worker._log.path.read_text() == f"[llmsched] {over}\n"


def test_what_ray_itself_leaves_for_a_moment_is_told_nobody_and_what_a_program_left_is(tmp_path: Path) -> None:
    order = {"storage": str(tmp_path), "gang": "t/0", "attempt": 1, "envs": {}, "spec": {"task": {"run": ["true"]}}}
    worker = TaskWorker(json.dumps(order), 0)

    class Guard:
        def close(self) -> Cleared:
            return Cleared(
                ["ray::IDLE (7)", "/x/site-packages/ray/core/src/ray/raylet/raylet (8)", "sleep 100 (9)"], []
            )

    worker._guard, worker._node = Guard(), object()  # type: ignore[assignment]
    worker._contain()
    assert worker._log.path.read_text() == "[llmsched] ended what it left running: sleep 100 (9)\n"


class Said:
    """What an actor answers."""

    def __init__(self, lost: Ending | None) -> None:
        self.lost_ray = self
        self.remote = lambda: lost


@pytest.mark.parametrize(
    "lost",
    [
        Ending("a node of its own Ray ended by itself", "interruption"),
        Ending("rank 0: used 2 GB of the 1 GB of memory it asked for, on a", "input"),
        None,
    ],
)
def test_a_rank_that_failed_because_the_gang_s_ray_was_gone_fails_for_what_ended_that(
    lost: Ending | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = TaskAttempt.__new__(TaskAttempt)
    attempt._workers = [Said(lost)]
    monkeypatch.setattr(attempt, "_of_worker_0", lambda asked: asked)
    failed = Ending("rank 1: 'python' exited with code 1", "error", 1)
    assert attempt._with_its_ray(failed) == (lost._replace(code=1) if lost else failed)
    assert attempt._with_its_ray(Ending(code=0)) == Ending(code=0)
