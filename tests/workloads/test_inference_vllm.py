"""A replica on vLLM, as far as its interface goes: a fake one, so nothing here says that it runs on a GPU."""

import asyncio
from contextlib import aclosing

import fake_vllm
import pytest
import tiny_models
import torch

from workloads.inference.replica import Replica
from workloads.sources import BadInput


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_models.llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(autouse=True)
def threads_as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def order(folder, **serve):
    model = {"id": "t", "source": str(folder)}
    spec = {"name": "big", "kind": "serve", "serve": {"task": "causal-lm", "model": model, "engine": "vllm", **serve}}
    return {"gang": "big/0", "attempt": 1, "members": [{"rank": 0, "cpus": 1.0, "gpus": 8.0}], "spec": spec}


def engine_of(replica):
    return replica._server._engine._engine


BODY = {"model": "t", "prompt": "abcdef", "max_tokens": 4, "temperature": 0}


def test_a_model_in_parts_is_one_engine_with_vllms_own_arguments(folder, monkeypatch):
    fake_vllm.put_in(monkeypatch)
    kwargs = {"max_model_len": 32, "num_speculative_tokens": 5, "vllm": {"gpu_memory_utilization": 0.8}}
    replica = Replica(order(folder, parallelism={"tensor": 4, "pipeline": 2}, engine_kwargs=kwargs))
    given = engine_of(replica).arguments
    assert (given.model, given.tensor_parallel_size, given.pipeline_parallel_size) == (str(folder), 4, 2)
    assert (given.distributed_executor_backend, given.load_format, given.enable_lora) == ("mp", "safetensors", True)
    assert (given.gpu_memory_utilization, given.max_model_len) == (0.8, 32)
    assert given.speculative_config == {"method": "ngram", "num_speculative_tokens": 5, "prompt_lookup_max": 3}
    answer = asyncio.run(replica.call("completions", BODY))
    assert answer["choices"][0] == {"index": 0, "text": "fedc", "logprobs": None, "finish_reason": "length"}
    assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": 4}
    too_long = asyncio.run(replica.call("completions", {**BODY, "prompt": "x" * 40}))
    assert too_long["error"]["code"] == "context_length_exceeded"


def test_a_client_that_leaves_ends_its_request_in_vllm(folder, monkeypatch):
    fake_vllm.put_in(monkeypatch)
    replica = Replica(order(folder))

    async def main():
        engine = engine_of(replica)
        engine.hold = asyncio.Event()
        async with aclosing(replica.stream("completions", {**BODY, "stream": True})) as chunks:
            assert (await anext(chunks))["choices"][0]["text"] == "f"
        return engine.aborted == [engine.asked[0][0]]

    assert asyncio.run(main())


def test_a_request_that_vllm_gives_up_is_no_answer(folder, monkeypatch):
    fake_vllm.put_in(monkeypatch)
    replica = Replica(order(folder))
    engine_of(replica).gives_up = True
    answer = asyncio.run(replica.call("completions", BODY))
    assert answer["status"] == 500 and "choices" not in answer


def test_adapters_are_put_in_and_replaced_while_it_serves(folder, tmp_path, monkeypatch):
    fake_vllm.put_in(monkeypatch)
    replica = Replica(order(folder))
    places = [str(tiny_models.lora(tmp_path / str(seed), folder, seed=seed)) for seed in (1, 2)]

    async def main():
        said = []
        for uri in places:
            answer = await replica.call("completions", BODY, {"name": "loud", "uri": uri})
            said.append(answer["choices"][0]["text"])
        return said

    assert asyncio.run(main()) == ["FEDC", "FEDC"]
    assert [each.lora_path for each in engine_of(replica).loras.values()] == places[1:]


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"vllm": {"tensor_parallel_size": 2}}, "tensor_parallel_size may not be set here"),
        ({"trust_remote_code": True}, "trust_remote_code may not be set here"),
        ({"max_waiting": 3}, "max_waiting"),
    ],
)
def test_arguments_that_are_not_vllms_or_not_the_users_are_refused_by_name(folder, monkeypatch, kwargs, said):
    fake_vllm.put_in(monkeypatch)
    with pytest.raises(BadInput, match=said):
        Replica(order(folder, engine_kwargs=kwargs))


def test_without_vllm_what_to_do_is_said(folder):
    with pytest.raises(BadInput, match=r"not installed on this node.*environment.pip"):
        Replica(order(folder))
