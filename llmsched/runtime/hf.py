"""Hugging Face's Trainer, TRL's trainers and Accelerate under a scheduler that takes GPUs away and gives others.

    from llmsched.runtime import hf

    elastic = hf.Elastic()
    trainer = SFTTrainer(..., callbacks=[elastic])
    trainer.train(resume_from_checkpoint=elastic.checkpoint)

Asked to leave, the run saves after the step at hand, publishes the checkpoint and goes; the next attempt goes on from
there with any number of workers that divides the same global batch. Metrics show in status and receipt, and the trained
model is the result. The same script by hand trains as ever. In a loop of one's own with Accelerate: `resume`, `step`.
"""

from __future__ import annotations

import json
import shutil
import time
from functools import partial
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from llmsched.runtime import artifact, checkpoint, context, elastic, progress
from llmsched.runtime.checkpoint import Checkpoint
from llmsched.runtime.environment import UserError

_FACTS = "llmsched.json"  # beside a checkpoint's files: what must not change
_EVERY_S = 600.0


class Elastic(TrainerCallback):  # type: ignore[misc]
    """`global_batch_size`: rows a step over all workers, whatever their number; None: as many as it began with."""

    def __init__(self, global_batch_size: int | None = None) -> None:
        self._batch = global_batch_size
        self._found: Checkpoint | None = None
        self._has_looked = self._is_asked = False
        self._saved_at = time.monotonic()

    @property
    def checkpoint(self) -> str | None:
        """The folder of the newest checkpoint, for `train(resume_from_checkpoint=)`; None: begin. Every rank asks."""
        found = self._newest()
        return None if found is None else str(checkpoint.fetch(found))

    # -- what the Trainer calls ----------------------------------------------------------------------------------

    def on_init_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        if context.inside() is None:
            return
        if args.save_only_model:
            raise UserError("save_only_model: nothing could go on from such a checkpoint; leave it out.")
        if getattr(args, "fsdp", None) or getattr(args, "deepspeed", None):
            raise UserError("hf.Elastic keeps whole checkpoints: FSDP's and DeepSpeed's in parts are not taken yet.")
        at_once = args.train_batch_size * args.world_size
        found = self._newest()
        if self._batch is None and found is not None:
            self._batch = json.loads((checkpoint.fetch(found) / _FACTS).read_bytes())["global_batch_size"]
        if self._batch is None:
            self._batch = at_once * args.gradient_accumulation_steps
        steps, rest = divmod(self._batch, at_once)
        if rest or not steps:
            raise UserError(
                f"a global batch of {self._batch} rows cannot be cut for {args.world_size} workers that take "
                f"{args.train_batch_size} at once: set per_device_train_batch_size to what divides it at every number "
                "of workers (1 always does where that number divides the batch), or workers.step."
            )
        args.gradient_accumulation_steps = steps

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        if context.inside() is None:
            return
        found = self._newest()
        if found is not None and state.global_step != found.step:
            raise UserError(
                f"there is a checkpoint of step {found.step}, and the training begins at step {state.global_step}: "
                "call trainer.train(resume_from_checkpoint=elastic.checkpoint) with this callback's own."
            )
        self._is_asked = elastic.should_stop()  # from here on SIGTERM waits until it is saved
        progress.report(step=state.global_step, total_steps=state.max_steps)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **more: Any) -> None:
        said = {name: value for name, value in (logs or {}).items() if isinstance(value, (int, float))}
        if state.is_world_process_zero and context.inside() is not None:
            progress.report(step=state.global_step, total_steps=state.max_steps, **said)

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> Any:
        """Every rank takes rank 0's answer, so that all save after the same step."""
        where = context.inside()
        if where is None or state.global_step >= state.max_steps:
            return control
        is_due = time.monotonic() - self._saved_at >= _every_s(where)
        self._is_asked, is_due = elastic.agree([self._is_asked or elastic.is_asked(), is_due])
        if self._is_asked or is_due:
            control.should_save = True
        if self._is_asked:
            control.should_evaluate = False  # there may be no time
        return control

    def on_save(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        if context.inside() is None:
            return
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        fraction = state.global_step / state.max_steps if state.max_steps else None
        checkpoint.save(state.global_step, partial(self._write, folder), fraction)
        self._saved_at = time.monotonic()
        if self._is_asked and state.global_step < state.max_steps:
            elastic.leave(state.global_step)

    def on_train_end(
        self, args: Any, state: Any, control: Any, model: Any = None, processing_class: Any = None, **more: Any
    ) -> None:
        where = context.inside()
        if where is None:
            return
        if where.rank == 0:
            artifact.save(partial(_write_result, model, processing_class))
            said = {name: value for log in state.log_history for name, value in log.items() if name != "step"}
            artifact.metrics(**{name: value for name, value in said.items() if isinstance(value, (int, float))})
        elastic.finished()

    # -- how -----------------------------------------------------------------------------------------------------

    def _newest(self) -> Checkpoint | None:
        if not self._has_looked and context.inside() is not None:
            self._has_looked = True
            self._found = checkpoint.latest()
        return self._found

    def _write(self, source: Path, folder: Path) -> None:
        shutil.copytree(source, folder, dirs_exist_ok=True)
        (folder / _FACTS).write_text(json.dumps({"global_batch_size": self._batch}))


def _write_result(model: Any, tokenizer: Any, folder: Path) -> None:
    model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


def _every_s(where: context.Context) -> float:
    return float((where.spec.get("checkpoint") or {}).get("every") or _EVERY_S)


# -- Accelerate ----------------------------------------------------------------------------------------------------


def resume(accelerator: Any) -> int:
    """Load the newest checkpoint into what was prepared; how many steps are done, 0 at the beginning. Every rank calls
    it, once, after `accelerator.prepare`."""
    found = checkpoint.latest() if context.inside() is not None else None
    if found is None:
        return 0
    accelerator.load_state(str(checkpoint.fetch(found)))
    return found.step


def step(accelerator: Any, done: int, total: int | None = None, **metrics: Any) -> None:
    """Say that `done` steps are done, on every rank, after each. Saves when it is time to, and leaves when asked."""
    where = context.inside()
    progress.report(step=done, total_steps=total, **metrics)
    if where is None or done == total:
        return
    global _accelerate_saved_at
    is_due = time.monotonic() - _accelerate_saved_at >= _every_s(where)
    is_asked, is_due = elastic.agree([elastic.is_asked(), is_due])
    if not is_asked and not is_due:
        return
    folder = Path(where.local_dir) / f"accelerate-{done}"
    accelerator.save_state(str(folder))
    checkpoint.save(done, partial(_copy, folder), done / total if total else None)
    shutil.rmtree(folder, ignore_errors=True)
    _accelerate_saved_at = time.monotonic()
    if is_asked:
        elastic.leave(done)


def _copy(source: Path, folder: Path) -> None:
    shutil.copytree(source, folder, dirs_exist_ok=True)


_accelerate_saved_at = time.monotonic()
