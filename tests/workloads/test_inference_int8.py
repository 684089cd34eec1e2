"""`engine_kwargs.quantization: int8`: linear layers in 8 bits, near the same answers, alike whoever else asks."""

import asyncio

import pytest
import tiny_models
import torch
from torch import nn

from workloads import int8
from workloads.inference.engine import Settings
from workloads.inference.int8_linear import make_int8
from workloads.inference.packed import lay_out
from workloads.inference.replica import Replica

INT8 = {"engine_kwargs": {"quantization": "int8"}}


def order(folder, task, **serve):
    spec = {
        "name": "tiny",
        "kind": "serve",
        "serve": {"task": task, "model": {"id": "t", "source": str(folder)}, **serve},
    }
    return {"gang": "tiny/0", "attempt": 1, "members": [{"rank": 0, "cpus": 1.0, "gpus": 1.0}], "spec": spec}


@pytest.fixture(scope="module", autouse=True)
def threads_as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return tiny_models.llama(tmp_path_factory.mktemp("llama"))


class Body(nn.Module):
    base_model_prefix = "model"

    def __init__(self, bias):
        super().__init__()
        torch.manual_seed(1)
        self.model = nn.Sequential(nn.Linear(24, 40, bias=bias))
        self.head = nn.Linear(40, 3)


@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_is_near_what_it_was_and_each_row_is_its_own(bias):
    model = Body(bias)
    before, rows = model.model[0].weight.detach().clone(), torch.randn(2, 5, 24)
    rows[1, 2] *= 1000  # one that is far larger takes nothing from the others
    rows[0, 1] = 0
    with torch.inference_mode():
        true = model.model(rows)
        lay_out(model, "int8")
        found = model.model(rows)
        alone = model.model(rows[:1, 3:4])
    layer = model.model[0]
    assert type(layer).__name__ == "_Int8Linear" and "Packed" in type(model.head).__name__
    apart = (found - true).abs().amax(-1) / true.abs().amax(-1).clamp_min(1e-3)
    assert found.shape == true.shape and 0 < float(apart.max()) < 0.03
    assert torch.equal(found[0, 3], alone[0, 0])
    assert layer.weight.shape == before.shape and layer.weight.untyped_storage().nbytes() <= 4
    asked = rows.clone().requires_grad_()
    layer(asked).sum().backward()
    whole, scale = int8.rows_of(before)
    assert torch.allclose(asked.grad[0, 0], (whole * scale).sum(0), atol=1e-5)


def test_a_language_model_in_8_bits_takes_adapters_and_goes_on_as_before(llama, tmp_path):
    adapter = tiny_models.lora(tmp_path / "lora", llama, seed=3)
    both = [Replica(order(llama, "causal-lm", **kwargs)) for kwargs in ({}, INT8)]
    known = {"name": "soft", "uri": str(adapter)}
    body = {"model": "t", "prompt": "hello there", "max_tokens": 1, "temperature": 0, "logprobs": 20}

    async def likeliest(replica, adapter):
        answer = await replica.call("completions", body, adapter)
        return answer["choices"][0]["logprobs"]["top_logprobs"][0]

    for asked in (None, known):
        whole, coarse = (asyncio.run(likeliest(replica, asked)) for replica in both)
        shared = whole.keys() & coarse.keys()
        assert len(shared) >= 6
        near = torch.corrcoef(torch.tensor([[each[token] for token in sorted(shared)] for each in (whole, coarse)]))
        assert float(near[0, 1]) > 0.95
    assert asyncio.run(likeliest(both[1], None)) != asyncio.run(likeliest(both[1], known))
    assert asyncio.run(likeliest(both[0], None)) != asyncio.run(likeliest(both[1], None))
    for replica in both:
        replica._server._engine.close()


def test_a_classifier_in_8_bits_still_says_why(tmp_path):
    folder = tiny_models.bert(tmp_path, labels=["low", "high"])
    replica = Replica(order(folder, "sequence-classification", **INT8))
    answer = asyncio.run(replica.call("classify", {"model": "t", "input": "a b", "explain": True}))
    assert [word["text"] for word in answer["data"][0]["why"]] == ["a", "b"]


def test_where_8_bits_cannot_be_is_said():
    with pytest.raises(ValueError, match="quantization must be int8"):
        Settings.of({"quantization": "awq"})
    with pytest.raises(ValueError, match="leave it out on a GPU, and dtype too"):
        make_int8(Body(True).to(torch.bfloat16))
    bare = Body(True)
    bare.model = nn.Sequential(nn.Embedding(3, 3))
    with pytest.raises(ValueError, match="this model has none"):
        make_int8(bare)
