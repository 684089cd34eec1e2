"""Programs that start the processes of a worker by themselves, by their command lines. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

# As a word of the command, or within the text that a shell is given.
_BEFORE, _AFTER = r"(?:^|[\s;&|(/])", r"(?=$|[\s;&|)])"
_TORCHRUN = re.compile(rf"{_BEFORE}(?:torchrun|torch\.distributed\.(?:run|launch)){_AFTER}")
_ACCELERATE = re.compile(rf"{_BEFORE}(?:accelerate\s+launch|accelerate\.commands\.launch){_AFTER}")
_DEEPSPEED = re.compile(rf"{_BEFORE}(?:deepspeed|deepspeed\.launcher\.runner){_AFTER}(?!.*\s--no_ssh\b)")
_ALONE = re.compile(r"\s--(?:standalone|nnodes[=\s]1(?::1)?)(?=$|[\s;&|])")


def starts_processes(argv: Sequence[str], gpus: float) -> bool:
    """Whether this one command starts the processes of a worker with that many GPUs. `accelerate launch` starts one for
    each GPU, and without GPUs one."""
    line = _line(argv)
    return bool(_TORCHRUN.search(line) or _DEEPSPEED.search(line) or (gpus > 1 and _ACCELERATE.search(line)))


def stays_alone(argv: Sequence[str]) -> str:
    """Why the workers of a gang would not find each other with this command, so that each would train a copy; "" when
    nothing says so."""
    line = _line(argv)
    if _TORCHRUN.search(line) and (found := _ALONE.search(line)):
        return (
            f'"{found[0].strip()}" makes every worker train a copy of its own; leave it out: torchrun finds the others'
        )
    if _DEEPSPEED.search(line):
        return "the deepspeed launcher reaches other workers by ssh, which they do not have; write torchrun instead"
    return ""


def without_gpus(argv: Sequence[str]) -> list[str]:
    """The same command where there are no GPUs: `accelerate launch` joins nobody then unless it is told."""
    words = list(argv)
    for index, pair in enumerate(zip(words, words[1:], strict=False)):
        if pair[0].rpartition("/")[2] == "accelerate" and pair[1] == "launch":
            given = any(word in ("--cpu", "--use_cpu") for word in words)
            return words if given else [*words[: index + 2], "--cpu", *words[index + 2 :]]
    return words


def _line(argv: Sequence[str]) -> str:
    return " ".join(argv)
