"""A label of a text by an LSTM over its words: what came before encoders that read all at once."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from llmsched.runtime import artifact
from workloads.loops.learning import learn, rows_of, settings
from workloads.loops.tabular import of_labels
from workloads.loops.word_vectors import words_in
from workloads.sources import BadInput

KNOWN = {
    "test": str, "text": "text", "label": "label", "size": 64, "hidden": 64, "least": 2, "max_length": 48,
}  # fmt: skip
_NONE, _UNKNOWN = 0, 1


def loop(config: dict[str, Any]) -> None:
    chosen = settings(config, KNOWN)
    learnt, tested = (rows_of(path, chosen.text, chosen.label) for path in (chosen.data, chosen.test))
    counts = Counter(word for row in learnt for word in words_in(str(row[chosen.text])))
    words = sorted(word for word, count in counts.items() if count >= chosen.least)
    labels = sorted({str(row[chosen.label]) for row in learnt})
    if len(labels) < 2:
        raise BadInput(f"data set {chosen.data}: every {chosen.label!r} is the same")
    if strange := next((row for row in tested if str(row[chosen.label]) not in labels), None):
        raise BadInput(f"data set {chosen.test}: the label {strange[chosen.label]!r} does not occur where it learns")
    numbers = {word: number for number, word in enumerate(words, 2)}

    def read(rows: list[Any]) -> tuple[torch.Tensor, torch.Tensor]:
        made = torch.full((len(rows), chosen.max_length), _NONE)
        for place, row in enumerate(rows):
            known = [numbers.get(word, _UNKNOWN) for word in words_in(str(row[chosen.text]))][: chosen.max_length]
            made[place, : len(known) or 1] = torch.tensor(known or [_UNKNOWN])
        return made, torch.tensor([labels.index(str(row[chosen.label])) for row in rows])

    (texts, true), (held_out, wanted) = read(learnt), read(tested)
    torch.manual_seed(chosen.seed)
    model = TextLstm(len(words) + 2, chosen.size, chosen.hidden, len(labels))

    def loss_of(rows: torch.Tensor, chance: torch.Generator, at: int) -> torch.Tensor:
        return functional.cross_entropy(model(texts[rows]), true[rows], reduction="sum")

    learn(model, len(learnt), loss_of, chosen)
    with torch.no_grad():
        found = of_labels(model(held_out), wanted)

    def write(folder: Path) -> None:
        save_file(model.state_dict(), folder / "model.safetensors")
        (folder / "words.json").write_text(json.dumps({"words": words, "labels": labels}))

    artifact.save(write)
    artifact.metrics(**{f"eval.{name}": round(value, 5) for name, value in found.items()})


class TextLstm(nn.Module):  # type: ignore[misc]
    """Both ways over the words; the mean of what it thinks at each."""

    def __init__(self, words: int, size: int, hidden: int, labels: int) -> None:
        super().__init__()
        self.words = nn.Embedding(words, size, padding_idx=_NONE)
        self.lstm = nn.LSTM(size, hidden, batch_first=True, bidirectional=True)
        self.says = nn.Linear(2 * hidden, labels)

    def forward(self, texts: torch.Tensor) -> torch.Tensor:
        lengths = (texts != _NONE).sum(1)
        packed = nn.utils.rnn.pack_padded_sequence(self.words(texts), lengths, batch_first=True, enforce_sorted=False)
        states, _ = nn.utils.rnn.pad_packed_sequence(self.lstm(packed)[0], batch_first=True)
        return self.says(states.sum(1) / lengths[:, None])
