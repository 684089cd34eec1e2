"""Answers a question with as many words as it asks for, one each WORD_S: what a model's step would take on a GPU."""

import asyncio
from collections.abc import AsyncIterator

from ray import serve
from starlette.requests import Request
from starlette.responses import StreamingResponse

WORD_S = 0.03


@serve.deployment
class Desk:
    async def __call__(self, request: Request) -> StreamingResponse:
        return StreamingResponse(say((await request.json())["words"]), media_type="text/plain")


async def say(words: int) -> AsyncIterator[str]:
    for number in range(words):
        await asyncio.sleep(WORD_S)
        yield f"word {number}\n"
    yield "end\n"


app = Desk.bind()
