"""Asking other endpoints from a workload's own code: those that its spec names in `calls`.

Any OpenAI client finds them without a word: `OPENAI_BASE_URL` and `OPENAI_API_KEY` are set. This is for apps, and for
those who would rather not read the environment.
"""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from llmsched.errors import ClusterError, RequestError

_URL, _KEY = "LLMSCHED_CALLS_URL", "LLMSCHED_CALLS_KEY"


def openai(**more: Any) -> Any:
    """The stock client; `more` are its own arguments. Raises RequestError where the spec names no `calls`."""
    import openai as package

    return package.OpenAI(base_url=f"{_place()}/v1", api_key=os.environ[_KEY], **more)


def async_openai(**more: Any) -> Any:
    """The same for asyncio."""
    import openai as package

    return package.AsyncOpenAI(base_url=f"{_place()}/v1", api_key=os.environ[_KEY], **more)


def post(app: str, body: Any, path: str = "", *, timeout_s: float = 600.0) -> Any:
    """Ask an app (`/v1/apps/APP`, and below it `path`) with JSON; its JSON. Raises RequestError for an answer of 4xx,
    ClusterError for any other failure."""
    return _ask(app, f"apps/{app}" + (f"/{path.lstrip('/')}" if path else ""), body, timeout_s)


def embeddings(model: str, texts: list[str], *, timeout_s: float = 600.0) -> list[list[float]]:
    """A vector for each text, of a `feature-extraction` endpoint. Raises as `post`."""
    answer = _ask(model, "embeddings", {"model": model, "input": texts}, timeout_s)
    return [row["embedding"] for row in sorted(answer["data"], key=lambda row: row["index"])]


def classify(model: str, inputs: list[Any], *, timeout_s: float = 600.0) -> list[dict[str, Any]]:
    """The label of each input (`{"label", "score", ...}`), of an endpoint that gives every input one. Raises as `post`,
    and ClusterError for an answer of another number."""
    answer = _ask(model, "classify", {"model": model, "input": inputs}, timeout_s)
    found: list[dict[str, Any]] = sorted(answer["data"], key=lambda row: row["index"])
    if [row["index"] for row in found] != [*range(len(inputs))]:
        raise ClusterError(f"{model} gives more than one label, or none, for an input.")
    return found


def find(model: str, inputs: list[Any], *, timeout_s: float = 600.0) -> list[dict[str, Any]]:
    """All that a model finds in inputs, such as entities of texts and regions of images: {"index" of the input,
    "label", "score", "at", ...}. Raises as `post`."""
    return list(_ask(model, "classify", {"model": model, "input": inputs}, timeout_s)["data"])


def chat(model: str, messages: list[dict[str, Any]], *, timeout_s: float = 600.0, **parameters: Any) -> str:
    """The text of a language model's answer; `model` may be MODEL:ADAPTER. Raises as `post`."""
    body = {"model": model, "messages": messages, **parameters}
    return str(_ask(model, "chat/completions", body, timeout_s)["choices"][0]["message"]["content"] or "")


def stream(model: str, messages: list[dict[str, Any]], *, timeout_s: float = 600.0, **parameters: Any) -> Iterator[str]:
    """The same piece by piece, as it is made. Raises as `post`, ClusterError also where it breaks off."""
    body = {"model": model, "messages": messages, "stream": True, **parameters}
    with _opened(model, "chat/completions", body, timeout_s) as answer:
        for line in answer:
            said = line.removeprefix(b"data:").strip()
            if not line.startswith(b"data:"):
                continue
            if said == b"[DONE]":
                return
            event = json.loads(said)
            if "error" in event:
                raise ClusterError(f"{model} broke off: {_words(said)}")
            if piece := event["choices"] and event["choices"][0]["delta"].get("content"):
                yield piece
    raise ClusterError(f"{model} broke off: its stream has no end.")


def _ask(name: str, route: str, body: Any, timeout_s: float) -> Any:
    with _opened(name, route, body, timeout_s) as answer:
        return json.loads(answer.read() or b"null")


@contextmanager
def _opened(name: str, route: str, body: Any, timeout_s: float) -> Iterator[Any]:
    url = f"{_place()}/v1/{route}"
    headers = {"Authorization": f"Bearer {os.environ[_KEY]}", "Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers, method="POST")  # noqa: S310  # ours
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=timeout_s) as answer:
            yield answer
    except urllib.error.HTTPError as error:
        words = f"{name} answered HTTP {error.code}: {_words(error.read())}"
        if error.code < 500:
            raise RequestError(words, http_status=error.code) from None
        raise ClusterError(words) from None
    except (OSError, ValueError) as error:
        raise ClusterError(f"{name} could not be asked: {error}") from None


def _place() -> str:
    url = os.environ.get(_URL)
    if not url:
        raise RequestError(
            "this work may call no endpoint.",
            hint="Name them in its spec, calls: [NAME]; the code runs inside a workload.",
        )
    return url


def _words(said: bytes) -> str:
    try:
        told = json.loads(said)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        told = said.decode(errors="replace")
    return str(told)[:500]
