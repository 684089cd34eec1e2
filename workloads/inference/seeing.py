"""Chats in which images stand: models of texts and images."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from llmsched.data.messages import Unusable
from llmsched.data.parameters import RequestError
from workloads.inference.answers import TextServer
from workloads.inference.engine import Settings
from workloads.inference.generating import GeneratingEngine
from workloads.inference.openai import TextRequest
from workloads.tasks.seeing import UnusableImage


class _Prompt(list[int]):
    """Tokens, with all that the model reads of them and of the images among them."""

    inputs: dict[str, Any]


class SeeingEngine(GeneratingEngine):
    task = "image-text-to-text"

    def __init__(self, folder: Path, settings: Settings, device: torch.device) -> None:
        super().__init__(folder, settings, device)
        self.max_model_len = self.reader.max_length

    def _inputs(self, prompt: Sequence[int]) -> dict[str, Any]:
        assert isinstance(prompt, _Prompt)
        return prompt.inputs


class SeeingServer(TextServer):
    routes = ("chat/completions",)
    can_chat = True

    def __init__(self, engine: SeeingEngine) -> None:
        super().__init__(engine)
        self._reader = engine.reader

    async def _chat_tokens(self, request: TextRequest) -> list[int]:
        if request.tools is not None:
            raise RequestError("Tools are for models of texts alone.", param="tools")
        messages: list[dict[str, Any]] = []
        images, places = [], []
        for number, message in enumerate(request.messages or ()):
            parts = message["content"]
            parts = parts if isinstance(parts, list) else [{"type": "text", "text": parts}]
            for at, part in enumerate(parts):
                if part["type"] == "image":
                    images.append(part["image"])
                    places.append(f"messages[{number}].content[{at}]")
            shown = [{"type": "image"} if part["type"] == "image" else part for part in parts]
            messages.append({**message, "content": shown})
        try:
            inputs = await asyncio.to_thread(self._reader.prompt, messages, images, **request.template)
        except UnusableImage as error:
            raise RequestError(f"{places[error.number]} {error}.", param="messages") from None
        except Unusable as error:
            raise RequestError(f"A message {error}.", param="messages") from None
        prompt = _Prompt(inputs["input_ids"][0].tolist())
        prompt.inputs = inputs
        return prompt
