"""The same application as one would write it on Ray alone, to count lines and to see what is missing: README.md.

It stands for its shape: nothing of this repository runs it.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import ray
import torch
from prepare import FEED
from ray import serve, train
from ray.train.torch import TorchTrainer, prepare_data_loader, prepare_model
from starlette.requests import Request
from transformers import AutoModelForSequenceClassification, AutoTokenizer

DATA, MODEL, RESULT, HOOK = Path("data"), "models/minilm", "/shared/opinion", "https://hooks.example/desk"


def learn(config: dict[str, Any]) -> None:
    rows = [json.loads(line) for line in (DATA / "opinion-train.jsonl").read_text().splitlines()]
    labels = sorted({row["label"] for row in rows})
    tokens = AutoTokenizer.from_pretrained(MODEL)
    model = prepare_model(AutoModelForSequenceClassification.from_pretrained(MODEL, num_labels=len(labels)))
    inner = getattr(model, "module", model)
    inner.config.id2label = dict(enumerate(labels))
    optimizer = torch.optim.AdamW(model.parameters(), lr=config["lr"])

    def batch_of(some: list[Any]) -> tuple[Any, Any]:
        texts = tokens([row["text"] for row in some], padding=True, truncation=True, max_length=32, return_tensors="pt")
        return texts, torch.tensor([labels.index(row["label"]) for row in some])

    loader = prepare_data_loader(torch.utils.data.DataLoader(rows, 16, shuffle=True, collate_fn=batch_of))
    for step, (texts, true) in enumerate(loader):
        loss = torch.nn.functional.cross_entropy(model(**texts).logits, true)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        train.report({"step": step, "loss": loss.item()})
        if step == config["steps"]:
            break
    if train.get_context().get_world_rank() == 0:
        inner.save_pretrained(RESULT)
        tokens.save_pretrained(RESULT)


@serve.deployment(ray_actor_options={"num_gpus": 1})
class Opinion:
    def __init__(self) -> None:
        self.tokens = AutoTokenizer.from_pretrained(RESULT)
        self.model = AutoModelForSequenceClassification.from_pretrained(RESULT).eval()

    @serve.batch(max_batch_size=64, batch_wait_timeout_s=0.01)
    async def label(self, texts: list[str]) -> list[str]:
        with torch.no_grad():
            said = self.model(**self.tokens(texts, padding=True, truncation=True, return_tensors="pt")).logits
        return [self.model.config.id2label[int(at)] for at in said.argmax(1)]

    async def __call__(self, request: Request) -> str:
        return await self.label((await request.json())["text"])


@ray.remote(num_cpus=1)
class Watch:
    """Counts by day; more than three times the last four weeks is a surge. Knows nothing after a restart."""

    def __init__(self, hook: str) -> None:
        self.hook, self.days, self.told = hook, Counter[str](), set[str]()

    def take(self, rows: list[dict[str, str]]) -> None:
        self.days.update(row["created_at"][:10] for row in rows)
        *before, today = sorted(self.days)[-29:]
        usual = sum(self.days[day] for day in before) / max(len(before), 1)
        if len(before) == 28 and self.days[today] > 3 * usual and today not in self.told:
            self.told.add(today)
            httpx.post(self.hook, json={"text": f"{today}: {self.days[today]} where {usual:.1f} are usual"})


@ray.remote(num_gpus=1, max_restarts=-1)
class Feed:
    """Labels what is added to a file. What was labelled when it dies is labelled again, or lost."""

    def follow(self, file: Path, watch: Any) -> None:
        opinion = serve.get_app_handle("opinion")
        with file.open() as lines:
            while True:
                rows = [json.loads(line) for line in lines.readlines()]
                for row in rows:
                    row["label"] = opinion.label.remote(row["text"]).result()
                watch.take.remote(rows)
                time.sleep(2)


if __name__ == "__main__":
    scaling = train.ScalingConfig(num_workers=2, use_gpu=True)
    TorchTrainer(learn, train_loop_config={"lr": 3e-4, "steps": 120}, scaling_config=scaling).fit()
    serve.run(Opinion.bind(), name="opinion")
    ray.get(Feed.remote().follow.remote(FEED / "inbox" / "feed.jsonl", Watch.remote(HOOK)))
