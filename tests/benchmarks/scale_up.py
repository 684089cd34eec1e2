"""How soon the next replica answers after a step of the load, live, beside Ray Serve's own autoscaling, in one run.

    python tests/benchmarks/scale_up.py [--rounds 3] > scale_up.json

Both serve SmolLM2-135M with the same engine, from 1 to 2 replicas on one node of pretend GPUs, with a target of
`TARGET` requests in flight a replica and no delay upwards. One caller streams one answer after the other; then
`CALLERS` do. Told is the time from that step to the first token of the second replica, and what it is made of.

    ours     `kind: serve`; the moment at which the scheduler hears that the second replica is ready (its event), and
             the first token of what is asked next, which goes to the replica with least to do
    serve    a deployment whose stream begins with its process: the first one of another process. Ray Serve's knobs are
             set so that it looks as often as it can: `metrics_interval_s`, `look_back_period_s`, and the interval at
             which handles tell (an environment variable; it is 10 s as it comes)
    as_it_comes   the same with Ray Serve's own values of all but the target, in the first round alone

On the node each has had one replica before, which answers already. JSON; seconds. Ends everything it starts.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from start import MODEL, llmsched, wait_for_fork_server

TARGET, CALLERS = 2, 6
BEFORE_S = 20.0  # with one caller: each side has seen that load, and settled
WITHIN_S = 180.0
ASKED, TOKENS = "What should I do when my computer is slow?", 24
TUNED = {"metrics_interval_s": 0.2, "look_back_period_s": 1.0, "upscale_delay_s": 0.0}
OFTEN = {"RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "0.2"}
SPEC = f"""\
name: chat
kind: serve
resources: {{accelerators: "A100:1", cpus: 1, memory: 2GB}}
replicas: 1..2
autoscaling: {{target_ongoing_requests: {TARGET}, upscale_delay_s: 0, forecast: off}}
serve: {{model: {{id: chat, source: "{MODEL}"}}, task: causal-lm}}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--serve", metavar="KNOBS", help="one round of Ray Serve, in this process; as main() asks")
    given = parser.parse_args()
    if given.serve is not None:
        print(json.dumps(of_serve(json.loads(given.serve))))
        return
    sides: dict[str, list[dict[str, Any]]] = {"ours": [], "serve": []}
    for number in range(given.rounds):
        sides["ours"].append(of_llmsched())
        sides["serve"].append(in_a_process_of_its_own(TUNED, OFTEN))
        print(f"round {number + 1}: {[side[-1] for side in sides.values()]}", file=sys.stderr)
    comes = in_a_process_of_its_own({}, {})
    medians = {name: statistics.median(one["first_token_s"] for one in side) for name, side in sides.items()}
    result = {
        "first_token_s": {**medians, "as_it_comes": comes["first_token_s"]},
        "ours/serve": round(medians["ours"] / medians["serve"], 2),
        "rounds": {**sides, "as_it_comes": [comes]},
        "load": os.getloadavg()[0],
    }
    print(json.dumps(result, indent=2))


# --- ours ---------------------------------------------------------------------------------------------------------


def of_llmsched() -> dict[str, Any]:
    from llmsched import AsyncClient, Client

    with tempfile.TemporaryDirectory(prefix="llms") as folder:
        os.environ["LLMSCHED_HOME"] = str(Path(folder) / "home")
        spec = Path(folder) / "chat.yaml"
        spec.write_text(SPEC)
        llmsched("up", "--nodes", "1x2:A100")
        try:
            llmsched("apply", "-f", str(spec), "--wait")
            wait_for_fork_server()
            with Client() as client:
                seen = max(event.seq for event in client.events(follow=False))

                async def ask() -> AsyncIterator[str]:
                    async with AsyncClient() as asker:
                        chat = await asker.chat("chat")
                        async for piece in chat.stream(ASKED, max_tokens=TOKENS):
                            yield piece

                async def first_after() -> tuple[float, dict[str, Any]]:
                    """When the first token came of what was asked after the second replica was ready; its event."""
                    async with AsyncClient() as asker:
                        async for event in asker.events(seen):
                            if event.kind == "Bound" and event.gang != "chat/0" and event.workload == "chat":
                                async for _ in ask():
                                    return time.time(), event.model_dump()
                    raise AssertionError("the events ended")

                at, (first, bound) = asyncio.run(step(ask, first_after))
        finally:
            llmsched("down", "--purge", "--yes")
    took = bound["data"].get("took") or {}
    return {"first_token_s": round(first - at, 2), "ready_s": round(bound["at"] - at, 2), "took": took}


async def step(ask: Callable[[], AsyncIterator[str]], first_after: Callable[[], Any]) -> tuple[float, Any]:
    """(when the load became larger, what `first_after` told)"""
    callers = [asyncio.create_task(forever(ask))]
    await asyncio.sleep(BEFORE_S)
    seeing = asyncio.create_task(first_after())
    await asyncio.sleep(0)
    at = time.time()
    callers += [asyncio.create_task(forever(ask)) for _ in range(CALLERS - 1)]
    try:
        done, _ = await asyncio.wait([seeing, *callers], timeout=WITHIN_S, return_when=asyncio.FIRST_COMPLETED)
        if seeing not in done:
            raise AssertionError(f"no second replica within {WITHIN_S:g} s: {[task.exception() for task in done]}")
        return at, seeing.result()
    finally:
        for task in [seeing, *callers]:
            task.cancel()
        await asyncio.gather(seeing, *callers, return_exceptions=True)


async def forever(ask: Callable[[], AsyncIterator[str]]) -> None:
    while True:
        async for _ in ask():
            pass


# --- Ray Serve's ----------------------------------------------------------------------------------------------------


def in_a_process_of_its_own(knobs: dict[str, float], envs: dict[str, str]) -> dict[str, Any]:
    """Ray Serve reads its environment when it is imported."""
    env = {name: text for name, text in os.environ.items() if not name.startswith(("RAY_", "LLMSCHED_"))}
    line = [sys.executable, __file__, "--serve", json.dumps(knobs)]
    done = subprocess.run(line, env={**env, **envs, "RAY_USAGE_STATS_ENABLED": "0"}, check=True, stdout=subprocess.PIPE)
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def of_serve(knobs: dict[str, float]) -> dict[str, Any]:
    import httpx
    import ray
    from ray import serve

    from llmsched.executors.ports import free_ports
    from workloads.sources import resolve_model

    folder = resolve_model(MODEL)
    port = free_ports(1)[0]
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp") as session:
        here = str(Path(__file__).parent)
        ray.init(
            address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, _temp_dir=session,
            object_store_memory=256 * 1024**2, runtime_env={"env_vars": {"PYTHONPATH": here}},
        )  # fmt: skip
        try:
            serve.start(http_options={"host": "127.0.0.1", "port": port})
            scaling = {"min_replicas": 1, "max_replicas": 2, "target_ongoing_requests": TARGET, **knobs}
            made = serve.deployment(
                Chat, ray_actor_options={"num_cpus": 1}, max_ongoing_requests=32, autoscaling_config=scaling
            )
            serve.run(made.bind(str(folder)), route_prefix="/")
            pids: dict[int, float] = {}

            async def ask() -> AsyncIterator[str]:
                async with (
                    httpx.AsyncClient(timeout=WITHIN_S) as http,
                    http.stream("POST", f"http://127.0.0.1:{port}/", json={"prompt": ASKED}) as answer,
                ):
                    answer.raise_for_status()
                    async for text in answer.aiter_text():
                        pid = text.partition("\n")[0]
                        if pid.isdigit():  # with its first token
                            pids.setdefault(int(pid), time.time())
                            changed.set()
                        yield text

            changed = asyncio.Event()

            async def second() -> float:
                while len(pids) < 2:
                    changed.clear()
                    await changed.wait()
                return max(pids.values())

            at, first = asyncio.run(step(ask, second))
        finally:
            serve.shutdown()
            ray.shutdown()
    return {"first_token_s": round(first - at, 2)}


class Chat:
    """A deployment that streams with our engine, as a user of Ray Serve would write it."""

    def __init__(self, folder: str) -> None:
        from workloads.inference.engine import Settings, TransformersEngine, device_for

        self._engine = TransformersEngine(Path(folder), Settings(), device_for(0))

    async def __call__(self, request: Any) -> Any:
        from starlette.responses import StreamingResponse

        return StreamingResponse(self._pieces((await request.json())["prompt"]), media_type="text/plain")

    async def _pieces(self, prompt: str) -> AsyncIterator[str]:
        from llmsched.data.parameters import Sampling

        turns = [{"role": "user", "content": prompt}]
        tokens = self._engine.tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        is_first = True
        async for piece in self._engine.generate(tokens, Sampling(TOKENS), None):
            yield f"{os.getpid()}\n{piece.text}" if is_first else piece.text
            is_first = False


if __name__ == "__main__":
    main()
