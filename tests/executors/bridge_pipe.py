"""A bridge as its parent sees it: orders in on a pipe, observations out, with a wait for the one that is due."""

import os
import queue
import subprocess
import sys
import threading
import time
from pathlib import Path

from waiting import PATIENCE_S, SLACK

from llmsched.executors import wire
from llmsched.executors.local_ray import environment
from llmsched.executors.port import LaunchOrder, Member


class BridgePipe:
    def __init__(self, home, address, storage, epoch=1):
        command = [sys.executable, "-m", "llmsched.executors.bridge.main"]
        self.log = (home / "logs" / "bridge.log").open("ab")
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            env={**os.environ, **environment(home)},
        )
        self.seen = []
        self._news = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()
        self.send("start", wire.Settings(address=address, epoch=epoch, storage=str(storage)))

    def send(self, op, body):
        self.process.stdin.write(wire.encode_order(op, body))
        self.process.stdin.flush()

    def _listen(self):
        for line in self.process.stdout:
            self._news.put((time.monotonic(), wire.decode_answer(line)))

    def until(self, kind, timeout=60, since=0, **fields):
        """The first observation of this kind with these fields, among those seen (`since` that many) and to come."""
        timeout *= SLACK
        deadline = time.monotonic() + timeout

        def fits(one):
            return type(one) is kind and all(getattr(one, name) == value for name, value in fields.items())

        for one in self.seen[since:]:
            if fits(one):
                return one
        while True:
            try:
                self.at, one = self._news.get(timeout=max(0.01, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"no {kind.__name__} {fields} in {timeout} s; saw {self._about(fields)}") from None
            self.seen.append(one)
            if fits(one):
                return one

    def _about(self, fields):
        told = [one for one in self.seen if getattr(one, "gang", None) == fields.get("gang")] or self.seen[-8:]
        return f"{told}; the bridge's last words: {Path(self.log.name).read_text()[-3000:]}"

    def close(self, stop_everything=False, timeout=60):
        self.send("close", wire.Close(stop_everything))
        self.until(wire.Closed, timeout)
        return self.process.wait(timeout=PATIENCE_S)


def order(gang, kind, spec, nodes, storage, *, attempt=1, gpus=1.0, cpus=1.0, **more):
    members = tuple(Member(rank, node, gpus=gpus, cpus=cpus, flavor="A100") for rank, node in enumerate(nodes))
    workload = gang.rpartition("/")[0]
    return LaunchOrder(workload, gang, attempt, 1, kind, members, {"name": workload, **spec}, str(storage), **more)
