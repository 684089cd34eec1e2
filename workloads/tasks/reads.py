"""What a model reads: the roles of a row to tensors, for a row of a data set as for a part of a request."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from llmsched.data.media import least_samples
from llmsched.data.messages import Unusable, plain_text
from workloads import context_length
from workloads.adapters import json_in
from workloads.sources import BadInput
from workloads.tasks import media

Encoded = dict[str, Any]  # by name; what a row of a batch is before it is padded
Batch = dict[str, torch.Tensor]
_POOLING, _OF_FIRST = "1_Pooling/config.json", "pooling_mode_cls_token"  # sentence-transformers' note
_LONGEST_BY_DEFAULT = 1024  # tokens, where neither the spec nor the model sets a limit


class Reader(ABC):
    """What the parts of the input become. `processor` is transformers', saved beside a trained model."""

    processor: Any
    max_length = 0  # tokens; 0: it reads no text
    batches = True  # rows of different sizes may stand in one batch without a change of what comes out

    @abstractmethod
    def check(self, row: Mapping[str, Any], roles: Sequence[str]) -> dict[str, Any]:
        """The parts of a row, by role. Raises Unusable."""

    @abstractmethod
    def encode(self, *parts: Any) -> Encoded:
        """Not padded yet. Raises Unusable."""

    def is_cut(self, encoded: Encoded, *parts: Any) -> bool:
        """Whether something of the parts is not in `encoded`."""
        return False

    def load(self, encoded: Encoded) -> Encoded:
        """What need not lie in memory between steps is read here."""
        return encoded

    @abstractmethod
    def size(self, row: Encoded) -> int:
        """In tokens or what takes as long, by which batches are cut."""

    @abstractmethod
    def collate(self, rows: Sequence[Encoded]) -> Batch:
        """One padded batch, on the CPU."""

    def settings(self) -> dict[str, Any]:
        """What goes into the model's config."""
        return {}

    def save(self, folder: Path) -> None:
        self.processor.save_pretrained(folder)


class Text(Reader):
    """A text, or a pair of texts, by the tokenizer of the model; cut to `max_length` tokens.

    `vocab_size`: rows of the model's embedding; None: not known."""

    takes_first = False  # a vector of a text is that of its first token, not the mean of all

    def __init__(self, tokenizer: Any, max_length: int, vocab_size: int | None = None) -> None:
        self.processor = self.tokenizer = tokenizer
        self.max_length, self.vocab_size = max_length, vocab_size

    def check(self, row: Mapping[str, Any], roles: Sequence[str]) -> dict[str, Any]:
        return {role: plain_text(row[role], role) for role in roles if row.get(role) is not None}

    def encode(self, *parts: Any) -> Encoded:
        """Without what a tokenizer says of padding: nothing is padded yet."""
        made = dict(self.tokenized(*parts, truncation=True, max_length=self.max_length))
        return {name: array("i", numbers) for name, numbers in made.items() if name in ("input_ids", "token_type_ids")}

    def passage(self, question: str, passage: str) -> Encoded:
        """Both, the passage cut. `places`: of each token its characters in the passage; None: it is not of it."""
        most = {"truncation": "only_second", "max_length": self.max_length}
        made = self.tokenized(question, passage, return_offsets_mapping=True, **most)
        named = zip(made["offset_mapping"], made.sequence_ids(), strict=True)
        places = [place if side == 1 else None for place, side in named]
        kept = {name: made[name] for name in ("input_ids", "token_type_ids") if name in made}
        return {**kept, "places": places, "passage": passage}

    def windows(self, text: str) -> list[tuple[list[int], list[int]]]:
        """A whole text in parts of at most `max_length` tokens: ids, and 1 for each mark that frames them."""
        most = {"truncation": True, "max_length": self.max_length, "return_overflowing_tokens": True}
        made = self.tokenized([text], return_special_tokens_mask=True, **most)
        return list(zip(made["input_ids"], made["special_tokens_mask"], strict=True))

    def worded(self, text: str) -> Encoded:
        """A text, cut, with the word of each token (None: of none) and its characters."""
        most = {"truncation": True, "max_length": self.max_length}
        made = self.tokenized(text, return_offsets_mapping=True, **most)
        return {
            "input_ids": made["input_ids"],
            "words": made.word_ids(),
            "places": made["offset_mapping"],
            "text": text,
        }

    def placed(self, *texts: str) -> Encoded:
        """As `encode`, with the text (0, or 1 of a pair; None: of none), the word and the characters of each token."""
        made = self.tokenized(*texts, truncation=True, max_length=self.max_length, return_offsets_mapping=True)
        kept = {name: made[name] for name in ("input_ids", "token_type_ids") if name in made}
        placed = {"sides": made.sequence_ids(), "words": made.word_ids(), "places": made["offset_mapping"]}
        return {**kept, **placed, "texts": texts}

    def nothing(self, encoded: Encoded) -> list[int]:
        """The ids of a text that says nothing, as long as what `placed` made and framed like it."""
        mask = self.tokenizer.mask_token_id
        filler = self.filler() if mask is None else int(mask)
        named = zip(encoded["input_ids"], encoded["sides"], strict=True)
        return [token if side is None else filler for token, side in named]

    def tokenized(self, *texts: Any, **settings: Any) -> Any:
        """What the tokenizer says. Raises Unusable."""
        try:
            made = self.tokenizer(*texts, **settings)
        except Exception as error:  # a tokenizer fails in many ways
            raise Unusable(f"is refused by the tokenizer of the model: {first_line(error)}") from error
        ids = made["input_ids"]
        self.know([token for part in ids for token in part] if ids and isinstance(ids[0], list) else ids)
        return made

    def is_cut(self, encoded: Encoded, *parts: Any) -> bool:
        return len(encoded["input_ids"]) >= self.max_length and self.max_length < len(
            self.tokenizer(*parts)["input_ids"]
        )

    def know(self, ids: Sequence[int]) -> None:
        """Raises Unusable for a token that the model has no place for."""
        if self.vocab_size is not None and max(ids, default=0) >= self.vocab_size:
            raise Unusable(
                f"has the token {max(ids)}, and the model knows {self.vocab_size}: its tokenizer is of another model"
            )

    def size(self, row: Encoded) -> int:
        return len(row["input_ids"])

    def collate(self, rows: Sequence[Encoded]) -> Batch:
        made = {
            "input_ids": padded([row["input_ids"] for row in rows], self.filler()),
            "attention_mask": padded([[1] * self.size(row) for row in rows], 0),
        }
        if all("token_type_ids" in row for row in rows):
            made["token_type_ids"] = padded([row["token_type_ids"] for row in rows], 0)
        return made

    def filler(self) -> int:
        """The token that pads: the tokenizer's own, unless the model has no place for it (masked, any other does)."""
        for token in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id):
            if token is not None and (self.vocab_size is None or token < self.vocab_size):
                return int(token)
        return 0

    def settings(self) -> dict[str, Any]:
        return {"pad_token_id": self.filler()}

    def save(self, folder: Path) -> None:
        super().save(folder)
        if self.takes_first:
            (folder / _POOLING).parent.mkdir(exist_ok=True)
            (folder / _POOLING).write_text(json.dumps({_OF_FIRST: True}))


class Image(Reader):
    """An image, by the model's image processor: cut or scaled to one size. Read when a step takes it."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    def check(self, row: Mapping[str, Any], roles: Sequence[str]) -> dict[str, Any]:
        found = media.image(row["image"])  # all are looked at before the first step
        return {"image": row["image"], "size": found.size}

    def encode(self, *parts: Any) -> Encoded:
        return {"image": parts[0]}

    def load(self, encoded: Encoded) -> Encoded:
        """`size`: width and height of the image as it came."""
        found = media.image(encoded["image"])
        pixels = self.processor(images=found, return_tensors="pt")["pixel_values"][0]
        return {**encoded, "pixel_values": pixels, "size": found.size}

    def size(self, row: Encoded) -> int:
        return int(row["pixel_values"].shape[-1] * row["pixel_values"].shape[-2] // 256 + 1)

    def collate(self, rows: Sequence[Encoded]) -> Batch:
        return {"pixel_values": torch.stack([row["pixel_values"] for row in rows])}


class TextAndImage(Reader):
    """A text about an image, each by its own part of the model's processor."""

    def __init__(self, text: Text, image: Image) -> None:
        self.text, self.image, self.max_length = text, image, text.max_length
        self.processor = image.processor

    def check(self, row: Mapping[str, Any], roles: Sequence[str]) -> dict[str, Any]:
        return {**self.text.check(row, ("text",)), **self.image.check(row, ("image",))}

    def encode(self, *parts: Any) -> Encoded:
        return {**self.text.encode(parts[0]), **self.image.encode(parts[1])}

    def is_cut(self, encoded: Encoded, *parts: Any) -> bool:
        return self.text.is_cut(encoded, parts[0])

    def load(self, encoded: Encoded) -> Encoded:
        return self.image.load(encoded)

    def size(self, row: Encoded) -> int:
        return self.text.size(row) + self.image.size(row)

    def collate(self, rows: Sequence[Encoded]) -> Batch:
        return {**self.text.collate(rows), **self.image.collate(rows)}

    def settings(self) -> dict[str, Any]:
        return self.text.settings()

    def save(self, folder: Path) -> None:
        self.text.save(folder)
        self.image.save(folder)


class Audio(Reader):
    """Audio of the model's rate, by its feature extractor: a wave, or a picture of one. Read when a step takes it.

    `batches`: False for a model that hears fillers, as those that normalise over time do. `tokenizer`: of what is
    said, where the model writes."""

    def __init__(self, processor: Any, config: Any, tokenizer: Any = None) -> None:
        self.processor, self.tokenizer = processor, tokenizer
        self.batches = getattr(config, "feat_extract_norm", "layer") != "group"
        self._draws = hasattr(config, "apply_spec_augment")
        self._steps = list(zip(getattr(config, "conv_kernel", ()), getattr(config, "conv_stride", ()), strict=True))
        self.name = processor.model_input_names[0]

    def check(self, row: Mapping[str, Any], roles: Sequence[str]) -> dict[str, Any]:
        return {"audio": row["audio"], "samples": len(self._heard(row["audio"]))}

    def encode(self, *parts: Any) -> Encoded:
        return {"audio": parts[0]}

    def load(self, encoded: Encoded) -> Encoded:
        samples, rate = self._heard(encoded["audio"]), self.processor.sampling_rate
        heard = self.processor(samples, sampling_rate=rate, return_tensors="pt")
        return {**encoded, self.name: heard[self.name][0]}

    def _heard(self, source: Any) -> Any:
        """Samples, as many as the model's filters need for one place in time. Raises Unusable."""
        samples, least = media.audio(source, self.processor.sampling_rate), least_samples(self._steps)
        if len(samples) < least:
            named = f" ({source.name})" if isinstance(source, Path) else ""
            raise Unusable(f"is audio of {len(samples):,} samples{named}; this model hears nothing below {least:,}")
        return samples

    def places(self, row: Encoded) -> int | None:
        """Places in time that the model tells apart; None: of all rows as many."""
        return self.frames(len(row[self.name])) if row[self.name].ndim == 1 else None

    def frames(self, samples: int) -> int:
        for kernel, stride in self._steps:
            samples = (samples - kernel) // stride + 1
        return samples

    def size(self, row: Encoded) -> int:
        return self.places(row) or int(row[self.name].shape[0])

    def collate(self, rows: Sequence[Encoded]) -> Batch:
        heard = [row[self.name] for row in rows]
        if heard[0].ndim > 1 or len(heard) == 1:
            return {self.name: torch.stack(heard)}
        mask = padded([[1] * len(each) for each in heard], 0)
        return {self.name: torch.nn.utils.rnn.pad_sequence(heard, batch_first=True), "attention_mask": mask}

    def settings(self) -> dict[str, Any]:
        """Masks of time that the model would draw by itself depend on the batch: they are left out."""
        return {"apply_spec_augment": False} if self._draws else {}

    def save(self, folder: Path) -> None:
        super().save(folder)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)


def media_reader(folder: Path, uri: str, config: Any, role: str, writes: bool) -> Reader:
    """Of the model in `folder`, for images or audio. Raises BadInput."""
    from transformers import AutoFeatureExtractor, AutoImageProcessor, AutoTokenizer

    try:
        if role == "image":
            return Image(AutoImageProcessor.from_pretrained(folder, local_files_only=True))
        extractor = AutoFeatureExtractor.from_pretrained(folder, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True) if writes else None
        return Audio(extractor, config, tokenizer)
    except Exception as error:  # a file that lacks breaks in many ways
        why = f"{type(error).__name__}: {first_line(error)}"
        raise BadInput(f"model {uri}: no usable processor of {role} in {folder}: {why}") from error


def text_reader(folder: Path, uri: str, config: Any, max_length: int | None) -> Text:
    """Of the model in `folder`. Raises BadInput."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # a broken file breaks in many ways
        why = f"{type(error).__name__}: {first_line(error)}"
        raise BadInput(f"model {uri}: no usable tokenizer in {folder}: {why}") from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    fits = context_length.longest(config, tokenizer) or max_length or _LONGEST_BY_DEFAULT
    vocab_size = getattr(config.get_text_config(), "vocab_size", None)
    made = Text(tokenizer, min(max_length or fits, fits), vocab_size)
    made.takes_first = bool(json_in(folder / _POOLING).get(_OF_FIRST))
    return made


def padded(rows: Sequence[Sequence[int]], filler: int) -> torch.Tensor:
    """[len(rows), longest] of int64."""
    longest = max(len(row) for row in rows)
    return torch.tensor([[*row, *[filler] * (longest - len(row))] for row in rows], dtype=torch.int64)


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
