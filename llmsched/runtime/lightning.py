"""Lightning under a scheduler that takes GPUs away and gives others: one callback, one argument.

    from llmsched.runtime.lightning import Elastic

    elastic = Elastic()
    trainer = L.Trainer(..., callbacks=[elastic])
    trainer.fit(model, data, ckpt_path=elastic.checkpoint)

Asked to leave, the run saves after the batch at hand and goes; the next attempt goes on from there. Lightning's loaders
keep no place (but torchdata's StatefulDataLoader): the rest of the epoch it was in reads other rows than it would have.
"""

from __future__ import annotations

import shutil
import time
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback

from llmsched.runtime import artifact, checkpoint, context, elastic, progress

_FILE = "checkpoint.ckpt"
_EVERY_S = 600.0


class Elastic(Callback):  # type: ignore[misc]
    def __init__(self) -> None:
        self._saved_at = time.monotonic()

    @property
    def checkpoint(self) -> str | None:
        """The newest checkpoint's file, for `fit(ckpt_path=)`. Every rank asks, once."""
        found = checkpoint.latest() if context.inside() is not None else None
        return None if found is None else str(checkpoint.fetch(found) / _FILE)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        where = context.inside()
        if where is None:
            return
        total = trainer.estimated_stepping_batches
        total = int(total) if total not in (-1, float("inf")) else None
        progress.report(step=trainer.global_step, total_steps=total, **_numbers(trainer.callback_metrics))
        every = float((where.spec.get("checkpoint") or {}).get("every") or _EVERY_S)
        is_due = time.monotonic() - self._saved_at >= every
        is_asked, is_due = elastic.agree([elastic.is_asked(), is_due])
        if not (is_asked or is_due) or trainer.global_step == total:
            return
        self._save(trainer, where, total)
        if is_asked:
            elastic.leave(trainer.global_step)

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        where = context.inside()
        if where is None:
            return
        file = self._file(trainer, where)
        if where.rank == 0:
            artifact.save(partial(_move, file))
            artifact.metrics(**_numbers(trainer.callback_metrics))
        elastic.finished()

    def _save(self, trainer: Any, where: context.Context, total: int | None) -> None:
        file, step = self._file(trainer, where), int(trainer.global_step)
        checkpoint.save(step, partial(_move, file), step / total if total else None)
        self._saved_at = time.monotonic()

    def _file(self, trainer: Any, where: context.Context) -> Path:
        """Written by rank 0; every rank takes part."""
        file = Path(where.local_dir) / f"lightning-{trainer.global_step}.ckpt"
        trainer.save_checkpoint(file)
        return file


def _move(file: Path, folder: Path) -> None:
    shutil.move(file, folder / _FILE)


def _numbers(metrics: dict[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items()}
