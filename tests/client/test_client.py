"""The Python client against a real controller, in plain calls and in an event loop."""

from __future__ import annotations

import asyncio
import hashlib
import json
import multiprocessing
import os
import ssl
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from live import Live
from waiting import PATIENCE_S

from llmsched.api import app, auth
from llmsched.client import AsyncClient, Client
from llmsched.client.chat import AsyncChat
from llmsched.client.client import Chat, Run
from llmsched.client.transport import Transport, locate
from llmsched.control.controller import Controller
from llmsched.errors import ClusterError, NotAllowed, RequestError, SpecError
from llmsched.executors.fake import FakeExecutor, NodeKind, Script
from llmsched.spec import http_models
from llmsched.spec.load import load_json
from llmsched.store.memory import MemoryStore

FILE = """\
name: first
kind: task
resources: {accelerators: "A100:1"}
task: {run: ["true"]}
---
name: second
kind: task
resources: {accelerators: "A100:1"}
task: {run: ["true"]}
"""


def short(**metrics: float) -> Any:
    return lambda order: Script(runs_for_s=0.02, steps=2, metrics=metrics)


def test_a_file_is_applied_waited_for_and_read_as_one_run(controller: Live, tmp_path: Path) -> None:
    controller.executor.cluster.script = short(**{"eval.loss": 0.25})
    (tmp_path / "spec.yaml").write_text(FILE)
    seen: list[str] = []
    with controller.client() as client:
        run = client.apply(tmp_path / "spec.yaml")
        assert run.ids == ["first", "second"] and repr(run) == "<Run of first, second>"
        assert run.wait(PATIENCE_S, watch=lambda view: seen.append(view.name)) is run
        assert (run.phase, run.metrics["eval.loss"]) == ("succeeded", 0.25)
        assert run["second"].ids == ["second"]
        assert run.artifact is not None
        again = client.apply(tmp_path / "spec.yaml")
        assert [one.outcome for one in again.applied] == ["unchanged", "unchanged"]
        anew = client.apply(tmp_path / "spec.yaml", again=True)
        assert anew.ids == ["first@2", "second@2"]
        assert client.status("first").id == "first@2"
        assert client.status("first@1").id == "first"
    assert set(seen) == {"first", "second"}


def test_a_failed_run_says_failed(controller: Live) -> None:
    controller.executor.cluster.script = lambda order: Script(runs_for_s=0.01, outcome="failed", message="no data")
    spec = {"name": "fails", "kind": "task", "task": {"run": ["false"]}, "retry": {"max_restarts": 0}}
    with controller.client() as client:
        run = client.apply([spec])
        with pytest.raises(ClusterError, match="fails failed: .*no data"):
            run.wait(PATIENCE_S)
        assert run.wait(PATIENCE_S, check=False).phase == "failed"
        assert "no data" in client.status("fails").message


def test_every_public_method_says_what_it_does() -> None:
    for kind in (Client, AsyncClient, Chat, AsyncChat, Run):
        for name, method in vars(kind).items():
            if not name.startswith("_") and (callable(method) or isinstance(method, property)):
                assert method.__doc__, f"{kind.__name__}.{name} has no docstring"


def test_a_client_works_on_in_a_forked_process_in_threads_and_within_a_running_loop(controller: Live) -> None:
    with controller.client() as client:
        seq = client.health().seq

        async def in_a_notebook() -> int:
            return client.health().seq

        assert asyncio.run(in_a_notebook()) >= seq
        with ThreadPoolExecutor(4) as pool:
            assert all(health.status == "ready" for health in pool.map(lambda _: client.health(), range(8)))
        forked = multiprocessing.get_context("fork").Process(target=_asks, args=(client,))
        forked.start()
        forked.join(PATIENCE_S)
        assert forked.exitcode == 0
        assert client.health().status == "ready"


def _asks(client: Client) -> None:
    os._exit(0 if client.health().status == "ready" else 1)


def test_specs_are_dicts_paths_and_models_alike(controller: Live, tmp_path: Path) -> None:
    spec = {"name": "alike", "kind": "task", "task": {"run": ["true"]}}
    (tmp_path / "alike.yaml").write_text(json.dumps(spec))
    other = {**spec, "name": "other"}
    with controller.client() as client:
        for given in (spec, [spec], tmp_path / "alike.yaml", str(tmp_path / "alike.yaml"), load_json(spec)):
            assert [one.id for one in client.plan(given)] == ["alike"]
        assert client.apply([tmp_path / "alike.yaml", load_json(other)]).ids == ["alike", "other"]
        with pytest.raises(SpecError, match="JSON data"):
            client.plan({"name": object()})


def test_waiting_no_longer_than_asked(controller: Live) -> None:
    controller.executor.cluster.script = lambda order: Script(runs_for_s=None)
    with controller.client() as client:
        client.apply([{"name": "endless", "kind": "task", "task": {"run": ["true"]}}])
        with pytest.raises(RequestError, match=r"endless is \w+ after 0.1 s") as caught:
            client.wait("endless", timeout_s=0.1)
        client.apply([{"name": "later", "kind": "task", "after": ["endless"], "task": {"run": ["true"]}}])
        with pytest.raises(RequestError, match="later is waiting after 0.1 s: waits for endless to succeed"):
            client.wait("later", timeout_s=0.1)
        assert caught.value.code == "timeout"
        client.cancel("endless")


def test_errors_of_the_controller_are_the_same_errors_here(controller: Live, tmp_path: Path) -> None:
    with controller.client() as client:
        with pytest.raises(RequestError) as unknown:
            client.why("nobody")
        assert (unknown.value.code, unknown.value.http_status, unknown.value.exit_code) == ("unknown_workload", 404, 3)
        with pytest.raises(SpecError) as misspelt:
            client.apply([{"name": "x", "kind": "task", "task": {"run": ["x"]}, "num_worker": 1}])
        assert misspelt.value.code == "unknown_key"
        (tmp_path / "bad.yaml").write_text("name: x\nkind: task\nnum_worker: 2\ntask: {run: [x]}\n")
        with pytest.raises(SpecError, match=r"bad.yaml:3:1: .*num_worker.*workers"):
            client.plan(tmp_path / "bad.yaml")
        with pytest.raises(SpecError, match="No such file"):
            client.plan(tmp_path / "absent.yaml")
    with pytest.raises(NotAllowed) as stranger, controller.client("llms_00000000_wrong") as client:
        client.workloads()
    assert stranger.value.http_status == 401


def test_nobody_there_is_said_with_what_to_do() -> None:
    with pytest.raises(ClusterError, match="no controller answers at http://127.0.0.1:1. Start one: llmsched up"):
        Client("http://127.0.0.1:1", "token").workloads()


def test_another_server_is_not_taken_for_a_controller() -> None:
    async def other(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 502, "headers": []})
        await send({"type": "http.response.body", "body": b"<html>"})

    async def ask() -> None:
        async with AsyncClient("http://127.0.0.1", "token", transport=httpx.ASGITransport(other)) as client:
            await client.workloads()

    with pytest.raises(ClusterError, match="no llmsched controller"):
        asyncio.run(ask())


def test_the_asynchronous_client_works_in_process(tmp_path: Path) -> None:
    async def story() -> tuple[http_models.WorkloadView, list[str]]:
        executor = FakeExecutor([NodeKind(1, "A100")])
        executor.cluster.script = short()
        controller = Controller(MemoryStore(), executor, storage=str(tmp_path))
        running = asyncio.create_task(controller.run())
        await controller.started.wait()
        text, record = auth.home.new_token("ann")
        transport = httpx.ASGITransport(app.build(controller, auth.Tokens(records=[record])))
        async with AsyncClient("http://localhost", text, transport=transport) as client:
            await client.apply([{"name": "one", "kind": "task", "task": {"run": ["true"]}}])
            view = await client.wait("one", timeout_s=PATIENCE_S, poll_s=0.01)
            kinds = [event.kind async for event in client.events(follow=False)]
        await controller.stop()
        await running
        return view, kinds

    view, kinds = asyncio.run(story())
    assert (view.phase, view.user) == ("succeeded", "ann")
    assert kinds[-1] == "Finished"


def test_the_address_and_token_come_from_where_they_should(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LLMSCHED_ADDRESS", "LLMSCHED_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LLMSCHED_HOME", str(tmp_path))
    with pytest.raises(ClusterError, match="llmsched up"):
        locate()
    (tmp_path / "controller.json").write_text('{"pid": 1, "url": "http://127.0.0.1:7", "started": 0}')
    with pytest.raises(NotAllowed, match="no token"):
        locate()
    (tmp_path / "token").write_text("of-home\n")
    assert locate() == ("http://127.0.0.1:7", "of-home")
    monkeypatch.setenv("LLMSCHED_ADDRESS", "127.0.0.1:8")
    monkeypatch.setenv("LLMSCHED_TOKEN", "of-environment")
    assert locate() == ("http://127.0.0.1:8", "of-environment")
    assert locate("http://h:9/", "given") == ("http://h:9", "given")


def test_a_workdir_is_shipped_once_and_named_in_the_spec(controller: Live, tmp_path: Path) -> None:
    orders: list[Any] = []
    controller.executor.cluster.script = lambda order: orders.append(order) or Script(runs_for_s=0.01)
    (tmp_path / "spec.yaml").write_text('name: packed\nkind: task\nworkdir: code\ntask: {run: ["python", "main.py"]}\n')
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "main.py").write_text("print(1)")
    with controller.client() as client:
        client.apply(tmp_path / "spec.yaml").wait(PATIENCE_S)
        uri = orders[0].workdir
        assert Path(uri).is_file()
        assert client.apply(tmp_path / "spec.yaml").applied[0].outcome == "unchanged"
        os.utime(tmp_path / "code" / "main.py", (0, 0))  # a newer date is no change
        assert client.apply(tmp_path / "spec.yaml").applied[0].outcome == "unchanged"
    assert Path(uri).stem == hashlib.sha256(Path(uri).read_bytes()).hexdigest()


def test_a_fast_follower_of_logs_gets_text_with_odd_line_ends_whole(controller: Live) -> None:
    controller.executor.cluster.script = short()
    with controller.client() as client:
        client.apply([{"name": "odd", "kind": "task", "task": {"run": ["true"]}}]).wait(PATIENCE_S)
        folder = controller.home / "storage" / "odd" / "0" / "1" / "logs"
        folder.mkdir(parents=True)
        text = "a\u2028b\x0bc\x85d\x1ce"
        (folder / "0.log").write_text(text + "\n")
        said = [line.text for line in client.logs("odd", follow=True)]
        assert said == [r"a\u2028b\x0bc\x85d\x1ce"]  # whole, and for any terminal


def test_closing_a_stream_early_leaves_the_client_usable(controller: Live) -> None:
    began = time.monotonic()
    with controller.client() as client:
        for _ in client.events():
            break
        assert client.health().status == "ready"
    assert time.monotonic() - began < PATIENCE_S / 2


@pytest.mark.parametrize("name", ["caf\udce9", "\udfff", "a/b", "\x1b[31m", "é"])
def test_a_name_that_nothing_can_have_is_of_no_workload(controller: Live, name: str) -> None:
    """As a shell hands it on: a word that is no text was a traceback."""
    with controller.client() as client:
        for ask in (client.status, client.cancel):
            with pytest.raises(RequestError):
                ask(name)


@pytest.mark.parametrize(
    ("url", "verifies"), [("http://127.0.0.1:1", False), ("https://far.example", True), ("HTTPS://far.example", True)]
)
def test_certificates_are_read_wherever_there_is_one_to_verify(monkeypatch, url: str, verifies: bool) -> None:
    made, make = [], ssl.create_default_context
    monkeypatch.setattr(ssl, "create_default_context", lambda *args, **more: made.append(1) or make(*args, **more))
    Transport(url, "token")
    assert bool(made) is verifies


def test_who_waits_for_a_batch_that_follows_its_input_waits_until_it_has_caught_up() -> None:
    """`apply --wait` of one waited for ever, as it never ends."""
    view = http_models.WorkloadView(id="f", name="f", kind="batch", queue="q", phase="running", submitted_at=0)
    settled = [
        view.model_copy(update={"progress": said}).is_settled
        for said in ({}, {"step": 5}, {"step": 5, "backlog": 3}, {"step": 8, "backlog": 0})
    ]
    assert settled == [False, False, False, True]
