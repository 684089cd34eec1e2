"""How long anything holds the controller's loop: the real controller with its store on disk, on a fake executor.

    python tests/benchmarks/loop.py [--only NAME] [--profile] > loop.json

Prints one JSON object: for each step of each story the longest turn of the event loop, in milliseconds on the clock
and of CPU time, and whose turn it was. `--profile` tells on stderr what the longest one was busy with.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import pstats
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from turns import Turns, watched  # noqa: E402

from llmsched.control.controller import Controller  # noqa: E402
from llmsched.executors.fake import FakeCluster, FakeExecutor, Script  # noqa: E402
from llmsched.executors.local_ray import parse_nodes  # noqa: E402
from llmsched.spec.cluster import load as load_cluster  # noqa: E402
from llmsched.spec.load import load_json  # noqa: E402
from llmsched.store.sqlite import SqliteStore  # noqa: E402

ROOM = "limits: {max_replicas: 20000, max_gangs_per_user: 40000}\n"
BY_RANK = "scheduling: {preemption: {within_queue: by_rank}, order: best_effort, quantum: 60s}\n"
KEYS = [{"id": f"k{n}", "sha256": f"{n:064}", "user": f"u{n}", "role": "submitter", "expires": None} for n in range(50)]


class Story:
    """One controller, and what each step of a story cost its loop."""

    def __init__(self, controller: Controller, turns: Turns, told: dict[str, Any]) -> None:
        self.controller, self.turns, self.told = controller, turns, told

    @asynccontextmanager
    async def step(self, name: str) -> AsyncIterator[None]:
        self.turns.clear()
        began, used = time.perf_counter(), time.process_time()
        yield
        longest = self.turns.longest
        self.told[name] = {
            "took_s": round(time.perf_counter() - began, 2),
            "cpu_s": round(time.process_time() - used, 2),
            "longest_ms": round(self.turns.longest_s * 1000, 1),
            "longest_cpu_ms": round(longest.cpu_s * 1000, 1),
            "whose": longest.what,
        }
        print(name, self.told[name], file=sys.stderr, flush=True)
        if longest.profile is not None:
            pstats.Stats(longest.profile, stream=sys.stderr).sort_stats("cumulative").print_stats(25)

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)

    def running(self) -> int:
        return sum(gang.started_at is not None for gang in self.controller.state.gangs.values())


def endpoint(name: str, replicas: int, **more: Any) -> dict[str, Any]:
    body = {"name": name, "kind": "serve", "replicas": replicas, "resources": {"cpus": 0}, "serve": {"app": "a:B"}}
    return body | more


def task(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "kind": "task", "resources": {"cpus": 0}, "task": {"run": ["true"]}} | more


def train(name: str) -> dict[str, Any]:
    body = {"name": name, "kind": "train", "workers": "1..4", "resources": {"accelerators": "A100:1", "cpus": 0}}
    return body | {"train": {"loop": "mine.train:loop"}}


async def submit(story: Story, bodies: list[dict[str, Any]], user: str = "ann") -> None:
    await story.controller.submit([load_json(body) for body in bodies], user=user)


async def plan(story: Story) -> None:
    await story.controller.plan([load_json(task("thought", resources={"accelerators": "A100:1", "cpus": 0}))], "bob")


async def replicas(story: Story) -> None:
    async with story.step("9,000 replicas start"):
        await submit(story, [endpoint("talks", 9000)])
        await story.until(lambda: story.running() == 9000)
    async with story.step("one more task"):
        await submit(story, [task("one")])
        await story.until(lambda: story.controller.state.gangs["one/0"].started_at is not None)
    async with story.step("plan"):
        await plan(story)
    async with story.step("100 replicas die"):
        names = story.controller._executor.cluster.running()[:100]  # type: ignore[attr-defined]
        for name in names:
            story.controller._executor.cluster.kill(name)  # type: ignore[attr-defined]
        await story.until(lambda: all(story.controller.state.gangs[n.rpartition("/")[0][5:]].restarts for n in names))
    async with story.step("another spec"):
        await submit(story, [endpoint("talks", 9000, envs={"A": "b"})])
        await plan(story)
    async with story.step("cancelled"):
        await story.controller.cancel("talks", "ann")
        await story.until(lambda: bool(story.controller.state.find("talks").outcome))  # type: ignore[union-attr]


async def submission(story: Story) -> None:
    specs = [load_json(task(f"t{number}")) for number in range(1000)]
    more = [load_json(task(f"p{number}")) for number in range(500)]
    await asyncio.sleep(0)  # what the story itself does is no step of it
    async with story.step("one submission of 1,000 tasks"):
        await story.controller.submit(specs, user="ann")
        await story.until(lambda: story.running() == len(specs))
    async with story.step("the same again"):
        await story.controller.submit(specs, user="ann")
    async with story.step("plan"):
        await plan(story)
    async with story.step("plan of 500"):
        await story.controller.plan(more, "bob")


async def ranked(story: Story) -> None:
    async with story.step("4,500 elastic gangs"):
        for begin in range(0, 4500, 100):
            await submit(story, [train(f"e{begin + number}") for number in range(100)])
        await story.until(lambda: not story.controller.state.capacity.free_gpus(story.controller.state.capacity.open))
    async with story.step("plan"):
        await plan(story)
    async with story.step("one more"):
        await submit(story, [train("one")], "bob")
    async with story.step("one ends"):
        cluster = story.controller._executor.cluster  # type: ignore[attr-defined]
        cluster.kill(cluster.running()[0])
        await plan(story)


STORIES: dict[str, tuple[Any, str, str]] = {
    "replicas": (replicas, ROOM, "4x8:A100"),
    "submission": (submission, ROOM, "4x8:A100"),
    "elastic": (ranked, ROOM, "32x16:A100"),
    "ranked": (ranked, ROOM + BY_RANK, "32x16:A100"),
}


async def tell(name: str, folder: Path, turns: Turns) -> dict[str, Any]:
    act, file, nodes = STORIES[name]
    cluster = FakeCluster(parse_nodes(nodes), script=lambda order: Script(runs_for_s=None))
    executor, store = FakeExecutor(cluster=cluster), SqliteStore(folder / f"{name}.sqlite")
    controller = Controller(store, executor, storage=str(folder), keys=lambda: KEYS)
    running = asyncio.create_task(controller.run())
    await controller.started.wait()
    story = Story(controller, turns, {})
    await story.until(lambda: len(controller.state.nodes) == len(cluster.nodes))
    await controller.configure(load_cluster(file, "llmsched.yaml"), "ann")
    try:
        await act(story)
    finally:
        await controller.stop(stop_everything=True)
        await running
    return story.told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=STORIES, action="append")
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory(prefix="llms") as folder, watched(profile=options.profile) as turns:
        for name in options.only or STORIES:
            found[name] = asyncio.run(tell(name, Path(folder), turns))
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
