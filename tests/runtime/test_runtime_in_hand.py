"""A replica's requests count until their work has ended; one that is full of what does not end says so."""

import asyncio
import json
import threading

from app_requests import ask
from waiting import PATIENCE_S

from llmsched import sanitize
from llmsched.runtime import in_hand, progress
from llmsched.runtime.replica import ReplicaHost

DESK = """
import asyncio, threading, time

class Desk:
    stuck = threading.Event()
    sick = ""

    def __call__(self, body):
        if body.get("hang"):
            Desk.stuck.wait()
        return {"ok": True}

    async def check_health(self):
        if Desk.sick:
            raise RuntimeError(Desk.sick)
"""


def host(tmp_path, monkeypatch, limit=2):
    (tmp_path / "desks.py").write_text(DESK)
    monkeypatch.syspath_prepend(tmp_path)
    spec = {"name": "x", "kind": "serve", "serve": {"app": "desks:Desk"}, "max_ongoing_requests": limit}
    order = {"gang": "x/0", "attempt": 1, "envs": {}, "members": [{"rank": 0, "cpus": 1.0}], "spec": spec}
    return ReplicaHost(json.dumps(order))


async def until(condition):
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


def test_calls_that_block_are_in_hand_until_they_end_and_the_replica_says_that_it_is_stuck(tmp_path, monkeypatch):
    async def story():
        replica = host(tmp_path, monkeypatch)
        import desks

        now = [0.0]
        replica._in_hand._clock = lambda: now[0]
        calls = [asyncio.create_task(ask(replica, f"r{n}", body={"hang": 1})) for n in range(2)]
        await until(lambda: len(replica._in_hand) == 2)
        for n in range(2):
            await replica.cancel(f"r{n}")
        full = await ask(replica, "another", body={})
        assert (full["status"], full["error"]["code"]) == (429, "full")
        assert (await replica.health()) == {"trouble": "", "in_hand": 2, "abandoned": 0, "numbers": {}}
        now[0] = in_hand.STUCK_AFTER_S
        assert (await replica.health()) == {
            "trouble": "all 2 requests that it may have in hand were given up by their clients and do not end",
            "in_hand": 2,
            "abandoned": 2,
            "numbers": {},
        }
        desks.Desk.stuck.set()
        assert {answer["status"] for answer in await asyncio.gather(*calls)} == {499}
        assert (await replica.health()) == {"trouble": "", "in_hand": 0, "abandoned": 0, "numbers": {}}
        assert (await ask(replica, "late", body={})).json() == {"ok": True}

    asyncio.run(story())


def test_an_apps_own_health_check_counts_also_an_async_one_and_serve_hears_of_it_only_while_nobody_asks(
    tmp_path, monkeypatch
):
    async def story():
        replica = host(tmp_path, monkeypatch)
        import desks

        monkeypatch.setattr(desks.Desk, "sick", "device lost")
        assert (await replica.health())["trouble"].startswith("its health check failed: RuntimeError: device lost")
        await replica.check_health()
        replica._asked_at -= 61
        try:
            await replica.check_health()
        except RuntimeError as told:
            assert "device lost" in str(told)
        else:
            raise AssertionError("Serve was not told")

    asyncio.run(story())


def test_what_an_app_reports_is_in_its_replicas_health_the_newest_of_each_name(tmp_path, monkeypatch):
    async def story():
        replica = host(tmp_path, monkeypatch)
        progress.report(alerts=1, key="bad news")
        progress.report(alerts=0)
        assert (await replica.health())["numbers"] == {"alerts": 0, "key": "bad news"}
        for number in range(5000):
            progress.report(**{f"name {number}": number})
        assert len((await replica.health())["numbers"]) == sanitize.ITEMS_AT_MOST

    asyncio.run(story())


def test_a_request_that_is_cancelled_before_it_comes_does_not_begin():
    async def story():
        requests = in_hand.InHand(1)
        requests.cancel("early")
        try:
            with requests.request("early"):
                raise AssertionError("it began")
        except in_hand.Refused as refused:
            assert refused.answer["status"] == 499
        with requests.request("early"):
            assert len(requests) == 1
        for n in range(in_hand.EARLY_KEPT + 5):
            requests.cancel(str(n))
        assert len(requests._early) == in_hand.EARLY_KEPT

    asyncio.run(story())


def test_as_many_plain_calls_run_side_by_side_as_a_replica_may_have_in_hand(tmp_path, monkeypatch):
    async def story():
        replica = host(tmp_path, monkeypatch, limit=12)
        together = threading.Barrier(12)
        replica._replica._server._application._app = lambda body: together.wait(PATIENCE_S)
        answers = await asyncio.gather(*(ask(replica, str(n), body={}) for n in range(12)))
        assert sorted(answer.json() for answer in answers) == list(range(12))

    asyncio.run(story())
