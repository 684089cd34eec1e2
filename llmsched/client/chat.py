"""Talking to an endpoint: the OpenAI protocol of the gateway, as far as a person or a script needs it."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from llmsched.client.lean_httpx import httpx
from llmsched.client.transport import STREAM_TIMEOUT, lines_of
from llmsched.errors import ClusterError, LlmschedError, NotAllowed, RequestError
from llmsched.spec.endpoint_keys import key_of

Messages = str | Sequence[dict[str, Any]]


class AsyncChat:
    """Requests to model `model` of the gateway at `endpoint`, which is shown the key of `token`, not the token.
    Remembers nothing of what was said."""

    def __init__(
        self, endpoint: str, model: str, token: str, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        self.endpoint = endpoint.rstrip("/")
        self.model = model
        self._headers = {"authorization": f"Bearer {key_of(token)}"}
        self._transport = transport

    async def complete(self, messages: Messages, **parameters: Any) -> str:
        """The answer's text. `parameters` are OpenAI's (max_tokens, temperature ...). Raises LlmschedError."""
        answer = await self.respond(messages, **parameters)
        return str(answer["choices"][0]["message"]["content"])

    async def respond(self, messages: Messages, **parameters: Any) -> dict[str, Any]:
        """The whole OpenAI response object, usage included."""
        return dict(await self._ask("/v1/chat/completions", self._body(messages, parameters)))

    async def stream(self, messages: Messages, **parameters: Any) -> AsyncGenerator[str, None]:
        """The answer's text piece by piece, as it is made."""
        body = {**self._body(messages, parameters), "stream": True}
        async with self._http() as http:
            try:
                async with http.stream("POST", f"{self.endpoint}/v1/chat/completions", json=body) as answer:
                    if not answer.is_success:
                        await answer.aread()
                        raise _error_of(answer, self.model)
                    async for line in lines_of(answer):
                        if not line.startswith("data:") or line[5:].strip() == "[DONE]":
                            continue
                        chunk = json.loads(line[5:])
                        if "error" in chunk:
                            raise ClusterError(str(chunk["error"].get("message", "the answer broke off.")))
                        for choice in chunk.get("choices", ()):
                            piece = choice.get("delta", {}).get("content")
                            if piece:
                                yield piece
            except httpx.HTTPError as error:
                raise self._unreachable() from error

    async def classify(self, texts: str | Sequence[Any], *, explain: bool = False) -> list[dict[str, Any]]:
        """Of each text (or [text, text_pair]) {"label", "scores": {label: 0..1}}; to `explain` also "why": of each word
        {"text", "weight", "at": {"start", "end"}}. Raises LlmschedError."""
        body = {"model": self.model, "input": texts, **({"explain": True} if explain else {})}
        answer = await self._ask("/v1/classify", body)
        return list(answer["data"])

    async def embed(self, texts: str | Sequence[str]) -> list[list[float]]:
        """Of each text its vector. Raises LlmschedError."""
        answer = await self._ask("/v1/embeddings", {"model": self.model, "input": texts})
        return [list(each["embedding"]) for each in answer["data"]]

    async def transcribe(self, audio: bytes) -> str:
        """What is said in an audio file, of the rate that the model hears. Raises LlmschedError."""
        form: dict[str, Any] = {"data": {"model": self.model}, "files": {"file": ("audio", audio)}}
        return str((await self._ask("/v1/audio/transcriptions", **form))["text"])

    async def post(self, body: Any, path: str = "", *, session: str = "") -> Any:
        """Of an app: JSON to /v1/apps/NAME, or to `path` below it, and its JSON answer. `session` goes as X-Session-Id,
        for `routing: session-affinity`. Raises LlmschedError."""
        below = f"/{path.lstrip('/')}" if path else ""
        headers = {"X-Session-Id": session} if session else {}
        return await self._ask(f"/v1/apps/{self.model}{below}", body, headers=headers)

    async def models(self) -> list[str]:
        """Ids of the models that the key reaches, adapters as MODEL:ADAPTER. Raises LlmschedError."""
        async with self._http() as http:
            try:
                answer = await http.get(f"{self.endpoint}/v1/models")
            except httpx.HTTPError as error:
                raise self._unreachable() from error
        if not answer.is_success:
            raise _error_of(answer, self.model)
        return [one["id"] for one in answer.json()["data"]]

    async def _ask(self, path: str, body: Any = None, **more: Any) -> Any:
        async with self._http() as http:
            try:
                answer = await http.post(f"{self.endpoint}{path}", json=body, **more)
            except httpx.HTTPError as error:
                raise self._unreachable() from error
        if not answer.is_success:
            raise _error_of(answer, self.model)
        return answer.json()

    def _body(self, messages: Messages, parameters: dict[str, Any]) -> dict[str, Any]:
        said = [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)
        return {"model": self.model, "messages": said, **parameters}

    def _http(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            headers=self._headers, timeout=STREAM_TIMEOUT, transport=self._transport, trust_env=False
        )

    def _unreachable(self) -> ClusterError:
        return ClusterError(
            f"the endpoint at {self.endpoint} does not answer.",
            code="no_endpoint",
            hint=f"See llmsched status, and llmsched why {self.model.partition(':')[0]}.",
        )


def _error_of(answer: httpx.Response, model: str) -> LlmschedError:
    try:
        said = answer.json()["error"]
        message, code = str(said["message"]), str(said.get("code") or "endpoint")
    except (ValueError, KeyError, TypeError, AttributeError):
        message, code = f"the endpoint answered {answer.status_code}.", "endpoint"
    if answer.status_code in (401, 403):
        return NotAllowed(message, code=code, http_status=answer.status_code)
    if answer.status_code in (503, 502, 500, 504):
        return ClusterError(message, code=code, hint=f"See llmsched why {model.partition(':')[0]}.")
    retry = answer.headers.get("retry-after", "")
    return RequestError(
        message, code=code, http_status=answer.status_code, retry_after_s=float(retry) if retry.isdigit() else None
    )
