"""The border: whatever users, workloads, Ray and files say becomes text and numbers that everything behind can take.

What people ask is checked and refused by name (`first_flaw`). What workloads and the cluster report is made valid and
kept (`text`, `number`, `data`, `record`): characters that are none are spelled out (`\\udce9`, `\\x1b`), numbers are
finite and bounded, nothing is deeper or longer than the bounds below. The decoders that everything passes call this
module, no handler does: the bodies of `spec.http_requests`, `spec.document`, `store.codec`, `executors.wire`,
`control.inbox`, the receipts and reports of `runtime`, and the printing of `cli.show`. Standard library only.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import types
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

TEXT_AT_MOST = 4_000  # characters
NAME_AT_MOST = 200
ITEMS_AT_MOST = 1_000  # of one list or mapping that a workload reports
VALUES_AT_MOST = 5_000  # of all that it reports at once
WORDS_AT_MOST = 1_000  # characters of each
DEPTH_AT_MOST = 16
LARGEST = 2**63 - 1
CHECKED_AT_MOST = 1_000_000  # values of one request

# No characters: lone surrogates. Not for reading: control characters except tab and line feed, line separators of
# Unicode, and those that turn the direction of what follows them.
_NOT_UNICODE = re.compile("[\ud800-\udfff]")
_UNREADABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u2028-\u202e\u2066-\u2069]")
_COLOURS = re.compile("\x1b\\[[0-9;]*m")  # of a terminal: how words look, and nothing that it would obey
_REFUSED = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


class Raw:
    """Marks a text of a record that people want as it was written, control characters and all: `Output`."""


Output = Annotated[str, Raw]


# --- what is reported is made valid -------------------------------------------------------------------------------


def text(value: Any, limit: int = TEXT_AT_MOST) -> str:
    """`value` as readable text of at most `limit` characters. Never raises."""
    said = value if isinstance(value, str) else words(value)
    if len(said) > limit:
        said = f"{said[: limit - 1]}…"
    return shown(said)


def line(value: Any, limit: int = TEXT_AT_MOST) -> str:
    """The same without line ends."""
    said = value if isinstance(value, str) else words(value)
    return text(" ".join(said[: 2 * limit].split()) if "\n" in said or "\t" in said else said, limit)


def shown(said: str, *, in_json: bool = False) -> str:
    """Readable as a whole, however long: what a terminal would obey or cannot show is spelled out, and colours go."""
    if not _UNREADABLE.search(said):
        return said
    if not in_json:
        said = _COLOURS.sub("", said)
    return _UNREADABLE.sub(_spelled_in_json if in_json else _spelled, said.replace("\r\n", "\n"))


def unicode(said: str) -> str:
    """Only what no encoding can write is spelled out."""
    if said.isascii():
        return said
    return _NOT_UNICODE.sub(_spelled, said) if _NOT_UNICODE.search(said) else said


def _spelled(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def _spelled_in_json(found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):04x}"


def loads(written: str | bytes) -> Any:
    """JSON that lay in a file or came through a pipe, as data that can be written again. Raises ValueError."""
    try:
        found = json.loads(written)
        return _unicode_of(found) if _SURROGATE[type(written)] in written else found  # type: ignore[operator]
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


# Where half of a surrogate pair may stand: spelled out, as bytes, or in a body of UTF-16 or UTF-32.
_MAY_BE_NO_TEXT = re.compile(rb"\\u[dD][89a-fA-F]|\xed[\xa0-\xbf]|\x00")


class RepeatedKey(ValueError):
    """Which, in words."""


def asked(written: str | bytes) -> Any:
    """JSON that somebody asks with, as it is. Raises ValueError, RepeatedKey for a key that stands twice in one object:
    one of the two would have no effect."""
    return json.loads(written, object_pairs_hook=_each_once)


def asked_of_app(written: bytes) -> Any:
    """The same of the body of a request to an endpoint. Raises ValueError also for half of a surrogate pair: tokenizers
    and encoders would fail of it, as if we had made a mistake."""
    found = asked(written)
    if _MAY_BE_NO_TEXT.search(written):
        json.dumps(found, ensure_ascii=False).encode()
    return found


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    (twice, _), *_ = Counter(key for key, _ in pairs).most_common(1)
    raise RepeatedKey(f'the key "{line(twice, 60)}" is here twice')


_SURROGATE: dict[type, str | bytes] = {str: "\\u", bytes: b"\\u"}  # only spelled out can one get into JSON


def _unicode_of(found: Any) -> Any:
    if isinstance(found, str):
        return unicode(found)
    if isinstance(found, dict):
        return {unicode(key): _unicode_of(value) for key, value in found.items()}
    return [_unicode_of(item) for item in found] if isinstance(found, list) else found


def words(value: Any) -> str:
    """`str(value)`, also of what cannot say itself: an exception may raise where it is asked for its words."""
    try:
        return str(value)
    except Exception as error:
        return f"{type(value).__name__} (it cannot be put into words: {type(error).__name__})"


def first_line(error: Any, limit: int = 300) -> str:
    """What an exception says first, or its type when it says nothing."""
    lines = words(error).strip().splitlines()
    return text(lines[0], limit) if lines else type(error).__name__


def number(value: float) -> float | str:
    """A finite number of at most 64 bits as it is; any other in words: "nan", "-inf", "1e400"."""
    if isinstance(value, bool) or (isinstance(value, int) and abs(value) <= LARGEST):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    exponent = int(math.log10(abs(value)))
    return f"{'-' if value < 0 else ''}{10 ** (math.log10(abs(value)) - exponent):.4g}e{exponent}"


def data(value: Any) -> Any:
    """JSON data of any shape, bounded in every direction. What is no JSON is said in words."""
    return _data(value, DEPTH_AT_MOST, [VALUES_AT_MOST])


def _data(value: Any, depth: int, left: list[int]) -> Any:
    left[0] -= 1
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, (int, float)):
        return number(value)
    if not isinstance(value, (dict, list, tuple)):
        return text(value, WORDS_AT_MOST)
    if depth <= 0 or left[0] <= 0:
        return "…"
    some = _some(value)[: left[0]]
    if isinstance(value, dict):
        return {text(key, NAME_AT_MOST): _data(value[key], depth - 1, left) for key in some}
    return [_data(item, depth - 1, left) for item in some]


def numbers(values: Any) -> dict[str, float]:
    """The finite numbers of a mapping, by name."""
    if not isinstance(values, dict):
        return {}
    return {text(name, NAME_AT_MOST): float(values[name]) for name in _some(values) if _is_number(values[name])}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and not isinstance(number(value), str)


def _some(values: Any) -> list[Any]:
    return list(values)[:ITEMS_AT_MOST]


def record(value: Any) -> Any:
    """The same dataclass or NamedTuple with every field made valid, as its type hints say."""
    cls: Any = type(value)
    return _maker(cls)(value)


@cache
def _maker(hint: Any) -> Callable[[Any], Any]:
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return (
            (lambda value: unicode(value if isinstance(value, str) else words(value)))
            if Raw in args
            else _maker(args[0])
        )
    if origin in (Union, types.UnionType):
        (kind,) = [arg for arg in args if arg is not type(None)]
        make = _maker(kind)
        if kind in (int, float):
            return lambda value: make(value) if _is_number(value) else None
        return lambda value: None if value is None else make(value)
    if origin is dict:
        return _dict_maker(args[1])
    if origin in (tuple, list):
        return _sequence_maker(origin, args)
    fields = _fields(hint)
    if fields is not None:
        makers = [(name, _maker(kind)) for name, kind in fields]
        return lambda value: hint(**{name: make(getattr(value, name)) for name, make in makers})
    return _SCALARS.get(hint, data)


def _dict_maker(kind: Any) -> Callable[[Any], Any]:
    if kind is float:
        return numbers
    make = _maker(kind)

    def made(value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            return {}
        return {text(key, NAME_AT_MOST): make(value[key]) for key in _some(value)}

    return made


def _sequence_maker(origin: Any, args: tuple[Any, ...]) -> Callable[[Any], Any]:
    if origin is list or args[1:] == (Ellipsis,):
        make = _maker(args[0])
        return lambda value: origin(make(item) for item in value) if isinstance(value, (list, tuple)) else origin()
    makers = [_maker(arg) for arg in args]
    return lambda value: tuple(make(item) for make, item in zip(makers, value, strict=True))


def _fields(cls: Any) -> list[tuple[str, Any]] | None:
    if not isinstance(cls, type):
        return None
    if dataclasses.is_dataclass(cls):
        names = [item.name for item in dataclasses.fields(cls)]
    elif hasattr(cls, "_fields"):
        names = list(cls._fields)
    else:
        return None
    hints = get_type_hints(cls, include_extras=True)
    return [(name, hints[name]) for name in names]


def finite(value: Any) -> float:
    """A number as it is, as far as it is finite and bounded; 0 for what is none."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value == value:
        return max(-LARGEST, min(LARGEST, value))
    return 0.0


def whole(value: Any) -> int:
    return int(finite(value))


_SCALARS: dict[Any, Callable[[Any], Any]] = {str: text, float: finite, int: whole, bool: lambda value: value is True}


# --- what is asked is refused -------------------------------------------------------------------------------------


def flaw(said: str) -> str:
    """What is wrong with a text that somebody wrote; "" when nothing is."""
    found = _REFUSED.search(said)
    if found is None:
        return ""
    kind = "is no character" if _NOT_UNICODE.match(found[0]) else "is a control character"
    return f"{_spelled(found)} at place {found.start() + 1} {kind}"


def first_flaw(given: Any, where: str = "$") -> tuple[str, str] | None:
    """(place, what is wrong) of the first text or number in JSON data that nothing could take, if there is one."""
    for count, (place, value) in enumerate(_values(given, where)):
        if count >= CHECKED_AT_MOST:
            return where, f"it holds more than {CHECKED_AT_MOST} values"
        wrong = ""
        if isinstance(value, str):
            wrong = flaw(value)
        elif isinstance(value, float) and not math.isfinite(value):
            wrong = f"{value} is not a finite number"
        elif isinstance(value, int) and abs(value) > 2 * LARGEST + 1:
            wrong = "the number is too large"
        if wrong:
            return text(place, 500), wrong
    return None


def _values(given: Any, where: str) -> Iterator[tuple[str, Any]]:
    """Every key and value, without recursion: what is nested too deeply must not end whoever looks."""
    stack: list[tuple[str, Any, Any]] = [(where, given, None)]
    while stack:
        place, value, key = stack.pop()
        if key is not None:
            yield f"a key in {place.removesuffix(f'.{key}')}", key
        if isinstance(value, dict):
            stack += [(f"{place}.{name}", value[name], name) for name in reversed(value)]
        elif isinstance(value, list):
            stack += [(f"{place}[{index}]", value[index], None) for index in range(len(value) - 1, -1, -1)]
        else:
            yield place, value
