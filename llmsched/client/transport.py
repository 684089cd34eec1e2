"""One HTTP connection to a controller: where it is, who we are, and its errors as ours.

Knows addresses, tokens and status codes; nothing of workloads. For tests an ASGI application can stand in for the
network (`httpx.ASGITransport`).
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel, ValidationError

from llmsched import versions
from llmsched.client.lean_httpx import httpx
from llmsched.errors import Bug, ClusterError, LlmschedError, NotAllowed, Problem, RequestError, SpecError, StoreError
from llmsched.own_origin import Opened
from llmsched.spec import http_models

Model = TypeVar("Model", bound=BaseModel)
TIMEOUT = httpx.Timeout(60.0, connect=5.0)
STREAM_TIMEOUT = httpx.Timeout(60.0, connect=5.0, read=None)
FIRST_PAUSE_S = 0.02
PATIENCE_S = 30.0  # of one call, while the controller says that it is asked too often
_BY_EXIT_CODE = {2: SpecError, 3: RequestError, 4: ClusterError, 5: StoreError, 70: Bug}


def default_home() -> Path:
    """LLMSCHED_HOME, or a folder among the user's data."""
    given = os.environ.get("LLMSCHED_HOME")
    if given:
        return Path(given).expanduser().absolute()
    data = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(data).expanduser() / "llmsched"


def locate(address: str | None = None, token: str | None = None, home: Path | None = None) -> tuple[str, str]:
    """(url, token): as given, else from LLMSCHED_ADDRESS and LLMSCHED_TOKEN, else from the controller of the home.

    Raises ClusterError when no controller is known, NotAllowed when there is no token.
    """
    home = home or default_home()
    url = address or os.environ.get("LLMSCHED_ADDRESS") or written_url(home)
    if not url:
        raise ClusterError(
            "no controller is running here.",
            code="no_controller",
            hint="Start one: llmsched up. Or name one: LLMSCHED_ADDRESS and LLMSCHED_TOKEN.",
        )
    found = token or os.environ.get("LLMSCHED_TOKEN") or written_token(home)
    if not found:
        raise NotAllowed(
            "there is no token.", code="unauthorized", hint=f"Set LLMSCHED_TOKEN, or LLMSCHED_HOME (now {home})."
        )
    return _checked_url(url if "://" in url else f"http://{url}"), found


def _checked_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        fine = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # brackets or a port that are none
        fine = False
    if fine:
        return url.rstrip("/")
    raise SpecError(f"{url} is no address of a controller.", code="address", hint="Write http://HOST:PORT.")


def written_url(home: Path) -> str | None:
    """Of the controller that runs in this home."""
    try:
        return str(json.loads((home / "controller.json").read_text())["url"])
    except (OSError, ValueError, KeyError):
        return None


def written_token(home: Path) -> str | None:
    """The home's own, an operator's."""
    try:
        return (home / "token").read_text().strip()
    except OSError:
        return None


class Transport:
    """Requests to one controller. Every method raises LlmschedError with the controller's words, or ClusterError."""

    def __init__(self, url: str, token: str, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self.url = url
        self.token = token
        self._http = httpx.AsyncClient(
            base_url=url,
            headers={"authorization": f"Bearer {token}", versions.HEADER: versions.own()},
            timeout=TIMEOUT,
            transport=transport,
            verify=not url.lower().startswith("http:"),  # the certificates of the world take longer to read than to ask
            trust_env=False,  # a proxy of the surroundings has no business between us and loopback
        )

    async def close(self) -> None:
        await self._http.aclose()

    async def ask(
        self,
        model: type[Model],
        method: str,
        path: str,
        *,
        body: BaseModel | None = None,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, Any] | None = None,
    ) -> Model:
        sent = dict(headers or {})
        if body is not None:
            content = body.model_dump_json().encode()
            sent["content-type"] = "application/json"
        patience = _Patience()
        while True:
            with _connection_errors(self.url):
                answer = await self._answer(method, path, content=content, headers=sent, params=params)
            _check_version(answer, path)
            if answer.is_success:
                break
            await patience.wait(error_of(answer))
        try:
            return model.model_validate_json(answer.content)
        except ValidationError as error:
            raise ClusterError(
                f"{self.url} answered something that is not of this version of llmsched.",
                code="version",
                hint="Use the client of the controller's version.",
            ) from error

    async def _answer(self, method: str, path: str, **what: Any) -> httpx.Response:
        """A connection that nobody used for a while may be closed by the controller in the moment in which it is used
        again. What only asks is asked once more then, on another; whether a change was made nobody knows."""
        try:
            return await self._http.request(method, path, **what)
        except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
            if method != "GET":
                raise
            return await self._http.request(method, path, **what)

    @asynccontextmanager
    async def opened(self, path: str, headers: Mapping[str, str]) -> AsyncIterator[Opened]:
        """What a GET is answered, good or bad, to be read as it comes. `path` may have a query."""
        with _connection_errors(self.url):
            async with self._http.stream("GET", path, headers=dict(headers), timeout=STREAM_TIMEOUT) as answer:
                yield Opened(answer.status_code, answer.headers, answer.aiter_bytes())

    async def pieces(self, path: str) -> AsyncGenerator[bytes, None]:
        """The bytes of a streamed answer, as they come."""
        patience = _Patience()
        while True:
            with _connection_errors(self.url):
                try:
                    async with self._stream(path, None, None) as answer:
                        async for piece in answer.aiter_bytes():
                            yield piece
                        return
                except RequestError as refused:
                    await patience.wait(refused)

    async def lines(
        self, path: str, params: Mapping[str, Any] | None = None, *, body: BaseModel | None = None
    ) -> AsyncGenerator[str, None]:
        """The lines of a streamed answer, as they come. With a body it is a POST."""
        patience = _Patience()
        while True:
            with _connection_errors(self.url):
                try:
                    async with self._stream(path, params, body) as answer:
                        async for line in lines_of(answer):
                            yield line
                        return
                except RequestError as refused:
                    await patience.wait(refused)

    @asynccontextmanager
    async def _stream(
        self, path: str, params: Mapping[str, Any] | None, body: BaseModel | None
    ) -> AsyncIterator[httpx.Response]:
        sent: dict[str, Any] = {}
        if body is not None:
            sent = {"content": body.model_dump_json().encode(), "headers": {"content-type": "application/json"}}
        method = "GET" if body is None else "POST"
        async with self._http.stream(method, path, params=params, timeout=STREAM_TIMEOUT, **sent) as answer:
            _check_version(answer, path)
            if not answer.is_success:
                await answer.aread()
                raise error_of(answer)
            yield answer


async def lines_of(answer: httpx.Response) -> AsyncGenerator[str, None]:
    """Lines of a streamed body, split at \\n only: text in JSON may hold every other kind of line end."""
    half = b""
    async for chunk in answer.aiter_bytes():
        *whole, half = (half + chunk).split(b"\n")
        for line in whole:
            yield line.decode()
    if half:
        yield half.decode()


class _Patience:
    """Of one call, with a controller that was asked too often: nothing was done, so asking again is always right."""

    def __init__(self) -> None:
        self._left_s = PATIENCE_S
        self._least_s = FIRST_PAUSE_S

    async def wait(self, error: LlmschedError) -> None:
        """As long as it said, and each time twice as long as before: others of the token wait for the same moment.
        Raises the error if it is of another kind or patience is at its end."""
        said = getattr(error, "retry_after_s", None)
        if error.code != "rate" or said is None:
            raise error
        pause = max(said, self._least_s)
        self._least_s *= 2
        if pause > self._left_s:
            raise error
        self._left_s -= pause
        await asyncio.sleep(pause)


class _connection_errors:
    """`with` this, trouble on the way to the controller becomes a ClusterError that says what to do."""

    def __init__(self, url: str) -> None:
        self.url = url

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            raise ClusterError(
                f"no controller answers at {self.url}.", code="no_controller", hint="Start one: llmsched up."
            ) from error
        if isinstance(error, httpx.TimeoutException):
            raise ClusterError(f"the controller at {self.url} did not answer in time.", code="timeout") from error
        if isinstance(error, httpx.HTTPError):
            raise ClusterError(
                f"the connection to the controller at {self.url} broke.", code="connection", hint="Try again."
            ) from error


def _check_version(answer: httpx.Response, path: str) -> None:
    """Raises ClusterError for a controller that this client must not talk to, also when that does not look itself."""
    said = answer.headers.get(versions.HEADER)
    if said is not None and path not in versions.ANY_VERSION and not versions.go_together(versions.own(), said):
        raise ClusterError(versions.difference(versions.own(), said), code="version", hint=versions.remedy(said))


def error_of(answer: httpx.Response) -> LlmschedError:
    """The controller's error as the exception it was there."""
    return error_in(answer.content, answer.status_code, str(answer.url))


def error_in(content: bytes, status: int, url: str) -> LlmschedError:
    """The same, of the body of an answer and its status."""
    try:
        body = http_models.ErrorBody.model_validate_json(content)
    except ValidationError:
        return ClusterError(
            f"{url} answered {status}, which no llmsched controller does.",
            code="not_a_controller",
            hint="Check LLMSCHED_ADDRESS.",
        )
    return error_of_body(body, status)


def error_of_body(body: http_models.ErrorBody, status: int) -> LlmschedError:
    said: dict[str, Any] = {"code": body.code, "where": body.where, "hint": body.hint}
    if body.exit_code == 3:
        kind = NotAllowed if status in (401, 403) else RequestError
        return kind(body.message, http_status=status, retry_after_s=body.retry_after_s, **said)
    other: type[LlmschedError] = _BY_EXIT_CODE.get(body.exit_code, ClusterError)
    error = other(body.message, **said)
    if isinstance(error, SpecError):
        error.problems = tuple(Problem(**problem.model_dump()) for problem in body.problems)
    return error
