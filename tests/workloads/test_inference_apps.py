"""What `serve.app` may name, what of it is refused and how, and what its answers are as HTTP. Without Ray."""

import asyncio
import datetime
import sys

import numpy as np
import pytest
import torch
from app_requests import ask

from llmsched.runtime.environment import UserError
from workloads.inference import values
from workloads.inference.replica import Replica

# Serve's own: the destructor of an ingress is a coroutine, which the collector of garbage cannot await.
pytestmark = pytest.mark.filterwarnings("ignore:coroutine .*__del__. was never awaited")

APPS = """
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel
from ray import serve
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Route


@serve.deployment
class Upper:
    def say(self, text):
        return text.upper()


@serve.deployment
class Desk:
    def __init__(self, upper, tone="plain"):
        self.upper, self.tone = upper, tone

    async def __call__(self, request):
        return f"{await self.upper.say.remote((await request.body()).decode())} ({self.tone})"


app = Desk.bind(Upper.bind())


def build(args):
    return Desk.bind(Upper.bind(), **args)


class Settings(BaseModel):
    tone: str


def typed(args: Settings):
    return Desk.bind(Upper.bind(), args.tone)


def of_nothing(args):
    return 3


def broken(args):
    return Desk.bind(Upper.bind(), args["tune"])


@serve.deployment
def function(request):
    return {"method": request.method}


@serve.deployment
class Unbound:
    def __init__(self, tone="plain"):
        self.tone = tone

    def __call__(self, request: Request) -> PlainTextResponse:
        return PlainTextResponse(self.tone + request.query_params["q"], 202)


class Json:
    def __call__(self, body):
        if body == "teapot":
            raise HTTPException(418, "I am a teapot")
        if body == "response":
            return JSONResponse({"a": 1}, 201, {"x-a": "b"})
        return {"model": serve.get_multiplexed_model_id()}


@serve.deployment
class Yields:
    def __call__(self, request):
        yield "a"


web = Starlette(routes=[Route("/hello", lambda request: PlainTextResponse("hello"))])
GPUS = {"num_gpus": 1}
one_gpu = Upper.options(ray_actor_options=GPUS).bind()
two_gpus = Desk.options(ray_actor_options=GPUS).bind(Upper.options(ray_actor_options=GPUS).bind())
HALF = {"num_gpus": 0.5}
halves = Desk.options(ray_actor_options=HALF).bind(Upper.options(ray_actor_options=HALF).bind())
part = {"num_gpus": 0.6}
lower = Upper.options(name="Lower", ray_actor_options=part).bind()
thirds = Desk.options(ray_actor_options=part).bind(Upper.options(ray_actor_options=part).bind(), lower)
fpga = Upper.options(ray_actor_options={"resources": {"FPGA": 2}}).bind()
piped = Upper.options(ray_actor_options={"runtime_env": {"pip": ["a"], "env_vars": {"A": "b"}}}).bind()
bundled = Upper.options(placement_group_bundles=[{"CPU": 1}, {"GPU": 1}]).bind()
many = Upper.options(num_replicas=3, user_config=None).bind()
yields = Yields.bind()
number = 3
"""


@pytest.fixture(scope="module", autouse=True)
def module(tmp_path_factory):
    folder = tmp_path_factory.mktemp("apps")
    (folder / "apps_of_serve.py").write_text(APPS)
    (folder / "deploys_itself.py").write_text(f"{APPS}\nserve.run(app, name='other')\n")
    sys.path.insert(0, str(folder))
    yield
    sys.path.remove(str(folder))
    for one in MADE:
        one.close()


MADE = []


def made(name, args=None, member=None, module="apps_of_serve"):
    serve = {"app": f"{module}:{name}", "args": args or {}}
    spec = {"serve": serve, "max_ongoing_requests": 8}
    order = {"gang": "x/0", "attempt": 1, "members": [{"cpus": 1, **(member or {})}], "spec": spec}
    MADE.append(Replica(order))
    return MADE[-1]


def test_an_argument_that_names_a_result_is_its_folder(tmp_path):
    serve = {"app": "apps_of_serve:build", "args": {"tone": "run://demand"}}
    order = {"gang": "x/0", "attempt": 1, "members": [{"cpus": 1}], "spec": {"serve": serve}}
    MADE.append(Replica({**order, "inputs": {"run://demand": tmp_path.as_uri()}}))
    assert asyncio.run(ask(MADE[-1], body=b"hi")).body == f"HI ({tmp_path})".encode()
    with pytest.raises(UserError, match="no such file or folder"):
        Replica({**order, "inputs": {"run://demand": (tmp_path / "gone").as_uri()}})


@pytest.mark.parametrize(
    ("name", "args", "request_", "status", "body"),
    [
        ("app", {}, {"body": b"hi"}, 200, b"HI (plain)"),
        ("build", {"tone": "kind"}, {"body": b"hi"}, 200, b"HI (kind)"),
        ("typed", {"tone": "kind"}, {"body": b"hi"}, 200, b"HI (kind)"),
        ("function", {}, {"method": "GET"}, 200, b'{"method":"GET"}'),
        ("Unbound", {"tone": "so "}, {"query": "q=it"}, 202, b"so it"),
        ("web", {}, {"path": "/hello", "method": "GET"}, 200, b"hello"),
        ("Json", {}, {"body": "teapot"}, 418, b'{"detail":"I am a teapot"}'),
        ("Json", {}, {"body": "response"}, 201, b'{"a":1}'),
        ("Json", {}, {"body": {}, "multiplexed": "seven"}, 200, b'{"model":"seven"}'),
    ],
)
def test_an_app_is_whatever_serve_run_takes_or_a_class_that_takes_json(name, args, request_, status, body):
    answer = asyncio.run(ask(made(name, args), **request_))
    assert (answer.status, answer.body) == (status, body)


@pytest.mark.parametrize(
    ("name", "args", "member", "message"),
    [
        ("apq", {}, {}, "has nothing called 'apq'. Did you mean 'app'?"),
        ("number", {}, {}, 'expected a bound application ("app = Desk.bind()") or a builder'),
        ("app", {"tone": "kind"}, {}, "it is bound already, so serve.args has no effect. Name a builder."),
        ("of_nothing", {}, {}, "must return an `Application`"),
        ("typed", {}, {}, "tone\n  Field required"),
        ("Unbound", {"tune": 1}, {}, "do not fit serve.args"),
        ("function", {"a": 1}, {}, "a function takes no serve.args"),
        (
            "one_gpu",
            {},
            {},
            '(Upper 1) and the replica has 0: write resources: {accelerators: "TYPE:1"} in',
        ),
        ("two_gpus", {}, {"gpus": 1.0}, "ask for 2 GPUs (Desk 1, Upper 1) and the replica has 1"),
        ("thirds", {}, {"gpus": 2.0}, "(Desk 0.6, Lower 0.6, Upper 0.6) fill 3 GPUs, since a part is of one GPU"),
        ("fpga", {}, {"custom": [("FPGA", 1.0)]}, "write resources: {custom: {FPGA: 2}} in the spec"),
        ("piped", {}, {}, "Write environment: {pip: [...]} and envs: {...} in the spec"),
        ("bundled", {}, {}, "placement_group_bundles has no effect here"),
    ],
)
def test_what_is_not_taken_is_refused_with_what_to_write(name, args, member, message):
    with pytest.raises(UserError) as refused:
        made(name, args, member)
    assert message in str(refused.value)


def test_a_fault_in_a_builder_is_told_as_the_users():
    with pytest.raises(KeyError, match="tune"):
        made("broken")


def test_deployments_share_a_gpu_of_the_replica():
    assert made("halves", member={"gpus": 1.0})


def test_a_module_that_deploys_itself_is_told_to_leave_that_to_us():
    with pytest.raises(UserError, match=r"deploys an application when it is imported \(serve.run\)"):
        made("app", module="deploys_itself")


def test_options_about_processes_are_told_in_the_log(capfd):
    made("many")
    said = capfd.readouterr().err
    assert "deployment Upper: num_replicas has no effect here. replicas: 2 (or 1..4) in the spec" in said


def test_a_deployment_that_yields_over_http_is_told_how_to_stream():
    answer = asyncio.run(ask(made("yields")))
    assert answer.status == 500 and "returns a StreamingResponse" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("request_", "status", "code"),
    [
        ({"method": "GET"}, 405, "method_not_allowed"),
        ({"path": "/predict", "body": {}}, 404, "unknown_url"),
        ({"body": b"{"}, 400, "invalid_json"),
        ({"body": b"{", "more_body": True}, 413, "request_too_large"),
    ],
)
def test_a_class_that_takes_json_says_what_it_takes(request_, status, code):
    answer = asyncio.run(ask(made("Json"), **request_))
    assert (answer.status, answer.json()["error"]["code"]) == (status, code)


def test_numbers_of_libraries_are_numbers_and_records_are_objects():
    pydantic = pytest.importorskip("pydantic")
    record = pydantic.create_model("Record", score=(float, 0.5))()
    value = {
        "array": np.arange(3),
        "float": np.float32(1.5),
        "bool": np.bool_(True),
        "tensor": torch.ones(2, dtype=torch.bfloat16, requires_grad=True),
        "scalar": torch.tensor(7),
        "at": datetime.datetime(2020, 1, 1),
        "record": record,
        "tuple": (1, {2}),
    }
    assert values.encoded(value) == (
        b'{"array":[0,1,2],"float":1.5,"bool":true,"tensor":[1.0,1.0],"scalar":7,"at":"2020-01-01T00:00:00",'
        b'"record":{"score":0.5},"tuple":[1,[2]]}'
    )


@pytest.mark.parametrize(
    ("value", "word"),
    [
        ({"v": float("nan")}, "NaN"),
        (np.array([1.0, np.inf]), "NaN or infinity"),
        (torch.tensor(float("nan")), "NaN"),
        (b"\x00", "bytes"),
        ({"v": object()}, "object"),
        ({(1, 2): 3}, "tuple"),
        (np.array([object()]), "object"),
    ],
)
def test_what_json_has_no_word_for_is_refused_by_name(value, word):
    with pytest.raises(values.Unsayable, match=word):
        values.encoded(value)


@pytest.mark.parametrize(
    ("body", "code"),
    [(b'{"text": "half a pair: \\ud83d"}', "invalid_json"), (b'{"text": "one", "text": "two"}', "repeated_key")],
)
def test_a_text_that_is_none_and_a_key_that_would_have_no_effect_are_refused(body, code):
    answer = asyncio.run(ask(made("Json"), body=body))
    assert (answer.status, answer.json()["error"]["code"]) == (400, code)
    assert asyncio.run(ask(made("Json"), body=b'{"text": "a pair: \\ud83d\\ude00"}')).status == 200
