"""What is in an image or a piece of audio: pixels and samples."""

from __future__ import annotations

import importlib.util
import io
import wave
from pathlib import Path
from typing import Any

import numpy as np

from llmsched.data.media import Source, is_cut, wav
from llmsched.data.messages import Unusable

MOST_PIXELS = 50_000_000


def image(source: Source) -> Any:
    """A PIL image in RGB. Raises Unusable."""
    if importlib.util.find_spec("PIL") is None:
        raise Unusable("is an image, and reading it needs `pip install 'llmsched[media]'`")
    from PIL import Image

    try:
        found = Image.open(source if isinstance(source, Path) else io.BytesIO(source))
        if found.width * found.height > MOST_PIXELS:
            raise Unusable(f"is an image of {found.width} x {found.height}; at most {MOST_PIXELS:,} pixels are read")
        return found.convert("RGB")
    except Unusable:
        raise
    except Exception as error:  # a broken file breaks in many ways
        raise Unusable(f"is no image that can be read{_named(source)}") from error


def audio(source: Source, rate: int) -> Any:
    """Samples of one channel, float32 from -1 to 1, at `rate` a second. Raises Unusable."""
    found, given = _samples(source)
    if given != rate:
        raise Unusable(f"is audio of {given:,} samples a second{_named(source)}; this model hears {rate:,}")
    if not len(found):
        raise Unusable(f"is audio without a sample{_named(source)}")
    return found.mean(axis=1, dtype=np.float32)


def _samples(source: Source) -> tuple[Any, int]:
    """[samples, channels] and the rate: PCM WAV by Python itself, anything else by soundfile where it is there."""
    data = source.read_bytes() if isinstance(source, Path) else source
    try:
        raw, rate, width, channels = wav(data)
    except (wave.Error, EOFError):
        return _by_soundfile(data, source)
    except Unusable as error:
        raise Unusable(f"{error}{_named(source)}") from None
    kinds: dict[int, Any] = {1: np.uint8, 2: "<i2", 4: "<i4"}
    if width == 3:
        padded = np.pad(np.frombuffer(raw, np.uint8).reshape(-1, 3), ((0, 0), (1, 0)))
        numbers = (padded.copy().view("<i4") >> 8).ravel()
    elif width in kinds:
        numbers = np.frombuffer(raw, kinds[width]).astype(np.int64) - 128 * (width == 1)
    else:
        raise Unusable(f"is audio of {8 * width} bits a sample{_named(source)}; 8, 16, 24 and 32 are read")
    return (numbers / float(1 << (8 * width - 1))).astype(np.float32).reshape(-1, channels), rate


def _by_soundfile(data: bytes, source: Source) -> tuple[Any, int]:
    if importlib.util.find_spec("soundfile") is None:
        needs = "other formats than PCM WAV need `pip install 'llmsched[media]'`"
        raise Unusable(f"is no audio that can be read{_named(source)}; {needs}")
    import soundfile

    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            told, rate = int(file.frames), int(file.samplerate)
            samples = file.read(dtype="float32", always_2d=True)
    except Exception as error:
        raise Unusable(f"is no audio that can be read{_named(source)}") from error
    if len(samples) < told or is_cut(data):
        raise Unusable(f"is audio that is cut off{_named(source)}: {len(samples):,} samples are there")
    return samples, rate


def _named(source: Source) -> str:
    return f" ({source.name})" if isinstance(source, Path) else ""
