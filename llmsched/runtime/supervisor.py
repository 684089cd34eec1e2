"""One actor per attempt: it runs the work, answers for it, and leaves a receipt that outlives everybody.

Detached, on the head node, never restarted, takes no CPU. Neither the bridge nor the controller need to live for it to
go on; they look it up by name and ask for `status`. It knows the life of one attempt (`attempt.py` draws the line) and
nothing of how a kind does its work. The outcome is written to the storage, once, before anybody is told. Start reading
at `Supervisor._live`.
"""

from __future__ import annotations

import importlib
import json
import os
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from typing import Any, cast

import ray
from ray.util.metrics import Gauge

from llmsched import crossings, sanitize
from llmsched.runtime import deaths, execute, pulse, receipt, redaction
from llmsched.runtime.ask_desk import AskDesk
from llmsched.runtime.attempt import CLOSE_WITHIN_S, Attempt, Outcome
from llmsched.runtime.command_worker import Ask
from llmsched.runtime.commands import Commands
from llmsched.runtime.crew import Crew
from llmsched.runtime.health import Health, Look, Pulse
from llmsched.runtime.inactivity import SHORTEST_TOLD_S, Inactivity
from llmsched.runtime.ranks import Ranks
from llmsched.runtime.storage import Storage
from llmsched.runtime.tracking import Tracking

_LAST_WORDS_BYTES = 16 * 1024
_HEALTH_EVERY_S = 2.0
_LOOK_WITHIN_S = 10.0
_ASKED_WITHIN_S = 30.0
LINGER_S = 120.0  # after the end, for a bridge that is being restarted
FORCED = "ended by force: it had not left when its grace was over"

clock = time.monotonic  # of health

# What runs each kind. Imported when it is needed: a task need not wait for Ray Train.
_KINDS = {
    "train": ("llmsched.runtime.train_attempt", "TrainAttempt"),
    "task": ("llmsched.runtime.task_attempt", "TaskAttempt"),
    "ray": ("llmsched.runtime.ray_attempt", "RayAttempt"),
    "batch": ("llmsched.runtime.batch_attempt", "BatchAttempt"),
    "tune": ("llmsched.runtime.tune_attempt", "TuneAttempt"),
}


class Supervisor:
    """`order` is the LaunchOrder as JSON; `end_process` ends the actor. `crew` keeps the workers that this attempt
    leaves to the next one; without it, it leaves none. Methods are called from several threads."""

    def __init__(self, order: str, end_process: Callable[[int], object] = os._exit, crew: Crew | None = None) -> None:
        self.order: dict[str, Any] = json.loads(order)
        self.crew = crew
        self._end_process = end_process  # `exit_actor` works only inside a method
        redaction.hide(self.order)
        self.name = f"llms/{self.order['gang']}/{self.order['attempt']}"
        self.storage = Storage.at(self.order["storage"])
        self._lock = threading.Lock()
        self._progress: dict[str, Any] = {}
        self._checkpoint: list[Any] | None = None
        self._gauges: dict[str, Gauge] = {}
        self._commands = Commands()
        self._asks = AskDesk()
        self._receipt: receipt.Receipt | None = None
        self._next_members: list[dict[str, Any]] | None = None
        self._changing = threading.Lock()
        self.resizes = 0
        self._is_clear = False
        self._tracking = Tracking(self.order, self.storage, self._beside_worker_0)
        self._try_anew()
        threading.Thread(target=self._live, daemon=True).start()
        threading.Thread(target=self._watch_health, daemon=True).start()

    def _try_anew(self) -> None:
        """Everything that is of one try only."""
        self.ranks = Ranks()
        self._health = Health()
        self._stalled = ""
        self.left = threading.Event()  # set when the work has let go of everything
        self._attempt: Attempt | None = None
        self._has_begun = False
        self._stop_mode = ""
        self._stop_at = 0.0  # monotonic: when patience ends
        self._inactivity: Inactivity | None = None
        self._unused = ""  # why it is asked to leave although nobody asks for its place
        self._failed_as: Outcome | None = None  # when it was us who saw that nothing more can come of it

    # -- asked by the bridge -------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """Plain data: started, progress, checkpoint [step, fraction], stalled (in words), receipt or None. `is_clear`:
        nothing is left of the size before this one. `leaves`: it has ended, and another attempt may have its
        processes."""
        with self._lock:
            return {
                "attempt": self.order["attempt"],
                "epoch": self.order["epoch"],
                "started": self._has_begun,
                "size": len(self.order["members"]),
                "is_clear": self._is_clear,
                "stopping": self._stop_mode,
                "progress": dict(self._progress),
                "checkpoint": self._checkpoint,
                "stalled": self._stalled,
                "asks": self._asks.waiting(),
                "receipt": None if self._receipt is None else asdict(self._receipt),
                "leaves": self._receipt is not None and self.crew is not None and self.crew.is_there,
            }

    def stop(self, mode: str, grace_s: float) -> None:
        """preempt, drain and stop alike: ask the work to leave, and end it by force after `grace_s` seconds.

        What has not begun has nothing to save and is ended at once. Asking again can only shorten the grace.
        """
        with self._lock:
            grace_s = grace_s if self._has_begun else 0.0
            until = time.monotonic() + max(0.0, grace_s)
            self._stop_at = min(self._stop_at, until) if self._stop_mode else until
            is_first, self._stop_mode = not self._stop_mode, mode
        if is_first:
            threading.Thread(target=self._see_it_leave, daemon=True).start()

    def resize(self, members: str, grace_s: float) -> None:
        """Hold these members (JSON) instead: the loop saves and leaves, and begins again from there at the new size.

        One that does not leave within the grace is ended and goes back to its last checkpoint; a task begins again. A
        kind that can goes on as it is.
        """
        wanted = json.loads(members)
        with self._lock:
            attempt, self._next_members = self._attempt, wanted
            is_at_work = self._has_begun and not self._stop_mode
        if attempt is not None and is_at_work and attempt.can_become(wanted):
            threading.Thread(target=self._become, args=(attempt, wanted, grace_s), daemon=True).start()
        else:
            self.stop("resize", grace_s)

    def _become(self, attempt: Attempt, wanted: list[dict[str, Any]], grace_s: float) -> None:
        with self._changing:  # one change after the other; what is asked meanwhile is told by the last
            if self._next_members is not wanted:
                return
            is_done = False
            try:
                is_done = attempt.become(wanted, grace_s)
            except Exception:
                traceback.print_exc()
            if is_done:
                with self._lock:
                    self.order["members"] = wanted
                    self.resizes += 1
                    self._next_members = None if self._next_members is wanted else self._next_members
                return
        self.stop("resize", grace_s)

    def lost_node(self, node: str) -> None:
        """A node is gone. Whoever works there, or is about to, is ended now: nothing would come of waiting."""
        with self._lock:
            members = [*self.order["members"], *(self._next_members or ())]
        if any(member["node"] == node for member in members):
            self._fail(Outcome("failed", f"its node {node_name(node)} went away", "interruption"))

    def dismiss(self) -> None:
        """The receipt has been read: the actor may leave. Without an end yet, it stays."""
        if self._receipt is not None:
            ray.actor.exit_actor()

    def execute(self, command: str, rank: int, ask: Ask) -> Iterator[execute.Said]:
        """Do what a person asks where rank `rank` runs. `command` is its id, for `take` and `end_command`."""
        place = self.ranks.place_of(rank)
        if place is None or not self._has_begun or self._stop_mode or self.left.is_set():
            yield "end", f"rank {rank} is not at work just now", None
            return
        yield from self._commands.run(command, self.order, place, ask)

    def take(self, command: str, frames: list[bytes]) -> None:
        """What whoever asked for it sends."""
        self._commands.take(command, frames)

    def ray_head(self) -> Any:
        """Of a `kind: ray` gang whose Ray is up: the worker that answers for it. Else None."""
        head = getattr(self._attempt, "head", None)
        return head() if head is not None else None

    def end_command(self, command: str) -> None:
        self._commands.end(command)

    def end_commands(self, but: list[str]) -> None:
        """End those that nobody listens to any more: all but these."""
        self._commands.end_all_but(but)

    def answered(self, id: str, body: str) -> None:
        """What its work asked for as `id`."""
        self._asks.answered(id, body)

    # -- told by the workers -------------------------------------------------------------------------------------

    def launch_order(self) -> str:
        return json.dumps(self.order)

    def begin(self) -> None:
        self._has_begun = True
        interactive = self.order["spec"].get("task", {}).get("interactive")
        if interactive:
            self._inactivity = Inactivity(float(interactive["inactivity"]), clock())

    def works_in(self, rank: int, node: str, folder: str, envs: dict[str, str], pid: int = 0) -> None:
        self.ranks.works_in(rank, node, folder, envs, pid)

    def exits(self, rank: int, code: int) -> None:
        """A rank is about to leave by os._exit: it will say nothing more."""
        self.ranks.exits[rank] = code

    def report(self, values: dict[str, Any]) -> None:
        valid = sanitize.data(values) if isinstance(values, dict) else {}
        with self._lock:
            self._health.reported(clock())
            known = crossings.merged(self._progress, valid)
            self._progress = {name: known[name] for name in list(known)[: sanitize.ITEMS_AT_MOST]}
        for name in ("step", "total_steps", "loss"):
            if isinstance(valid.get(name), (int, float)):
                self._gauge(name).set(valid[name], {"workload": self.order["workload"]})

    def beat(self, rank: int, said: Pulse) -> None:
        """A rank's sign of life."""
        with self._lock:
            self._health.heard(rank, said, clock())
            if self._inactivity is not None:
                self._inactivity.computed(rank, said.cpu_s, clock())

    def checkpointed(self, step: int, fraction: float | None = None) -> None:
        self._checkpoint = [sanitize.whole(step), None if fraction is None else sanitize.finite(fraction)]

    def should_stop(self) -> bool:
        return self.is_leaving

    def ask(self, id: str, body: str) -> str | None:
        return self._asks.ask(id, body)

    def stopped(self, step: int | None) -> None:
        """A rank left because it was asked to, after saving step `step`."""
        self.ranks.stopped(None if step is None else sanitize.whole(step))

    def finished(self, rank: int) -> None:
        """A rank came to the end of its work."""
        self.ranks.finished(rank)

    def failed(self, rank: int, message: str, event: str) -> None:
        """A rank raised. event: error | input | interruption (only because another one went away)."""
        self.ranks.failed(rank, sanitize.text(message), event)

    # -- told by Ray's own actors, and by the attempt ------------------------------------------------------------

    def controlled_by(self, controller: Any) -> None:
        if self._attempt is not None:
            self._attempt.controlled_by(controller)

    def of_death(self, rank: int, error: BaseException | str) -> deaths.Death:
        place = self.ranks.places.get(rank)
        node = place.node if place else self.order["members"][rank]["node"]
        log = ""
        with suppress(Exception):
            key = f"{self.order['gang']}/{self.order['attempt']}/logs/{rank}.log"
            log = self.storage.read(key)[-_LAST_WORDS_BYTES:].decode(errors="replace")
        known = deaths.Known(node_name(node), place.pid if place else 0, self.ranks.exits.get(rank), log)
        return deaths.explain(f"rank {rank}", error if isinstance(error, str) else deaths.words_of(error), known)

    @property
    def is_leaving(self) -> bool:
        return bool(self._stop_mode)

    @property
    def is_unused(self) -> bool:
        return bool(self._unused)

    # -- the life of the attempt ---------------------------------------------------------------------------------

    def _live(self) -> None:
        end = self._try()
        while self._begin_again(end):
            end = self._try()
        self._tracking.end(end.outcome, self._stop_mode)
        self._write_receipt(end)
        time.sleep(LINGER_S)
        self._end_process(0)  # nobody came for it

    def _try(self) -> Outcome:
        """Run once, from wherever the last checkpoint is, and let go of everything."""
        try:
            receipt.note_beginning(self.storage, self.order)
            if not self.resizes:
                self.order["envs"] = {**self.order["envs"], **self._tracking.begin()}
            self._attempt = _attempt_of(self)
            if self.is_leaving:
                raise Outcome("released", "stopped before it began")
            self._attempt.run()
            end = Outcome("succeeded", self._unused)
        except Outcome as found:
            end = found
        except BaseException as error:
            traceback.print_exc()
            end = Outcome("failed", f"{type(error).__name__}: {sanitize.first_line(error)}", "interruption")
        end = self._judged(end)
        if self._attempt is not None:
            # What is ended by force has its children ended after it, by guardians that nobody waits for.
            may_leave_some = end.message == FORCED and (self._has_begun or bool(self.ranks.places))
            self._is_clear = self._attempt.let_go() and not may_leave_some
        if self.crew is not None and self.crew.is_there and self._commands.close():
            self.crew.end()  # what people still do beside it is of this attempt
        self.left.set()
        return end

    def _judged(self, end: Outcome) -> Outcome:
        """What it means that the work ended so, after what we did to it."""
        if end.outcome == "succeeded":
            return end
        if self._unused and not self._stop_mode:
            return Outcome("succeeded", self._unused)
        if self._stop_mode not in ("", "resize"):
            return Outcome("released", FORCED) if end.outcome == "failed" else end
        if self._failed_as is not None:
            return self._failed_as
        return Outcome("released", FORCED) if self._stop_mode and end.outcome == "failed" else end

    def _fail(self, end: Outcome) -> None:
        """End the work as failed: it cannot go on, and does not know it."""
        with self._lock:
            is_first, self._failed_as = self._failed_as is None, self._failed_as or end
            attempt = self._attempt
        if is_first and attempt is not None:
            threading.Thread(target=attempt.end, daemon=True).start()

    def _watch_health(self) -> None:
        """While a try works: look at ranks that say nothing, say what does not move, and end it when it never will."""
        while self._receipt is None:
            time.sleep(_HEALTH_EVERY_S)
            if self.is_leaving or not self._has_begun or self.left.is_set():
                continue  # its grace, or the time to place it, bounds it
            self._look_whether_used()
            health, finished = self._health, self.ranks.finished_ranks
            now = clock()
            with self._lock:
                for rank in self.ranks.places.keys() - health.ranks.keys():
                    health.heard(rank, Pulse(), now)  # it works: from here on silence tells
                silent = health.silent(finished, now)
            looks = self._look_at(silent) if silent else {}
            with self._lock:
                for rank in silent:
                    health.looked(rank, looks.get(rank), clock())
            with self._lock:
                verdict = health.verdict(finished, clock())
                if health is self._health:
                    self._stalled = sanitize.text(verdict.message) if verdict else ""
            if verdict and verdict.event and health is self._health:
                self._fail(Outcome("failed", verdict.message, verdict.event))

    def _look_whether_used(self) -> None:
        """Nobody does for longer than its spec allows: it is asked to leave."""
        if (inactivity := self._inactivity) is None or self._unused:
            return
        with self._lock:
            inactivity.used(self._commands.used_at)
            lasts = inactivity.lasts_s(clock())
            self._progress.pop("unused_s", None)
            if lasts >= SHORTEST_TOLD_S:
                self._progress["unused_s"] = round(lasts)
            if not inactivity.is_over(clock()):
                return
            self._unused = f"ended by itself: nobody has used it for {_in_words(inactivity.most_s)}"
        threading.Thread(target=self._end_unused, args=(self._attempt,), daemon=True).start()

    def _end_unused(self, attempt: Attempt | None) -> None:
        if attempt is not None:
            attempt.ask_to_leave(self.order["grace_s"])
            if not self.left.wait(self.order["grace_s"] + CLOSE_WITHIN_S):
                attempt.end()

    def _look_at(self, ranks: list[int]) -> dict[int, Look]:
        """From their nodes, all at once; without those whose node does not answer."""
        with ExitStack() as stack:
            places = [(rank, self.ranks.places[rank]) for rank in ranks if rank in self.ranks.places]
            asked = {stack.enter_context(_called(pulse.look, place.node, place.pid)): rank for rank, place in places}
            done, _ = ray.wait([*asked], num_returns=len(asked), timeout=_LOOK_WITHIN_S) if asked else ([], [])
            found: dict[int, Look] = {}
            for one in done:
                with suppress(Exception):  # it is gone: Ray will say so
                    found[asked[one]] = ray.get(one)
        return found

    def _beside_worker_0(self, function: Callable[..., Any], *arguments: Any, within_s: float = _ASKED_WITHIN_S) -> Any:
        """Call it where the work runs, with what the work may reach. Raises what it and Ray raise."""
        with _called(function, self.order["members"][0]["node"], *arguments) as answer:
            return ray.get(answer, timeout=within_s)

    def _begin_again(self, end: Outcome) -> bool:
        """True when it only left to change its size."""
        with self._lock:
            if self._stop_mode != "resize" or end.outcome != "released" or self._next_members is None:
                return False
            self.order["members"], self._next_members = self._next_members, None
            self.resizes += 1
            self._try_anew()
            return True

    def _see_it_leave(self) -> None:
        """Ask it to leave, wait until its grace is over, and end it by force."""
        left, attempt = self.left, self._attempt
        if attempt is None:  # it sees by itself that it need not begin
            left.wait(CLOSE_WITHIN_S)
            attempt = self._attempt
        if attempt is not None:
            attempt.ask_to_leave(max(0.0, self._stop_at - time.monotonic()))
        while time.monotonic() < self._stop_at:
            if left.wait(0.1):
                return
        if attempt is not None:
            attempt.end()
        if left.is_set():
            return
        # Ray does not end it: say how it stands and take it down with us.
        if attempt is not None:
            attempt.let_go()
        self._write_receipt(Outcome("released", FORCED))
        self._end_process(0)

    def _write_receipt(self, end: Outcome) -> None:
        """Durable first, then told."""
        said = {
            "outcome": end.outcome,
            "message": end.message,
            "event": end.event,
            "step": end.step if end.step is not None else self._progress.get("step"),
            "attempt": self.order["attempt"],
            "epoch": self.order["epoch"],
            "started": self._has_begun or self.resizes > 0,
            "asked": self._stop_mode,
            "progress": dict(self._progress),
        }
        written = receipt.write(self.storage, self.order, receipt.of(said))
        with self._lock:
            self._receipt = self._receipt or written

    def _gauge(self, name: str) -> Gauge:
        """What Ray's metrics show of the run, as llmsched_train_step and the like."""
        if name not in self._gauges:
            self._gauges[name] = Gauge(f"llmsched_train_{name}", f"Progress: {name}", tag_keys=("workload",))
        return self._gauges[name]


def _in_words(seconds: float) -> str:
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


class _Once:
    """An actor for one call."""

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)


@contextmanager
def _called(function: Callable[..., Any], node: str, *arguments: Any) -> Iterator[Any]:
    """The answer to come, of a call there that takes no resources. By an actor: for a task Ray may start a second
    process, which bears the mark of this attempt and stays, as nobody else may have it."""
    once = ray.remote(num_cpus=0, max_restarts=0)(_Once).options(label_selector={"ray.io/node-id": node}).remote()
    try:
        yield once.call.remote(function, *arguments)
    finally:
        ray.kill(once)


def node_name(node: str) -> str:
    """Of a node's id, as people call it; also of one that is gone."""
    with suppress(Exception):
        for one in ray.nodes():
            if one["NodeID"] == node:
                return str((one.get("Labels") or {}).get("llmsched.io/name") or one.get("NodeManagerHostname") or node)
    return node[:12]


def _attempt_of(life: Supervisor) -> Attempt:
    kind = life.order["kind"]
    if kind not in _KINDS:
        raise Outcome("failed", f"kind {kind!r} cannot be run yet", "input")
    module, name = _KINDS[kind]
    return cast(Attempt, getattr(importlib.import_module(module), name)(life))
