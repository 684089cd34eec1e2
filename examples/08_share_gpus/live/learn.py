"""A fine-tune that counts how often it has learned from each row, so that a lost or repeated one shows.

Its arithmetic is small; each row takes the `row_s` seconds that it would on a GPU, so more workers are faster.
"""

import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from llmsched.runtime import artifact, checkpoint, data, elastic, progress

ROWS = 1200


def loop(config: dict) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = nn.Linear(8, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    points = torch.randn(ROWS, 8)
    batch, steps = config["global_batch_size"], config["epochs"] * ROWS // config["global_batch_size"]

    seen = torch.zeros(ROWS, dtype=torch.int64)
    found = checkpoint.latest()
    if found:
        state = torch.load(checkpoint.fetch(found) / "state.pt", weights_only=True)
        model.load_state_dict(state["model"])
        seen = state["seen"]

    def write(folder: Path) -> None:
        torch.save({"model": model.state_dict(), "seen": seen}, folder / "state.pt")

    for step, _, rows in data.batches(ROWS, batch, start=found.step if found else 0, steps=steps, seed=7):
        loss = (model(points[rows]).squeeze(1) - points[rows].sum(1)).square().sum() / batch
        optimizer.zero_grad()
        loss.backward()
        time.sleep(len(rows) * config["row_s"])
        here = torch.zeros(ROWS, dtype=torch.int64)
        here[rows] = 1
        loss = loss.detach()
        if dist.is_initialized():
            for part in (*(each.grad for each in model.parameters()), loss, here):
                dist.all_reduce(part)
        optimizer.step()
        seen += here
        progress.report(step=step, total_steps=steps, loss=loss)
        if elastic.should_stop():
            checkpoint.save(step, write, step / steps)
            raise elastic.Stopped(step)
        if step % config["save_every"] == 0:
            checkpoint.save(step, write, step / steps)

    artifact.save(write)
    missed, again = (config["epochs"] - seen).clamp(min=0).sum(), (seen - config["epochs"]).clamp(min=0).sum()
    artifact.metrics(loss=loss, rows=seen.sum(), lost=missed, repeated=again)
