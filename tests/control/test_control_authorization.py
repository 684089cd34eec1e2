"""Sentences without the names of others' work; what each role of a token and of a queue is worth."""

from __future__ import annotations

import asyncio

import pytest
from control_harness import ANN, controlling, task

from llmsched.control.authorization import Person, Rights, hide, without_names
from llmsched.core.authorization import may_see, may_submit
from llmsched.core.configuration import Configuration, Queue


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("waits behind lora, which is first in line", "waits behind another's workload, which is first in line"),
        ("waits for lora, mine to leave", "waits for another's workload, mine to leave"),
        ("lora/0", "another's workload"),
        ("lora@2/1 is preempted", "another's workload is preempted"),
        ("makes room for lora.", "makes room for another's workload."),
        ("lora- starts", "another's workload starts"),
        ("mine/0 starts; lora-2 is nobody's", "mine/0 starts; lora-2 is nobody's"),
        ('in queue "lora" of s3://bucket/lora/0', 'in queue "lora" of s3://bucket/lora/0'),
    ],
)
def test_a_sentence_names_ones_own_work_only(text, shown):
    async def story():
        async with controlling() as controller:
            await controller.submit([task("mine")], user="eve")
            await controller.submit([task("lora"), task("lora-")], user=ANN)
            await controller.submit([task("lora")], user=ANN, again=True)
            eve, auditor = (
                Rights(Person(*who), controller.state.configuration) for who in (("eve",), ("aud", "auditor"))
            )
            assert hide(controller.state, eve, text) == shown
            assert hide(controller.state, auditor, text) == text
            data = {"user": "lora", "reason": {"message": text}, "others": [text]}
            assert without_names(controller.state, eve, data) == {
                "user": "lora",
                "reason": {"message": shown},
                "others": [shown],
            }

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
    ada = Rights(Person("ada"), before)
    assert ada.under(before) is ada
    assert (ada.leads("lab"), ada.under(after).leads("lab")) == (False, True)
