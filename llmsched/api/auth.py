"""Who may ask, from where, and how much: decided before any route runs, by allow-lists.

`Guard` wraps the whole application, so a route that nobody thought of is refused as well. Tokens are made and kept
in home.py.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import Coroutine, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from llmsched import sanitize, versions
from llmsched.api import home
from llmsched.api.home import TokenRecord, digest
from llmsched.api.page import PAGE_PATH
from llmsched.api.rate import Rate
from llmsched.connections import ADMIT
from llmsched.control.roles import ASKS_ENDPOINTS, AUDITOR, OPERATOR, ROLES, SUBMITTER
from llmsched.errors import LlmschedError, NotAllowed, RequestError
from llmsched.spec import http_models
from llmsched.spec.endpoint_keys import PREFIX, key_of_digest

log = logging.getLogger("llmsched.api")
BODY_LIMIT = 1 << 20
WORKDIR_LIMIT = 128 << 20
# Where more than JSON comes in, by the beginning of the path, and what it may be called ("": nothing at all).
UPLOADS = {
    "/api/v1/workdirs/": ("application/zip",),
    "/api/packages/": ("", "application/zip", "application/octet-stream"),  # as Ray's client sends them
}
OPEN_PATHS = ("/healthz", PAGE_PATH)
LOOK_AGAIN_S = 1.0  # at the tokens, while a request is being answered
LOOPBACK = ("127.0.0.1", "localhost", "::1")

# What a route needs -> which roles it lets in. Of one workload, `see` and `change` then look at whose it is.
MAY: dict[str, tuple[str, ...]] = {
    "look": ROLES,  # the answer holds what its reader may see
    "see": ROLES,
    "submit": (SUBMITTER, OPERATOR),
    "change": (SUBMITTER, OPERATOR),
    "operate": (OPERATOR,),
    "audit": (AUDITOR, OPERATOR),
}


class Tokens:
    """The home's own token (file `token`) and those made with `llmsched token create` (file `tokens.json`).

    Files are read again when they change, so a token can be made or revoked while the controller runs.
    `at_endpoints`: a token is good at endpoints too.
    """

    def __init__(
        self, folder: Path | None = None, records: Sequence[TokenRecord] = (), *, at_endpoints: bool = False
    ) -> None:
        self._at_endpoints = at_endpoints
        self._home = folder
        self._given = tuple(records)
        self._read: tuple[TokenRecord, ...] = ()
        self._stamp: tuple[int, ...] | None = None

    def records(self) -> tuple[TokenRecord, ...]:
        if self._home is not None:
            files = [self._home / "token", self._home / "tokens.json"]
            stamp = tuple(file.stat().st_mtime_ns if file.exists() else 0 for file in files)
            if stamp != self._stamp:
                self._read, self._stamp = tuple(home.load_records(self._home)), stamp
        return self._given + self._read

    def keys(self) -> list[dict[str, Any]]:
        """Of whoever may ask endpoints at all, what endpoints know: the key of each token, and the token itself only
        `at_endpoints` (`spec/endpoint_keys.py`). Which endpoints each reaches is for control/routes.py to say."""
        asking = [one for one in self.records() if one.role in ASKS_ENDPOINTS and not _is_over(one)]
        return [
            {
                "id": record.id,
                "sha256": sha256,
                "user": record.user,
                "role": record.role,
                "expires": record.expires,
                "models": list(record.models),
                "priority": record.priority,
                "requests_per_minute": record.requests_per_minute,
                "tokens_per_minute": record.tokens_per_minute,
            }
            for record in asking
            for sha256 in (digest(key_of_digest(record.sha256)), *([record.sha256] if self._at_endpoints else []))
        ]

    def holds(self, record: TokenRecord) -> bool:
        """Whether that token is still good, for the same user and role."""
        return not _is_over(record) and record in self.records()

    def find(self, authorization: str) -> TokenRecord:
        """The record of an `Authorization` header. Raises NotAllowed (401). Looks at every record."""
        scheme, _, token = authorization.partition(" ")
        presented = digest(token.strip()) if scheme.lower() == "bearer" and token.strip() else ""
        found: TokenRecord | None = None
        for record in self.records():
            if hmac.compare_digest(record.sha256, presented):
                found = record
        if found is None and token.strip().startswith(PREFIX):
            raise _unauthorized(
                "this is a key of endpoints: it asks them at /v1, and no other question.",
                "The commands want a token: leave LLMSCHED_TOKEN out, or set it to what llmsched token create shows.",
            )
        if found is None:
            what = "this token is not known here." if presented else "a bearer token is required."
            raise _unauthorized(
                what, "Set LLMSCHED_TOKEN, or LLMSCHED_HOME to the folder of the controller (it holds `token`)."
            )
        if _is_over(found):
            raise _unauthorized(f"token {found.id} has expired.", "Make a new one: llmsched token create.")
        return found


def _is_over(record: TokenRecord) -> bool:
    return record.expires is not None and record.expires < time.time()


def _unauthorized(message: str, hint: str) -> NotAllowed:
    return NotAllowed(message, code="unauthorized", hint=hint, http_status=401)


def require(record: TokenRecord, need: str) -> None:
    """`need` is a key of MAY. Raises NotAllowed (403)."""
    if record.role not in MAY[need]:
        roles = " or ".join(f'"{role}"' for role in MAY[need])
        raise NotAllowed(
            f'this needs the role {roles}; token {record.id} has "{record.role}".',
            code="role",
            hint="Ask whoever runs the cluster, or show another token: llmsched token create USER --role ROLE.",
        )


def error_body(error: LlmschedError) -> http_models.ErrorBody:
    """Whatever it says of what was asked, in characters that any terminal may be shown."""
    problems = [http_models.ProblemView(**problem._asdict()) for problem in getattr(error, "problems", ())]
    return http_models.ErrorBody(
        code=error.code,
        message=sanitize.shown(error.message),
        where=sanitize.shown(error.where),
        hint=sanitize.shown(error.hint),
        exit_code=error.exit_code,
        retry_after_s=getattr(error, "retry_after_s", None),
        problems=[_shown(each) for each in problems],
    )


def _shown(problem: http_models.ProblemView) -> http_models.ProblemView:
    said = {name: sanitize.shown(text) for name, text in problem if isinstance(text, str)}
    return problem.model_copy(update=said)


def error_headers(error: LlmschedError) -> dict[str, str]:
    headers = {}
    if error.http_status == 401:
        headers["www-authenticate"] = "Bearer"
    retry = getattr(error, "retry_after_s", None)
    if retry is not None:
        headers["retry-after"] = str(max(1, round(retry)))
    return headers


class Guard:
    """ASGI: Host and Origin allow-lists, token, rate, version, type and size of the body. Open: /healthz, the page."""

    def __init__(
        self, app: Any, tokens: Tokens, rate: Rate, *, hosts: Sequence[str] = (), origins: Sequence[str] = ()
    ) -> None:
        self._app = app
        self._tokens = tokens
        self._rate = rate
        self._hosts = frozenset({*LOOPBACK, *hosts})
        self._origins = frozenset(origins)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        with ExitStack() as opened:
            try:
                limit = self._check(scope)
                if limit:
                    opened.enter_context(self._rate.open(scope["llmsched.token"].id))
            except LlmschedError as error:
                await _answer(scope, send, error)
                return
            if limit:
                work = self._app(scope, _limited(receive, limit), _saying_version(send))
                await self._while_valid(scope["llmsched.token"], work)
            else:
                await self._app(scope, _limited(receive, limit), send)

    async def _while_valid(self, token: TokenRecord, work: Coroutine[Any, Any, None]) -> None:
        """A token that is revoked or over ends what is still being answered, streams above all, by hanging up."""
        answering = asyncio.ensure_future(work)
        try:
            while not (await asyncio.wait({answering}, timeout=LOOK_AGAIN_S))[0]:
                if not self._tokens.holds(token):
                    log.info("token %s is over: what it still asked is ended", token.id)
                    return
        finally:
            if not answering.done():
                answering.cancel()
                with suppress(asyncio.CancelledError):
                    await answering
        answering.result()

    def _check(self, scope: Any) -> int:
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        if _host_of(headers.get(b"host", "")) not in self._hosts:
            raise NotAllowed("this controller does not answer under that host name.", code="host")
        origin = headers.get(b"origin")
        own = f"http://{headers.get(b'host', '')}"  # of the page at "/", whose name has just been looked at
        if origin is not None and origin != own and origin not in self._origins:
            raise NotAllowed("requests of web pages are not accepted.", code="origin")
        if scope["path"] in OPEN_PATHS:
            return 0
        try:
            found = self._tokens.find(headers.get(b"authorization", ""))
        except NotAllowed:
            self._rate.take(f"from {(scope.get('client') or ('',))[0]}")
            raise
        self._rate.take(found.id, _length_of(scope, headers))
        scope["llmsched.token"] = found
        scope.get(ADMIT, lambda: None)()
        client = headers.get(versions.HEADER.encode(), versions.own())
        if not versions.go_together(client, versions.own()) and scope["path"] not in versions.ANY_VERSION:
            own = versions.own()
            raise RequestError(versions.difference(client, own), code="version", hint=versions.remedy(own))
        limit = BODY_LIMIT
        if scope.get("method") in ("POST", "PUT", "PATCH"):
            upload = next((path for path in UPLOADS if scope["path"].startswith(path)), "")
            expected = UPLOADS[upload] if upload else ("application/json",)
            limit = WORKDIR_LIMIT if upload else BODY_LIMIT
            given = headers.get(b"content-type", "").partition(";")[0].strip().lower()
            has_body = headers.get(b"content-length", "0") != "0" or b"transfer-encoding" in headers
            if given not in expected and has_body:
                raise RequestError(
                    f'content type "{given}" is not accepted here.',
                    code="content_type",
                    hint=f"Send {expected[-1]}.",
                    http_status=415,
                )
            length = headers.get(b"content-length", "")
            if length.isdecimal() and int(length) > limit:
                raise too_large(limit)
        return limit


def _length_of(scope: Any, headers: dict[bytes, str]) -> int:
    """Of a body; one that does not say it counts as the longest. Uploads have bounds of their own."""
    if any(map(scope["path"].startswith, UPLOADS)):
        return 0
    length = headers.get(b"content-length", "")
    unsaid = BODY_LIMIT if b"transfer-encoding" in headers else 0
    return min(int(length), BODY_LIMIT) if length.isdecimal() else unsaid


def _host_of(header: str) -> str:
    """ "" for what is no host."""
    try:
        return urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return ""


def _saying_version(send: Any) -> Any:
    """To whoever has a token, every answer says which version gives it."""

    async def with_version(message: Any) -> None:
        if message["type"] in ("http.response.start", "websocket.accept", "websocket.http.response.start"):
            said = (versions.HEADER.encode(), versions.own().encode())
            message = {**message, "headers": [*message.get("headers", ()), said]}
        await send(message)

    return with_version


def too_large(limit: int) -> RequestError:
    hint = "Keep data out of it: name it by path or uri." if limit == WORKDIR_LIMIT else "Send less."
    return RequestError(f"the request is larger than {limit >> 20} MiB.", code="too_large", hint=hint, http_status=413)


def _limited(receive: Any, limit: int) -> Any:
    """A body that does not say its length is counted as it comes."""
    seen = 0

    async def counted() -> Any:
        nonlocal seen
        message = await receive()
        if message["type"] == "http.request":
            seen += len(message.get("body", b""))
            if seen > limit:
                raise too_large(limit)
        return message

    return counted


async def _answer(scope: Any, send: Any, error: LlmschedError) -> None:
    headers = {"content-type": "application/json", **error_headers(error)}
    part = "websocket.http.response" if scope["type"] == "websocket" else "http.response"
    await send(
        {
            "type": f"{part}.start",
            "status": error.http_status,
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        }
    )
    await send({"type": f"{part}.body", "body": error_body(error).model_dump_json().encode()})
