"""Writes spoken digits of twelve voices, and a small ear without weights. `python prepare.py`

espeak-ng (GPL, `apt install espeak-ng`) speaks two to four digits at a time; 9 voices are learnt from, at several
speeds and pitches, and 3 that nobody has heard are transcribed. The audio is made, not recorded.
"""

from __future__ import annotations

import io
import json
import random
import shutil
import subprocess
import wave
from pathlib import Path
from typing import Any

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LEARNT = ("en-us", "en-gb", "en-us+f2", "en-us+f4", "en-us+m3", "en-us+m5", "en-gb+f3", "en-gb+m2", "en-gb+m7")
UNHEARD = ("en-us+f5", "en-us+m1", "en-gb+f1")
TRAIN, TEST = 900, 120
RATE = 8000  # samples a second: what a telephone has
_SEED = 7


def prepare(folder: Path) -> None:
    import transformers

    if not (program := shutil.which("espeak-ng")):
        raise SystemExit("espeak-ng is missing, which speaks: `apt install espeak-ng`")
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    for name, voices, count in (("train", LEARNT, TRAIN), ("test", UNHEARD, TEST)):
        chance, rows = random.Random(f"{_SEED}{name}"), []
        for number in range(count):
            said = " ".join(chance.choices(WORDS, k=chance.randrange(2, 5)))
            how = ["-s", str(chance.randrange(130, 190)), "-p", str(chance.randrange(30, 70))]
            file = f"audio/{name}-{number}.wav"
            speak([program, "-v", voices[number % len(voices)], *how, "--stdout", said], folder / file)
            rows.append({"audio": file, "text": said})
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = folder / "model"
    model.mkdir(exist_ok=True)
    letters = ["<pad>", "<s>", "</s>", "<unk>", "|", *sorted({letter for word in WORDS for letter in word})]
    (model / "vocab.json").write_text(json.dumps({letter: place for place, letter in enumerate(letters)}))
    transformers.Wav2Vec2CTCTokenizer(str(model / "vocab.json")).save_pretrained(model)
    transformers.Wav2Vec2FeatureExtractor(sampling_rate=RATE, return_attention_mask=True).save_pretrained(model)
    transformers.Wav2Vec2Config(
        vocab_size=len(letters), pad_token_id=0, hidden_size=96, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=192, conv_dim=(48, 64, 64, 96, 96), conv_kernel=(10, 4, 4, 4, 4), conv_stride=(5, 4, 2, 2, 2),
        num_feat_extract_layers=5, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4,
        feat_extract_norm="layer", do_stable_layer_norm=True, hidden_dropout=0.0, attention_dropout=0.0,
        activation_dropout=0.0, feat_proj_dropout=0.0, final_dropout=0.0, layerdrop=0.0,
    ).save_pretrained(model)  # fmt: skip


def speak(command: list[str], file: Path) -> None:
    """As a wave file of RATE."""
    import numpy as np
    from scipy.signal import resample_poly

    said = subprocess.run(command, capture_output=True, check=True).stdout
    with wave.open(io.BytesIO(said)) as heard:  # of a stream, so the length that it gives is none
        rate, samples = heard.getframerate(), np.frombuffer(said[44:], dtype="<i2")
    less: Any = resample_poly(samples.astype("float32"), RATE, rate)
    with wave.open(str(file), "wb") as made:
        made.setparams((1, 2, RATE, 0, "NONE", ""))
        made.writeframes(np.clip(less, -32767, 32767).astype("<i2").tobytes())


if __name__ == "__main__":
    prepare(Path(__file__).parent / "data")
