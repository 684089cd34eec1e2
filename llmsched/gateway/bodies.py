"""What the gateway reads of a request to a model, and what it asks besides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmsched import sanitize
from llmsched.data.parameters import TRANSFER
from llmsched.gateway.refusals import Refused
from llmsched.policies.routing.work import AnswerLengths, limit_of

WRITES = ("chat/completions", "completions")  # routes whose answers come word by word
FLEX = "flex"  # OpenAI's `service_tier` for what can wait
SESSION_HEADER = b"x-session-id"  # as Ray Serve has it
SESSION_LENGTH = 256


def json_in(raw: bytes) -> dict[str, Any]:
    """Raises Refused."""
    try:
        body = sanitize.asked_of_app(raw)
    except sanitize.RepeatedKey as error:
        raise Refused(400, f"In the body, {error}.", code="repeated_key") from None
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"The body is not JSON: {error}.", code="invalid_json") from None
    if not isinstance(body, dict):
        raise Refused(400, "The body must be a JSON object.", code="invalid_json")
    if TRANSFER in body:
        message = f'"{TRANSFER}" is said between replicas, and by no client. Leave it out.'
        raise Refused(400, message, code="unknown_parameter", param=TRANSFER)
    return body


def is_streamed(body: Mapping[str, Any]) -> bool:
    """Whether the answer is asked for piece by piece. Raises Refused."""
    wanted = body.get("stream")
    if wanted is not None and not isinstance(wanted, bool):
        raise Refused(400, '"stream" must be true or false.', code="invalid_request", param="stream")
    return wanted is True


def session_of(headers: Mapping[bytes, bytes], body: Mapping[str, Any]) -> str:
    """What the client says that this request belongs to: a header, or OpenAI's `user`."""
    user = body.get("user")
    session = headers.get(SESSION_HEADER, b"").decode("latin-1") or (user if isinstance(user, str) else "")
    return session[:SESSION_LENGTH]


def expected_of(lengths: AnswerLengths, route: str, body: Mapping[str, Any]) -> int:
    """Tokens of the answer."""
    return lengths.expect(limit_of(body)) if route in WRITES else 1


def with_usage(body: dict[str, Any]) -> dict[str, Any]:
    """The same request, which asks how many tokens it took; `body` itself where it does that, or is wrong."""
    options = body.get("stream_options")
    options = {} if options is None else options
    if not isinstance(options, dict) or options.get("include_usage", False) is not False:
        return body
    return {**body, "stream_options": {**options, "include_usage": True}}


def is_usage(chunk: Any) -> bool:
    return isinstance(chunk, dict) and chunk.get("choices") == [] and isinstance(chunk.get("usage"), dict)
