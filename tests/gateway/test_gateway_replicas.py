"""Which replica the gateway asks, how many requests it lets to each, and what becomes of the lost and the late."""

import asyncio
import json

import pytest
from gateway_house import AUTH, Echo, House, events, until


def test_goes_to_another_replica_when_the_first_is_gone_and_avoids_it_for_a_while():
    async def main():
        now = [0.0]
        house = House("a", "b", clock=lambda: now[0], routing="round-robin")
        house["a"].dead = True
        for stream in (False, True):
            assert (await house.chat(stream=stream)).status_code == 200
        assert (house["a"].calls, house["b"].calls) == (1, 2)  # asked once, then avoided

        house["a"].dead = False
        now[0] = 2.5  # the first time out is over
        for _ in range(2):
            await house.chat()
        assert house["a"].calls == 2
        assert house.gateway.load()["qwen"]["ongoing"] == 0

    asyncio.run(main())


def test_a_replica_lost_in_mid_stream_ends_the_stream_with_an_error_and_no_done():
    async def main():
        house = House("a", "b", routing="round-robin")
        house["a"].dies_after = 2
        said = events(await house.chat(stream=True))
        assert [json.loads(event).get("piece") for event in said[:2]] == ["a", "b"]
        assert json.loads(said[2])["error"]["code"] == "replica_lost"
        assert len(said) == 3
        assert house["b"].calls == 0

    asyncio.run(main())


def test_says_come_back_when_no_replica_is_there_and_counts_who_was_turned_away():
    async def main():
        now = [0.0]
        house = House(clock=lambda: now[0])
        response = await house.chat()
        assert (response.status_code, response.json()["error"]["code"]) == (503, "no_replica")
        assert int(response.headers["retry-after"]) >= 1
        assert house.gateway.load()["qwen"] == {"ongoing": 0, "recent": 0.0, "queued": 1}
        now[0] = 11.0
        assert house.gateway.load()["qwen"] == {"ongoing": 0, "recent": 0.0, "queued": 0}

    asyncio.run(main())


def test_the_last_replica_being_gone_is_a_503_not_a_failure():
    async def main():
        house = House("a")
        house["a"].dead = True
        assert (await house.chat()).status_code == 503
        assert (await house.chat()).headers["retry-after"] == "2"
        assert house["a"].calls == 1

    asyncio.run(main())


def test_refuses_with_429_beyond_max_ongoing_of_every_replica_and_serves_again_after():
    async def main():
        house = House("a", "b", max_ongoing=2)
        gate = house["a"].hold = house["b"].hold = asyncio.Event()
        held = [asyncio.create_task(house.chat()) for _ in range(4)]
        await until(lambda: house["a"].calls + house["b"].calls == 4)
        assert house["a"].calls == 2  # never more than its bound on one replica
        assert house.gateway.load()["qwen"]["ongoing"] == 4
        full = await house.chat()
        assert (full.status_code, full.json()["error"]["code"], full.headers["retry-after"]) == (429, "full", "1")
        gate.set()
        assert [r.status_code for r in await asyncio.gather(*held)] == [200] * 4
        assert (await house.chat()).status_code == 200
        assert house.gateway.load()["qwen"] == {"ongoing": 0, "recent": 0.0, "queued": 1}

    asyncio.run(main())


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_the_slot_in_the_replica(stream):
    async def main():
        house = House("a", max_ongoing=1)
        house["a"].hold = asyncio.Event()
        body = json.dumps({"model": "qwen", "stream": stream}).encode()
        inbox = asyncio.Queue()
        inbox.put_nowait({"type": "http.request", "body": body, "more_body": False})
        sent = []

        async def send(message):
            sent.append(message)

        scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1/chat/completions",
            "headers": [(b"authorization", AUTH["Authorization"].encode())],
        }
        request = asyncio.create_task(house.gateway(scope, inbox.get, send))
        await until(lambda: house["a"].calls == 1 and (not stream or len(sent) == 2))
        inbox.put_nowait({"type": "http.disconnect"})
        await request  # returns quietly
        await until(lambda: house["a"].cancelled == 1 and house.gateway.load()["qwen"]["ongoing"] == 0)
        assert house.seen == [("qwen", "chat/completions", 499)]
        house["a"].hold = None
        assert (await house.chat()).status_code == 200

    asyncio.run(main())


def test_a_new_table_takes_effect_and_leaves_requests_in_flight_alone():
    async def main():
        house = House("a", "b", routing="round-robin")
        house["a"].hold = asyncio.Event()
        held = asyncio.create_task(house.chat())
        await until(lambda: house["a"].calls == 1)
        house.table["models"]["qwen"]["replicas"] = [{"app": "b"}]
        house.gateway.route({**house.table, "version": 4})
        for _ in range(3):
            assert (await house.chat()).json()["replica"] == "b"
        house["a"].hold.set()
        assert (await held).json()["replica"] == "a"
        assert house.gateway.version == 4

    asyncio.run(main())


def test_a_bad_table_changes_nothing():
    async def main():
        house = House("a")
        bad = json.loads(json.dumps(house.table))
        bad["version"], bad["models"]["qwen"]["routing"] = 9, "by-mood"
        with pytest.raises(ValueError, match="by-mood"):
            house.gateway.route(bad)
        assert house.gateway.version == 3
        assert (await house.chat()).status_code == 200

    asyncio.run(main())


class Stubborn(Echo):
    """Goes on with a request although its client has left, until it is let go: as a call that blocks in a thread."""

    def __init__(self, name):
        super().__init__(name)
        self.let_go = asyncio.Event()

    async def call(self, route, body, adapter):
        self.calls += 1
        try:
            await self.let_go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            await self.let_go.wait()
            raise
        return {}

    async def stream(self, route, body, adapter):
        yield {"piece": "first"}
        await self.call(route, body, adapter)


@pytest.mark.parametrize("streams", [False, True])
def test_a_request_counts_until_its_replica_lets_go_although_its_client_has_left(streams):
    async def main():
        house = House("a", max_ongoing=2)
        stubborn = house.gateway._pools["qwen"]._slots["a"].replica = Stubborn("a")
        left = [asyncio.create_task(house.chat(stream=streams)) for _ in range(2)]
        await until(lambda: stubborn.calls == 2)
        for request in left:
            request.cancel()
        await until(lambda: stubborn.cancelled == 2)
        assert house.gateway.load()["qwen"]["ongoing"] == 2
        refused = await house.chat()
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "full")
        assert refused.headers["retry-after"] == "1"
        stubborn.let_go.set()
        await until(lambda: house.gateway.load()["qwen"]["ongoing"] == 0)
        assert (await house.chat()).status_code == 200

    asyncio.run(main())


@pytest.mark.parametrize("streams", [False, True])
def test_a_request_that_takes_too_long_is_answered_504_and_holds_its_slot_until_it_ends(streams):
    async def main():
        house = House("a", max_ongoing=1, timeout_s=0.01)
        stubborn = house.gateway._pools["qwen"]._slots["a"].replica = Stubborn("a")
        response = await house.chat(stream=streams)
        error = json.loads(events(response)[-1])["error"] if streams else response.json()["error"]
        assert (response.status_code, error["code"]) == (200 if streams else 504, "timeout")
        assert error["message"].startswith("The answer took longer than the 0.01 s")
        await until(lambda: stubborn.cancelled == 1)
        assert (await house.chat()).status_code == 429
        stubborn.let_go.set()
        await until(lambda: house.gateway.load()["qwen"]["ongoing"] == 0)

    asyncio.run(main())
