"""Steps of Adam on sums over rows: what the small models share. Any number of workers gives the same steps."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from llmsched.data.formats import is_missing
from llmsched.data.rows import BadRows, DataError, Row
from llmsched.runtime import checkpoint, data, elastic, progress
from llmsched.runtime.context import current
from workloads import datasets
from workloads.sources import BadInput

# Of every loop's config, with what counts when it is left out; a type: it may not be.
COMMON: dict[str, Any] = {
    "data": str, "steps": 500, "learning_rate": 0.003, "weight_decay": 0.0, "global_batch_size": 64, "seed": 42,
}  # fmt: skip
_KINDS = {int: "whole number", float: "number", str: "text", list: "list"}
_SHOWN_EVERY = 10
_SAVED_EVERY = 500

Loss = Callable[[torch.Tensor, torch.Generator, int], torch.Tensor]
"""(numbers of rows, the chance of this step, where in the step these rows stand) -> the sum of their losses."""


def settings(given: Mapping[str, Any], known: Mapping[str, Any]) -> Any:
    """`given` with what it leaves out, by attribute. Raises BadInput for a name or a kind of value that is none."""
    known = {**COMMON, **known}
    for name, value in given.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f'; did you mean "{near[0]}"?' if near else f"; expected {', '.join(known)}"
            raise BadInput(f'config: there is no "{name}" here{hint}')
        wanted = known[name] if isinstance(known[name], type) else type(known[name])
        if not isinstance(value, (int, float) if wanted is float else wanted) or isinstance(value, bool):
            raise BadInput(f"config.{name}: expected a {_KINDS[wanted]}, got {value!r}")
    if missing := [name for name, value in known.items() if isinstance(value, type) and name not in given]:
        raise BadInput(f'config: "{missing[0]}" is missing')
    found = SimpleNamespace(**{**known, **given})
    if min(found.steps, found.global_batch_size) < 1 or found.learning_rate <= 0:
        raise BadInput("config: steps, global_batch_size and learning_rate must be above 0")
    return found


def rows_of(path: str, *columns: str) -> list[Row]:
    """Every row of a data set; each has the columns. Raises BadInput, which names file and row."""
    try:
        rows = datasets.raw({"path": path}, current().inputs, BadRows(path, "refuse"))
    except DataError as error:
        raise BadInput(str(error)) from error
    for row, place in zip(rows, rows.places, strict=True):
        for column in columns:
            if is_missing(row.get(column)):
                raise BadInput(f"data set {path}: {place} has no {column!r}; it has {', '.join(row)}")
    return list(rows)


def numbers_in(rows: Sequence[Row], column: str, path: str) -> list[float]:
    """Raises BadInput."""
    try:
        return [float(row[column]) for row in rows]
    except (TypeError, ValueError) as error:
        raise BadInput(f"data set {path}: the column {column!r} is not of numbers alone: {error}") from error


def learn(model: nn.Module, rows: int, loss_of: Loss, chosen: Any) -> None:
    """Train from where an earlier attempt stopped. Raises elastic.Stopped after a checkpoint is saved."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=chosen.learning_rate, weight_decay=chosen.weight_decay)
    found = checkpoint.latest()
    if found:
        state = torch.load(checkpoint.fetch(found) / "state.pt", weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])

    def write(folder: Path) -> None:
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, folder / "state.pt")

    where, batch, steps = current(), chosen.global_batch_size, chosen.steps
    per_epoch = data.steps_per_epoch(rows, batch)
    start = found.step if found else 0
    for step, _, mine in data.batches(rows, batch, start=start, steps=steps, seed=chosen.seed):
        size = min(batch, rows - (step - 1) % per_epoch * batch)  # of the last step of an epoch: what is left
        at = sum(data.shares(size, where.world_size)[: where.rank])
        chance = torch.Generator().manual_seed(chosen.seed * 1_000_003 + step)
        optimizer.zero_grad()
        loss = torch.zeros(())
        if mine:
            loss = loss_of(torch.tensor(mine), chance, at) / size
            loss.backward()
        shown = _add_up(model, loss.detach())
        optimizer.step()
        if step % _SHOWN_EVERY == 0 or step == steps:
            progress.report(step=step, total_steps=steps, loss=round(float(shown), 5))
            if elastic.should_stop() and step < steps:
                checkpoint.save(step, write, step / steps)
                raise elastic.Stopped(step)
        if step % _SAVED_EVERY == 0 and step < steps:
            checkpoint.save(step, write, step / steps)


def _add_up(model: nn.Module, loss: torch.Tensor) -> torch.Tensor:
    """Sum gradients and loss over all workers, in one message: each gave its share of the step's sum."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        for each in model.parameters():
            each.grad = torch.zeros_like(each) if each.grad is None else each.grad
        parts = [*(each.grad for each in model.parameters() if each.grad is not None), loss]
        flat = torch.cat([each.flatten() for each in parts])
        dist.all_reduce(flat)
        for each, summed in zip(parts, flat.split([each.numel() for each in parts]), strict=True):
            each.copy_(summed.view_as(each))
    return loss


def layers(inputs: int, hidden: Sequence[int], outputs: int) -> nn.Sequential:
    """Fully connected; without `hidden` a linear model."""
    sizes = [inputs, *hidden]
    inner = [part for one, other in zip(sizes, sizes[1:], strict=False) for part in (nn.Linear(one, other), nn.ReLU())]
    return nn.Sequential(*inner, nn.Linear(sizes[-1], outputs))
