"""Sentences without the names of others' work; what each role of a token and of a queue is worth."""

from __future__ import annotations

import asyncio

import pytest
from control_harness import ANN, controlling, task

from llmsched.control.authorization import KnownNames, Permissions, Person
from llmsched.core.authorization import may_see, may_submit
from llmsched.core.configuration import Configuration, Queue
from llmsched.core.message import ACTOR, GANG, NODE, USER, About, Quote, Ref, say, workload
from llmsched.core.render import text

LORA, AGAIN, MINE, GONE = (workload(name) for name in ("lora", "lora@2", "mine", "gone"))
KNOWN = say("basis.run", by=Ref(ACTOR, ANN), model=Quote("qwen"))


@pytest.mark.parametrize(
    ("message", "full", "shown"),
    [
        (
            say("order.behind", who=LORA),
            "waits behind lora, which is first in line",
            "waits behind another's workload, which is first in line",
        ),
        (
            say("victims_leaving.leave", who=(LORA, MINE, AGAIN)),
            "waits for lora, mine, lora@2 to leave",
            "waits for mine, 2 workloads of others to leave",
        ),
        (say("others.waits", who=Ref(GANG, "lora/0")), "lora/0 waits", "another's workload waits"),
        (say("others.waits", who=Ref(GANG, "mine/0")), "mine/0 waits", "mine/0 waits"),
        (say("makes_room", who=GONE), "makes room for gone", "makes room for another's workload"),
        (
            say("eta.ends", who=LORA, basis=About("lora", KNOWN)),
            "when lora ends, as its last run by ann of qwen",
            "when another's workload ends",
        ),
        (say("makes_room", who=Ref(USER, ANN)), "makes room for ann", "makes room for somebody"),
        (say("makes_room", who=Ref("planet", "mars")), "makes room for something", "makes room for something"),
        (say("preempt.node_leaves", node=Ref(NODE, "n1")), "node n1 is about to leave", "node n1 is about to leave"),
    ],
)
def test_a_sentence_names_ones_own_work_only(message, full, shown):
    async def story():
        async with controlling() as controller:
            await controller.submit([task("mine")], user="eve")
            await controller.submit([task("lora"), task("lora-")], user=ANN)
            await controller.submit([task("lora")], user=ANN, again=True)
            eve, auditor = (
                Permissions(Person(*who), controller.state.configuration) for who in (("eve",), ("aud", "auditor"))
            )
            assert text(message, KnownNames(controller.state, eve)) == shown
            assert text(message, KnownNames(controller.state, auditor)) == full

    asyncio.run(story())


def test_a_queue_that_names_somebody_is_closed_to_the_others():
    roles = {"submitters": ("sam",), "admins": ("ada",), "viewers": ("vic",)}
    for given in (roles, {"admins": ("ada",)}, {"viewers": ("vic",)}):
        queue = Queue("lab", **given)
        assert not may_submit(queue, "eve") and not may_see(queue, "eve")
        assert may_submit(queue, "ada") is may_see(queue, "ada") is ("admins" in given)
        assert not may_submit(queue, "vic") and may_see(queue, "vic") is ("viewers" in given)
    assert may_submit(Queue("open"), "eve") and not may_see(Queue("open"), "eve")
    assert may_submit(Queue("lab", submitters=("*",)), "eve")


def test_a_stream_follows_a_configuration_that_changes():
    before = Configuration(queues=(Queue("lab"),))
    after = Configuration(queues=(Queue("lab", admins=("ada",)),))
    ada = Permissions(Person("ada"), before)
    assert ada.under(before) is ada
    assert (ada.leads("lab"), ada.under(after).leads("lab")) == (False, True)
