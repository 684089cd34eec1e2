"""Learns on which of two spirals a point lies: a train loop of one's own that may be stopped, moved and resized.

Five calls make a loop elastic, all from llmsched.runtime; the rest is plain torch. Run by hand it is one worker:

    python spirals.py
"""

import math
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from llmsched.runtime import Context, artifact, checkpoint, data, elastic, enter, progress

ROWS, HELD_OUT, SAVE_EVERY = 2000, 500, 500


def spirals(rows: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(rows, 2) points and (rows,) labels 0 or 1; the same in every process."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(2, (rows,), generator=random)
    way = torch.rand(rows, generator=random).sqrt() * 3 * math.pi
    angle = way + math.pi * labels
    noise = torch.randn(rows, 2, generator=random) * 0.15
    return torch.stack([way * angle.cos(), way * angle.sin()], 1) / 3 + noise, labels


def loop(config: dict) -> None:
    """One worker of the gang. llmsched has joined the workers through torch.distributed before it calls this."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 2)).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=config["lr"])
    points, labels = (each.to(device) for each in spirals(ROWS, seed=1))
    steps, batch = config["steps"], config["global_batch_size"]

    found = checkpoint.latest()  # 1. where an earlier attempt stopped, perhaps with another number of workers
    if found:
        state = torch.load(checkpoint.fetch(found) / "state.pt", weights_only=True, map_location=device)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        loss = state["loss"]
        print(f"going on after step {found.step}, which {found.world_size} worker(s) saved")

    def write(folder: Path) -> None:
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "loss": loss}
        torch.save(state, folder / "state.pt")

    # 2. this worker's share of every step: the same rows in the same steps, whatever the number of workers
    for step, _, rows in data.batches(ROWS, batch, start=found.step if found else 0, steps=steps, seed=7):
        here = torch.tensor(rows, dtype=torch.long, device=device)
        loss = nn.functional.cross_entropy(model(points[here]), labels[here], reduction="sum") / batch
        optimizer.zero_grad()
        loss.backward()
        loss = add_up(model, loss.detach())
        optimizer.step()
        progress.report(step=step, total_steps=steps, loss=loss)  # 3. for status, progress bars and estimates
        if step % SAVE_EVERY == 0:
            checkpoint.save(step, write, step / steps)  # 4. what a crash costs at most
        if step % 10 == 0 and elastic.should_stop():  # 5. the same answer on every worker
            checkpoint.save(step, write, step / steps)
            raise elastic.Stopped(step)

    points, labels = (each.to(device) for each in spirals(HELD_OUT, seed=2))
    with torch.no_grad():
        right = (model(points).argmax(1) == labels).float().mean()
    artifact.save(write)
    artifact.metrics(loss=loss, **{"eval.accuracy": right})


def add_up(model: nn.Module, loss: torch.Tensor) -> torch.Tensor:
    """Sum gradients and loss over all workers, in one message: each gave its share of the step's sum."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        parts = [each.grad for each in model.parameters()] + [loss]
        flat = torch.cat([each.flatten() for each in parts])
        dist.all_reduce(flat)
        for each, summed in zip(parts, flat.split([each.numel() for each in parts]), strict=True):
            each.copy_(summed.view_as(each))
    return loss


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder, enter(Context.alone(folder)):
        loop({"steps": 500, "lr": 0.003, "global_batch_size": 64})
        print(artifact.read_result(folder, "by-hand/0", 1, 1)["metrics"])
