"""Code of a user's own, shipped to Ray in a workdir by the tests of the bridge: a loop and an app."""

import asyncio
import os
import time

import torch
import torch.distributed as dist

from llmsched.runtime import artifact, checkpoint, current, elastic, progress


def loop(config):
    """Add up the ranks of the gang, once a step; `crash_at` raises, `pause` makes a step last."""
    me, total = current(), torch.zeros(1)
    print(f"rank {me.rank} of {me.world_size}, {torch.get_num_threads()} threads")
    found = checkpoint.latest()
    if found:
        total = torch.load(checkpoint.fetch(found) / "total.pt", weights_only=True)
        print(f"resumed after step {found.step}")

    def write(folder):
        torch.save(total, folder / "total.pt")

    for step in range((found.step if found else 0) + 1, config["steps"] + 1):
        if step == config.get("crash_at") and me.rank == 1:
            raise ValueError("a mistake of mine")
        one = torch.ones(1)
        dist.all_reduce(one)
        total += one
        progress.report(step=step, total_steps=config["steps"], pid=os.getpid())
        time.sleep(config.get("pause", 0))
        if step % 5 == 0:
            checkpoint.save(step, write, step / config["steps"])
        if elastic.should_stop():
            checkpoint.save(step, write, step / config["steps"])
            raise elastic.Stopped(step)
    artifact.save(write)
    artifact.metrics(total=total.item())


def hostile(config):
    """Say what no encoding can write and no number can hold, then end as `raises` says."""
    print("caf\udce9")
    progress.report(step=1, note="caf\udce9 \x1b[2J", **{"n\udce9": 10**400})
    artifact.save(lambda folder: (folder / "a").write_text("a"))
    artifact.metrics(**{"caf\udce9": 1.0, "total": 10**400, "loss": float("nan"), "fine": 2})
    if config["raises"] == "text":
        raise ValueError("cannot parse caf\udce9.txt")
    if config["raises"] == "mute":
        raise Mute


class Mute(Exception):
    def __str__(self):
        raise UnicodeDecodeError("utf-8", b"\xe9", 0, 1, "no words")


class Desk:
    """Answers in pieces."""

    def __init__(self, broken=False):
        if broken:
            raise ValueError("there is no desk")

    async def __call__(self, body):
        for n in range(body.get("pieces", 1)):
            yield {"n": n, "pid": os.getpid()}
            await asyncio.sleep(body.get("pause", 0))


def greet():
    """What the wheel beside this file says."""
    import greeter

    print(greeter.WORD)


def uneven(config):
    """Rank 1 is done at once, or leaves without a word; rank 0 waits for it."""
    if current().rank == 1:
        if config.get("leaves"):
            os._exit(0)
        return
    progress.report(step=1)
    dist.all_reduce(torch.zeros(1))


def leaves(rows):
    """Of a batch: without a word."""
    os._exit(3)


class Upper:
    """Of a batch: rows in capitals, all but one."""

    def __init__(self, pause_s):
        self.pause_s = pause_s

    def __call__(self, rows):
        time.sleep(self.pause_s * len(rows))
        assert not any(row["text"] == "word 7" for row in rows), "seven is refused"
        return [{"upper": row["text"].upper()} for row in rows]
