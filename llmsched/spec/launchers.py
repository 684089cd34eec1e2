"""Programs that start the processes of a worker by themselves, by their command lines. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

# As a word of the command, or within the text that a shell is given.
_BEFORE, _AFTER = r"(?:^|[\s;&|(/])", r"(?=$|[\s;&|)])"
_TORCHRUN = re.compile(rf"{_BEFORE}(?:torchrun|torch\.distributed\.(?:run|launch)){_AFTER}")
_ACCELERATE = re.compile(rf"{_BEFORE}(?:accelerate\s+launch|accelerate\.commands\.launch){_AFTER}")
_DEEPSPEED = re.compile(rf"{_BEFORE}(?:deepspeed|deepspeed\.launcher\.runner){_AFTER}(?!.*\s--no_ssh\b)")
_END = r"(?=$|[\s;&|])"
_ALONE = re.compile(rf"\s--(?:standalone|nnodes[=\s]1(?::1)?){_END}")
_NODES = re.compile(rf"\s--nnodes[=\s](?P<count>[2-9]|[1-9]\d+){_END}")
_FIXED_RANK = re.compile(rf"\s--node[_-]rank[=\s]\d+{_END}")
_MACHINES = re.compile(rf"\s--num[_-]machines[=\s](?P<count>\d+){_END}")
_TOLD = ": each worker is told its place, and how many there are"


def starts_processes(argv: Sequence[str], gpus: float) -> bool:
    """Whether this one command starts the processes of a worker with that many GPUs. `accelerate launch` starts one for
    each GPU, and without GPUs one."""
    line = _line(argv)
    return bool(_TORCHRUN.search(line) or _DEEPSPEED.search(line) or (gpus > 1 and _ACCELERATE.search(line)))


def cannot_meet(argv: Sequence[str], least: int, most: int) -> str:
    """Why `least` to `most` workers that all run this command would not find each other: each would train a copy, or
    wait for ever; "" when nothing says so. What a shell fills in (`--node_rank=$NODE_RANK`) says nothing."""
    line = _line(argv)
    if most > 1 and _DEEPSPEED.search(line):
        return "the deepspeed launcher reaches other workers by ssh, which they do not have; write torchrun instead"
    if _TORCHRUN.search(line):
        return _torchrun_cannot_meet(line, least, most)
    machines = _MACHINES.search(line) if _ACCELERATE.search(line) else None
    if most > 1 and machines and int(machines["count"]) > 1 and not re.search(r"\s--machine_rank[=\s]\$", line):
        return f'"{_said(machines)}" makes every worker machine 0, and all wait for the others; leave it out{_TOLD}'
    return ""


def _torchrun_cannot_meet(line: str, least: int, most: int) -> str:
    if most > 1 and (found := _ALONE.search(line)):
        return f'"{_said(found)}" makes every worker train a copy of its own; leave it out: torchrun finds the others'
    if most > 1 and (found := _FIXED_RANK.search(line)):
        return f'"{_said(found)}" gives every worker the same place, and all wait for the others; leave it out{_TOLD}'
    if (found := _NODES.search(line)) and not least == most == int(found["count"]):
        workers = f"{most}" if least == most else f"{least}..{most}"
        return f'"{_said(found)}" waits for {found["count"]} workers, and workers is {workers}; leave it out{_TOLD}'
    return ""


def _said(found: re.Match[str]) -> str:
    return found[0].strip()


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
