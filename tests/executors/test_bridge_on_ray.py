"""The bridge on a real local Ray of two pretend nodes with two GPUs each: one cluster, one test after the other.

The last ones take a node away.
"""

import json
import os
import re
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
import pytest
from lab import KEY, answers, routes
from waiting import PATIENCE_S, has_ended, wait_until

from llmsched.executors import wire
from llmsched.executors.port import (
    AdapterAnswer,
    AdapterOrder,
    CheckpointSeen,
    Connected,
    Ended,
    EndpointSeen,
    ExcessSeen,
    ForeignSeen,
    LoadSeen,
    NodeGone,
    NodeSeen,
    NotStarted,
    Progress,
    ResizeDone,
    Started,
    Vanished,
)

pytestmark = pytest.mark.ray


def test_every_node_is_seen_with_what_it_has(lab):
    for index, node in enumerate(lab.nodes):
        seen = lab.bridge.until(NodeSeen, node=node)
        assert (seen.gpus, seen.labels["ray.io/accelerator-type"], seen.name) == (2.0, "A100", f"node-{index + 1}")


def test_a_task_runs_on_every_node_and_leaves_logs_and_a_receipt(lab):
    say = "import os; print(os.environ['RANK'], 'of', os.environ['WORLD_SIZE'], open('made').read())"
    lab.launch(lab.task("hello/0", ["python", "-c", say], setup=["python", "-c", "open('made', 'w').write('ready')"]))
    ended = lab.until(Ended, "hello/0")
    assert ended.outcome == "succeeded", ended
    assert [lab.read(f"hello/0/1/logs/{rank}.log") for rank in range(2)] == ["0 of 2 ready\n", "1 of 2 ready\n"]
    assert json.loads(lab.read("hello/0/1/receipt.json"))["outcome"] == "succeeded"


def test_a_task_that_fails_says_with_what_and_one_that_cannot_run_says_why(lab):
    lab.launch(lab.task("bad/0", ["python", "-c", "raise SystemExit('no such thing')"], lab.nodes[:1]))
    lab.launch(lab.task("worse/0", ["no-such-program"], lab.nodes[1:]))
    lab.launch(lab.order("newer/0", "task", {"task": {"run": ["true"]}}, lab.nodes[1:], version="9.0.0"))
    bad, worse = lab.until(Ended, "bad/0"), lab.until(Ended, "worse/0")
    assert (bad.outcome, bad.event) == ("failed", "error")
    assert bad.message == "rank 0: 'python' exited with code 1; last line: no such thing"
    assert "cannot run 'no-such-program': No such file" in worse.message
    newer = lab.until(NotStarted, "newer/0")
    assert newer.event == "input" and "and the controller 9.0.0" in newer.message


def test_a_package_of_the_workdir_is_there_for_a_task_and_for_a_train_worker(lab):
    extra = {"environment": {"pip": [lab.wheel]}}
    tells = {"task": {"run": ["python", "-c", "import greeter, ray; greeter.main()"]}, **extra}
    lab.launch(lab.order("tells/0", "task", tells, lab.nodes[:1], workdir=lab.workdir))
    lab.launch(lab.order("greets/0", "train", {"train": {"loop": "loops:greet"}, **extra}, workdir=lab.workdir))
    missing = {"task": {"run": ["true"]}, "environment": {"pip": ["gone-1.0-py3-none-any.whl"]}}
    lab.launch(lab.order("lacks/0", "task", missing, lab.nodes[1:], workdir=lab.workdir))
    for gang in ("tells/0", "greets/0"):
        ended = lab.until(Ended, gang)
        assert ended.outcome == "succeeded", ended.message
        assert "hello from a wheel" in lab.read(f"{gang}/1/logs/0.log").splitlines()
    ended = lab.until(NotStarted, "lacks/0")
    assert ended.event == "input" and "no file gone-1.0-py3-none-any.whl in the workdir" in ended.message


def test_a_ray_program_has_a_ray_of_its_own_whose_nodes_come_and_go_while_it_runs(lab):
    lab.launch(lab.ray("own/0", "1", "2", "1", nodes=lab.nodes[:1]))
    lab.until(Started, "own/0")
    wait_until(lambda: "nodes 1" in lab.read("own/0/1/logs/0.log"), 120, "its first node")
    lab.bridge.send("resize", lab.ray("own/0", "1", "2", "1"))
    assert lab.until(ResizeDone, "own/0").size == 2
    wait_until(lambda: "nodes 2" in lab.read("own/0/1/logs/0.log"), 60, "another node")
    of_its_own, of_all = (json.loads(lab.ask_dashboard(gang, "/api/v0/nodes")[1]) for gang in ("own/0", ""))
    assert [len(one["data"]["result"]["result"]) for one in (of_its_own, of_all)] == [2, 3]
    status, page = lab.ask_dashboard("own/0", "/")
    assert status == 200 and b"<html" in page
    lab.bridge.send("resize", lab.ray("own/0", "1", "2", "1", nodes=lab.nodes[:1]))
    ended = lab.until(Ended, "own/0")
    assert ended.outcome == "succeeded", ended.message
    said = [line for line in lab.read("own/0/1/logs/0.log").splitlines() if "INFO" not in line]
    lines = ["first line", "has CPU 1 GPU 1", "sees 0 named actors", "task imported mine 0"]
    assert said[:4] == lines
    assert [line for line in said if line.startswith("nodes")] == ["nodes 1", "nodes 2", "nodes 1"]
    left: list[str] = []

    def all_ended():
        left[:] = [_told(one) for one in psutil.process_iter() if "llms/own/0/" in " ".join(_environ(one))]
        return not left

    with suppress(AssertionError):
        wait_until(all_ended, 30)
    assert left == []


def _told(process):
    try:
        return f"{process.pid} {process.status()} for {time.time() - process.create_time():.0f} s: {process.cmdline()}"
    except psutil.Error as error:
        return str(error)


def _environ(process):
    try:
        return [f"{name}={text}" for name, text in process.environ().items()] if process.pid != os.getpid() else []
    except psutil.Error:
        return []


def test_stopping_a_task_ends_its_whole_process_group(lab):
    child = "import subprocess, sys; p = subprocess.Popen(['sleep', '600']); print(p.pid, flush=True); p.wait()"
    lab.launch(lab.task("long/0", ["python", "-c", child], lab.nodes[:1]))
    lab.until(Started, "long/0")
    wait_until(lambda: lab.read("long/0/1/logs/0.log").strip(), 30, "the child's pid")
    pid = int(lab.read("long/0/1/logs/0.log"))
    look = "import os; print(os.environ['LLMSCHED_GANG'], os.getcwd()); raise SystemExit(7)"
    out, ended = lab.execute("long/0", "task", ["python", "-c", look])
    assert (ended.code, ended.message) == (7, "")
    assert out.startswith("long/0 ") and "llmsched-task-long-0" in out
    upper = "import sys; print(sys.stdin.read().upper()); raise SystemExit(6)"
    out, ended = lab.attach("long/0", "task", ["python", "-c", upper], b"by hand " * 20_000)  # in several frames
    assert (out, ended.code) == (b"BY HAND " * 20_000 + b"\n", 6)
    assert lab.execute("long/0", "task", ["sleep", "99"], timeout_s=0.5)[1].message == "it was ended after 0.5 s"
    assert lab.execute("long/0", "task", ["true"], rank=5)[1].message == "rank 5 is not at work just now"
    lab.stop("long/0", "task")
    assert lab.until(Ended, "long/0").outcome == "released"
    wait_until(lambda: has_ended(pid), 30, "the end of the grandchild")


def test_a_train_gang_survives_its_bridge_grows_and_goes_on_from_its_checkpoint_after_preemption(lab):
    first = lab.train("tune/0", lab.nodes[:1], steps=600, pause=0.05)
    lab.launch(first)
    lab.until(CheckpointSeen, "tune/0")
    lab.bridge.process.kill()
    lab.bridge = lab.connect([(first, True)])
    lab.until(Started, "tune/0")

    lab.bridge.send("resize", lab.train("tune/0", lab.nodes, steps=600, pause=0.05))
    assert lab.until(ResizeDone, "tune/0").size == 2
    wait_until(lambda: "resumed after step" in lab.read("tune/0/1/logs/1.log"), 30, "the log of the new worker")
    out, ended = lab.execute("tune/0", "train", ["sh", "-c", "ls loops.py; echo rank $RANK of $WORLD_SIZE"], rank=1)
    assert (out, ended.code) == ("loops.py\nrank 1 of 2\n", 0)

    lab.stop("tune/0", "train", "preempt", 20.0)
    assert lab.until(Ended, "tune/0").outcome == "released"
    step = json.loads(lab.read("tune/0/1/receipt.json"))["step"]
    assert 5 <= step < 600

    lab.launch(lab.train("tune/0", attempt=2, steps=step + 3))
    ended = lab.until(Ended, "tune/0", attempt=2)
    assert ended.outcome == "succeeded"
    assert step + 3 <= ended.metrics["total"] <= 2 * (step + 3)  # one was added a rank and step
    assert Path(ended.artifact, "total.pt").is_file()
    assert f"rank 1 of 2, 1 threads\nresumed after step {step}" in lab.read("tune/0/2/logs/1.log")


def test_a_mistake_in_a_loop_is_told_apart_from_a_killed_worker_and_both_free_their_gpus_at_once(lab):
    lab.launch(lab.train("wrong/0", lab.nodes, steps=50, crash_at=7))
    lab.launch(lab.train("killed/0", lab.nodes, steps=5000, pause=0.05))
    wrong = lab.until(Ended, "wrong/0")
    assert (wrong.outcome, wrong.event) == ("failed", "error")
    assert wrong.message.startswith("rank 1: ValueError: a mistake of mine (loops.py:")
    victim = lab.until(Progress, "killed/0").data["pid"]
    os.kill(int(victim), signal.SIGKILL)
    at = time.monotonic()
    killed = lab.until(Ended, "killed/0")
    assert (killed.outcome, killed.event) == ("failed", "interruption"), killed.message
    assert lab.bridge.at - at < 8

    # Both GPUs of a node are free again: a task that needs them is placed at once.
    lab.launch(lab.order("after/0", "task", {"task": {"run": ["true"]}}, lab.nodes[:1], gpus=2.0))
    assert lab.until(Ended, "after/0").outcome == "succeeded"


def test_a_loop_that_says_what_nothing_can_write_ends_as_it_ended_and_all_it_said_arrives(lab):
    def hostile(name, node, raises):
        spec = {"train": {"loop": "loops:hostile", "config": {"raises": raises}}}
        lab.launch(lab.order(f"{name}/0", "train", spec, [node], workdir=lab.workdir))

    hostile("unsayable", lab.nodes[0], "text")
    hostile("mute", lab.nodes[0], "mute")
    hostile("strange", lab.nodes[1], "")
    unsayable, mute, strange = (lab.until(Ended, f"{name}/0") for name in ("unsayable", "mute", "strange"))
    assert (unsayable.outcome, unsayable.event) == ("failed", "error")
    assert "ValueError: cannot parse caf\\udce9.txt" in unsayable.message
    assert mute.outcome == "failed" and "Mute" in mute.message
    assert strange.outcome == "succeeded" and strange.artifact is not None
    assert strange.metrics == {"caf\\udce9": 1.0, "fine": 2.0}
    told = {name: value for one in lab.bridge.seen if isinstance(one, Progress) for name, value in one.data.items()}
    assert told["note"] == "caf\\udce9 \\x1b[2J" and told["total"] == told["n\\udce9"] == "1e400"
    assert "caf\\udce9" in lab.read("strange/0/1/logs/0.log")


def test_replicas_answer_through_the_gateway_drain_without_breaking_streams_and_are_missed_when_they_are_gone(lab):
    def replica(index, attempt=1, **args):
        spec = {"serve": {"app": "loops:Desk", "args": args}, "max_ongoing_requests": 4, "drain_timeout": 20.0}
        spec["environment"] = {"pip": [lab.wheel]}
        node = lab.nodes[index % 2 : index % 2 + 1]
        gang = f"{'broken' if args else 'desk'}/{index}"
        return lab.order(gang, "serve", spec, node, gpus=0.5, workdir=lab.workdir, attempt=attempt)

    lab.bridge.send("route", routes(2, "llms/desk/0/1", "llms/desk/1/1"))
    for given in (replica(0), replica(1), replica(2, broken=True)):
        lab.launch(given)
    refused = lab.until(NotStarted, "broken/2")
    assert refused.event == "error"
    assert re.fullmatch(r"ValueError: there is no desk \(loops.py:\d+, in __init__\)", refused.message)
    lab.until(Started, "desk/0")
    lab.until(Started, "desk/1")

    assert lab.attach("desk/1", "serve", ["cat"], b"by hand")[0] == b"by hand"
    out, ended = lab.execute("desk/1", "serve", ["sh", "-c", "echo beside a replica; greeter; exit 3"])
    assert (out, ended.code) == ("beside a replica\nhello from a wheel\n", 3)

    endpoint = lab.bridge.until(Connected).urls["endpoint"]
    client = httpx.Client(base_url=endpoint, headers={"Authorization": f"Bearer {KEY}"}, timeout=PATIENCE_S)
    wait_until(lambda: answers(client) == 200, 30, "the first answer")
    assert httpx.post(f"{endpoint}/v1/apps/desk", json={}).status_code == 401
    assert httpx.get(f"{endpoint}/").status_code == httpx.get(f"{endpoint}/-/routes").status_code == 401

    streams = [[], []]

    def stream(into):
        body = {"stream": True, "pieces": 12, "pause": 0.25}
        with client.stream("POST", "/v1/apps/desk", json=body) as response:
            into += [line for line in response.iter_lines() if line]

    threads = [threading.Thread(target=stream, args=(into,)) for into in streams]
    for thread in threads:
        thread.start()
    wait_until(lambda: all(streams), 30, "both streams")
    lab.bridge.send("route", routes(3, "llms/desk/0/1"))
    lab.stop("desk/1", "serve", "drain", 20.0)
    assert lab.until(Ended, "desk/1").outcome == "released"
    for thread in threads:
        thread.join()
    assert [len(lines) for lines in streams] == [13, 13]  # every piece, and the end
    assert lab.bridge.until(LoadSeen).workload == "desk"

    lab.bridge.send("load_adapter", AdapterOrder("desk/0", 1, 1, "sql", "run://x"))
    assert lab.bridge.until(AdapterAnswer, name="sql").message

    victim = client.post("/v1/apps/desk", json={}).json()[0]["pid"]
    os.kill(victim, signal.SIGKILL)
    gone = lab.until(Vanished, "desk/0")
    assert f"process {victim} on node-1 was killed" in gone.message and not gone.by_others
    lab.bridge.send("route", routes(4, "llms/desk/0/2"))
    lab.launch(replica(0, attempt=2))
    lab.until(Started, "desk/0", attempt=2)
    wait_until(lambda: answers(client) == 200, 30, "an answer of the next attempt")

    # Somebody deploys what is theirs through the same Serve, and then shuts it down for all.
    with lab.driver(THEIRS) as somebody:
        taken = lab.until(Vanished, "desk/0", attempt=2)
        assert taken.by_others and "by somebody" in taken.message
        assert somebody.wait(PATIENCE_S) == 0, "their application was on our port, or could not be deployed"
    lab.bridge.send("route", routes(5, "llms/desk/0/3"))
    lab.launch(replica(0, attempt=3))
    lab.until(Started, "desk/0", attempt=3)
    wait_until(lambda: answers(client) == 200, 30, "an answer from the Serve that came after")
    since = len(lab.bridge.seen)
    with lab.driver(KILLS_THE_GATEWAY) as somebody:
        assert somebody.wait(PATIENCE_S) == 0
    while not (seen := lab.bridge.until(EndpointSeen, since=since)).trouble:
        since = lab.bridge.seen.index(seen, since) + 1  # a second gateway has come meanwhile
    assert "does not answer" in seen.trouble
    wait_until(lambda: answers(client) == 200, 30, "an answer from the gateway that came after")
    lab.stop("desk/0", "serve", "stop", 1.0, attempt=3)
    assert lab.until(Ended, "desk/0").outcome == "released"


KILLS_THE_GATEWAY = """if True:
    import ray, sys
    ray.init(address=sys.argv[1], log_to_driver=False)
    ray.kill(ray.get_actor("llms-gateway", namespace="llmsched"))
"""
THEIRS = """if True:
    import ray, sys, urllib.request
    from ray import serve

    @serve.deployment(ray_actor_options={"num_cpus": 0})
    class Mine:
        def __call__(self, request): return "mine"
    ray.init(address=sys.argv[1], log_to_driver=False)
    handle = serve.run(Mine.bind(), name="mine", route_prefix="/mine")
    assert handle.remote(None).result(timeout_s=100) == "mine"
    serve.shutdown()
"""


def test_other_peoples_work_is_seen_and_forgotten_when_it_is_over(lab):
    theirs = """if True:
        import ray, sys
        ray.init(address=sys.argv[1], log_to_driver=False)

        @ray.remote(num_gpus=1, label_selector={"ray.io/node-id": sys.argv[2]})
        class Theirs:
            def holds(self): return True
        actor = Theirs.remote()
        ray.get(actor.holds.remote())
        sys.stdin.read()
    """
    seen = len(lab.bridge.seen)
    with lab.driver(theirs, lab.nodes[0]) as somebody:
        assert lab.bridge.until(ForeignSeen, since=seen, node=lab.nodes[0], gpus=1.0)
        seen = len(lab.bridge.seen)
        somebody.stdin.close()
        assert lab.bridge.until(ForeignSeen, since=seen, node=lab.nodes[0]).gpus == 0.0


LEFT = """if True:
    import json, ray, sys, time
    from ray import serve
    ray.init(address=sys.argv[1], log_to_driver=False)

    def taken():
        return ray.cluster_resources()["GPU"] - ray.available_resources().get("GPU", 0)

    until = time.monotonic() + 20  # Ray says what is free a while after it is
    while taken() and time.monotonic() < until:
        time.sleep(0.2)
    groups = ray.util.placement_group_table().values()
    print(json.dumps({
        "gpus": taken(),
        "actors": [one["name"] for one in ray.util.list_named_actors(all_namespaces=True)],
        "groups": [one["name"] for one in groups if one["state"] != "REMOVED"],
        "applications": list(serve.status().applications),
    }), file=open(sys.argv[2], "w"))
"""


def test_what_attempts_take_beyond_their_gangs_is_theirs_and_ends_with_them(lab, tmp_path):
    """A task whose worker is killed with -9, a train loop and a replica that are stopped: each has a daemon without
    parent, session and environment. Loop and replica hold a quarter of a GPU or two beyond what they were given; the
    task has a Ray of its own, where what is beyond its gang waits. All
    of it fits: what waits for a place holds nothing.
    """
    where = {"folder": str(tmp_path), "node": lab.nodes[1]}
    run = [sys.executable, "hoard.py", lab.cluster.address, str(tmp_path)]
    train, app = {"loop": "hoard:loop", "config": where}, {"app": "hoard:App", "args": where}
    for kind, section in ("task", {"run": run}), ("train", train), ("serve", app):
        given = lab.order(f"hoard-{kind}/0", kind, {kind: section}, lab.nodes[:1], gpus=0.25, workdir=lab.workdir)
        lab.launch(given)
    told = {}
    wait_until((tmp_path / "task").exists, 90, "the task has what it can have")
    told["task"] = json.loads((tmp_path / "task").read_text())
    assert (told["task"]["has"], told["task"]["waits"]) == ({"CPU": 1.0, "GPU": 0}, True)
    for kind, gpus in ("train", 0.5), ("serve", 0.25):
        wait_until((tmp_path / kind).exists, 90, f"{kind} has what it wants")
        since = time.monotonic()
        used = (ForeignSeen(lab.nodes[1], gpus, 0.0, 0),)
        lab.until(
            ExcessSeen, f"hoard-{kind}/0", timeout=PATIENCE_S, used=used
        )  # said in parts, where one is seen first
        print(f"{kind}: {gpus} GPUs of excess were told {max(0.0, lab.bridge.at - since):.1f} s after they were taken")
        told[kind] = json.loads((tmp_path / kind).read_text())

    os.kill(told["task"]["worker"], signal.SIGKILL)
    lab.stop("hoard-train/0", "train", grace_s=20.0)
    lab.stop("hoard-serve/0", "serve", grace_s=1.0)
    ends = {kind: lab.until(Ended, f"hoard-{kind}/0").outcome for kind in told}

    assert ends == {"task": "failed", "train": "released", "serve": "released"}
    assert [kind for kind, one in told.items() if not all(map(has_ended, one["children"]))] == []
    with lab.driver(LEFT, str(tmp_path / "left")) as driver:
        assert driver.wait(PATIENCE_S) == 0
    left = json.loads((tmp_path / "left").read_text())
    assert left["gpus"] == 0
    assert [name for names in (left["actors"], left["groups"]) for name in names if "hoard" in name] == []
    assert [name for name in left["applications"] if "hoard" in name] == []


def test_capacity_that_is_asked_for_reaches_rays_autoscaler_until_it_is_withdrawn(lab):
    request = """if True:
        import json, ray, sys, time
        from ray.experimental.internal_kv import _internal_kv_get
        ray.init(address=sys.argv[1], log_to_driver=False)
        wanted = json.loads(sys.argv[2])
        while json.loads(_internal_kv_get("autoscaler_resource_request") or "[]") != wanted:
            time.sleep(0.1)
    """
    lab.bridge.send("request_capacity", wire.capacity_of([({"GPU": 2.0}, {"ray.io/accelerator-type": "A100"}, 3)]))
    with lab.driver(request, json.dumps([{"GPU": 2.0}] * 3)) as asked:
        assert asked.wait(PATIENCE_S) == 0
    lab.bridge.send("request_capacity", wire.capacity_of([]))
    with lab.driver(request, "[]") as withdrawn:
        assert withdrawn.wait(PATIENCE_S) == 0


def test_what_no_live_attempt_owns_is_reaped_with_everything_it_holds(lab):
    lab.launch(lab.train("orphan/0", lab.nodes, steps=5000, pause=0.1))
    lab.until(Progress, "orphan/0")
    lab.bridge.process.kill()
    lab.bridge = lab.connect()  # control does not know of any attempt
    lab.launch(lab.order("heir/0", "task", {"task": {"run": ["true"]}}, lab.nodes[:1], gpus=2.0))
    assert lab.bridge.until(Ended, gang="heir/0", timeout=PATIENCE_S).outcome == "succeeded"


def test_an_attempt_that_is_not_there_any_more_has_vanished_and_one_that_ended_says_so_again(lab):
    gone, ended = lab.train("gone/0", steps=1), lab.task("hello/0", ["true"])
    for some in wire.adopts_of([(gone, True), (ended, True)]):
        lab.bridge.send("adopt", some)
    lab.until(Vanished, "gone/0")
    assert lab.until(Ended, "hello/0").outcome == "succeeded"


def test_a_node_that_ray_takes_away_is_told_with_its_time_and_what_runs_there_still_leaves_as_asked(lab):
    leaves = "trap 'echo saved; exit 0' TERM; echo here; while :; do sleep 0.1; done"
    lab.launch(lab.task("moves/0", ["sh", "-c", leaves], lab.nodes[1:]))
    wait_until(lambda: "here" in lab.read("moves/0/1/logs/0.log"), 60, "its first line")
    lab.drain(lab.nodes[1], "PREEMPTION", 30)
    leaves_at = lab.bridge.until(NodeSeen, node=lab.nodes[1], leaving=True).leaves_at
    assert 0 < leaves_at - time.time() <= 30
    lab.stop("moves/0", "task", "preempt", 20.0)
    assert lab.until(Ended, "moves/0").outcome == "released"
    assert "saved" in lab.read("moves/0/1/logs/0.log")
    lab.bridge.until(NodeGone, node=lab.nodes[1])  # an empty one Ray lets go of at once


def test_a_lost_node_is_noticed_and_its_gang_ends_as_interrupted(lab):
    lab.launch(lab.task("there/0", ["sleep", "600"], lab.nodes[:1]))
    lab.until(Started, "there/0")
    for process in psutil.Process(lab.cluster.processes[1].pid).children():
        if "raylet" in process.name():
            process.kill()
    at = time.monotonic()
    lab.bridge.until(NodeGone, node=lab.nodes[0])
    assert lab.bridge.at - at < 30
    ended = lab.until(Ended, "there/0")
    assert (ended.outcome, ended.event) == ("failed", "interruption")
