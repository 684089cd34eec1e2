"""Requests that come while no replica answers: held, served in turns of the keys, bounded, and told if for too long."""

import asyncio
import hashlib
import json

import pytest
from gateway_house import KEY, Echo, House, events, until

from llmsched.gateway import front, holds

OTHER = "other-key"
KEYS = [{"id": key, "sha256": hashlib.sha256(key.encode()).hexdigest(), "models": ["qwen"]} for key in (KEY, OTHER)]


def sleeping(**entry):
    return House(keys=KEYS, hold_s=60.0, **entry)


def wakes(house, *names):
    """The endpoint gets these replicas."""
    house.replicas |= {name: Echo(name) for name in names if name not in house.replicas}
    house.table["models"]["qwen"]["replicas"] = [{"app": name} for name in names]
    house.gateway.route(house.table)


def ask(house, key=KEY, **body):
    return asyncio.create_task(house.ask(headers={"Authorization": f"Bearer {key}"}, json={"model": "qwen", **body}))


def queued(house):
    return house.gateway.load()["qwen"]["queued"]


def test_a_hundred_that_come_to_none_are_all_answered_by_the_first_that_comes():
    async def main():
        house = sleeping(max_ongoing=8)
        asked = [ask(house, stream=n % 2 == 0) for n in range(100)]
        await until(lambda: queued(house) == 100)
        wakes(house, "a")
        assert [one.status_code for one in await asyncio.gather(*asked)] == [200] * 100
        assert house.gateway.load()["qwen"] == {"ongoing": 0, "recent": 0.0, "queued": 0}
        assert (await house.chat()).status_code == 200 and house["a"].calls == 101

    asyncio.run(main())


def test_what_no_model_of_the_task_answers_is_refused_at_once_and_wakes_nobody():
    """Before, it was held for a replica, took its GPU, and was refused by that."""

    async def main():
        house = sleeping(task="feature-extraction")
        answer = await house.ask(path="/v1/classify", json={"model": "qwen", "input": "x"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "wrong_route")
        assert "only /v1/embeddings" in answer.json()["error"]["message"]
        assert house.gateway.load()["qwen"] == {"ongoing": 0, "recent": 0.0, "queued": 0}

    asyncio.run(main())


def test_one_whose_only_replica_dies_before_its_first_word_is_answered_by_the_next():
    async def main():
        house = sleeping()
        wakes(house, "a")
        house["a"].dead = True
        asked = [ask(house), ask(house, stream=True)]
        await until(lambda: queued(house) == 2)
        wakes(house, "b")
        assert [one.status_code for one in await asyncio.gather(*asked)] == [200, 200]
        assert house["b"].calls == 2

    asyncio.run(main())


def test_keys_take_turns_and_whoever_comes_later_is_behind():
    async def main():
        house, order = sleeping(max_ongoing=1), []
        asked = [ask(house, user=f"{n}") for n in range(4)]
        await until(lambda: queued(house) == 4)
        asked += [ask(house, OTHER, user="other")]
        await until(lambda: queued(house) == 5)
        wakes(house, "a")
        answer = house["a"].call

        async def call(route, body, adapter):
            order.append(body["user"])
            if len(order) == 1:
                asked.append(ask(house, OTHER, user="late"))
                await until(lambda: queued(house) == 5)
            return await answer(route, body, adapter)

        house["a"].call = call
        await until(lambda: len(asked) == 6)
        await asyncio.gather(*asked)
        assert order == ["0", "other", "1", "late", "2", "3"]

    asyncio.run(main())


def test_patience_ends_with_503_or_the_last_event_of_a_stream_that_was_told_it_waits(monkeypatch):
    monkeypatch.setattr(front, "HEARTBEAT_S", 0.02)

    async def main():
        house = House(keys=KEYS, hold_s=0.1)
        plain, stream = await asyncio.gather(ask(house), ask(house, stream=True))
        assert (plain.status_code, plain.json()["error"]["code"]) == (503, "no_replica")
        assert "0.1 s that it may wait (hold_timeout)" in plain.text and int(plain.headers["retry-after"]) >= 1
        assert stream.status_code == 200
        *comments, error = [part for part in stream.text.split("\n\n") if part]
        assert comments and set(comments) == {": waiting for a replica"}
        assert json.loads(error.removeprefix("data: "))["error"]["code"] == "no_replica"

        house = sleeping()
        waiting = ask(house, stream=True)
        await asyncio.sleep(0.05)
        wakes(house, "a")
        said = [part for part in (await waiting).text.split("\n\n") if part]
        assert said[0].startswith(": ") and [json.loads(one[6:])["piece"] for one in said if '"piece"' in one] == [
            "a",
            "b",
            "c",
        ]
        assert said[-1] == "data: [DONE]"

    asyncio.run(main())


def test_one_key_cannot_keep_the_others_out_and_too_many_are_told(monkeypatch):
    monkeypatch.setattr(holds, "HELD_AT_MOST", 4)

    async def main():
        house = sleeping()
        many = [ask(house, user=f"{n}") for n in range(4)]
        await until(lambda: queued(house) == 4)
        assert (await ask(house)).status_code == 503, "it is the key with most itself"
        other = ask(house, OTHER)
        await asyncio.wait(many, return_when=asyncio.FIRST_COMPLETED)
        assert [one.done() for one in many] == [False] * 3 + [True], "its newest makes room"
        refused = many[3].result()
        assert refused.status_code == 503 and "no more requests can wait" in refused.text
        wakes(house, "a")
        assert [one.status_code for one in await asyncio.gather(*many[:3], other)] == [200] * 4

    asyncio.run(main())


def test_what_waits_is_bounded_in_bytes(monkeypatch):
    monkeypatch.setattr(holds, "HELD_BYTES", 3000)

    async def main():
        house = sleeping()
        first = ask(house, user="x" * 2000)
        await until(lambda: queued(house) == 1)
        assert (await ask(house, user="x" * 2000)).status_code == 503
        first.cancel()
        await until(lambda: queued(house) == 1)  # of the refused one; the other has left
        again = ask(house, user="x" * 2000)
        await until(lambda: queued(house) == 2)
        wakes(house, "a")
        assert (await again).status_code == 200

    asyncio.run(main())


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_waits_no_more_and_an_endpoint_that_is_stopped_says_so(stream):
    async def main():
        house = sleeping()
        inbox = asyncio.Queue()
        body = json.dumps({"model": "qwen", "stream": stream}).encode()
        inbox.put_nowait({"type": "http.request", "body": body, "more_body": False})
        scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions"}
        scope["headers"] = [(b"authorization", f"Bearer {KEY}".encode())]

        async def send(message):
            raise AssertionError(message)

        request = asyncio.create_task(house.gateway(scope, inbox.get, send))
        await until(lambda: queued(house) == 1)
        inbox.put_nowait({"type": "http.disconnect"})
        await request
        assert queued(house) == 0 and house.seen == [("qwen", "chat/completions", 499)]

        asked = ask(house, stream=stream)
        await until(lambda: queued(house) == 1)
        house.gateway.route({**house.table, "models": {}})
        stopped = await asked
        assert stopped.status_code == 503 and "qwen has been stopped" in stopped.text

    asyncio.run(main())


def test_nobody_is_held_while_replicas_are_there_and_full_nor_where_it_is_not_wanted():
    async def main():
        house = sleeping(max_ongoing=1)
        wakes(house, "a")
        house["a"].hold = asyncio.Event()
        busy = ask(house)
        await until(lambda: house["a"].calls == 1)
        assert (await ask(house)).status_code == 429
        house["a"].hold.set()
        assert (await busy).status_code == 200
        assert (await House(keys=KEYS).chat()).status_code == 503

    asyncio.run(main())


def test_events_of_a_stream_have_no_comment_where_nobody_waits():
    async def main():
        house = sleeping()
        wakes(house, "a")
        assert len(events(await house.chat(stream=True))) == 4

    asyncio.run(main())
