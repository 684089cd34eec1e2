"""What a model reads: the roles of a row to tensors, for a row of a data set as for a part of a request."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from llmsched.data.messages import Unusable, plain_text

Encoded = dict[str, Any]  # by name; what a row of a batch is before it is padded
Batch = dict[str, torch.Tensor]


class Text:
    """A text, or a pair of texts, by the tokenizer of the model; cut to `max_length` tokens.

    `vocab_size`: rows of the model's embedding; None: not known."""

    def __init__(self, tokenizer: Any, max_length: int, vocab_size: int | None = None) -> None:
        self.tokenizer, self.max_length, self.vocab_size = tokenizer, max_length, vocab_size

    def check(self, row: Mapping[str, Any], roles: Sequence[str]) -> dict[str, str]:
        """The texts of a row, by role. Raises Unusable."""
        return {role: plain_text(row[role], role) for role in roles if row.get(role) is not None}

    def encode(self, *texts: str) -> Encoded:
        """Without what a tokenizer says of padding: nothing is padded yet. Raises Unusable."""
        try:
            made = dict(self.tokenizer(*texts, truncation=True, max_length=self.max_length))
        except Exception as error:  # a tokenizer fails in many ways
            raise Unusable(f"is refused by the tokenizer of the model: {first_line(error)}") from error
        self.know(made["input_ids"])
        return {name: array("i", numbers) for name, numbers in made.items() if name in ("input_ids", "token_type_ids")}

    def is_cut(self, encoded: Encoded, *texts: str) -> bool:
        return len(encoded["input_ids"]) >= self.max_length and self.max_length < len(
            self.tokenizer(*texts)["input_ids"]
        )

    def know(self, ids: Sequence[int]) -> None:
        """Raises Unusable for a token that the model has no place for."""
        if self.vocab_size is not None and max(ids, default=0) >= self.vocab_size:
            raise Unusable(
                f"has the token {max(ids)}, and the model knows {self.vocab_size}: its tokenizer is of another model"
            )

    def collate(self, rows: Sequence[Encoded]) -> Batch:
        """One padded batch, on the CPU: each [rows, longest]."""
        made = {
            "input_ids": padded([row["input_ids"] for row in rows], self.filler()),
            "attention_mask": padded([[1] * self.size(row) for row in rows], 0),
        }
        if all("token_type_ids" in row for row in rows):
            made["token_type_ids"] = padded([row["token_type_ids"] for row in rows], 0)
        return made

    def size(self, row: Encoded) -> int:
        """Tokens, by which batches are cut."""
        return len(row["input_ids"])

    def filler(self) -> int:
        """The token that pads: the tokenizer's own, unless the model has no place for it (masked, any other does)."""
        for token in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id):
            if token is not None and (self.vocab_size is None or token < self.vocab_size):
                return int(token)
        return 0


def padded(rows: Sequence[Sequence[int]], filler: int) -> torch.Tensor:
    """[len(rows), longest] of int64."""
    longest = max(len(row) for row in rows)
    return torch.tensor([[*row, *[filler] * (longest - len(row))] for row in rows], dtype=torch.int64)


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
