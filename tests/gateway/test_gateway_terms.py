"""On which terms keys ask: limits of a minute, who goes first where replicas are full, and what is counted of them."""

import asyncio
import hashlib
import json

import pytest
from gateway_house import Echo, House, events, until
from hypothesis import given
from hypothesis import strategies as st

from llmsched.gateway.keys import Key
from llmsched.gateway.rates import Bucket, Rates
from llmsched.gateway.refusals import Refused
from llmsched.gateway.spending import Book, Spending


def keys(**terms):
    """{name: its terms}, as the route table has them."""
    return [
        {"id": name, "sha256": hashlib.sha256(name.encode()).hexdigest(), "models": ["qwen"], "user": "ann", **more}
        for name, more in terms.items()
    ]


class Writer(Echo):
    """Says three words, and how many tokens that took."""

    usage = {"prompt_tokens": 7, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 4}}

    async def call(self, route, body, adapter):
        await super().call(route, body, adapter)
        return {"choices": [], "usage": self.usage}

    async def stream(self, route, body, adapter):
        async for piece in super().stream(route, body, adapter):
            yield {"choices": [piece]}
        if (body.get("stream_options") or {}).get("include_usage"):
            yield {"choices": [], "usage": self.usage}


def house_of(*names, writes=False, **more):
    house = House(*names, **more)
    if writes:
        for slot in house.gateway._pools["qwen"]._slots.values():
            slot.replica = house.replicas[slot.name] = Writer(slot.name)
    return house


def ask(house, key, **body):
    headers = {"Authorization": f"Bearer {key}"}
    return asyncio.create_task(house.ask(headers=headers, json={"model": "qwen", **body}))


# --- limits of a minute -----------------------------------------------------------------------------------------------


def test_a_key_asks_as_often_as_it_may_in_a_minute_and_others_are_not_concerned():
    async def main():
        now = [0.0]
        house = House("a", clock=lambda: now[0], keys=keys(app={"requests_per_minute": 2}, other={}))
        assert [(await ask(house, "app")).status_code for _ in range(2)] == [200, 200]
        refused = await ask(house, "app")
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        assert refused.headers["retry-after"] == "30"
        assert "2 requests a minute" in refused.json()["error"]["message"]
        assert (await ask(house, "other")).status_code == 200
        now[0] = 30.0
        assert [(await ask(house, "app")).status_code for _ in range(2)] == [200, 429]

    asyncio.run(main())


def test_tokens_are_counted_as_the_replica_counts_them():
    async def main():
        house = house_of("a", writes=True, keys=keys(app={"tokens_per_minute": 60}))
        answers = [await ask(house, "app", prompt="x" * 28, max_tokens=50) for _ in range(7)]
        assert [one.status_code for one in answers] == [200] * 6 + [429]  # each took 7 + 3, not 7 + 50
        assert "60 tokens a minute" in answers[-1].json()["error"]["message"]

    asyncio.run(main())


def test_one_that_is_larger_than_a_minute_waits_for_a_whole_one_and_passes():
    async def main():
        now = [0.0]
        house = house_of("a", writes=True, clock=lambda: now[0], keys=keys(app={"tokens_per_minute": 5}))
        assert (await ask(house, "app", prompt="x" * 400)).status_code == 200
        assert (await ask(house, "app", prompt="x" * 400)).status_code == 429
        now[0] = 121.0  # it took 10
        assert (await ask(house, "app", prompt="x" * 400)).status_code == 200

    asyncio.run(main())


def test_two_gateways_have_half_of_a_limit_each():
    now, key = [0.0], Key("k", "", requests_per_minute=4)
    rates = Rates(lambda: now[0])
    rates.keep_only([key], gateways=2)
    rates.admit(key, 0)
    rates.admit(key, 0)
    with pytest.raises(Refused):
        rates.admit(key, 0)
    rates.keep_only([key], gateways=1)  # the other one is gone: what was used stays used
    now[0] = 15.0
    rates.admit(key, 0)
    with pytest.raises(Refused):
        rates.admit(key, 0)


@given(st.lists(st.tuples(st.floats(0, 40), st.integers(0, 300), st.integers(0, 300)), max_size=40))
def test_over_any_time_no_more_is_taken_than_one_minute_and_the_time_give_and_what_is_owed_is_waited_for(asked):
    bucket, now, taken = Bucket(100, 0.0), 0.0, 0
    for later, thought, needed in asked:
        now += later
        if not bucket.wait_s(thought, now):
            bucket.take(thought, now)
            bucket.take(needed - thought, now)
            taken += needed
        owed_s = bucket.wait_s(0, now)
        assert taken <= 100 + now * 100 / 60 + owed_s * 100 / 60 + 1e-6
    assert bucket.wait_s(100, now + bucket.wait_s(0, now) + 60) < 1e-6


# --- who goes first where replicas are full ---------------------------------------------------------------------------


def test_where_all_are_full_a_critical_request_waits_and_the_others_are_told_so():
    async def main():
        house = House("a", max_ongoing=1, hold_s=60.0, keys=keys(crit={"priority": "critical"}, std={}))
        house["a"].hold = asyncio.Event()
        first = ask(house, "std")
        await until(lambda: house["a"].calls == 1)
        waiting = ask(house, "crit")
        await until(lambda: house.gateway.load()["qwen"]["queued"] == 1)
        refused = await ask(house, "std")
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "full")
        assert not waiting.done()
        house["a"].hold.set()
        assert [one.status_code for one in await asyncio.gather(first, waiting)] == [200, 200]

    asyncio.run(main())


@pytest.mark.parametrize("flex", [False, True])
def test_the_last_part_of_an_endpoint_is_not_for_what_can_wait(flex):
    async def main():
        house = House("a", max_ongoing=8, keys=keys(shed={} if flex else {"priority": "sheddable"}, std={}))
        house["a"].hold = asyncio.Event()
        more = {"service_tier": "flex"} if flex else {}
        held = [ask(house, "shed", **more) for _ in range(7)]
        await until(lambda: house["a"].calls == 7)
        refused = await ask(house, "shed", **more)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "full")
        assert "can wait" in refused.json()["error"]["message"]
        held.append(ask(house, "std"))
        await until(lambda: house["a"].calls == 8)
        house["a"].hold.set()
        assert {one.status_code for one in await asyncio.gather(*held)} == {200}

    asyncio.run(main())


def test_a_key_that_has_all_of_an_endpoint_lets_another_one_in():
    async def main():
        now = [0.0]
        house = House("a", max_ongoing=4, clock=lambda: now[0], keys=keys(many={}, few={}))
        gate = house["a"].hold = asyncio.Event()
        held = [ask(house, "many") for _ in range(4)]
        await until(lambda: house["a"].calls == 4)
        assert (await ask(house, "few")).status_code == 429
        held[0].cancel()
        await until(lambda: house.gateway.load()["qwen"]["ongoing"] == 3)
        refused = await ask(house, "many")
        assert (refused.status_code, "others want some too" in refused.text) == (429, True)
        held += [ask(house, "few")]
        await until(lambda: house["a"].calls == 5)
        gate.set()
        assert {one.status_code for one in await asyncio.gather(*held[1:])} == {200}

    asyncio.run(main())


def test_alone_a_key_may_have_all_of_it():
    async def main():
        now = [0.0]
        house = House("a", max_ongoing=4, clock=lambda: now[0], keys=keys(many={}, few={}))
        house["a"].hold = asyncio.Event()
        held = [ask(house, "many") for _ in range(4)]
        await until(lambda: house["a"].calls == 4)
        assert (await ask(house, "few")).status_code == 429
        now[0] = 60.0  # who was turned away has not come back
        held[0].cancel()
        await until(lambda: house.gateway.load()["qwen"]["ongoing"] == 3)
        held.append(ask(house, "many"))
        await until(lambda: house["a"].calls == 5)
        house["a"].hold.set()
        await asyncio.gather(*held[1:])

    asyncio.run(main())


# --- what is counted --------------------------------------------------------------------------------------------------


def test_the_book_has_the_replicas_counts_and_a_client_sees_usage_only_where_it_asks():
    async def main():
        house = house_of("a", writes=True, keys=keys(app={}))
        plain = events(await ask(house, "app", stream=True))
        asked = events(await ask(house, "app", stream=True, stream_options={"include_usage": True}))
        whole = await ask(house, "app")
        assert [json.loads(each)["choices"][0]["piece"] for each in plain[:3]] == ["a", "b", "c"]
        assert plain[3:] == ["[DONE]"]
        assert json.loads(asked[3])["usage"] == whole.json()["usage"] == Writer.usage
        return house.gateway.book.after(0)

    report = asyncio.run(main())
    assert [row[1:] for row in report["rows"]] == [["app", "ann", "qwen", 3, 21, 9, 12]]


def test_one_that_is_cut_off_counts_as_far_as_it_came():
    async def main():
        house = house_of("a", writes=True, keys=keys(app={}))
        house["a"].dies_after = 2
        await ask(house, "app", stream=True, messages=[{"role": "user", "content": "x" * 30}])
        assert (await ask(house, "app", model="nothing")).status_code == 404  # counts nowhere
        return house.gateway.book.after(0)["rows"]

    assert [row[4:] for row in asyncio.run(main())] == [[1, 9, 2, 0]]


def test_whoever_reads_the_book_reads_each_change_and_days_that_are_over_go():
    now = [0.0]
    book, rates = Book("g", lambda: now[0]), Rates(lambda: now[0])

    def one(key, told):
        spending = Spending(book, rates, Key(key, "", user="ann"), "m", 5, 5)
        spending.told(told)
        spending.end()
        spending.end()

    one("k", {"prompt_tokens": 1, "completion_tokens": 2})
    one("l", {"prompt_tokens": "many"})
    first = book.after(0)
    assert first["rows"] == [[0, "k", "ann", "m", 1, 1, 2, 0], [0, "l", "ann", "m", 1, 0, 0, 0]]
    assert book.after(first["version"])["rows"] == []
    one("k", {"prompt_tokens": 1, "completion_tokens": 2})
    assert book.after(first["version"])["rows"] == [[0, "k", "ann", "m", 2, 2, 4, 0]]
    now[0] = 3 * 86_400.0
    assert book.after(0)["rows"] == []
