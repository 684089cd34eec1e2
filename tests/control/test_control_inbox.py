"""What waits for the loop is taken in by portions, so that everybody else has a turn between them."""

from __future__ import annotations

import asyncio

from control_harness import ANN, controlling, fake_cluster, task

from llmsched.control import inbox
from llmsched.control.dispatch import Send
from llmsched.control.inbox import Inbox
from llmsched.control.outbox import Outbox
from llmsched.core.latency import Latency
from llmsched.executors.port import LoadSeen, NodeGone


def test_a_round_takes_in_a_portion_in_order_and_the_rest_waits_for_the_next() -> None:
    box = Inbox()
    count = 2 * inbox.SEEN_OF_A_ROUND + 1
    box.deliver(LoadSeen("w", 1.0, 0.0))
    for number in range(count):
        box.deliver(NodeGone(f"n{number}"))
    taken = []
    portions = 0
    while box.filled.is_set():
        _, seen = box.drain()
        taken += seen
        portions += 1
    assert portions == 3
    assert taken == [*(NodeGone(f"n{number}") for number in range(count)), LoadSeen("w", 1.0, 0.0)]


def test_of_loads_the_last_counts_and_of_what_was_measured_each() -> None:
    box, first, second = Inbox(), Latency("m", "L4", 1.0, 20, 0.5), Latency("m", "L4", 2.0, 20, 0.7)
    for load in (LoadSeen("w", 1.0, 0.0, (first,)), LoadSeen("w", 2.0, 0.0), LoadSeen("w", 3.0, 1.0, (second,))):
        box.deliver(load)
    assert box.drain()[1] == [LoadSeen("w", 3.0, 1.0, (first, second))]


def test_orders_that_leave_at_once_let_others_have_their_turn() -> None:
    class Ready:
        async def stop(self, order: object) -> None:
            turns.append("order")

    turns: list[str] = []

    async def story() -> None:
        outbox = Outbox(Ready(), turns.append)  # type: ignore[arg-type]
        outbox.put([Send("stop", None) for _ in range(50)])
        leaving = asyncio.create_task(outbox.run())
        while turns.count("order") < 50:
            turns.append("other")
            await asyncio.sleep(0)
        leaving.cancel()

    asyncio.run(story())
    assert turns.count("other") >= 50


def test_two_hundred_requests_at_once_are_all_answered() -> None:
    async def story() -> None:
        async with controlling(fake_cluster()) as controller:
            names = [f"t{number}" for number in range(2 * inbox.ASKED_OF_A_ROUND)]
            answers = await asyncio.gather(*(controller.submit([task(name, gpus=0.01)], user=ANN) for name in names))
            assert [answer[0].id for answer in answers] == names
            assert sorted(controller.state.workloads) == sorted(names)

    asyncio.run(story())
