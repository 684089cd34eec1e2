"""What one worker of a task does: run the user's argv, once or several times, with its output in a log.

Arguments are lists of words; no shell sees them. The supervisor decides when a worker runs or stops. Start at `run`.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import tempfile
import threading
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NamedTuple

import ray

from llmsched.runtime import (
    calls_door,
    command_link,
    containment,
    context,
    elastic,
    environment,
    execute,
    failures,
    gang_ray,
    packages,
    private_ray,
    pulse,
    ray_demand,
    ray_init,
    redaction,
)
from llmsched.runtime.addressed import supervisor_of
from llmsched.runtime.health import Pulse
from llmsched.runtime.link import ActorLink
from llmsched.runtime.outputs import Outputs
from llmsched.runtime.processes import Exit, Processes
from llmsched.runtime.rendezvous import HeldPort, Rendezvous
from llmsched.spec import launchers

_RAY_TELLS_WITHIN_S = 3.0  # a command whose Ray has gone may end before `ray start` has noticed


class Ending(NamedTuple):
    """How a command ended. `message`: what went wrong, for people; empty when it exited with 0. `event` as in
    `failures`. `says_done`: it made the file that LLMSCHED_DONE names."""

    message: str = ""
    event: str = "error"
    code: int | None = None
    says_done: bool = False


class TaskWorker:
    """One rank, as a Ray actor with threads: `run` blocks while `stop` answers."""

    KIND = "task"

    def __init__(self, order: str, rank: int) -> None:
        self._order: dict[str, Any] = json.loads(order)
        redaction.hide(self._order)
        self._rank = rank
        self._processes: Processes | None = None
        self._held: HeldPort | None = None
        self._calls: dict[str, str] | None = None
        self._stopping = threading.Event()
        self._folder = Path()
        self._packages: packages.Packages | None = None
        self._outputs: Outputs | None = None
        self._guard: containment.Guard | None = None
        self._over_memory = ""
        self._has_left = False  # what it started does not end
        self._door: gang_ray.Door | None = None  # at worker 0
        self._node: private_ray.RayNode | None = None
        self._demand: ray_demand.Watch | None = None  # at its head
        self._wanted = ""
        self._log = environment.LogFile(
            self._order["storage"], f"{self._order['gang']}/{self._order['attempt']}/logs/{rank}.log"
        )

    def where(self) -> dict[str, Any]:
        """Where this rank ended up: node id, address, pid, working folder, and the variables that say who it is."""
        here = ray.get_runtime_context()
        about = {"node": here.get_node_id(), "host": socket.gethostname(), "pid": os.getpid(), "ip": _address()}
        around = gang_ray.own(execute.surroundings())
        return {**about, "rank": self._rank, "folder": str(self._shared_folder()), "envs": around}

    def prepare(self) -> Ending:
        """Lay out the working folder that all ranks of this node share, and run `setup` there."""
        self._folder = self._shared_folder()
        environment.sweep()
        environment.drop(self._folder)  # of a process that had our name before
        self._folder.mkdir(mode=0o700, parents=True)
        environment.keep(self._folder)
        try:
            environment.check_version(self._order)
            if self._order["workdir"]:
                environment.unpack(self._order["workdir"], self._folder)
            self._packages = packages.provide(self._order, self._folder, self._say)
        except environment.UserError as error:
            return Ending(str(error), "input")
        except packages.Unreachable as error:
            return Ending(str(error))
        setup = self._section.get("setup") or []
        ending = self._ending(f"setup {setup[0]!r}", self._run(setup, [self._envs({})]).code) if setup else Ending()
        if not ending.message:
            self._outputs = Outputs(self._order, self._folder)
        return ending

    def keep(self, part: int) -> None:
        """Store what the command wrote in this node's working folder."""
        if self._outputs is not None and (why := self._outputs.keep(part)):
            self._say(f"[llmsched] {why}\n")

    def publish(self, parts: int, is_result: bool) -> None:
        """Of all nodes' folders, once they are stored; on worker 0's."""
        if self._outputs is None:
            return
        if is_result:
            self._outputs.become_the_result(context.Context(**self._who(), local_dir=self._folder), parts)
        else:
            self._outputs.publish(parts)

    def open_door(self, token: str, others: list[Any]) -> dict[str, str]:
        """Where the gang's own Ray is to be found, which comes up once somebody looks: the variables for that."""

        def start() -> str:
            self._say("[llmsched] ray.init: the task gets a Ray of its own, of the size of its gang\n")
            address = self.start_node(token)
            waiting = [worker.start_node.remote(token, address) for worker in others] if address else []
            with suppress(ray.exceptions.RayError):  # it is gone: the attempt hears of it
                ray.get(waiting)
            return address

        self._door = self._door or gang_ray.Door(gang_ray.address_here(), start)
        return gang_ray.envs_of(self._door.address, token)

    def start_node(self, token: str, address: str = "") -> str:
        """Come up as the head of the gang's own Ray, or as a node of that at `address`; its address, "" if it does not
        come up."""
        member = self._order["members"][self._rank]
        if self._guard is not None:
            self._guard.allow(private_ray.RAY_ITSELF_BYTES)
        node = gang_ray.node(member, token, self._envs({}), self._packages)
        try:
            node.start(gang_ray.address_here(), self._shared_folder(), address)
        except private_ray.DidNotStart as error:
            self._say(f"[llmsched] its Ray did not come up: {error}\n")
            node.clean()
            return ""
        self._node = node
        threading.Thread(target=self._watch_ray, args=(node,), daemon=True, name="its Ray").start()
        return node.address

    def _watch_ray(self, node: private_ray.RayNode) -> None:
        """Whoever asks a Ray that is gone waits long for an answer, or fails with many words."""
        node.wait()
        if not node.was_stopped and not self._over_memory:
            self._say(f"[llmsched] {_ray_ended(node)}\n")

    def hold_port(self) -> int:
        """Where the ranks are to meet; held from now on, so that no other program gets it."""
        self._held = self._held or HeldPort()
        return self._held.number

    def run(self, envs: dict[str, str], meeting: Rendezvous | None = None) -> Ending:
        """Run the command to its end, as often as `meeting` says."""
        self._folder = self._shared_folder()
        command = self._section["run"]
        self._packages = packages.provide(self._order, self._folder, self._say)  # as `prepare` left it on this node
        done = self._folder / f".llmsched-done-{self._rank}"
        each = meeting.processes_of(self._rank) if meeting else [{}]
        if len(each) > 1:
            threads = environment.cpu_share(len(each), int(self._order["members"][self._rank].get("cpus") or 0))
            each = [{**environment.thread_envs(threads), **one} for one in each]
        if meeting and not meeting.is_alone and not environment.has_accelerator():
            command = launchers.without_gpus(command)
            each = [{"ACCELERATE_USE_CPU": "true", **one} for one in each]  # or each would train a copy
        is_over = threading.Event()
        threading.Thread(target=self._beat, args=(meeting, is_over), daemon=True, name="pulse").start()
        try:
            with closing(command_link.Desk(self._answers())) as desk:
                envs = {**envs, elastic.DONE_FILE: str(done), command_link.NAME: desk.path}
                code, place = self._run(command, [self._envs({**envs, **one}) for one in each])
                if self._node is None:  # else others of the gang may use what runs beside this one: it ends with them
                    self._contain()
        finally:
            is_over.set()
        self._log.close()
        if self._over_memory:
            return Ending(f"rank {self._rank}: {self._over_memory}", "input", code)
        who = f"rank {each[place].get('RANK', self._rank)}"
        ending = self._ending(f"{who}: {command[0]!r}", code)
        return ending._replace(says_done=done.exists())

    def lost_ray(self) -> Ending | None:
        """Why a command of the gang may have failed that used its Ray: the node here has ended by itself, or was ended
        because what the command makes through it uses too much memory."""
        node = self._node
        if node is None or self._stopping.is_set() or not node.wait(_RAY_TELLS_WITHIN_S) or node.was_stopped:
            return None
        if self._over_memory:
            return Ending(f"rank {self._rank}: {self._over_memory}", "input")
        return Ending(_ray_ended(node), "interruption")

    def _answers(self) -> command_link.Answers:
        """To the command, which may use `llmsched.runtime` as a loop does."""
        return command_link.Answers(
            self._who,
            lambda values: self._supervisor().report.remote(values),
            lambda step, fraction: self._supervisor().checkpointed.remote(step, fraction),
            self._stopping.is_set,
            self._ask,
        )

    def _who(self) -> dict[str, Any]:
        order = self._order
        return {
            "name": order["spec"].get("name", order["workload"]),
            **{name: order[name] for name in ("workload", "gang", "attempt", "epoch", "spec", "storage", "inputs")},
            "rank": self._rank,
            "world_size": len(order["members"]),
        }

    def _ask(self, id: str, body: str) -> str | None:
        return ActorLink(self._supervisor()).ask(id, body)

    def _supervisor(self) -> Any:
        return supervisor_of(self._order)

    def _beat(self, meeting: Rendezvous | None, is_over: threading.Event) -> None:
        """Signs of life to the supervisor: whether a signal has stopped the command, and whether it met the others."""
        meter = pulse.CommandMeter(meeting.port if meeting and len(meeting.addresses) > 1 else 0)
        while not is_over.wait(pulse.EVERY_S) and not self._stopping.is_set():
            with suppress(Exception):
                if (said := self._pulse(meter)) is not None:
                    self._tell(said)

    def _pulse(self, meter: pulse.CommandMeter) -> Pulse | None:
        """None: there is nothing to speak of."""
        pids = self._processes.pids if self._processes is not None else []
        beside = [self._node.pid] if self._node is not None else []  # it computes through its Ray too
        return meter.read([*pids, *beside])._replace(wants=self._wants()) if pids else None

    def _wants(self) -> str:
        """What waits in vain in the Ray whose head is here; told in the log when it changes."""
        node = self._node
        if node is None or not node.dashboard:
            return ""
        if self._demand is None:
            self._demand = ray_demand.Watch(node.dashboard, node.token, self._order["members"])
        wants = self._demand.read()
        if wants and wants != self._wanted:
            self._say(f"[llmsched] something waits in its own Ray for {wants}\n")
        self._wanted = wants
        return wants

    def _tell(self, said: Pulse) -> None:
        self._supervisor().beat.remote(self._rank, said)

    def stop(self, grace_s: float) -> None:
        """Ask the process groups to end, then end them. Returns when they are gone."""
        self._stopping.set()
        if self._processes is None:
            return
        self._processes.stop(grace_s)
        if self._node is None:
            self._contain()
        self._log.close()

    def end_ray(self) -> None:
        """All commands of the gang have ended: so does what they made through Ray."""
        if self._door is not None:
            self._door.close()
        if self._node is not None:
            self._node.stop()
            self._contain()
            self._node.clean()

    def _contain(self) -> None:
        """End what the command has left running, whatever session it is in; return when it is gone."""
        if self._guard is not None:
            ended, left = self._guard.close()
            self._has_left = self._has_left or bool(left)
            if told := [*(name for name in ended if not (self._node and private_ray.is_rays(name))), *left]:
                self._say(f"[llmsched] ended what it left running: {'; '.join(told)}\n")

    def _on_memory(self, word: containment.OverMemory) -> None:
        self._say(f"[llmsched] {word}\n")
        if word.is_over:
            self._over_memory = str(word)
        else:
            self._supervisor().report.remote({"memory": str(word)})

    def clean(self) -> None:
        """Remove the node's working folder."""
        environment.drop(self._shared_folder())

    def leaves_nothing(self) -> bool:
        """Let go of what it holds in this process; whether its commands came to their end and nothing is left."""
        if self._held is not None:
            self._held.close()
        return self._node is None and not self._over_memory and not self._stopping.is_set() and not self._has_left

    def _shared_folder(self) -> Path:
        here = ray.get_runtime_context()
        owner = f"{self._order['gang']}-{self._order['attempt']}-{self._order['epoch']}".replace("/", "-")
        job = f"{here.get_job_id()}-{here.get_node_id()[:12]}"
        return Path(tempfile.gettempdir()) / f"llmsched-task-{owner}-{job}"

    def _envs(self, envs: dict[str, str]) -> dict[str, str]:
        around = self._surroundings()
        path = os.pathsep.join([str(Path(sys.executable).parent), around.get("PATH", os.defpath)])
        around = {**around, "PATH": path}
        if self._packages is not None:
            around = self._packages.surround(around)
        self._calls = calls_door.envs_of(self._order) if self._calls is None else self._calls
        return {**around, "PYTHONUNBUFFERED": "1", **self._calls, **envs, **self._order["envs"]}

    def _surroundings(self) -> dict[str, str]:
        """The owner's mark stays, by which processes are known."""
        return gang_ray.own(os.environ)

    @property
    def _section(self) -> dict[str, Any]:
        section: dict[str, Any] = self._order["spec"][self.KIND]
        return section

    def _say(self, text: str) -> None:
        with self._log.path.open("a", encoding="utf-8") as log:
            log.write(text)

    def _run(self, command: list[str], each: list[dict[str, str]]) -> Exit:
        if self._stopping.is_set():
            return Exit(-signal.SIGTERM)
        if self._guard is None:
            self._guard = containment.guard_of(self._order, self._rank, is_here=False, on_memory=self._on_memory)
        self._processes = Processes(self._log.path)
        if self._stopping.is_set():  # stop() came before they did
            return Exit(-signal.SIGTERM)
        return self._processes.run(command, self._folder, [ray_init.in_programs(envs) for envs in each])

    def _ending(self, what: str, code: int) -> Ending:
        if code == 0:
            return Ending(code=0)
        return Ending(f"{what} {_how(code)}{self._last_words()}", failures.event_of_code(code), code)

    def _last_words(self) -> str:
        with self._log.path.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - 4096))
            lines = log.read().decode(errors="replace").strip().splitlines()
        return f"; last line: {lines[-1][:300]}" if lines else ""


def _ray_ended(node: private_ray.RayNode) -> str:
    return f"a node of its own Ray ended by itself{node.last_words()}"


def _how(code: int) -> str:
    if code in failures.NEVER_BETTER:
        return f"exited with code {code}, as {failures.NEVER_BETTER[code]} does"
    if code >= 0:
        return f"exited with code {code}"
    return f"was ended by signal {signal.Signals(-code).name}"


def _address() -> str:
    return str(ray.util.get_node_ip_address())
