"""What stands twice in a request is refused by name: of two values for one key one would have no effect."""

from __future__ import annotations

import httpx
import pytest
from fastapi import APIRouter
from live import Live

from llmsched.api import app, bodies
from llmsched.errors import Bug, SpecError

TASK = '{"name": "a", "name": "b", "kind": "task", "task": {"run": ["true"]}}'


@pytest.mark.parametrize(
    ("method", "path", "body", "key"),
    [
        ("POST", "apply", f'{{"specs": [{TASK}]}}', "name"),
        ("POST", "plan", '{"specs": [], "specs": []}', "specs"),
        ("PUT", "config", '{"config": {"queues": [{"name": "a", "nominal": {"A": 1, "A": 2}}]}}', "A"),
        ("PUT", "secrets/S", '{"value": "one", "value": "two"}', "value"),
        ("POST", "workloads/x/scale", '{"size": 1, "size": 2}', "size"),
    ],
)
def test_a_key_that_stands_twice_in_a_body_is_refused(
    controller: Live, method: str, path: str, body: str, key: str
) -> None:
    headers = {"authorization": f"Bearer {controller.token}", "content-type": "application/json"}
    answer = httpx.request(method, f"{controller.url}/api/v1/{path}", content=body, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (422, "repeated_key"), answer.text
    assert f'the key "{key}" is here twice' in answer.json()["message"]
    assert "one" not in answer.json()["message"], "no value is repeated"


def test_a_parameter_that_stands_twice_in_a_query_is_refused_but_for_a_list(controller: Live) -> None:
    headers = {"authorization": f"Bearer {controller.token}"}
    answer = httpx.get(f"{controller.url}/api/v1/workloads?user=ann&user=bob", headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (422, "repeated_key")
    assert '"user"' in answer.json()["message"]
    assert httpx.get(f"{controller.url}/api/v1/workloads?phase=running&phase=failed", headers=headers).is_success


def test_a_route_that_would_read_bodies_otherwise_keeps_the_controller_from_starting() -> None:
    router = APIRouter()
    router.add_api_route("/x", lambda: None)
    with pytest.raises(Bug, match="/x would read a body in which a key stands twice"):
        app.need_of(router.routes[0])


def test_the_second_of_many_keys_is_found_at_once_and_named_as_text() -> None:
    many = ", ".join(f'"k{number}": 0' for number in range(50_000))
    with pytest.raises(SpecError, match='the key "k49999" is here twice'):
        bodies.read(f'{{{many}, "k49999": 1}}')
    with pytest.raises(SpecError, match=r'the key "\\ud800" is here twice'):
        bodies.read(r'{"\ud800": 1, "\ud800": 2}')
