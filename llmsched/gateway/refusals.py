"""What the gateway answers when it does not serve: errors in the form OpenAI's clients know."""

from __future__ import annotations

import json
from typing import Any

from llmsched import sanitize

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class Refused(Exception):
    """Ends a request with `status`. `code` is stable and for machines; `retry_after_s` becomes a header."""

    def __init__(
        self, status: int, message: str, *, code: str, param: str | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s

    def body(self) -> dict[str, Any]:
        return error_body(self.status, self.message, code=self.code, param=self.param)

    def headers(self) -> list[tuple[bytes, bytes]]:
        if self.retry_after_s is None:
            return []
        return [(b"retry-after", str(max(1, round(self.retry_after_s))).encode())]


SAID_AT_MOST = 2000  # characters
HEAD_BYTES = 64 << 10
# What the proxy before the gateway refuses on a connection, by code. Where something on it may still be to be answered,
# the proxy asks the gateway for these words, which then come in turn.
OF_CONNECTIONS = {
    "bad_request": (400, "This is no HTTP/1.1."),
    "method_not_allowed": (405, "There is nothing to CONNECT to."),
    "head": (431, f"The head of a request is larger than {HEAD_BYTES >> 10} KiB."),
}
UNREADABLE = "/-/unreadable/"  # and a code


def of_connection(code: str) -> Refused:
    status, message = OF_CONNECTIONS[code]
    return Refused(status, message, code=code)


def error_body(status: int, message: str, *, code: str | None, param: str | None = None) -> dict[str, Any]:
    """`message` may say what was asked for: in characters that any terminal may be shown, and its ends where it is
    long, as the name of a model may have megabytes."""
    if len(message) > SAID_AT_MOST:
        message = f"{message[: SAID_AT_MOST // 2]} [...] {message[-SAID_AT_MOST // 2 :]}"
    kind = TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": sanitize.shown(message), "type": kind, "param": param, "code": code}}


def encode(value: Any) -> bytes:
    """Compact JSON. Raises Refused for a value that JSON has no word for: its text would look like an answer."""
    try:
        return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace")
    except (TypeError, ValueError) as error:
        raise Refused(500, f"The replica's answer cannot be written as JSON: {error}.", code="not_json") from None
