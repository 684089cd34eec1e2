"""What a person does by hand beside a running member: a websocket whose frames are passed on and not looked into.

Who may is settled before it is accepted. Its first message says what is asked; then `begun`, frames both ways, and a
last word. Whoever hangs up ends it.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from json import JSONDecodeError

from fastapi import APIRouter, WebSocket
from pydantic import ValidationError
from starlette.websockets import WebSocketDisconnect

from llmsched.api import bodies
from llmsched.api.auth import error_body
from llmsched.api.callers import Changed, Given
from llmsched.channels import FRAME_AT_MOST
from llmsched.control import execution
from llmsched.errors import ClusterError, LlmschedError, SpecError
from llmsched.executors import port
from llmsched.spec.by_hand import ByHandRequest, ByHandWord

ASKS_WITHIN_S = 30.0

router = APIRouter(prefix="/api/v1", route_class=bodies.Route)


@router.websocket("/workloads/{name}/by-hand")
async def by_hand(websocket: WebSocket, given: Given, found: Changed) -> None:
    """A program at a terminal or with input, a port, files: see ByHandRequest and ByHandWord."""
    await websocket.accept()
    try:
        asked = await _asked(websocket)
        command = execution.Command(
            found.id, asked.words, found.who.user, asked.rank, asked.gang, does=asked.does, timeout_s=0.0
        )
        begun = await given.controller.execute(command)
        async with aclosing(begun.said):
            last = await _passed_on(websocket, begun)
    except LlmschedError as error:
        last = ByHandWord(error=error_body(error))
    except WebSocketDisconnect:
        return
    with suppress(RuntimeError, WebSocketDisconnect):  # it left
        await websocket.send_text(last.model_dump_json())
        await websocket.close()


async def _asked(websocket: WebSocket) -> ByHandRequest:
    """Raises SpecError."""
    try:
        text = await asyncio.wait_for(websocket.receive_text(), ASKS_WITHIN_S)
        return ByHandRequest.model_validate(bodies.read(text))
    except ValidationError as error:
        one = error.errors()[0]
        where = ".".join(str(part) for part in one["loc"])
        raise SpecError(f"{one['msg']}.", where=where, code="invalid_request") from None
    except (TimeoutError, KeyError, JSONDecodeError):
        raise SpecError("the first message must say what is asked, as JSON text.", code="invalid_request") from None


async def _passed_on(websocket: WebSocket, begun: execution.Begun) -> ByHandWord:
    """To its end, or until the other end hangs up (WebSocketDisconnect)."""
    first = await _first(begun.said)
    if isinstance(first, port.CommandEnded):
        return _word(first)
    await websocket.send_text(ByHandWord(begun=True).model_dump_json())
    telling = asyncio.create_task(_tell(websocket, begun))
    hearing = asyncio.create_task(_hear(websocket, begun.said))
    try:
        await asyncio.wait({telling, hearing}, return_when=asyncio.FIRST_COMPLETED)
        if not hearing.done():
            telling.result()  # raises what ended it
        return await hearing
    finally:
        for one in (telling, hearing):
            one.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await one


async def _first(said: AsyncGenerator[port.CommandAnswer | None, None]) -> port.CommandAnswer:
    async for item in said:
        if item is not None:
            return item
    raise ClusterError("it did not begin.", code="disconnected")


async def _tell(websocket: WebSocket, begun: execution.Begun) -> None:
    while True:
        message = await websocket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code") or 1000)
        frame = message.get("bytes")
        if not frame or len(frame) > FRAME_AT_MOST:
            raise SpecError("what comes after the first message must be frames.", code="invalid_request")
        await begun.tell(frame)


async def _hear(websocket: WebSocket, said: AsyncGenerator[port.CommandAnswer | None, None]) -> ByHandWord:
    async for item in said:
        if isinstance(item, port.CommandSaid):
            for frame in item.text.split():
                await websocket.send_bytes(base64.b64decode(frame))
        elif isinstance(item, port.CommandEnded):
            return _word(item)
    raise ClusterError("it ended without saying how.", code="disconnected")


def _word(ended: port.CommandEnded) -> ByHandWord:
    return ByHandWord(exit_code=ended.code, message=ended.message)
