"""Teaches a small network the sine; may be stopped at any step, and goes on there. By hand: python sine.py"""

import math
from pathlib import Path

import torch
from torch import nn

from llmsched.runtime import Context, artifact, checkpoint, elastic, enter, progress


def loop(config: dict) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=config["lr"])
    steps, begin = config["steps"], 0

    found = checkpoint.latest()
    if found:
        state = torch.load(checkpoint.fetch(found) / "state.pt", weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        begin = found.step
    print(f"begins after step {begin}")

    def write(folder: Path) -> None:
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, folder / "state.pt")

    for step in range(begin + 1, steps + 1):
        random = torch.Generator().manual_seed(step)  # the same batch in the same step, in whatever attempt
        x = (torch.rand(256, 1, generator=random) * 2 - 1) * math.pi
        loss = nn.functional.mse_loss(model(x), x.sin())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        progress.report(step=step, total_steps=steps, loss=loss.detach())
        if elastic.should_stop():  # somebody more urgent: save where we are, and leave
            checkpoint.save(step, write, step / steps)
            print(f"saved step {step} and left")
            raise elastic.Stopped(step)
        if step % config["save_every"] == 0:
            checkpoint.save(step, write, step / steps)

    artifact.save(write)
    artifact.metrics(loss=loss.detach())


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder, enter(Context.alone(folder)):
        loop({"steps": 1000, "save_every": 250, "lr": 0.001})
        print(artifact.read_result(folder, "by-hand/0", 1, 1)["metrics"])
