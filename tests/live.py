"""A real controller behind the real API, for tests: fake executor, store in memory, HTTP on a free port of loopback."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn

from llmsched.api import app, auth, home, server
from llmsched.client import Client
from llmsched.control.controller import Controller
from llmsched.executors.fake import FakeExecutor
from llmsched.executors.local_ray import parse_nodes
from llmsched.spec import wire
from llmsched.store.memory import MemoryStore


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
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    def client(self, token: str | None = None) -> Client:
        return Client(self.url, token or self.token)

    def hear(self, kind: str, about: str) -> wire.EventView:
        """The first journal entry of that kind about a workload or gang, past or to come."""
        with self.client() as client:
            return next(
                event for event in client.events() if event.kind == kind and about in (event.workload, event.gang)
            )

    def token_of(self, user: str, role: str) -> str:
        text, record = home.new_token(user, role)
        home.save_records(self.home, [*home.made_records(self.home), record])
        return text


@contextlib.contextmanager
def live(folder: Path, nodes: str = "2x4:A100") -> Iterator[Live]:
    home.prepare(folder)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    executor = FakeExecutor(parse_nodes(nodes))
    tokens = auth.Tokens(folder)

    async def begin() -> tuple[Controller, uvicorn.Server, Any, Any]:
        controller = Controller(MemoryStore(), executor, storage=str(folder / "storage"), keys=tokens.keys)
        running = asyncio.create_task(controller.run())
        await controller.started.wait()
        config = uvicorn.Config(
            app.build(controller, tokens), log_config=None, lifespan="off", timeout_graceful_shutdown=1
        )
        web = server.Quiet(config)
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
        controller, web, running, serving = asyncio.run_coroutine_threadsafe(begin(), loop).result(30)
        try:
            yield Live(folder, server.url_of(listener), home.own_token(folder), controller, executor, loop)
        finally:
            asyncio.run_coroutine_threadsafe(end(), loop).result(30)
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()
