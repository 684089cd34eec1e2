"""Asking an endpoint in the course of an answer: one that is away is named to whoever asked the app."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from starlette.exceptions import HTTPException

from llmsched.errors import ClusterError, LlmschedError

T = TypeVar("T")


def asked(call: Callable[..., T], *given: Any) -> T:
    """What `call`, of llmsched.runtime.calls, answers. Raises HTTPException: 503 that may be tried again, 429 where the
    endpoint is full, else 502."""
    try:
        return call(*given)
    except ClusterError as error:
        raise HTTPException(503, str(error), {"Retry-After": "1"}) from None
    except LlmschedError as error:
        raise HTTPException(429 if error.http_status == 429 else 502, str(error)) from None
