"""A replica may be a fork of the process on its node that has imported everything: who may, of what, and when not."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmsched.runtime import fork_server, forked, guardian

SHOW = """
import json, os, sys
from llmsched.runtime import start_costs
seen = {"argv": sys.argv, "cwd": os.getcwd(), "envs": dict(os.environ), "fork": start_costs.is_forked}
seen["shown"] = open("/proc/self/environ").read().split(chr(0))[0]
print(json.dumps(seen | {"name": __name__, "group": os.getpgid(0) == os.getpid()}))
"""
SERVE = """
import json, os, sys
from pathlib import Path
from llmsched.runtime import fork_server, forked
server = fork_server.ForkServer(json.load(sys.stdin), Path(sys.argv[1]))
is_first = server.is_first()
print("first" if is_first else "not", flush=True)
request = server.serve() if is_first else None
fork_server.become(request) if request else None
"""


class Node:
    """A raylet, as far as it matters here, and who serves its forks."""

    def __init__(self, script: Path) -> None:
        self.raylet = subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE)
        self.envs = {"RAY_RAYLET_PID": str(self.raylet.pid), "PATH": os.environ["PATH"], "LANG": "C.UTF-8", "A": "1"}
        self.script = script
        self.script.write_text(SHOW)
        self.folder = fork_server.own_folder(Path(forked.folder_of(os.getuid())))
        self.path = self.folder / str(self.raylet.pid)
        self.servers: list[subprocess.Popen[bytes]] = []

    def serve(self, **more: str) -> subprocess.Popen[bytes]:
        """Returns when it does, or has ended."""
        one = subprocess.Popen(
            [sys.executable, "-c", SERVE, str(self.folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert one.stdin is not None and one.stdout is not None
        self.servers.append(one)
        one.stdin.write(json.dumps(self.envs | more).encode())
        one.stdin.close()
        if one.stdout.readline() == b"first\n":
            while not self.path.exists():
                assert one.poll() is None
        return one

    def ask(self, **more: str) -> dict[str, object]:
        """What a worker sees that Ray starts so."""
        command = [sys.executable, "-I", "-S", forked.__file__, str(self.script), "--worker-id=7"]
        envs = self.envs | {guardian.OWNER: "llms/chat/0/1@c"} | more
        found = subprocess.run(command, env=envs, cwd=self.script.parent, stdout=subprocess.PIPE, check=True)
        return dict(json.loads(found.stdout))  # read to the end, which is when the fork ends too

    def close(self) -> None:
        self.raylet.kill()
        self.raylet.wait()
        for one in self.servers:
            one.wait()
            assert one.stdout is not None
            one.stdout.close()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    one = Node(tmp_path / "worker.py")
    yield one
    one.close()
    assert not one.path.exists(), "it ends with its raylet, and leaves nothing"
    assert not one.path.with_suffix(".lock").exists()


def test_a_fork_is_a_worker_as_ray_started_it(node: Node) -> None:
    node.serve()
    for owner in ("llms/chat/0/1@c", "llms/other/0/1@c"):
        seen = node.ask(**{guardian.OWNER: owner})
        assert seen["fork"] is True and seen["name"] == "__main__" and seen["group"] is True
        assert seen["argv"] == [str(node.script), "--worker-id=7"] and seen["cwd"] == str(node.script.parent)
        assert seen["envs"] == node.envs | {guardian.OWNER: owner}
        assert seen["shown"] == f"{guardian.OWNER}={owner}", "whose it is must be found from outside"


def test_whose_environment_differs_in_more_than_its_owner_starts_as_ever(node: Node) -> None:
    node.serve()
    assert node.ask(RAY_JOB_ID="02000000")["fork"] is False
    assert node.ask()["fork"] is True


def test_where_nobody_serves_a_worker_starts_as_ever(node: Node) -> None:
    assert node.ask()["fork"] is False


def test_one_serves_a_node_and_whoever_serves_another_environment_makes_way(node: Node) -> None:
    first = node.serve()
    assert node.serve().wait() == 0 and first.poll() is None
    node.serve(A="2")
    first.wait()
    assert node.ask(A="2")["fork"] is True and node.ask()["fork"] is False


def test_a_fork_that_nobody_waits_for_any_more_does_not_begin(node: Node, tmp_path: Path) -> None:
    """Who waited too long has started as ever, under the same name to Ray."""
    node.serve()
    node.script.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    reading, writing = os.pipe()
    said = json.dumps({"argv": [str(node.script)], "envs": node.envs, "cwd": str(tmp_path)}).encode()
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(str(node.path))
        socket.send_fds(line, [forked.LENGTH.pack(len(said))], [writing] * 3)
        line.sendall(said)
        assert line.recv(1) == b"y"
    os.close(writing)
    assert os.read(reading, 1) == b"", "the fork has ended"
    os.close(reading)
    assert not (tmp_path / "ran").exists()


def test_what_nobody_can_read_ends_nothing(node: Node) -> None:
    node.serve()
    for said in (b"", b"\0\0\0\5hello", b"\xff\xff\xff\xff{}", forked.LENGTH.pack(2) + b"[]"):
        with socket.socket(socket.AF_UNIX) as line:
            line.connect(str(node.path))
            line.sendall(said)
    assert node.ask()["fork"] is True


def test_it_ends_where_memory_is_short_or_nobody_asks(node: Node) -> None:
    assert fork_server.available_bytes() > 0
    for bounds in ({"least_bytes": 1 << 60}, {"idle_s": 0.0}):
        code = f"request = server.serve(**{bounds!r})"
        one = subprocess.run(
            [sys.executable, "-c", SERVE.replace("request = server.serve()", code), str(node.folder)],
            input=json.dumps(node.envs).encode(),
            stdout=subprocess.PIPE,
            check=True,
        )
        assert one.stdout == b"first\n"


@pytest.mark.parametrize(
    ("more", "may"),
    [
        ({}, True),
        ({"spec": {"serve": {"app": "app:build"}}}, False),
        ({"envs": {"HF_HUB_OFFLINE": "0"}}, False),
        ({"workdir": "file:///x.zip"}, False),
        ({"spec": {"serve": {"model": {}}, "environment": {"pip": ["x"]}}}, False),
        ({"members": [{}, {}]}, False),
    ],
)
def test_only_our_own_code_with_nothing_of_its_owners_is_forked(more: dict[str, object], may: bool) -> None:
    order = {"spec": {"serve": {"model": {"id": "m"}}}, "envs": {}, "workdir": None, "members": [{}], **more}
    assert fork_server.may_fork(order) is may


def test_who_has_threads_or_a_device_forks_nobody() -> None:
    code = """
import os, threading
from llmsched.runtime import fork_server
print(fork_server._is_fit())
fork_server.DEVICES = ("/dev/zero",)
with open("/dev/zero"):
    print(fork_server._is_fit())
threading.Thread(target=threading.Event().wait, daemon=True).start()
print(fork_server._is_fit(), flush=True)
os._exit(0)
"""
    command, envs = [sys.executable, "-c", code], {**os.environ, **fork_server.ENVS}
    found = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=envs)
    assert found.stdout.split() == [b"True", b"False", b"False"]
