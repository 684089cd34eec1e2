"""Whatever others call their work, their users and their secrets: an outsider is answered the same.

Each world is played twice, on one clock, with the same story under two sets of names: words that nobody would use by
chance, and words that our own sentences use. All answers that an outsider gets must be equal, and must have none of the
planted words. What is not told depends on no list of sentences then, and on no way of finding names in them.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from waiting import PATIENCE_S

from llmsched.api import app, auth, home
from llmsched.control.clock import ManualClock
from llmsched.control.controller import Controller
from llmsched.control.vault import SHARED, Vault
from llmsched.executors.fake import FakeCluster, FakeExecutor, NodeKind, Script
from llmsched.store.memory import MemoryStore

EVE, SAM, AUDITOR, OPERATOR = "eve", "sam", "audit", "root"
SHOWN = "shown"  # the queue whose work she sees, and Sam submits to
PLANTED = {
    word: f"zq{number}{word[::-1]}"
    for number, word in enumerate(("ann", "cleo", "work", "model", "key", "app", "boss"))
}
OURS = {
    "ann": "ends",
    "cleo": "somebody",
    "work": "waits",
    "model": "first",
    "key": "when",
    "app": "workload",
    "boss": "operator",
}
HIDDEN = 8  # workloads of others

Ask = Callable[..., Awaitable[httpx.Response]]


class World:
    """One controller, asked without a network, whose clock stands still but for `pass_time`."""

    def __init__(self, controller: Controller, clock: ManualClock, tokens: dict[str, str], url: httpx.AsyncClient):
        self.controller, self.clock, self._tokens, self._client = controller, clock, tokens, url

    async def ask(self, who: str, method: str, path: str, **more: Any) -> httpx.Response:
        headers = {"authorization": f"Bearer {self._tokens[who]}"} | more.pop("headers", {})
        path = path if path.startswith("/api/") else f"/api/v1{path}"
        answer = await self._client.request(method, path, headers=headers, **more)
        assert answer.status_code < 500, answer.text
        return answer

    async def apply(self, who: str, *specs: dict[str, Any]) -> httpx.Response:
        answer = await self.ask(who, "POST", "/apply", json={"specs": list(specs)})
        await self.pass_time(2.0)
        return answer

    async def pass_time(self, seconds: float) -> None:
        await self.clock.advance(seconds, settle=60)


@asynccontextmanager
async def world(folder: Path, users: list[str], config: dict[str, Any]) -> AsyncIterator[World]:
    folder.mkdir()
    clock, store = ManualClock(), MemoryStore()
    records = {}
    for number, user in enumerate([*users, EVE, AUDITOR, OPERATOR]):
        text, record = home.new_token(user, role_of(user), None)
        records[user] = text, replace(record, id=f"{number:08x}")  # by which refusals call one's own token
    cluster = FakeCluster([NodeKind(4, "A100")] * 3, clock=clock, script=how_it_goes)
    vault = Vault(store, folder / "key", clock.now)
    controller = Controller(store, FakeExecutor(cluster=cluster), clock, storage="/storage", vault=vault)
    running = asyncio.create_task(controller.run())
    answers = app.build(controller, auth.Tokens(records=[record for _, record in records.values()]))
    tokens = {user: text for user, (text, _) in records.items()}
    try:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(answers), base_url="http://127.0.0.1") as client:
            made = World(controller, clock, tokens, client)
            await made.pass_time(5.0)
            assert len(controller.state.nodes) == 3
            answer = await made.ask(OPERATOR, "PUT", "/config", json={"config": config})
            assert answer.status_code == 200, answer.text
            yield made
    finally:
        await controller.stop(stop_everything=True)
        await asyncio.wait_for(running, PATIENCE_S)


def key_of(names: dict[str, str]) -> str:
    return names["key"].upper().replace("-", "_")


def role_of(user: str) -> str:
    return {AUDITOR: "auditor", OPERATOR: "operator"}.get(user, "submitter")


def how_it_goes(order: Any) -> Script:
    """By what the order asks for, never by how it is called."""
    if order.kind == "serve":
        return Script(runs_for_s=None)
    return Script(runs_for_s=25.0 if order.kind == "train" else 90.0, outcome="succeeded")


RULES: list[dict[str, Any]] = [
    {"backfill": "conservative", "preemption": {"within_queue": "lower_priority", "reclaim": "any"}},
    {"backfill": "easy", "preemption": {"within_queue": "lower_or_newer_equal_priority"}},
    {"order": "strict_fifo", "consolidation": True},
    {"preemption": {"within_queue": "by_rank"}, "quantum": "20s"},
]


def config_of(names: dict[str, str], seed: int) -> dict[str, Any]:
    """Every other world has a reservation and quotas. In all of them the outsider sees one queue of work of Sam's."""
    roles = {"submitter": ["*"], "admin": [names["cleo"]]}
    config: dict[str, Any] = {
        "queues": [{"name": name, "roles": roles, "cohort": "all"} for name in ("lab", "side")],
        "cohorts": [{"name": "all"}],
        "scheduling": RULES[seed % len(RULES)],
        "limits": {"requests_per_s": 1000, "requests_burst": 10000},
    }
    shown = {"name": SHOWN, "roles": {"submitter": [SAM], "viewer": [EVE], "admin": [names["cleo"]]}, "cohort": "all"}
    config["queues"].append(shown)
    if seed % 2 == 0:
        window = {"name": "window", "start": "1970-01-12T15:00Z", "duration": "1h", "accelerators": "A100:4"}
        config["reservations"] = [window | {"users": [names["ann"]]}]
        for queue, own in zip(config["queues"], (8, 4, 0), strict=True):
            queue["quota"] = {"A100": {"nominal": own}}
    return config


def some_work(chance: random.Random, user: str, name: str, names: dict[str, str]) -> dict[str, Any]:
    gpus = chance.choice([1, 2, 4, 4])
    spec: dict[str, Any] = {
        "name": name,
        "queue": SHOWN if user == SAM else chance.choice(["lab", "lab", "side"]),
        "priority": chance.choice([10, 50, 90]),
        "resources": {"accelerators": [f"A100:{gpus}"]},
    }
    limit, kind = chance.choice(["10m", "1h", "3h", None]), chance.choice(["task", "task", "train", "elastic", "serve"])
    if limit and kind != "serve":
        spec["max_runtime"] = limit
    if kind == "task":
        return spec | {"kind": "task", "task": {"run": ["true"]}, "workers": chance.choice([1, 1, 2])}
    if kind == "serve":
        return spec | {"kind": "serve", "serve": {"model": {"source": f"/models/{names['model']}"}}}
    spec |= {"kind": "train", "train": {"loop": "mine.train:loop"}}
    spec["publish"] = {"to": names["app"]}
    if kind == "elastic":
        spec["workers"] = {"min": 1, "max": 4}
    return spec


async def play(folder: Path, seed: int, names: dict[str, str]) -> dict[str, str]:
    """The story of one world, and all that the outsider is answered in it."""
    chance = random.Random(seed)
    ann, cleo = names["ann"], names["cleo"]
    said: dict[str, str] = {}
    async with world(folder, [ann, cleo, SAM], config_of(names, seed)) as it:
        await it.controller.vault.put(ann, key_of(names), "long enough a value", ann)  # type: ignore[union-attr]
        await it.controller.vault.put(SHARED, "FOR_ALL", "long enough a value", names["boss"])  # type: ignore[union-attr]
        hidden = [f"{names['work']}-{number}" for number in range(HIDDEN)] + [names["work"]]
        mine = [f"mine-{number}" for number in range(4)]
        chat = {"name": names["app"], "kind": "serve", "queue": "side", "serve": {"model": {"source": "/models/tiny"}}}
        assert (await it.apply(ann, chat)).status_code == 200
        sams = [f"shown-{number}" for number in range(2)]
        order = [(user, name) for user, its in ((ann, hidden), (EVE, mine), (SAM, sams)) for name in its]
        chance.shuffle(order)
        for number, (user, name) in enumerate(order):
            spec = some_work(chance, user, name, names if user == ann else {"model": "tiny", "app": "desk"})
            if user == EVE:
                asked = await it.ask(EVE, "POST", "/plan", json={"specs": [spec]})
                said[f"plan {number}"] = asked.text
            answer = await it.apply(user, spec)
            assert answer.status_code == 200, answer.text
            await it.pass_time(chance.choice([1.0, 7.0, 30.0]))
            if user == EVE or chance.random() < 0.3:
                said |= await everything(it, [*mine, *sams], f"{number} ")
        for other, nothing in ((hidden[0], "nothing-0"), (names["work"], "nothing")):
            said |= await same_as_nothing(it, other, nothing)
        assert await reading_of(it, names["work"]) == await reading_of(it, "nothing-read")
        assert await secret_of(it, key_of(names)) == await secret_of(it, "NO_SUCH_KEY")
        assert await published_to(it, names["app"], "gift-1") == await published_to(it, "nothing", "gift-2")
        full = (await it.ask(AUDITOR, "GET", "/events", params={"follow": False})).text
        assert full.count(names["work"]) > HIDDEN and "another's" not in full
    return said


async def everything(it: World, mine: list[str], when: str) -> dict[str, str]:
    """Each GET of the API, of the outsider's own work and of what is for all."""
    said = {}
    for route in app.guarded_routes():
        if "GET" not in getattr(route, "methods", ()) or "sha256" in route.path or "package" in route.path:
            continue
        path = route.path_format.removeprefix("/api/v1")
        for name in mine if "{" in path else [""]:
            params = {"follow": False} if path == "/events" else {}
            answer = await it.ask(EVE, "GET", path.format(name=name, submission_id=name, part=""), params=params)
            said[f"{when}{path} {name}"] = answer.text
    return said


async def same_as_nothing(it: World, other: str, nothing: str) -> dict[str, str]:
    """What is there and may not be seen is answered for as what is not there: wherever a name may be given."""

    async def asked(name: str) -> list[str]:
        told = []
        for path in ("", "/why", "/story", "/diagnose", "/logs"):
            told.append((await it.ask(EVE, "GET", f"/workloads/{name}{path}")).text)
        for method, path in (("GET", ""), ("GET", "/logs"), ("POST", "/stop"), ("DELETE", "")):
            told.append((await it.ask(EVE, method, f"/api/jobs/{name}{path}")).text)
        for path, body in (("/cancel", {}), ("/scale", {"size": 1}), ("/exec", {"command": ["true"]})):
            told.append((await it.ask(EVE, "POST", f"/workloads/{name}{path}", json=body)).text)
        told.append((await it.ask(EVE, "GET", "/models", params={"name": name})).text)
        for spec in naming(name):
            for verb in ("plan", "apply"):
                told.append((await it.ask(EVE, "POST", f"/{verb}", json={"specs": [spec]})).text)
        return [re.sub(rf"\b{name}(?=@|\b)", "NAME", text) for text in told]

    answers = await asked(other)
    assert answers == await asked(nothing)
    return {f"nothing {number}": text for number, text in enumerate(answers)}


async def secret_of(it: World, name: str) -> str:
    """What is told to whom has no secret of that name, whoever else may have one."""
    spec = {"name": "keyed", "kind": "task", "queue": "lab", "task": {"run": ["true"]}, "secrets": [name]}
    answer = await it.ask(EVE, "POST", "/apply", json={"specs": [spec]})
    assert answer.json()["code"] == "missing_secret"
    return answer.text.replace(name, "KEY")


async def reading_of(it: World, name: str) -> tuple[str, str]:
    """What is told of work that reads a result in a variable, which is looked for when it is launched."""
    spec = {"name": f"of-{name}", "kind": "task", "queue": "lab", "task": {"run": ["true"]}, "resources": {"cpus": 1}}
    more = {"envs": {"MODEL": f"run://{name}"}, "retry": {"on_events": []}, "priority": 99}
    assert (await it.apply(EVE, spec | more)).status_code == 200
    await it.pass_time(60.0)
    found = (await it.ask(EVE, "GET", f"/workloads/of-{name}")).json()
    assert found["phase"] == "failed", found
    return found["phase"], found["message"].replace(f"run://{name}", "run://NAME")


async def published_to(it: World, name: str, gift: str) -> list[str]:
    """What is told of a result that was made for an endpoint, which is another's or nobody's."""
    spec = {"name": gift, "kind": "train", "train": {"loop": "mine.train:loop"}, "priority": 99, "queue": "lab"}
    spec["publish"] = {"to": name, "name": "spare"}
    planned = (await it.ask(EVE, "POST", "/plan", json={"specs": [spec]})).json()["planned"][0]
    assert (await it.apply(EVE, spec)).status_code == 200
    await it.pass_time(60.0)
    found = (await it.ask(EVE, "GET", f"/workloads/{gift}")).json()
    assert found["phase"] == "succeeded", found
    story = (await it.ask(EVE, "GET", f"/workloads/{gift}/story")).json()
    published = (await it.ask(EVE, "GET", "/models", params={"name": gift})).json()["models"][0]["published"]
    told = [found["message"], *planned["warnings"], *(line["text"] for line in story["lines"]), repr(published)]
    return [re.sub(r"node-\d", "NODE", text.replace(f'"{name}"', '"NAME"')) for text in told]


def naming(name: str) -> list[dict[str, Any]]:
    """Specs that name other work, refused for it or for a secret that is not set."""
    read = {"kind": "task", "task": {"run": ["true"]}, "resources": {"cpus": 1}, "queue": "lab"}
    data = [{"path": "/data/a.jsonl"}]
    specs: list[dict[str, Any]] = []
    for number, (kind, scheme) in enumerate((k, s) for k in ("train", "serve") for s in ("run", "model")):
        source = f"{scheme}://{name}"
        section = {"train": {"base_model": source, "datasets": data}} if kind == "train" else None
        section = section or {"serve": {"model": {"source": source}}}
        specs.append({"name": f"reads-{number}", "kind": kind, "queue": "lab", **section})
    adapters = {"model": {"source": "/models/tiny"}, "adapters": [{"name": "one", "source": f"run://{name}"}]}
    return [
        *specs,
        {"name": "reads-adapter", "kind": "serve", "queue": "lab", "serve": adapters},
        {"name": "reads-after", "after": [name], **read},
        {"name": "reads-run", "after": [f"{name}@1"], **read},
        {"name": "reads-version", "kind": "serve", "queue": "lab",
         "serve": {"model": {"source": f"model://{name}@1"}}, "secrets": ["NOT_SET"]},
        {"name": "reads-both", "after": [name], "secrets": ["NOT_SET"], **read},
        {"name": "reads-publish", "kind": "train", "queue": "lab", "publish": {"to": name},
         "train": {"loop": "mine.train:loop"}, "secrets": ["NOT_SET"]},
        {"name": "reads-name", "kind": "train", "queue": "lab", "publish": {"to": name, "name": "spare"},
         "train": {"loop": "mine.train:loop"}, "secrets": ["NOT_SET"]},
    ]  # fmt: skip


@pytest.mark.parametrize("seed", range(6))
def test_an_outsider_is_answered_the_same_whatever_others_call_things(tmp_path: Path, seed: int) -> None:
    planted = asyncio.run(play(tmp_path / "planted", seed, PLANTED))
    ours = asyncio.run(play(tmp_path / "ours", seed, OURS))
    for what, text in planted.items():
        for word in (*PLANTED.values(), key_of(PLANTED)):
            assert word not in text, what
    assert planted.keys() == ours.keys()
    for what, text in planted.items():
        assert text == ours[what], what
    assert any("another's workload" in text for text in planted.values())
