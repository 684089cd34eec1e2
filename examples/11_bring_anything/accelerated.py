"""A loop with Accelerate. Two lines are llmsched's: where to go on, and what is said after each step."""

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from torch.utils.data import DataLoader, TensorDataset

from llmsched.runtime import hf

STEPS = 60

accelerator = Accelerator(dataloader_config=DataLoaderConfiguration(split_batches=True))  # 8 rows a step on any number
torch.manual_seed(0)
points = torch.randn(480, 8)
rows = TensorDataset(points, points.sum(1, keepdim=True))
model = torch.nn.Linear(8, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
model, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(rows, batch_size=8))
step = hf.resume(accelerator)
while step < STEPS:
    for inputs, wanted in accelerator.skip_first_batches(loader, step % len(loader)):
        loss = torch.nn.functional.mse_loss(model(inputs), wanted)
        optimizer.zero_grad()
        accelerator.backward(loss)
        optimizer.step()
        step += 1
        hf.step(accelerator, step, STEPS, loss=accelerator.reduce(loss.detach(), "mean").item())
        if step == STEPS:
            break
accelerator.print("done, loss", round(loss.item(), 4))
accelerator.save_model(model, "model")  # below the working folder: it is kept, as the result
