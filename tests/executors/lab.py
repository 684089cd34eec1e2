"""A local Ray of two pretend nodes with two GPUs each, and the bridge that talks to it: for tests on real Ray."""

import base64
import hashlib
import json
import os
import subprocess
import sys
import zipfile
from contextlib import suppress
from functools import partial
from pathlib import Path

import httpx
import psutil
from bridge_pipe import BridgePipe, order
from waiting import PATIENCE_S
from wheels import write_wheel

from llmsched.channels import Channels
from llmsched.executors import local_ray, wire
from llmsched.executors.port import (
    CommandEnded,
    CommandInput,
    CommandOrder,
    CommandSaid,
    Connected,
    DashboardOrder,
    RouteTable,
    StopOrder,
)


class Lab:
    """One cluster, and the bridge that talks to it now."""

    def __init__(self, home):
        self.home, self.storage = home, home / "storage"
        self.cluster = local_ray.start(home, local_ray.parse_nodes("2x2:A100"))
        self.nodes = [process.node for process in self.cluster.processes[1:]]
        (self.storage / "workdirs").mkdir(parents=True)
        self.workdir = str(self.storage / "workdirs" / "loops.zip")
        with zipfile.ZipFile(self.workdir, "w") as archive:
            for name in ("loops.py", "hoard.py", "ray_program.py", "placed_app.py"):
                archive.write(Path(__file__).with_name(name), name)
            self.wheel = write_wheel(home, "greeter", "1.0", "WORD = 'hello from a wheel'\n")
            archive.write(home / self.wheel, self.wheel)
        self.bridge = self.connect()

    def connect(self, live=()):
        bridge = BridgePipe(self.home, self.cluster.address, self.storage)
        bridge.until(Connected)
        for some in wire.adopts_of(live):
            bridge.send("adopt", some)
        return bridge

    def order(self, gang, kind, spec, nodes=None, **more):
        return order(gang, kind, spec, nodes or self.nodes, self.storage, **more)

    def train(self, gang, nodes=None, attempt=1, **config):
        spec = {"train": {"loop": "loops:loop", "config": config}}
        return self.order(gang, "train", spec, nodes, attempt=attempt, workdir=self.workdir)

    def task(self, gang, run, nodes=None, setup=()):
        return self.order(gang, "task", {"task": {"run": run, "setup": list(setup)}}, nodes)

    def ray(self, gang, *words, nodes=None):
        spec = {"ray": {"run": ["python", "ray_program.py", *words]}}
        return self.order(gang, "ray", spec, nodes, workdir=self.workdir, envs={"MODE": "mine"})

    def launch(self, given):
        self.bridge.send("launch", given)

    def stop(self, gang, kind, mode="stop", grace_s=10.0, attempt=1):
        self.bridge.send("stop", StopOrder(gang, attempt, 1, kind, mode, grace_s))

    def execute(self, gang, kind, argv, rank=0, timeout_s=PATIENCE_S):
        """What a command beside a member wrote, and how it ended."""
        before = len(self.bridge.seen)
        name = f"{gang}-{before}"
        self.bridge.send("execute", CommandOrder(name, gang, 1, 1, kind, rank, tuple(argv), timeout_s))
        ended = self.bridge.until(CommandEnded, id=name)
        said = [one for one in self.bridge.seen[before:] if isinstance(one, CommandSaid) and one.id == name]
        return "".join(one.text for one in said), ended

    def attach(self, gang, kind, argv, data, rank=0):
        """What a command made of its input, and how it ended."""
        before = len(self.bridge.seen)
        order = CommandOrder(f"{gang}-{before}", gang, 1, 1, kind, rank, tuple(argv), 0.0, "attach")
        self.bridge.send("execute", order)
        self.bridge.until(CommandSaid, id=order.id, stream="begun")
        tell = partial(self.bridge.send, "tell_command")
        channels = Channels(lambda frame: tell(CommandInput(order, base64.b64encode(frame).decode())))
        channel = channels.open(0)
        channel.write(data)
        channel.end()
        ended = self.bridge.until(CommandEnded, id=order.id)
        said = [one for one in self.bridge.seen[before:] if isinstance(one, CommandSaid) and one.stream == "frames"]
        for frame in " ".join(one.text for one in said if one.id == order.id).split():
            channels.take(base64.b64decode(frame))
        return b"".join(iter(channel.read, b"")), ended

    def ask_dashboard(self, gang, path):
        """Its status and body: of the gang's own Ray, or with "" the cluster's."""
        name = f"dashboard-{len(self.bridge.seen)}"
        self.bridge.send("ask_dashboard", DashboardOrder(name, gang, 1, 1, path, ()))
        ended = self.bridge.until(CommandEnded, id=name)
        assert ended.code == 0, ended.message
        head, *body = [one.text for one in self.bridge.seen if isinstance(one, CommandSaid) and one.id == name]
        return json.loads(head)["status"], b"".join(map(base64.b64decode, body))

    def until(self, kind, gang, **more):
        return self.bridge.until(kind, gang=gang, **more)

    def driver(self, code, *words):
        """A process of somebody else on the same cluster."""
        env = {**os.environ, **local_ray.environment(self.home)}
        command = [sys.executable, "-c", code, self.cluster.address, *words]
        return subprocess.Popen(command, stdin=subprocess.PIPE, env=env)

    def drain(self, node, reason, within_s):
        """As a provider's notice reaches Ray."""
        words = ["--node-id", node, "--reason", f"DRAIN_NODE_REASON_{reason}", "--reason-message", "a notice"]
        words += ["--address", self.cluster.address, "--deadline-remaining-seconds", str(within_s)]
        env = {**os.environ, **local_ray.environment(self.home)}
        subprocess.run([sys.executable, "-m", "ray.scripts.scripts", "drain-node", *words], env=env, check=True)

    def actors(self, name):
        """Processes of the Ray actors of that class; Ray adds the method that one is in to its title."""
        found = []
        for each in self.cluster.processes:
            with suppress(psutil.NoSuchProcess):
                found += psutil.Process(each.pid).children(recursive=True)
        return [one for one in found if title_of(one).partition(".")[0] == f"ray::{name}"]

    def groups(self):
        """What answers each line on its stdin with the placement groups that Ray has now, as `id state`s."""
        code = """if True:
            import ray, sys
            from ray.util import placement_group_table
            ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
            for line in sys.stdin:
                found = [one for one in placement_group_table().values() if one["state"] != "REMOVED"]
                print(*(one["placement_group_id"][:8] + one["state"] for one in found), flush=True)
        """
        env = {**os.environ, **local_ray.environment(self.home)}
        return subprocess.Popen(
            [sys.executable, "-c", code, self.cluster.address],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=env,
            text=True,
        )

    def read(self, name):
        file = self.storage / name
        return file.read_text() if file.exists() else ""


def title_of(process):
    try:
        return process.cmdline()[0]
    except (psutil.Error, IndexError):  # gone, or only its parent has not heard of it
        return ""


KEY = "key of the test"


def routes(version, *applications):
    desk = {"workload": "desk", "task": "app", "kind": "app", "routing": "round-robin", "max_ongoing": 4}
    models = {"desk": {**desk, "calls": [], "adapters": {}, "replicas": [{"app": name} for name in applications]}}
    keys = [{"id": "k", "sha256": hashlib.sha256(KEY.encode()).hexdigest(), "models": ["desk"]}]
    return RouteTable(version, models, keys)


def answers(client):
    try:
        return client.post("/v1/apps/desk", json={}).status_code
    except httpx.TransportError:
        return 0
