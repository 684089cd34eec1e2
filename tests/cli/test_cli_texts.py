"""What an endpoint says of texts, at the terminal: a label each, a vector each; and the command that asks it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from live import Live, Parrot
from test_cli_output import Run, runner

from llmsched.cli.look import _what
from llmsched.cli.main import cli
from llmsched.cli.work import _after_apply, _ask_it
from llmsched.spec.http_models import Applied, WorkloadView


class Reader(Parrot):
    """Calls what is long "long", and counts its characters."""

    asked: ClassVar[list[Any]] = []

    async def call(self, route: str, body: dict[str, Any], adapter: dict[str, Any] | None) -> dict[str, Any]:
        self.bodies.append(body)
        if route == "audio/transcriptions":
            return {"text": f"{len(body['file'])} bytes"}
        texts = body["input"]
        self.asked.append(texts)
        if route == "classify":
            if isinstance(texts[0], dict):
                at = {"box": [1.0, 2.0, 3.5, 4.0]}
                return {"data": [{"index": n, "label": "lamp", "score": 0.5, "at": at} for n, _ in enumerate(texts)]}
            labels = ["long" if len(text) > 5 else "short" for text in texts]
            if body.get("explain"):
                why = [{"text": "hello", "weight": 0.125}, {"text": "there", "weight": -0.5}]
                return {"data": [{"label": label, "scores": {label: 0.75}, "why": why} for label in labels]}
            return {"data": [{"label": label, "scores": {label: 0.75, "other": 0.25}} for label in labels]}
        return {"data": [{"embedding": [len(text), 0.5]} for text in texts]}


@pytest.fixture
def run(fresh: Live, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    run = runner(fresh, tmp_path, monkeypatch)
    with fresh.endpoint(Reader(), task=""):  # it answers whatever is asked
        yield run


def test_each_text_gets_its_label_and_each_its_vector(run: Run) -> None:
    assert run("classify", "qwen", "hi", "hello there").stdout == "short  75.0%\nlong  75.0%\n"
    assert run("embed", "qwen", "hi", "hello there").stdout == "2 0.5\n11 0.5\n"
    assert [one["label"] for one in json.loads(run("classify", "qwen", "hi", "--json").stdout)] == ["short"]
    assert json.loads(run("embed", "qwen", "hi", "--json").stdout) == [[2, 0.5]]


def test_what_each_word_adds_is_told_the_strongest_first(run: Run) -> None:
    told = run("classify", "qwen", "hello there", "--explain").stdout
    assert told == "long  75.0%\n  -0.500  there\n  +0.125  hello\n"


def test_files_and_pairs_are_asked_about(run: Run, tmp_path: Path) -> None:
    (tmp_path / "lamp.png").write_bytes(b"pixels")
    (tmp_path / "hum.wav").write_bytes(b"waves")
    files = ("--image", str(tmp_path / "lamp.png"), "--audio", str(tmp_path / "hum.wav"))
    assert run("classify", "qwen", *files).stdout == "lamp  50.0%  1 2 3.5 4\n" * 2
    assert Reader.asked[-1] == [{"image": "cGl4ZWxz"}, {"audio": "d2F2ZXM="}]
    assert run("classify", "qwen", "what is it?", "--image", str(tmp_path / "lamp.png")).exit_code == 0
    assert Reader.asked[-1] == [{"text": "what is it?", "image": "cGl4ZWxz"}]
    assert run("classify", "qwen", "who", "--pair", "a passage").exit_code == 0
    assert Reader.asked[-1] == [["who", "a passage"]]


def test_what_is_said_in_files_comes_a_line_each(run: Run, tmp_path: Path) -> None:
    (tmp_path / "hum.wav").write_bytes(b"waves\r\n--")
    file = str(tmp_path / "hum.wav")
    assert run("transcribe", "qwen", file, file).stdout == "9 bytes\n9 bytes\n"
    assert json.loads(run("transcribe", "qwen", file, "--json").stdout) == ["9 bytes"]


def test_images_are_shown_with_a_question(fresh: Live, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lamp.png").write_bytes(b"pixels")
    run, parrot = runner(fresh, tmp_path, monkeypatch), Parrot()
    with fresh.endpoint(parrot):
        assert run("chat", "qwen", "-m", "what is it?", "--image", str(tmp_path / "lamp.png"), "--json").exit_code == 0
    shown, asked = parrot.bodies[-1]["messages"][0]["content"]
    assert shown == {"type": "image_url", "image_url": {"url": "data:;base64,cGl4ZWxz"}}
    assert asked == {"type": "text", "text": "what is it?"}


def test_texts_come_from_a_pipe_a_line_each_and_none_is_refused(run: Run) -> None:
    piped = run("classify", "qwen", given="hi\n\nhello there\n")
    assert piped.stdout == "short  75.0%\nlong  75.0%\n"
    nothing = run("embed", "qwen", given="")
    assert (nothing.exit_code, "there is no text" in nothing.output) == (2, True)


@pytest.mark.parametrize(
    ("serves", "command"),
    [
        ("sequence-classification", "classify"),
        ("question-answering", "classify"),
        ("image-segmentation", "classify"),
        ("automatic-speech-recognition", "transcribe"),
        ("image-text-to-text", "chat"),
        ("feature-extraction", "embed"),
        ("app", "status"),
        ("causal-lm", "chat"),
    ],
)
def test_the_command_that_is_suggested_exists_and_fits_what_is_served(serves: str, command: str) -> None:
    applied = Applied.model_construct(name="mine", serves=serves)
    said, _ = _ask_it(applied)
    assert said.split()[:3] == ["llmsched", command, "mine"] and command in cli.list_commands(None)  # type: ignore[arg-type]


def test_after_two_endpoints_of_one_answer_the_one_is_suggested_that_answers(
    capsys: pytest.CaptureFixture[str],
) -> None:
    parts = (("mine-prompts", "prefill"), ("mine", "causal-lm"))
    _after_apply([Applied.model_construct(id=name, name=name, kind="serve", serves=serves) for name, serves in parts])
    said = capsys.readouterr()
    assert "llmsched chat mine " in said.out + said.err and "chat mine-prompts" not in said.out + said.err


def test_the_list_says_what_ails_an_endpoint_that_answers() -> None:
    given = {"kind": "serve", "phase": "running", "size": 2}
    whole = WorkloadView.model_construct(**given, message="")
    ails = WorkloadView.model_construct(**given, message="the rollout is held")
    assert [_what(one) for one in (whole, ails)] == ["2 replicas answer", f"2 replicas answer; {ails.message}"]
