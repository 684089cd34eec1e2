"""Talking to an endpoint: the client against the real gateway, in front of a replica that is a plain object."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from live import Live, Parrot

from llmsched.client.chat import AsyncChat
from llmsched.errors import ClusterError, NotAllowed, RequestError


def test_an_answer_comes_whole_or_piece_by_piece(controller: Live) -> None:
    parrot = Parrot()
    with controller.endpoint(parrot), controller.client() as client:
        chat = client.chat("qwen")
        assert chat.complete("hello there", max_tokens=5) == "hello there"
        assert list(chat.stream("hello there")) == ["hello", "there"]
        assert chat.respond("x")["usage"] == {"total_tokens": 2}
    assert parrot.bodies[0]["max_tokens"] == 5
    assert parrot.bodies[0]["messages"] == [{"role": "user", "content": "hello there"}]


def test_a_conversation_and_an_adapter_are_passed_on(controller: Live) -> None:
    parrot = Parrot()
    said = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}]
    with controller.endpoint(parrot), controller.client() as client:
        assert client.chat("qwen:sql").complete(said) == "hi"
        assert "qwen" in client.chat("qwen").models()
    assert parrot.bodies[0]["messages"] == said
    assert parrot.bodies[0]["adapter"]["name"] == "sql"


@pytest.mark.parametrize("streamed", [False, True])
def test_refusals_of_the_endpoint_become_errors_with_its_words(controller: Live, streamed: bool) -> None:
    parrot = Parrot()
    parrot.error = {"error": {"message": "too long", "type": "t", "param": None, "code": "context"}, "status": 400}
    with controller.endpoint(parrot), controller.client() as client:
        with pytest.raises(RequestError, match="too long") as long:
            "".join(client.chat("qwen").complete("x", stream=streamed))
        assert (long.value.code, long.value.http_status) == ("context", 400)
        with pytest.raises(RequestError) as unknown:
            "".join(client.chat("nobody").complete("x", stream=streamed))
        assert unknown.value.http_status == 404


def test_an_endpoint_wants_a_token_of_a_submitter(controller: Live) -> None:
    viewer = controller.token_of("eve", "viewer")
    with controller.endpoint(Parrot()), controller.client(viewer) as client, pytest.raises(NotAllowed):
        client.chat("qwen").complete("x")


def test_no_endpoint_or_a_dead_one_is_said_with_what_to_do(controller: Live) -> None:
    with controller.client() as client:
        with pytest.raises(ClusterError, match="no endpoint yet. Apply a serve workload"):
            client.chat("qwen")
        with controller.endpoint(Parrot()):
            chat = client.chat("qwen")
        with pytest.raises(ClusterError, match="does not answer. See llmsched status"):
            chat.complete("x")


def test_an_app_is_asked_with_json_below_its_name_and_with_the_session_of_the_caller() -> None:
    heard = []

    def answer(request: httpx.Request) -> httpx.Response:
        heard.append((request.url.path, request.headers.get("x-session-id"), json.loads(request.content)))
        return httpx.Response(200, json=[1, 2])

    async def story() -> list[Any]:
        chat = AsyncChat("http://endpoint", "desk", "llms_a_b", httpx.MockTransport(answer))
        return [await chat.post({"a": 1}), await chat.post([3], "/sub", session="s-1")]

    assert asyncio.run(story()) == [[1, 2], [1, 2]]
    assert heard == [("/v1/apps/desk", None, {"a": 1}), ("/v1/apps/desk/sub", "s-1", [3])]
