"""An endpoint whose prompts another one reads: what is refused, what `plan` says, and what the gateway is told."""

import asyncio
from dataclasses import replace

import pytest
from control_harness import ANN, Script, controlling, fake_cluster, phase, serve, task, until

from llmsched.api import views
from llmsched.control.authorization import KnownNames, Permissions, Person
from llmsched.control.roles import OPERATOR, SUBMITTER
from llmsched.control.routes import Routes
from llmsched.core.configuration import PolicyNames
from llmsched.core.facts import Bound, NodeJoined, Published, Submitted
from llmsched.core.nodes import Node
from llmsched.core.resources import Resources
from llmsched.core.scheduler import turn
from llmsched.core.state import State
from llmsched.errors import RequestError
from llmsched.policies.registry import load as policies
from llmsched.spec.compile import compile_workload
from llmsched.spec.load import load_json


def endpoint(name, part, source="package:models/tiny", **engine_kwargs):
    section = {"model": {"source": source}, "engine": "vllm", "engine_kwargs": engine_kwargs, **part}
    return load_json({"name": name, "kind": "serve", "resources": {"accelerators": ["A100:1"]}} | {"serve": section})


READS = {"role": "prefill"}
ASKS = {"prefill": {"endpoint": "reader"}}


@pytest.mark.parametrize(
    ("reader", "said"),
    [
        (endpoint("reader", {}), '"reader" answers requests, and does not read prompts for others'),
        (serve("reader"), "does not read prompts for others"),
        (endpoint("reader", READS, "package:models/other"), "serves package:models/other, and chat serves package:"),
        (endpoint("reader", READS, dtype="float16"), '"reader" has dtype "float16", and chat has none'),
        (endpoint("reader", READS, vllm={"kv_cache_dtype": "fp8"}), '"reader" has kv_cache_dtype "fp8"'),
    ],
    ids=["no role", "our engine", "another model", "another type", "another type of keys and values"],
)
@pytest.mark.parametrize("together", [True, False])
def test_what_cannot_read_for_it_is_refused_by_name(reader, said, together):
    async def story():
        async with controlling(fake_cluster()) as controller:
            if not together:
                await controller.submit([reader], user=ANN)
            with pytest.raises(RequestError) as caught:
                await controller.submit([endpoint("chat", ASKS), *([reader] if together else [])], user=ANN)
            assert caught.value.code == "unlike_prefill" and said in caught.value.message and caught.value.hint
            assert (await controller.plan([endpoint("chat", ASKS), reader], ANN))[0].outcome == "refused"

    asyncio.run(story())


def told(planned):
    """Of the split; nothing is known here of a GPU's memory."""
    return [one for one in planned.warnings if "prompts itself" in one]


def test_one_that_is_not_there_yet_or_anothers_is_waited_for_and_plan_says_so():
    async def story():
        async with controlling(fake_cluster()) as controller:
            await controller.submit([endpoint("reader", READS)], user="bob")
            (planned,) = await controller.plan([endpoint("chat", ASKS)], ANN)
            assert planned.outcome != "refused"
            assert told(planned) == [
                'serve.prefill: waits for "reader", which is no endpoint of ann yet; until it answers, chat reads its '
                "prompts itself"
            ]
            both = [endpoint("chat", ASKS | {"prefill": {"endpoint": "own"}}), endpoint("own", READS)]
            assert [told(one) for one in await controller.plan(both, ANN)] == [[], []]
            assert [one.serves for one in await controller.submit(both, user=ANN)] == ["causal-lm", "prefill"]

    asyncio.run(story())


def test_a_reader_that_is_to_serve_another_model_leaves_those_behind_that_do_not():
    async def story():
        async with controlling(fake_cluster()) as controller:
            await controller.submit([endpoint("chat", ASKS), endpoint("reader", READS)], user=ANN)
            other = endpoint("reader", READS, "package:models/other")
            (planned,) = await controller.plan([other], ANN)
            assert told(planned) == ["chat will read its prompts itself, until it serves the same as reader"]
            together = await controller.plan([other, endpoint("chat", ASKS, "package:models/other")], ANN)
            assert [told(one) for one in together] == [[], []]

    asyncio.run(story())


def test_work_cannot_call_what_answers_nobody():
    async def story():
        async with controlling(fake_cluster()) as controller:
            await controller.submit([endpoint("reader", READS)], user=ANN)
            with pytest.raises(RequestError, match="answers nobody itself"):
                await controller.submit([task("asks", calls=["reader"])], user=ANN)

    asyncio.run(story())


def table_of(*specs, user="ann", then=()):
    state, known = State(), Routes(1)
    state.apply(NodeJoined(0.0, Node("n", Resources(8_000, 64_000, 1 << 40), "A100")))
    for spec in specs:  # one after the other: the table is not made anew
        owner = user if spec.name == "reader" else "ann"
        turn(state, [Submitted(1.0, replace(compile_workload(spec), user=owner))], policies(PolicyNames()))
        known.changed(state, [])
    for fact in then:
        state.apply(fact)
    turn(state, [], policies(PolicyNames()))
    for name, gang in state.gangs.items():
        state.apply(Bound(2.0, name, gang.attempt))
    known.forget()
    return known.changed(state, []).models


def test_the_gateway_is_told_who_reads_for_whom_and_what_fits_together():
    table = table_of(endpoint("chat", ASKS), endpoint("plain", {}), endpoint("reader", READS))
    assert table["chat"]["prefill"] == {"workload": "reader", "from_tokens": 512}
    assert table["reader"]["role"] == "prefill" and "prefill" not in table["reader"]
    assert not {"role", "prefill"} & {*table["plain"]} and "kv" not in table["plain"]["replicas"][0]
    (mine,), (its,) = (table[name]["replicas"] for name in ("chat", "reader"))
    assert mine["kv"] == its["kv"] != ""


def test_nobody_reads_for_anothers_endpoint_or_without_the_role():
    assert "prefill" not in table_of(endpoint("chat", ASKS), endpoint("reader", READS), user="bob")["chat"]
    assert "prefill" not in table_of(endpoint("chat", ASKS), endpoint("reader", {}))["chat"]
    assert "prefill" not in table_of(endpoint("chat", ASKS))["chat"]


def test_a_model_that_was_published_to_one_of_them_is_another_kind():
    published = Published(1.5, "chat", "model", "newer", "s3://models/newer", "chat")
    table = table_of(endpoint("chat", ASKS), endpoint("reader", READS), then=[published])
    words = {one["kv"] for name in ("chat", "reader") for one in table[name]["replicas"]}
    assert len(words) == 2


def of_chat(controller, role=OPERATOR, user=ANN):
    """What `why` and `status` say of its prompts, which are the same words."""
    state = controller.state
    names, found = KnownNames(state, Permissions(Person(user, role), state.configuration)), state.find("chat")
    in_why = [one.text for one in views.why(state, found, (), names).scaling if one.code.startswith("prefill.")]
    in_status = views.workload(state, found, {}, names).message
    assert in_status == "".join(in_why)
    return in_status.removeprefix("reads its prompts itself: ")


NO_REPLICA = '"reader" (serve.prefill) has no replica that answers'


def test_why_and_status_say_by_name_why_nobody_reads_its_prompts():
    async def story():
        async with controlling(fake_cluster()) as controller:
            await controller.submit([endpoint("chat", ASKS), task("a"), task("b", gpus=2)], user=ANN)
            await until(lambda: {phase(controller, each) for each in ("chat", "a", "b")} == {"running"})
            assert of_chat(controller) == 'its owner has no endpoint "reader" (serve.prefill)'
            await controller.submit([endpoint("reader", READS)], user=ANN)
            await until(lambda: of_chat(controller).startswith(f"{NO_REPLICA}: needs 1 x 1 A100"))
            for each in ("a", "b"):
                await controller.cancel(each, by=ANN)
            await until(lambda: of_chat(controller) == "")
            await controller.submit([endpoint("reader", READS, "package:models/other")], user=ANN)
            await until(lambda: of_chat(controller) == '"reader" (serve.prefill) reads none of this model and type')
            await controller.submit([endpoint("reader", READS)], user=ANN)
            await until(lambda: of_chat(controller) == "")
            await controller.cancel("reader", by=ANN)
            assert of_chat(controller) == '"reader" (serve.prefill) is stopped'
            await until(lambda: phase(controller, "reader") == "cancelled")
            assert of_chat(controller) == '"reader" (serve.prefill) is stopped'

    asyncio.run(story())


def test_a_reader_that_failed_is_named_and_why_is_for_those_who_see_it():
    async def story():
        fails = Script(not_started="environment", message="no such package")
        async with controlling(fake_cluster(reader=fails)) as controller:
            await controller.submit([endpoint("chat", ASKS), endpoint("reader", READS)], user=ANN)
            await until(lambda: (phase(controller, "chat"), phase(controller, "reader")) == ("running", "failed"))
            assert of_chat(controller) == '"reader" (serve.prefill) has failed: no such package'
            assert of_chat(controller, SUBMITTER, "bob") == '"reader" (serve.prefill) has failed'

    asyncio.run(story())


def test_anothers_reader_and_one_that_answers_itself_read_nothing():
    async def story():
        async with controlling(fake_cluster()) as controller:
            both = [endpoint("chat", ASKS), endpoint("reader", READS)]
            await controller.submit(both, user=ANN)
            await until(lambda: phase(controller, "chat") == phase(controller, "reader") == "running")
            assert of_chat(controller) == ""
            await controller.submit([endpoint("reader", {})], user=ANN)
            assert of_chat(controller) == '"reader" (serve.prefill) reads none of this model and type'

        async with controlling(fake_cluster()) as controller:
            await controller.submit([endpoint("reader", READS)], user="bob")
            await controller.submit([endpoint("chat", ASKS)], user=ANN)
            assert of_chat(controller) == 'its owner has no endpoint "reader" (serve.prefill)'

    asyncio.run(story())
