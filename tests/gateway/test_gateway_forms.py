"""Forms with files, cut as they were written; each route takes as much as it is for."""

import asyncio
import random

import httpx
import pytest
from gateway_house import AUTH, House

from llmsched.gateway import forms
from llmsched.gateway.refusals import Refused


def encoded(**form):
    request = httpx.Request("POST", "http://g", **form)
    return request.headers["content-type"], request.read()


def test_a_file_comes_out_of_a_form_as_it_went_in():
    chance = random.Random(1)
    for size in (0, 1, 2, 300, 70_000):
        data = bytes(chance.choices(b"\r\n-ab\x00\xff", k=size))
        kind, body = encoded(
            data={"model": "höre", "tags[]": ["a", "b"]}, files={"file": ('a "b".wav', data, "audio/wav")}
        )
        assert forms.fields(kind, body) == {"model": "höre", "tags": ["a", "b"], "file": data}


FORM = "multipart/form-data; boundary=x"
FIELD = b'--x\r\nContent-Disposition: form-data; name="a%s"\r\n\r\n%s\r\n'


@pytest.mark.parametrize(
    ("kind", "body", "code"),
    [
        ("application/json", b"{}", "invalid_form"),
        ("multipart/form-data", b"", "invalid_form"),
        (FORM, b"--x\r\n\r\nno end", "invalid_form"),
        (FORM, b"--x\r\n\r\nno name\r\n--x--", "invalid_form"),
        (FORM, FIELD % (b"", b"\xff") + b"--x--", "invalid_form"),
        (FORM, FIELD % (b"", b"1") * 2 + b"--x--", "repeated_key"),
        (FORM, FIELD % (b"[]", b"1") * 99 + b"--x--", "invalid_form"),
    ],
)
def test_a_form_that_is_none_is_refused(kind, body, code):
    with pytest.raises(Refused) as refused:
        forms.fields(kind, body)
    assert (refused.value.status, refused.value.code) == (400, code)


def test_each_route_takes_as_much_as_it_is_for():
    async def story():
        house = House("a")
        text, image = "x" * (2 << 20), "x" * (15 << 20)
        assert (await house.ask(path="/v1/completions", json={"model": "qwen", "prompt": text})).status_code == 413
        assert (await house.chat(messages=image)).status_code == 200
        whole = await house.chat(messages=image + text)
        assert (whole.status_code, whole.json()["error"]["message"]) == (413, "The request is larger than 16 MiB.")
        form = {"path": "/v1/audio/transcriptions", "headers": AUTH, "data": {"model": "qwen"}}
        house = House("a", task="automatic-speech-recognition")
        heard = await house.ask(files={"file": b"x" * (20 << 20)}, **form)
        assert heard.json() == {"replica": "a", "route": "audio/transcriptions", "adapter": None}
        assert (await house.ask(files={"file": b"x" * (26 << 20)}, **form)).status_code == 413
        no_form = await house.ask(path="/v1/audio/transcriptions", json={"model": "qwen"})
        assert no_form.json()["error"]["code"] == "invalid_form"

    asyncio.run(story())
