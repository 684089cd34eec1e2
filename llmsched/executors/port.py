"""The door: what control says to an executor, and what an executor reports back. Records only, no Ray.

`Orders` go out and are idempotent: launching what runs already adopts it, stopping what is gone succeeds.
`Observations` come in through the callback given to `start`, in any order, possibly twice; control turns them into
facts and the core ignores the stale ones. What they say is a workload's or Ray's: whoever takes them in makes every
field valid first (`sanitize.record`, by its type). An executor decides nothing and keeps no truth.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from llmsched.core.latency import Latency
from llmsched.sanitize import Output


@dataclass(frozen=True, slots=True)
class Member:
    """One bundle of an attempt, in rank order. Amounts as Ray counts them (GPUs may be fractional)."""

    rank: int
    node: str
    group: str = "workers"
    gpus: float = 0.0
    cpus: float = 0.0
    memory_bytes: int = 0
    custom: dict[str, float] = field(default_factory=dict)
    flavor: str | None = None


@dataclass(frozen=True, slots=True)
class LaunchOrder:
    """Start (or adopt) one attempt. `spec` is the user's workload spec as JSON data, with run:// sources resolved in
    `inputs` ({"run://sentiment": "<storage>/sentiment/0/artifact"})."""

    workload: str
    gang: str  # "sentiment/0"
    attempt: int
    epoch: int
    kind: str
    members: tuple[Member, ...]
    spec: dict[str, Any]
    storage: str  # root of the cluster's storage
    inputs: dict[str, str] = field(default_factory=dict)
    envs: dict[str, str] = field(default_factory=dict)  # with secret values: never logged, never journaled
    adapters: tuple[tuple[str, str], ...] = ()  # serve: (name, uri) published so far
    workdir: str | None = None  # uri of the packed workdir in storage
    grace_s: float = 120.0
    version: str = ""  # of llmsched where the order was written
    over_memory: str = "off"  # off | warn | end: a member that uses more memory than it asked for
    owner: str = ""  # the user: processes that hold nothing any more go on only to work of the same one

    @property
    def name(self) -> str:
        return f"llms/{self.gang}/{self.attempt}"


@dataclass(frozen=True, slots=True)
class StopOrder:
    """Let go of an attempt. mode: preempt (signal, checkpoint, stop) | drain (finish requests, stop) | stop."""

    gang: str
    attempt: int
    epoch: int
    kind: str
    mode: str
    grace_s: float

    @property
    def name(self) -> str:
        return f"llms/{self.gang}/{self.attempt}"


@dataclass(frozen=True, slots=True)
class AdapterOrder:
    gang: str
    attempt: int
    epoch: int
    name: str
    uri: str


@dataclass(frozen=True, slots=True)
class CommandOrder:
    """Run a person's command beside a rank of a running attempt, in its folder, on its node. `id` is of this run.

    `does`: run | what is done by hand: attach, terminal, forward, fetch, store (`runtime/by_hand.py`). By hand it says
    "begun", then "frames" (of `channels.py`: base64 with spaces between), and is told frames by CommandInput."""

    id: str
    gang: str
    attempt: int
    epoch: int
    kind: str
    rank: int
    argv: tuple[str, ...]
    timeout_s: float
    does: str = "run"

    @property
    def name(self) -> str:
        """Of the attempt."""
        return f"llms/{self.gang}/{self.attempt}"


@dataclass(frozen=True, slots=True)
class CommandInput:
    """A frame (base64) for what `order` has begun; answered by CommandTook once it is there."""

    order: CommandOrder
    frame: str


@dataclass(frozen=True, slots=True)
class DashboardOrder:
    """Ask the dashboard of a running attempt's own Ray, or, where `gang` is empty, the cluster's. Answered as a command
    is: stream "head" ({"status", "headers"} as JSON), then "body" (base64), and last CommandEnded with the code 0."""

    id: str
    gang: str
    attempt: int
    epoch: int
    path: str  # with its query
    headers: tuple[tuple[str, str], ...]

    @property
    def name(self) -> str:
        """Of the attempt."""
        return f"llms/{self.gang}/{self.attempt}"


@dataclass(frozen=True, slots=True)
class AskAnswer:
    """The answer (JSON) to what the work of an attempt asked for as `id`: see AskSeen."""

    gang: str
    attempt: int
    epoch: int
    id: str
    body: Output

    @property
    def name(self) -> str:
        """Of the attempt."""
        return f"llms/{self.gang}/{self.attempt}"


@dataclass(frozen=True, slots=True)
class RouteTable:
    """What the gateway must know. The last one given stands, also while the controller is away.

    models: {model id: {"workload", "name", "task", "kind": "model" | "app", "routing", "max_ongoing", "timeout_s",
             "hold_s", "replicas": [{"app": "llms/qwen/0/1", "model", "flavor"}], "adapters": {name: uri},
             "refused": {name: why no replica loads that adapter}, where there are any}}
    keys:   [{"id", "sha256", "models": the ids that it reaches, and no others, "expires": seconds since 1970 or None,
              "user"}], and what is not as usual of spec.endpoint_keys.Terms
    failed: {model id of an endpoint that has failed for good: the name of its workload}
    """

    version: int
    models: dict[str, dict[str, Any]]
    keys: list[dict[str, Any]]
    failed: dict[str, str] = field(default_factory=dict)


# --- observations -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Connected:
    """The cluster answers. `urls`: {"dashboard": ..., "endpoint": ...} as far as known; sent again when that changes.

    `nodes` are the ids of all that are alive: what the state knows beyond them is lost. Empty: not known."""

    cluster_id: str
    urls: dict[str, str] = field(default_factory=dict)
    nodes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Disconnected:
    """`is_insecure`: the cluster is there and lets in whoever asks, so nothing is started on it."""

    message: str
    is_insecure: bool = False


@dataclass(frozen=True, slots=True)
class NodeSeen:
    """An alive node; sent for every node at connect, when one joins and when it is another. Amounts are its totals.
    `leaving`: the cluster will take it away, at `leaves_at` where that is known (a stamp in seconds)."""

    node: str
    gpus: float
    cpus: float
    memory_bytes: int
    labels: dict[str, str] = field(default_factory=dict)
    custom: dict[str, float] = field(default_factory=dict)
    name: str = ""
    leaving: bool = False
    leaves_at: float | None = None


@dataclass(frozen=True, slots=True)
class NodeGone:
    node: str


@dataclass(frozen=True, slots=True)
class ForeignSeen:
    """All that Ray has given away on a node beyond what the members of attempts were ordered to hold."""

    node: str
    gpus: float
    cpus: float
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class ExcessSeen:
    """What of it an attempt has taken, all nodes at once; () when nothing any more."""

    gang: str
    attempt: int
    used: tuple[ForeignSeen, ...]


@dataclass(frozen=True, slots=True)
class LaunchAsked:
    """The cluster is asked to start the attempt now; `at` is the wall clock of the executor's machine, in seconds."""

    gang: str
    attempt: int
    at: float


@dataclass(frozen=True, slots=True)
class AskSeen:
    """The work of an attempt asks for something (JSON; `runtime/ask.py` says what there is). Told until it is answered
    by AskAnswer, once by each bridge."""

    gang: str
    attempt: int
    id: str
    body: Output


@dataclass(frozen=True, slots=True)
class Started:
    """Works now: the loop's first line, the replica's readiness. `took`: seconds of a replica's start, by the steps of
    runtime/start_costs.py."""

    gang: str
    attempt: int
    took: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NotStarted:
    """event: no-capacity | interruption | error | input (what the user gave cannot work: never tried again)"""

    gang: str
    attempt: int
    event: str
    message: str


@dataclass(frozen=True, slots=True)
class Progress:
    """Numbers and short strings for people: step, total_steps, loss, epoch, phase, eval.accuracy ..."""

    gang: str
    attempt: int
    data: dict[str, Any]


@dataclass(frozen=True, slots=True)
class CheckpointSeen:
    gang: str
    attempt: int
    step: int
    fraction: float | None = None


@dataclass(frozen=True, slots=True)
class Ended:
    """From the exit receipt, or when there is none and the attempt was told to stop: outcome "released".

    outcome: succeeded | failed | released. `event` classifies a failure: error | interruption | input."""

    gang: str
    attempt: int
    outcome: str
    message: str = ""
    event: str = "error"
    artifact: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Vanished:
    """Gone without a receipt. `by_others`: taken away by somebody, so it does not count against its retries."""

    gang: str
    attempt: int
    message: str = ""
    by_others: bool = False


@dataclass(frozen=True, slots=True)
class Stalled:
    """It is there and does not move: a stuck rank, a stopped process. `message` says it; empty: it moves again."""

    gang: str
    attempt: int
    message: str


@dataclass(frozen=True, slots=True)
class ResizeDone:
    gang: str
    attempt: int
    size: int


@dataclass(frozen=True, slots=True)
class AdapterAnswer:
    gang: str
    attempt: int
    name: str
    uri: str
    message: str = ""  # empty: loaded


@dataclass(frozen=True, slots=True)
class LoadSeen:
    """`latencies`: what was measured since the last one was sent."""

    workload: str
    ongoing: float
    queued: float
    latencies: tuple[Latency, ...] = ()

    @property
    def counts(self) -> tuple[float, float]:
        return self.ongoing, self.queued


@dataclass(frozen=True, slots=True)
class KeyUse:
    """Of one day (since 1970): requests, and tokens of prompts, of answers, and of prompts that were not read again."""

    day: int
    key: str
    user: str
    model: str
    requests: int
    prompt: int
    completion: int
    cached: int


@dataclass(frozen=True, slots=True)
class KeyUsageSeen:
    """All that keys have used of models through one gateway on those days, where it has grown."""

    gateway: str
    rows: tuple[KeyUse, ...]


@dataclass(frozen=True, slots=True)
class EndpointSeen:
    """Whether the gateway answers: "", or what is wrong with it. Sent when that changes. `places`: (host, port) of
    each, where there are several, the one that serves first."""

    trouble: str
    places: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class CommandSaid:
    """What a command wrote. stream: stdout | stderr, by hand begun | frames, and of a dashboard head | body. Only for
    whoever asked: no observation of the cluster."""

    id: str
    stream: str
    text: Output


@dataclass(frozen=True, slots=True)
class CommandTook:
    """`count` frames have arrived where they were to."""

    id: str
    count: int


@dataclass(frozen=True, slots=True)
class CommandEnded:
    """The last of it. `code` None: it did not end by itself, `message` says why."""

    id: str
    code: int | None
    message: str = ""


FRAMES_AT_ONCE = 16
CommandAnswer = CommandSaid | CommandTook | CommandEnded
Hear = Callable[[CommandAnswer], None]
Observation = (
    Connected
    | Disconnected
    | NodeSeen
    | NodeGone
    | ForeignSeen
    | ExcessSeen
    | LaunchAsked
    | AskSeen
    | Started
    | NotStarted
    | Progress
    | CheckpointSeen
    | Ended
    | Vanished
    | Stalled
    | ResizeDone
    | AdapterAnswer
    | LoadSeen
    | KeyUsageSeen
    | EndpointSeen
)
Deliver = Callable[[Observation], None]


class Executor(Protocol):
    """Every method returns once the order is on its way; results arrive as observations. Raises ClusterError."""

    async def start(self, deliver: Deliver, epoch: int) -> None:
        """Connect, then deliver Connected and a NodeSeen for every node; again after every reconnect.

        From now on orders of an epoch below this one change nothing."""

    async def adopt(self, live: Sequence[tuple[LaunchOrder, bool]]) -> None:
        """After start or reconnect: (order, was_running) of every attempt the state believes in.

        Each is answered with Started, Ended or Vanished (one that did not run yet may be launched); whatever of ours
        runs and is not in the list is reaped.
        """

    async def launch(self, order: LaunchOrder) -> None: ...

    async def resize(self, order: LaunchOrder) -> None:
        """Make the running attempt hold `order.members`; answered by ResizeDone, or Vanished."""

    async def stop(self, order: StopOrder) -> None: ...

    async def load_adapter(self, order: AdapterOrder) -> None: ...

    async def answer(self, answer: AskAnswer) -> None:
        """To the work that asked. One that is gone hears nothing."""

    async def execute(self, order: CommandOrder, hear: Hear) -> None:
        """Run it; `hear` is called with what it says, and last, exactly once, with CommandEnded."""

    async def ask_dashboard(self, order: DashboardOrder, hear: Hear) -> None:
        """`hear` is called with what it answers, and last, exactly once, with CommandEnded."""

    async def tell_command(self, told: CommandInput) -> None:
        """Hand it on. No more than FRAMES_AT_ONCE of one command may be without their CommandTook."""

    async def end_command(self, order: CommandOrder | DashboardOrder) -> None:
        """Nobody listens any more: end it, if it still runs."""

    async def route(self, table: RouteTable) -> None: ...

    async def request_capacity(self, bundles: Sequence[tuple[dict[str, float], dict[str, str], int]]) -> None:
        """(resources, label selector, count) the cluster should be able to hold; () withdraws."""

    async def close(self, *, stop_everything: bool = False) -> None:
        """Leave Ray as it is, or (stop_everything) first take down all that is ours, the gateway included."""
