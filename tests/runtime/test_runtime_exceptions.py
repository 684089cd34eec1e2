"""What a user's code raises arrives in words, whatever it is: valid, without secrets, in an exception of ours."""

from __future__ import annotations

import asyncio
import json
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from app_requests import ask
from ray import cloudpickle
from waiting import PATIENCE_S

from llmsched.runtime import exceptions, failures, redaction
from llmsched.runtime.exceptions import WorkError, in_words
from llmsched.runtime.replica import MARK, ReplicaHost

SECRET = "hunter2-and-more"


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("I do not speak")


class Leaves(BaseException):
    pass


def unpicklable() -> Exception:
    class Local(Exception):
        def __reduce__(self) -> Any:
            raise TypeError("not me")

    return Local("a lock cannot travel")


def chained() -> Exception:
    error = ValueError("outer")
    error.__cause__ = KeyError("caf\udce9")
    return error


HOSTILE: dict[str, tuple[Callable[[], BaseException], str]] = {
    "no text": (lambda: ValueError("cannot parse caf\udce9.txt"), "ValueError: cannot parse caf\\udce9.txt"),
    "mute": (Mute, "Mute: Mute (it cannot be put into words: RuntimeError)"),
    "not to be pickled": (unpicklable, "Local: a lock cannot travel"),
    "with a cause": (chained, "ValueError: outer"),
    "leaves": (lambda: SystemExit("bye caf\udce9"), "SystemExit: bye caf\\udce9"),
    "no Exception": (lambda: Leaves("off"), "Leaves: off"),
    "interrupt": (KeyboardInterrupt, "KeyboardInterrupt: no message"),
    "stop": (lambda: StopIteration(7), "StopIteration"),
    "several": (
        lambda: ExceptionGroup("two", [ExceptionGroup("one", [ValueError("caf\udce9")]), OSError("disk")]),
        "ExceptionGroup: two (2 sub-exceptions), the first: ValueError: caf\\udce9",
    ),
    "a secret": (lambda: ValueError(f"wrong key {SECRET}"), "ValueError: wrong key ***"),
    "a terminal's": (lambda: ValueError("\x1b[2Jgone"), "ValueError: \\x1b[2Jgone"),
}


@pytest.fixture(autouse=True)
def secret() -> Iterator[None]:
    redaction.hide({"envs": {"KEY": SECRET}, "spec": {"secrets": ["KEY"]}})
    yield
    redaction.hide({"envs": {}, "spec": {}})


@pytest.mark.parametrize("kind", HOSTILE)
def test_what_is_raised_goes_on_in_words_of_ours(kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    make, told = HOSTILE[kind]
    with pytest.raises(WorkError) as caught, in_words("[mark] "):
        raise make()
    assert told in str(caught.value) and str(caught.value).startswith("[mark] ")
    again = cloudpickle.loads(cloudpickle.dumps(caught.value))  # as Ray sends it
    assert (type(again), str(again)) == (WorkError, str(caught.value))
    "".join(traceback.format_exception(caught.value)).encode()  # as Ray writes it
    shown = capfd.readouterr().err
    assert "Traceback" in shown and SECRET not in shown and shown.isprintable() is False and "\x1b" not in shown


def test_who_is_told_to_leave_leaves_as_told() -> None:
    for order in (asyncio.CancelledError, GeneratorExit):
        with pytest.raises(order), in_words():
            raise order


def test_one_error_in_a_group_is_of_the_class_that_it_is() -> None:
    assert failures.event_of(ExceptionGroup("one", [ImportError("no module")])) == "input"
    assert failures.event_of(ExceptionGroup("two", [ImportError("no module"), OSError("disk")])) == "error"


APP = """
HOSTILE = {}

class App:
    def __init__(self, when=""):
        if when == "made":
            raise HOSTILE["now"]()

    def __call__(self, body):
        raise HOSTILE["now"]()

    async def check_health(self):
        raise HOSTILE["now"]()

class Slow(App):
    async def __call__(self, body):
        raise HOSTILE["now"]()

class Several(App):
    def __call__(self, body):
        yield 1
        raise HOSTILE["now"]()
"""


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., ReplicaHost]:
    (tmp_path / "hostile_apps.py").write_text(APP)
    monkeypatch.syspath_prepend(tmp_path)

    def made(kind: str, app: str = "App", **args: Any) -> ReplicaHost:
        import hostile_apps

        hostile_apps.HOSTILE["now"] = HOSTILE[kind][0]
        serve = {"app": f"hostile_apps:{app}", "args": args}
        spec = {"name": "x", "kind": "serve", "serve": serve, "secrets": ["A_KEY"]}
        monkeypatch.setenv("A_KEY", "")
        order = {
            "gang": "x/0",
            "attempt": 1,
            "envs": {"A_KEY": SECRET},
            "members": [{"rank": 0, "cpus": 1.0}],
            "spec": spec,
        }
        return ReplicaHost(json.dumps(order))

    return made


@pytest.mark.parametrize("kind", HOSTILE)
def test_an_app_that_cannot_be_made_says_why(kind: str, host: Callable[..., ReplicaHost]) -> None:
    with pytest.raises(WorkError) as caught:
        host(kind, when="made")
    assert str(caught.value).startswith(MARK) and HOSTILE[kind][1] in str(caught.value)
    assert caught.value.__suppress_context__ and caught.value.__cause__ is None
    "".join(traceback.format_exception(caught.value)).encode()


@pytest.mark.parametrize("app", ["App", "Slow", "Several"])
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_call_that_raises_is_answered_and_the_replica_lives(
    kind: str, app: str, host: Callable[..., ReplicaHost]
) -> None:
    async def story() -> None:
        replica = host(kind, app)
        answer = await asyncio.wait_for(ask(replica, body={}), PATIENCE_S)
        streamed = await asyncio.wait_for(ask(replica, body={"stream": True}), PATIENCE_S)
        assert (answer.status, streamed.status) == (500, 200 if app == "Several" else 500)
        for told in (answer.json(), (streamed.events() if app == "Several" else [streamed.json()])[-1]):
            said = told["error"]["message"]
            said.encode()
            assert SECRET not in said
            assert kind == "stop" or said.partition(":")[0] in HOSTILE[kind][1] or "RuntimeError" in said
        health = await replica.health()
        health["trouble"].encode()
        assert "its health check failed" in health["trouble"]

    asyncio.run(story())


def test_the_border_says_the_same_twice() -> None:
    with pytest.raises(WorkError, match=r"^inner ValueError: x"), in_words("outer "), in_words("inner "):
        raise ValueError("x")
    assert exceptions.words(ValueError("a\nb")) == "ValueError: a"
