"""Being asked to leave: the same answer on every rank, so that all of them leave after the same step.

Rank 0 asks the supervisor (at most twice a second) and the others hear it through torch.distributed, if the loop uses
it; nothing here imports torch unless the loop has.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

from llmsched.runtime import context

DONE_FILE = "LLMSCHED_DONE"  # names the file that a command makes when it is done although it was told to leave
_EVERY_S = 0.5


class Stopped(Exception):
    """Raised by a loop after it saved and because `should_stop()` said so. `step`: the last step that was done."""

    def __init__(self, step: int | None = None) -> None:
        super().__init__("stopped as asked" if step is None else f"stopped as asked after step {step}")
        self.step = step

    def __reduce__(self) -> Any:  # Ray carries exceptions between processes
        return (Stopped, (self.step,))


_told: context.Context | None = None  # whose loop has heard that it is to leave
_finished: context.Context | None = None  # and whose said that its work is done all the same
_asked: tuple[context.Context | None, float, bool] = (None, 0.0, False)


def should_stop() -> bool:
    """True once the scheduler wants this gang to leave: save a checkpoint and raise Stopped.

    Every rank must call it equally often. Outside llmsched: False. A loop that returns after it has heard True has
    left, not finished, whatever else it did: one that is done at that very step says so with `finished()`.
    """
    where = context.inside()
    if where is None:
        return False
    answer = bool(agree(_ask(where) if where.rank == 0 or not distributed() else False))
    hear(answer)
    return answer


def is_asked() -> bool:
    """What the scheduler wants, to this rank alone: for who carries rank 0's answer to the other ranks by ways of his
    own, and says on each of them that it was heard."""
    where = context.inside()
    return where is not None and _ask(where)


def has_asked() -> bool:
    """What this rank is told, once its program has asked before; False: it never has, or it goes on."""
    where = context.inside()
    return where is not None and _asked[0] is where and _ask(where)


def hear(answer: bool) -> None:
    """This rank knows whether it is to leave: if its loop then returns, it has left."""
    global _told
    if answer:
        _told = context.inside()


def leave(step: int | None = None) -> NoReturn:
    """Go, on every rank, after a checkpoint is saved: raises Stopped in a loop, and ends the program of a task."""
    hear(True)
    where = context.inside()
    if where is not None and where.is_command:
        raise SystemExit(0)
    raise Stopped(step)


def finished() -> None:
    """Say, on every rank, that the work is done although it was asked to leave: it is about to return or to end."""
    global _finished
    _finished = context.inside()
    if _finished is not None and _finished.is_command and (mark := os.environ.get(DONE_FILE)):
        Path(mark).touch()


def has_left() -> bool:
    """Whether the loop of this context, which has returned, was told to leave and did not say that it is done."""
    where = context.inside()
    return where is not None and _told is where and _finished is not where


def agree(value: Any) -> Any:
    """Rank 0's JSON value, on every rank; the value itself where torch.distributed is not in use."""
    dist = distributed()
    if dist is None:
        return value
    torch = sys.modules["torch"]
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    text = json.dumps(value).encode() if dist.get_rank() == 0 else b""
    length = torch.tensor([len(text)], dtype=torch.int64, device=device)
    dist.broadcast(length, src=0)
    if dist.get_rank() == 0:
        payload = torch.frombuffer(bytearray(text), dtype=torch.uint8).to(device)
    else:
        payload = torch.empty(int(length.item()), dtype=torch.uint8, device=device)
    dist.broadcast(payload, src=0)
    return json.loads(bytes(payload.cpu().tolist()))


def _ask(where: context.Context) -> bool:
    global _asked
    asker, at, answer = _asked
    if where.supervisor is None:
        return False
    if asker is where and (answer or time.monotonic() - at < _EVERY_S):
        return answer
    answer = where.supervisor.should_stop()
    _asked = (where, time.monotonic(), answer)
    return answer


def distributed() -> Any:
    """torch.distributed when the loop has it up with more than one rank, else None."""
    dist = sys.modules.get("torch.distributed")
    if dist is None or not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return None
    return dist
