"""Texts and images in one conversation, as the chat template of a model's processor puts them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from llmsched.data.media import Source
from llmsched.data.messages import Unusable, plain_text
from workloads import context_length
from workloads.sources import BadInput
from workloads.tasks import media
from workloads.tasks.reads import Batch, Encoded, Reader, first_line


class UnusableImage(Unusable):
    """`number`: which of the images of a conversation, from 0."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number = number


class Seeing(Reader):
    """A question about an image. One at a time: models cut images into parts of their own number."""

    batches = False

    def __init__(self, processor: Any, max_length: int) -> None:
        self.processor, self.tokenizer, self.max_length = processor, processor.tokenizer, max_length

    def check(self, row: Mapping[str, Any], roles: Sequence[str]) -> dict[str, Any]:
        media.image(row["image"])  # all are looked at before the first step
        return {"text": plain_text(row["text"], "text"), "image": row["image"]}

    def encode(self, *parts: Any) -> Encoded:
        return {"text": parts[0], "image": parts[1]}

    def load(self, encoded: Encoded) -> Encoded:
        """`input_ids`, the places of the image among them, and whatever else the model reads."""
        asked = [{"type": "image"}, {"type": "text", "text": encoded["text"]}]
        made = self.prompt([{"role": "user", "content": asked}], [encoded["image"]])
        return {**encoded, **made, "input_ids": made["input_ids"][0].tolist()}

    def prompt(self, messages: Sequence[Mapping[str, Any]], images: Sequence[Source], **template: Any) -> Batch:
        """The conversation up to where the model answers, [1, tokens]. Each {"type": "image"} is the next of `images`.
        Raises Unusable."""
        found: list[Any] = []
        for number, image in enumerate(images):
            try:
                found.append(media.image(image))
            except Unusable as error:
                raise UnusableImage(str(error), number) from None
            if sum(each.width * each.height for each in found) > media.MOST_PIXELS:
                raise Unusable(f"shows more than {media.MOST_PIXELS:,} pixels in its images together")
        try:
            text = self.processor.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=True, **template
            )
            return dict(self.processor(text=[text], images=found or None, return_tensors="pt"))
        except Exception as error:  # a template refuses in its own words, a processor fails in many ways
            raise Unusable(f"is refused by the processor of the model: {first_line(error)}") from error

    def size(self, row: Encoded) -> int:
        return len(row["input_ids"])

    def collate(self, rows: Sequence[Encoded]) -> Batch:
        (row,) = rows
        kept = {name: each for name, each in row.items() if isinstance(each, torch.Tensor) and name != "labels"}
        return {**kept, "input_ids": torch.tensor([row["input_ids"]])}


def seeing_reader(folder: Path, uri: str, config: Any, max_length: int | None) -> Seeing:
    """Of the model in `folder`. Raises BadInput."""
    from transformers import AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
        if not processor.chat_template:
            raise ValueError("it has no chat template")
        tokenizer = processor.tokenizer
    except Exception as error:  # a file that lacks breaks in many ways
        why = f"{type(error).__name__}: {first_line(error)}"
        raise BadInput(f"model {uri}: no usable processor of texts and images in {folder}: {why}") from error
    fits = context_length.longest(config.get_text_config(), tokenizer) or max_length or 1024
    return Seeing(processor, min(max_length or fits, fits))
