"""Causal language modelling; the loss counts the tokens the model is to say.

    messages            through the tokenizer's chat template; the assistant's turns count (`chat_mask`)
    text and target     the target and the end of text count
    text                everything counts; long texts become several samples

What a data set's columns mean is `llmsched.data.formats`'. Every row is encoded once, before the first step: a row that
the template refuses or that has nothing to learn is named then.
"""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional

from llmsched.data.rows import DataError, Row
from workloads import datasets as reading
from workloads.finetune import chat_mask
from workloads.finetune.task import Score, filler_of, padded
from workloads.sources import BadInput

IGNORED = -100  # label of a token that does not count
_ALPACA = "### Instruction:\n{}\n\n### Response:\n"  # for a base model without a chat template


class Refused(ValueError):
    """Why a row cannot be encoded, as the rest of a sentence."""


class CausalLM:
    unit = "tokens"
    head_is_new = new_head = False
    metrics: tuple[str, ...] = ("loss", "perplexity")

    def __init__(self, tokenizer: Any, max_length: int, vocab_size: int | None = None) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.vocab_size = vocab_size  # rows of the embedding
        self.notes: list[str] = []
        self._seen: Counter[str] = Counter()

    def samples(self, datasets: Sequence[Mapping[str, Any]], inputs: Mapping[str, str]) -> list[Any]:
        return [sample for dataset in datasets for sample in self._samples_of(dataset, inputs)]

    def model_class(self) -> Any:
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM

    def model_settings(self) -> dict[str, Any]:
        return {}

    def encode(self, sample: Any) -> dict[str, Any]:
        if "input_ids" in sample:
            return {"input_ids": sample["input_ids"], "labels": sample["labels"]}
        ids, labels = self._whole(sample)
        return {"input_ids": ids[: self.max_length], "labels": labels[: self.max_length]}

    def collate(self, encoded: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        ids = [row["input_ids"] for row in encoded]
        return {
            "input_ids": padded(ids, filler_of(self.tokenizer, self.vocab_size)),
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

    def _samples_of(self, dataset: Mapping[str, Any], inputs: Mapping[str, str]) -> list[Any]:
        path = dataset["path"]
        rows, bad = reading.conversations(dataset, inputs)
        self._seen.clear()
        found: list[Any] = []
        for row, place in zip(rows, rows.places, strict=True):
            try:
                for ids, labels in self._pieces(row) if set(row) == {"text"} else [self._whole(self._readable(row))]:
                    self._keep(ids, labels, found)
            except Refused as error:
                bad.add(place, str(error))
        try:
            self.notes += [*rows.notes, *bad.settle(len(rows) - bad.count)]
        except DataError as error:
            raise BadInput(str(error)) from error
        if not found:
            raise BadInput(f"data set {path}: no token to learn within max_length {self.max_length}; make it larger")
        self.notes += [f"{path}: {count:,} {what}" for what, count in self._seen.items()]
        return found

    def _keep(self, ids: list[int], labels: list[int], found: list[Any]) -> None:
        """One sample, cut to its length, when the cut leaves something to learn."""
        if self.vocab_size is not None and max(ids, default=0) >= self.vocab_size:
            raise Refused(
                f"has the token {max(ids)}, and the model knows {self.vocab_size}: its tokenizer is of another model"
            )
        cut = labels[: self.max_length]
        if not any(label != IGNORED for label in cut[1:]):
            self._seen[
                f"left out: the prompt alone fills max_length {self.max_length}, nothing of the answer is left"
            ] += 1
            return
        if len(labels) > self.max_length and any(label != IGNORED for label in labels[self.max_length :]):
            self._seen[f"with an answer that is cut off at max_length {self.max_length}"] += 1
        found.append({"input_ids": array("i", ids[: self.max_length]), "labels": array("i", cut)})

    def _readable(self, row: Row) -> Row:
        """What this tokenizer can read: without a chat template, an instruction is written out as a prompt."""
        if "messages" not in row or self.tokenizer.chat_template:
            return row
        *before, asked, answer = row["messages"]
        if not row.get("alpaca") or before:
            raise BadInput("this base model has no chat template; give prompt and target columns, or plain text")
        return {"text": _ALPACA.format(asked["content"]), "target": answer["content"]}

    def _whole(self, row: Row) -> tuple[list[int], list[int]]:
        """Ids and labels, not cut. Raises Refused."""
        try:
            return self._chat(row["messages"], row.get("tools")) if "messages" in row else self._prompt(row)
        except Refused:
            raise
        except Exception as error:  # a template refuses in its own words; a tokenizer fails in many ways
            if isinstance(error, (MemoryError, NotImplementedError)):
                raise
            roles = f" (its roles: {', '.join(each['role'] for each in row['messages'])})" if "messages" in row else ""
            what = "the chat template" if "messages" in row else "the tokenizer"
            raise Refused(f"is refused by {what} of the model: {_first_line(error)}{roles}") from error

    def _chat(
        self, messages: Sequence[Mapping[str, Any]], tools: list[Any] | None = None
    ) -> tuple[list[int], list[int]]:
        """Ids of the whole dialogue, and labels where the assistant speaks (its end-of-turn mark included)."""
        plain = [{key: value for key, value in message.items() if key != "learn"} for message in messages]

        def render(some: Sequence[Mapping[str, Any]], prompt: bool) -> str:
            return str(
                self.tokenizer.apply_chat_template(
                    list(some), tools=tools, tokenize=False, add_generation_prompt=prompt
                )
            )

        if any("tool_calls" in message for message in plain):
            plain = self._with_calls(render, plain)
        text, turns = chat_mask.turns(render, plain)
        turns = [turn for turn in turns if messages[turn.message].get("learn", True)]
        learnt = [turn for turn in turns if self._is_shown(text, turn, plain[turn.message])]
        if not learnt:
            raise Refused("has no turn of the assistant that the chat template shows, so there is nothing to learn")
        coded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return coded["input_ids"], list(_labels(coded, text, [(turn.start, turn.end) for turn in learnt]))

    def _is_shown(self, text: str, turn: chat_mask.Turn, message: Mapping[str, Any]) -> bool:
        """Whether there is something to learn of a turn; counts those that are not there as they were written."""
        shown = "".join(text[turn.start : turn.end].split())
        content = "".join(message["content"].rpartition("</think>")[2].split())
        if not shown:
            self._seen["turns of the assistant that the chat template does not show: nothing is learnt of them"] += 1
        elif content not in shown:
            self._seen["turns of the assistant that the chat template writes otherwise than the data set has them"] += 1
        return bool(shown)

    def _with_calls(self, render: chat_mask.Render, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The messages so that the template shows their tool calls, as it likes the arguments: an object, or JSON."""
        try:
            text = render(messages, False)
            is_python = any(_is_python_in(text, call) for each in messages for call in each.get("tool_calls", ()))
        except TypeError:  # a template that joins texts
            is_python = True
        if is_python:
            messages = [_with_json_arguments(message) for message in messages]
            text = render(messages, False)
        shown = render([{k: v for k, v in each.items() if k != "tool_calls"} for each in messages], False)
        if shown != text:
            return messages
        self._seen[
            "conversations whose tool calls the chat template does not know: written as <tool_call>JSON</tool_call>"
        ] += 1
        return [_with_written_calls(message) for message in messages]

    def _prompt(self, row: Mapping[str, Any]) -> tuple[list[int], list[int]]:
        prompt = self._coded(str(row["text"]))
        target = [*self.tokenizer(str(row["target"]), add_special_tokens=False)["input_ids"], self._end()]
        return [*prompt, *target], [*[IGNORED] * len(prompt), *target]

    def _pieces(self, row: Row) -> Iterator[tuple[list[int], list[int]]]:
        """A text in parts of at most `max_length` tokens."""
        try:
            ids = [*self._coded(row["text"]), self._end()]
        except Exception as error:
            raise Refused(f"is refused by the tokenizer of the model: {_first_line(error)}") from error
        for at in range(0, len(ids), self.max_length):
            part = ids[at : at + self.max_length]
            if len(part) > 1 or len(ids) == 1:  # one token alone has none before it to be learnt from
                yield part, part

    def _coded(self, text: str) -> list[int]:
        """As an endpoint codes a prompt, with the mark that begins a text; without one that ends it."""
        ids = list(self.tokenizer(text)["input_ids"])
        return ids[:-1] if ids and ids[-1] == self.tokenizer.eos_token_id else ids

    def _end(self) -> int:
        end = self.tokenizer.eos_token_id
        return int(end if end is not None else self.tokenizer.pad_token_id or 0)


def _labels(coded: Mapping[str, Any], text: str, spans: Sequence[tuple[int, int]]) -> Iterator[int]:
    """The token itself where it lies in a span, give or take white space that it shares with what stands beside."""
    at = 0
    for token, (start, end) in zip(coded["input_ids"], coded["offset_mapping"], strict=True):
        while at < len(spans) and spans[at][1] <= start:
            at += 1
        first, last = spans[at] if at < len(spans) else (len(text), len(text))
        inside = max(start, first) < min(end, last) and not text[start:first].strip() and not text[last:end].strip()
        yield token if inside else IGNORED


def _is_python_in(text: str, call: Mapping[str, Any]) -> bool:
    """The arguments stand in the text as Python writes an object, not as JSON."""
    arguments = call["function"]["arguments"]
    return (
        isinstance(arguments, dict)
        and bool(arguments)
        and repr(arguments) in text
        and json.dumps(arguments) not in text
    )


def _with_json_arguments(message: dict[str, Any]) -> dict[str, Any]:
    if "tool_calls" not in message:
        return message
    calls = [
        {**call, "function": {**call["function"], "arguments": json.dumps(call["function"]["arguments"])}}
        for call in message["tool_calls"]
    ]
    return {**message, "tool_calls": calls}


def _with_written_calls(message: dict[str, Any]) -> dict[str, Any]:
    if "tool_calls" not in message:
        return message
    written = [f"<tool_call>\n{json.dumps(call['function'])}\n</tool_call>" for call in message["tool_calls"]]
    plain = {key: value for key, value in message.items() if key != "tool_calls"}
    return {**plain, "content": "\n".join([*([message["content"]] if message["content"] else []), *written])}


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _rows(dataset: Mapping[str, Any], inputs: Mapping[str, str]) -> reading.Rows:
    """The rows of a data set as this task learns them. Raises BadInput."""
    return reading.conversations(dataset, inputs)[0]
