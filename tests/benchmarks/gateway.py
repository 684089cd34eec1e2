"""What the gateway costs on real Ray Serve, against a plain ingress deployment in front of the same replica.

    python tests/benchmarks/gateway.py [--rounds 5] > gateway.json

Prints one JSON object, and on stderr each step as it ends; medians over rounds. Both call the same replica process
through a handle; they are asked in turn, in one run. `plain` is what a Serve user would write: an ingress behind
Serve's proxy that reads JSON, calls and answers, without keys, names, limits or counts. Starts a Ray of its own and
ends everything it starts.
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
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import aiohttp

KEY = "key-of-the-benchmark"
PIECES = 500
IN_FLIGHT = 32
AIM_PER_S = 500
SIDES = ("llmsched", "plain")


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
        urls = {
            "llmsched": f"http://127.0.0.1:{own_port}/v1/chat/completions",
            "plain": f"http://127.0.0.1:{port}/plain",
        }
        return asyncio.run(compare(urls, rounds, profile))
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
    key = {"id": "k", "sha256": hashlib.sha256(KEY.encode()).hexdigest(), "models": ["trivial"]}
    return {"version": 1, "models": {"trivial": {**entry, "replicas": [{"app": "llms/trivial/0/1"}]}}, "keys": [key]}


async def compare(urls: dict[str, str], rounds: int, profile: Path | None) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {KEY}"}
    connector = aiohttp.TCPConnector(limit=IN_FLIGHT)
    async with aiohttp.ClientSession(headers=headers, connector=connector) as client:
        seen: dict[str, dict[str, list[float]]] = {side: defaultdict(list) for side in SIDES}
        ordered = True
        for number in range(rounds + 1):
            for side, path in urls.items():
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
    ours, plain = ({name: statistics.median(values) for name, values in seen[side].items()} for side in SIDES)
    ratios = [a / b for a, b in zip(seen["llmsched"]["p50"], seen["plain"]["p50"], strict=True)]
    rates = [a / b for a, b in zip(seen["llmsched"]["rate"], seen["plain"]["rate"], strict=True)]
    return {
        "rounds": rounds,
        "call_p50_ms": {"llmsched": round(ours["p50"], 2), "plain": round(plain["p50"], 2)},
        "call_p99_ms": {"llmsched": round(ours["p99"], 2), "plain": round(plain["p99"], 2)},
        "call_p50_ratio": round(statistics.median(ratios), 3),
        "per_s": {"llmsched": round(ours["rate"]), "plain": round(plain["rate"]), "in_flight": IN_FLIGHT},
        "per_s_ratio": round(statistics.median(rates), 3),
        "per_s_aim": AIM_PER_S if plain["rate"] >= AIM_PER_S else round(0.9 * plain["rate"]),
        "stream_ms_a_token": {"llmsched": round(ours["token"], 3), "plain": round(plain["token"], 3)},
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
