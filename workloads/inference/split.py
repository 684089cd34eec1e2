"""The server of a language model on vLLM, where it reads prompts for others or goes on from what another one has read.

The gateway says which, beside the request itself, in vLLM's own words (`TRANSFER`): `do_remote_decode` asks for a
prompt to be read and kept, and what comes back is handed to the one that answers.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import replace
from typing import Any

from llmsched.data.parameters import TRANSFER, RequestError
from workloads.inference.answers import TextServer
from workloads.inference.engine import Piece
from workloads.inference.openai import TextRequest, Usage
from workloads.inference.vllm_engine import VllmEngine


class SplitServer(TextServer):
    def __init__(self, engine: VllmEngine) -> None:
        super().__init__(engine)
        self._split = engine

    async def call(self, route: str, body: Mapping[str, Any], adapter: str | None) -> dict[str, Any]:
        if not (body.get(TRANSFER) or {}).get("do_remote_decode"):
            return await super().call(route, body, adapter)
        _, (prompt,) = await self._parse(route, body)
        return {TRANSFER: await self._split.prefill(prompt, adapter), "usage": Usage(len(prompt)).data()}

    async def _parse(self, route: str, body: Mapping[str, Any]) -> tuple[TextRequest, list[list[int]]]:
        asked = {name: value for name, value in body.items() if name != TRANSFER}
        request, prompts = await super()._parse(route, asked)
        transfer = body.get(TRANSFER)
        if transfer and len(prompts) * request.n != 1:  # what was kept is taken once
            raise RequestError(f'"{TRANSFER}" goes with one answer to one prompt.', param=TRANSFER)
        return replace(request, transfer=transfer or None), prompts

    def _generate(self, prompt: list[int], request: TextRequest, adapter: str | None) -> AsyncGenerator[Piece, None]:
        return self._split.generate(prompt, request.sampling, adapter, request.transfer)
