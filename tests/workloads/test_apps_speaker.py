"""Speech by OpenAI's route and as the mouth of a voice: both say the same, and what cannot be said is told by name."""

import base64
import io
import shutil
import wave

import numpy as np
import pytest

from llmsched.data.parameters import RequestError
from workloads.apps.speaker import Espeak, Speaker
from workloads.apps.voice import is_silent

RATE = 8000


class Hum(Speaker):
    """A tone for each letter; faster speech is shorter."""

    def say(self, text, voice, speed):
        if voice != self.voice:
            raise RequestError(f"There is no voice {voice!r} here.", param="voice")
        return np.sin(np.arange(round(len(text) * RATE / 10 / speed)) / 5).astype("float32") / 2, RATE


hum = Hum(voice="low")


def test_both_ways_of_asking_say_the_same_and_pcm_is_the_samples_alone():
    file = base64.b64decode(hum({"text": "hello"})["audio"])
    by_openai = hum({"model": "hum", "input": "hello", "voice": "low"})
    assert (by_openai.body, by_openai.media_type) == (file, "audio/wav")
    with wave.open(io.BytesIO(file)) as said:
        assert (said.getframerate(), said.getnframes()) == (RATE, RATE // 2)
        assert hum({"input": "hello", "response_format": "pcm"}).body == said.readframes(RATE)
    assert len(hum({"input": "hello", "speed": 2}).body) < len(file) * 0.6


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({}, '"input" is a text'),
        ({"text": " "}, '"text" is a text'),
        ({"input": "a" * 4097}, "up to 4,096 characters"),
        ({"input": "a", "voice": "high"}, "There is no voice 'high' here"),
        ({"input": "a", "voice": 7}, '"voice" is the name of one'),
        ({"input": "a", "speed": 9}, '"speed" is a number of 0.25 to 4'),
        ({"input": "a", "response_format": "mp3"}, '"response_format" is wav or pcm here'),
        ({"input": "a", "response_format": ["wav"]}, '"response_format" is wav or pcm here'),
        ({"input": "a", "instructions": "whisper"}, 'There is no parameter "instructions" here'),
        (["a"], "must be a JSON object"),
    ],
)
def test_what_cannot_be_said_is_told(body, told):
    with pytest.raises(RequestError) as raised:
        hum(body)
    assert told in raised.value.message


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="wants the program espeak-ng")
def test_espeak_speaks_and_its_voices_are_names_not_files():
    mouth = Espeak(voice="en-gb")
    assert not is_silent(mouth({"text": "--help"})["audio"])
    for voice in ("nope", "../../etc/passwd", "-w/tmp/x"):
        with pytest.raises(RequestError, match="There is no voice"):
            mouth({"text": "a", "voice": voice})


def test_without_the_program_it_is_said_how_to_get_it(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match="apt install espeak-ng"):
        Espeak()
