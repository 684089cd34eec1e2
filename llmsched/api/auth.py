"""Who may ask, from where, and how much: decided before any route runs, by allow-lists.

`Guard` wraps the whole application, so a route that nobody thought of is refused as well. A token reads
`llms_<id>_<secret>` with a secret of 256 bits; only its SHA-256 is kept, and it is shown once, when it is made.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from llmsched.errors import LlmschedError, NotAllowed, RequestError, SpecError
from llmsched.spec import wire

ROLES = ("viewer", "submitter", "admin")  # each may do what those before it may
BODY_LIMIT = 1 << 20
WORKDIR_LIMIT = 256 << 20
OPEN_PATH = "/healthz"
LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """What is kept of a token. Stamps in seconds; `expires` None: never (the home's own token)."""

    id: str
    sha256: str
    user: str
    role: str = "submitter"
    created: float = 0.0
    expires: float | None = None


def digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def new_token(user: str, role: str = "submitter", days: float | None = 90) -> tuple[str, TokenRecord]:
    """A fresh token, to be shown once, and what to keep of it."""
    if role not in ROLES:
        raise SpecError(f'unknown role "{role}".', hint=f"Roles: {', '.join(ROLES)}.")
    now = time.time()
    token_id = secrets.token_hex(4)
    token = f"llms_{token_id}_{secrets.token_hex(32)}"
    return token, TokenRecord(token_id, digest(token), user, role, now, now + days * 86400 if days else None)


class Tokens:
    """The home's own token (file `token`) and those made with `llmsched token create` (file `tokens.json`).

    Files are read again when they change, so a token can be made or revoked while the controller runs.
    """

    def __init__(self, home: Path | None = None, records: Sequence[TokenRecord] = ()) -> None:
        self._home = home
        self._given = tuple(records)
        self._read: tuple[TokenRecord, ...] = ()
        self._stamp: tuple[int, ...] | None = None

    def records(self) -> tuple[TokenRecord, ...]:
        if self._home is not None:
            files = [self._home / "token", self._home / "tokens.json"]
            stamp = tuple(file.stat().st_mtime_ns if file.exists() else 0 for file in files)
            if stamp != self._stamp:
                self._read, self._stamp = tuple(load_records(self._home)), stamp
        return self._given + self._read

    def find(self, authorization: str) -> TokenRecord:
        """The record of an `Authorization` header. Raises NotAllowed (401). Looks at every record."""
        scheme, _, token = authorization.partition(" ")
        presented = digest(token.strip()) if scheme.lower() == "bearer" else ""
        found: TokenRecord | None = None
        for record in self.records():
            if hmac.compare_digest(record.sha256, presented):
                found = record
        if found is None:
            what = "this token is not known here." if presented else "a bearer token is required."
            raise _unauthorized(
                what, "Set LLMSCHED_TOKEN, or LLMSCHED_HOME to the folder of the controller (it holds `token`)."
            )
        if found.expires is not None and found.expires < time.time():
            raise _unauthorized(f"token {found.id} has expired.", "Make a new one: llmsched token create.")
        return found


def _unauthorized(message: str, hint: str) -> NotAllowed:
    return NotAllowed(message, code="unauthorized", hint=hint, http_status=401)


def load_records(home: Path) -> list[TokenRecord]:
    records = []
    own, made = home / "token", home / "tokens.json"
    if own.exists():
        text = own.read_text().strip()
        records.append(TokenRecord("home", digest(text), os.environ.get("USER") or "operator", "admin"))
    if made.exists():
        records += [TokenRecord(**item) for item in json.loads(made.read_text())]
    return records


def save_record(home: Path, record: TokenRecord) -> None:
    """Adds to `tokens.json` (0600), replacing it whole."""
    made = home / "tokens.json"
    known = json.loads(made.read_text()) if made.exists() else []
    write_private(made, json.dumps([*known, asdict(record)], indent=1))


def home_token(home: Path) -> str:
    """The home's admin token; made (0600) when there is none."""
    file = home / "token"
    if not file.exists():
        write_private(file, new_token("operator", "admin", days=None)[0] + "\n")
    return file.read_text().strip()


def write_private(file: Path, text: str) -> None:
    """Only the owner can read it, at no moment anyone else, and readers see the old or the new whole."""
    new = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as stream:
        stream.write(text)
    new.replace(file)


def require(record: TokenRecord, role: str) -> None:
    if ROLES.index(record.role) < ROLES.index(role):
        raise NotAllowed(f'this needs the role "{role}"; token {record.id} has "{record.role}".', code="role")


def error_body(error: LlmschedError) -> wire.ErrorBody:
    return wire.ErrorBody(
        code=error.code,
        message=error.message,
        where=error.where,
        hint=error.hint,
        exit_code=error.exit_code,
        retry_after_s=getattr(error, "retry_after_s", None),
    )


def error_headers(error: LlmschedError) -> dict[str, str]:
    headers = {}
    if error.http_status == 401:
        headers["www-authenticate"] = "Bearer"
    retry = getattr(error, "retry_after_s", None)
    if retry is not None:
        headers["retry-after"] = str(max(1, round(retry)))
    return headers


class Guard:
    """ASGI: Host and Origin allow-lists, bearer token, content type, body size. The only open path is /healthz."""

    def __init__(self, app: Any, tokens: Tokens, *, hosts: Sequence[str] = (), origins: Sequence[str] = ()) -> None:
        self._app = app
        self._tokens = tokens
        self._hosts = frozenset({*LOOPBACK, *hosts})
        self._origins = frozenset(origins)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket":  # there are none
                await send({"type": "websocket.close", "code": 1008})
                return
            await self._app(scope, receive, send)
            return
        try:
            limit = self._check(scope)
        except LlmschedError as error:
            await _answer(send, error)
            return
        await self._app(scope, _limited(receive, limit), send)

    def _check(self, scope: Any) -> int:
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        host = urlsplit(f"//{headers.get(b'host', '')}").hostname or ""
        if host not in self._hosts:
            raise NotAllowed("this controller does not answer under that host name.", code="host")
        origin = headers.get(b"origin")
        if origin is not None and origin not in self._origins:
            raise NotAllowed("requests of web pages are not accepted.", code="origin")
        if scope["path"] == OPEN_PATH:
            return 0
        scope["llmsched.token"] = self._tokens.find(headers.get(b"authorization", ""))
        limit = BODY_LIMIT
        if scope["method"] in ("POST", "PUT", "PATCH"):
            upload = scope["method"] == "PUT" and scope["path"].startswith("/api/v1/workdirs/")
            expected = "application/zip" if upload else "application/json"
            limit = WORKDIR_LIMIT if upload else BODY_LIMIT
            given = headers.get(b"content-type", "").partition(";")[0].strip().lower()
            if given != expected and headers.get(b"content-length") != "0":
                raise RequestError(
                    f'content type "{given}" is not accepted here.',
                    code="content_type",
                    hint=f"Send {expected}.",
                    http_status=415,
                )
            length = headers.get(b"content-length", "")
            if length.isdigit() and int(length) > limit:
                raise too_large(limit)
        return limit


def too_large(limit: int) -> RequestError:
    return RequestError(
        f"the request is larger than {limit >> 20} MiB.", code="too_large", hint="Send less.", http_status=413
    )


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


async def _answer(send: Any, error: LlmschedError) -> None:
    headers = {"content-type": "application/json", **error_headers(error)}
    await send(
        {
            "type": "http.response.start",
            "status": error.http_status,
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        }
    )
    await send({"type": "http.response.body", "body": error_body(error).model_dump_json().encode()})
