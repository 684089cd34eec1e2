"""Requests in OpenAI's form, checked; answers in it, built."""

import base64
import struct

import pytest
import torch

from llmsched.data.parameters import RequestError
from workloads.inference import openai
from workloads.inference.openai import Choice
from workloads.inference.sampling import Sampler, next_tokens

TOOL = {"type": "function", "function": {"name": "clock"}}
HELLO = [{"role": "user", "content": "hello"}]


def test_a_chat_request_is_read_with_its_defaults():
    request = openai.chat_request({"model": "m", "messages": HELLO})
    assert request.messages == HELLO
    assert (request.sampling.temperature, request.sampling.top_p, request.n) == (0.0, 1.0, 1)
    assert request.sampling.max_tokens == openai.CHAT_TOKENS


class Own:
    do_sample, temperature, top_p, top_k = True, 0.7, 0.8, 20


class Half:
    do_sample, temperature, top_p, top_k = True, None, None, None


class Silent:
    do_sample, temperature = None, 0.6


@pytest.mark.parametrize(
    ("model", "body", "wanted"),
    [
        (Own(), {}, (0.7, 0.8, 20)),
        (Own(), {"temperature": 0}, (0.0, 0.8, 20)),
        (Own(), {"temperature": 1.2, "top_p": 1}, (1.2, 1.0, 20)),
        (Half(), {}, (1.0, 1.0, 0)),
        (Silent(), {}, (0.0, 1.0, 0)),
        (Silent(), {"n": 2}, (1.0, 1.0, 0)),
        (Silent(), {"seed": 3}, (1.0, 1.0, 0)),
        (None, {"top_p": 0.5}, (1.0, 0.5, 0)),
    ],
)
def test_what_a_request_leaves_out_is_the_models_own_and_who_asks_for_a_draw_gets_one(model, body, wanted):
    found = openai.chat_request({"messages": HELLO, **body}, openai.Usual.of(model)).sampling
    assert (found.temperature, found.top_p, found.top_k) == wanted


def test_only_the_likeliest_top_k_are_drawn():
    logits = torch.tensor([[3.0, 2.9, 2.8, 2.7]])
    sampler = Sampler(openai.Sampling(max_tokens=1, temperature=1.0, top_k=2, seed=1))
    assert {next_tokens(logits, [sampler])[0] for _ in range(200)} == {0, 1}


def test_text_parts_are_joined_and_a_developer_is_the_system():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    request = openai.chat_request({"messages": [{"role": "developer", "content": parts}, *HELLO]})
    assert request.messages[0] == {"role": "system", "content": "ab"}


def test_what_is_wrong_in_stream_options_is_said_with_the_nearest_name():
    for given, words in (
        (
            {"include_usge": True},
            'There is nothing called "include_usge" in "stream_options". Did you mean "include_usage"?',
        ),
        ({"sise": 3}, 'There is nothing called "sise" in "stream_options". It may have "include_usage".'),
        (True, '"stream_options" must be an object, and may have "include_usage".'),
    ):
        with pytest.raises(RequestError) as caught:
            openai.chat_request({"messages": HELLO, "stream": True, "stream_options": given})
        assert caught.value.message == words


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [*HELLO, {"role": "user"}]}, "messages[1]"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0]"),
        ({"messages": HELLO, "temperature": 3}, "temperature"),
        ({"messages": HELLO, "temperature": "hot"}, "temperature"),
        ({"messages": HELLO, "temperature": True}, "temperature"),
        ({"messages": HELLO, "top_p": float("nan")}, "top_p"),
        ({"messages": HELLO, "max_tokens": 0}, "max_tokens"),
        ({"messages": HELLO, "max_completion_tokens": 1.5}, "max_completion_tokens"),
        ({"messages": HELLO, "n": 100}, "n"),
        ({"messages": HELLO, "seed": "x"}, "seed"),
        ({"messages": HELLO, "stop": ["a"] * 5}, "stop"),
        ({"messages": HELLO, "stop": [""]}, "stop"),
        ({"messages": HELLO, "tools": [{"type": "function"}]}, "tools"),
        ({"messages": HELLO, "tools": [TOOL], "tool_choice": "must"}, "tool_choice"),
        ({"messages": HELLO, "tool_choice": "required"}, "tool_choice"),
        ({"messages": HELLO, "tools": [TOOL, TOOL]}, "tools"),
        ({"messages": HELLO, "logprobs": 3}, "logprobs"),
        ({"messages": HELLO, "top_logprobs": 3}, "top_logprobs"),
        ({"messages": HELLO, "logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"messages": HELLO, "response_format": {"type": "json_schema"}}, "response_format"),
        ({"messages": HELLO, "response_format": {"type": "xml"}}, "response_format"),
        ({"messages": HELLO, "logit_bias": {"a": 1}}, "logit_bias"),
        ({"messages": HELLO, "logit_bias": {"1": 101}}, "logit_bias"),
        ({"messages": HELLO, "frequency_penalty": 3}, "frequency_penalty"),
        ({"messages": HELLO, "min_p": 1.5}, "min_p"),
        ({"messages": HELLO, "stop_token_ids": ["a"]}, "stop_token_ids"),
        ({"messages": HELLO, "chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs"),
        ({"messages": HELLO, "stream_options": {"include_usge": True}}, "stream_options"),
        ({"messages": HELLO, "guided_json": {}}, "guided_json"),
        ({"messages": HELLO, "audio": {"voice": "x"}}, "audio"),
        ({"messages": HELLO, "prompt": "x"}, "prompt"),
    ],
)
def test_a_chat_request_that_cannot_be_answered_names_its_parameter(body, param):
    with pytest.raises(RequestError) as caught:
        openai.chat_request(body)
    answer = caught.value.answer()
    assert (answer["status"], answer["error"]["param"]) == (400, param)
    assert answer["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("name", "near"),
    [("temprature", "temperature"), ("max_token", "max_tokens"), ("top_logprob", "top_logprobs"), ("strem", "stream")],
)
def test_a_name_that_is_almost_one_is_refused_with_the_one_that_is_meant(name, near):
    with pytest.raises(RequestError, match=f'no parameter "{name}" here. Did you mean "{near}"') as caught:
        openai.chat_request({"messages": HELLO, name: 1})
    assert caught.value.code == "unknown_parameter"


def test_what_one_route_takes_another_may_not():
    for ask, body, name in (
        (openai.completion_request, {"prompt": "a"}, "messages"),
        (openai.completion_request, {"prompt": "a"}, "response_format"),
        (openai.embedding_inputs, {"input": "a"}, "temperature"),
    ):
        with pytest.raises(RequestError, match=f'no parameter "{name}"'):
            ask({**body, name: 1})


def test_parameters_that_are_switched_off_are_no_reason_to_refuse():
    openai.chat_request({"messages": HELLO, "frequency_penalty": 0, "logprobs": False, "tools": [], "user": "me"})


@pytest.mark.parametrize(
    ("prompt", "read"), [("a", ["a"]), (["a", "b"], ["a", "b"]), ([1, 2], [[1, 2]]), ([[1], [2, 3]], [[1], [2, 3]])]
)
def test_a_prompt_comes_in_four_forms(prompt, read):
    assert openai.completion_request({"prompt": prompt}).prompts == read


@pytest.mark.parametrize("prompt", [None, "", [], [""], [[]], [True], [-1], {"a": 1}, [1, "a"]])
def test_other_forms_of_a_prompt_are_refused(prompt):
    with pytest.raises(RequestError, match="prompt"):
        openai.completion_request({"prompt": prompt})


def test_texts_and_pairs_to_classify_come_in_any_mixture():
    given = ["a", ["b"], ["c", "d"], {"text": "e"}, {"text": "f", "text_pair": "g"}]
    read = [("a", None), ("b", None), ("c", "d"), ("e", None), ("f", "g")]
    assert openai.classify_inputs({"input": given}) == (read, False)
    assert openai.classify_inputs({"input": "a", "explain": True}) == ([("a", None)], True)
    for wrong in (None, [], [1], [["a", "b", "c"]], [{"text": 1}], [{"text_pair": "a"}]):
        with pytest.raises(RequestError, match="input"):
            openai.classify_inputs({"input": wrong})


def test_a_vector_can_travel_as_base64():
    answer = openai.embeddings_answer("m", [[0.5, -1.0]], 3, as_base64=True)
    assert struct.unpack("<2f", base64.b64decode(answer["data"][0]["embedding"])) == (0.5, -1.0)
    assert answer["usage"] == {"prompt_tokens": 3, "total_tokens": 3}


def test_chunks_share_an_id_and_name_the_role_once():
    answer = openai.Answer(openai.chat_request({"model": "m", "messages": HELLO}))
    chunks = [answer.chunk(0, Choice("he")), answer.chunk(0, Choice("y")), answer.chunk(0, Choice("", "stop"))]
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
        {"role": "assistant", "content": "he"},
        {"content": "y"},
        {},
    ]
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
