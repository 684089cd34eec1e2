"""The class a replica runs, from the launch order to answers, on tiny models and small apps."""

import asyncio
import subprocess
import sys
import threading
import zipfile

import pytest
import tiny_models
import torch
from app_requests import ask, asked
from waiting import PATIENCE_S, wait_until

from llmsched.data.parameters import RequestError
from llmsched.runtime.environment import UserError
from workloads.inference.replica import Replica
from workloads.sources import BadInput

ASK = {"model": "tiny", "temperature": 0, "max_tokens": 12}
HELLO = {**ASK, "messages": [{"role": "user", "content": "hello"}]}


def order(serve, **more):
    spec = {"name": "tiny", "kind": "serve", "serve": {"task": "causal-lm", "engine": "auto", **serve}}
    return {"gang": "tiny/0", "attempt": 1, "members": [{"rank": 0, "cpus": 1.0, "gpus": 1.0}], "spec": spec, **more}


def model(source, **serve):
    return {"model": {"id": "tiny", "source": str(source)}, **serve}


async def all_of(stream):
    return [chunk async for chunk in stream]


@pytest.fixture(scope="module", autouse=True)
def threads_as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_models.llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def chat(folder):
    return Replica(order(model(folder)))


def test_says_what_it_serves(chat):
    facts = asyncio.run(chat.ready())
    took = facts.pop("took")
    assert facts == {"routes": ["chat/completions", "completions"], "adapters": {}, "refused": {}}
    chat.check_health()
    assert {*took} == {"imports", "load", "first_token"} and min(took.values()) >= 0
    assert asyncio.run(chat.ready())["took"] == took, "a first token is made once"


def test_an_engine_that_cannot_make_a_token_is_not_ready(folder):
    """Before, it was, and each request to it failed."""
    replica = Replica(order(model(folder)))

    def fails(*_):
        raise RuntimeError("no kernel for this device")

    replica._server._engine._decoder.prefill = fails
    with pytest.raises(RequestError, match="no kernel for this device"):
        asyncio.run(replica.ready())
    replica._server._engine.close()


def test_a_stream_says_what_the_whole_answer_says(chat):
    async def main():
        whole = await chat.call("chat/completions", HELLO)
        body = {**HELLO, "stream": True, "stream_options": {"include_usage": True}}
        *chunks, usage = await all_of(chat.stream("chat/completions", body))
        return whole, chunks, usage

    whole, chunks, usage = asyncio.run(main())
    message = whole["choices"][0]["message"]
    assert (whole["object"], message["role"], whole["model"]) == ("chat.completion", "assistant", "tiny")
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks) == message["content"]
    assert chunks[0]["object"] == "chat.completion.chunk"
    assert chunks[-1]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"] == "length"
    assert usage["choices"] == []
    counts = {"prompt_tokens": 23, "completion_tokens": 12, "total_tokens": 35}
    assert whole["usage"] == {**counts, "prompt_tokens_details": {"cached_tokens": 0}}
    assert usage["usage"] == {**counts, "prompt_tokens_details": {"cached_tokens": 22}}  # it has just been read


def test_the_chat_template_is_what_the_model_reads(chat):
    async def main():
        told = await chat.call("chat/completions", HELLO)
        same = await chat.call("completions", {**ASK, "prompt": "<user>hello</s><assistant>"})
        return told["choices"][0]["message"]["content"], same["choices"][0]["text"]

    said, same = asyncio.run(main())
    assert said == same


def test_several_prompts_and_choices_are_answered_in_order(chat):
    async def main():
        prompts = ["hello", "other"]
        single = [await chat.call("completions", {**ASK, "prompt": prompt}) for prompt in prompts]
        both = await chat.call("completions", {**ASK, "prompt": prompts, "n": 2})
        chunks = await all_of(chat.stream("completions", {**ASK, "prompt": prompts, "n": 2}))
        return single, both, chunks

    single, both, chunks = asyncio.run(main())
    texts = [answer["choices"][0]["text"] for answer in single]
    assert [choice["text"] for choice in both["choices"]] == [texts[0], texts[0], texts[1], texts[1]]
    assert both["usage"]["completion_tokens"] == 4 * 12
    streamed = [""] * 4
    for chunk in chunks:
        streamed[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
    assert streamed == [choice["text"] for choice in both["choices"]]


@pytest.mark.parametrize(
    ("route", "body", "code"),
    [
        ("embeddings", {"input": "x"}, "wrong_route"),
        ("chat/completions", {"messages": []}, "invalid_request"),
        ("completions", {"prompt": "x" * 300}, "context_length_exceeded"),
        ("completions", {"prompt": [9999]}, "invalid_request"),
    ],
)
def test_what_cannot_be_answered_is_an_answer_too_called_or_streamed(chat, route, body, code):
    async def main():
        return await chat.call(route, body), await all_of(chat.stream(route, body))

    called, streamed = asyncio.run(main())
    assert streamed == [called]
    assert (called["status"], called["error"]["code"]) == (400, code)


def test_one_answer_of_several_that_fails_is_one_error(chat):
    async def main():
        many = {**ASK, "prompt": ["x"] * 400, "max_tokens": 200}
        return await chat.call("completions", many)

    answer = asyncio.run(main())
    assert (answer["status"], answer["error"]["code"]) == (429, "full")


def test_a_model_without_a_chat_template_says_where_to_go(tmp_path):
    replica = Replica(order(model(tiny_models.llama(tmp_path, chat=False))))
    answer = asyncio.run(replica.call("chat/completions", HELLO))
    assert "/v1/completions" in answer["error"]["message"]


def test_adapters_come_with_the_order_with_a_request_and_by_name(folder, tmp_path):
    a, b = (tiny_models.lora(tmp_path / name, folder, seed=n) for n, name in enumerate("ab", 1))
    serve = model(folder, adapters=[{"name": "a", "source": str(a)}])
    replica = Replica(order(serve, adapters=[("gone", str(tmp_path / "gone"))]))

    async def main():
        ready = await replica.ready()
        assert ready["adapters"] == {"a": str(a)}
        assert "no such file" in ready["refused"]["gone"]
        said = [
            (await replica.call("chat/completions", HELLO, adapter))["choices"][0]["message"]["content"]
            for adapter in (None, {"name": "a", "uri": str(a)}, {"name": "b", "uri": str(b)})
        ]
        assert len(set(said)) == 3
        assert await replica.load_adapter("b", str(b)) == ""
        assert "no such file" in await replica.load_adapter("c", str(tmp_path / "c"))
        refused = await replica.call("chat/completions", HELLO, {"name": "c", "uri": str(tmp_path / "c")})
        assert (refused["status"], refused["error"]["code"]) == (400, "adapter_not_loaded")
        assert refused["error"]["type"] == "invalid_request_error"  # which clients do not try again

    asyncio.run(main())


def test_embeds_each_text_as_if_it_were_alone(tmp_path):
    replica = Replica(order(model(tiny_models.bert(tmp_path), task="feature-extraction")))
    texts = ["short", "a text that is rather longer than the others", "mid size", "x" * 500]

    async def main():
        alone = [await replica.call("embeddings", {"model": "tiny", "input": text}) for text in texts]
        several = asyncio.gather(*(replica.call("embeddings", {"model": "tiny", "input": text}) for text in texts))
        return alone, await replica.call("embeddings", {"model": "tiny", "input": texts}), await several

    alone, together, several = asyncio.run(main())
    vectors = torch.tensor([each["data"][0]["embedding"] for each in alone])
    assert torch.allclose(vectors.norm(dim=1), torch.ones(4), atol=1e-5)
    assert torch.allclose(vectors, torch.tensor([each["embedding"] for each in together["data"]]), atol=1e-5)
    assert torch.allclose(vectors, torch.tensor([each["data"][0]["embedding"] for each in several]), atol=1e-5)
    assert together["usage"]["prompt_tokens"] == 5 + 44 + 8 + 64  # the last one is cut at the model's length
    assert not torch.allclose(vectors[0], vectors[1], atol=1e-2)


def test_who_shares_a_pass_with_an_input_that_fails_is_answered_all_the_same(tmp_path):
    replica = Replica(order(model(tiny_models.bert(tmp_path), task="feature-extraction")))
    engine = replica._server._model
    forward, passes = engine._forward, []

    def too_much(rows):
        wait_until(lambda: passes or len(rows) + len(engine._jobs) == 4)  # while the first run the others gather
        passes.append(len(rows))
        if any(len(row["input_ids"]) > 50 for row in rows):
            raise MemoryError("no room")
        return forward(rows)

    async def main():
        texts = ["first", "a", "b", "x" * 60]
        return await asyncio.gather(*(replica.call("embeddings", {"model": "tiny", "input": text}) for text in texts))

    engine._forward = too_much
    *answered, refused = asyncio.run(main())
    assert [len(one["data"]) for one in answered] == [1, 1, 1] and max(passes) > 1
    assert refused["status"] == 500 and "no room" in refused["error"]["message"]


def test_classifies_texts_and_pairs_with_the_models_own_labels(tmp_path):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = tiny_models.bert(tmp_path, labels=["negative", "positive"])
    replica = Replica(order(model(folder, task="sequence-classification")))
    answer = asyncio.run(replica.call("classify", {"model": "tiny", "input": ["fine", ["a b", "c"]]}))

    tokenizer, plain = AutoTokenizer.from_pretrained(folder), AutoModelForSequenceClassification.from_pretrained(folder)
    for data, text in zip(answer["data"], [("fine",), ("a b", "c")], strict=True):
        with torch.inference_mode():
            expected = plain(**tokenizer(*text, return_tensors="pt")).logits.softmax(-1)[0]
        assert data["scores"] == pytest.approx(
            {"negative": float(expected[0]), "positive": float(expected[1])}, abs=1e-5
        )
        assert data["score"] == max(data["scores"].values()) == data["scores"][data["label"]]


def test_an_encoder_does_not_stream_and_takes_no_adapters(tmp_path):
    replica = Replica(order(model(tiny_models.bert(tmp_path), task="feature-extraction")))
    assert asyncio.run(all_of(replica.stream("embeddings", {"input": "x"})))[0]["status"] == 400
    assert "causal-lm" in asyncio.run(replica.load_adapter("a", str(tiny_models.bert(tmp_path))))


@pytest.mark.parametrize(
    ("serve", "message"),
    [
        ({"model": {"source": "/no/such/model"}}, "no such file"),
        ({"model": {"source": "run://other"}}, "no result yet"),
    ],
)
def test_a_model_that_is_not_there_is_said_in_words(serve, message):
    with pytest.raises(BadInput, match=message):
        Replica(order(serve))


def test_what_kept_a_replica_from_starting_can_be_read_in_its_log(tmp_path):
    with pytest.raises(BadInput):
        Replica(order({"model": {"source": "/no/such/model"}}, storage=str(tmp_path)))
    said = (tmp_path / "tiny/0/1/logs/0.log").read_text()
    assert "/no/such/model: no such file or folder" in said
    assert "Traceback" not in said and ".py" not in said


def test_a_corrupt_model_and_a_wrong_engine_argument_are_said_in_words(tmp_path, folder):
    broken = tiny_models.llama(tmp_path / "broken")
    (broken / "config.json").write_text("{")
    with pytest.raises(BadInput, match="cannot be served"):
        Replica(order(model(broken)))
    with pytest.raises(BadInput, match="max_modl_len"):
        Replica(order(model(folder, engine_kwargs={"max_modl_len": 3})))


def test_weights_that_are_cut_short_are_said_in_words(tmp_path):
    broken = tiny_models.llama(tmp_path / "broken")
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(BadInput, match="cannot be served"):
        Replica(order(model(broken)))


def test_a_base_is_not_served_as_what_was_fine_tuned_from_it(tmp_path):
    """Before, its head was random, and each answer was chance; only a log of the library's said so."""
    base = tiny_models.bert(tmp_path)
    with pytest.raises(BadInput, match=r"2 weights are missing \(such as classifier.bias\)"):
        Replica(order(model(base, task="sequence-classification")))


# --- apps -------------------------------------------------------------------------------------------------------

APP = """
import threading

class Desk:
    def __init__(self, tone="plain"):
        self.tone = tone
    def __call__(self, body):
        if body.get("fail"):
            raise KeyError("secret drawer")
        return {"said": f"{body['text']} ({self.tone})", "thread": threading.current_thread().name}

class Async:
    async def __call__(self, body):
        return body["text"].upper()

class Yields:
    def __call__(self, body):
        yield from body["text"]

class AsyncYields:
    closed = 0
    async def __call__(self, body):
        try:
            for letter in body["text"]:
                yield letter
        finally:
            AsyncYields.closed += 1

nothing = 3
"""


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    path = tmp_path_factory.mktemp("workdirs") / "abc.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("desk_of_the_test/__init__.py", "")
        archive.writestr("desk_of_the_test/app.py", APP)
    return str(path)


def app(name, workdir, **serve):
    return Replica(order({"app": f"desk_of_the_test.app:{name}", **serve}, workdir=workdir))


def test_an_app_from_the_workdir_is_made_with_its_args_and_runs_beside_the_loop(workdir):
    replica = app("Desk", workdir, args={"tone": "kind"})
    answer = asyncio.run(ask(replica, body={"text": "hi"})).json()
    assert answer["said"] == "hi (kind)"
    assert answer["thread"] != threading.current_thread().name
    assert asyncio.run(replica.ready())["routes"] == ["http"]


@pytest.mark.parametrize(
    ("name", "called", "streamed"),
    [("Async", "AB", ["AB"]), ("Yields", ["a", "b"], ["a", "b"]), ("AsyncYields", ["a", "b"], ["a", "b"])],
)
def test_an_app_may_be_async_and_may_yield(workdir, name, called, streamed):
    replica = app(name, workdir)
    assert asyncio.run(ask(replica, body={"text": "ab"})).json() == called
    assert asyncio.run(ask(replica, body={"text": "ab", "stream": True})).events() == streamed


def test_a_client_that_leaves_ends_the_apps_generator(workdir):
    replica = app("AsyncYields", workdir)
    made = type(replica._server._application._app)

    async def main():
        before = made.closed
        stream = replica.stream("http", asked(body={"text": "abc", "stream": True}))
        await anext(stream)
        await stream.aclose()
        return made.closed - before

    assert asyncio.run(main()) == 1


def test_an_app_that_fails_answers_with_what_not_with_a_traceback(workdir, capfd):
    answer = asyncio.run(ask(app("Desk", workdir), body={"fail": True}))
    assert (answer.status, answer.json()["error"]["message"]) == (500, "KeyError: 'secret drawer'")
    assert "Traceback" in capfd.readouterr().err  # for whoever reads the log


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [("Nobody", {}, "Nobody"), ("nothing", {}, "nothing"), ("Desk", {"tune": 1}, "tune")],
)
def test_an_app_that_cannot_be_made_is_said_in_words(workdir, name, args, message):
    with pytest.raises(UserError, match=message):
        app(name, workdir, args=args)


def test_the_log_lies_in_the_storage(folder, tmp_path, monkeypatch):
    monkeypatch.delenv("LLMSCHED_CACHE", raising=False)
    replica = Replica(order(model(folder), storage=str(tmp_path)))
    replica._log.close()
    assert "is loaded" in (tmp_path / "tiny/0/1/logs/0.log").read_text()


def test_an_app_of_ones_own_does_not_pay_for_torch(workdir):
    """Seconds and 100 MB of every replica; a process of its own, because this one has torch."""
    lines = [
        "import sys",
        "from workloads.inference.replica import Replica",
        f"Replica({order({'app': 'desk_of_the_test.app:Desk'}, workdir=workdir)!r})",
        "sys.exit('torch' in sys.modules)",
    ]
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True, timeout=PATIENCE_S)
