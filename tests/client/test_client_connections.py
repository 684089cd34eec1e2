"""A connection that breaks: what only asks is asked once more, what changes something is not."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from llmsched import versions
from llmsched.client import AsyncClient
from llmsched.errors import ClusterError
from llmsched.spec import http_models, node_models


def test_who_waits_long_is_not_told_that_the_controller_closed_a_connection_that_nobody_used() -> None:
    """`apply --wait` on a busy machine ended so in the middle of a run."""
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.method)
        if asked.count(request.method) == 1 or len(asked) > 3:
            raise httpx.RemoteProtocolError("Server disconnected without sending a response.")
        body = node_models.NodeList(nodes=[]) if request.method == "GET" else http_models.Alive()
        return httpx.Response(200, headers={versions.HEADER: versions.own()}, content=body.model_dump_json())

    async def story() -> None:
        async with AsyncClient("http://127.0.0.1:1", "token", transport=httpx.MockTransport(answer)) as client:
            assert (await client.nodes()).nodes == [] and asked == ["GET", "GET"]
            with pytest.raises(ClusterError, match="the connection to the controller at .* broke"):
                await client.shutdown()
            assert asked == ["GET", "GET", "POST"]
            with pytest.raises(ClusterError, match="broke"):
                await client.nodes()
            assert asked == ["GET", "GET", "POST", "GET", "GET"]

    asyncio.run(story())
