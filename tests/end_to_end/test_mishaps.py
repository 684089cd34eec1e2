"""What goes wrong on a real cluster, one after the other on one: the controller, a worker and a replica are killed.

The tests tell one story and run in order: each leaves the cluster as the next one finds it.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from llmsched.client import Client

pytestmark = pytest.mark.ray
WORK = Path(__file__).parent / "work"


class Home:
    """A home with its own Ray of two pretend GPUs, used through the command line as anyone would."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "LLMSCHED_HOME": str(folder)}

    def llmsched(self, *words: str, expect: int = 0) -> str:
        command = [sys.executable, "-m", "llmsched.cli.main", *words]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == expect, f"{words} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    def client(self) -> Client:
        return Client(home=self.folder)

    def bearer(self) -> dict[str, str]:
        return {"authorization": f"Bearer {(self.folder / 'token').read_text().strip()}"}

    def controller_pid(self) -> int:
        return int(json.loads((self.folder / "controller.json").read_text())["pid"])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    home = Home(tmp_path_factory.mktemp("home"))
    try:
        home.llmsched("up", "--nodes", "1x2:A100")
        home.llmsched("apply", "-f", str(WORK / "spec.yaml"))
        yield home
    finally:
        home.llmsched("down")


def wait_until(there: Callable[[], Any], within_s: float, what: str) -> Any:
    deadline = time.monotonic() + within_s
    while not (found := there()):
        assert time.monotonic() < deadline, f"not within {within_s:g} s: {what}"
        time.sleep(0.2)
    return found


def step_of(client: Client) -> int:
    return int(client.status("counting").progress.get("step") or 0)


def greet(home: Home, client: Client, name: str) -> dict[str, Any]:
    endpoint = client.health().urls["endpoint"]
    answer = httpx.post(f"{endpoint}/v1/apps/echo", json={"name": name}, headers=home.bearer(), timeout=30)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def test_a_controller_killed_with_minus_9_loses_nothing_and_adopts_what_runs(home: Home) -> None:
    with home.client() as client:
        client.wait("echo", timeout_s=120)
        before = wait_until(lambda: step_of(client), 120, "the first step")
        started_at = client.status("counting").gangs[0].started_at
    os.kill(home.controller_pid(), signal.SIGKILL)

    home.llmsched("up", "--nodes", "1x2:A100")

    with home.client() as client:
        wait_until(lambda: step_of(client) > before, 60, "steps after the restart")
        gang = client.status("counting").gangs[0]
        assert (gang.attempt, gang.restarts, gang.started_at) == (1, 0, started_at)
        assert client.status("echo").phase == "running"


def test_a_train_worker_killed_goes_on_from_its_checkpoint_in_a_new_attempt(home: Home) -> None:
    with home.client() as client:
        before = step_of(client)
        said = [line.text for line in client.logs("counting", attempt=1)]
        pids = [int(found[1]) for line in said if (found := re.search(r"process (\d+), begins at step 0", line))]
        assert len(pids) == 2
        os.kill(pids[1], signal.SIGKILL)

        wait_until(lambda: client.status("counting").gangs[0].attempt == 2, 30, "a second attempt")
        wait_until(lambda: step_of(client) > before + 2, 90, "steps of the second attempt")

        view = client.status("counting")
        assert view.restarts == 1
        begins = [line.text for line in client.logs("counting", attempt=2) if "begins at step" in line.text]
        assert begins and all(int(line.rpartition(" ")[2]) >= before for line in begins)


def test_a_replica_killed_is_replaced_while_the_other_one_answers(home: Home) -> None:
    with home.client() as client:
        pids = {greet(home, client, "you")["process"] for _ in range(40)}
        assert len(pids) == 2
        victim = min(pids)
        os.kill(victim, signal.SIGKILL)

        survivors: set[int] = set()

        def is_replaced() -> bool:
            answer = greet(home, client, "you")  # every request is answered, from the first after the kill
            assert answer["said"] == "hello you"
            survivors.add(answer["process"])
            return len(survivors - {victim}) == 2

        wait_until(is_replaced, 60, "a new replica")


def test_bad_requests_are_refused_in_words_with_their_exit_code(home: Home, tmp_path: Path) -> None:
    def spec(text: str) -> str:
        file = tmp_path / "spec.yaml"
        file.write_text(text)
        return str(file)

    task = 'name: x\nkind: task\ntask: {run: ["true"]}\n'
    said = home.llmsched("apply", "-f", spec(task + 'resources: {accelerators: "A100:64"}\n'), expect=3)
    assert "64" in said and "A100" in said
    said = home.llmsched("apply", "-f", spec(task + "resources: {accelerators: H100}\n"), expect=3)
    assert "H100" in said and "A100" in said  # what there is instead
    assert "queue" in home.llmsched("apply", "-f", spec(task + "queue: nowhere\n"), expect=3)
    assert ":4:1:" in home.llmsched("apply", "-f", spec(task + "priorty: 3\n"), expect=2)
    missing = "name: y\nkind: train\nretry: {max_restarts: 0}\ntrain: {base_model: ./no-such-model, task: causal-lm, "
    missing += "datasets: [{path: ./none.jsonl, columns: {text: text}}]}\n"
    said = home.llmsched("apply", "-f", spec(missing), "--wait", expect=4)
    assert "no-such-model" in said
    wrong = {**home.environment, "LLMSCHED_TOKEN": "llms_0000_" + "0" * 64}
    command = [sys.executable, "-m", "llmsched.cli.main", "status"]
    done = subprocess.run(command, env=wrong, capture_output=True, text=True, timeout=60)
    assert done.returncode == 3 and "token" in done.stderr and "Traceback" not in done.stderr


def test_the_fine_tune_ends_well_and_its_story_tells_what_happened(home: Home) -> None:
    with home.client() as client:
        view = client.wait("counting", timeout_s=120)
    assert view.phase == "succeeded", view.message
    story = home.llmsched("story", "counting")
    assert "succeeded" in story and story.index("submitted") < story.index("succeeded")


def test_down_leaves_no_process(home: Home) -> None:
    home.llmsched("down")

    left = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("LLMSCHED_HOME") == str(home.folder):
                left.append(process.cmdline())
        except psutil.Error:
            continue
    assert left == []
