"""The same desk as one would write it on Ray alone, to count lines and to see what is missing: README.md.

It stands for its shape: nothing of this repository runs it.
"""

from __future__ import annotations

import json
import secrets
from collections import OrderedDict
from pathlib import Path
from typing import Any

import faiss
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from ray import serve, train
from ray.serve.handle import DeploymentHandle
from ray.train.torch import TorchTrainer, prepare_data_loader, prepare_model
from starlette.requests import Request
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

DATA, MINILM, SMOL, RESULTS = Path("data"), "models/minilm", "models/smollm2", Path("/shared/desk")
UNKNOWN, SMALL_TALK, LEAST, SESSIONS = "I do not know that.", "What can I do for you?", 0.3, 1000


def rows_of(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DATA / name).read_text().splitlines()]


def steps(model: Any, rows: list[Any], collate: Any, config: dict[str, Any]) -> None:
    loader = prepare_data_loader(torch.utils.data.DataLoader(rows, config["batch"], shuffle=True, collate_fn=collate))
    optimizer = torch.optim.AdamW(model.parameters(), lr=config["lr"])
    for step, batch in enumerate(loader):
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        train.report({"step": step, "loss": loss.item()})
        if step == config["steps"]:
            break


def learn_intents(config: dict[str, Any]) -> None:
    rows, tokens = rows_of("intents-train.jsonl"), AutoTokenizer.from_pretrained(MINILM)
    labels = sorted({row["label"] for row in rows})
    model = prepare_model(AutoModelForSequenceClassification.from_pretrained(MINILM, num_labels=len(labels)))

    def collate(some: list[Any]) -> Any:
        texts = tokens([row["text"] for row in some], padding=True, truncation=True, max_length=48, return_tensors="pt")
        return {**texts, "labels": torch.tensor([labels.index(row["label"]) for row in some])}

    steps(model, rows, collate, config)
    if train.get_context().get_world_rank() == 0:
        inner = getattr(model, "module", model)
        inner.config.id2label = dict(enumerate(labels))
        inner.save_pretrained(RESULTS / "intents")
        tokens.save_pretrained(RESULTS / "intents")


def learn_follow_ups(config: dict[str, Any]) -> None:
    rows, tokens = rows_of("follow-ups-train.jsonl"), AutoTokenizer.from_pretrained(SMOL)
    lora = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"])
    model = prepare_model(get_peft_model(AutoModelForCausalLM.from_pretrained(SMOL), lora))

    def collate(some: list[Any]) -> Any:
        whole = [tokens.apply_chat_template(row["messages"], tokenize=False) for row in some]
        asked = [
            tokens.apply_chat_template(row["messages"][:-1], tokenize=False, add_generation_prompt=True) for row in some
        ]
        batch = tokens(whole, padding=True, truncation=True, max_length=96, return_tensors="pt")
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        for row, text in zip(labels, asked, strict=True):
            row[: len(tokens(text)["input_ids"])] = -100
        return {**batch, "labels": labels}

    steps(model, rows, collate, config)
    if train.get_context().get_world_rank() == 0:
        getattr(model, "module", model).save_pretrained(RESULTS / "whole")


@serve.deployment(ray_actor_options={"num_gpus": 0.5}, autoscaling_config={"min_replicas": 1, "max_replicas": 2})
class Intents:
    def __init__(self) -> None:
        self.tokens = AutoTokenizer.from_pretrained(RESULTS / "intents")
        self.model = AutoModelForSequenceClassification.from_pretrained(RESULTS / "intents").eval()

    @serve.batch(max_batch_size=32, batch_wait_timeout_s=0.01)
    async def label(self, texts: list[str]) -> list[str]:
        with torch.no_grad():
            said = self.model(**self.tokens(texts, padding=True, truncation=True, return_tensors="pt")).logits
        return [self.model.config.id2label[int(at)] for at in said.argmax(1)]


@serve.deployment(ray_actor_options={"num_gpus": 0.5}, autoscaling_config={"min_replicas": 1, "max_replicas": 2})
class Knowledge:
    """Reads its passages once; what comes later is known after the next deployment."""

    def __init__(self) -> None:
        self.tokens, self.model = AutoTokenizer.from_pretrained(MINILM), AutoModel.from_pretrained(MINILM).eval()
        self.rows = [row for name in ("facts", "help") for row in rows_of(f"knowledge/{name}.jsonl")]
        vectors = torch.cat([self.vectors([row["text"]]) for row in self.rows]).numpy()
        self.index = faiss.IndexFlatIP(vectors.shape[1])
        self.index.add(vectors)

    @torch.no_grad()
    def vectors(self, texts: list[str]) -> Any:
        batch = self.tokens(texts, padding=True, truncation=True, return_tensors="pt")
        mask = batch["attention_mask"][..., None]
        return torch.nn.functional.normalize((self.model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1))

    def find(self, question: str) -> list[dict[str, Any]]:
        scores, places = self.index.search(self.vectors([question]).numpy(), 3)
        return [self.rows[at] for score, at in zip(scores[0], places[0], strict=True) if score >= LEAST]


@serve.deployment(ray_actor_options={"num_gpus": 1}, autoscaling_config={"min_replicas": 1, "max_replicas": 2})
class Assistant:
    """One question at a time. Another adapter is another deployment, and requests wait for it."""

    def __init__(self) -> None:
        self.tokens = AutoTokenizer.from_pretrained(SMOL)
        self.model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(SMOL), RESULTS / "whole").eval()

    @torch.no_grad()
    def made_whole(self, earlier: str, now: str) -> str:
        asked = [{"role": "user", "content": f"Earlier: {earlier}\nNow: {now}\nWhole:"}]
        ids = self.tokens.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=False)
        said = self.model.generate(ids, max_new_tokens=64, do_sample=False)[0, ids.shape[1] :]
        return self.tokens.decode(said, skip_special_tokens=True).strip()


@serve.deployment
class Desk:
    """Sessions are this replica's alone, so there is one."""

    def __init__(self, intents: DeploymentHandle, knowledge: DeploymentHandle, assistant: DeploymentHandle) -> None:
        self.intents, self.knowledge, self.assistant = intents, knowledge, assistant
        self.sessions: OrderedDict[str, str] = OrderedDict()

    async def __call__(self, request: Request) -> dict[str, Any]:
        body = await request.json()
        question, session = body["message"], body.get("session") or secrets.token_urlsafe(16)
        if earlier := self.sessions.get(session):
            question = await self.assistant.made_whole.remote(earlier, question)
        self.sessions[session] = question
        if len(self.sessions) > SESSIONS:
            self.sessions.popitem(last=False)
        if await self.intents.label.remote(question) == "small_talk":
            return {"session": session, "answer": SMALL_TALK, "sources": []}
        found = await self.knowledge.find.remote(question)
        return {"session": session, "answer": found[0]["answer"] if found else UNKNOWN, "sources": found}


if __name__ == "__main__":
    two = train.ScalingConfig(num_workers=2, use_gpu=True)
    one = train.ScalingConfig(num_workers=1, use_gpu=True)
    TorchTrainer(learn_intents, train_loop_config={"lr": 3e-4, "steps": 36, "batch": 16}, scaling_config=one).fit()
    TorchTrainer(learn_follow_ups, train_loop_config={"lr": 3e-3, "steps": 24, "batch": 2}, scaling_config=two).fit()
    serve.run(Desk.bind(Intents.bind(), Knowledge.bind(), Assistant.bind()), name="desk")
