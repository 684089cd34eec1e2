"""What one member of a `kind: ray` gang does: be a node of its private Ray, and on the first one run the program.

Start reading at `RayMember.start`. The Ray's processes are in `private_ray.py`.
"""

from __future__ import annotations

import json
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import ray

from llmsched.runtime import containment, dashboard, environment, gang_ray, packages, private_ray, pulse
from llmsched.runtime.elastic import DONE_FILE
from llmsched.runtime.health import Pulse
from llmsched.runtime.private_ray import DidNotStart
from llmsched.runtime.task import Ending, TaskWorker


class Joined(NamedTuple):
    """A node of the private Ray. `message`: why it did not come up."""

    address: str = ""
    node: str = ""
    dashboard: str = ""
    message: str = ""
    envs: dict[str, str] = {}  # with which a program here finds its Ray


class RayMember(TaskWorker):
    """`member` is that of the LaunchOrder as JSON; `token` is the private Ray's."""

    KIND = "ray"

    def __init__(self, order: str, rank: int, member: str, token: str) -> None:
        super().__init__(order, rank)
        self._member: dict[str, Any] = json.loads(member)
        self._token = token

    def attach(self) -> None:
        """Use the working folder that another member of this machine has laid out, and keep it there."""
        self._folder = self._shared_folder()
        environment.keep(self._folder)

    def start(self, address: str = "") -> Joined:
        """Come up as the head, or as a node of the Ray at `address`."""
        self._folder = self._shared_folder()
        self._packages = packages.provide(self._order, self._folder, self._say)  # as `prepare` left it on this machine
        self._guard = self._guard or self._new_guard()
        store = self._order["spec"]["ray"].get("object_store_memory") or 0
        self._node = gang_ray.node(self._member, self._token, self._envs({}), self._packages, store)
        try:
            self._node.start(gang_ray.address_here(), self._folder, address)
        except DidNotStart as error:
            self._say(f"[llmsched] {error}\n")
            return Joined(message=str(error))
        threading.Thread(target=self._beat, args=(None,), daemon=True, name="pulse").start()
        ours = {name: text for name, text in self._node.envs.items() if name.startswith("RAY_")}
        return Joined(self._node.address, self._node.node_id(), self._node.dashboard, envs=ours)

    def program(self, envs: dict[str, str]) -> Ending:
        """Run the program to its end, here on the head."""
        assert self._node is not None
        command = self._section["run"]
        done = self._folder / f".llmsched-done-{self._rank}"
        code = self._run(command, [{**self._node.envs, **envs, DONE_FILE: str(done)}]).code
        if self._over_memory:
            return Ending(self._over_memory, "input", code)
        return self._ending(repr(command[0]), code)._replace(says_done=done.exists())

    def watch(self) -> Ending:
        """Until the node has ended. A message when nobody asked it to."""
        node = self._node
        if node is None:
            return Ending()
        node.wait()
        if node.was_stopped or self._stopping.is_set():
            return Ending(code=0)
        if self._over_memory:
            return Ending(self._over_memory, "input")
        return Ending(f"a node of its Ray ended by itself{node.last_words()}", "interruption")

    def ask_dashboard(self, path: str, headers: dict[str, str]) -> Iterator[dashboard.Said]:
        """Asked of the head."""
        if self._node is None or not self._node.dashboard:
            yield "end", "its Ray has not come up yet, or has ended", None
            return
        yield from dashboard.ask(self._node.dashboard, self._token, path, headers)

    def drain(self, node: str, within_s: float) -> str:
        """Asked of the head: tell the Ray that `node` will go."""
        return self._node.drain(node, within_s) if self._node else "it is gone"

    def leave(self, within_s: float) -> None:
        """Drained: go once nothing runs here any more, at the latest after so long."""
        self._stopping.set()
        if self._node is not None:
            self._node.has_left(within_s)
        self.close()

    def stop(self, grace_s: float) -> None:
        """Asked of the head: the program is told to leave, and ended after the grace. Its Ray goes after it."""
        self._stopping.set()
        if self._processes is not None:
            self._processes.stop(grace_s)

    def close(self) -> None:
        """End the node and all that is left here; return when it is gone."""
        if self._node is not None:
            self._node.stop()
        self._contain()
        self._log.close()
        if self._node is not None:
            self._node.clean()

    def _new_guard(self) -> containment.Guard:
        asked = int(self._member.get("memory_bytes") or 0)
        return containment.Guard(
            memory_bytes=asked + private_ray.RAY_ITSELF_BYTES if asked else 0,
            memory_action=self._order.get("over_memory", "off"),
            on_memory=self._on_memory,
        )

    def _pulse(self, meter: pulse.CommandMeter) -> Pulse:
        """Of the program; a member without one has only its node to speak for."""
        if self._processes is None:
            return Pulse()
        return meter.read(self._processes.pids)._replace(wants=self._wants())

    def _shared_folder(self) -> Path:
        """Of all members: a program's modules lie at the same path on every machine, as its Ray expects."""
        owner = f"{self._order['gang']}-{self._order['attempt']}-{self._order['epoch']}".replace("/", "-")
        return Path(tempfile.gettempdir()) / f"llmsched-ray-{owner}-{ray.get_runtime_context().get_job_id()}"
