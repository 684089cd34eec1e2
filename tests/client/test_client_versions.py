"""Clients and controllers of versions that do not go together say so, both ways, and can still be told to stop."""

from __future__ import annotations

import asyncio
import importlib.metadata
from collections.abc import Callable

import httpx
import pytest
from live import Live

from llmsched import versions
from llmsched.client import AsyncClient
from llmsched.errors import ClusterError
from llmsched.spec import http_models, node_models


@pytest.mark.parametrize(
    ("one", "other", "do"),
    [
        ("0.1.0", "0.1.7", True),
        ("0.1.0", "0.2.0", False),
        ("1.4.0", "1.9.2rc1", True),
        ("1.4.0", "2.0.0", False),
        ("0.1.0", "1.1.0", False),
        ("0.1.0", "newest", False),
        ("0.1.0", "", False),
    ],
)
def test_one_major_version_goes_together_and_before_1_0_one_minor_version(one: str, other: str, do: bool) -> None:
    assert versions.go_together(one, other) is versions.go_together(other, one) is do


def test_a_client_of_another_version_is_refused_in_words(controller: Live) -> None:
    headers = {"authorization": f"Bearer {controller.token}", versions.HEADER: "7.0.0"}
    with httpx.Client(base_url=controller.url, headers=headers) as http:
        answer = http.get("/api/v1/workloads")
        body = http_models.ErrorBody.model_validate_json(answer.content)
        assert (answer.status_code, body.code, body.exit_code) == (409, "version", 3)
        assert "7.0.0" in body.message and f"pip install llmsched=={versions.own()}" in body.hint
        assert http.get("/api/v1/health").status_code == 200


def test_who_does_not_say_a_version_is_served_and_told_ours(controller: Live) -> None:
    headers = {"authorization": f"Bearer {controller.token}"}
    with httpx.Client(base_url=controller.url, headers=headers) as http:
        answer = http.get("/api/v1/workloads")
        assert (answer.status_code, answer.headers[versions.HEADER]) == (200, versions.own())
        assert versions.HEADER not in http.get("/healthz", headers={"authorization": ""}).headers
        assert versions.HEADER not in http.get("/api/v1/nodes", headers={"authorization": "Bearer x"}).headers


def answering(version: str) -> Callable[[httpx.Request], httpx.Response]:
    def answer(request: httpx.Request) -> httpx.Response:
        bodies = {"/api/v1/health": http_models.Health(version=version), "/api/v1/shutdown": http_models.Alive()}
        body = bodies.get(request.url.path, node_models.NodeList(nodes=[]))
        return httpx.Response(200, headers={versions.HEADER: version}, content=body.model_dump_json())

    return answer


def test_a_client_does_not_work_with_an_older_controller_but_can_put_it_away() -> None:
    async def story() -> None:
        transport = httpx.MockTransport(answering("0.0.3"))
        async with AsyncClient("http://127.0.0.1:1", "token", transport=transport) as client:
            assert (await client.health()).version == "0.0.3"
            with pytest.raises(ClusterError) as caught:
                await client.nodes()
            assert caught.value.code == "version" and "0.0.3" in str(caught.value)
            with pytest.raises(ClusterError, match=r"0\.0\.3"):
                async for _ in client.events():
                    pass
            await client.shutdown()

    asyncio.run(story())


def test_what_we_say_is_the_version_that_is_installed() -> None:
    assert versions.own() == importlib.metadata.version("llmsched")
