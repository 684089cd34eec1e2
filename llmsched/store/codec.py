"""Records to JSON data and back, from their type hints alone: dataclasses, NamedTuples, tuples, unions with None.

Decides how a fact, a decision or an order is spelled, and knows none of them. Every field is written, so that a changed
default never changes what an old journal says; a field that is missing (an older writer) takes its default, one that is
unknown (a newer writer) is refused rather than dropped. Start reading at `Codec`.
"""

from __future__ import annotations

import dataclasses
import json
import types
from collections.abc import Callable, Iterable
from enum import Enum
from functools import cache
from typing import Any, Union, get_args, get_origin, get_type_hints

from llmsched import sanitize
from llmsched.core import decisions, facts, message
from llmsched.errors import StoreError

Entry = facts.Fact | decisions.Decision
Convert = Callable[[Any], Any]


class CodecError(StoreError):
    """The data does not spell a record this version knows."""

    default_code = "codec"


class Codec:
    """Tagged records: `tag(record)` names the class, `dump`/`load` turn one into JSON text and back."""

    def __init__(self, classes: Iterable[type]) -> None:
        self._classes = {cls.__name__: cls for cls in classes}

    def tag(self, record: object) -> str:
        name = type(record).__name__
        if self._classes.get(name) is not type(record):
            raise CodecError(f"{name} is not a record of this codec")
        return name

    def to_data(self, record: object) -> Any:
        self.tag(record)
        return to_data(type(record), record)

    def from_data(self, tag: str, data: Any) -> Any:
        cls = self._classes.get(tag)
        if cls is None:
            raise CodecError(f'unknown record "{tag}"', hint="Was it written by a newer llmsched?")
        return from_data(cls, data)

    def dump(self, record: object) -> str:
        return json.dumps(self.to_data(record), separators=(",", ":"), ensure_ascii=False)

    def load(self, tag: str, text: str) -> Any:
        try:
            data = sanitize.loads(text)
        except ValueError as error:
            raise CodecError(f"the body of a {tag} is not JSON: {error}") from None
        return self.from_data(tag, data)


def to_data(hint: Any, value: Any) -> Any:
    """`value`, of type `hint`, as JSON data (tuples may stay tuples: `json` writes them as lists)."""
    convert = _encoder(hint)
    return value if convert is None else convert(value)


def from_data(hint: Any, data: Any) -> Any:
    """The inverse of `to_data` after a trip through JSON. Raises CodecError on any other shape."""
    return _decoder(hint)(data)


def default_of(cls: type, name: str) -> Any:
    """What a field has that an older writer did not know. Raises CodecError when it must be said."""
    default = next(default for field, _, default in _fields(cls) or () if field == name)
    if default is _REQUIRED:
        raise CodecError(f"a {cls.__name__} lacks {name}")
    return default.make() if isinstance(default, _Factory) else default


def _fields(cls: type) -> list[tuple[str, Any, Any]] | None:
    """(name, hint, default or _REQUIRED) of a record class; None when `cls` is not one."""
    if dataclasses.is_dataclass(cls):
        hints = get_type_hints(cls)
        found = []
        for item in dataclasses.fields(cls):
            default: Any = _REQUIRED
            if item.default is not dataclasses.MISSING:
                default = item.default
            elif item.default_factory is not dataclasses.MISSING:
                default = _Factory(item.default_factory)
            found.append((item.name, hints[item.name], default))
        return found
    if isinstance(cls, type) and issubclass(cls, tuple) and hasattr(cls, "_fields"):
        hints = get_type_hints(cls)
        defaults = getattr(cls, "_field_defaults", {})
        return [(name, hints[name], defaults.get(name, _REQUIRED)) for name in cls._fields]
    return None


_REQUIRED = object()


class _Factory:
    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make


@cache
def _encoder(hint: Any) -> Convert | None:
    """None: JSON can write it as it stands."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        (inner,) = _without_none(hint)
        convert = _encoder(inner)
        return None if convert is None else lambda value: None if value is None else convert(value)
    if origin is tuple:
        if len(args) == 2 and args[1] is Ellipsis:
            each = _encoder(args[0])
            return None if each is None else lambda value: [each(item) for item in value]
        parts: list[Convert] = [_encoder(arg) or _same for arg in args]
        if all(part is _same for part in parts):
            return None
        return lambda value: [part(item) for part, item in zip(parts, value, strict=True)]
    if hint is message.Message:
        return message.to_data
    fields = _fields(hint)
    if fields is None:
        return None
    plan = [(name, _encoder(kind)) for name, kind, _ in fields]

    def encode(record: Any) -> dict[str, Any]:
        return {
            name: getattr(record, name) if convert is None else convert(getattr(record, name)) for name, convert in plan
        }

    return encode


@cache
def _decoder(hint: Any) -> Convert:
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        (inner,) = _without_none(hint)
        convert = _decoder(inner)
        return lambda data: None if data is None else convert(data)
    if origin is tuple:
        return _tuple_decoder(hint, args)
    if origin is list:
        many = _tuple_decoder(hint, (args[0], Ellipsis))
        return lambda data: list(many(data))
    if origin is dict:
        return _dict_decoder(hint, args)
    if hint is Any:
        return _same
    if hint in (str, bool, int, float):
        return _scalar_decoder(hint)
    if hint is message.Message:
        return _message
    if isinstance(hint, type) and issubclass(hint, Enum):
        return _enum_decoder(hint)
    fields = _fields(hint)
    if fields is None:
        raise TypeError(f"no codec for {hint!r}")
    return _record_decoder(hint, fields)


def _message(data: Any) -> message.Message:
    try:
        return message.from_data(data)
    except ValueError as error:
        raise CodecError(str(error)) from None


def _scalar_decoder(hint: type) -> Convert:
    # A float field may hold a whole number, and keeps it: a replay must see exactly what was first applied.
    allowed = (int, float) if hint is float else (hint,)

    def decode(data: Any) -> Any:
        if type(data) in allowed:
            return 0.0 if hint is float and data - data != 0 else data  # NaN and infinity are no amounts
        raise CodecError(f"expected {hint.__name__}, found {_shown(data)}")

    return decode


def _enum_decoder(hint: type[Enum]) -> Convert:
    def decode(data: Any) -> Any:
        try:
            return hint(data)
        except ValueError:
            raise CodecError(f"{_shown(data)} is no {hint.__name__}") from None

    return decode


def _tuple_decoder(hint: Any, args: tuple[Any, ...]) -> Convert:
    if len(args) == 2 and args[1] is Ellipsis:
        convert = _decoder(args[0])

        def decode_many(data: Any) -> Any:
            if not isinstance(data, (list, tuple)):
                raise CodecError(f"expected a list, found {_shown(data)}")
            return tuple(convert(item) for item in data)

        return decode_many
    parts = [_decoder(arg) for arg in args]

    def decode_fixed(data: Any) -> Any:
        if not isinstance(data, (list, tuple)) or len(data) != len(parts):
            raise CodecError(f"expected a list of {len(parts)}, found {_shown(data)}")
        return tuple(part(item) for part, item in zip(parts, data, strict=True))

    return decode_fixed


def _dict_decoder(hint: Any, args: tuple[Any, ...]) -> Convert:
    convert = _decoder(args[1])

    def decode(data: Any) -> Any:
        if not isinstance(data, dict):
            raise CodecError(f"expected a mapping, found {_shown(data)}")
        return {key: convert(value) for key, value in data.items()}

    return decode


def _record_decoder(cls: Any, fields: list[tuple[str, Any, Any]]) -> Convert:
    plan = [(name, _decoder(kind), default) for name, kind, default in fields]
    known = {name for name, _, _ in plan}

    def decode(data: Any) -> Any:
        if not isinstance(data, dict):
            raise CodecError(f"expected the fields of a {cls.__name__}, found {_shown(data)}")
        if not known.issuperset(data):
            strange = ", ".join(sorted(set(data) - known))
            raise CodecError(
                f"a {cls.__name__} has unknown fields: {strange}", hint="Was it written by a newer llmsched?"
            )
        values = {}
        for name, convert, default in plan:
            if name in data:
                try:
                    values[name] = convert(data[name])
                except CodecError as error:
                    where = f"{cls.__name__}.{name}"
                    raise CodecError(error.message, where=f"{where} {error.where}".strip(), hint=error.hint) from None
            elif default is _REQUIRED:
                raise CodecError(f"a {cls.__name__} lacks {name}")
            else:
                values[name] = default.make() if isinstance(default, _Factory) else default
        return cls(**values)

    return decode


def _without_none(hint: Any) -> list[Any]:
    kinds = [arg for arg in get_args(hint) if arg is not type(None)]
    if len(kinds) != 1:
        raise TypeError(f"{hint!r}: a record field is of one type, or that type or None")
    return kinds


def _same(value: Any) -> Any:
    return value


def _shown(data: Any) -> str:
    text = repr(data)
    return text if len(text) <= 60 else text[:57] + "..."


FACTS: tuple[type, ...] = get_args(facts.Fact)
DECISIONS: tuple[type, ...] = get_args(decisions.Decision)
ENTRIES = Codec(FACTS + DECISIONS)
