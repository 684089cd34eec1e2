"""What a log and a command say, as lines of JSON."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

from llmsched.executors.port import CommandEnded
from llmsched.spec import http_models


async def of_logs(lines: AsyncIterator[http_models.LogLine]) -> AsyncIterator[str]:
    async for line in lines:
        yield line.model_dump_json() + "\n"


async def of_command(said: AsyncGenerator[Any, None]) -> AsyncIterator[str]:
    async with aclosing(said):
        async for item in said:
            if item is None:
                yield "\n"  # shows us a client that left
            elif isinstance(item, CommandEnded):
                yield (
                    http_models.ExecLine(stream="end", text=item.message, exit_code=item.code).model_dump_json() + "\n"
                )
            else:
                yield http_models.ExecLine(stream=item.stream, text=item.text).model_dump_json() + "\n"
