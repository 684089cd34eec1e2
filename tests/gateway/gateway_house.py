"""A gateway in plain asyncio for tests: real code from the ASGI call down, replicas that are plain objects, no Ray."""

import asyncio
import hashlib
import json
from contextlib import aclosing

import httpx
from waiting import PATIENCE_S

from llmsched.gateway.front import Gateway
from llmsched.gateway.replicas import ReplicaGone

KEY = "test-key"
AUTH = {"Authorization": f"Bearer {KEY}"}


class Echo:
    """A replica that answers with what it was asked, holds requests while `hold` is set, and can be dead."""

    def __init__(self, name):
        self.name = name
        self.dead = False
        self.dies_after = None  # chunks
        self.calls = 0
        self.cancelled = 0
        self.hold = None
        self.said = ["a", "b", "c"]

    async def call(self, route, body, adapter):
        self.calls += 1
        if self.dead:
            raise ReplicaGone(self.name)
        try:
            if self.hold is not None:
                await self.hold.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if body.get("fail"):
            return {"error": {"message": "no", "type": "t", "param": None, "code": "c"}, "status": body["fail"]}
        return {"replica": self.name, "route": route, "adapter": adapter}

    async def stream(self, route, body, adapter, incoming=None):
        self.calls += 1
        if route == "http":  # an app
            async with aclosing(self.app(body, incoming)) as batches:
                async for batch in batches:
                    yield batch
            return
        if self.dead:
            raise ReplicaGone(self.name)
        try:
            if body.get("fail"):
                yield {"error": {"message": "no", "type": "t", "param": None, "code": "c"}, "status": body["fail"]}
                return
            for n, piece in enumerate(self.said):
                if self.dies_after == n:
                    raise ReplicaGone(self.name)
                yield {"piece": piece, "replica": self.name}
                if self.hold is not None:
                    await self.hold.wait()
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled += 1
            raise

    async def app(self, asked, incoming):
        """What the app behind it sends: what it was asked, as JSON."""
        said = {name: asked[name] for name in ("method", "root_path", "path", "multiplexed")}
        said |= {"query": asked["query_string"].decode(), "body": asked["body"].decode(), "replica": self.name}
        said["headers"] = sorted(name.decode() for name, _ in asked["headers"])
        start = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]}
        yield [start, {"type": "http.response.body", "body": json.dumps(said).encode()}]


class House:
    """A gateway with one workload `qwen` on the given replicas."""

    def __init__(self, *names, keys=None, clock=None, **entry):
        self.replicas = {name: Echo(name) for name in names}
        self.seen = []
        self.clock = clock or (lambda: 0.0)
        self.gateway = Gateway(
            self.replicas.__getitem__, clock=self.clock, observe=lambda *what: self.seen.append(what[:3])
        )
        models = {
            "qwen": {
                "workload": "qwen",
                "task": "causal-lm",
                "kind": "model",
                "replicas": [{"app": name} for name in names],
                "adapters": {"sql": "s3://a/sql"},
                **entry,
            },
            "desk": {"workload": "support-desk", "kind": "app", "replicas": [{"app": name} for name in names]},
        }
        keys = keys or [{"id": "k", "sha256": hashlib.sha256(KEY.encode()).hexdigest(), "models": list(models)}]
        self.table = {"version": 3, "models": models, "keys": keys}
        self.gateway.route(self.table)

    def __getitem__(self, name):
        return self.replicas[name]

    async def ask(self, method="POST", path="/v1/chat/completions", headers=AUTH, **kwargs):
        transport = httpx.ASGITransport(app=self.gateway)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            return await client.request(method, path, headers=headers, **kwargs)

    def chat(self, **body):
        return self.ask(json={"model": "qwen", **body})


def events(response):
    return [line[len("data: ") :] for line in response.text.split("\n\n") if line]


async def until(condition):
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0)
