"""Images and audio in rows and requests: a path beside the data file, base64, a data: URL, bytes. Nothing is fetched,
and a request names no file. What is in them is for whoever can read it."""

from __future__ import annotations

import base64
import binascii
import importlib.util
import io
import wave
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from llmsched.data import files
from llmsched.data.messages import Unusable

ROLES = {"image", "audio"}
_SHORT = 1024  # characters: whatever is longer is no path
Source = Path | bytes


def folder_of(place: Path) -> Path:
    """Where paths begin in the rows of a file, a folder or a pattern."""
    while files.is_pattern(str(place)):
        place = place.parent
    return place.parent if place.is_file() else place


def beside(folder: Path, file: str) -> Path:
    """Where the paths in the rows of `file` begin; `folder` is that of the whole data set."""
    return folder / Path(file).parent


def of_row(value: Any, folder: Path, role: str) -> Source:
    """The file or the bytes that a row means. Raises Unusable."""
    if isinstance(value, Mapping):  # as the library datasets has it
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str) or not value:
        raise Unusable(f"has no {role}: expected a path beside the data file, or base64")
    if len(value) < _SHORT and (folder / value).is_file():
        return folder / value
    try:
        return of_text(value)
    except Unusable:
        if "://" in value[:20]:
            raise
        what = f"the file {value[:200]!r}, which is not in {folder}" if len(value) < _SHORT else "no base64"
        raise Unusable(f"has as {role} {what}") from None


def least_samples(filters: Sequence[tuple[int, int]]) -> int:
    """How many samples make one place in time for a model that hears by these (size, step), one after the other."""
    least = 1
    for size, step in reversed(filters):
        least = (least - 1) * step + size
    return least


def flaw(source: Source, role: str, rate: int | None, least: int = 1) -> str:
    """What its first bytes show to be wrong, as the end of a sentence; "" for nothing, also where nobody here can tell.
    `rate`: samples a second that are heard; `least`: so many make the shortest that is."""
    file = source if isinstance(source, Path) else io.BytesIO(source)
    named = f" ({source.name})" if isinstance(source, Path) else ""
    if role == "image":
        if importlib.util.find_spec("PIL") is None:
            return ""
        from PIL import Image

        try:
            Image.open(file).close()
        except Exception:  # a broken file breaks in many ways
            return f"has an image that cannot be read{named}"
        return ""
    try:
        heard = _samples_and_rate(source)
    except Unusable as error:
        return f"has audio{named} that {error}"
    if heard is None:
        return f"has audio that cannot be read{named}"
    samples, given = heard
    if given and rate is not None and given != rate:
        return f"has audio of {given:,} samples a second{named}; this model hears {rate:,}"
    if given and samples < least:
        few = f"of {samples:,} samples{named}; this model hears nothing below {least:,}"
        return f"has audio {few if samples else f'without a sample{named}'}"
    return ""


def size_of(source: Source) -> tuple[int, int] | None:
    """Width and height of an image; None: nobody here can tell."""
    if importlib.util.find_spec("PIL") is None:
        return None
    from PIL import Image

    try:
        with Image.open(source if isinstance(source, Path) else io.BytesIO(source)) as found:
            return found.size
    except Exception:  # a broken file breaks in many ways
        return None


class Wav(NamedTuple):
    samples: bytes  # of all channels in turn, as they stand in the file
    rate: int  # a second
    width: int  # bytes of a sample
    channels: int


_STREAMED = 0x7FFF_0000  # bytes: who writes into a pipe cannot know how many come, and says this or more


def wav(source: Source) -> Wav:
    """A WAV file of PCM. Raises Unusable for one that is cut off, and wave.Error or EOFError for what is none."""
    try:
        with _bytes_of(source) as file, wave.open(file) as given:
            rate, width, channels = given.getframerate(), given.getsampwidth(), given.getnchannels()
            told, samples = given.getnframes(), given.readframes(given.getnframes())
    except RuntimeError:  # of a part that is longer than the file says that it is
        raise wave.Error("its parts do not fit together") from None
    of_one = width * channels
    there, rest = divmod(len(samples), of_one)
    if rest or (there < told and told * of_one < _STREAMED):
        raise Unusable(f"is a WAV file that is cut off: its head tells of {told:,} samples, and {there:,} are whole")
    return Wav(samples, rate, width, channels)


def is_cut(data: bytes) -> bool:
    """Whether the samples of a WAV or AIFF file, of any encoding, end before its head says."""
    order: Any = {b"RIFF": "little", b"FORM": "big"}.get(data[:4])
    at = 12
    while order and at + 8 <= len(data):
        name, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], order)
        if name in (b"data", b"SSND"):
            return len(data) < at + 8 + size and size < _STREAMED
        at += 8 + size + size % 2
    return False


def _told_of(given: wave.Wave_read) -> int:
    """Samples by the head of a WAV file, of which the last one alone is read. Raises Unusable where it is not there."""
    told, of_one = given.getnframes(), given.getsampwidth() * given.getnchannels()
    if told and told * of_one < _STREAMED:
        try:
            given.setpos(told - 1)
            is_there = len(given.readframes(1)) == of_one
        except RuntimeError:  # beyond the end that the file itself has
            is_there = False
        if not is_there:
            raise Unusable(f"is a WAV file that is cut off: its head tells of {told:,} samples")
    return told


def _bytes_of(source: Source) -> BinaryIO:
    return source.open("rb") if isinstance(source, Path) else io.BytesIO(source)


_FLAC_HEAD = 26  # bytes: its name, the head of the first block, and of that block as far as the numbers go
_BEGINNINGS = (b"fLaC", b"OggS", b"ID3", b"FORM", b".snd", b"caff", b"\xff")


def _samples_and_rate(source: Source) -> tuple[int, int] | None:
    """Of audio; None: it is none. (1, 0) where nobody here can tell: of another format than PCM WAV, which a worker may
    know. Raises Unusable for a WAV file that is cut off."""
    data = source if isinstance(source, bytes) else None
    try:
        with _bytes_of(source) as file, wave.open(file) as heard:
            return _told_of(heard), heard.getframerate()
    except (wave.Error, EOFError, OSError, RuntimeError):
        pass
    if (told := _of_flac(source if data is None else data)) is not None:
        return told
    if importlib.util.find_spec("soundfile") is not None:
        import soundfile

        try:
            found = soundfile.info(str(source) if data is None else io.BytesIO(data))
        except Exception:  # a broken file breaks in many ways
            return None
        return int(found.frames), int(found.samplerate)
    first = data or b""
    if isinstance(source, Path):
        if source.suffix.lower() not in (".wav", ".wave"):
            return 1, 0
        with source.open("rb") as stream:
            first = stream.read(16)
    is_wave = first.startswith((b"RIFF", b"RIFX", b"RF64")) and first[8:12] == b"WAVE"
    return (1, 0) if data is not None or is_wave or first.startswith(_BEGINNINGS) else None


def _of_flac(source: Source) -> tuple[int, int] | None:
    """Samples and rate as the head of a FLAC file has them (RFC 9639, 8.2), so that a wrong rate is told also where
    nobody can play it; so many samples as can be where it does not say. None: it is none."""
    if isinstance(source, Path):
        with source.open("rb") as stream:
            source = stream.read(_FLAC_HEAD)
    if len(source) < _FLAC_HEAD or not source.startswith(b"fLaC") or source[4] & 0x7F:
        return None
    numbers = int.from_bytes(source[18:26], "big")  # rate 20 bits, channels 3, bits of a sample 5, samples 36
    return (numbers & (1 << 36) - 1) or 1 << 36, numbers >> 44


def of_text(value: str) -> bytes:
    """The bytes of base64 or of a data: URL. Raises Unusable."""
    head, comma, rest = value.partition(",")
    if value.startswith("data:"):
        if not comma or not head.endswith(";base64"):
            raise Unusable("has a data: URL without ;base64")
        value = rest
    elif "://" in value[:20]:
        raise Unusable("has an address, and nothing is fetched; send the bytes as base64 or as a data: URL")
    try:
        found = base64.b64decode("".join(value.split()), validate=True)
    except (ValueError, binascii.Error):
        found = b""
    if not found:
        raise Unusable("is not base64")
    return found
