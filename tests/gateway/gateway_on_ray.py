"""A driver for test_gateway_ray.py: the gateway and two trivial replicas on a Ray of its own; writes down what it saw.

A process of its own, because Ray reads its authentication mode when it is imported.
"""

import asyncio
import hashlib
import json
import os
import signal
import statistics
import sys
import time
from pathlib import Path

import httpx
import ray
from ray import serve

from llmsched.executors.ports import free_ports
from llmsched.gateway import app as gateway_app
from llmsched.runtime import calls_door, in_hand

KEY = "key-of-the-test"
AUTH = {"Authorization": f"Bearer {KEY}"}


@serve.deployment(name=gateway_app.DEPLOYMENT, max_ongoing_requests=100)
class Trivial:
    """Answers at once, or holds a request until it is cancelled."""

    def __init__(self, name):
        self.name = name
        self.held = 0
        self.requests = in_hand.InHand(64)

    async def call(self, route, body, adapter, request):
        try:
            with self.requests.request(request):
                if body.get("hold") == self.name:
                    await self._hold()
        except in_hand.Refused as refused:
            return refused.answer
        return {"replica": self.name, "pid": os.getpid(), "held": self.held}

    async def stream(self, route, body, adapter, request):
        try:
            with self.requests.request(request):
                for n in range(body["pieces"]):
                    yield {"n": n}
                if body.get("hold"):
                    await self._hold()
        except in_hand.Refused as refused:
            yield refused.answer

    async def cancel(self, request):
        self.requests.cancel(request)

    async def _hold(self):
        self.held += 1
        try:
            await asyncio.Event().wait()
        finally:
            self.held -= 1


def deploy(name):
    serve.run(Trivial.options(ray_actor_options={"num_cpus": 0}).bind(name.split("/")[2]), name=name, route_prefix=None)


def table(version, *names, hold_s=30.0):
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    entry = {"workload": "qwen", "task": "causal-lm", "kind": "model", "routing": "round-robin", "max_ongoing": 64}
    replicas = [{"app": name} for name in names or ("llms/qwen/0/1", "llms/qwen/1/1")]
    return {
        "version": version,
        "models": {"qwen": {**entry, "hold_s": hold_s, "replicas": replicas}},
        "keys": [{"id": "k", "sha256": digest, "models": ["qwen"]}],
    }


async def until(what, condition, seconds=100):
    try:
        async with asyncio.timeout(seconds):
            while not await condition():  # noqa: ASYNC110
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise AssertionError(f"did not happen within {seconds} s: {what}") from None


class Scenario:
    def __init__(self, url, handle):
        self.handle = handle
        self.client = httpx.AsyncClient(base_url=url, headers=AUTH, timeout=100)

    async def ask(self, **body):
        return await self.client.post("/v1/chat/completions", json={"model": "qwen", **body})

    async def load(self):
        return await self.handle.load.remote()

    async def both(self):
        """What each replica says of itself."""
        return {answer["replica"]: answer for answer in [(await self.ask()).json() for _ in range(2)]}

    async def one_is_held(self):
        """Two requests: replica 0 holds one, replica 1 has answered the other."""
        asked = [asyncio.create_task(self.ask(hold="0")) for _ in range(2)]

        async def is_held():
            return sum(one.done() for one in asked) == 1 and (await self.load())["qwen"]["ongoing"] == 1

        await until("replica 0 holds one request", is_held)
        return asked

    async def streams_in_order(self):
        took, order = [], []
        for _ in range(5):
            began = time.perf_counter()
            async with self.client.stream(
                "POST", "/v1/chat/completions", json={"model": "qwen", "stream": True, "pieces": 300}
            ) as response:
                events = [line[6:] async for line in response.aiter_lines() if line]
            took.append((time.perf_counter() - began) / 300)
            order.append(events[-1] == "[DONE]" and [json.loads(e)["n"] for e in events[:-1]] == list(range(300)))
        return {"in_order": all(order), "stream_ms_per_piece": round(statistics.median(took) * 1000, 3)}

    async def latency(self):
        took = []
        for _ in range(200):
            began = time.perf_counter()
            assert (await self.ask()).status_code == 200
            took.append(time.perf_counter() - began)
        return {"call_p50_ms": round(statistics.median(took) * 1000, 2)}

    async def leaving_frees(self):
        for streams in (True, False):
            body = {"model": "qwen", "stream": streams, "pieces": 1, "hold": "0"}
            if streams:
                async with self.client.stream("POST", "/v1/chat/completions", json=body) as response:
                    lines = response.aiter_lines()  # kept: httpx closes the response with its iterator
                    assert json.loads((await anext(lines))[6:]) == {"n": 0}
                    assert (await self.load())["qwen"]["ongoing"] == 1
            else:
                held = await self.one_is_held()
                for request in held:
                    request.cancel()

            async def is_free():
                both = await self.both()
                return not any(r["held"] for r in both.values()) and not (await self.load())["qwen"]["ongoing"]

            await until("the slot is free after the client left", is_free)
        return {"leaving_frees": True}

    async def a_killed_replica_is_stepped_over(self):
        victim = (await self.both())["0"]["pid"]
        held = await self.one_is_held()
        began = time.perf_counter()
        os.kill(victim, signal.SIGKILL)
        moved = [r.json().get("replica") for r in await asyncio.gather(*held)]
        after = [(await self.ask()).status_code for _ in range(20)]
        return {"moved_to": sorted(moved), "after_kill": after, "kill_s": round(time.perf_counter() - began, 2)}

    async def a_restarted_gateway_asks_for_its_table(self):
        await self.handle.route.remote(table(7))
        pid = await self.handle.pid.remote()
        os.kill(pid, signal.SIGKILL)

        async def says_zero():
            try:
                return (await self.load())["version"] == 0
            except ray.exceptions.RayError:
                return False

        await until("the new gateway says version 0", says_zero)
        before = (await self.ask()).status_code
        await self.handle.route.remote(table(8))
        return {"without_table": before, "with_table": (await self.ask()).status_code}

    async def it_outlives_serve(self):
        """Somebody shuts Serve down; the same gateway finds the replica of another attempt in the next Serve."""
        await self.handle.route.remote(table(9, hold_s=0))  # to be refused, not held
        await asyncio.to_thread(serve.shutdown)
        without = (await self.ask()).status_code
        await asyncio.to_thread(serve.start, proxy_location="Disabled")
        await asyncio.to_thread(deploy, "llms/qwen/0/2")
        await self.handle.route.remote(table(10, "llms/qwen/0/2"))
        return {"without_serve": without, "with_another": (await self.ask()).status_code}


async def run(url, handle):
    scenario = Scenario(url, handle)
    seen = {"unknown_key": (await scenario.client.get("/v1/models", headers={"Authorization": "Bearer x"})).status_code}
    for step in (
        scenario.streams_in_order,
        scenario.latency,
        scenario.leaving_frees,
        scenario.a_killed_replica_is_stepped_over,
        scenario.a_restarted_gateway_asks_for_its_table,
        scenario.it_outlives_serve,
    ):
        seen |= await step()
        if step == scenario.latency:  # while both replicas are well: the same through Ray, as from another machine
            far = Scenario(calls_door.open_here(), handle)
            seen |= {f"far_{name}": what for name, what in (await far.streams_in_order()).items()}
            seen |= {f"far_{name}": what for name, what in (await far.latency()).items()}
            seen |= {f"far_{name}": what for name, what in (await far.leaving_frees()).items()}
    return seen


def main(temp_dir, answer):
    (port,) = free_ports(1, "127.0.0.1")
    ray.init("local", num_cpus=4, include_dashboard=False, _temp_dir=temp_dir, log_to_driver=False)
    try:
        serve.start(proxy_location="Disabled")
        for n in range(2):
            deploy(f"llms/qwen/{n}/1")
        handle = gateway_app.start("127.0.0.1", port)
        ray.get(handle.route.remote(table(1)))
        Path(answer).write_text(json.dumps(asyncio.run(run(f"http://127.0.0.1:{port}", handle))))
    finally:
        ray.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
