"""JSON bodies as somebody wrote them: a key that stands twice in one object is refused, as one of the two would have no
effect. Every router takes its routes from here (`app.need_of` looks)."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from llmsched import sanitize
from llmsched.errors import SpecError


def read(body: str | bytes) -> Any:
    """Raises json.JSONDecodeError, SpecError."""
    try:
        return sanitize.asked(body)
    except sanitize.RepeatedKey as error:
        raise SpecError(f"{error}.", code="repeated_key", hint="Write it once.") from None


class _Read(Request):
    async def json(self) -> Any:
        if not hasattr(self, "_read"):
            self._read = read(await self.body())
        return self._read


class Route(APIRoute):
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_read(request: Request) -> Response:
            return await handle(_Read(request.scope, request.receive))

        return handle_read
