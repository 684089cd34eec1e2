"""OpenAI's own Python client, as it is, against our endpoint: gateway, replica and engine, on a tiny model."""

import asyncio
import base64
import hashlib
import json

import httpx
import numpy as np
import openai
import pytest
import tiny_models
import tiny_tasks
import torch

from llmsched.gateway.front import Gateway
from workloads.apps.speaker import Speaker
from workloads.inference.app import AppServer
from workloads.inference.json_app import JsonApp
from workloads.inference.replica import Replica

KEY = "test-key"
TEMPLATE = (
    "{% if tools %}<tools>{% for t in tools %}{{ t.function.name }} {% endfor %}</tools>{% endif %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% for c in m.tool_calls or [] %}"
    "{{ c.function.name }}{{ c.function.arguments.city }}{% endfor %}</s>{% endfor %}"
    "{% if loud %}!{% endif %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
CITY = {"type": "object", "properties": {"city": {"enum": ["Rom", "Köln"]}}, "required": ["city"],
        "additionalProperties": False}  # fmt: skip
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": CITY}}
HELLO = [{"role": "user", "content": "hello"}]


class InProcess:
    """A replica without Ray between it and the gateway."""

    def __init__(self, replica):
        self.call, self._replica = replica.call, replica

    async def stream(self, route, body, adapter, incoming=None):
        async for chunk in self._replica.stream(route, body, adapter):
            yield chunk


class Hum(Speaker):
    def say(self, text, voice, speed):
        return np.full(round(len(text) * 100 / speed), 0.5, "float32"), 8000


class Busy:
    """Full for two requests, then it answers."""

    asked = 0

    async def call(self, route, body, adapter):
        self.asked += 1
        if self.asked < 3:
            error = {"message": "full", "type": "t", "param": None, "code": "full"}
            return {"error": error, "status": (503, 429)[self.asked - 1]}
        return {"choices": [], "asked": self.asked}


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory):
    before = torch.get_num_threads()
    folder = tiny_models.llama(tmp_path_factory.mktemp("llama"))
    tokenizer = tiny_models.byte_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    encoder = tiny_models.bert(tmp_path_factory.mktemp("bert"))
    ear = tmp_path_factory.mktemp("ear")
    rows = tiny_tasks.speech(ear)
    eye = tmp_path_factory.mktemp("eye")
    tiny_tasks.captions(eye)
    replicas = {
        "speech": InProcess(Replica(order("automatic-speech-recognition", ear / "model"))),
        "eye": InProcess(Replica(order("image-text-to-text", eye / "model"))),
        "mouth": AppServer(JsonApp(Hum(voice="low"))),
        "chat": InProcess(Replica(order("causal-lm", folder))),
        "embed": InProcess(Replica(order("feature-extraction", encoder))),
    }
    gateway = Gateway(replicas.__getitem__)
    models = {
        name: {"workload": name, "kind": "app" if name == "mouth" else "model", "replicas": [{"app": name}]}
        for name in replicas
    }
    keys = [{"id": "k", "sha256": hashlib.sha256(KEY.encode()).hexdigest(), "models": list(models)}]
    gateway.route({"version": 1, "models": models, "keys": keys})
    gateway.seen = eye / "0.png"
    gateway.heard = ear / rows[0]["audio"]
    yield gateway
    torch.set_num_threads(before)


def order(task, folder):
    serve = {"task": task, "engine": "auto", "model": {"id": task, "source": str(folder)}}
    spec = {"name": task, "kind": "serve", "serve": serve}
    return {"gang": f"{task}/0", "attempt": 1, "members": [{"rank": 0, "cpus": 1.0, "gpus": 1.0}], "spec": spec}


def using(endpoint, story, key=KEY):
    async def run():
        http = httpx.AsyncClient(transport=httpx.ASGITransport(app=endpoint))
        async with openai.AsyncOpenAI(base_url="http://g/v1", api_key=key, http_client=http, max_retries=0) as client:
            return await story(client)

    return asyncio.run(run())


def chat(client, **more):
    return client.chat.completions.create(**{"model": "chat", "messages": HELLO, "max_tokens": 8, **more})


def test_chat_and_its_stream_say_the_same(endpoint):
    async def story(client):
        whole = await chat(client, n=2, seed=7, presence_penalty=0.5)
        stream = await chat(
            client, n=2, seed=7, presence_penalty=0.5, stream=True, stream_options={"include_usage": True}
        )
        texts, usage = ["", ""], None
        async for chunk in stream:
            usage = chunk.usage or usage
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
        assert texts == [choice.message.content for choice in whole.choices]
        counts = [(each.prompt_tokens, each.completion_tokens) for each in (usage, whole.usage)]
        assert counts[0] == counts[1]
        assert usage.prompt_tokens_details.cached_tokens == usage.prompt_tokens - 1  # it has just been read

    using(endpoint, story)


def test_an_answer_keeps_to_a_schema(endpoint):
    form = {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY, "strict": True}}

    async def story(client):
        for temperature in (0.0, 1.5):
            answer = await chat(client, response_format=form, temperature=temperature, seed=3, max_tokens=40)
            assert json.loads(answer.choices[0].message.content)["city"] in ("Rom", "Köln")
            assert answer.choices[0].finish_reason == "stop"
        loose = await chat(client, response_format={"type": "json_object"}, max_tokens=1)
        assert loose.choices[0].message.content == "{"
        for schema, words in (({"type": "objct"}, "objct"), ({"$ref": "#/nowhere"}, "schema cannot be used")):
            broken = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
            with pytest.raises(openai.BadRequestError, match=words):
                await chat(client, response_format=broken)

    using(endpoint, story)


def test_a_demanded_call_comes_back_as_one_and_its_result_goes_in_again(endpoint):
    async def story(client):
        answer = await chat(client, tools=[WEATHER], tool_choice="required", max_tokens=80)
        (call,) = answer.choices[0].message.tool_calls
        assert answer.choices[0].finish_reason == "tool_calls" and answer.choices[0].message.content is None
        assert call.function.name == "weather" and json.loads(call.function.arguments)["city"] in ("Rom", "Köln")
        said = [*HELLO, answer.choices[0].message.model_dump(exclude_none=True)]
        said.append({"role": "tool", "tool_call_id": call.id, "content": "rain"})
        after = await chat(client, messages=said, tools=[WEATHER], tool_choice="none")
        assert after.choices[0].finish_reason == "length" and not after.choices[0].message.tool_calls

        stream = await chat(client, tools=[WEATHER], tool_choice="required", max_tokens=80, stream=True)
        chunks = [chunk.choices[0] async for chunk in stream]
        streamed = [call for chunk in chunks for call in chunk.delta.tool_calls or []]
        assert [one.function.arguments for one in streamed] == [call.function.arguments]
        assert chunks[-1].finish_reason == "tool_calls" and not any(chunk.delta.content for chunk in chunks)

    using(endpoint, story)


def test_probabilities_in_both_forms_add_up_over_a_stream(endpoint):
    async def story(client):
        whole = (await chat(client, logprobs=True, top_logprobs=2)).choices[0].logprobs.content
        assert len(whole) == 8 and all(len(one.top_logprobs) == 2 for one in whole)
        assert all(one.logprob <= 0 and one.logprob == one.top_logprobs[0].logprob for one in whole)  # greedy
        stream = await chat(client, logprobs=True, top_logprobs=2, stream=True)
        parts = [one async for chunk in stream if (told := chunk.choices[0].logprobs) for one in told.content]
        assert [one.token for one in parts] == [one.token for one in whole]
        text = await client.completions.create(model="chat", prompt="ab", logprobs=1, max_tokens=4)
        told = text.choices[0].logprobs
        assert len(told.tokens) == len(told.token_logprobs) == len(told.text_offset) == 4

    using(endpoint, story)


def test_vectors_come_in_the_clients_own_form(endpoint):
    async def story(client):
        usual = await client.embeddings.create(model="embed", input=["a", "b"])  # base64, which the client unpacks
        plain = await client.embeddings.create(model="embed", input=["a", "b"], encoding_format="float")
        for one, other in zip(usual.data, plain.data, strict=True):
            assert one.embedding == pytest.approx(other.embedding, abs=1e-6)

    using(endpoint, story)


def test_errors_are_the_clients_own_kinds_and_a_wrong_name_is_told(endpoint):
    async def story(client):
        with pytest.raises(openai.BadRequestError, match='Did you mean "temperature"') as wrong:
            await chat(client, extra_body={"temprature": 1})
        assert (wrong.value.code, wrong.value.param) == ("unknown_parameter", "temprature")
        with pytest.raises(openai.NotFoundError, match='no model "chatt"'):
            await chat(client, model="chatt")
        with pytest.raises(openai.BadRequestError, match='no parameter "temperature"'):
            await client.embeddings.create(model="embed", input="a", extra_body={"temperature": 0})

    using(endpoint, story)

    async def refused(client):
        with pytest.raises(openai.AuthenticationError):
            await chat(client)

    using(endpoint, refused, key="other")


def test_a_template_takes_what_it_is_told(endpoint):
    async def story(client):
        quiet = await chat(client, seed=1)
        loud = await chat(client, seed=1, extra_body={"chat_template_kwargs": {"loud": True}})
        assert loud.usage.prompt_tokens == quiet.usage.prompt_tokens + 1

    using(endpoint, story)


def test_audio_becomes_text_as_of_openai_and_what_is_no_audio_of_this_model_is_refused(endpoint):
    async def story(client):
        file = endpoint.heard.read_bytes()
        said = await client.audio.transcriptions.create(model="speech", file=("a.wav", file))
        assert isinstance(said.text, str)
        assert await client.audio.transcriptions.create(model="speech", file=file, response_format="text") == said.text
        for wrong, message in (
            ({"file": b"no audio"}, "is no audio that can be read"),
            (
                {
                    "file": tiny_tasks._sound(endpoint.heard.parent, 99, [100] * 4, rate=800)
                    and (endpoint.heard.parent / "99.wav").read_bytes()
                },
                "is audio of 800 samples a second; this model hears 1,600",
            ),
            ({"response_format": "srt"}, '"response_format" is "json" or "text" here'),
            ({"language": "de"}, '"language" is not supported here'),
            ({"extra_body": {"langage": "de"}}, 'There is no parameter "langage" here'),
            ({"model": "chat"}, "does not answer /v1/audio/transcriptions, only"),
        ):
            with pytest.raises(openai.BadRequestError, match=message):
                await client.audio.transcriptions.create(**{"model": "speech", "file": file, **wrong})

    using(endpoint, story)


def test_an_image_stands_in_a_chat_and_what_is_none_or_would_have_to_be_fetched_is_refused(endpoint, monkeypatch):
    def about(url, **more):
        return [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url, **more}},
                                             {"type": "text", "text": "how is"}]}]  # fmt: skip

    async def story(client):
        image = "data:image/png;base64," + base64.b64encode(endpoint.seen.read_bytes()).decode()
        answer = await chat(client, model="eye", messages=about(image))
        assert answer.usage.prompt_tokens > 4 and answer.choices[0].message.role == "assistant"  # 4 of the image
        again = await chat(client, model="eye", messages=about(image), stream=True)
        said = [part.choices[0].delta.content or "" async for part in again]
        assert "".join(said) == answer.choices[0].message.content
        assert (await chat(client, model="eye")).usage.prompt_tokens < 4
        for model, messages, why in (
            ("eye", about("https://there.example/a.png"), "nothing is fetched; send the image as a data: URL"),
            (
                "eye",
                about("data:image/png;base64,aGVsbG8="),
                r"messages\[0\]\.content\[0\] is no image that can be read",
            ),
            ("eye", about(image) + about("data:image/png;base64,aGVsbG8="), r"messages\[1\]\.content\[0\] is no image"),
            ("eye", about("data:image/png;base64,?"), "the image is not base64"),
            ("eye", about(image, detail="low"), '"detail" is not supported'),
            ("eye", [{**about(image)[0], "role": "system"}], 'an image is shown by the role "user"'),
            ("eye", [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}], "audio goes to"),
            ("chat", about(image), "This model reads texts; images are for"),
        ):
            with pytest.raises(openai.BadRequestError, match=why):
                await chat(client, model=model, messages=messages)
        monkeypatch.setattr("workloads.tasks.media.MOST_PIXELS", 24 * 24)
        await chat(client, model="eye", messages=about(image))
        with pytest.raises(openai.BadRequestError, match="more than 576 pixels in its images together"):
            await chat(client, model="eye", messages=about(image) * 2)
        with pytest.raises(openai.BadRequestError, match="Tools are for models of texts"):
            await chat(client, model="eye", messages=about(image), tools=[WEATHER])

    using(endpoint, story)


def test_speech_is_an_apps_by_the_clients_own_method(endpoint):
    async def story(client):
        said = await client.audio.speech.create(
            model="mouth", input="hello", voice="low", response_format="pcm", speed=2
        )
        assert (said.content, said.response.headers["content-type"]) == (b"\xff?" * 250, "audio/pcm")
        with pytest.raises(openai.BadRequestError, match="response_format. is wav or pcm here"):
            await client.audio.speech.create(model="mouth", input="hello", voice="low", response_format="mp3")
        with pytest.raises(openai.NotFoundError, match="chat. does not answer /v1/audio/speech: no model here speaks"):
            await client.audio.speech.create(model="chat", input="hello", voice="low")

    using(endpoint, story)


def test_the_client_asks_again_by_itself_where_a_replica_is_full_for_a_moment():
    busy = Busy()
    gateway = Gateway({"chat": busy}.__getitem__)
    keys = [{"id": "k", "sha256": hashlib.sha256(KEY.encode()).hexdigest(), "models": ["chat"]}]
    models = {"chat": {"workload": "chat", "kind": "model", "replicas": [{"app": "chat"}]}}
    gateway.route({"version": 1, "models": models, "keys": keys})

    async def story(client):
        assert (await chat(client.with_options(max_retries=2))).asked == 3
        busy.asked = 0
        with pytest.raises(openai.InternalServerError):
            await chat(client)  # it was told not to

    using(gateway, story)
