"""The same request with the same Idempotency-Key again: answered as before, without doing it again."""

from __future__ import annotations

import json
from typing import Any

from llmsched.control import requests
from llmsched.control.vault import Secrets
from llmsched.core.facts import Fact
from llmsched.core.state import State
from llmsched.errors import RequestError
from llmsched.spec import http_models
from llmsched.store.journal import Store
from llmsched.store.tables import IdempotencyRow


def is_answered(store: Store, request: requests.Submission) -> bool:
    """Whether it was done before: what has come of it since is no reason to refuse it. Raises StoreError."""
    return request.key is not None and store.row(IdempotencyRow, request.person.user, request.key) is not None


async def accept(
    state: State,
    store: Store,
    request: requests.UserRequest,
    at: float,
    secrets: Secrets,
    rows: dict[tuple[str, str], IdempotencyRow],
) -> tuple[Any, list[Fact]]:
    """As `requests.accept`. `rows` are those of this round that are not written yet; a new one is added."""
    if not isinstance(request, requests.Submission) or request.key is None:
        return await requests.accept(state, request, at, secrets)
    key = request.person.user, request.key
    row = rows.get(key) or store.row(IdempotencyRow, *key)
    if row is None:
        answer, facts = await requests.accept(state, request, at, secrets)
        response = json.dumps([applied.model_dump() for applied in answer])
        rows[key] = IdempotencyRow(*key, request.digest(), response, at)
        return answer, facts
    if row.request != request.digest():
        raise RequestError(
            "this Idempotency-Key was used for another request.", code="idempotency", hint="Use a new key."
        )
    return [http_models.Applied.model_validate(item) for item in json.loads(row.response)], []
