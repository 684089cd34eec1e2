"""What goes wrong on a real cluster, one after the other on one: the controller, a worker and a replica are killed.

The tests tell one story and run in order: each leaves the cluster as the next one finds it.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from ray_home import Home, assert_ray_and_ledger_agree
from traffic import CLIENTS, Traffic
from waiting import PATIENCE_S, SLACK, has_ended, wait_until

from llmsched.client import Client
from llmsched.errors import LlmschedError
from llmsched.spec.load import load_json

pytestmark = pytest.mark.ray
WORK = Path(__file__).parent / "work"
NODES = "1x2:A100,1x1:T4"  # of two nodes a second gateway has something to outlive
STORAGE_AWAY_S = float(os.environ.get("LLMSCHED_STORAGE_AWAY_S", "5"))  # 60 shows the whole minute


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    work = tmp_path_factory.mktemp("work")
    home = Home(tmp_path_factory.mktemp("home"), work)
    shutil.copytree(WORK, work, dirs_exist_ok=True)
    spec = work / "spec.yaml"
    spec.write_text(spec.read_text().replace("UNTIL", str(home.folder / "enough")))
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=192m", "tmpfs", str(home.folder)], capture_output=True, check=False
    )
    try:
        # One user, as without root: the work reads a file of this test, and its storage is on a disk that fills up.
        home.llmsched("up", "--nodes", NODES, "--ray-user", getpass.getuser())
        home.llmsched("apply", "-f", str(spec))
        with home.client() as client:
            client.wait("echo", timeout_s=SLACK * 120)
            wait_until(lambda: step_of(client) > 2, 120, "the first steps")
        yield home
    finally:
        home.llmsched("down")
        if not mounted.returncode:
            subprocess.run(["umount", "-l", str(home.folder)], check=True)


def stepping(home: Home, client: Client, beyond: int, within_s: float = 90.0) -> None:
    wait_until(lambda: step_of(client) > beyond, within_s, f"steps beyond {beyond}")
    assert_ray_and_ledger_agree(home)


def worker_pids(client: Client) -> list[int]:
    """Of the present attempt, by rank, from what its loop prints."""
    gang = client.status("counting").gangs[0]
    said = [line.text for line in client.logs("counting", attempt=gang.attempt)]
    found = {int(m[1]): int(m[2]) for line in said if (m := re.search(r"worker (\d+), process (\d+), begins", line))}
    return [pid for _, pid in sorted(found.items())]


def begun_at(client: Client, attempt: int) -> list[int]:
    """The steps at which the workers of an attempt say that they begin."""
    said = "\n".join(line.text for line in client.logs("counting", attempt=attempt))
    return [int(found) for found in re.findall(r"begins at step (\d+)", said)]


def step_of(client: Client) -> int:
    return int(client.status("counting").progress.get("step") or 0)


def greet(home: Home, client: Client, name: str) -> dict[str, Any]:
    endpoint = client.health().urls["endpoint"]
    answer = httpx.post(f"{endpoint}/v1/apps/echo", json={"name": name}, headers=home.bearer(), timeout=PATIENCE_S)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def test_a_controller_killed_with_minus_9_loses_nothing_and_adopts_what_runs(home: Home) -> None:
    with home.client() as client:
        client.wait("echo", timeout_s=SLACK * 120)
        before = step_of(client)
        started_at = client.status("counting").gangs[0].started_at
    os.kill(home.controller_pid(), signal.SIGKILL)

    home.llmsched("up", "--nodes", NODES)

    with home.client() as client:
        wait_until(lambda: step_of(client) > before, 60, "steps after the restart")
        gang = client.status("counting").gangs[0]
        assert (gang.attempt, gang.restarts, gang.started_at) == (1, 0, started_at)
        assert client.status("echo").phase == "running"


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


def begins(home: Home, name: str, seconds: str) -> tuple[subprocess.Popen[str], int]:
    """A command beside `name` that would take long, and the pid of what it runs there."""
    command = [sys.executable, "-m", "llmsched.cli.main", "exec", name, "--", "sleep", seconds]
    asked = subprocess.Popen(command, env=home.environment, stderr=subprocess.PIPE, text=True)

    def there() -> list[int]:
        return [one.pid for one in psutil.process_iter(["cmdline"]) if one.info["cmdline"] == ["sleep", seconds]]

    return asked, wait_until(there, 60, f"sleep {seconds} beside {name}")[0]


def test_a_command_beside_a_worker_or_a_replica_passes_on_what_it_says_and_its_exit_code(home: Home) -> None:
    said = home.llmsched("exec", "counting", "--rank", "1", "--", "sh", "-c", "echo rank $RANK; exit 7", expect=7)
    assert said == "rank 1\n"
    assert home.llmsched("exec", "echo", "--", "sh", "-c", "echo here; exit 2", expect=102).startswith("here\n")
    assert "runs a command beside rank 1: sh -c 'echo rank $RANK; exit 7'" in " ".join(
        home.llmsched("story", "counting").split()
    )
    with home.client() as client:
        told = [event.text for event in client.events(follow=False) if event.kind == "CommandBegun"]
    assert [text.partition(" runs ")[2] for text in told] == [
        "a command beside rank 1: sh -c 'echo rank $RANK; exit 7'",
        "a command beside rank 0: sh -c 'echo here; exit 2'",
    ]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "hung"])
def test_a_bridge_that_is_gone_is_replaced_and_nothing_that_runs_notices(home: Home, how: signal.Signals) -> None:
    with home.client() as client:
        before, attempt = step_of(client), client.status("counting").gangs[0].attempt
        old = home.bridge_pid()
        assert old is not None
        commands = [begins(home, "counting", f"600.{how:d}1"), begins(home, "echo", f"600.{how:d}2")]
        os.kill(old, how)

        def is_replaced() -> bool:
            new = home.bridge_pid()
            return new not in (None, old) and client.health().status == "ready"

        wait_until(is_replaced, 90, "another bridge")
        wait_until(lambda: has_ended(old), 20, "the end of the old bridge")
        for asked, pid in commands:
            _, said = asked.communicate(timeout=SLACK * 60)
            assert (asked.returncode, "the connection to the cluster was lost" in said) == (4, True), said
            wait_until(lambda pid=pid: has_ended(pid), 30, "the end of a command that nobody hears")
        stepping(home, client, before + 2)
        gang = client.status("counting").gangs[0]
        assert gang.attempt == attempt and client.status("echo").phase == "running"
        assert greet(home, client, "you")["said"] == "hello you"


def test_serves_controller_killed_does_not_stop_the_answers(home: Home) -> None:
    with home.client() as client:
        before = {greet(home, client, "you")["process"] for _ in range(40)}
        (victim,) = home.actors("ServeController")
        victim.kill()
        for _ in range(50):
            assert greet(home, client, "you")["said"] == "hello you"

        wait_until(lambda: home.actors("ServeController"), 60, "Serve's controller is started again by Ray")
        assert {greet(home, client, "you")["process"] for _ in range(40)} == before
        assert client.status("echo").phase == "running"
        assert_ray_and_ledger_agree(home)


def asking(home: Home, client: Client) -> Traffic:
    return Traffic(home, "echo", lambda: client.health().urls["endpoint"])


def enough(traffic: Traffic, more: int = 30) -> None:
    """Wait until so many more were asked."""
    upto = traffic.asked + more
    wait_until(lambda: traffic.asked >= upto, 60, f"{more} more answers")


def gateways(home: Home) -> list[int]:
    """The ports of those that answer, the first one first."""
    found = json.loads((home.folder / "gateway.json").read_text())
    return [] if isinstance(found[0], str) else [port for _, port in found]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "hung"])
def test_a_gateway_that_is_gone_costs_nothing_but_what_it_had_in_hand(home: Home, how: signal.Signals) -> None:
    """A second one stands by. What an app was asked by POST is not asked again, and a stream ends with its gateway."""
    with home.client() as client, asking(home, client) as traffic:
        places = wait_until(lambda: len(found := gateways(home)) == 2 and found, 60, "two gateways")
        actors = home.actors("GatewayActor")
        [first] = [one for one in actors if places[0] in {here.laddr.port for here in one.net_connections("tcp")}]
        enough(traffic)
        assert traffic.failures == []
        first.send_signal(how)
        wait_until(lambda: has_ended(first.pid), 30, "the end of the gateway that is gone")
        enough(traffic, more=CLIENTS)  # who was asking meanwhile has been told
        lost = list(traffic.failures)
        wait_until(lambda: len(home.actors("GatewayActor")) == 2, 60, "another gateway")
        enough(traffic)
    assert len(lost) <= CLIENTS and traffic.failures == lost


def test_a_replica_that_hangs_is_replaced_and_no_request_but_its_own_waits(home: Home) -> None:
    with home.client() as client:
        victim = min({greet(home, client, "you")["process"] for _ in range(40)})
        with asking(home, client) as traffic:
            enough(traffic)
            os.kill(victim, signal.SIGSTOP)
            wait_until(lambda: has_ended(victim), 60, "the end of the replica that hangs")
            wait_until(lambda: client.status("echo").size == 2, 60, "another replica")
            enough(traffic)
    assert [failure for failure in traffic.failures if not failure.startswith("stream: ")] == []


def test_a_rollout_that_never_gets_well_costs_no_request_even_while_an_old_replica_is_lost(home: Home) -> None:
    assert home.work is not None
    _, echo = (home.work / "spec.yaml").read_text().split("---")
    (home.work / "unwell.yaml").write_text(echo.replace("counting:Echo", "counting:Unwell"))
    with home.client() as client:
        processes = {greet(home, client, "you")["process"] for _ in range(40)}
        with asking(home, client) as traffic:
            enough(traffic)
            home.llmsched("apply", "-f", "unwell.yaml")
            wait_until(lambda: "this version cannot begin" in home.llmsched("story", "echo"), 60, "why it fails")
            os.kill(min(processes), signal.SIGKILL)
            wait_until(lambda: client.status("echo").size < 2, 30, "that one is lost")
            wait_until(lambda: client.status("echo").size == 2, 60, "one of the version that answers in its place")
            home.llmsched("rollback", "echo")
            wait_until(lambda: client.status("echo").is_settled, 60, "the version that answered")
            enough(traffic)
    assert [failure for failure in traffic.failures if not failure.startswith("stream: ")] == []


def test_killed_workers_go_on_from_their_checkpoint_and_past_a_corrupt_one_from_the_one_before(home: Home) -> None:
    with home.client() as client:
        attempt = client.status("counting").gangs[0].attempt
        pids = worker_pids(client)
        assert len(pids) == 2
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)  # nothing newer is saved meanwhile
        # By the pointer: what was written when they stopped, and not published, is nobody's to go back to.
        pointer = json.loads((home.storage / f"{client.status('counting').gangs[0].id}/latest.json").read_text())
        damaged = home.storage / pointer["published"][0]["key"] / "step.json"
        good, one_before = (
            int((home.storage / one["key"] / "step.json").read_text()) for one in pointer["published"][:2]
        )
        damaged.write_bytes(bytes([damaged.read_bytes()[0] ^ 1]) + damaged.read_bytes()[1:])
        for pid in pids:
            os.kill(pid, signal.SIGKILL)

        wait_until(lambda: client.status("counting").gangs[0].attempt == attempt + 1, 60, "another attempt")
        # What they say themselves: steps of the attempt before may have come in after its workers were killed.
        wait_until(lambda: len(begun_at(client, attempt + 1)) == 2, 120, "both workers of the next attempt")
        assert set(begun_at(client, attempt + 1)) == {one_before}
        stepping(home, client, good + 1)
        said = "\n".join(line.text for line in client.logs("counting", attempt=attempt + 1))
        assert f"checkpoint of step {good} cannot be used" in said
        assert client.status("counting").restarts == 1


def test_storage_that_cannot_be_reached_for_a_while_costs_no_step(home: Home) -> None:
    storage, away = home.storage, home.storage.with_name("storage-away")
    with home.client() as client:
        before = step_of(client)
        storage.rename(away)
        storage.write_text("not a folder: nothing can be saved or listed here\n")
        try:
            gone_until = time.monotonic() + STORAGE_AWAY_S
            while time.monotonic() < gone_until:
                assert client.health().status == "ready"
                assert greet(home, client, "you")["said"] == "hello you"
        finally:
            storage.unlink()
            away.rename(storage)
        stepping(home, client, before + 2, within_s=120)
        gang = client.status("counting").gangs[0]
        assert all(step >= before for step in begun_at(client, gang.attempt))


def test_many_submissions_at_once_are_all_there_once(home: Home) -> None:
    def spec(name: str, word: str = "one") -> dict[str, Any]:
        return {
            "name": name, "kind": "task", "resources": {"accelerators": "A100:2"}, "envs": {"WORD": word},
            "task": {"run": ["true"]},
        }  # fmt: skip

    def submit(given: dict[str, Any]) -> str:
        with home.client() as client:
            return client.apply([load_json(given)]).ids[0]

    with ThreadPoolExecutor(20) as crowd:
        names = [f"crowd-{number}" for number in range(100)]
        assert sorted(crowd.map(submit, [spec(name) for name in names])) == sorted(names)
        assert set(crowd.map(submit, [spec("twin")] * 10)) == {"twin"}  # the same file is the same workload
        assert set(crowd.map(submit, [spec("twin", str(n)) for n in range(10)])) == {"twin"}  # the last one counts
    with home.client() as client:
        known = [view.id for view in client.all_workloads().workloads]
        assert len(known) == len(set(known)) and {*names, "twin"} <= set(known)
        for name in [*names, "twin"]:
            client.cancel(name)
        wait_until(lambda: client.status("twin").phase == "cancelled", 30, "they are gone")


def test_a_full_disk_refuses_what_is_new_and_loses_nothing(home: Home) -> None:
    if not os.path.ismount(home.folder):
        pytest.skip("needs a small disk of its own: mounting one is not allowed here")
    filler = home.folder / "filler"
    late = {"name": "late", "kind": "task", "resources": {"cpus": 0.1}, "task": {"run": ["true"]}}
    large = {**late, "envs": {"PAD": "x" * 30_000}, "after": ["counting"]}  # soon too many, and none starts now
    with home.client() as client:
        before = step_of(client)
        with pytest.raises(OSError, match="No space"), filler.open("wb") as stream:
            while True:
                stream.write(b"x" * 65536)
                stream.flush()

        def is_refused() -> bool:
            try:
                client.apply([load_json({**large, "name": f"late-{len(client.workloads().workloads)}"})])
            except LlmschedError as error:
                return error.http_status == 503
            return False

        wait_until(is_refused, 30, "submissions are refused with 503")
        assert client.status("counting").phase in ("running", "starting", "waiting", "resizing")  # reads work
        filler.unlink()
        wait_until(lambda: client.health().status == "ready", 30, "it comes back by itself")
        assert client.apply([load_json(late)]).ids == ["late"]
        stepping(home, client, before + 2, within_s=120)


def test_a_ray_that_dies_under_it_all_is_started_again_and_the_fine_tune_goes_on(home: Home) -> None:
    with home.client() as client:
        before = step_of(client)
        attempt = client.status("counting").gangs[0].attempt
        controller = home.controller_pid()
        for process in [*home.processes()]:
            with contextlib.suppress(psutil.NoSuchProcess):  # gone meanwhile, with the one before
                if process.pid != controller and controller not in [parent.pid for parent in process.parents()]:
                    process.kill()
        wait_until(lambda: not client.health().cluster.connected, 120, "the controller says that its cluster is away")
        assert client.health().cluster.message
        assert client.status("counting").id == "counting"  # people can still look

        said = home.llmsched("up", "--nodes", NODES)

        assert "runs here already" in said and home.controller_pid() == controller
        wait_until(lambda: client.status("counting").gangs[0].attempt > attempt, 60, "another attempt")
        stepping(home, client, before, within_s=120)

        def begins() -> list[int]:
            attempt = client.status("counting").gangs[0].attempt
            said = "\n".join(line.text for line in client.logs("counting", attempt=attempt))
            return [int(found) for found in re.findall(r"begins at step (\d+)", said)]

        wait_until(begins, 30, "it says where it begins")
        assert all(step >= before - 1 for step in begins())
        wait_until(lambda: client.status("echo").phase == "running", 90, "the endpoint is back")
        wait_until(lambda: answers(home, client), 60, "and answers")


def answers(home: Home, client: Client) -> bool:
    try:
        return greet(home, client, "you")["said"] == "hello you"
    except (AssertionError, httpx.HTTPError, KeyError):
        return False


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
    done = subprocess.run(command, env=wrong, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 3 and "token" in done.stderr and "Traceback" not in done.stderr


def test_the_fine_tune_ends_well_and_its_story_tells_what_happened(home: Home) -> None:
    (home.folder / "enough").touch()
    with home.client() as client:
        view = client.wait("counting", timeout_s=SLACK * 120)
    assert view.phase == "succeeded", view.message
    story = home.llmsched("story", "counting")
    assert "succeeded" in story and story.index("submitted") < story.index("succeeded")


def test_down_leaves_no_process(home: Home) -> None:
    assert any(home.processes())
    home.llmsched("down")
    wait_until(lambda: not [*home.processes()], 10, "every process of this home has ended")
