"""A day in five minutes: an endpoint and an elastic fine-tune trade four pretended GPUs, as in a real trace.

    python day.py [--picture day.svg]

A cluster comes up in a home of its own. The fine-tune takes all GPUs. Then people ask the desk: replicas come, and the
fine-tune gives them its GPUs. When nobody asks any more it takes them back, and ends. Printed is what changed when, and
a verdict; exit code 1 if a request was turned away or cut, a row of the fine-tune was lost or learned from twice, or a
GPU changed hands too slowly. Then all of it is taken down again.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import httpx

from llmsched import AsyncClient
from llmsched.spec.endpoint_keys import key_of

HERE = Path(__file__).resolve().parent
LLMSCHED = Path(sys.executable).with_name("llmsched")
GPUS, NODES = 4, "2x2:A100"
SLO_S = 3.0  # to the first word
HANDOVER_S = 60.0  # p95, from asking for a replica until it answers
QUIET_S = 15.0  # in which the fine-tune has all GPUs before anybody asks
LONGEST_S = 460.0


class Asked(NamedTuple):
    """What became of one request. Times in seconds since the first of them; `first_s`: to its first word."""

    at: float
    first_s: float | None
    is_whole: bool
    said: str  # where it is not


class Held(NamedTuple):
    """GPUs at a time, in seconds since the start."""

    at: float
    fine_tune: int
    desk: int
    answering: int  # replicas
    asking: int  # requests


class Day:
    def __init__(self, client: AsyncClient, key: str) -> None:
        self._client, self._key = client, key
        self._began = time.monotonic()
        self._asking = 0
        self._has_all = asyncio.Event()  # the fine-tune
        self.held: list[Held] = []
        self.asked: list[Asked] = []

    def now(self) -> float:
        return time.monotonic() - self._began

    async def run(self) -> None:
        async with asyncio.timeout(LONGEST_S), asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(self._watch())
            await self._client.apply(str(HERE / "fine_tune.yaml"))
            await self._has_all.wait()
            await asyncio.sleep(QUIET_S)
            await self._client.apply(str(HERE / "desk.yaml"))
            await self._ask_all()
            self._say("nobody asks any more")
            await self._client.wait("fine-tune")
            watching.cancel()

    async def _watch(self) -> None:
        while True:
            views = {view.name: view for view in (await self._client.workloads()).workloads}
            tune, desk = (views.get(name) for name in ("fine-tune", "desk"))
            running = [gang for gang in tune.gangs if gang.status == "running"] if tune else []
            now = Held(
                self.now(), sum(int(gang.gpus) for gang in running), int(desk.gpus) if desk else 0,
                desk.size if desk else 0, self._asking,
            )  # fmt: skip
            if not self.held or now[1:4] != self.held[-1][1:4]:
                bar = "#" * now.fine_tune + "=" * now.answering
                self._say(
                    f"[{bar:{GPUS}}] fine-tune on {now.fine_tune}, desk on {now.desk} ({now.answering} answer), "
                    f"{now.asking} requests in hand"
                )
            self.held.append(now)
            if now.fine_tune == GPUS:
                self._has_all.set()
            await asyncio.sleep(0.5)

    async def _ask_all(self) -> None:
        with (HERE / "requests.csv").open() as file:
            rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
        url = (await self._client.chat("desk")).endpoint
        began = self.now()
        headers = {"authorization": f"Bearer {self._key}"}
        limits = httpx.Limits(max_connections=None)
        http = httpx.AsyncClient(base_url=url, headers=headers, timeout=120, limits=limits)
        async with http, asyncio.TaskGroup() as tasks:
            for row in rows:
                await asyncio.sleep(max(0.0, began + float(row["arrival_s"]) - self.now()))
                tasks.create_task(self._ask(http, self.now(), int(row["words"])))

    async def _ask(self, http: httpx.AsyncClient, at: float, words: int) -> None:
        self._asking += 1
        first, lines, said = None, list[str](), ""
        try:
            async with http.stream("POST", "/v1/apps/desk", json={"words": words}) as answer:
                if answer.status_code != 200:
                    said = (await answer.aread()).decode()
                else:
                    async for line in answer.aiter_lines():
                        first = self.now() - at if first is None else first
                        lines.append(line)
        except httpx.HTTPError as error:
            said = repr(error)
        is_whole = len(lines) == words + 1 and lines[-1] == "end"
        self.asked.append(Asked(at, first, is_whole, "" if is_whole else said or f"cut after {len(lines)} lines"))
        self._asking -= 1

    def _say(self, text: str) -> None:
        print(f"{self.now():6.1f} s  {text}", flush=True)


async def handovers(client: AsyncClient) -> list[float]:
    """Seconds from asking for a replica until it answered, of each that came."""
    lines = (await client.story("desk")).lines
    return [float(line.args["came"]["args"]["seconds"]) for line in lines if line.code == "event.bound_after"]


def verdict(day: Day, came: list[float], learned: dict[str, float]) -> tuple[bool, str]:
    late = sum(one.first_s is None or one.first_s > SLO_S for one in day.asked)
    failed = [one for one in day.asked if not one.is_whole]
    p95 = sorted(came)[max(0, -(-95 * len(came) // 100) - 1)] if came else float("inf")
    lost, again = int(learned.get("lost", -1)), int(learned.get("repeated", -1))
    grew_back = max((held.fine_tune for held in day.held if held.at > day.asked[-1].at), default=0)
    shrank_to = min((held.fine_tune for held in day.held if held.asking), default=GPUS)
    is_right = not failed and (lost, again) == (0, 0) and p95 <= HANDOVER_S and shrank_to < GPUS == grew_back
    for one in failed[:5]:
        print(f"request at {one.at:.1f} s: {one.said}")
    return is_right, (
        f"{'right' if is_right else 'wrong'}: {len(day.asked)} requests, {len(failed)} failed or cut, {late} whose "
        f"first word came after {SLO_S:g} s; {lost} rows lost and {again} repeated of {learned.get('rows', 0):,.0f}; "
        f"{len(came)} replicas came, a GPU changed hands within {statistics.median(came or [0]):.1f} s (p50) and "
        f"{p95:.1f} s (p95)"
    )


def picture(held: list[Held]) -> str:
    """Of the GPUs that each had over time, as SVG: the fine-tune below, the replicas that answer above it."""
    wide, high, end = 900.0, 200.0, held[-1].at
    most = max(1, max(one.asking for one in held))

    def line(values: list[float], most: float) -> str:
        return " ".join(
            f"{wide * one.at / end:.1f},{high - high * v / most:.1f}" for one, v in zip(held, values, strict=True)
        )

    tune = [float(one.fine_tune) for one in held]
    both = [float(one.fine_tune + one.answering) for one in held]
    marks = "".join(
        f'<text x="{wide * at / end:.0f}" y="{high + 16:.0f}">{at} s</text>' for at in range(0, int(end), 60)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-10 -30 {wide + 60:.0f} {high + 60:.0f}" '
        'font-family="sans-serif" font-size="12">'
        f'<polygon fill="#e8a33d" points="0,{high} {line(both, GPUS)} {wide},{high}"/>'
        f'<polygon fill="#3d7ee8" points="0,{high} {line(tune, GPUS)} {wide},{high}"/>'
        f'<polyline fill="none" stroke="#222" points="{line([float(one.asking) for one in held], most)}"/>'
        f'<text x="0" y="-12">{GPUS} GPUs: <tspan fill="#3d7ee8">fine-tune</tspan>, '
        '<tspan fill="#c07c14">replicas that answer</tspan>; '
        f"line: requests in hand, at most {most}</text>{marks}</svg>\n"
    )


async def play(home: Path, picture_at: Path) -> bool:
    async with AsyncClient(home=home) as client:
        day = Day(client, key_of((home / "token").read_text().strip()))
        await day.run()
        ended = await client.status("fine-tune")
        is_right, words = verdict(day, await handovers(client), ended.metrics)
    picture_at.write_text(picture(day.held))
    print(f"{day.now():6.1f} s  the fine-tune has {ended.phase}; {picture_at} shows who had which GPUs\n{words}")
    return is_right


def _end(*_: object) -> None:
    raise SystemExit(143)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--picture", type=Path, default=Path("day.svg"))
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, _end)
    with tempfile.TemporaryDirectory(prefix="llmsched-day-") as place:  # a short path: sockets lie below it
        home = Path(place, "home")
        env = {**os.environ, "LLMSCHED_HOME": str(home)}
        up = ["up", "--fresh", "--nodes", NODES, "--config", str(HERE / "cluster.yaml")]
        try:
            subprocess.run([LLMSCHED, *up], env=env, check=True, stdout=subprocess.DEVNULL)
            return 0 if asyncio.run(play(home, given.picture)) else 1
        finally:
            subprocess.run([LLMSCHED, "down", "--purge", "--yes"], env=env, check=False, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    sys.exit(main())
