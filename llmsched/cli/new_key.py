"""A key that was just made, where its controller runs: which endpoints are not there, and from when it counts."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from llmsched.cli import terminal
from llmsched.errors import LlmschedError, RequestError
from llmsched.spec.endpoint_keys import key_of
from llmsched.spec.validation import nearest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmsched.client import Client

WITHIN_S = 5.0  # gateways have their next table within a second or two
_AGAIN_S = 0.1
_SEEN = 3  # answers in a row: several gateways share the requests


def tell(home: Path, key: str, models: Sequence[str]) -> None:
    """Returns once endpoints take `key`; notes go to stderr. Where no controller runs there is nothing to say."""
    from llmsched.client import Client
    from llmsched.client.transport import written_token, written_url

    url, token = written_url(home), written_token(home)
    if not url or not token:
        return
    try:
        with Client(url, token) as client:
            endpoint = client.health().urls.get("endpoint")
            known = (_models(endpoint, key_of(token)) or []) if endpoint and models else []
            absent = [name for name in dict.fromkeys(models) if name not in known and not _serves(client, name)]
    except LlmschedError:  # the key is made all the same
        return
    for name in absent:
        near = nearest(name, known)
        like = f' The nearest is "{near}".' if near else ""
        terminal.echo(f'No endpoint is called "{name}" now: the key asks it once there is one.{like}', err=True)
    if endpoint and not _counts(endpoint, key):
        terminal.echo(f"The endpoints did not take it within {WITHIN_S:g} s: try again in a moment.", err=True)


def _serves(client: Client, name: str) -> bool:
    """Whether it is a workload of that kind: a key may name it so, whatever its model is called."""
    try:
        return client.status(name).kind == "serve"
    except RequestError:
        return False


def _counts(endpoint: str, key: str) -> bool:
    until, seen = time.monotonic() + WITHIN_S, 0
    while seen < _SEEN:
        found = _models(endpoint, key)
        if found is None:
            if time.monotonic() > until:
                return False
            seen = 0
            time.sleep(_AGAIN_S)  # a gateway tells nobody that its table has come
        else:
            seen += 1
    return True


def _models(endpoint: str, key: str) -> list[str] | None:
    """The ids that `key` reaches, at the gateway that answers; None: it takes no such key."""
    from llmsched.client.lean_httpx import httpx

    try:
        said = httpx.get(f"{endpoint}/v1/models", headers={"authorization": f"Bearer {key}"}, timeout=WITHIN_S)
        return [str(each["id"]) for each in said.json()["data"]] if said.is_success else None
    except (httpx.HTTPError, ValueError, KeyError):
        return None
