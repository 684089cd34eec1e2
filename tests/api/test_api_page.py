"""The page at `/`: what it may do, that it asks the API that exists, and that it shows hostile words as words."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import browser
import httpx
import pytest
from live import Live
from waiting import PATIENCE_S

from llmsched.api import app, page
from llmsched.executors.fake import Script

HOSTILE = '<img src=x onerror="window.taken=1"><script>window.taken=1</script>\'"&lt;b&gt;'


class Elements(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def script() -> str:
    return page.content().decode().partition("<script>")[2].partition("</script>")[0]


def test_the_page_is_there_for_everyone_and_may_only_talk_to_its_own_controller(controller: Live) -> None:
    answer = httpx.get(f"{controller.url}/")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    assert (policy["default-src"], policy["connect-src"]) == ("'none'", "'self'")
    assert policy["script-src"].startswith("'sha256-") and "unsafe" not in str(policy)
    assert policy["frame-ancestors"] == "'none'"
    assert controller.token not in answer.text
    assert httpx.post(f"{controller.url}/", content=b"").status_code in (401, 405)


def test_the_page_needs_nothing_but_itself() -> None:
    elements = Elements()
    elements.feed(page.content().decode())
    for tag, attributes in elements.found:
        assert not [name for name in attributes if name.startswith("on") or name == "style"], (tag, attributes)
        for name in ("src", "href", "action"):
            assert (attributes.get(name) or "data:").startswith("data:"), (tag, attributes)
    assert [tag for tag, _ in elements.found].count("script") == 1


def test_the_page_never_makes_elements_of_strings() -> None:
    for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function(", "srcdoc"):
        assert way not in script()


def test_every_call_of_the_page_is_a_route() -> None:
    text = script()
    known = {getattr(route, "path", "") for route in app.guarded_routes()}
    assert 'API = "/api/v1"' in text
    asked = set(re.findall(r'(?:get|ask)\(["`](/[a-z]+)', text))
    assert asked == {"/workloads", "/nodes", "/queues", "/health", "/events", "/dashboard"}
    assert {f"/api/v1{path}" for path in asked} <= known
    for part in re.findall(r'get\(name \+ "(/[a-z]+)"\)', text):
        assert f"/api/v1/workloads/{{name}}{part}" in known


needs_browser = pytest.mark.skipif(
    browser.PROGRAM is None, reason="no Chromium on this machine: the page's parts are checked, its looks are not"
)


def task(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "kind": "task", "task": {"run": ["true"]}, "resources": {"accelerators": ["A100:2"]}, **more}


@needs_browser
def test_a_browser_shows_the_queue_and_the_gpus_and_hostile_words_as_words(fresh: Live, tmp_path: Path) -> None:
    fresh.executor.cluster.script = lambda order: (
        Script(outcome="failed", message=HOSTILE, runs_for_s=0.05, steps=1)
        if order.gang.startswith("broken")
        else Script(runs_for_s=None)
    )
    client = fresh.client()
    never_again = {"retry": {"max_restarts": 0}}
    client.apply([task("runs"), task("broken", **never_again)])
    assert client.wait("broken", timeout_s=PATIENCE_S).phase == "failed"
    client.apply([task("waits", workers=4)])
    fresh.controller.cluster.urls = {"dashboard": "http://127.0.0.1:1/", "endpoint": "javascript:window.taken=1"}
    with browser.browser(tmp_path) as tab:
        tab.size(1280, 800)
        tab.go(f"{fresh.url}/#token={fresh.token}")
        tab.wait("document.querySelectorAll('#workloads tr.row').length === 3")
        rows = tab.text()
        assert HOSTILE in rows
        assert "running" in rows and "waiting" in rows
        assert tab.run("document.querySelectorAll('.cells i').length") == 8
        assert tab.run("[...document.querySelectorAll('.cells i')].filter(cell => cell.holders.length).length") == 2
        tab.run("document.querySelector('tr.ended').click()")
        tab.wait("document.querySelector('.details')")
        assert tab.run("document.querySelectorAll('#view img, #view script').length") == 0
        assert tab.run("[...document.querySelectorAll('#view a')].map(a => a.href)") == ["http://127.0.0.1:1/"]
        assert tab.run("window.taken") is None
        assert tab.run("location.href") == f"{fresh.url}/"  # the token is out of sight
        client.apply([task("late")])
        tab.wait("document.querySelector('#events').innerText.includes('late')")
        tab.wait("[...document.querySelectorAll('.name')].some(name => name.innerText === 'late')")
        client.cancel("late")
        tab.wait("[...document.querySelectorAll('tr.ended .name')].some(name => name.innerText === 'late')")
        tab.size(400, 800)  # a telephone: what is wide goes below, names stay level, nothing is pushed out
        assert tab.run("document.documentElement.scrollWidth === document.documentElement.clientWidth")
        assert tab.run("Math.min(...[...document.querySelectorAll('.name')].map(name => name.clientWidth))") > 300
        assert tab.said == []


@needs_browser
def test_a_browser_shows_who_gave_a_gpu_to_whom_and_what_that_cost(fresh: Live, tmp_path: Path) -> None:
    fresh.trade()
    with browser.browser(tmp_path) as tab:
        tab.go(f"{fresh.url}/#token={fresh.token}")
        tab.wait("document.querySelector('#events')?.innerText.includes('makes room for chat: gives 1 GPUs')")
        tab.wait("document.querySelector('#events').innerText.includes('on 1 GPUs of tune, which lost ')")


@needs_browser
def test_a_browser_without_a_token_is_asked_for_one_and_told_when_it_is_wrong(fresh: Live, tmp_path: Path) -> None:
    with browser.browser(tmp_path) as tab:
        tab.go(f"{fresh.url}/?token={fresh.token}")
        tab.wait("document.querySelector('#ask') && !document.querySelector('#ask').hidden")
        give = "at('given').value = {!r}; at('form').requestSubmit()"
        tab.run(give.format("llms_00000000_wrong"))
        tab.wait("document.querySelector('#refused').innerText.includes('not known')")
        assert tab.run("sessionStorage.length") == 0
        tab.run(give.format(fresh.token))
        tab.wait("!document.querySelector('#view').hidden")
        tab.go(f"{fresh.url}/")
        tab.wait("document.querySelector('#view') && !document.querySelector('#view').hidden")
