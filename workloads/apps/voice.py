"""Speech in, speech out: what is said becomes text, another app answers it, and its answer is spoken.

    serve: {app: "workloads.apps.voice:Voice", args: {ears: hear, answers: desk, mouth: speak}}
    calls: [hear, desk, speak]

`{"audio": a WAV file in base64, "session": ...}` -> `{"heard": a text, "answer": what the other app says, "audio": it
spoken, its first 4,096 characters}`. The ears are an `automatic-speech-recognition` endpoint, or an app (`ears_are:
app`) of `{"audio"}` -> `{"text"}`; the mouth is an app of `{"text"}` -> `{"audio"}`. A voice that says nothing is told
so and nobody is asked.
"""

from __future__ import annotations

import base64
import io
import wave
from typing import Any, Literal

import numpy as np
from starlette.exceptions import HTTPException

from llmsched.data import media
from llmsched.data.messages import Unusable
from llmsched.runtime import calls
from workloads.apps.asking import asked

LONGEST_S = 60.0
SAID_AT_MOST = 4096  # characters of an answer; a mouth takes no more
SILENCE = 0.003  # of full scale, as the square root of the mean of squares
_EXPECTED = '{"audio": a WAV file of 16 bits in base64, "session": of the answer before, or none}'


class Voice:
    """`answers`: an app of `{ask: text, "session"}`, whose answer has its words at `field`; of any other answer the
    whole is spoken. Without a `mouth` the answer is text alone."""

    def __init__(
        self, ears: str, answers: str, *, mouth: str = "", ears_are: Literal["model", "app"] = "model",
        ask: str = "message", field: str = "answer",
    ) -> None:  # fmt: skip
        if ears_are not in ("model", "app"):
            raise ValueError(f'ears_are is "model" or "app", not {ears_are!r}')
        self._ears, self._answers, self._mouth = ears, answers, mouth
        self._ears_are, self._ask, self._field = ears_are, ask, field

    def __call__(self, body: dict[str, Any]) -> dict[str, Any]:
        audio, session = body.get("audio"), body.get("session")
        if set(body) - {"audio", "session"} or not isinstance(audio, str) or not isinstance(session, str | None):
            raise HTTPException(422, f"what is said is {_EXPECTED}")
        if is_silent(audio):
            return {"heard": "", "answer": None, "audio": None}
        heard = self._hear(audio).strip()
        if not heard:
            return {"heard": "", "answer": None, "audio": None}
        question = {self._ask: heard, **({"session": session} if session else {})}
        answer = asked(calls.post, self._answers, question)
        words = answer.get(self._field, answer) if isinstance(answer, dict) else answer
        return {"heard": heard, "answer": answer, "audio": self._say(str(words))}

    def _say(self, words: str) -> Any:
        """None without a mouth, and where there is nothing to say."""
        if not self._mouth or not words.strip():
            return None
        return asked(calls.post, self._mouth, {"text": words[:SAID_AT_MOST]})["audio"]

    def _hear(self, audio: str) -> str:
        if self._ears_are == "app":
            return str(asked(calls.post, self._ears, {"audio": audio})["text"])
        return str(asked(calls.classify, self._ears, [{"audio": audio}])[0]["text"])


def is_silent(audio: str) -> bool:
    """Raises HTTPException (422) for what is no WAV file of 16 bits, cut off, or too long."""
    try:
        frames, rate, width, channels = media.wav(media.of_text(audio))
    except Unusable as error:
        raise HTTPException(422, f'"audio" {error}; what is said is {_EXPECTED}') from None
    except (wave.Error, EOFError):
        raise HTTPException(422, f'"audio" is no WAV file; what is said is {_EXPECTED}') from None
    if rate < 1:
        raise HTTPException(422, f'"audio" has 0 samples in a second; what is said is {_EXPECTED}')
    if width != 2 or (seconds := len(frames) / (rate * width * channels)) > LONGEST_S:
        what = f"{8 * width} bits" if width != 2 else f"{seconds:.0f} s"
        raise HTTPException(422, f'"audio" has {what}; at most {LONGEST_S:.0f} s of 16 bits are heard')
    samples = np.frombuffer(frames, "<i2").astype(np.float32) / 32768
    return samples.size == 0 or float(np.sqrt(np.mean(samples**2))) < SILENCE


def wav(samples: np.ndarray, rate: int) -> str:
    """Samples (-1..1) of one channel as a WAV file in base64: what a mouth answers."""
    file = io.BytesIO()
    with wave.open(file, "wb") as made:
        made.setparams((1, 2, rate, 0, "NONE", ""))
        made.writeframes((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())
    return base64.b64encode(file.getvalue()).decode()
