"""Deployments of one application that are members of the replica's gang: their processes, reached over TCP, and copies
of them. The members are made here in the place of Ray's actors; `test_bridge_on_ray.py` has them on two nodes."""

import asyncio
import contextlib
import json
import re
import sys

import psutil
import pytest
from app_requests import ask
from ray import serve

from llmsched.runtime import serve_door
from llmsched.runtime.environment import UserError
from llmsched.runtime.exceptions import WorkError
from llmsched.runtime.in_hand import LOST
from llmsched.runtime.serve_member import Member
from workloads.inference.replica import Replica

# Serve's own: the destructor of an ingress is a coroutine, which the collector of garbage cannot await.
pytestmark = pytest.mark.filterwarnings("ignore:coroutine .*__del__. was never awaited")

APP = """
import asyncio
import os
import signal

from ray import serve
from starlette.requests import Request


class Odd(Exception):
    def __init__(self, a, b):
        super().__init__(f"{a} {b}")


@serve.deployment
class Free:
    def add(self, number):
        return number + 1


@serve.deployment(ray_actor_options={"num_gpus": 1}, user_config={"plus": 10})
class Large:
    def __init__(self, free, notes=""):
        self.free, self.notes = free, notes
        print("weights are read with", os.environ["TOKEN"])
        if os.environ.get("LARGE_FAILS"):
            raise ValueError("no weights")

    def reconfigure(self, config):
        self.plus = config["plus"]

    def where(self):
        context = serve.get_replica_context()
        here = os.environ["CUDA_VISIBLE_DEVICES"], context.rank.rank, context.world_size
        return [os.getpid(), *here, open(self.notes).read()]

    async def through(self, handle, number):
        own = await self.free.add.remote(number)
        return self.plus + await handle.add.remote(own)

    def add(self, number):
        return number + self.plus

    async def count(self, to):
        for number in range(to):
            yield number

    async def hold(self):
        try:
            print("holds", flush=True)
            await asyncio.sleep(600)
        finally:
            print("was let go", flush=True)

    @serve.multiplexed(max_num_models_per_replica=2)
    async def loaded(self, name):
        return name.upper()

    async def model(self):
        import ray

        return [await self.loaded(serve.get_multiplexed_model_id()), os.getpid(), ray.is_initialized()]

    def raises(self, what):
        raise (Odd("not", "so") if what == "odd" else LookupError("not there"))

    def end(self):
        os.kill(os.getpid(), signal.SIGKILL)


@serve.deployment
class Desk:
    def __init__(self, large, free):
        self.large, self.free = large, free

    async def __call__(self, request: Request):
        what, _, which = request.url.path.rpartition("/")[2].partition("-")
        large = self.large
        match what:
            case "where":
                both = [large.where.remote() for _ in range(4)]
                return [os.getpid(), *[await one for one in both]]
            case "handles":
                return await large.through.remote(self.free, large.add.remote(self.free.add.remote(0)))
            case "stream":
                return [one async for one in large.options(stream=True).count.remote(3)]
            case "cancel":
                held = large.hold.remote()
                await asyncio.sleep(0.2)
                held.cancel()
                try:
                    await held
                except Exception as error:
                    return type(error).__name__
            case "model":
                mine = large.options(multiplexed_model_id=which)
                return [await mine.model.remote() for _ in range(4)]
            case "all":
                return await large.broadcast("where").results_async()
        try:
            await (large.end.remote() if what == "end" else large.raises.remote(which))
        except Exception as error:
            return f"{type(error).__name__}: {error}"


free = Free.bind()
app = Desk.bind(Large.bind(free), free)


def build(args):
    return Desk.bind(Large.bind(free, args["notes"]), free)


class Alone:
    def __call__(self, body):
        return body
"""
CANARY = "canary-of-a-secret"


class Gang:
    """The members that a replica asks for, in this process."""

    def __init__(self, tmp_path, copies=1, gpus=1.0, app="app_placed:app", group="Large", args=None, **envs):
        first = {"rank": 0, "group": "workers", "cpus": 1, "gpus": 0.0, "memory_bytes": 0, "custom": {}}
        rest = [{**first, "rank": rank + 1, "group": group, "gpus": gpus} for rank in range(copies)]
        spec = {"serve": {"app": app, "args": args or {}}, "max_ongoing_requests": 8, "secrets": ["TOKEN"]}
        self.storage = tmp_path
        self.order = {
            "gang": "x/0",
            "attempt": 1,
            "members": [first, *rest],
            "spec": spec,
            "storage": f"file://{tmp_path}",
            "envs": {"TOKEN": CANARY, **envs},
            "inputs": {"run://prepare": f"file://{tmp_path}/notes.txt"},
            "workdir": None,
        }
        self.key, self.members = serve_door.new_key(), []

    def open(self, rank):
        around = {"CUDA_VISIBLE_DEVICES": str(rank + 4)}
        member = Member(json.dumps(self.order), rank, self.key, "127.0.0.1", around)
        self.members.append(member)
        opened = member.open()
        assert not opened.refused
        return serve_door.reach(opened.address, self.key), member

    def replica(self):
        return Replica({**self.order, "envs": {}}, self.open)

    def log(self, rank):
        return (self.storage / f"x/0/1/logs/{rank}.log").read_text()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("placed")
    (folder / "app_placed.py").write_text(APP)
    (folder / "notes.txt").write_text("of the run before")
    with pytest.MonkeyPatch.context() as patched:
        for name in ("run", "get_app_handle", "delete"):
            patched.setattr(serve, name, getattr(serve, name))
        patched.syspath_prepend(str(folder))
        yield folder
    sys.modules.pop("app_placed", None)


async def said(replica, path):
    return (await ask(replica, path=path)).body.decode()


def test_copies_of_a_deployment_at_members_of_their_own_answer_as_one_in_the_replica_does(folder):
    gang = Gang(folder, copies=2, app="app_placed:build", args={"notes": "run://prepare"})
    before = psutil.Process().children(recursive=True)

    async def story(replica):
        pid, *asked = (await ask(replica, path="/where")).json()
        expected = [("5", 0, 2, "of the run before"), ("6", 1, 2, "of the run before")]
        assert sorted({tuple(one[1:]) for one in asked}) == expected  # each had some of four calls
        assert len({pid, *(one[0] for one in asked)}) == 3
        # 0 + 1, + 10, + 1 by the handle it was made with, + 1 by the one it is given, + 10
        assert await said(replica, "/handles") == "23"
        assert await said(replica, "/stream") == "[0,1,2]"
        assert await said(replica, "/cancel") == "RequestCancelledError"
        assert await said(replica, "/raises-known") == "LookupError: not there"
        assert (await said(replica, "/raises-odd")).startswith("WorkError: Odd: not so")  # nobody can make it again
        for model in "abc":
            answers = (await ask(replica, path=f"/model-{model}")).json()
            assert len({one[1] for one in answers}) == 1, "a model is loaded by one copy"
            assert answers[0][::2] == [model.upper(), False]
        assert sorted(one[1] for one in (await ask(replica, path="/all")).json()) == ["5", "6"]
        await replica.check_health()
        gone = r"the process of deployment Large \(copy [01] of 2\) was ended by SIGKILL"
        assert re.fullmatch(f"WorkError: {gone}", await said(replica, "/end"))
        with pytest.raises(Exception, match=gone):
            await replica.check_health()
        # The one that is gone has nothing in hand, and would be given every call until the replica is made anew.
        assert len({one[0] for one in (await ask(replica, path="/where")).json()[1:]}) == 1
        assert re.fullmatch(f"WorkError: {gone}", await said(replica, "/end"))
        answer = await ask(replica, path="/where")
        assert (answer["status"], answer["error"]["code"]) == (503, LOST)

    with contextlib.closing(gang.replica()) as replica:
        asyncio.run(story(replica))
    assert psutil.Process().children(recursive=True) == before
    both = gang.log(1) + gang.log(2)
    assert sorted(both.splitlines()) == ["holds", "was let go", *["weights are read with ***"] * 2]
    assert gang.key.hex() not in both and repr(gang.key) not in both


def test_a_constructor_that_fails_at_a_member_says_where_and_leaves_nothing(folder):
    before = psutil.Process().children(recursive=True)
    with pytest.raises(WorkError, match=r"^ValueError: no weights \(app_placed.py:\d+, in __init__\)$"):
        Gang(folder, LARGE_FAILS="1").replica()
    assert psutil.Process().children(recursive=True) == before


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"group": "Larg"}, r"serve.deployments names Larg, which is not in the application, .*Did you mean Large\?"),
        ({"group": "Desk"}, "names Desk, which is the ingress: what it gets is resources of the spec"),
        ({"gpus": 0.5}, r'deployments.Large: .*asks for num_gpus=1 and gets 0.5: write accelerators: "TYPE:1" there'),
        ({"app": "app_placed:Alone"}, "is of a bound application of several deployments"),
        ({"app": "app_placed:free"}, "whose only deployment is Free"),
    ],
)
def test_what_of_the_spec_does_not_fit_the_application_is_refused_by_name(folder, given, words):
    gang = Gang(folder, **given)
    with pytest.raises(UserError, match=words):
        gang.replica()
    assert not gang.members
