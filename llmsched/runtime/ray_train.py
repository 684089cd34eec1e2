"""What Ray Train's API means inside `train.loop`: what a loop reports there counts as if it had used ours.

`report(metrics, checkpoint)` shows in status and receipt and publishes the checkpoint as one of ours, so that
`get_checkpoint()` gives it back after a preemption, a failure or a resize, to any number of workers; the last one is
the artifact of a loop that saved none itself. A gang that is asked to leave does so at its next reported checkpoint. A
loop may also hand over a `TorchTrainer(train_func)`: its function runs on the workers of this gang. Start reading at
`LoopApi.report`.
"""

from __future__ import annotations

import numbers
import shutil
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import ray
from ray.train import Checkpoint, CheckpointUploadMode, PreemptionInfo, ReportedCheckpoint, ReportedCheckpointStatus

from llmsched.runtime import artifact, checkpoint, context, elastic, environment, progress
from llmsched.runtime.ray_internals import DataParallelTrainer, TrainApi, function_of
from llmsched.runtime.storage import Storage


class _Published(NamedTuple):
    step: int
    checkpoint: checkpoint.Checkpoint
    metrics: dict[str, Any]


class LoopApi(TrainApi):  # type: ignore[misc]
    """Of one worker, for as long as its loop runs. `together` is Ray Train's own way to carry rank 0's word to all; a
    test may give another."""

    def __init__(self, together: Callable[[Any], Any] | None = None) -> None:
        super().__init__()
        self._together = together or super().broadcast_from_rank_zero
        self._reports = self._step = 0
        self._metrics: dict[str, Any] = {}
        self._published: list[_Published] = []
        self._resumed: _Published | None = None
        self._has_looked = self._counts = False
        self._left_out: set[str] = set()
        self._shards: dict[str, Any] = {}

    # -- what the loop calls, by way of ray.train ----------------------------------------------------------------

    def report(
        self,
        metrics: dict[str, Any],
        checkpoint: Checkpoint | None = None,
        checkpoint_dir_name: str | None = None,
        checkpoint_upload_mode: CheckpointUploadMode = CheckpointUploadMode.SYNC,
        delete_local_checkpoint_after_upload: bool | None = None,
        checkpoint_upload_fn: Callable[[Checkpoint, str], Checkpoint] | None = None,
        validation: Any = False,
    ) -> None:
        """Every rank calls it equally often, and returns when the checkpoint is published: what several ranks report
        becomes one folder. Raises elastic.Stopped once the gang is asked to leave and this checkpoint is safe."""
        if validation:
            raise environment.UserError(
                "ray.train.report(validation=...): a run here validates nothing beside the loop. Evaluate in the loop "
                "and report the numbers, or leave validation out."
            )
        where = context.current()
        self._look()
        self._reports += 1
        if checkpoint is not None and checkpoint_upload_fn is not None:
            checkpoint = checkpoint_upload_fn(checkpoint, checkpoint_dir_name or f"checkpoint_{self._reports:06d}")
        if checkpoint is not None and where.rank != 0:
            # Shared by all ranks, and swept by the next attempt when this one ends in between.
            self._store(where).put_folder(f"{self._parts(where)}/{where.rank:06d}", _copy(checkpoint))
        # Rank 0 says which step this is; nobody hears it before every rank has stored its part.
        step, asked = self._together([self._step_of(metrics), where.rank == 0 and elastic.is_asked()])
        self._step = int(step)
        has_one = self._publish(where, checkpoint) if where.rank == 0 else None
        has_one = self._together(has_one)  # and nobody goes on before it is published
        if checkpoint is not None and delete_local_checkpoint_after_upload:
            shutil.rmtree(checkpoint.path, ignore_errors=True)
        self._show(metrics)
        if has_one:
            self._published.append(_Published(self._step, _known(where, self._step), dict(metrics)))
            if asked:
                elastic.hear(asked)
                raise elastic.Stopped(self._step)

    def get_checkpoint(self) -> Checkpoint | None:
        """The newest one, of this attempt or of those before it."""
        self._look()
        newest = self._newest()
        return None if newest is None else Checkpoint.from_directory(checkpoint.fetch(newest.checkpoint))

    def get_all_reported_checkpoints(
        self, consistency_mode: Any = None, timeout_s: float | None = None
    ) -> list[ReportedCheckpoint]:
        """Those of this attempt that are kept still, and the one that it began from; oldest first."""
        self._look()
        keep = checkpoint.keeps(context.current())
        known = [*([self._resumed] if self._resumed else []), *self._published][-keep:]
        return [
            ReportedCheckpoint(
                Checkpoint.from_directory(checkpoint.fetch(one.checkpoint)),
                one.metrics,
                ReportedCheckpointStatus.COMMITTED,
            )
            for one in known
        ]

    def get_preemption_info(self) -> PreemptionInfo | None:
        """Not None once the gang is asked to leave: report a checkpoint, and it leaves there. Every rank must call it
        equally often; each hears of its own node, and of no deadline."""
        where = context.current()
        if not self._together(where.rank == 0 and elastic.is_asked()):
            return None
        return PreemptionInfo(None, {ray.get_runtime_context().get_node_id(): [where.rank]})

    def get_dataset_shard(self, dataset_info: Any) -> Any:
        name = dataset_info.dataset_name
        if name not in self._shards:
            given = f"it has {', '.join(map(repr, sorted(self._shards)))}" if self._shards else "none is handed over"
            raise environment.UserError(
                f"ray.train.get_dataset_shard({name!r}): {given}. Data sets come with a trainer that the loop hands "
                'over, TorchTrainer(..., datasets={"train": ...}); any other loop reads its data itself.'
            )
        return self._shards[name]

    # -- what the worker calls -----------------------------------------------------------------------------------

    def hand_over(self, trainer: Any, config: Mapping[str, Any]) -> Callable[[], Any]:
        """The function of a trainer, with its configuration under `config`, to be run on this worker."""
        if ignored := _without_effect(trainer):
            self._note(f"of the trainer, {', '.join(ignored)} has no effect here: the spec of the workload says it")
        if trainer.datasets:
            self._split(trainer)
        trainer.train_loop_config = {**(trainer.train_loop_config or {}), **config} or None
        return function_of(trainer)

    def keep_metrics(self) -> None:
        """Into the receipt, whatever becomes of the attempt. Rank 0 alone has any."""
        if self._metrics:
            artifact.metrics(**self._metrics)

    def keep_result(self) -> None:
        """The last checkpoint is the result, unless the loop has saved another."""
        where = context.current()
        newest = self._newest()
        if where.rank != 0 or newest is None or not self._counts:
            return
        if artifact.read_result(where.storage, where.gang, where.attempt, where.epoch)["artifact"] is None:
            source = checkpoint.fetch(newest.checkpoint)
            artifact.save(partial(_copy_files, source))

    # -- how -----------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """For what an attempt before this one left. No collective: any rank may be the only one to ask, and none can
        publish before all have reported."""
        if self._has_looked:
            return
        self._has_looked = self._counts = True
        found = checkpoint.latest(together=False)
        if found is None:
            return
        self._step = found.step
        self._resumed = _Published(found.step, found, {})
        self._note(f"resumed at step {found.step}, saved by {found.world_size} workers")

    def _newest(self) -> _Published | None:
        return self._published[-1] if self._published else self._resumed

    def _step_of(self, metrics: Mapping[str, Any]) -> int:
        """Its own `step`, where it counts upwards; else one more than the last."""
        for name in ("step", "global_step"):
            said = metrics.get(name)
            if isinstance(said, numbers.Integral) and not isinstance(said, bool) and int(said) > self._step:
                return int(said)
        return self._step + 1

    def _publish(self, where: context.Context, mine: Checkpoint | None) -> bool:
        store = self._store(where)
        parts = self._parts(where)
        others = sorted({name.removeprefix(parts).split("/")[1] for name in store.list(parts)})
        if mine is None and not others:
            return False

        def write(folder: Path) -> None:
            for each in others:
                shutil.copytree(
                    store.fetch_folder(f"{parts}/{each}", where.local_dir / "parts"), folder, dirs_exist_ok=True
                )
            if mine is not None:
                _copy(mine)(folder)

        checkpoint.save(self._step, write)
        if others:
            store.delete(parts)
        return True

    def _parts(self, where: context.Context) -> str:
        return f"{where.gang}/checkpoints/{where.attempt}-{where.epoch}/parts-{self._reports}"

    def _store(self, where: context.Context) -> Storage:
        return checkpoint.store_of(where)

    def _show(self, metrics: Mapping[str, Any]) -> None:
        plain = self._plain(metrics)
        if context.current().rank == 0:
            self._metrics |= {
                name: value for name, value in plain.items() if isinstance(value, (int, float)) and name != "step"
            }
            progress.report(**{**plain, "step": self._step})

    def _plain(self, metrics: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
        """Numbers and words under names with dots; what is neither is named once, in the log."""
        plain: dict[str, Any] = {}
        for name, value in metrics.items():
            if isinstance(value, Mapping):
                plain |= self._plain(value, f"{prefix}{name}.")
                continue
            try:
                plain |= progress.plain_values({f"{prefix}{name}": value})
            except (TypeError, ValueError, RuntimeError):
                if value is not None and name not in self._left_out:
                    self._left_out.add(name)
                    kind = type(value).__name__
                    self._note(f"{prefix}{name!s} is not shown: it is a {kind}, not a number or a short string")
        return plain

    def _split(self, trainer: Any) -> None:
        """Rank 0 cuts the data sets for all: as Ray Train does, by the trainer's own `dataset_config`."""
        where = context.current()
        cut = None
        if where.rank == 0:
            datasets = {name: each() if callable(each) else each for name, each in trainer.datasets.items()}
            shards = trainer.data_config.configure(
                datasets, world_size=where.world_size, worker_handles=None, worker_node_ids=None
            )
            cut = [ray.put(one) for one in shards]
        self._shards = ray.get(self._together(cut)[where.rank])

    def _note(self, text: str) -> None:
        if context.current().rank == 0:
            print(f"[llmsched] {text}", file=sys.stderr, flush=True)
            progress.report(note=text)


def is_trainer(found: Any) -> bool:
    return isinstance(found, DataParallelTrainer)


def _known(where: context.Context, step: int) -> checkpoint.Checkpoint:
    """A checkpoint that rank 0 of this attempt has published."""
    key = checkpoint.key_of(where, step)
    uri = checkpoint.store_of(where).uri_of(key)
    return checkpoint.Checkpoint(uri, key, step, None, where.attempt, where.epoch, where.world_size)


def _copy(source: Checkpoint) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        with source.as_directory() as path:
            _copy_files(path, folder)

    return write


def _copy_files(source: str | Path, folder: Path) -> None:
    """Without the manifest of one that was published before: it gets one of its own."""
    shutil.copytree(source, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(checkpoint.MANIFEST))


def _without_effect(trainer: Any) -> list[str]:
    """What a trainer asks for and this gang decides: sizes, places, restarts, and where checkpoints go."""
    run, scaling = trainer.run_config, trainer.scaling_config
    names = {
        "scaling_config.num_workers": scaling.num_workers != context.current().world_size,
        "scaling_config.resources_per_worker": bool(scaling.resources_per_worker),
        "run_config.storage_path": run.storage_path is not None,
        "run_config.failure_config": getattr(run.failure_config, "max_failures", 0) != 0,
        "run_config.checkpoint_config": any(
            getattr(run.checkpoint_config, name, None) is not None
            for name in ("num_to_keep", "checkpoint_score_attribute")
        ),
        "run_config.callbacks": bool(run.callbacks),
        "validation_config": trainer.validation_config is not None,
    }
    return [name for name, is_given in names.items() if is_given]
