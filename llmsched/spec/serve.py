"""`kind: serve`: an endpoint of a model, or of an app of one's own. Every replica is a gang of its own."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, JsonValue, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from llmsched.data.tasks import KINDS
from llmsched.spec import effects, library_names, split
from llmsched.spec.quantities import (
    DEPLOYMENT_PATTERN,
    Cron,
    Duration,
    EntryPoint,
    ModelId,
    Range,
    Source,
    Switch,
    parse_accelerator,
    parse_model_source,
    parse_run_source,
    write_duration,
)
from llmsched.spec.section import Section, WrongAt
from llmsched.spec.train import PassThrough, Task
from llmsched.spec.workload import Amounts, WorkloadSpec

FIRST_GROUP = "workers"  # of every gang; of a replica, what has the ingress


class Model(Section):
    """`id` is what a request names; the workload's name when left out."""

    id: ModelId | None = None
    source: Source


class EngineKwargs(PassThrough):
    """By vLLM's names where it has one; what is absent is up to the engine. `max_waiting` requests wait inside it.
    `quantization: int8` is of our own engine: on CPUs, linear layers compute in 8 bits. So is `prefix_cache_mib`: its
    memory for beginnings of prompts that were read (128 on a CPU, a twentieth of what is free on a GPU), and
    `num_speculative_tokens`: how many tokens a request that decodes alone tries at once, by what came after the same
    words before (8; 0: none). `vllm` has what else is to be passed to vLLM, with `engine: vllm`."""

    library: ClassVar[str] = "vllm.EngineArgs"
    known: ClassVar[frozenset[str]] = library_names.VLLM_ENGINE_ARGS

    max_model_len: int | None = Field(default=None, ge=1)
    max_num_seqs: int | None = Field(default=None, ge=1)
    max_waiting: int | None = Field(default=None, ge=1)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] | None = None
    quantization: Literal["int8"] | None = None
    enable_prefix_caching: bool | None = None
    prefix_cache_mib: int | None = Field(default=None, ge=1)
    num_speculative_tokens: int | None = Field(default=None, ge=0, le=64)
    vllm: dict[str, JsonValue] | None = None  # more of vLLM's own, as they are

    def check_decoder(self, task: str) -> None:
        """Raises WrongAt for what has no effect on a model of this task."""
        names = ("enable_prefix_caching", "prefix_cache_mib", "num_speculative_tokens", "vllm")
        for name in names if task != "causal-lm" else ():
            if getattr(self, name) is not None:
                raise WrongAt(
                    f'goes with "task: causal-lm"; a model of {task} has no use for it', "engine_kwargs", name
                )

    @field_validator("vllm")
    @classmethod
    def _are_vllms(cls, given: dict[str, JsonValue] | None) -> dict[str, JsonValue] | None:
        for name in given or ():
            if name not in cls.known or name in cls.model_fields:
                near = get_close_matches(name, cls.known, 1)
                instead = (
                    "write it beside vllm" if name in cls.model_fields else f'did you mean "{near[0]}"' if near else ""
                )
                raise ValueError(f'"{name}" is no more argument of vllm.EngineArgs{": " + instead if instead else ""}')
        return given

    @model_serializer(mode="wrap")
    def _only_what_is_there(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in dump(self).items() if value is not None}


class Parallelism(Section):
    """How vLLM cuts a model that is larger than a GPU: each layer into `tensor` parts, and the layers into `pipeline`
    stages. A replica has tensor x pipeline GPUs, on one node."""

    tensor: int = Field(default=1, ge=1, le=1024)
    pipeline: int = Field(default=1, ge=1, le=1024)

    @property
    def gpus(self) -> int:
        return self.tensor * self.pipeline


class Adapter(Section):
    name: ModelId
    source: Source


class DeploymentSpec(Amounts):
    """What ONE copy of a deployment of an app gets, on any node: a process of its own beside the replica's. Each
    replica has `replicas` copies, and a call goes to the one with the fewest in hand."""

    replicas: int = Field(default=1, ge=1, le=64)


DeploymentName = Annotated[str, Field(pattern=DEPLOYMENT_PATTERN)]  # as Serve has it: of a class, or given by name=


class ServeSection(Section):
    """Exactly one of `model` and `app`: what `serve run` takes, or a class that takes JSON. `args`: of a builder or a
    class; one that is `run://NAME` or `model://NAME` is the folder of that result, which the endpoint waits for.
    `deployments`: those of a bound application that are placed by themselves, on any node; all others, and its ingress,
    have what `resources` of the spec says. `prefill`: another endpoint reads the prompts; `role: prefill`: this one
    reads them for others, and answers nobody itself."""

    model: Model | None = None
    task: Task = "causal-lm"
    engine: Literal["auto", "transformers", "vllm"] = "auto"
    engine_kwargs: EngineKwargs = Field(default_factory=EngineKwargs)
    parallelism: Parallelism = Field(default_factory=Parallelism)
    role: Literal["prefill"] | None = None
    prefill: split.Prefill | None = None
    adapters: list[Adapter] = Field(default=[], max_length=1000)
    routing: Literal["power-of-two", "least-tokens", "prefix-cache", "round-robin", "session-affinity"] = "power-of-two"
    app: EntryPoint | None = None
    args: dict[str, JsonValue] = {}
    deployments: dict[DeploymentName, DeploymentSpec] = Field(default={}, max_length=64)

    @model_validator(mode="after")
    def _is_one_thing(self) -> ServeSection:
        if (self.model is None) == (self.app is None):
            raise ValueError('expected exactly one of "model" (our engine serves it) and "app" (your own class)')
        if self.app is not None and (self.adapters or self.engine_kwargs != EngineKwargs()):
            raise WrongAt('goes with "model"', "adapters" if self.adapters else "engine_kwargs")
        if self.model is not None and self.args:
            raise WrongAt('goes with "app"', "args")
        if self.model is not None and self.deployments:
            raise WrongAt('goes with "app": a model that needs several GPUs has "parallelism"', "deployments")
        if FIRST_GROUP in self.deployments:
            raise WrongAt(
                "is how the replica's own part is called; give the deployment another name (options(name=...))",
                "deployments", FIRST_GROUP,
            )  # fmt: skip
        if self.engine == "vllm" and (self.model is None or self.task != "causal-lm"):
            raise WrongAt('"vllm" goes with "model" and "task: causal-lm"', "engine")
        if self.engine_kwargs.vllm is not None and self.engine != "vllm":
            raise WrongAt('goes with "engine: vllm"', "engine_kwargs", "vllm")
        if self.model is not None:
            self.engine_kwargs.check_decoder(self.task)
            if self.routing == "prefix-cache" and self.task not in GENERATING:
                raise WrongAt(f"goes with models that go on with a text; a {self.task} model does not", "routing")
        if self.parallelism.gpus > 1 and self.engine != "vllm":
            raise WrongAt('goes with "engine: vllm", which alone cuts a model into parts', "parallelism")
        names = [each.name for each in self.adapters]
        if len(set(names)) < len(names):
            raise WrongAt("two adapters have the same name", "adapters")
        effects.check_serving(self)
        split.check_serving(self)
        return self


class Bound(Section):
    cron: Cron
    min: int = Field(ge=0)
    max: int = Field(ge=0)

    @model_validator(mode="after")
    def _is_a_range(self) -> Bound:
        if self.max < self.min:
            raise ValueError(f"max ({self.max}) is below min ({self.min})")
        return self


class Autoscaling(Section):
    """Ray Serve's names. Acts when `replicas` is a range. Without downscale_to_zero_delay_s the other delay counts.
    `forecast`: replicas also come before the load that came at the same hour of yesterday and a week ago. Where the
    endpoint has an `slo`, what was measured takes the place of target_ongoing_requests."""

    target_ongoing_requests: float = Field(default=2.0, gt=0)
    upscale_delay_s: float = Field(default=30.0, ge=0)
    downscale_delay_s: float = Field(default=600.0, ge=0)
    downscale_to_zero_delay_s: float | None = Field(default=None, ge=0)
    bounds: list[Bound] = Field(default=[], max_length=64)
    forecast: Switch = True


GENERATING = frozenset(task for task, kind in KINDS.items() if "chat/completions" in kind.answers)
LEAST_TARGET_S = 0.001  # no answer crosses a network in less


class Slo(Section):
    """What the 95th percentile of answers is to stay under: the time to the first token and that for each further one,
    of models that generate text and are asked with `stream`; or the whole answer, of any endpoint. As many replicas
    run as that takes, by what was measured; with a fixed number of them it is watched."""

    ttft_p95: Annotated[Duration, Field(ge=LEAST_TARGET_S, le=60)] | None = None
    tpot_p95: Annotated[Duration, Field(ge=LEAST_TARGET_S, le=10)] | None = None
    latency_p95: Annotated[Duration, Field(ge=LEAST_TARGET_S)] | None = None

    @model_validator(mode="after")
    def _is_one_form(self) -> Slo:
        of_tokens = self.ttft_p95 is not None or self.tpot_p95 is not None
        if of_tokens and self.latency_p95 is not None:
            raise WrongAt(
                "is of the whole answer: it does not go with ttft_p95 and tpot_p95; keep one form", "latency_p95"
            )
        if not of_tokens and self.latency_p95 is None:
            raise ValueError("expected ttft_p95, tpot_p95 or both, such as {ttft_p95: 500ms}; or latency_p95")
        return self


class Rollout(Section):
    """How many replicas more than wanted there may be while an endpoint changes. 0: an old one leaves first; that needs
    no room, and with one replica means that nobody answers meanwhile."""

    max_surge: int = Field(default=1, ge=0, le=1000)


class ServeSpec(WorkloadSpec):
    """`max_ongoing_requests` is per replica; what comes above it is answered 429, unless its key is critical. A request
    that takes longer than `request_timeout` altogether is answered 504 and cancelled. While no replica answers, a
    request waits for one for `hold_timeout`; 0 answers it 503 at once. Replicas go to different nodes where there is
    room (`spread`), or wherever the cluster's placement policy has them (`pack`)."""

    kind: Literal["serve"]
    replicas: Range = Field(default_factory=lambda: Range(min=1, max=1))
    autoscaling: Autoscaling = Field(default_factory=Autoscaling)
    max_ongoing_requests: int = Field(default=32, ge=1, le=100_000)
    request_timeout: Annotated[Duration, Field(gt=0, le=86_400)] = 600.0
    hold_timeout: Annotated[Duration, Field(ge=0, le=86_400)] = 120.0
    slo: Slo | None = None
    serve: ServeSection
    rollout: Rollout = Field(default_factory=Rollout)
    replica_placement: Literal["spread", "pack"] = "spread"
    drain_timeout: Duration = 300.0

    @model_validator(mode="after")
    def _scales(self) -> ServeSpec:
        if self.replicas.max < 1:
            raise WrongAt("may go down to 0, but not end there", "replicas")
        if self.replicas.step != 1:
            raise WrongAt("has no step: each replica comes and goes by itself", "replicas")
        effects.check_endpoint(self)
        for n, bound in enumerate(self.autoscaling.bounds):
            # What may ever run is counted and checked by `replicas`: limits, quota in `plan`, `llmsched scale`.
            if not self.replicas.min <= bound.min <= bound.max <= self.replicas.max:
                raise WrongAt(
                    f"{bound.min}..{bound.max} is not within replicas, {self.replicas.min}..{self.replicas.max}: "
                    "widen replicas, or narrow this", "autoscaling", "bounds", n,
                )  # fmt: skip
        split.check_endpoint(self)
        gpus = self.serve.parallelism.gpus
        asked = [each for each in self.resources.accelerators if float(each.rpartition(":")[2]) != gpus]
        if gpus > 1 and (asked or not self.resources.accelerators):
            shown = ", ".join(asked) or "none"
            each = f"tensor {self.serve.parallelism.tensor} x pipeline {self.serve.parallelism.pipeline}"
            raise WrongAt(
                f'is {each}, so a replica needs {gpus} GPUs: write "TYPE:{gpus}" in resources.accelerators, not '
                f"{shown}",
                "serve", "parallelism",
            )  # fmt: skip
        return self

    @model_validator(mode="after")
    def _has_gpus_of_one_type(self) -> ServeSpec:
        """Quota counts GPUs by type, and a gang under one of them."""
        asked = {"resources": self.resources.accelerators}
        asked |= {name: each.accelerators for name, each in self.serve.deployments.items()}
        types = {name: [parse_accelerator(one).flavor for one in each] for name, each in asked.items() if each}
        first = next(iter(types), "")
        for name, mine in types.items():
            if mine != types[first]:
                raise WrongAt(
                    f"has {', '.join(mine)} and {first} has {', '.join(types[first])}: all GPUs of a replica are of "
                    "one type (or of the same alternatives, in the same order). What needs another can be an endpoint "
                    "of its own, which this one asks by calls",
                    "serve", "deployments", name, "accelerators",
                )  # fmt: skip
        return self

    @model_validator(mode="after")
    def _can_be_held(self) -> ServeSpec:
        for name, seconds in self.slo.model_dump(exclude_none=True).items() if self.slo else ():
            if seconds >= self.request_timeout:
                limit = write_duration(self.request_timeout)
                message = f"an answer takes {limit} at most (request_timeout), so this is no target; say 500ms or 2s"
                raise WrongAt(message, "slo", name)
            if name != "latency_p95" and (self.serve.model is None or self.serve.task not in GENERATING):
                what = "an app" if self.serve.model is None else self.serve.task
                raise WrongAt(f"is of generated text, which {what} does not answer; use latency_p95", "slo", name)
        return self

    def sources(self) -> list[str]:
        model = [self.serve.model.source] if self.serve.model else []
        texts = [value for value in self.serve.args.values() if isinstance(value, str)]
        results = [each for each in texts if parse_run_source(each) or parse_model_source(each)]
        return [*model, *(each.source for each in self.serve.adapters), *results]
