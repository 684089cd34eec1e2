"""A real controller behind the real API, for tests: fake executor, store in memory, HTTP on a free port of loopback."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from click.testing import CliRunner, Result
from waiting import PATIENCE_S

from llmsched.api import app, auth, home, server
from llmsched.cli.main import cli
from llmsched.client import Client
from llmsched.control.controller import Controller
from llmsched.control.vault import Vault
from llmsched.executors.fake import FakeExecutor, Script
from llmsched.executors.local_ray import parse_nodes
from llmsched.gateway.front import Gateway
from llmsched.spec import http_models
from llmsched.store.memory import MemoryStore


class Parrot:
    """Answers with what it was asked, word by word; `error` instead, when set."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.error: dict[str, Any] | None = None

    async def call(self, route: str, body: dict[str, Any], adapter: dict[str, Any] | None) -> dict[str, Any]:
        self.bodies.append({**body, "adapter": adapter})
        if self.error:
            return self.error
        message = {"role": "assistant", "content": body["messages"][-1]["content"]}
        return {
            "object": "chat.completion",
            "choices": [{"index": 0, "message": message}],
            "usage": {"total_tokens": 2},
        }

    async def stream(
        self, route: str, body: dict[str, Any], adapter: dict[str, Any] | None
    ) -> AsyncIterator[dict[str, Any]]:
        self.bodies.append({**body, "adapter": adapter})
        if self.error:
            yield self.error
            return
        yield {"choices": [{"index": 0, "delta": {"role": "assistant"}}]}
        for word in body["messages"][-1]["content"].split(" "):
            yield {"choices": [{"index": 0, "delta": {"content": word}}]}
        yield {"choices": [], "usage": {"total_tokens": 2}}


@dataclass
class Live:
    home: Path
    url: str
    token: str
    controller: Controller
    executor: FakeExecutor
    loop: asyncio.AbstractEventLoop

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run it where the controller runs."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(PATIENCE_S)

    def client(self, token: str | None = None) -> Client:
        return Client(self.url, token or self.token)

    def hear(self, kind: str, about: str) -> http_models.EventView:
        """The first journal entry of that kind about a workload or gang, past or to come."""
        with self.client() as client:
            return next(
                event for event in client.events() if event.kind == kind and about in (event.workload, event.gang)
            )

    def trade(self) -> None:
        """`tune` has all eight GPUs, and gives one to the endpoint `chat`."""
        self.executor.cluster.script = lambda order: Script(runs_for_s=None)
        each = {"resources": {"accelerators": ["A100:1"]}}
        model, rows = "package:models/tiny", [{"path": "package:models/a.jsonl"}]
        train = {"task": "causal-lm", "base_model": model, "datasets": rows}
        with self.client() as client:
            client.apply([{"name": "tune", "kind": "train", "workers": "1..8", "train": train, **each}])
            self.hear("Bound", "tune")
            serve = {"model": {"source": model}}
            client.apply([{"name": "chat", "kind": "serve", "priority": 60, "serve": serve, **each}])
            self.hear("Bound", "chat")

    @contextlib.contextmanager
    def endpoint(self, replica: Any, model: str = "qwen", task: str = "causal-lm") -> Iterator[str]:
        """The real gateway over a plain object as replica, on a free port; the controller knows its url."""
        gateway = Gateway(lambda app: replica)
        models = {model: {"workload": model, "kind": "model", "task": task, "replicas": [{"app": model}]}}
        models[model]["adapters"] = {"sql": "s3://a/sql"}
        tokens = auth.Tokens(self.home)

        async def follow_tokens() -> None:
            version, sent = 0, None
            while True:
                found = tokens.keys()
                keys = [{**token, "models": [model]} for token in found]
                if keys != sent:
                    version, sent = version + 1, keys
                    gateway.route({"version": version, "models": models, "keys": keys})
                await asyncio.sleep(0.05)  # a table comes after its token

        following = asyncio.run_coroutine_threadsafe(follow_tokens(), self.loop)
        config = uvicorn.Config(gateway, log_config=None, lifespan="off", timeout_graceful_shutdown=1)
        web = server.Quiet(config)
        with contextlib.closing(server.listen("127.0.0.1", 0)) as listener:
            serving = asyncio.run_coroutine_threadsafe(web.serve(sockets=[listener]), self.loop)
            self.controller.cluster.urls = {"endpoint": server.url_of(listener)}
            try:
                yield server.url_of(listener)
            finally:
                following.cancel()
                self.controller.cluster.urls = {}
                web.should_exit = True
                serving.result(PATIENCE_S)

    def token_of(self, user: str, role: str) -> str:
        text, record = home.new_token(user, role)
        home.save_records(self.home, [*home.made_records(self.home), record])
        return text


@contextlib.contextmanager
def live(folder: Path, nodes: str = "2x4:A100", isolation: http_models.IsolationView | None = None) -> Iterator[Live]:
    """`isolation`: as if work really ran."""
    home.prepare(folder)
    home.record_isolation(folder, home.Isolation())  # as with --fake-nodes: nothing of the work runs
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    executor = FakeExecutor(parse_nodes(nodes))
    tokens = auth.Tokens(folder)

    async def begin() -> tuple[Controller, uvicorn.Server, Any, Any]:
        store = MemoryStore()
        vault = Vault(store, home.secret_key_file(folder), time.time)
        controller = Controller(store, executor, storage=str(folder / "storage"), keys=tokens.keys, vault=vault)
        running = asyncio.create_task(controller.run())
        await controller.started.wait()
        web = server.web_server(app.build(controller, tokens, isolation=isolation, home=folder), grace_s=1)
        serving = asyncio.create_task(web.serve(sockets=[listener]))
        async for _ in controller.follow():
            if len(controller.state.nodes) == len(parse_nodes(nodes)):
                break
        return controller, web, running, serving

    async def end() -> None:
        web.should_exit = True
        await serving
        await controller.stop(stop_everything=True)
        await running
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for one in left:
            one.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    with contextlib.closing(server.listen("127.0.0.1", 0)) as listener:
        controller, web, running, serving = asyncio.run_coroutine_threadsafe(begin(), loop).result(PATIENCE_S)
        try:
            yield Live(folder, server.url_of(listener), home.own_token(folder), controller, executor, loop)
        finally:
            asyncio.run_coroutine_threadsafe(end(), loop).result(PATIENCE_S)
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()


def command_line(live: Live, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """`llmsched WORD ...` against it, in this process."""
    monkeypatch.setenv("LLMSCHED_ADDRESS", live.url)
    monkeypatch.setenv("LLMSCHED_TOKEN", live.token)
    monkeypatch.delenv("COLUMNS", raising=False)  # tests side by side have one; lines are whole, as in a file
    return lambda *words: CliRunner().invoke(cli, words)
