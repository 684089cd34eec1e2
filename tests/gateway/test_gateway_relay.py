"""What a replica is thought to have in hand: exact after anything that clients, replicas and time may do."""

import asyncio
from contextlib import aclosing, suppress

import pytest
from gateway_house import House, until
from hypothesis import given
from hypothesis import strategies as st

from llmsched.gateway.refusals import Refused
from llmsched.gateway.relay import Errand, Relay
from llmsched.gateway.replicas import Chosen, Pool, ReplicaGone, Slot
from llmsched.gateway.signals import Signals

ENDS = ("well", "fails", "is gone", "hangs")
requests = st.lists(
    st.tuples(
        st.booleans(),  # streams
        st.sampled_from(ENDS),  # how the replica ends it
        st.integers(0, 3),  # pieces before that
        st.sampled_from(["stays", "leaves", "too late"]),  # the client, or its time
        st.booleans(),  # the replica lets go at once when it is told to
    ),
    max_size=8,
)


class Shaky:
    def __init__(self):
        self.let_go = asyncio.Event()

    async def call(self, end, at_once):
        await asyncio.sleep(0)
        try:
            if end == "hangs":
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            if not at_once:
                await self.let_go.wait()
            raise
        if end == "fails":
            raise RuntimeError("no")
        if end == "is gone":
            raise ReplicaGone("a")
        return {}

    async def stream(self, end, pieces, at_once):
        for piece in range(pieces):
            yield piece
        await self.call(end, at_once)


async def client(relay, pool, slot, shaky, streams, end, pieces, how, at_once):
    limit_s, errand = 0.0 if how == "too late" else 60.0, Errand(pool, Chosen(slot, 10), 3, "k")

    async def ask():
        with suppress(RuntimeError, ReplicaGone, Refused):
            if not streams:
                await relay.call(errand, shaky.call(end, at_once), limit_s)
                return
            chunks = relay.stream(errand, shaky.stream(end, pieces, at_once), limit_s)
            async with aclosing(chunks):
                async for _ in chunks:
                    pass

    task = asyncio.create_task(ask())
    for _ in range(4):
        await asyncio.sleep(0)
    if how == "leaves" or end == "hangs":
        task.cancel()
    await asyncio.wait({task})


@given(requests)
def test_counts_come_back_to_nothing_whatever_clients_replicas_and_time_do(asked):
    async def main():
        signals, pool, slot, shaky = Signals(lambda: 0.0), Pool("w"), Slot("a", None), Shaky()
        relay = Relay(signals)
        await asyncio.gather(*(client(relay, pool, slot, shaky, *each) for each in asked))
        assert slot.ongoing == len(relay._carrying) == signals.ongoing("w") == relay.in_flight("w").get("k", 0)
        assert slot.tokens >= slot.ongoing
        shaky.let_go.set()
        await until(lambda: not relay._carrying)
        assert (slot.ongoing, slot.tokens, signals.ongoing("w")) == (0, 0, 0) and not relay.in_flight("w")

    asyncio.run(main())


@pytest.mark.parametrize("said", [{"user": "ann"}, {}])
def test_a_session_is_what_the_header_says_or_else_the_user(said):
    async def main():
        house = House("a", "b", "c", "d", routing="session-affinity")
        headers = {"Authorization": "Bearer test-key"} | ({} if said else {"X-Session-Id": "ann"})
        for _ in range(5):
            answer = await house.ask(json={"model": "qwen", **said}, headers=headers)
            assert answer.status_code == 200
        return [replica.calls for replica in house.replicas.values()]

    counts = asyncio.run(main())
    assert sorted(counts) == [0, 0, 0, 5]
