"""The controller as a process: started and stopped from the command line, killed, and refused where it must be."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from waiting import PATIENCE_S, has_ended, wait_until

from llmsched.api import home, server
from llmsched.api.storage_claim import NOTE
from llmsched.client import Client
from llmsched.runtime.storage import LocalStorage

Llmsched = Callable[..., subprocess.CompletedProcess[str]]
SPEC = 'name: kept\nkind: task\nresources: {accelerators: "A100:1"}\ntask: {run: ["true"]}\n'


@pytest.fixture
def llmsched(tmp_path: Path) -> Iterator[Llmsched]:
    given = {key: value for key, value in os.environ.items() if not key.startswith("LLMSCHED_")}
    env = {**given, "LLMSCHED_HOME": str(tmp_path / "home"), "COLUMNS": "80"}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "llmsched.cli.main", *words]
        return subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_S)

    yield run
    run("down")
    assert not home.is_running(tmp_path / "home")


def test_up_apply_kill_up_again_down(llmsched: Llmsched, tmp_path: Path) -> None:
    folder = tmp_path / "home"
    up = llmsched("up", "--fake-nodes", "2x4:A100", "--json")
    assert up.returncode == 0, up.stderr
    assert json.loads(up.stdout)["status"] == "ready"
    first = home.announced(folder)
    assert first is not None
    assert first.url.startswith("http://127.0.0.1:")
    assert folder.stat().st_mode & 0o077 == 0
    again = llmsched("up", "--fake-nodes", "2x4:A100")
    assert (again.returncode, "already" in again.stderr) == (0, True)

    (tmp_path / "spec.yaml").write_text(SPEC)
    assert llmsched("apply", "-f", "spec.yaml").returncode == 0

    os.kill(first.pid, signal.SIGKILL)
    wait_until(lambda: not home.is_running(folder))
    assert llmsched("status").returncode == 4
    assert llmsched("up", "--fake-nodes", "2x4:A100").returncode == 0
    second = home.announced(folder)
    assert second is not None
    assert second.url == first.url  # ports are those of last time
    restarted = llmsched("restart")
    assert (restarted.returncode, second.url in restarted.stdout) == (0, True), restarted.stderr
    third = home.announced(folder)
    assert third is not None and third.pid != second.pid
    second = third
    status = llmsched("status", "kept", "--json")
    assert json.loads(status.stdout)["phase"] in ("waiting", "starting", "running", "succeeded")

    down = llmsched("down")
    assert (down.returncode, "Stopped the controller" in down.stdout) == (0, True)
    assert down.stdout.endswith("Not ended yet: kept. The next llmsched up asks whether they go on.\n")
    wait_until(lambda: has_ended(second.pid))  # it let go of its lock, which is the last thing a process does
    assert not (folder / "controller.json").exists()
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", int(second.url.rpartition(":")[2]))) != 0
    assert llmsched("down").stdout == "Nothing was running here.\n"
    assert llmsched("restart").returncode == 3


def test_work_of_yesterday_goes_on_only_if_it_is_to_and_purge_removes_all_but_asks(
    llmsched: Llmsched, tmp_path: Path
) -> None:
    waits = "name: waits\nkind: task\nschedule: {cron: '0 2 1 1 *'}\ntask: {run: [x]}\n"
    assert llmsched("up", "--fake-nodes", "1x1", "--endpoint-port", "21234").returncode == 0
    assert home.ports(tmp_path / "home").endpoint == 21234
    (tmp_path / "spec.yaml").write_text(waits)
    llmsched("apply", "-f", "spec.yaml")
    llmsched("down")
    goes_on = llmsched("up", "--fake-nodes", "1x1")
    assert "Not ended yet: waits.\nThey go on." in goes_on.stderr
    assert json.loads(llmsched("status", "waits", "--json").stdout)["phase"] == "waiting"
    other = llmsched("up", "--fake-nodes", "1x1", "--endpoint-port", "21235")
    assert (other.returncode, "answers on 21234" in other.stderr) == (3, True)
    llmsched("down")
    assert "Not ended" not in llmsched("up", "--fake-nodes", "1x1", "--fresh").stderr
    assert json.loads(llmsched("status", "waits", "--json").stdout)["phase"] == "cancelled"
    refused = llmsched("down", "--purge")
    assert (refused.returncode, "add --yes" in refused.stderr) == (2, True)
    assert llmsched("status").returncode == 0
    assert llmsched("down", "--purge", "--yes").returncode == 0
    assert not (tmp_path / "home").exists()


def serve(folder: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "llmsched.api", "--home", str(folder), "--fake-nodes", "1x1", *options]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def test_a_second_controller_on_the_same_home_is_refused_and_the_first_ends_on_sigterm(tmp_path: Path) -> None:
    first = serve(tmp_path)
    try:
        wait_until(lambda: home.announced(tmp_path) is not None)
        note = home.announced(tmp_path)
        assert note is not None
        second = serve(tmp_path)
        said = second.communicate(timeout=PATIENCE_S)[1]
        assert second.returncode == 3
        assert f"already, at {note.url} (pid {note.pid})" in said
        with Client(note.url, home.own_token(tmp_path)) as client:
            stream = client.events()
            next(stream)  # a listener must not keep it from ending
            began = time.monotonic()
            first.terminate()
            assert first.wait(PATIENCE_S) == 0
            assert time.monotonic() - began < PATIENCE_S / 2
    finally:
        first.kill()
        first.communicate()


def test_a_new_controller_is_refused_where_the_work_of_another_left_its_results(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path / "results")
    storage.write(NOTE, b"another journal")
    said = serve(tmp_path / "home", "--storage", str(storage.root)).communicate(timeout=PATIENCE_S)[1]
    assert f"{storage.root} has what the work of another llmsched left" in said
    assert home.announced(tmp_path / "home") is None


def test_a_port_in_use_and_a_foreign_host_are_refused(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        server = serve(tmp_path, "--port", str(port))
        said = server.communicate(timeout=PATIENCE_S)[1]
    assert (server.returncode, f"port {port} on 127.0.0.1 cannot be used" in said) == (4, True)
    server = serve(tmp_path, "--host", "0.0.0.0")
    said = server.communicate(timeout=PATIENCE_S)[1]
    assert (server.returncode, "loopback only" in said) == (2, True)


def test_up_tells_why_the_controller_did_not_start(llmsched: Llmsched) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        up = llmsched("up", "--fake-nodes", "1x1", "--port", str(taken.getsockname()[1]))
    assert up.returncode == 4
    assert "cannot be used" in up.stderr.splitlines()[-1]
    assert "--port" in up.stderr
    wrong = llmsched("up", "--fake-nodes", "many")
    assert (wrong.returncode, "2x4:A100" in wrong.stderr) == (2, True)
    assert llmsched("up", "--fake-nodes", "1x1", "--nodes", "1x1").returncode == 2
    assert llmsched("up", "--address", "ray://nowhere").returncode == 2
    nobody = llmsched("up", "--address", "127.0.0.1:1")
    assert (nobody.returncode, "no Ray answers at 127.0.0.1:1" in nobody.stderr) == (4, True)


def test_answers_are_not_held_back_to_be_sent_together() -> None:
    async def nodelay() -> int:
        answered: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def connected(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            accepted = writer.get_extra_info("socket")
            answered.set_result(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        with contextlib.closing(server.listen("127.0.0.1", 0)) as listener:
            web = await asyncio.start_server(connected, sock=listener)
            _, writer = await asyncio.open_connection(*listener.getsockname())
            writer.close()
            value = await answered
            web.close()
            return value

    assert asyncio.run(nodelay()) != 0


def test_a_start_builds_no_kind_of_spec_and_reads_no_data_files() -> None:
    """Both take long, and the first request that wants them may wait for that; a controller that is killed may not."""
    code = (
        "import sys, llmsched.api.__main__; from llmsched.spec.load import KINDS; "
        "print(*(name for name, kind in KINDS.items() if kind.__pydantic_complete__), "
        "*{'llmsched.data.look', 'pyarrow', 'rich', 'ray'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
