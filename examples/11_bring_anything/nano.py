"""A small GPT in the manner of nanoGPT: rows by chance, DDP by hand, `out/ckpt.pt` every few steps, and on from there.

python nano.py, or torchrun nano.py. It learns its own source. No line of it is llmsched's.
"""

import math
import os
from pathlib import Path

import torch
from torch.nn import functional

STEPS, SAVE_EVERY, ROWS, BLOCK, WIDTH, VOCABULARY = 120, 10, 16, 32, 32, 128
OUT = Path("out/ckpt.pt")

ddp = int(os.environ.get("RANK", -1)) != -1
if ddp:
    torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
rank, world = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if ddp else (0, 1)
device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
text = torch.tensor([min(ord(letter), VOCABULARY - 1) for letter in Path(__file__).read_text()], device=device)


class Gpt(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = torch.nn.Embedding(VOCABULARY, WIDTH), torch.nn.Embedding(BLOCK, WIDTH)
        self.block = torch.nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, dropout=0.0, batch_first=True)
        self.head = torch.nn.Linear(WIDTH, VOCABULARY)

    def forward(self, seen: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        hidden = self.words(seen) + self.places(torch.arange(seen.shape[1], device=seen.device))
        mask = torch.nn.Transformer.generate_square_subsequent_mask(seen.shape[1], device=seen.device)
        return functional.cross_entropy(
            self.head(self.block(hidden, mask, is_causal=True)).flatten(0, 1), wanted.flatten()
        )


def batch(begins: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    rows = torch.stack([text[begin : begin + BLOCK + 1] for begin in begins])
    return rows[:, :-1], rows[:, 1:]


torch.manual_seed(1337)
raw = Gpt().to(device)
optimizer = torch.optim.AdamW(raw.parameters(), lr=1e-2)
step = 0
if OUT.exists():
    kept = torch.load(OUT, map_location=device, weights_only=True)
    raw.load_state_dict(kept["model"])
    optimizer.load_state_dict(kept["optimizer"])
    step = kept["step"]
    print(f"goes on from step {step}", flush=True)
model = torch.nn.parallel.DistributedDataParallel(raw) if ddp else raw
torch.manual_seed(1337 + rank + 1000 * step)  # every rank, and every attempt, draws other rows
while step < STEPS:
    for group in optimizer.param_groups:
        group["lr"] = 1e-2 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * step / STEPS)))
    loss = model(*batch(torch.randint(len(text) - BLOCK - 1, (ROWS // world,))))
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    step += 1
    if step % SAVE_EVERY == 0 and rank == 0:
        OUT.parent.mkdir(exist_ok=True)
        torch.save(
            {"model": raw.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, OUT.with_suffix(".new")
        )
        OUT.with_suffix(".new").rename(OUT)  # whoever is ended meanwhile leaves the one before
        print(f"step {step}: loss {loss.item():.4f}", flush=True)
with torch.no_grad():
    held = batch(torch.arange(0, len(text) - BLOCK - 1, BLOCK))
    if rank == 0:
        print(f"answer {raw(*held).item():.4f}", flush=True)
if ddp:
    torch.distributed.destroy_process_group()
