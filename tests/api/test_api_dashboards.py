"""Ray's dashboards through the API and `llmsched dashboard`: whose, what is passed on, and what is refused."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import uvicorn
from click.testing import CliRunner
from live import Live
from waiting import PATIENCE_S, wait_until

from llmsched.api import server
from llmsched.cli.main import cli
from llmsched.client.transport import Transport
from llmsched.errors import ClusterError, RequestError
from llmsched.executors.fake import Script
from llmsched.own_origin import OwnOrigin
from llmsched.runtime import dashboard


@pytest.fixture(scope="module")
def running(controller: Live) -> Live:
    controller.executor.cluster.script = lambda order: Script(runs_for_s=None)
    client = controller.client()
    program = {"name": "own", "kind": "ray", "ray": {"run": ["python", "x.py"]}}
    client.apply([program, {"name": "plain", "kind": "task", "task": {"run": ["true"]}}])
    client.apply([{**program, "name": "waits", "after": ["own"]}])
    wait_until(lambda: client.status("own").phase == "running")
    return controller


def ask(live: Live, path: str, **headers: str) -> httpx.Response:
    return httpx.get(f"{live.url}/api/v1{path}", headers={"authorization": f"Bearer {live.token}", **headers})


def test_the_sdk_asks_the_ray_of_a_workload_and_that_of_the_cluster(running: Live) -> None:
    client = running.client()
    assert client.dashboard("own", "/api/v0/tasks?limit=1").startswith(b"own/0: /api/v0/tasks?limit=1 {")
    assert client.dashboard().startswith(b"the cluster: / {")


def test_neither_tokens_nor_cookies_are_passed_on_and_a_browser_may_do_nothing_with_the_answer(running: Live) -> None:
    answer = ask(running, "/dashboard/a%2Fb?c=%20d", cookie="a=b", accept="text/html", range="bytes=0-9")
    assert "the cluster: /a%2Fb?c=%20d" in answer.text  # as it was written, not read and written anew
    assert "Bearer" not in answer.text and "cookie" not in answer.text and "bytes=0-9" in answer.text
    assert answer.headers["content-security-policy"] == "sandbox"


def test_the_jobs_page_of_the_cluster_lists_our_workloads_beside_the_jobs_of_ray(running: Live) -> None:
    *ours, rays = ask(running, "/dashboard/api/jobs/").json()
    assert rays["job_id"] == "01000000"
    told = {one["submission_id"]: one for one in ours}
    assert {"own", "plain", "waits"} <= told.keys()
    assert (told["own"]["status"], told["own"]["entrypoint"]) == ("RUNNING", "ray workload own")
    assert told["own"]["metadata"]["queue"] == "default"
    assert (told["waits"]["status"], told["waits"]["message"]) == ("PENDING", "waits for own to succeed")
    assert ask(running, "/dashboard/api/jobs/own").json() == told["own"]
    assert running.client().dashboard("own", "/api/jobs/").startswith(b"[{")  # its own Ray lists its own


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        ("plain", "no_dashboard", "is a task workload: it has no Ray of its own"),
        ("waits", "not_running", "waits is waiting: its Ray is there while it runs"),
        ("nobody", "unknown_workload", "there is no workload"),
    ],
)
def test_who_has_no_dashboard_is_told(running: Live, name: str, code: str, said: str) -> None:
    with pytest.raises(RequestError, match=said) as refused:
        running.client().dashboard(name)
    assert refused.value.code == code
    told = CliRunner().invoke(
        cli, ["dashboard", name], env={"LLMSCHED_ADDRESS": running.url, "LLMSCHED_TOKEN": running.token}
    )
    assert told.exit_code == 3 and said in told.output.replace("\n", " ")


def test_its_own_refusals_are_its_own_and_one_that_breaks_off_is_not_whole(running: Live) -> None:
    assert ask(running, "/dashboard/none").status_code == 404 and ask(running, "/dashboard/none").text[0] == "t"
    with pytest.raises(httpx.HTTPError):
        ask(running, "/dashboard/broken")


# --- the place on the reader's machine ------------------------------------------------------------------------------


@pytest.fixture
def place(running: Live) -> Iterator[str]:
    """As `llmsched dashboard own` makes it."""

    async def serve() -> None:
        transport = Transport(running.url, running.token)
        route = "/api/v1/workloads/own/dashboard"
        page.append(OwnOrigin(listener.getsockname()[1], lambda path, asked: transport.opened(route + path, asked)))
        web.append(server.Quiet(uvicorn.Config(page[0], log_config=None, lifespan="off", timeout_graceful_shutdown=1)))
        await web[0].serve(sockets=[listener])
        await transport.close()

    page: list[OwnOrigin] = []
    web: list[Any] = []
    with contextlib.closing(server.listen("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=lambda: asyncio.run(serve()))
        thread.start()
        wait_until(lambda: bool(web) and web[0].started)
        yield page[0].address()
        web[0].should_exit = True
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


def test_the_key_of_the_address_is_taken_for_a_cookie_that_lets_one_look(place: str, running: Live) -> None:
    with httpx.Client(follow_redirects=True) as browser:
        page = browser.get(place)
        assert page.status_code == 200 and page.text.startswith("own/0: / {")
        assert "key" not in str(page.url) and running.token not in place
        (cookie,) = browser.cookies.jar
        assert cookie.has_nonstandard_attr("HttpOnly")
        part = browser.get(f"{page.url}api/v0/tasks?limit=2", headers={"accept": "application/json"})
        assert part.text == "own/0: /api/v0/tasks?limit=2 {'accept': 'application/json'}\n"
        assert browser.post(str(page.url)).status_code == 403
        assert browser.get(f"{page.url}none").status_code == 404
        evil = browser.get(str(page.url), headers={"host": "evil.example"})  # a name that was made to lead here
        assert evil.status_code == 403


def test_without_the_key_nobody_looks(place: str) -> None:
    base = place.partition("?")[0]
    for url, headers in (
        (base, {}),
        (f"{base}?key=x", {}),
        (base, {"cookie": "llmsched-1=x"}),
        (f"{base}api/v0/tasks", {"cookie": ";;=\\x00"}),
    ):
        answer = httpx.get(url, headers=headers)
        assert answer.status_code == 401 and "llmsched dashboard" in answer.text


# --- the place that the page opens ----------------------------------------------------------------------------------


def opened(live: Live, token: str) -> httpx.Response:
    headers = {"authorization": f"Bearer {token}", "origin": live.url}  # as a browser sends it for the page at "/"
    return httpx.post(f"{live.url}/api/v1/dashboard", headers=headers)


def test_the_page_opens_the_cluster_s_dashboard_with_the_token_that_it_has_for_as_long(running: Live) -> None:
    from llmsched.api import home

    token = running.token_of("aud", "auditor")
    address = opened(running, token).json()["url"]
    assert token not in address and not address.startswith(running.url + "/")
    with httpx.Client(follow_redirects=True) as browser:
        assert browser.get(address).text.startswith("the cluster: / {")
        assert browser.get(httpx.URL(address).join("/nodes")).text.startswith("the cluster: /nodes {")
        again = opened(running, running.token).json()["url"]  # the same place, another key
        assert httpx.URL(again).port == httpx.URL(address).port and again != address
        home.save_records(running.home, [one for one in home.made_records(running.home) if one.user != "aud"])
        assert browser.get(httpx.URL(address).join("/nodes")).status_code == 401
        assert browser.get(again).status_code == 200


def test_the_page_of_another_origin_opens_nothing(running: Live) -> None:
    headers = {"authorization": f"Bearer {running.token}", "origin": "http://127.0.0.1:1"}
    assert httpx.post(f"{running.url}/api/v1/dashboard", headers=headers).json()["code"] == "origin"


# --- beside the dashboard -------------------------------------------------------------------------------------------


class Asked(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        said = json.dumps(dict(self.headers)).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("set-cookie", "a=b")
        self.end_headers()
        self.wfile.write(said if self.path != "/large" else b"x" * 2000)

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def ray_s_own() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Asked) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{web.server_port}"
        web.shutdown()


def test_ray_s_token_is_shown_to_its_dashboard_and_what_it_sets_stays_there(ray_s_own: str) -> None:
    import base64

    head, *body, end = dashboard.ask(ray_s_own, "secret", "/nodes", {"accept": "x", "cookie": "c", "host": "evil"})
    assert json.loads(head[1]) == {"status": 200, "headers": {"content-type": "application/json"}}
    asked = json.loads(b"".join(base64.b64decode(piece[1]) for piece in body))
    assert asked["Authorization"] == "Bearer secret" and asked["accept"] == "x"
    assert "cookie" not in asked and "evil" not in str(asked) and end == ("end", "", 0)


def test_an_answer_without_an_end_and_a_dashboard_that_is_gone_are_told(
    ray_s_own: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dashboard, "ANSWER_AT_MOST", 1000)
    assert list(dashboard.ask(ray_s_own, "", "/large", {}))[-1] == ("end", "its answer is larger than 0 MiB", None)
    (end,) = dashboard.ask("http://127.0.0.1:9", "", "/", {})
    assert end[0] == "end" and "its dashboard does not answer" in end[1]


def test_a_question_that_nobody_answers_is_the_cluster_s_failure(running: Live) -> None:
    with pytest.raises(ClusterError) as failed:
        attempt = running.controller.state.gangs["own/0"].attempt
        running.controller.state.gangs["own/0"].attempt += 1  # of which the cluster knows nothing
        try:
            running.client().dashboard("own")
        finally:
            running.controller.state.gangs["own/0"].attempt = attempt
    assert failed.value.code == "dashboard"
