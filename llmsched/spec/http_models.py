"""Answers of the controller over HTTP: one model a noun, used by api, control, client and cli.

They ignore unknown keys, so that an older client can read a newer controller; requests (http_requests.py) refuse them.
Stamps are seconds since 1970, GPUs and CPUs are counted as people count them (0.5 is half a GPU), memory in bytes.
`--json` of the command line prints exactly these. Knows nothing of State: `api/views.py` fills the models in.

A spec travels as the JSON of its kind. A `workdir` that is a folder of the user's machine is packed by the client and
arrives as "sha256:<64 hex digits>", the name of the zip that was uploaded before; so a changed file is a changed spec.
"""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ModelWrapValidatorHandler, ValidationError, model_validator

from llmsched import sanitize

Phase = Literal["waiting", "starting", "running", "resizing", "stopping", "succeeded", "failed", "cancelled"]
ENDED: tuple[Phase, ...] = ("succeeded", "failed", "cancelled")
GROUPS = ("active", "waiting", "ended")


def group_of(phase: str) -> str:
    """In which list of its own a workload stands."""
    return "waiting" if phase == "waiting" else "ended" if phase in ENDED else "active"


Scalar = float | int | str | bool | None
WORKDIR_PREFIX = "sha256:"
WORKDIR_FILES_AT_MOST = 50_000


class Reply(BaseModel):
    """Fills in whatever it is given: what a field would refuse, such as text that is none, is made valid and shown."""

    model_config = ConfigDict(extra="ignore", defer_build=True)  # a command needs a few of the hundred

    @model_validator(mode="wrap")
    @classmethod
    def _show_all_the_same(cls, data: Any, fill_in: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return fill_in(data)
        except ValidationError:
            return fill_in(sanitize.data(data))


# --- amounts and reasons ----------------------------------------------------------------------------------------


class Amounts(Reply):
    gpus: float = 0.0
    cpus: float = 0.0
    memory_bytes: int = 0
    custom: dict[str, float] = {}


class Sentence(Reply):
    """`text` is for people. `args` fill the sentence of that `code`: {"kind", "name"} refers to something, whose name
    is null for who may not see it."""

    code: str
    args: dict[str, Any] = {}
    text: str


class ReasonView(Reply):
    """Why something waits. `counts`: filter -> number of nodes (or bundles) it refused. `message` is the sentence
    `detail` with its `args`, which are those of a Sentence."""

    code: str
    detail: str = ""  # which sentence of that code
    args: dict[str, Any] = {}
    message: str
    counts: dict[str, int] = {}
    next_change: str = ""  # the smallest change that would start it
    eta: float | None = None
    eta_basis: str = ""


class PlacedView(Reply):
    """The bundles of one gang on one node."""

    node: str
    name: str  # of the node, for people
    flavor: str | None = None
    bundles: int = 1
    gpus: float = 0.0


# --- workloads --------------------------------------------------------------------------------------------------


class GangView(Reply):
    id: str
    status: str
    size: int
    attempt: int
    restarts: int = 0
    gpus: float = 0.0  # held now
    placement: list[PlacedView] = []
    queued_since: float | None = None
    launched_at: float | None = None
    started_at: float | None = None
    message: str = ""
    stalled: str = ""  # why it does not move, though it runs
    reason: ReasonView | None = None
    progress: dict[str, Scalar] = {}


class NoticeView(Reply):
    """A message about a workload, by webhook. `to`: the host, or the secret that holds the address."""

    event: str
    to: str
    outcome: str  # to send, sent, given up
    tries: int = 0
    error: str = ""  # of the last try
    due: float | None = None  # of the next try


class WorkloadView(Reply):
    id: str  # "name@2" for run 2
    name: str
    run: int = 1
    kind: str
    queue: str
    user: str = ""
    parent: str = ""  # the id of the run that asked for it
    labels: dict[str, str] = {}
    may_change: bool = False  # whoever asks may cancel and scale it
    priority: int = 50
    phase: Phase
    message: str = ""
    submitted_at: float
    finished_at: float | None = None
    next_run_at: float | None = None  # when its schedule is due next
    size: int = 0  # bundles now; serve: replicas that answer
    min_size: int = 1  # serve: fewest replicas
    max_size: int = 1
    wanted: int | None = None  # serve: replicas wanted now
    revision: int | None = None  # serve: of its spec and model, from 1
    answered: int | None = None  # serve: the newest revision of which a replica has answered
    back_to: list[int] = []  # serve: revisions that `rollback` can go back to, the last first
    gpus: float = 0.0  # held now, all gangs
    restarts: int = 0
    reason: ReasonView | None = None
    progress: dict[str, Scalar] = {}
    artifact: str | None = None
    metrics: dict[str, float] = {}
    gangs: list[GangView] = []
    notices: list[NoticeView] = []  # of one workload that was asked for by name

    @property
    def ended(self) -> bool:
        return self.phase in ENDED

    @property
    def is_settled(self) -> bool:
        """Nothing more to wait for: it has ended, serves with the replicas it has to have, or has answered all that its
        input, which it follows, holds so far."""
        if self.phase != "running":
            return self.ended
        return self.kind == "serve" or (self.kind == "batch" and self.progress.get("backlog") == 0)


class WorkloadList(Reply):
    """`counts` says how many there are of each phase, also of those that are not on this page. Each of `next` is the
    cursor of a group of which there are more."""

    workloads: list[WorkloadView]
    counts: dict[Phase, int] = {}
    next: list[str] = []
    seq: int  # of the last entry these were read at; /events?after=seq misses nothing


class Applied(Reply):
    """The answer to apply: committed."""

    id: str
    name: str
    run: int = 1
    kind: str
    outcome: Literal["created", "changed", "unchanged"]
    phase: Phase = "waiting"
    diff: list[str] = []  # "train.lora.r: 8 -> 16"
    serves: str = (
        ""  # of an endpoint: the task of its model (causal-lm ...), "app", or "prefill" of one that answers nobody
    )
    rolls_out: bool = False  # an endpoint whose replicas are replaced; a change of their number alone is made in place


class AppliedList(Reply):
    applied: list[Applied]


class Planned(Reply):
    """What would happen now to one workload of the file. Totals are over all bundles (serve: all replicas)."""

    id: str
    name: str
    kind: str
    queue: str
    outcome: Literal["created", "changed", "unchanged", "refused"] = "created"
    diff: list[str] = []
    rolls_out: bool = False
    in_place: bool = False  # changed, and what runs goes on as it is
    min_size: int = 1
    max_size: int = 1
    each: Amounts = Field(default_factory=Amounts)  # what ONE worker or replica gets
    at_min: Amounts = Field(default_factory=Amounts)
    at_max: Amounts = Field(default_factory=Amounts)
    starts_now: bool = False
    size: int = 0  # it would start with (serve: replicas that would start)
    placement: list[PlacedView] = []
    reason: ReasonView | None = None  # why it would wait, or why it is refused
    others: list[Sentence] = []  # whose work would shrink or wait
    memory_needed_bytes: int | None = None  # a worker's model, as far as it is known
    reads: list[str] = []  # of a batch and a search: how much it is; what was noticed in the first rows of data
    warnings: list[str] = []


class PlannedList(Reply):
    planned: list[Planned]


class GangWhy(Reply):
    gang: str
    status: str
    reason: ReasonView | None = None
    text: str = ""  # why it runs where it does, or the reason's message


class WhyView(Reply):
    """Why it waits; when nothing waits, why it runs where it runs, or how it ended."""

    id: str
    phase: Phase
    since: float | None = None  # it has been in this phase
    reason: ReasonView | None = None
    text: str
    gangs: list[GangWhy] = []
    scaling: list[Sentence] = []  # of an endpoint: who does not read its prompts, its target, forecast and last replica


class Finding(Reply):
    """One thing that slows it, and what to do. `code` is stable."""

    code: str
    message: str
    advice: str = ""


class DiagnosisView(Reply):
    """`numbers` is what was measured, `unknown` what nobody measured: no finding does not mean that all is well."""

    id: str
    phase: Phase
    text: str
    findings: list[Finding] = []
    numbers: dict[str, Scalar] = {}
    unknown: list[str] = []


class StoryLine(Reply):
    seq: int
    at: float
    kind: str  # the entry's type: "Submitted", "Launch", ...
    gang: str | None = None
    code: str = ""  # and `args`, `text`: of a Sentence
    args: dict[str, Any] = {}
    text: str


class StoryView(Reply):
    """`earlier`: there is more, before this entry. `compacted`: what was before is not kept any more."""

    id: str
    lines: list[StoryLine]
    earlier: int | None = None
    compacted: bool = False


class LogLine(Reply):
    """One line of one rank's log; `note` marks what llmsched itself says about the stream."""

    gang: str
    attempt: int
    rank: int
    text: str
    note: bool = False


class ExecLine(Reply):
    """A piece of what a command wrote, as it came; the last has stream "end".

    There `exit_code` is the command's own (126, 127: it could not be run, 128 + N: signal N ended it), or null when
    llmsched ended it, and then `text` says why.
    """

    stream: Literal["stdout", "stderr", "end"]
    text: str = ""
    exit_code: int | None = None


class EventView(Reply):
    """One journal entry. `text` is for people, `data` the entry itself, without the specs in it."""

    seq: int
    at: float
    kind: str
    workload: str | None = None
    gang: str | None = None
    text: str
    data: dict[str, Any] = {}


class WorkdirStored(Reply):
    sha256: str
    size_bytes: int
    known: bool  # it had been uploaded before


# --- the cluster ------------------------------------------------------------------------------------------------


class QuotaView(Reply):
    flavor: str  # "*": every flavor
    nominal: float
    borrowing_limit: float | None = None
    lending_limit: float | None = None
    used: float = 0.0


class QueueView(Reply):
    name: str
    cohort: str | None = None
    weight: float = 1.0
    quotas: list[QuotaView] = []  # []: all of the cluster may be used
    gpus_used: float = 0.0
    waiting: int = 0  # workloads
    active: int = 0  # workloads that hold something


class QueueList(Reply):
    queues: list[QueueView]


class ReservationView(Reply):
    """A reservation and its present or next window, [opens, closes). `nodes`: where it lies as things are now.
    `found`: how many of its GPUs it has there; null for one of whole nodes, and when it is over."""

    name: str
    state: Literal["coming", "open", "over"]
    opens: float | None = None
    closes: float | None = None
    repeat: str | None = None  # cron, UTC
    queue: str | None = None
    users: list[str] = []
    flavor: str | None = None
    gpus: float = 0.0
    found: int | None = None
    nodes: list[str] = []
    by: str = ""  # who made it with `llmsched reserve`; "": it stands in the cluster file


class ReservationList(Reply):
    reservations: list[ReservationView]


class ConfigView(Reply):
    """The configuration in force: a cluster file as JSON, which `configure` takes again. Reservations made by command
    are not in it."""

    version: int
    configuration: dict[str, Any]


class SecretView(Reply):
    """A secret without its value, which nothing ever shows."""

    name: str
    shared: bool = False
    set_by: str = ""
    set_at: float


class SecretList(Reply):
    secrets: list[SecretView]


class PublishedView(Reply):
    """Where a version is live, or was until another took its place under that name."""

    to: str
    kind: str  # adapter | model
    name: str
    at: float


class ModelVersion(Reply):
    """A result of a train workload, and what it was made of. `source` is how a spec names it."""

    name: str
    version: int
    source: str
    workload: str  # the run that made it
    user: str = ""
    made_at: float
    artifact: str
    metrics: dict[str, float] = {}
    base_model: str | None = None
    loop: str | None = None  # of one's own, in place of base_model
    task: str | None = None
    method: str | None = None
    data: list[str] = []
    made_from: list[str] = []  # runs whose results it read, or came after
    spec_sha256: str
    workdir_sha256: str | None = None
    published: list[PublishedView] = []


class ModelList(Reply):
    """`next` is the cursor of the following page, if there is one."""

    models: list[ModelVersion]
    next: str | None = None


class Pulled(Reply):
    """A model that was fetched into a folder: `models pull` makes it of the files that came."""

    source: str
    folder: str
    files: list[str]
    size_bytes: int


class Alive(Reply):
    """The one thing that is answered without a token. Says nothing about anyone."""

    status: Literal["ok"] = "ok"


class ClusterHealth(Reply):
    connected: bool = False
    insecure: bool = False  # it is there, and lets in whoever asks
    id: str = ""
    message: str = ""


class IsolationView(Reply):
    """What lies between the controller and the work. `mode`: two-users (`ray_user` is whom all work runs as) |
    single-user (tokens are labels, for the reason `why`) | "" (nothing of the work runs, it is pretended)."""

    mode: Literal["two-users", "single-user", ""] = ""
    ray_user: str = ""
    why: str = ""


class Health(Reply):
    """`status`: starting (not connected yet) | ready | degraded (reads work, nothing new is accepted) | insecure."""

    status: Literal["starting", "ready", "degraded", "insecure"] = "starting"
    message: str = ""
    version: str = ""
    seq: int = 0
    started_at: float = 0.0
    epoch: int = 0
    cluster: ClusterHealth = Field(default_factory=ClusterHealth)
    urls: dict[str, str] = {}  # dashboard, endpoint
    isolation: IsolationView = Field(default_factory=IsolationView)


class ProblemView(Reply):
    where: str
    message: str
    hint: str = ""
    code: str = ""


class ErrorBody(Reply):
    """Every answer that is not 2xx. `code` is stable and for machines; `hint` is the next thing to try."""

    code: str
    message: str
    where: str = ""
    hint: str = ""
    exit_code: int = 1
    retry_after_s: float | None = None
    problems: list[ProblemView] = []  # of a file, all of them, each with its place
