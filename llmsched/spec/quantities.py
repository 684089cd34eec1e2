"""The words inside a value: `10m`, `8GB`, `2..8`, `A100:1`, names, sources. Each is an annotated type for the models.

A dump holds plain numbers (seconds, bytes); a dump "as written" (see `section.WRITTEN`) holds the words again.
Parsers raise ValueError with a sentence that says what was expected; `problems` adds the place.
"""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime
from typing import Annotated, Any, NamedTuple
from urllib.parse import unquote

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainSerializer,
    SerializationInfo,
    WithJsonSchema,
    model_serializer,
    model_validator,
)

from llmsched.core import cron
from llmsched.spec.section import Section

# --- durations, sizes, points in time -----------------------------------------------------------------------------

_DURATION_UNITS = {"d": 86_400.0, "h": 3_600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_DURATION = re.compile(r"(?:(\d{1,9}(?:\.\d{1,6})?)(ms|d|h|m|s))", re.ASCII)
_LONGEST_S = 10 * 366 * 86_400.0
_SIZE_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_SIZE_UNITS |= {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_SIZE = re.compile(r"(\d{1,16}(?:\.\d{1,6})?)\s?([KMGT]i?B|B)", re.ASCII)
_LARGEST_BYTES = 2**50
_SMALLEST_BYTES = 10**6  # of what is not 0: a number below it was meant in another unit


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_written(info: SerializationInfo) -> bool:
    return bool(info.context and info.context.get("written"))


def parse_duration(value: Any) -> float:
    """Seconds from `10m`, `1h30m`, `500ms` or a plain number of seconds."""
    if _is_number(value):
        seconds = float(value)
    elif isinstance(value, str):
        parts = _DURATION.findall(value)
        units = [unit for _, unit in parts]
        in_order = units == sorted(set(units), key=list(_DURATION_UNITS).index)
        if not parts or "".join(number + unit for number, unit in parts) != value or not in_order:
            raise ValueError('expected a duration such as "10m", "1h30m", "500ms" or a number of seconds')
        seconds = sum(float(number) * _DURATION_UNITS[unit] for number, unit in parts)
    else:
        raise ValueError('expected a duration such as "10m", "1h30m", "500ms" or a number of seconds')
    if not 0 <= seconds <= _LONGEST_S:
        raise ValueError("expected a duration between 0 and ten years")
    return round(seconds, 6)


def parse_switch(value: Any) -> bool:
    """True or False, also as `on` and `off`."""
    found = {"on": True, "off": False, True: True, False: False}.get(value) if isinstance(value, str | bool) else None
    if found is None:
        raise ValueError("expected on or off")
    return found


def write_duration(seconds: float) -> str:
    """`5400.0` -> `1h30m`; parsing it gives the same number of seconds (to the microsecond)."""
    whole, millis = divmod(round(seconds * 1000, 3), 1000)
    text = ""
    left = int(whole)
    for unit in ("d", "h", "m", "s"):
        count, left = divmod(left, int(_DURATION_UNITS[unit]))
        text += f"{count}{unit}" if count else ""
    text += f"{millis:g}ms" if millis else ""
    return text or "0s"


def parse_size(value: Any) -> int:
    """Bytes from `8GB` (10^9), `8GiB` (2^30) or a whole number of bytes."""
    if isinstance(value, int) and not isinstance(value, bool):
        size = value
    elif isinstance(value, str) and (match := _SIZE.fullmatch(value)):
        size = round(float(match[1]) * _SIZE_UNITS[match[2]])
    else:
        raise ValueError('expected a size such as "64GB", "512MiB" or a whole number of bytes')
    if 0 < size < _SMALLEST_BYTES:
        raise ValueError(
            f'expected a size with its unit, such as "{value}GB"; {size} would be bytes'
            if isinstance(value, int)
            else "expected a size of at least 1MB"
        )
    if not 0 <= size <= _LARGEST_BYTES:
        raise ValueError("expected a size between 0 and 1024TiB")
    return size


def write_size(size: int) -> str:
    for unit in ("TB", "TiB", "GB", "GiB", "MB", "MiB", "KB", "KiB"):
        if size and size % _SIZE_UNITS[unit] == 0:
            return f"{size // _SIZE_UNITS[unit]}{unit}"
    return f"{size}B"


def parse_stamp(value: Any) -> float:
    """Seconds since 1970 from `2026-12-01T08:00Z` (a zone is required) or a plain number."""
    if _is_number(value):
        stamp = float(value)
    else:
        try:
            moment = datetime.fromisoformat(value) if isinstance(value, str) else None
        except ValueError:
            moment = None
        if moment is None or moment.tzinfo is None:
            raise ValueError('expected a time with its zone, such as "2026-12-01T08:00Z"')
        stamp = moment.timestamp()
    if not 0 <= stamp <= 253_402_300_799:
        raise ValueError("expected a time between the years 1970 and 9999")
    return stamp


def write_stamp(stamp: float) -> str:
    return datetime.fromtimestamp(stamp, UTC).isoformat().replace("+00:00", "Z")


def _dump_duration(value: float, info: SerializationInfo) -> float | str:
    return write_duration(value) if is_written(info) else value


def _dump_size(value: int, info: SerializationInfo) -> int | str:
    return write_size(value) if is_written(info) else value


def _dump_stamp(value: float, info: SerializationInfo) -> float | str:
    return write_stamp(value) if is_written(info) else value


Duration = Annotated[
    float,
    BeforeValidator(parse_duration),
    PlainSerializer(_dump_duration),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "number", "minimum": 0},
                {"type": "string", "pattern": r"^(\d+(\.\d+)?(ms|d|h|m|s))+$"},
            ],
            "description": "A duration: 10m, 1h30m, 500ms, or seconds.",
        }
    ),
]
Switch = Annotated[
    bool,
    BeforeValidator(parse_switch),
    WithJsonSchema({"anyOf": [{"type": "boolean"}, {"type": "string", "enum": ["on", "off"]}]}),
]
Size = Annotated[
    int,
    BeforeValidator(parse_size),
    PlainSerializer(_dump_size),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 0},
                {"type": "string", "pattern": r"^\d+(\.\d+)? ?([KMGT]i?B|B)$"},
            ],
            "description": "A size: 64GB (10^9), 512MiB (2^20), or bytes.",
        }
    ),
]
Stamp = Annotated[
    float,
    BeforeValidator(parse_stamp),
    PlainSerializer(_dump_stamp),
    WithJsonSchema(
        {
            "anyOf": [{"type": "number"}, {"type": "string", "format": "date-time"}],
            "description": "ISO 8601 with a zone.",
        }
    ),
]


# --- ranges -------------------------------------------------------------------------------------------------------

_RANGE = re.compile(r"(\d{1,6})\.\.(\d{1,6})", re.ASCII)
LARGEST_COUNT = 100_000


class Range(Section):
    """`4`, `2..8` or `{min: 2, max: 8, step: 2}`; both ends included."""

    min: int = Field(ge=0, le=LARGEST_COUNT)
    max: int = Field(ge=0, le=LARGEST_COUNT)
    step: int = Field(default=1, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _from_words(cls, value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool):
            return {"min": value, "max": value}
        if isinstance(value, str) and (match := _RANGE.fullmatch(value)):
            return {"min": int(match[1]), "max": int(match[2])}
        if isinstance(value, (dict, Range)):
            return value
        raise ValueError('expected a whole number, a range such as "2..8", or {min, max, step}')

    @model_validator(mode="after")
    def _is_a_range(self) -> Range:
        if self.max < self.min:
            raise ValueError(f"the range ends ({self.max}) before it begins ({self.min})")
        if (self.max - self.min) % self.step:
            raise ValueError(f"from {self.min} in steps of {self.step} one never comes to {self.max}")
        return self

    @model_serializer
    def _dump(self, info: SerializationInfo) -> dict[str, int] | int | str:
        if not is_written(info) or self.step != 1:
            return {"min": self.min, "max": self.max, "step": self.step}
        return self.min if self.min == self.max else f"{self.min}..{self.max}"

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: Any) -> dict[str, Any]:
        count = {"type": "integer", "minimum": 0}
        written = {"min": count, "max": count, "step": {"type": "integer", "minimum": 1}}
        return {
            "anyOf": [
                count,
                {"type": "string", "pattern": r"^\d+\.\.\d+$"},
                {"type": "object", "properties": written, "required": ["min", "max"], "additionalProperties": False},
            ],
            "description": "A number, a range 2..8, or {min, max, step}.",
        }


def at_least_one(value: Range) -> Range:
    if value.min < 1:
        raise ValueError("expected at least 1")
    return value


# --- accelerators -------------------------------------------------------------------------------------------------

_ACCELERATOR = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,62})(?::(\d{1,6}(?:\.\d{1,6})?))?", re.ASCII)


class Accelerator(NamedTuple):
    flavor: str
    gpus_milli: int

    def __str__(self) -> str:
        return f"{self.flavor}:{self.gpus_milli / 1000:g}"


def parse_accelerator(text: Any) -> Accelerator:
    """`A100:2`, `L4:0.5`, `H100` (one). A share is of one device; above one, GPUs are whole."""
    match = _ACCELERATOR.fullmatch(text) if isinstance(text, str) else None
    if not match:
        raise ValueError('expected accelerators as "A100:1", "L4:0.5" or a list of these in order of preference')
    milli = round(float(match[2] or 1) * 1000)
    if milli < 1:
        raise ValueError(f'"{text}" asks for no accelerator at all; leave accelerators out for CPU only')
    if milli > 1000 and milli % 1000:
        raise ValueError(f'"{text}": above one, accelerators are whole; a share such as L4:0.5 is of one device')
    return Accelerator(match[1], milli)


def _parse_accelerators(value: Any) -> list[str]:
    wanted = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(wanted, list):
        raise ValueError('expected accelerators as "A100:1", "L4:0.5" or a list of these in order of preference')
    parsed = [parse_accelerator(item) for item in wanted]
    if len({each.flavor for each in parsed}) < len(parsed):
        raise ValueError("names the same accelerator twice")
    return [str(each) for each in parsed]


_ACCELERATOR_SCHEMA = {"type": "string", "pattern": r"^[A-Za-z0-9][A-Za-z0-9._-]*(:\d+(\.\d+)?)?$"}
Accelerators = Annotated[
    list[str],
    BeforeValidator(_parse_accelerators),
    Field(max_length=16),
    WithJsonSchema({"anyOf": [_ACCELERATOR_SCHEMA, {"type": "array", "items": _ACCELERATOR_SCHEMA}, {"type": "null"}]}),
]

# --- names and places ---------------------------------------------------------------------------------------------

NAME_PATTERN = "^[a-z0-9][a-z0-9-]{0,62}$"
RUN_PATTERN = "^[a-z0-9][a-z0-9-]{0,62}([.][a-z0-9][a-z0-9-]{0,62})?(@[1-9][0-9]{0,5})?$"
MODEL_ID_PATTERN = "^[A-Za-z0-9][A-Za-z0-9._/-]{0,127}$"
ENV_PATTERN = "^[A-Za-z_][A-Za-z0-9_]{0,127}$"
LABEL_PATTERN = "^[A-Za-z0-9][A-Za-z0-9._/-]{0,127}$"
DEPLOYMENT_PATTERN = "^[A-Za-z0-9_][A-Za-z0-9_. -]{0,62}$"
ENTRY_POINT_PATTERN = "^[A-Za-z_][A-Za-z0-9_]*([.][A-Za-z_][A-Za-z0-9_]*)*:[A-Za-z_][A-Za-z0-9_]*$"
CONDITION_PATTERN = "^[A-Za-z_][A-Za-z0-9_.]* ?(<|<=|>|>=|==|!=) ?-?[0-9]+([.][0-9]+)?(e-?[0-9]+)?$"
URL_PATTERN = "^https://[^ ]+$"
FLAVOR_PATTERN = "^([*]|[A-Za-z0-9][A-Za-z0-9._-]{0,62})$"

PATTERN_WORDS = {
    NAME_PATTERN: 'a name of lower-case letters, digits and "-", at most 63 long',
    RUN_PATTERN: 'the name of a workload, or of one run of it ("prepare@2")',
    MODEL_ID_PATTERN: 'an id of letters, digits, ".", "_", "/" and "-"',
    ENV_PATTERN: 'the name of an environment variable: letters, digits and "_", and no digit first, at most 128 long',
    LABEL_PATTERN: 'a label of letters, digits, ".", "_", "/" and "-"',
    DEPLOYMENT_PATTERN: 'the name of a deployment: letters, digits, " ", "_", "." and "-", at most 63 long',
    ENTRY_POINT_PATTERN: '"module:name", such as "mypkg.train:loop"',
    URL_PATTERN: "an https:// address",
    FLAVOR_PATTERN: 'a flavor such as "A100", or "*" for every one',
    CONDITION_PATTERN: 'a comparison of a metric with a number, such as "eval.loss < 1.2"',
}

Name = Annotated[str, Field(pattern=NAME_PATTERN)]
RunName = Annotated[str, Field(pattern=RUN_PATTERN)]
ModelId = Annotated[str, Field(pattern=MODEL_ID_PATTERN)]
EnvName = Annotated[str, Field(pattern=ENV_PATTERN)]
Label = Annotated[str, Field(pattern=LABEL_PATTERN)]
EntryPoint = Annotated[str, Field(pattern=ENTRY_POINT_PATTERN, max_length=256)]


def _is_finite(condition: str) -> str:
    if not math.isfinite(float(re.split("[<>=!]+", condition)[1])):
        raise ValueError("compares with a number that is too large")
    return condition


Condition = Annotated[str, Field(pattern=CONDITION_PATTERN, max_length=128), AfterValidator(_is_finite)]
HttpsUrl = Annotated[str, Field(pattern=URL_PATTERN, max_length=2048)]
FlavorName = Annotated[str, Field(pattern=FLAVOR_PATTERN)]
Text = Annotated[str, Field(min_length=1, max_length=4096)]

SCHEMES = ("hf", "s3", "file", "run", "model")
_A_NAME = "[a-z0-9][a-z0-9-]{0,62}"
_RUN_SOURCE = re.compile(rf"run://({_A_NAME}(?:[.]{_A_NAME})?)(?:@([1-9][0-9]{{0,5}}))?(/best)?", re.ASCII)
_MODEL_SOURCE = re.compile(r"model://([a-z0-9][a-z0-9-]{0,62})(?:@([1-9][0-9]{0,5}))?", re.ASCII)
_PACKAGE_SOURCE = re.compile(r"package:[A-Za-z_][A-Za-z0-9_.-]*/.+", re.ASCII)
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):", re.ASCII)


class RunSource(NamedTuple):
    """`run://NAME@N/best`: `run` is None for the newest, `best` asks for the best checkpoint."""

    name: str
    run: int | None
    best: bool


def parse_run_source(source: str) -> RunSource | None:
    """The run a source names; None for any other source."""
    match = _RUN_SOURCE.fullmatch(source)
    return RunSource(match[1], int(match[2]) if match[2] else None, bool(match[3])) if match else None


class ModelSource(NamedTuple):
    """`model://NAME@VERSION`: `version` is None for the newest."""

    name: str
    version: int | None


def parse_model_source(source: str) -> ModelSource | None:
    """The registered model a source names; None for any other source."""
    match = _MODEL_SOURCE.fullmatch(source)
    return ModelSource(match[1], int(match[2]) if match[2] else None) if match else None


def _refuse_odd_characters(text: str) -> None:
    # Decoded once: "%2e%2e%2f" must not become a way out later, and nobody needs an encoded separator in a path.
    if any(ord(letter) < 32 or letter == "\\" for letter in unquote(text)) or re.search("%2f|%5c|%2e", text, re.I):
        raise ValueError("has a control character, a backslash or an encoded separator in it")
    if ".." in unquote(text).split("/"):
        raise ValueError('may not go up with ".."')


def check_source(text: str) -> str:
    """A model or data set: hf:// s3:// file:// run:// model:// package:NAME/PATH or a path."""
    if not text or len(text) > 1024:
        raise ValueError("expected a source of 1 to 1024 characters")
    _refuse_odd_characters(text)
    scheme = _SCHEME.match(text)
    if scheme is None:
        return text
    if text.startswith("package:"):
        if not _PACKAGE_SOURCE.fullmatch(text):
            raise ValueError('expected "package:NAME/PATH", a file or folder inside an installed Python package')
    elif scheme[1] not in SCHEMES or not text.startswith(f"{scheme[1]}://"):
        known = " ".join(f"{each}://" for each in SCHEMES)
        raise ValueError(f'"{scheme[1]}:" is not a known kind of source; known are {known} package: and plain paths')
    elif scheme[1] == "run" and not _RUN_SOURCE.fullmatch(text):
        raise ValueError('expected "run://NAME", "run://NAME@N", and at most "/best" after it')
    elif scheme[1] == "model" and not _MODEL_SOURCE.fullmatch(text):
        raise ValueError('expected "model://NAME" or "model://NAME@VERSION", a version being a number')
    elif len(text) == len(scheme[1]) + 3:
        raise ValueError(f'nothing follows "{text}"')
    return text


def check_storage(text: str) -> str:
    """Where results go: s3://bucket/prefix or a folder."""
    check_source(text)
    if "://" in text and not text.startswith(("s3://", "file://")) or text.startswith("package:"):
        raise ValueError("expected s3://BUCKET/PREFIX or a folder")
    return text


_PACKED = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)


def check_workdir(text: str) -> str:
    """A folder below the spec's own, normalised; or `sha256:...`, the packed folder a client has uploaded."""
    if _PACKED.fullmatch(text):
        return text
    if not text or len(text) > 1024:
        raise ValueError("expected a relative path of 1 to 1024 characters")
    _refuse_odd_characters(text)
    if text.startswith(("/", "~")) or ":" in text or "#" in text:
        raise ValueError("expected a relative path to a folder next to the spec")
    return "/".join(part for part in text.split("/") if part not in ("", ".")) or "."


Source = Annotated[str, AfterValidator(check_source)]
Storage = Annotated[str, AfterValidator(check_storage)]
Workdir = Annotated[str, AfterValidator(check_workdir)]


def check_cron(text: str) -> str:
    """Five fields, in UTC, of a minute that comes."""
    if len(text) > 128:
        raise ValueError('expected five cron fields, such as "0 2 * * *"')
    cron.check(text)
    return text


Cron = Annotated[
    str,
    AfterValidator(check_cron),
    WithJsonSchema({"type": "string", "description": "Five cron fields, in UTC: 0 2 * * *."}),
]
