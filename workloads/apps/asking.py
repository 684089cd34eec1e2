"""Asking an endpoint in the course of an answer, and what whoever asked the app is told when that goes wrong."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from starlette.exceptions import HTTPException

from llmsched.errors import ClusterError, LlmschedError

T = TypeVar("T")


def asked(call: Callable[..., T], *given: Any, **named: Any) -> T:
    """What `call`, of llmsched.runtime.calls, answers. Raises HTTPException: 503 that may be tried again, 429 where the
    endpoint is full, 422 where it refuses what it was asked, which came from whoever asked the app, else 502."""
    try:
        return call(*given, **named)
    except ClusterError as error:
        raise HTTPException(503, str(error), {"Retry-After": "1"}) from None
    except LlmschedError as error:
        status = 422 if is_refused(error) else 429 if error.http_status == 429 else 502
        raise HTTPException(status, str(error)) from None


def is_refused(error: LlmschedError) -> bool:
    """Whether an endpoint will never take what it was asked: too long, or not what it reads."""
    return error.http_status in (400, 413, 422)


def in_words(error: Exception) -> str:
    """What went wrong, without the folders of this machine: whoever asks an app is told it."""
    if isinstance(error, OSError) and error.strerror:
        return f"{Path(str(error.filename)).name}: {error.strerror}" if error.filename else error.strerror
    return str(error)


def once_there(call: Callable[[], T], every_s: float) -> T:
    """What `call` answers once the endpoints that it asks are there. Until then the app that begins with it is not
    there either, and its log says what it waits for. Raises what else `call` raises."""
    while True:
        try:
            return call()
        except LlmschedError as error:
            if not isinstance(error, ClusterError) and error.http_status not in (404, 429):
                raise
            print(f"[app] it begins when it can ask: {error}", flush=True)
            time.sleep(every_s)
