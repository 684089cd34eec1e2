"""A Lightning module. Two lines are llmsched's: the callback, and where to go on."""

import os

import lightning as L
import torch
from torch.utils.data import DataLoader, TensorDataset

from llmsched.runtime.lightning import Elastic


class Regression(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(8, 1)

    def training_step(self, batch, _):
        inputs, wanted = batch
        loss = torch.nn.functional.mse_loss(self.layer(inputs), wanted)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # torchrun has started them; Lightning wants to be told
nodes = int(os.environ.get("WORLD_SIZE", 1)) // here
torch.manual_seed(0)
points = torch.randn(256, 8)
rows = TensorDataset(points, points.sum(1, keepdim=True))
loader = DataLoader(rows, batch_size=32 // (here * nodes))  # 32 rows a step on any number of processes
elastic = Elastic()
trainer = L.Trainer(
    devices=here,
    num_nodes=nodes,
    max_epochs=8,
    callbacks=[elastic],
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
)
trainer.fit(Regression(), loader, ckpt_path=elastic.checkpoint)
