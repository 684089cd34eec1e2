"""Hostile values in every field of every message, both ways: nothing is a 500, nothing stops, nothing stays held.

The messages are listed by the code: the bodies of all routes, the fields of their models, the kinds of specs, and the
observations of the executor. So a new field is covered without a word here.
"""

import dataclasses
import json
from dataclasses import replace
from typing import get_args

import httpx
import pytest
from fastapi.routing import APIRoute
from hostile import ALL, NUMBERS, TEXTS
from live import Live
from waiting import PATIENCE_S, wait_until

from llmsched import sanitize
from llmsched.api import app, rate
from llmsched.core.invariants import violations
from llmsched.executors import port
from llmsched.executors.fake import Script
from llmsched.spec import init
from llmsched.spec.document import parse
from llmsched.spec.load import KINDS

WEB = httpx.Client(timeout=PATIENCE_S)
ROUTES = [route for route in app.guarded_routes() if isinstance(route, APIRoute)]
DEEP = "[" * 5_000 + "]" * 5_000
FEW = [TEXTS[0], TEXTS[4], TEXTS[8], NUMBERS[0], NUMBERS[3], None, [], {"\ud800": "\ud800"}]  # of each leaf of a spec
TASK = {"name": "victim", "kind": "task", "task": {"run": ["true"]}, "resources": {"accelerators": ["A100:1"]}}


@pytest.fixture(autouse=True)
def no_rate(monkeypatch):
    monkeypatch.setattr(rate.Rate, "take", lambda self, who, body_bytes=0: None)


def written(value):
    """JSON as anybody may send it: surrogates spelled out, NaN, numbers without end. None for what JSON has not."""
    try:
        return json.dumps(value)
    except RecursionError:
        return DEEP
    except TypeError:
        return None


def leaves(data, path=()):
    if isinstance(data, dict):
        for key, value in data.items():
            yield from leaves(value, (*path, key))
        yield path
    elif isinstance(data, list):
        for index, value in enumerate(data):
            yield from leaves(value, (*path, index))
        yield path
    else:
        yield path


def with_value(data, path, value):
    if not path:
        return value
    head, *rest = path
    changed = dict(data) if isinstance(data, dict) else list(data)
    changed[head] = with_value(data[head], rest, value)
    return changed


def ask(live: Live, method, path, content):
    headers = {"authorization": f"Bearer {live.token}", "content-type": "application/json"}
    response = WEB.request(method, live.url + path, content=content, headers=headers)
    assert response.status_code < 500, (method, path, content[:200], response.text[:500])
    return response


def looks(live: Live):
    """Every answer that can be looked at is one."""
    names = [*live.controller.state.workloads]
    for route in ROUTES:
        if "GET" not in route.methods or "sha256" in route.path or "package" in route.path:
            continue
        for name in names[:20] if "{" in route.path else [""]:
            path = route.path_format.replace("{name}", name).replace("{part}", "").replace("{submission_id}", name)
            follows = any(field.alias == "follow" for field in route.dependant.query_params)
            answer = ask(live, "GET", path + "?follow=false" * follows, b"")
            told = answer.status_code in (409, 404) and answer.json()["code"] in (
                "no_result",
                "unknown_job",
                "no_dashboard",
                "no_trials",
            )
            assert answer.status_code == 200 or told, (route.path, answer.text)


def lives(live: Live):
    """The loop goes on, and whatever was begun can be ended and holds nothing then."""
    with live.client() as client:
        for view in client.workloads().workloads:
            if not view.ended:
                client.cancel(view.id)
        wait_until(lambda: not live.controller.state.holding, 30)
    assert violations(live.controller.state) == []
    assert live.controller.health.status == "ready", live.controller.health.message


def sample(kind):
    text = init.starter(kind) if kind in init.STARTERS else ""
    found, _ = parse(text, "x.yaml")
    spec = found[0].data if found else {"name": "x", "kind": kind, kind: {}}
    more = {"envs": {"A": "b"}, "workdir": ".", "queue": "default", "after": ["other"]}
    return {**more, **spec}


def bodies():
    for route in ROUTES:
        if route.body_field is not None:
            model = route.body_field.field_info.annotation
            for method in route.methods:
                yield pytest.param(method, route.path, model, id=f"{method} {route.path}")


@pytest.mark.parametrize(("method", "path", "model"), [*bodies()])
def test_no_field_of_any_request_breaks_anything(controller: Live, method, path, model):
    with controller.client() as client:
        client.apply([TASK])
    good = {
        "specs": [TASK],
        "config": {},
        "command": ["true"],
        "value": "x",
        "size": 1,
        "reservation": {},
        "entrypoint": "true",
    }
    base = {name: good.get(name) for name, field in model.model_fields.items() if name in good}
    url = path.replace("{name}", "A_SECRET" if "secrets" in path else "victim")
    for name in model.model_fields:
        for value in ALL:
            text = written({**base, name: "\0here"} if value is None else {**base, name: value})
            if text is not None:
                ask(controller, method, url, text.encode())
    for text in (DEEP, '{"specs": ' + DEEP + "}", "9" * 10_000, "\x00", "\xff"):
        assert ask(controller, method, url, text.encode()).status_code in (400, 413, 422, 429)
    looks(controller)


@pytest.mark.parametrize("kind", KINDS)
def test_no_field_of_any_spec_breaks_anything(fresh: Live, kind):
    spec = sample(kind)
    for path in leaves(spec):
        for value in FEW:
            changed = with_value(spec, path, value)
            answer = ask(fresh, "POST", "/api/v1/apply", json.dumps({"specs": [changed]}).encode())
            if isinstance(value, str) and "\ud800" in value:
                assert answer.status_code == 422 and "at place 1" in answer.json()["message"], answer.text
    looks(fresh)
    lives(fresh)


def observed(cls, gang):
    """An observation of this kind about a gang that runs, with every field as it should be."""
    plain = {"str": "words", "int": 1, "float": 1.0, "bool": False}
    given = {"gang": gang.id, "attempt": gang.attempt, "workload": gang.workload_id, "node": "node-1"}
    given |= {"outcome": "succeeded", "event": "error"}
    values = {}
    for field in dataclasses.fields(cls):
        if field.name in given:
            values[field.name] = given[field.name]
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            kind = str(field.type)
            empty = {} if kind.startswith("dict") else ()
            values[field.name] = plain.get(kind, empty)
    return cls(**values)


@pytest.mark.parametrize("cls", get_args(port.Observation), ids=lambda cls: cls.__name__)
def test_no_field_of_any_observation_breaks_anything(fresh: Live, cls):
    fresh.executor.cluster.script = lambda order: Script(runs_for_s=None)
    spec = {**TASK, "resources": {"accelerators": ["A100:0.01"]}}
    with fresh.client() as client:
        client.apply([{**spec, "name": f"w{n}"} for n in range(40)])
        wait_until(lambda: len(fresh.executor.cluster.running()) == 40, 30)
    gangs = list(fresh.controller.state.gangs.values())
    turn = 0
    for field in dataclasses.fields(cls):
        for value in ALL:
            base = observed(cls, gangs[turn % len(gangs)])
            turn += 1
            hostile = replace(base, **{field.name: value})
            fresh.loop.call_soon_threadsafe(fresh.executor.cluster.say, hostile)
    with fresh.client() as client:
        client.apply([{**TASK, "name": "after"}])
    looks(fresh)
    fresh.loop.call_soon_threadsafe(fresh.executor.cluster.lose_contact)
    fresh.loop.call_soon_threadsafe(fresh.executor.cluster.regain_contact)
    wait_until(lambda: fresh.controller.health.status == "ready", 30)
    lives(fresh)


ODD = [
    *("%00", "%e2%80%aeabc", "a%e2%80%8bb", "%ff%fe", "%0d%0ax:1", "%1b%5b31m", "a" * 300, "a@99999999999999999999"),
    *("-1", "1e400", "NaN", "%d9%a3", ".."),
]


def odd_addresses():
    for route in ROUTES:
        parts = [route.dependant, *route.dependant.dependencies]
        queries = sorted({field.alias for part in parts for field in part.query_params})
        for method in route.methods:
            yield pytest.param(method, route.path_format, queries, id=f"{method} {route.path}")


@pytest.mark.parametrize(("method", "path", "queries"), [*odd_addresses()])
def test_no_word_of_an_address_breaks_anything_or_comes_back_as_no_terminal_should_have_it(
    controller: Live, method, path, queries
):
    with controller.client() as client:
        client.apply([TASK])
    body = b"" if method in ("GET", "DELETE") else b"{}"
    good = {"name": "victim", "submission_id": "victim", "sha256": "0" * 64, "protocol": "gcs"}
    good |= {"package": "_ray_pkg_a.zip", "part": "x"}
    known = path.format(**good)
    asked = [path.format(**{**good, part: odd}) + "?follow=false" for part in good if part in path for odd in ODD]
    asked += [f"{known}?{query}={odd}" for query in queries for odd in ODD if query != "follow"]
    for address in asked:
        answer = ask(controller, method, address, body)
        if answer.status_code >= 400:
            error = answer.json()
            said = error["message"] + error["where"] + error["hint"]
            assert sanitize.shown(said) == said, (address, said)
    lives(controller)
