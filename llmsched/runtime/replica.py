"""One serve replica as Ray Serve runs it: its surroundings first, then the class that answers requests.

The class is named, not imported: `workloads.inference.replica:Replica` knows models and apps, this file knows where the
replica runs. Everything a request needs is passed through untouched.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import ExitStack
from typing import Any

from llmsched.runtime import context, environment

OUR_REPLICA = "workloads.inference.replica:Replica"


class ReplicaHost:
    """`order` is the LaunchOrder as JSON. Constructing may take as long as loading a model does."""

    def __init__(self, order: str, replica: str = OUR_REPLICA) -> None:
        given: dict[str, Any] = json.loads(order)
        os.environ.update(given.pop("envs"))
        # A replica has the CPUs it asked for; it cannot know who else is on this machine.
        threads = min(environment.cpu_share(1), max(1, int(given["members"][0]["cpus"])))
        os.environ.update(environment.thread_envs(threads))
        self._stack = ExitStack()
        folder = environment.scratch(f"{given['gang']}-{given['attempt']}")
        self._stack.callback(shutil.rmtree, folder, ignore_errors=True)
        log = environment.LogFile(given["storage"], f"{given['gang']}/{given['attempt']}/logs/0.log")
        self._stack.enter_context(environment.output_to(log))
        who = context.Context(
            name=given["spec"].get("name", given["workload"]),
            workload=given["workload"],
            gang=given["gang"],
            attempt=given["attempt"],
            epoch=given["epoch"],
            rank=0,
            world_size=1,
            local_dir=folder,
            spec=given["spec"],
            storage=given["storage"],
            inputs=given["inputs"],
        )
        self._stack.enter_context(context.enter(who))
        code = None
        try:
            if given["workdir"]:
                code = environment.unpack(given["workdir"], folder / "workdir")
                os.chdir(code)
                sys.path.insert(0, str(code))
            self._replica = environment.load_entry(replica, "serve")(given)
        except Exception as error:
            # What Serve keeps of a failed constructor is its text: let that be for people.
            raise RuntimeError(f"[llmsched] {environment.explain(error, code)}") from error
        self._is_ready = asyncio.Lock()
        self._facts: dict[str, Any] | None = None

    async def ready(self) -> dict[str, Any]:
        """What the replica says of itself, once it can answer."""
        async with self._is_ready:
            if self._facts is None:
                self._facts = await self._replica.ready()
        return self._facts

    async def call(self, route: str, body: dict[str, Any], adapter: dict[str, Any] | None) -> Any:
        return await self._replica.call(route, body, adapter)

    async def stream(self, route: str, body: dict[str, Any], adapter: dict[str, Any] | None) -> AsyncIterator[Any]:
        async for chunk in self._replica.stream(route, body, adapter):
            yield chunk

    async def load_adapter(self, name: str, uri: str) -> str:
        """ "" when the adapter answers now, else why not."""
        return str(await self._replica.load_adapter(name, uri))

    async def check_health(self) -> None:
        check = getattr(self._replica, "check_health", None)
        answer = check() if check else None
        if inspect.isawaitable(answer):
            await answer

    async def pid(self) -> int:
        return os.getpid()

    def __del__(self) -> None:
        # Serve calls this when the replica has drained.
        stack = getattr(self, "_stack", None)
        if stack is not None:
            stack.close()
