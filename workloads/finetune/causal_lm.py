"""Causal language modelling in three formats; the loss counts the tokens the model is to say.

    chat        messages: [{role, content}, ...]   through the tokenizer's chat template; the assistant's turns count
    prompt      text and target                    the target and the end of text count
    text        text                               everything counts; long texts become several samples

`format: auto` looks at the columns: messages, else a target, else plain text.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional

from workloads import datasets as reading
from workloads.finetune.task import Score, padded
from workloads.sources import BadInput

IGNORED = -100  # label of a token that does not count


class CausalLM:
    unit = "tokens"
    head_is_new = False
    metrics: tuple[str, ...] = ("loss", "perplexity")

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length

    def samples(self, datasets: Sequence[Mapping[str, Any]], inputs: Mapping[str, str]) -> list[Any]:
        found: list[Any] = []
        for dataset in datasets:
            rows = _rows(dataset, inputs)
            if "messages" in rows[0]:
                if not self.tokenizer.chat_template:
                    raise BadInput(
                        "this base model has no chat template; give prompt and target columns, or plain text"
                    )
                for number, row in enumerate(rows, 1):
                    row["messages"] = _checked(row["messages"], f"data set {dataset['path']}: row {number}")
            elif "target" not in rows[0]:
                rows = [piece for row in rows for piece in self._pieces(str(row["text"]))]
            if not any(any(label != IGNORED for label in self.encode(row)["labels"]) for row in rows):
                raise BadInput(
                    f"data set {dataset['path']}: no token to learn within max_length {self.max_length}; make it larger"
                )
            found += rows
        return found

    def model_class(self) -> Any:
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM

    def model_settings(self) -> dict[str, Any]:
        return {}

    def encode(self, sample: Any) -> dict[str, list[int]]:
        if "input_ids" in sample:
            return {"input_ids": sample["input_ids"], "labels": sample["input_ids"]}
        ids, labels = self._chat(sample["messages"]) if "messages" in sample else self._prompt(sample)
        return {"input_ids": ids[: self.max_length], "labels": labels[: self.max_length]}

    def collate(self, encoded: Sequence[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        ids = [row["input_ids"] for row in encoded]
        return {
            "input_ids": padded(
                ids, self._end() if self.tokenizer.pad_token_id is None else self.tokenizer.pad_token_id
            ),
            "attention_mask": padded([[1] * len(row) for row in ids], 0),
            "labels": padded([row["labels"] for row in encoded], IGNORED),
        }

    def score(self, model: Any, batch: dict[str, torch.Tensor], smoothing: float = 0.0) -> Score:
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits[
            :, :-1
        ]
        labels = batch["labels"][:, 1:]
        counts = labels != IGNORED  # gather first: the vocabulary is wide and most prompt tokens do not count
        loss = functional.cross_entropy(
            logits[counts].float(), labels[counts], reduction="sum", label_smoothing=smoothing
        )
        return Score(loss, int(counts.sum()), samples=len(labels))

    def _chat(self, messages: list[dict[str, str]]) -> tuple[list[int], list[int]]:
        """Ids of the whole dialogue, and labels where the assistant speaks (its end-of-turn mark included)."""

        def rendered(count: int, prompt: bool) -> str:
            return str(
                self.tokenizer.apply_chat_template(messages[:count], tokenize=False, add_generation_prompt=prompt)
            )

        text = rendered(len(messages), False)
        spans = [
            (
                len(os.path.commonprefix([rendered(index, True), text])),
                len(os.path.commonprefix([rendered(index + 1, False), text])),
            )
            for index, message in enumerate(messages)
            if message["role"] == "assistant"
        ]
        coded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        labels = [
            token if any(start >= first and end <= last for first, last in spans) and end > start else IGNORED
            for token, (start, end) in zip(coded["input_ids"], coded["offset_mapping"], strict=True)
        ]
        return coded["input_ids"], labels

    def _prompt(self, row: Mapping[str, Any]) -> tuple[list[int], list[int]]:
        prompt = self.tokenizer(str(row["text"]))["input_ids"]
        if prompt and prompt[-1] == self.tokenizer.eos_token_id:
            prompt = prompt[:-1]
        target = [*self.tokenizer(str(row["target"]), add_special_tokens=False)["input_ids"], self._end()]
        return [*prompt, *target], [*[IGNORED] * len(prompt), *target]

    def _pieces(self, text: str) -> list[dict[str, list[int]]]:
        ids = [*self.tokenizer(text, add_special_tokens=False)["input_ids"], self._end()]
        return [{"input_ids": ids[at : at + self.max_length]} for at in range(0, len(ids), self.max_length)]

    def _end(self) -> int:
        end = self.tokenizer.eos_token_id
        return int(end if end is not None else self.tokenizer.pad_token_id or 0)


def _rows(dataset: Mapping[str, Any], inputs: Mapping[str, str]) -> list[reading.Row]:
    def load(required: Sequence[str], optional: Sequence[str] = ()) -> list[reading.Row]:
        return reading.load(dataset["path"], required, optional, dataset.get("columns"), inputs)

    match dataset.get("format") or "auto":
        case "chat":
            return load(["messages"])
        case "text":
            return load(["text"])
        case "auto":
            there = load((), ("messages", "text", "target"))[0]
            return load(["messages"] if "messages" in there else ["text", "target"] if "target" in there else ["text"])
        case other:
            raise BadInput(f"data set {dataset['path']}: format {other!r}; expected auto, chat or text")


def _checked(messages: Any, place: str) -> list[dict[str, str]]:
    good = isinstance(messages, list) and all(
        isinstance(each, dict) and isinstance(each.get("role"), str) and isinstance(each.get("content"), str)
        for each in messages
    )
    if not good:
        raise BadInput(f"{place}: messages must be a list of objects with role and content (both text)")
    if not any(each["role"] == "assistant" for each in messages):
        raise BadInput(f"{place}: no message of the role assistant, so there is nothing to learn")
    return [{"role": each["role"], "content": each["content"]} for each in messages]
