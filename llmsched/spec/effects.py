"""What is well-formed by itself and would come to nothing beside the rest of a spec: refused by name, with what to do.

What is accepted has effect. Each function raises WrongAt, whose path begins at the section that it is given.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from llmsched.data.tasks import LESS_IS_BETTER, metrics_of
from llmsched.spec.section import WrongAt

if TYPE_CHECKING:
    from llmsched.spec.serve import ServeSection, ServeSpec
    from llmsched.spec.train import Evaluation, TrainingArgs, TrainSection, TrainSpec
    from llmsched.spec.tune import TuneSection
    from llmsched.spec.workload import WorkloadSpec

# Arguments of the apps that come with llmsched that name an endpoint, which the app asks.
ASKED = {
    "workloads.apps.desk:Desk": ("intents", "knowledge", "whole", "writer", "entities"),
    "workloads.apps.monitor:Monitor": ("model",),
    "workloads.apps.ranker:Ranker": ("model",),
    "workloads.apps.retriever:Retriever": ("model",),
    "workloads.apps.voice:Voice": ("ears", "answers", "mouth"),
}
_TABLES = (".parquet", ".pq", ".arrow", ".feather")


def check_evaluation(evaluation: Evaluation, max_steps: int) -> None:
    """Of a `train` section whose number of steps is known: -1 is not."""
    every = evaluation.every
    if every is None or max_steps < 0:
        return
    if every > max_steps:
        ends = f"which ends at step {max_steps}" if max_steps else "which makes no step"
        raise WrongAt(
            f"{every} steps are more than the training has, {ends}: at its end it is evaluated anyway; leave it out or "
            "write less", "evaluation", "every",
        )  # fmt: skip
    on_the_way = (max_steps - 1) // every
    if evaluation.best is not None and not on_the_way:
        raise WrongAt(f'chooses among evaluations, and "every: {every}" of {max_steps} steps makes one; write less',
                      "evaluation", "every")  # fmt: skip
    if evaluation.patience is not None and on_the_way <= evaluation.patience:
        raise WrongAt(
            f"never ends this training: of {max_steps} steps are evaluated {on_the_way} before the last, and the first "
            f'of them is the best so far; write at most {on_the_way - 1}, or a smaller "every"' if on_the_way > 1 else
            f'never ends this training: of {max_steps} steps is evaluated one before the last; write a smaller "every"',
            "evaluation", "patience",
        )  # fmt: skip


def check_schedule(args: TrainingArgs) -> None:
    """Of learning rates."""
    if args.warmup_steps and args.warmup_ratio:
        raise WrongAt('"warmup_steps" says it already; leave one of the two out', "warmup_ratio")
    warmup = "warmup_steps" if args.warmup_steps else "warmup_ratio"
    if getattr(args, warmup) and args.lr_scheduler_type == "constant":
        raise WrongAt('"constant" has no warm-up; use "lr_scheduler_type: constant_with_warmup"', warmup)
    if args.max_steps > 0 and args.num_train_epochs != type(args)().num_train_epochs:
        raise WrongAt('"max_steps" says already how long it trains; leave one of the two out', "num_train_epochs")


def check_training(spec: TrainSpec) -> None:
    args = spec.train.training_args
    half = next((name for name in ("bf16", "fp16") if getattr(args, name)), None)
    if half is not None and not spec.resources.accelerators:
        raise WrongAt(
            "is of GPUs, and resources.accelerators names none: a CPU trains in float32; leave it out",
            "train", "training_args", half,
        )  # fmt: skip
    every, usual = spec.checkpoint.every, type(spec.checkpoint)().every
    if spec.max_runtime is not None and every >= spec.max_runtime and every != usual:
        raise WrongAt(
            "it may not run for longer than that (max_runtime), so it would never save on the way; write less",
            "checkpoint", "every",
        )  # fmt: skip


def check_budget(spec: WorkloadSpec) -> None:
    """Hours of GPUs: of what takes none, and asks for no work that may, there are none."""
    tune: TuneSection | None = getattr(spec, "tune", None)
    varies = tune is not None and any(path.partition(".")[0] == "resources" for path in tune.space)
    may_take = varies or any(getattr(spec, name, None) for name in ("asks", "groups"))
    if spec.budget is None or spec.resources.accelerators or may_take:
        return
    raise WrongAt(
        "counts hours of GPUs, and resources.accelerators names none; leave it out, or bound its time by max_runtime",
        "budget",
    )


def check_publish(spec: TrainSpec) -> None:
    """Of our own loop, whose result has the numbers of its evaluation and no others."""
    when, train = spec.publish.when if spec.publish else None, spec.train
    if when is None:
        return
    name = _number_in(when)
    if train.evaluation is None:
        message = f'nothing would be published: "{name}" is of no evaluation. Write train.evaluation, or leave this out'
        raise WrongAt(message, "publish", "when")
    known = [*measured(train), *_before(train), *(["sparsity"] if train.prune else [])]
    if name not in known:
        raise WrongAt(
            f'nothing would be published: the result has no "{name}"; {_meant(name, known)}', "publish", "when"
        )


def check_told(spec: WorkloadSpec, known: Sequence[str], more: Sequence[str] = ()) -> None:
    """`notify.when` of work that is no user's code: its numbers are `known`, and some that end with one of `more`."""
    for place, each in enumerate(spec.notify):
        name = _number_in(each.when) if each.when else ""
        if not name or name in known or name.endswith((*more,)):
            continue
        hint = _meant(name, known) if known else "it reports none. Leave it out: it is for code of your own"
        if name.startswith("eval.") and "learning_rate" in known and "eval.loss" not in known:
            hint = "there is no evaluation. Write train.evaluation"
        raise WrongAt(
            f'nothing would ever be told: "{name}" is no number that it reports; {hint}', "notify", place, "when"
        )


def reported(train: TrainSection) -> list[str]:
    """The numbers of our own loop, as it reports them on its way."""
    return ["loss", "learning_rate", "epoch", "step", *measured(train), *_before(train)]


def measured(train: TrainSection) -> list[str]:
    """The numbers of an evaluation of our own loop: the first two of the task, and those that are asked for."""
    if train.evaluation is None:
        return []
    asked = {*train.evaluation.metrics, train.evaluation.best}
    return [f"eval.{each}" for n, each in enumerate(metrics_of(train.task, train.objective)) if n < 2 or each in asked]


def _before(train: TrainSection) -> list[str]:
    is_asked = train.evaluation is not None and train.evaluation.before
    return [f"{each}_before" for each in measured(train)] if is_asked else []


def _number_in(condition: str) -> str:
    return re.split(r"[ <>=!]", condition, maxsplit=1)[0]


def _meant(name: str, known: Sequence[str]) -> str:
    near = get_close_matches(name, known, 1)
    return f'did you mean "{near[0]}"?' if near else f"its numbers are {', '.join(known)}"


def check_asking(spec: WorkloadSpec, what: str, own: str) -> None:
    """Of work that is no user's code: `what` it is; `own`: the field for code that may ask."""
    if spec.calls:
        raise WrongAt(f"{what} asks no endpoint; leave it out: it is for code of your own ({own})", "calls")
    if getattr(spec, "asks", False):
        raise WrongAt(f"{what} asks for no work; leave it out: it is for code of your own ({own})", "asks")


def check_serving(serve: ServeSection) -> None:
    if serve.app is not None:
        for name in ("task", "engine"):
            if getattr(serve, name) != type(serve).model_fields[name].default:
                raise WrongAt('goes with "model"; an app is what its class does', name)
    elif serve.adapters and serve.task != "causal-lm":
        message = f"go on a language model, and this serves {serve.task}: serve what was trained as the model itself"
        raise WrongAt(message, "adapters")
    kwargs = serve.engine_kwargs
    ours = next((name for name in ("quantization", "prefix_cache_mib") if getattr(kwargs, name) is not None), None)
    if serve.engine == "vllm" and ours is not None:
        raise WrongAt('is of our own engine; leave it out, or "engine: vllm"', "engine_kwargs", ours)
    if kwargs.enable_prefix_caching is False and kwargs.prefix_cache_mib is not None:
        message = '"enable_prefix_caching: false" keeps nothing; leave one of the two out'
        raise WrongAt(message, "engine_kwargs", "prefix_cache_mib")


def check_endpoint(spec: ServeSpec) -> None:
    if spec.serve.model is not None:
        check_asking(spec, "a model", "serve.app")
        check_told(spec, ())
    elif not spec.calls:
        for name in ASKED.get(spec.serve.app or "", ()):
            if isinstance(endpoint := spec.serve.args.get(name), str) and endpoint:
                raise WrongAt(
                    f'"{endpoint[:60]}" is an endpoint that the app would ask, and may not: write '
                    f"calls: [{endpoint.partition(':')[0][:60]}] beside serve", "serve", "args", name,
                )  # fmt: skip
    scaling = spec.autoscaling
    usual = type(scaling)()
    given = [name for name in type(scaling).model_fields if getattr(scaling, name) != getattr(usual, name)]
    if spec.replicas.min == spec.replicas.max and given:
        raise WrongAt(
            f"nothing is scaled: replicas is {spec.replicas.max}. Write a range, such as 1..4, or leave this out",
            "autoscaling", given[0],
        )  # fmt: skip


def check_encoding(path: str, encoding: str | None) -> None:
    if encoding is not None and path.lower().endswith(_TABLES):
        raise WrongAt("is of texts; a table such as this says itself what its texts are; leave it out", "encoding")


def check_grid(path: str, grid: Sequence[Any]) -> None:
    """Of each value there is one point. A variable is a text: 1 and "1" are one value of it."""
    seen: list[str] = []
    for place, value in enumerate(grid):
        text = value if path.startswith("envs.") and isinstance(value, str) else json.dumps(value, sort_keys=True)
        if text in seen:
            message = f'{json.dumps(value)[:60]} stands there twice; "samples" says how often each is tried'
            raise WrongAt(message, "space", path, "grid", place)
        seen.append(text)


def check_paths(paths: Sequence[str]) -> None:
    """Of a space: none may set what another one sets as a whole."""
    for path in paths:
        if inside := next((each for each in paths if each.startswith(f"{path}.")), None):
            raise WrongAt(f'is part of "{path}", which is varied as a whole; take one of the two out', "space", inside)


def check_search(tune: TuneSection) -> None:
    """Of how its trials are compared."""
    args, ends = tune.scheduler_args, tune.max_t
    steps = tune.train.training_args.max_steps if tune.train is not None and tune.train.base_model else -1
    is_fixed = steps > 0 and "train.training_args.max_steps" not in tune.space and args.time_attr == "step"
    if is_fixed and args.max_t not in (None, steps):
        raise WrongAt(f"a trial ends at its max_steps, {steps}; leave it out", "scheduler_args", "max_t")
    for name in ("grace_period", "perturbation_interval"):
        first = getattr(args, name)
        if ends is not None and first is not None and first >= ends:
            message = f"not less than a trial has, which ends at {ends}: none would ever be compared"
            raise WrongAt(message, "scheduler_args", name)
    if tune.total == 1:
        for name in ("scheduler", "searcher"):
            if getattr(tune, name) != type(tune).model_fields[name].default:
                message = f'"{getattr(tune, name)}" compares trials, and this is one: "samples" says how many there are'
                raise WrongAt(message, name)
    if tune.scheduler == "pbt" and tune.at_once == 1:
        raise WrongAt('"pbt" compares trials that run at once, and this is one after the other; write more',
                      "concurrent")  # fmt: skip
    if tune.scheduler == "asha" and ends == 1 and args.grace_period is None:
        raise WrongAt("is one step: no trial would ever be compared on its way; write more", "scheduler_args", "max_t")


def check_mode(tune: TuneSection) -> None:
    """Of a metric that a training of ours reports: "loss", "eval.NAME"."""
    better = "min" if (tune.metric or "").removeprefix("eval.") in LESS_IS_BETTER else "max"
    if tune.mode != better:
        which = "lower" if better == "min" else "higher"
        raise WrongAt(f'"{tune.metric}" is better the {which} it is: write mode: {better}', "tune", "mode")
