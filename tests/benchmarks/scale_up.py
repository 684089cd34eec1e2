"""How soon the next replica answers after a step of the load, live, beside Ray Serve's own autoscaling, in one run.

    python tests/benchmarks/scale_up.py [--rounds 3] [--own-values] > scale_up.json

Both serve SmolLM2-135M with the same engine and one thread a replica, from 1 to 2 replicas on one node of pretend GPUs,
with a target of TARGET requests in flight at a replica. One caller streams one answer after the other; then CALLERS do.
Told is the time from that step to the first token of the second replica, with the moments between. Rounds alternate.

    tuned         no delay upwards; Ray Serve's other knobs so that it looks as often as it can: `metrics_interval_s`,
                  `look_back_period_s`
    as it comes   (`--own-values`) each with its own values of all but the target: both wait 30 s whether the load lasts

As soon as either says that the second replica is ready, one more request is asked. With llmsched it goes to the replica
with least to do, which is the new one, and its first token counts. With Ray Serve each stream begins with its process,
and the first token of a new one counts, whoever had asked for it. On the node each has had one replica before, which
answers already, and the weights are converted; llmsched forks the next one from a process that has imported what it
needs, Ray Serve begins one anew.
A side that has the second replica before the step ends the run with an error: its time would be none. JSON; seconds.
Ends everything it starts.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
from start import MODEL, llmsched, wait_for_fork_server

TARGET, CALLERS = 2, 6
BEFORE_S = 20.0  # with one caller: each side has seen that load, and settled
WITHIN_S = 240.0
ASKED, TOKENS = "What should I do when my computer is slow?", 24
OURS = {"tuned": "upscale_delay_s: 0, ", "as_it_comes": ""}
SERVES: dict[str, dict[str, float]] = {
    "tuned": {"metrics_interval_s": 0.2, "look_back_period_s": 1.0, "upscale_delay_s": 0.0},
    "as_it_comes": {},
}
SPEC = f"""\
name: chat
kind: serve
resources: {{accelerators: "A100:1", cpus: 1, memory: 2GB}}
replicas: 1..2
autoscaling: {{%starget_ongoing_requests: {TARGET}, forecast: off}}
serve: {{model: {{id: chat, source: "{MODEL}"}}, task: causal-lm}}
"""
Found = dict[str, Any]
Tell = Callable[[str], None]  # that something has come, by its name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--own-values", action="store_true", help="one more round of each, as it comes")
    parser.add_argument("--only", choices=("ours", "serve"), help="one tuned round of one side, to look at it")
    parser.add_argument("--serve", metavar="KNOBS", help="one round of Ray Serve, in this process; as main() asks")
    given = parser.parse_args()
    if given.serve is not None:
        print(json.dumps(of_serve(json.loads(given.serve))))
        return
    if given.only is not None:
        sides = {"ours": in_a_home, "serve": in_a_process_of_its_own}
        print(json.dumps(sides[given.only]("tuned"), indent=2))
        return
    rounds: dict[str, list[Found]] = {"ours": [], "serve": []}
    with home():
        for number in range(given.rounds):
            rounds["ours"].append(of_llmsched("tuned"))
            rounds["serve"].append(in_a_process_of_its_own("tuned"))
            print(f"round {number + 1}: {[side[-1] for side in rounds.values()]}", file=sys.stderr, flush=True)
        tuned = {name: statistics.median(one["first_token_s"] for one in side) for name, side in rounds.items()}
        comes = {}
        if given.own_values:
            comes = {"ours": of_llmsched("as_it_comes"), "serve": in_a_process_of_its_own("as_it_comes")}
    result = {
        "first_token_s": {**tuned, "as_it_comes": {name: one["first_token_s"] for name, one in comes.items()}},
        "ours/serve": round(tuned["ours"] / tuned["serve"], 2),
        "rounds": {**rounds, "as_it_comes": comes},
        "load": os.getloadavg()[0],
    }
    print(json.dumps(result, indent=2))


# --- the step -------------------------------------------------------------------------------------------------------


async def step(ask: Callable[[], AsyncIterator[str]], second: Callable[[Tell], Awaitable[None]]) -> Found:
    """Seconds from the moment at which the load grows to each thing that `second` tells, until it ends."""
    callers = [asyncio.create_task(forever(ask))]
    came: dict[str, float] = {}
    began, told = time.time() + BEFORE_S, asyncio.create_task(second(lambda what: came.setdefault(what, time.time())))
    try:
        await running([told, *callers], BEFORE_S)
        if came or told.done():
            raise SystemExit(f"a second replica came for one caller: {came}")
        began = time.time()
        callers += [asyncio.create_task(forever(ask)) for _ in range(CALLERS - 1)]
        await running([told, *callers], WITHIN_S)
        if not told.done():
            raise SystemExit(f"no second replica within {WITHIN_S:g} s: {came}")
    finally:
        for task in [told, *callers]:
            task.cancel()
        await asyncio.gather(told, *callers, return_exceptions=True)
    return {f"{what}_s": round(at - began, 2) for what, at in came.items()} | {"load": os.getloadavg()[0]}


async def running(tasks: list[asyncio.Task[None]], within_s: float) -> None:
    """Until one of them ends, which raises what that one raised."""
    done, _ = await asyncio.wait(tasks, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()


async def forever(ask: Callable[[], AsyncIterator[str]]) -> None:
    while True:
        async for _ in ask():
            pass


async def streamed(url: str, key: str, body: dict[str, Any]) -> AsyncIterator[str]:
    async with (
        httpx.AsyncClient(timeout=WITHIN_S, headers={"authorization": f"Bearer {key}"}) as http,
        http.stream("POST", url, json=body) as answer,
    ):
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if line:
                yield line


# --- ours -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def home() -> Iterator[None]:
    """Of all rounds: weights are converted once, as on a node that has had the model."""
    with tempfile.TemporaryDirectory(prefix="llms") as folder:
        os.environ["LLMSCHED_HOME"] = str(Path(folder) / "home")
        try:
            yield
        finally:
            llmsched("down", "--purge", "--yes")


def in_a_home(how: str) -> Found:
    with home():
        return of_llmsched(how)


def of_llmsched(how: str) -> Found:
    from llmsched import Client

    at = Path(os.environ["LLMSCHED_HOME"])
    spec = at.parent / "chat.yaml"
    more = ["--again"] if spec.exists() else []  # the one of the round before was cancelled
    spec.write_text(SPEC % OURS[how])
    llmsched("up", "--nodes", "1x2:A100")
    try:
        llmsched("apply", "-f", str(spec), "--wait", *more)
        wait_for_fork_server()
        with Client() as client:
            url = f"{client.health().urls['endpoint']}/v1/chat/completions"
        found = asyncio.run(second_of_llmsched(url, (at / "token").read_text().strip()))
        llmsched("cancel", "chat")
        return found
    finally:
        llmsched("down")


async def second_of_llmsched(url: str, key: str) -> Found:
    from llmsched import AsyncClient

    took: dict[str, float] = {}

    def ask() -> AsyncIterator[str]:
        said = [{"role": "user", "content": ASKED}]
        return streamed(url, key, {"model": "chat", "messages": said, "max_tokens": TOKENS, "stream": True})

    async with AsyncClient() as asker:
        seen = (await asker.health()).seq

        async def second(tell: Tell) -> None:
            async for event in asker.events(seen):
                if event.kind == "Launch" and event.workload.partition("@")[0] == "chat":
                    tell("asked_for")
                if event.kind == "Bound" and event.workload.partition("@")[0] == "chat":
                    tell("ready")
                    took.update({what: s for what, s in (event.data.get("took") or {}).items() if s})
                    async for line in ask():
                        if '"content":"' in line.replace(": ", ":"):
                            tell("first_token")
                            return

        return await step(ask, second) | {"took": took}


# --- Ray Serve's ----------------------------------------------------------------------------------------------------


def in_a_process_of_its_own(how: str) -> Found:
    """Ray Serve reads its environment when it is imported."""
    env = {name: text for name, text in os.environ.items() if not name.startswith(("RAY_", "LLMSCHED_"))}
    line = [sys.executable, __file__, "--serve", json.dumps(SERVES[how])]
    done = subprocess.run(line, env={**env, "RAY_USAGE_STATS_ENABLED": "0"}, check=True, stdout=subprocess.PIPE)
    told: Found = json.loads(done.stdout.splitlines()[-1])
    return told


def of_serve(knobs: dict[str, float]) -> Found:
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
            pids: list[str] = []
            another = asyncio.Event()

            async def ask() -> AsyncIterator[str]:
                async for line in streamed(f"http://127.0.0.1:{port}/", "none", {"prompt": ASKED}):
                    pid = json.loads(line)["pid"]  # with a token
                    if pid not in pids:
                        pids.append(pid)
                        if len(pids) > 1:
                            another.set()
                    yield line

            def replicas() -> tuple[int, int]:
                """(those there are, those that are ready)"""
                states = serve.status().applications["default"].deployments["Chat"].replica_states
                counts = {getattr(state, "value", state): count for state, count in states.items()}
                return sum(counts.values()), counts.get("RUNNING", 0)

            async def second(tell: Tell) -> None:
                asked: asyncio.Task[None] | None = None
                while not another.is_set():
                    there, ready = await asyncio.to_thread(replicas)
                    if there > 1:
                        tell("asked_for")
                    if ready > 1:
                        tell("ready")
                        asked = asked or asyncio.create_task(forever(ask))
                    try:
                        await asyncio.wait_for(another.wait(), 0.1)
                    except TimeoutError:
                        continue
                tell("first_token")
                if asked is not None:
                    asked.cancel()

            return asyncio.run(step(ask, second))
        finally:
            serve.shutdown()
            ray.shutdown()


class Chat:
    """A deployment that streams with our engine, as a user of Ray Serve would write it."""

    def __init__(self, folder: str) -> None:
        from workloads.inference.engine import Settings, TransformersEngine, device_for

        self._engine = TransformersEngine(Path(folder), Settings(), device_for(0))

    async def __call__(self, request: Any) -> Any:
        from starlette.responses import StreamingResponse

        return StreamingResponse(self._pieces((await request.json())["prompt"]), media_type="application/jsonl")

    async def _pieces(self, prompt: str) -> AsyncIterator[str]:
        from llmsched.data.parameters import Sampling

        turns = [{"role": "user", "content": prompt}]
        tokens = self._engine.tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        async for piece in self._engine.generate(tokens, Sampling(TOKENS), None):
            yield json.dumps({"pid": str(os.getpid()), "text": piece.text}) + "\n"


if __name__ == "__main__":
    main()
