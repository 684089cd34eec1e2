"""A text, spoken: by OpenAI's route for speech, and as the mouth of a `Voice`.

    serve: {app: "workloads.apps.speaker:Espeak", args: {voice: en-us}}

`client.audio.speech.create(model="NAME", input="...", voice="en-us", response_format="wav")` of the stock client, or a
POST to /v1/audio/speech, answers a WAV file, or its samples alone as "pcm". An app is asked `{"text": ..., "voice"}`
and answers `{"audio": a WAV file in base64}`. `Espeak` speaks with the program espeak-ng; a model of one's own is a
subclass of `Speaker` with `say`.
"""

from __future__ import annotations

import base64
import re
import shutil
import subprocess
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from starlette.responses import Response

from llmsched.data.parameters import RequestError, refuse_what_is_not_here
from workloads.apps.voice import wav

LONGEST = 4096  # characters, as OpenAI has it
SLOWEST, FASTEST = 0.25, 4.0
_FORMATS = {"wav": "audio/wav", "pcm": "audio/pcm"}
_OPENAI = {"model", "input", "voice", "response_format", "speed", "user"}
_OURS = {"text", "voice", "speed"}


class Speaker(ABC):
    """`voice`: who speaks where a request does not say."""

    routes = ("audio/speech",)

    def __init__(self, *, voice: str) -> None:
        self.voice = voice

    @abstractmethod
    def say(self, text: str, voice: str, speed: float) -> tuple[np.ndarray, int]:
        """(samples of -1 to 1, of one channel; how many a second). `speed`: 1 is usual. Raises RequestError for a
        voice that there is not."""

    def __call__(self, body: dict[str, Any]) -> Any:
        if not isinstance(body, dict):
            raise RequestError("The body must be a JSON object.", code="invalid_json")
        is_ours = "text" in body
        refuse_what_is_not_here(body, _OURS if is_ours else _OPENAI)
        name, kind = ("text", "wav") if is_ours else ("input", body.get("response_format") or "wav")
        if not isinstance(kind, str) or kind not in _FORMATS:
            raise RequestError(f'"response_format" is {" or ".join(_FORMATS)} here.', param="response_format")
        text, voice, speed = body.get(name), body.get("voice") or self.voice, body.get("speed", 1.0)
        if not isinstance(text, str) or not text.strip() or len(text) > LONGEST:
            raise RequestError(f'"{name}" is a text of up to {LONGEST:,} characters.', param=name)
        if not isinstance(voice, str):
            raise RequestError('"voice" is the name of one.', param="voice")
        if not isinstance(speed, int | float) or isinstance(speed, bool) or not SLOWEST <= speed <= FASTEST:
            raise RequestError(f'"speed" is a number of {SLOWEST} to {FASTEST:g}; 1 is usual.', param="speed")
        samples, rate = self.say(text, voice, float(speed))
        file = wav(samples, rate)
        if is_ours:
            return {"audio": file}
        made = base64.b64decode(file)
        return Response(made if kind == "wav" else made[_WAV_HEAD:], media_type=_FORMATS[kind])


_WAV_HEAD = 44  # bytes, of what `wav` writes
_ESPEAK_RATE = 22_050
_ESPEAK_WORDS = 150  # a minute
_VOICE = re.compile(r"[a-z]{2,3}([-+]\w+)*", re.IGNORECASE)


class Espeak(Speaker):
    """By rules, in a hundred languages. `voice`: of `espeak-ng --voices`, such as en-us or de+f3."""

    def __init__(self, *, voice: str = "en-us") -> None:
        super().__init__(voice=voice)
        if shutil.which("espeak-ng") is None:
            raise ValueError("the program espeak-ng is missing on this node: `apt install espeak-ng`")
        self.say("a", voice, 1.0)

    def say(self, text: str, voice: str, speed: float) -> tuple[np.ndarray, int]:
        no_voice = RequestError(f"There is no voice {voice[:40]!r} here.", param="voice", code="unknown_voice")
        if not _VOICE.fullmatch(voice):  # it names a file of espeak-ng's
            raise no_voice
        words = str(round(_ESPEAK_WORDS * speed))
        command = ["espeak-ng", "-v", voice, "-s", words, "--stdout", "--stdin"]
        done = subprocess.run(command, input=text.encode(), capture_output=True, check=False)
        if done.returncode or not done.stdout:
            raise no_voice
        return np.frombuffer(done.stdout[_WAV_HEAD:], "<i2").astype(np.float32) / 32768, _ESPEAK_RATE
