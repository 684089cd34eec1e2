"""Speech in, speech out, by the apps in between; what is no speech is told so and asked of nobody."""

import base64

import numpy as np
import pytest
from starlette.exceptions import HTTPException

from llmsched.errors import ClusterError, RequestError
from workloads.apps import voice, whisper
from workloads.apps.voice import Voice, wav

RATE = 16_000
TONE = wav(np.sin(np.arange(RATE) / 20) / 2, RATE)
BARE = base64.b64decode(TONE)
RATES = (bytes(4), b"\x01\0\0\0", b"\xfb\xff\xff\xff")  # 0, 1, and a prime: samples in a second
SILENT = wav(np.zeros(RATE), RATE)


class Calls:
    def __init__(self):
        self.asked, self.heard, self.away = [], " turn on the lamp ", ""

    def post(self, name, body):
        self.asked.append((name, body))
        if name == self.away:
            raise ClusterError(f"{name} answered HTTP 503: no replica")
        return {
            "hear": {"text": self.heard},
            "desk": {"answer": "It is on.", "session": "s1"},
            "speak": {"audio": f"spoken: {body.get('text')}"},
        }[name]

    def classify(self, name, inputs):
        self.asked.append((name, inputs))
        return [{"index": 0, "text": self.heard}]


@pytest.fixture
def calls(monkeypatch):
    made = Calls()
    monkeypatch.setattr(voice, "calls", made)
    return made


@pytest.mark.parametrize("ears_are", ["model", "app"])
def test_what_is_said_is_answered_and_the_answer_is_spoken(calls, ears_are):
    said = Voice("hear", "desk", mouth="speak", ears_are=ears_are)({"audio": TONE, "session": "s1"})
    assert said == {
        "heard": "turn on the lamp",
        "answer": {"answer": "It is on.", "session": "s1"},
        "audio": "spoken: It is on.",
    }
    assert calls.asked[1] == ("desk", {"message": "turn on the lamp", "session": "s1"})


def test_without_a_mouth_the_answer_is_text_and_one_of_no_field_is_spoken_whole(calls):
    assert Voice("hear", "desk")({"audio": TONE})["audio"] is None
    assert Voice("hear", "desk", mouth="speak", field="none")({"audio": TONE})["audio"].startswith("spoken: {'answer'")


def test_a_voice_that_says_nothing_is_asked_of_nobody(calls):
    app = Voice("hear", "desk", mouth="speak")
    for silent in (SILENT, wav(np.zeros(0), RATE), wav(np.full(RATE, 1e-4), RATE)):
        assert app({"audio": silent}) == {"heard": "", "answer": None, "audio": None}
    assert calls.asked == []
    calls.heard = "  "
    assert app({"audio": TONE})["answer"] is None and [name for name, _ in calls.asked] == ["hear"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "what is said is"),
        ({"audio": 3}, "what is said is"),
        ({"audio": TONE, "text": "x"}, "what is said is"),
        ({"audio": "???"}, '"audio" is not base64'),
        ({"audio": "http://host/x.wav"}, "nothing is fetched"),
        ({"audio": base64.b64encode(b"no sound at all").decode()}, '"audio" is no WAV file'),
        ({"audio": base64.b64encode(BARE[:-1]).decode()}, "cut off: its head tells of 16,000 samples, and 15,999 are"),
        ({"audio": base64.b64encode(BARE[:-2]).decode()}, "cut off: its head tells of 16,000 samples, and 15,999 are"),
        ({"audio": base64.b64encode(BARE[:44]).decode()}, "cut off: its head tells of 16,000 samples, and 0 are"),
        ({"audio": base64.b64encode(BARE[:24] + bytes(4) + BARE[28:]).decode()}, '"audio" has 0 samples in a second'),
        ({"audio": wav(np.ones(61 * 8), 8)}, '"audio" has 61 s; at most 60 s of 16 bits'),
        ({"audio": base64.b64encode(BARE[:32] + b"\x01\0\x08" + BARE[35:]).decode()}, '"audio" has 8 bits; at most'),
        ({"audio": base64.b64encode(BARE[:16] + b"\xff" * 4 + BARE[20:]).decode()}, '"audio" is no WAV file'),
        ({"audio": TONE, "session": 3}, "what is said is"),
    ],
)
def test_what_is_no_speech_is_refused_with_what_is(calls, body, said):
    with pytest.raises(HTTPException) as refused:
        Voice("hear", "desk")(body)
    assert refused.value.status_code == 422 and said in refused.value.detail and calls.asked == []


@pytest.mark.parametrize("name", ["hear", "desk", "speak"])
def test_who_is_away_is_named(calls, name):
    calls.away = name
    with pytest.raises(HTTPException) as refused:
        Voice("hear", "desk", mouth="speak", ears_are="app")({"audio": TONE})
    assert (refused.value.status_code, refused.value.detail.partition(" ")[0]) == (503, name)


def test_ears_of_another_kind_are_refused():
    with pytest.raises(ValueError, match='ears_are is "model" or "app", not "ap"'.replace('"ap"', "'ap'")):
        Voice("hear", "desk", ears_are="ap")


def test_whisper_says_what_is_missing_and_what_it_cannot_hear():
    with pytest.raises(ValueError, match="the package no_such_model is missing on this node"):
        whisper.Whisper(package="no_such_model")
    for audio, why in (
        ("?", "is not base64; expected a WAV file of 16 bits and one channel"),
        (base64.b64encode(b"RIFF").decode(), "no WAV file"),
        (3, "is not base64"),
        (base64.b64encode(BARE[:-1]).decode(), "cut off"),
        (base64.b64encode(BARE[:-2]).decode(), "cut off"),
        *(
            (base64.b64encode(BARE[:24] + rate + BARE[28:]).decode(), "samples in a second; from 4,000")
            for rate in RATES
        ),
    ):
        with pytest.raises(HTTPException, match=why):
            whisper.heard(audio)
    piped = base64.b64encode(BARE[:4] + b"\xff" * 4 + BARE[8:40] + b"\xff" * 4 + BARE[44:]).decode()
    assert (whisper.heard(piped) == whisper.heard(TONE)).all(), "who writes into a pipe knows no length"
    assert len(whisper.heard(wav(np.ones(RATE * 40), RATE))) == whisper.HEARD_S * RATE + 2 * whisper.QUIET
    samples = whisper.heard(TONE)
    assert samples[: whisper.QUIET].any() == np.False_ and np.abs(samples).max() > 0.05


def test_a_long_answer_is_spoken_as_far_as_a_mouth_takes_it_and_an_empty_one_is_not(calls, monkeypatch):
    for said, spoken in (("x" * 5000, f"spoken: {'x' * 4096}"), (" ", None)):
        monkeypatch.setattr(calls, "post", lambda name, body, said=said: (
            {"audio": f"spoken: {body['text']}"} if name == "speak" else {"answer": said}))  # fmt: skip
        assert Voice("hear", "desk", mouth="speak")({"audio": TONE})["audio"] == spoken


def test_what_the_ears_refuse_is_refused(calls, monkeypatch):
    def post(name, body):
        raise RequestError("hear answered HTTP 422: it has 2 channels", http_status=422)

    monkeypatch.setattr(calls, "post", post)
    with pytest.raises(HTTPException, match="2 channels") as refused:
        Voice("hear", "desk", ears_are="app")({"audio": TONE})
    assert refused.value.status_code == 422
