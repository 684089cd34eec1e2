"""The examples of the contract page, put into what FastAPI says of the routes; and the bearer token, unknown to it.

The examples are those of README.md, which tests type against a real controller; so nothing here can be out of date. An
answer that the page shortens is filled up with the defaults of its model.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from importlib.resources import files
from typing import Any, NamedTuple, get_origin

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic import BaseModel, TypeAdapter, ValidationError

from llmsched.spec import http_models

BASES = ("$LLMSCHED_ADDRESS", "$API")
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.M | re.S)
_ANSWERS = {"json", "ndjson", "text"}


class Example(NamedTuple):
    method: str
    path: str  # without the query
    body: Any  # JSON, None when there is none
    answer: str


def describe(app: FastAPI, routes: Iterable[Any]) -> dict[str, Any]:
    """OpenAPI 3.1 of these routes of the application, made once."""
    if app.openapi_schema is None:
        about = (
            "Every error has the form of ErrorBody. What may be relied on: README.md beside this file's source, "
            "whose examples these are."
        )
        said = get_openapi(title=app.title, version=app.version, routes=app.routes, description=about)
        said["components"]["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
        known = list(examples(files("llmsched.api").joinpath("README.md").read_text("utf-8")))
        for route in routes:
            if isinstance(route, APIRoute) and route.include_in_schema:
                for method in route.methods or ():
                    operation = said["paths"][route.path_format][method.lower()]
                    if route.path != "/healthz":
                        operation["security"] = [{"bearer": []}]
                    mine = [one for one in known if one.method == method and route.path_regex.match(one.path)]
                    _exemplify(operation, route, mine)
        app.openapi_schema = said
    return app.openapi_schema


def examples(page: str) -> Iterator[Example]:
    """Each curl of the page that is followed by an answer."""
    blocks = _BLOCK.findall(page)
    for (language, typed), (form, answer) in zip(blocks, blocks[1:], strict=False):
        words = shlex.split(typed) if language == "bash" and form in _ANSWERS else []
        if "curl" in words:
            yield _asked(words[words.index("curl") + 1 :], answer)


def _asked(words: list[str], answer: str) -> Example:
    method, body = "GET", None
    for word, after in zip(words, words[1:], strict=False):
        if word == "--json":
            method, body = "POST" if method == "GET" else method, json.loads(after)
        elif word == "-T":
            method = "PUT"
        elif word == "-X":
            method = after
    url = next(word for word in words if word.startswith(BASES))
    path = url.replace("$LLMSCHED_ADDRESS", "").replace("$API", "/api/v1").partition("?")[0]
    return Example(method, path, body, answer.strip())


def _exemplify(operation: dict[str, Any], route: APIRoute, known: list[Example]) -> None:
    """The first examples that are whole, of the request, of the answer and of a refusal."""
    for one in known:
        for content in _contents(operation.get("requestBody")):
            if one.body is not None:
                content.setdefault("example", one.body)
        shown = _shown(route, one.answer)
        for content in _contents(operation["responses"]["200"]) if shown is not None else ():
            content.setdefault("example", shown)
        refused = _validated(http_models.ErrorBody, one.answer)
        if refused is not None:
            for content in _contents(operation["responses"].get("4XX")):
                content.setdefault("example", refused)


def _shown(route: APIRoute, answer: str) -> Any:
    """A model with all its keys, a list of these, or text as it stands; None for a refusal, or what is cut too
    short."""
    model = route.response_model
    if get_origin(model) is list or (isinstance(model, type) and issubclass(model, BaseModel)):
        return _validated(model, answer)
    return answer if _validated(http_models.ErrorBody, answer) is None else None


def _contents(said: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    return list((said or {}).get("content", {}).values())


def _validated(model: Any, answer: str) -> Any:
    adapter: TypeAdapter[Any] = TypeAdapter(model)
    try:
        return adapter.dump_python(adapter.validate_json(answer), mode="json")
    except ValidationError:
        return None
