"""Who gets in: tokens, hosts, origins, bodies. What each may then do: test_api_authorization.py."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from fastapi.routing import APIRoute
from live import Live
from waiting import PATIENCE_S

from llmsched.api import app, auth, home
from llmsched.errors import NotAllowed, StoreError
from llmsched.gateway.keys import KeyRing
from llmsched.gateway.refusals import Refused
from llmsched.spec.endpoint_keys import key_of

ROUTES = [
    (method, re.sub(r"\{sha256\}", "a" * 64, re.sub(r"\{(name|submission_id)\}", "nobody", route.path_format)), route)
    for route in app.every_route()
    if isinstance(route, APIRoute)
    for method in sorted(route.methods)
]
GUARDED = [
    pytest.param(method, path, route, id=f"{method} {path[:40]}")
    for method, path, route in ROUTES
    if path not in ("/healthz", "/")
]


def ask(controller: Live, method: str, path: str, token: str | None = None, **more: object) -> httpx.Response:
    headers = {"authorization": f"Bearer {token}"} if token else {}
    headers |= more.pop("headers", {})  # type: ignore[operator]
    with httpx.Client(base_url=controller.url, timeout=PATIENCE_S) as http:
        return http.request(method, path, headers=headers, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(("method", "path", "route"), GUARDED)
@pytest.mark.parametrize("authorization", [None, "", "Bearer", "Bearer llms_00000000_guess", "Basic TOKEN", "TOKEN"])
def test_every_route_but_health_refuses_whoever_has_no_token(
    controller: Live, method: str, path: str, route: APIRoute, authorization: str | None
) -> None:
    headers = {} if authorization is None else {"authorization": authorization.replace("TOKEN", controller.token)}
    answer = ask(controller, method, path, headers=headers)
    assert answer.status_code == 401
    assert answer.json()["code"] == "unauthorized"
    assert answer.headers["www-authenticate"] == "Bearer"


def test_a_key_of_endpoints_is_told_that_it_is_no_token(controller: Live) -> None:
    answer = ask(controller, "GET", "/queues", headers={"authorization": f"Bearer {key_of(controller.token)}"})
    assert answer.status_code == 401 and "a key of endpoints" in answer.json()["message"]


def test_health_answers_anyone_and_says_nothing_else(controller: Live) -> None:
    answer = ask(controller, "GET", "/healthz")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


@pytest.mark.parametrize("path", ["/index.html", "/docs", "/openapi.json", "/api/v1/nothing", "/healthz/", "/api/v2/x"])
def test_a_path_that_is_no_route_needs_a_token_too(controller: Live, path: str) -> None:
    assert ask(controller, "GET", path).status_code == 401


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"])
@pytest.mark.parametrize("path", ["/healthz", "/api/v1/health"])
def test_a_foreign_host_name_is_refused_for_every_method(controller: Live, method: str, path: str) -> None:
    answer = ask(controller, method, path, controller.token, headers={"host": "rebound.example:80"})
    assert answer.status_code == 403


@pytest.mark.parametrize("host", ["[::1", "[x]:1", "[\u2100]", "a:99999999", "::::", "@", "\\", "[]"])
def test_what_is_no_host_name_is_as_foreign_as_any(controller: Live, host: str) -> None:
    answer = ask(controller, "GET", "/api/v1/health", controller.token, headers={"host": host.encode()})
    assert answer.status_code in (400, 403), answer.text  # 400: no HTTP either


@pytest.mark.parametrize("host", ["localhost", "localhost:99", "127.0.0.1:1", "[::1]:5"])
def test_loopback_names_are_answered(controller: Live, host: str) -> None:
    assert ask(controller, "GET", "/api/v1/health", controller.token, headers={"host": host}).status_code == 200


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "OPTIONS"])
@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1", ""])
def test_web_pages_are_refused_for_every_method(controller: Live, method: str, origin: str) -> None:
    answer = ask(controller, method, "/api/v1/workloads", controller.token, headers={"origin": origin})
    assert (answer.status_code, answer.json()["code"]) == (403, "origin")
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_a_body_that_is_not_json_is_refused(controller: Live, kind: str) -> None:
    headers = {"content-type": kind}
    answer = ask(controller, "POST", "/api/v1/plan", controller.token, headers=headers, content=b'{"specs": []}')
    assert (answer.status_code, answer.json()["code"]) == (415, "content_type")


@pytest.mark.parametrize("says_its_length", [True, False])
def test_a_body_beyond_one_mebibyte_is_refused(controller: Live, says_its_length: bool) -> None:
    big = b'{"specs": [{"name": "' + b"x" * auth.BODY_LIMIT + b'"}]}'
    headers = {"content-type": "application/json"}
    content = big if says_its_length else iter([big])
    answer = ask(controller, "POST", "/api/v1/apply", controller.token, headers=headers, content=content)
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")


@pytest.mark.parametrize(
    "content", [b"{", b"[" * 100_000, b'{"specs": 1}', b'{"specs": [], "more": 1}', b"\xff", b"null"]
)
def test_json_that_is_wrong_is_the_users_mistake_not_ours(controller: Live, content: bytes) -> None:
    headers = {"content-type": "application/json"}
    answer = ask(controller, "POST", "/api/v1/apply", controller.token, headers=headers, content=content)
    assert 400 <= answer.status_code < 500
    assert set(answer.json()) >= {"code", "message", "where", "hint"}


def test_a_token_that_is_over_is_refused_and_says_so(controller: Live) -> None:
    text, record = home.new_token("late")
    late = replace(record, expires=record.created - 1)
    home.save_records(controller.home, [*home.made_records(controller.home), late])
    answer = ask(controller, "GET", "/api/v1/health", text)
    assert answer.status_code == 401
    assert "expired" in answer.json()["message"]
    assert text not in answer.text


def test_a_revoked_token_is_worthless_at_once(controller: Live) -> None:
    token = controller.token_of("gone", "viewer")
    assert ask(controller, "GET", "/api/v1/health", token).status_code == 200
    home.save_records(controller.home, [one for one in home.made_records(controller.home) if one.user != "gone"])
    assert ask(controller, "GET", "/api/v1/health", token).status_code == 401


def test_tokens_lie_where_only_their_owner_reads_and_as_hashes(controller: Live) -> None:
    token = controller.token_of("ann", "submitter")
    assert (controller.home / "token").stat().st_mode & 0o077 == 0
    assert (controller.home / "tokens.json").stat().st_mode & 0o077 == 0
    assert token.rpartition("_")[2] not in (controller.home / "tokens.json").read_text()


@pytest.mark.parametrize(
    "path", ["/api/v1/workloads/..%2f..%2fetc", "/api/v1/workloads/%00/logs", "/api/v1/workdirs/..%2fx"]
)
def test_odd_names_find_nothing(controller: Live, path: str) -> None:
    assert ask(controller, "GET", path, controller.token).status_code in (404, 422)


def test_a_token_made_when_operators_were_called_admins_goes_on_working(controller: Live) -> None:
    text, record = home.new_token("olga", "operator")
    home.save_records(controller.home, [*home.made_records(controller.home), replace(record, role="admin")])
    assert home.made_records(controller.home)[-1].role == "operator"
    assert ask(controller, "POST", "/api/v1/shutdown", text, json={}).status_code == 200


def test_an_endpoint_is_shown_a_key_that_is_worth_nothing_at_the_api() -> None:
    """What answers at endpoints runs as all work does, and could keep what it is shown."""
    token, record = home.new_token("ann")
    key = key_of(token)
    tokens = auth.Tokens(records=[record])
    taken = tokens.keys()
    assert [one["sha256"] for one in taken] == [home.digest(key)]  # a token is worth nothing at an endpoint
    assert record.sha256 not in key and token.rpartition("_")[2] not in key
    with pytest.raises(NotAllowed):
        tokens.find(f"Bearer {key}")


def test_where_tokens_are_labels_an_endpoint_takes_them_beside_their_keys() -> None:
    records = [home.new_token(user, role) for user, role in (("ann", "submitter"), ("eve", "viewer"))]
    (token, _), (looks_only, _) = records
    tokens = auth.Tokens(records=[record for _, record in records], at_endpoints=True)
    taken = tokens.keys()
    reached = KeyRing([{**one, "models": ["chat"]} for one in taken])
    assert {reached.check(f"Bearer {text}").id for text in (token, key_of(token))} == {records[0][1].id}
    with pytest.raises(Refused, match="llmsched token key"):
        reached.check(f"Bearer {looks_only}")
    with pytest.raises(Refused, match="llmsched token key"):
        KeyRing(auth.Tokens(records=[records[0][1]]).keys()).check(f"Bearer {token}")


@pytest.mark.parametrize("written", [b"", b"\n", b"\xff\xfe"])
def test_a_home_whose_token_was_lost_has_no_token_and_lets_nobody_in(tmp_path: Path, written: bytes) -> None:
    """A power cut left the file empty: whoever showed no token was the operator."""
    (tmp_path / "token").write_bytes(written)
    for ask_for_it in (home.own_token, home.load_records):
        with pytest.raises(StoreError, match="holds no token"):
            ask_for_it(tmp_path)
