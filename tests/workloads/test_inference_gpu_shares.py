"""Deployments of one application with GPUs of their own: who sees which, and what they say to each other."""

import asyncio
import contextlib
import sys

import psutil
import pytest
from app_requests import ask

from llmsched.runtime.exceptions import WorkError
from workloads.inference.gpu_shares import environments, places
from workloads.inference.replica import Replica

# Serve's own: the destructor of an ingress is a coroutine, which the collector of garbage cannot await.
pytestmark = pytest.mark.filterwarnings("ignore:coroutine .*__del__. was never awaited")

APP = """
import os
import signal

from ray import serve
from starlette.requests import Request

ONE, HALF = {"num_gpus": 1}, {"num_gpus": 0.5}


class Odd(Exception):
    def __init__(self, a, b):
        super().__init__(f"{a} {b}")


@serve.deployment
class Free:
    def where(self):
        return [os.getpid(), os.environ["CUDA_VISIBLE_DEVICES"]]

    def add(self, number):
        return number + 1


@serve.deployment(ray_actor_options=ONE, user_config={"plus": 10})
class Large:
    def __init__(self, free):
        self.free = free
        if os.environ.get("LARGE_FAILS"):
            raise ValueError("no weights")

    def reconfigure(self, config):
        self.plus = config["plus"]

    def where(self):
        return [os.getpid(), os.environ["CUDA_VISIBLE_DEVICES"]]

    async def through(self, handle, number):
        own = await self.free.add.remote(number)
        return self.plus + await handle.add.remote(own)

    def add(self, number):
        return number + self.plus

    async def count(self, to):
        for number in range(to):
            yield number

    @serve.batch(max_batch_size=2, batch_wait_timeout_s=5)
    async def together(self, numbers):
        return [len(numbers)] * len(numbers)

    def model(self):
        return serve.get_multiplexed_model_id()

    def raises(self, what):
        raise (Odd("not", "so") if what == "odd" else LookupError("not there"))

    def end(self):
        os.kill(os.getpid(), signal.SIGKILL)


@serve.deployment(ray_actor_options=ONE)
class Desk:
    def __init__(self, large, free):
        self.large, self.free = large, free

    async def __call__(self, request: Request):
        what, _, which = request.url.path.rpartition("/")[2].partition("-")
        large = self.large
        match what:
            case "where":
                mine = [os.getpid(), os.environ["CUDA_VISIBLE_DEVICES"]]
                return [mine, await self.free.where.remote(), await large.where.remote()]
            case "handles":
                return await large.through.remote(self.free, large.add.remote(self.free.add.remote(0)))
            case "stream":
                return [one async for one in large.options(stream=True).count.remote(3)]
            case "batch":
                one, other = large.together.remote(1), large.together.remote(2)
                return [await one, await other]
            case "model":
                return await large.options(multiplexed_model_id="seven").model.remote()
        try:
            await (large.end.remote() if what == "end" else large.raises.remote(which))
        except Exception as error:
            return f"{type(error).__name__}: {error}"


free = Free.bind()
app = Desk.bind(Large.bind(free), free)
"""
SPEC = {"serve": {"app": "app_with_gpus:app"}, "max_ongoing_requests": 8}
ORDER = {"gang": "x/0", "attempt": 1, "members": [{"cpus": 1, "gpus": 2.0}], "spec": SPEC}


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "app_with_gpus.py").write_text(APP)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    yield
    del sys.modules["app_with_gpus"]


@pytest.fixture
def replica(module):
    with contextlib.closing(Replica(ORDER)) as made:
        yield made


def test_each_deployment_sees_its_own_gpu_and_handles_lead_through_all_of_them(replica):
    async def story():
        async def said(path):
            return (await ask(replica, path=path)).body.decode()

        desk, free, large = (await ask(replica, path="/where")).json()
        assert [desk[1], free, large[1]] == ["3", desk, "5"] and large[0] != desk[0]
        # 0 + 1, + 10, + 1 by the handle it was made with, + 1 by the one it is given, + 10
        assert await said("/handles") == "23"
        assert await said("/stream") == "[0,1,2]"
        assert await said("/batch") == "[2,2]"
        assert await said("/model") == "seven"
        assert await said("/raises-known") == "LookupError: not there"
        assert (await said("/raises-odd")).startswith("WorkError: Odd: not so")  # nobody can make it again
        await replica.check_health()
        gone = "the process of deployment Large was ended by SIGKILL"
        assert await said("/end") == f"WorkError: {gone}"
        with pytest.raises(Exception, match=gone):
            await replica.check_health()

    asyncio.run(story())


def test_a_constructor_that_fails_in_a_process_of_its_own_says_where_and_leaves_nothing(module, monkeypatch):
    monkeypatch.setenv("LARGE_FAILS", "1")
    before = psutil.Process().children(recursive=True)
    with pytest.raises(WorkError, match=r"^ValueError: no weights \(app_with_gpus.py:\d+, in __init__\)$"):
        Replica(ORDER)
    assert psutil.Process().children(recursive=True) == before


@pytest.mark.parametrize(
    ("asked", "has", "seen"),
    [
        ({"a": 1, "b": 1}, 2, {"a": (0,), "b": (1,)}),
        ({"a": 2, "b": 0.5, "c": 0.5}, 3, {"a": (0, 1), "b": (2,), "c": (2,)}),
        ({"a": 0.5, "b": 1, "c": 0.5}, 2, {"a": (0,), "b": (1,), "c": (0,)}),
        ({"a": 1 / 3, "b": 1 / 3, "c": 1 / 3}, 2, {"a": (0,), "b": (0,), "c": (0,)}),
        ({"a": 1}, 2, {}),  # nobody else is to be kept away from the second
        ({"a": 0.5, "b": 0.5}, 1, {}),
    ],
)
def test_gpus_are_divided_in_the_order_of_those_who_ask(asked, has, seen):
    assert places(asked, has) == seen


def test_who_shares_with_the_first_stays_in_its_process():
    environment = {"CUDA_VISIBLE_DEVICES": "4,6"}
    own, apart = environments({"a": 0.5, "b": 1, "c": 0.5}, 2, environment)
    assert (own, apart) == ({"CUDA_VISIBLE_DEVICES": "4"}, {"b": {"CUDA_VISIBLE_DEVICES": "6"}})
    assert environments({"a": 0.5, "b": 0.5}, 2, environment) == ({}, {})
    amd = {"HIP_VISIBLE_DEVICES": "1,2"}
    assert environments({"a": 1, "b": 1}, 2, amd)[1] == {"b": {"HIP_VISIBLE_DEVICES": "2"}}


def test_more_than_one_gpu_is_a_whole_number():
    with pytest.raises(ValueError, match="deployment b asks for 1.5 GPUs: write a whole number, or less than one"):
        places({"a": 1, "b": 1.5}, 3)
