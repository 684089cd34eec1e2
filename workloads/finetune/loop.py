"""Fine-tune a model: the loop every worker of a train gang runs. Read `run` first.

Where it runs, how many there are and what to do come from the runtime's context. Any worker count gives the same
result, also when it changes between two attempts: gradients.py sums and divides once, runtime/data.py
cuts uneven shares.
"""

from __future__ import annotations

import math
import os
import statistics
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from llmsched.data.tasks import metrics_of
from llmsched.runtime import artifact, checkpoint, data, elastic, progress
from llmsched.runtime.context import Context, current
from workloads.adapters import whole_model
from workloads.datasets import check_apart
from workloads.finetune import norms, shrink, spec_augment
from workloads.finetune.beside import stand_beside
from workloads.finetune.best import Best
from workloads.finetune.dropout import key_of
from workloads.finetune.gradients import Stepper, is_distributed, sum_over_ranks
from workloads.finetune.models import (
    body_of,
    check_method,
    config_of,
    finished,
    is_another,
    load_config,
    load_model,
    load_others,
    trains_adapter,
    write_model,
    write_result,
)
from workloads.finetune.settings import Settings
from workloads.finetune.state import read_state, write_state
from workloads.finetune.trackers import Trackers
from workloads.sources import BadInput
from workloads.tasks.table import reader_of, task_of
from workloads.tasks.together import Together, with_others

_AT_ONCE_IN_EVALUATION = 64
_SPLIT_OF_TRAINING = "train"


def run() -> None:
    """Train as the context's spec says, from the newest checkpoint; save the result. On every worker.

    Raises BadInput (the user's mistake, message only) and elastic.Stopped (asked to leave; a checkpoint is saved).
    """
    where = current()
    if where.world_size > 1 and not is_distributed():
        raise RuntimeError("several workers need torch.distributed to be initialised before the loop starts")
    FineTune(where).run()


class FineTune:
    """One attempt on one worker."""

    model: Any

    def __init__(self, where: Context) -> None:
        self.where = where
        self.train: dict[str, Any] = where.spec["train"]
        self.settings = Settings.of(self.train)
        check_method(self.train)
        self.device = _device()
        _quieten()
        self.step = self.total = 0
        self.trackers = Trackers((), 0)
        self._report(phase="loading")
        if self.device.type == "cpu" and (self.settings.bf16 or self.settings.fp16):
            self._report(note="no GPU here: bf16 and fp16 are left out, float32 is used")
        is_new = self.train.get("init") == "random"  # then its weights are of no use
        self.base = base = (config_of if is_new else whole_model)(self.train["base_model"], where.inputs)
        config = load_config(base, self.train["base_model"])
        self.saved_as: torch.dtype = config.dtype or torch.float32  # the precision of the base
        name = self.train.get("task", "causal-lm")
        reader = reader_of(name, base, self.train["base_model"], config, self.settings.max_length)
        self.task = task_of(name, self.train.get("objective"), reader, config)
        self.task.packs = bool(self.train.get("packing"))
        self.task.head_is_new = self.task.head_is_new and self.settings.max_steps != 0  # nobody would learn it
        stand_beside(self.task, self.train, base, where.inputs, self.device)
        window = getattr(config, "sliding_window", None)
        if self.task.packs and window and window < reader.max_length:
            raise BadInput(f"packing: this model looks back {window} tokens; set max_length to at most that")
        self.evaluation: Mapping[str, Any] = self.train.get("evaluation") or {}
        self.metric_names = self._metric_names()
        self.task.asked = {*self.metric_names}
        self.task = with_others(self.task, self.train, config)
        self.best = Best(self.evaluation.get("best"), self.evaluation.get("patience"))
        self.evaluated = 0  # the step of the last evaluation on the way
        self.rows = self._samples(_SPLIT_OF_TRAINING) if self.settings.max_steps else []
        self.held_out = self._held_out() if self.evaluation else []
        for note in self.task.notes:
            self._report(note=note)
        self.per_epoch = max(1, data.steps_per_epoch(len(self.rows), self.settings.global_batch_size))
        self.total = self.settings.total_steps(self.per_epoch)
        self.metrics: dict[str, float] = {}
        self.saved_at = time.monotonic()
        self._load(base)
        self.trackers = Trackers(self.settings.report_to if where.rank == 0 else (), self.step)

    def run(self) -> None:
        try:
            self._run()
        finally:
            self.trackers.close()

    def _run(self) -> None:
        if self.step == 0 and self.evaluation and self.evaluation.get("before", True):
            self._keep(self._evaluate(), suffix="_before")
        self._prune()
        self._train()
        becomes_another = is_another(self.train)
        if self.evaluation and (self.best.metric is not None or not becomes_another):
            numbers = self._last_evaluation()
        self.model = finished(self.model, self.task, self.train, self.base)
        if self.evaluation:
            self._keep(self._evaluate() if becomes_another else numbers)
        self._report(phase="saving")
        if self.where.rank == 0:
            artifact.save(self._write_result)
            artifact.metrics(**self.metrics)
        self._report(phase="done")

    def _load(self, base: Path) -> None:
        found = checkpoint.latest()
        folder = checkpoint.fetch(found) if found else None
        torch.manual_seed(self.settings.seed)  # a new head or adapter is the same on every rank
        lora_in_half = self.settings.bf16 and self.device.type == "cuda" and trains_adapter(self.train)
        dtype = torch.bfloat16 if lora_in_half else torch.float32
        self.model = load_model(self.task, self.train, base, folder, dtype).to(self.device)
        if self.train.get("spec_augment"):
            spec_augment.put_on(self.model, self.train["spec_augment"])
        beside = {}
        if isinstance(self.task, Together):
            heads = load_others(self.task, self.train, base)
            beside = self.task.stand_on(body_of(self.model), heads, folder, self.device)
        self.stepper = stepper = Stepper(self.model, self.task, self.settings, self.device, beside)
        if self.settings.gradient_checkpointing:
            kwargs = {"use_reentrant": False, "context_fn": lambda: stepper.chance.again()}
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kwargs)
        if not folder and self.train.get("init") == "random":
            self._take_averages()
        if folder and found:
            facts = read_state(self.stepper, folder)
            self.step, self.metrics = int(facts["step"]), dict(facts["metrics"])
            changed = [name for name, value in self._frame().items() if facts.get(name) != value]
            note = f"resumed at step {self.step}, saved by {found.world_size} workers, now {self.where.world_size}"
            self._report(note=note + (f"; changed since: {changed}" if changed else ""))
            self.evaluated = int(facts.get("evaluated", self.step))
            self.best.read(facts, folder)

    def _take_averages(self) -> None:
        """Of the first rows, for the batch norms of a model of chance."""

        def forward() -> None:
            seed, rows = self.settings.seed, self.rows[: norms.ROWS]
            first = [self.task.prepared(row, key_of(seed, 0, at)) for at, row in enumerate(rows)]
            for batch, _ in self.stepper.batches(first):
                self.task.score(self.model, batch)

        norms.take_averages(self.model, forward)

    def _prune(self) -> None:
        """Before the first step; a checkpoint has the zeros already."""
        if asked := self.train.get("prune"):
            if self.step == 0:
                shrink.prune(self.model, float(asked["amount"]))
            shrink.keep_zeros(self.model)
            self.metrics["sparsity"] = round(shrink.zeros(self.model), 6)
            self._report(note=f"{self.metrics['sparsity']:.1%} of all weights are zero, and stay so")

    def _train(self) -> None:
        if not self.total:
            return
        self._look_on_the_way()  # a stop may have come between a step and its evaluation
        norms.learn(self.model)
        loss_sum, weight_sum, since, counted = 0.0, 0.0, time.monotonic(), self.step
        steps = data.batches(
            len(self.rows),
            self.settings.global_batch_size,
            start=self.step,
            steps=self.total,
            seed=self.settings.seed,
        )
        for step, _, mine in steps:
            if self.best.is_enough:
                vain = f"{self.best.in_vain} evaluations brought no better {self.best.metric}"
                self._report(note=f"ended: {vain} than {self.best.value:g}, at step {self.best.step}")
                return
            seed, rate = self.settings.seed, self.settings.rate(step, self.total)
            torch.manual_seed(shared := key_of(seed, step, -1))
            keys = [key_of(seed, step, row) for row in mine]
            loss, weight = self.stepper.step([self.rows[row] for row in mine], keys, shared, rate)
            if not math.isfinite(loss) and not self.stepper.scaler.is_enabled():
                raise BadInput(f"the loss became {loss} at step {step}; lower the learning_rate ({rate:g} here)")
            self.step = step
            loss_sum, weight_sum = loss_sum + loss * weight, weight_sum + weight
            if step == 1 or step % self.settings.logging_steps == 0 or step == self.total:
                took, since = time.monotonic() - since, time.monotonic()
                self._report(
                    phase="training",
                    loss=round(loss_sum / max(weight_sum, 1.0), 5),
                    learning_rate=float(f"{rate:.4g}"),
                    epoch=round(step / self.per_epoch, 3),
                    **{f"{self.task.unit}_per_s": round(weight_sum / max(took, 1e-9), 1)},
                )
                progress.report(**self._times(step - counted))  # for llmsched diagnose; the log has no room for it
                loss_sum, weight_sum, counted = 0.0, 0.0, step
            if step < self.total:
                self._leave_if_asked()
                if time.monotonic() - self.saved_at >= self._every_s():
                    self._save()
                if self._look_on_the_way():
                    norms.learn(self.model)

    def _look_on_the_way(self) -> bool:
        """Evaluate when it is time; whether it was."""
        every = self.evaluation.get("every")
        if not every or not self.step or self.step % every or self.evaluated == self.step or self.step >= self.total:
            return False
        numbers = self._evaluate()
        self.evaluated = self.step
        self.best.consider(self.step, numbers, self.stepper.params)
        self._show(numbers)
        return True

    def _last_evaluation(self) -> dict[str, float]:
        """Of the weights that are the result: the last ones, or the best."""
        numbers = self._evaluate()
        self.best.consider(self.step, numbers, self.stepper.params)
        if self.best.step in (None, self.step):
            return numbers
        self._report(note=f"the result is the model of step {self.best.step}, the best by {self.best.metric}")
        self.best.put_back(self.stepper.params)
        return self._evaluate()

    def _times(self, steps: int) -> dict[str, Any]:
        """Of the last `steps` steps, over all ranks: how much of the time went into preparing data, and how long each
        rank computed. Every rank calls it at the same step."""
        world, rank = self.where.world_size, self.where.rank
        mine = [0.0] * (2 * world)
        mine[rank], mine[world + rank] = self.stepper.data_s, self.stepper.compute_s
        self.stepper.data_s = self.stepper.compute_s = 0.0
        every = sum_over_ranks(mine, self.device)
        busy = [data_s + compute_s for data_s, compute_s in zip(every[:world], every[world:], strict=True)]
        slowest = max(range(world), key=busy.__getitem__)
        return {
            "data_wait": round(sum(every[:world]) / max(sum(busy), 1e-9), 3),
            "rank_step_s": round(statistics.median(busy) / steps, 4),
            "slowest_rank": slowest,
            "slowest_rank_step_s": round(busy[slowest] / steps, 4),
        }

    def _evaluate(self) -> dict[str, float]:
        """Metrics of the held-out rows, spread evenly over the ranks; every rank gets the same numbers."""
        self._report(phase="evaluating")
        self.model.eval()
        world, rank = self.where.world_size, self.where.rank
        mine = range(len(self.held_out))[rank::world]
        sums = [0.0, 0.0, *self.task.count(self.model, None, {}, ())]
        rounds = -(-data.shares(len(self.held_out), world)[0] // _AT_ONCE_IN_EVALUATION)  # alike on every rank
        for turn in range(rounds):
            self._leave_if_asked()
            part = mine[turn * _AT_ONCE_IN_EVALUATION : (turn + 1) * _AT_ONCE_IN_EVALUATION]
            prepared = [self.task.prepared(self.held_out[row], key_of(self.settings.seed, 0, row)) for row in part]
            prepared.sort(key=self.task.reader.size)
            with torch.inference_mode(), self.stepper.autocast():
                for batch, rows in self.stepper.batches(prepared):
                    score = self.task.score(self.model, batch)
                    counts = self.task.count(self.model, score.out, batch, rows)
                    numbers = (float(score.loss), score.weight, *counts)
                    sums = [total + number for total, number in zip(sums, numbers, strict=True)]
        loss, weight, *counts = sum_over_ranks(sums, self.device)
        found = self.task.measure(loss / max(weight, 1.0), counts)
        return {name: round(found[name], 6) for name in self.metric_names}

    def _keep(self, numbers: Mapping[str, float], suffix: str = "") -> None:
        """Into the receipt as eval.NAME, and shown."""
        self.metrics |= {f"eval.{name}{suffix}": number for name, number in numbers.items()}
        self._show(numbers, suffix)

    def _show(self, numbers: Mapping[str, float], suffix: str = "") -> None:
        self._report(**{f"eval.{name}{suffix}": number for name, number in numbers.items()})

    def _report(self, **values: Any) -> None:
        """What the progress shows now, and what the log keeps."""
        where = {"step": self.step, "total_steps": self.total} if self.total else {}
        progress.report(**where, **values)
        self.trackers.log(self.step, values)
        if self.where.rank == 0:
            at = f"step {self.step}/{self.total}: " if self.total else ""
            print(at + ", ".join(f"{name} {value}" for name, value in values.items()), flush=True)

    def _leave_if_asked(self) -> None:
        if elastic.should_stop():
            self._save()
            raise elastic.Stopped(self.step)

    def _save(self) -> None:
        checkpoint.save(self.step, self._write_checkpoint, fraction=self.step / max(1, self.total))
        self.saved_at = time.monotonic()

    def _write_checkpoint(self, folder: Path) -> None:
        write_model(self.model, self.train, folder, self.base, self.where.inputs)
        if isinstance(self.task, Together):
            self.task.save(body_of(self.model), folder)
        kept = {"evaluated": self.evaluated, **self.best.save(folder)}
        write_state(self.stepper, {"step": self.step, "metrics": self.metrics, **kept, **self._frame()}, folder)

    def _write_result(self, folder: Path) -> None:
        write_result(self.model, self.train, folder, self.base, self.where.inputs, self.saved_as)
        self.task.reader.save(folder)

    def _frame(self) -> dict[str, int]:
        """What gives a step number its meaning."""
        return {
            "rows": len(self.rows),
            "global_batch_size": self.settings.global_batch_size,
            "seed": self.settings.seed,
            "total_steps": self.total,
        }

    def _every_s(self) -> float:
        return float((self.where.spec.get("checkpoint") or {}).get("every") or 600.0)

    def _samples(self, split: str) -> list[Any]:
        chosen = [each for each in self.train.get("datasets") or () if each.get("split", "train") == split]
        if not chosen:
            raise BadInput(f'datasets: none has "split: {split}"')
        check_apart(self.train["datasets"], split, self.where.inputs)
        return self.task.samples(chosen, self.where.inputs)

    def _held_out(self) -> list[Any]:
        """The rows that are evaluated: a split of their own, or a part of those to learn from, by the seed."""
        share = self.evaluation.get("fraction")
        if share is None:
            return self._samples(self.evaluation["on"])
        each = list({id(row): row for row in self.rows}.values())  # one of a heavy data set is there several times
        order = data.epoch_order(len(each), -1, self.settings.seed)
        held_out = [each[number] for number in sorted(order[: round(share * len(each))])]
        if not held_out or len(held_out) == len(each):
            raise BadInput(f"evaluation.fraction {share:g} of {len(each):,} samples leaves none on one side")
        chosen = set(map(id, held_out))
        self.rows = [row for row in self.rows if id(row) not in chosen]
        self._report(note=f"{len(held_out):,} of the samples are held out, {len(self.rows):,} are learnt from")
        return held_out

    def _metric_names(self) -> list[str]:
        """The first two of the task, those that are asked for, and the one that chooses the best. Raises BadInput."""
        known = metrics_of(self.task.name, self.train.get("objective") or next(iter(self.task.kind.learns)))
        asked = self.evaluation.get("metrics") or ()
        for name in asked:
            if name not in known:
                raise BadInput(
                    f"evaluation.metrics: {name!r} is not computed for {self.task.name}; expected {', '.join(known)}"
                )
        chosen = {*asked, self.evaluation.get("best")}
        return [name for index, name in enumerate(known) if index < 2 or name in chosen]


def _device() -> torch.device:
    """The GPU that whoever started this worker made current; a pretend GPU is a CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def _quieten() -> None:
    import transformers

    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")  # libraries warning each other
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
