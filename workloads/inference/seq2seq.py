"""Encoder-decoders (translation, summaries). Chat reads the last message alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from workloads.inference.engine import Settings
from workloads.inference.generating import GeneratingEngine

_LAST_MESSAGE = "{{ messages[-1]['content'] }}"


class Seq2SeqEngine(GeneratingEngine):
    """What is read and what is said has half of `max_model_len` each."""

    task = "seq2seq-lm"

    def __init__(self, folder: Path, settings: Settings, device: torch.device) -> None:
        super().__init__(folder, settings, device)
        self.max_model_len = 2 * self.reader.max_length
        if not self.tokenizer.chat_template:
            self.tokenizer.chat_template = _LAST_MESSAGE

    def _inputs(self, prompt: Sequence[int]) -> dict[str, Any]:
        text = self.tokenizer.decode(prompt, skip_special_tokens=True)
        ids = torch.tensor([list(self.reader.encode(text)["input_ids"])])  # framed as in training
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def _answer(self, out: torch.Tensor, inputs: dict[str, Any]) -> torch.Tensor:
        return out[0, 1:]  # without the mark that begins an answer
