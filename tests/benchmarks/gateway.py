"""What the gateway costs on real Ray Serve, against a plain ingress deployment in front of the same replica.

    python tests/benchmarks/gateway.py [--rounds 5] > gateway.json

Prints one JSON object, and on stderr each step as it ends; medians over rounds. All call the same replica process
through a handle; they are asked in turn, in one run. `two_users` is the gateway behind its proxy, by token. `plain` is
what a Serve user would write: an ingress behind Serve's proxy that reads JSON, calls and answers, without keys, names,
limits or counts. Starts a Ray of its own and ends everything it starts.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import aiohttp

from llmsched.spec.endpoint_keys import key_of

TOKEN = "llms_token-of-the-benchmark"
PIECES = 500
IN_FLIGHT = 32
AIM_PER_S = 500
SIDES = ("llmsched", "two_users", "plain")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--profile", type=Path, help="file for py-spy's samples of the gateway under full load")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="gwb"))  # short: Ray puts sockets below it
    (folder / "token").write_text("0" * 64)
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token")}  # read when ray is imported
    try:
        print(json.dumps(measure(folder, options.rounds, options.profile), indent=2))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def measure(folder: Path, rounds: int, profile: Path | None) -> dict[str, Any]:
    import ray
    from ray import serve

    from llmsched.gateway import app as gateway
    from llmsched.gateway import proxy

    ray.init("local", num_cpus=4, include_dashboard=False, _temp_dir=str(folder / "r"), log_to_driver=False)
    try:
        port = free_port()
        quiet = {"enable_access_log": False}
        serve.start(http_options={"host": "127.0.0.1", "port": port}, logging_config=quiet)
        options: dict[str, Any] = {"max_ongoing_requests": 1000, "ray_actor_options": {"num_cpus": 0}}
        trivial, plain = deployments()
        made = serve.deployment(trivial, name="replica", logging_config=quiet).options(**options)
        serve.run(made.bind(), name="llms/trivial/0/1", route_prefix=None)
        made = serve.deployment(plain, name="ingress", logging_config=quiet).options(**options)
        serve.run(made.bind("llms/trivial/0/1"), name="plain", route_prefix="/plain")
        own_port = free_port()
        actor = gateway.start("127.0.0.1", own_port)
        ray.get(actor.route.remote(table()))
        if profile:
            os.environ["PROFILED_PID"] = str(ray.get(actor.pid.remote()))
        (folder / proxy.GATEWAY).write_text(json.dumps(["127.0.0.1", own_port]))
        front = free_port()
        words = (str(folder), str(front), proxy.NOTES[0])
        in_front = subprocess.Popen([sys.executable, "-P", "-m", proxy.__name__, *words])
        urls = {
            "llmsched": f"http://127.0.0.1:{own_port}/v1/chat/completions",
            "two_users": f"http://127.0.0.1:{front}/v1/chat/completions",
            "plain": f"http://127.0.0.1:{port}/plain",
        }
        try:
            return asyncio.run(compare(urls, rounds, profile))
        finally:
            in_front.terminate()
            in_front.wait()
    finally:
        ray.shutdown()


def deployments() -> tuple[type, type]:
    from ray import serve
    from starlette.requests import Request
    from starlette.responses import JSONResponse, StreamingResponse

    class Trivial:
        async def call(self, route: str, body: Any, adapter: Any, request: str = "") -> Any:
            return {"id": 1, "choices": [{"message": {"role": "assistant", "content": "yes"}}]}

        async def stream(self, route: str, body: Any, adapter: Any, request: str = "") -> Any:
            for n in range(body["pieces"]):
                yield {"n": n}

    class Ingress:
        def __init__(self, name: str) -> None:
            handle = serve.get_app_handle(name)
            self._call = handle.options(method_name="call")
            self._stream = handle.options(method_name="stream", stream=True)

        async def __call__(self, request: Request) -> Any:
            body = await request.json()
            if body.get("stream"):
                return StreamingResponse(self._events(body), media_type="text/event-stream")
            return JSONResponse(await self._call.remote("chat/completions", body, None))

        async def _events(self, body: Any) -> Any:
            async for chunk in self._stream.remote("chat/completions", body, None):
                yield b"data: " + json.dumps(chunk).encode() + b"\n\n"
            yield b"data: [DONE]\n\n"

    return Trivial, Ingress


def table() -> dict[str, Any]:
    entry = {"workload": "trivial", "kind": "model", "routing": "power-of-two", "max_ongoing": 900}
    key = {"id": "k", "sha256": hashlib.sha256(key_of(TOKEN).encode()).hexdigest(), "models": ["trivial"]}
    return {"version": 1, "models": {"trivial": {**entry, "replicas": [{"app": "llms/trivial/0/1"}]}}, "keys": [key]}


async def compare(urls: dict[str, str], rounds: int, profile: Path | None) -> dict[str, Any]:
    connector = aiohttp.TCPConnector(limit=IN_FLIGHT)
    async with aiohttp.ClientSession(connector=connector) as client:
        seen: dict[str, dict[str, list[float]]] = {side: defaultdict(list) for side in SIDES}
        ordered = True
        for number in range(rounds + 1):
            for side, path in urls.items():
                client.headers["Authorization"] = f"Bearer {TOKEN if side == 'two_users' else key_of(TOKEN)}"
                took = await one_by_one(client, path, 300)
                rate = await flat_out(client, path, 4.0)
                token, good = await streamed(client, path)
                print(f"round {number} of {rounds}, {side}: {rate:.0f} answers a second", file=sys.stderr, flush=True)
                ordered = ordered and good
                if number:  # the first of each does not count
                    seen[side]["p50"].append(statistics.median(took) * 1000)
                    seen[side]["p99"].append(sorted(took)[int(len(took) * 0.99)] * 1000)
                    seen[side]["rate"].append(rate)
                    seen[side]["token"].append(token * 1000)
        if profile:
            await profiled(client, urls["llmsched"], profile)
    medians = {side: {name: statistics.median(values) for name, values in seen[side].items()} for side in SIDES}

    def each(name: str, digits: int | None = None) -> dict[str, float]:
        return {side: round(medians[side][name], digits) for side in SIDES}

    def ratio(name: str, side: str) -> float:
        pairs = zip(seen[side][name], seen["plain"][name], strict=True)
        return round(statistics.median(ours / plain for ours, plain in pairs), 3)

    plain_per_s = medians["plain"]["rate"]
    return {
        "rounds": rounds,
        "call_p50_ms": each("p50", 2),
        "call_p99_ms": each("p99", 2),
        "call_p50_ratio": ratio("p50", "llmsched"),
        "call_p50_ratio_two_users": ratio("p50", "two_users"),
        "per_s": {**each("rate"), "in_flight": IN_FLIGHT},
        "per_s_ratio": ratio("rate", "llmsched"),
        "per_s_ratio_two_users": ratio("rate", "two_users"),
        "per_s_aim": AIM_PER_S if plain_per_s >= AIM_PER_S else round(0.9 * plain_per_s),
        "stream_ms_a_token": each("token", 3),
        "stream_in_order": ordered,
    }


async def ask(client: aiohttp.ClientSession, path: str) -> None:
    async with client.post(path, json={"model": "trivial", "messages": [{"role": "user", "content": "?"}]}) as answer:
        assert answer.status == 200, await answer.text()
        await answer.read()


async def one_by_one(client: aiohttp.ClientSession, path: str, count: int) -> list[float]:
    took = []
    for _ in range(count):
        began = time.perf_counter()
        await ask(client, path)
        took.append(time.perf_counter() - began)
    return took


async def flat_out(client: aiohttp.ClientSession, path: str, seconds: float) -> float:
    """Answers a second with IN_FLIGHT requests always under way."""
    began, done = time.perf_counter(), 0

    async def one() -> None:
        nonlocal done
        while time.perf_counter() - began < seconds:
            await ask(client, path)
            done += 1

    await asyncio.gather(*(one() for _ in range(IN_FLIGHT)))
    return done / (time.perf_counter() - began)


async def streamed(client: aiohttp.ClientSession, path: str) -> tuple[float, bool]:
    """Seconds a token over one long stream, and whether every token came, in order."""
    body = {"model": "trivial", "stream": True, "pieces": PIECES}
    began = time.perf_counter()
    async with client.post(path, json=body) as answer:
        events = [line[6:].strip() async for line in answer.content if line.startswith(b"data: ")]
    took = (time.perf_counter() - began) / PIECES
    good = events[-1] == b"[DONE]" and [json.loads(event)["n"] for event in events[:-1]] == list(range(PIECES))
    return took, good


async def profiled(client: aiohttp.ClientSession, url: str, file: Path) -> None:
    line = ["record", "-p", os.environ["PROFILED_PID"], "-d", "8", "-f", "raw", "-o", str(file)]
    spy = await asyncio.create_subprocess_exec(str(Path(sys.executable).with_name("py-spy")), *line)
    await flat_out(client, url, 8.0)
    await spy.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
