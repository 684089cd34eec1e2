"""A Ray Train program as its author has it: a train function, a trainer, and `fit` when it is run by hand.

llmsched takes the trainer itself (`train.loop: "ray_train:trainer"`) and runs its function on the workers of the gang.
"""

import tempfile
from pathlib import Path

import ray.train
import torch
from ray.train import Checkpoint, ScalingConfig
from ray.train.torch import TorchTrainer, prepare_data_loader, prepare_model
from torch.utils.data import DataLoader, TensorDataset


def rows() -> TensorDataset:
    points = torch.randn(256, 8, generator=torch.Generator().manual_seed(0))
    return TensorDataset(points, points.sum(1, keepdim=True))


def train_func(config: dict) -> None:
    torch.manual_seed(0)
    model, order, everything = prepare_model(torch.nn.Linear(8, 1)), torch.Generator(), rows()
    loader = prepare_data_loader(DataLoader(everything, batch_size=32, shuffle=True, generator=order))
    optimizer = torch.optim.SGD(model.parameters(), lr=config["lr"])
    begin = 0
    if checkpoint := ray.train.get_checkpoint():
        with checkpoint.as_directory() as folder:
            state = torch.load(Path(folder, "state.pt"), weights_only=True)
        begin = state.pop("epoch") + 1
        getattr(model, "module", model).load_state_dict(state)
    for epoch in range(begin, config["epochs"]):
        order.manual_seed(epoch)
        if ray.train.get_context().get_world_size() > 1:
            loader.sampler.set_epoch(epoch)
        for inputs, wanted in loader:
            loss = torch.nn.functional.mse_loss(model(inputs), wanted)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            loss = torch.nn.functional.mse_loss(model(everything.tensors[0]), everything.tensors[1])
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = None
            if ray.train.get_context().get_world_rank() == 0:
                state = getattr(model, "module", model).state_dict()
                torch.save({**state, "epoch": epoch}, Path(folder, "state.pt"))
                checkpoint = Checkpoint.from_directory(folder)
            ray.train.report({"loss": loss.item(), "epoch": epoch}, checkpoint=checkpoint)


trainer = TorchTrainer(
    train_func,
    train_loop_config={"lr": 0.05, "epochs": 8},
    scaling_config=ScalingConfig(num_workers=2),
)

if __name__ == "__main__":
    print(trainer.fit().metrics)
