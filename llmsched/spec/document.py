"""YAML or JSON text -> plain data in which every key and value knows where it stands. Knows nothing of specs.

The text is read as events and never recursed into by a parser, so that hostile nesting cannot exhaust a stack; tags are
refused, so nothing but text, numbers, booleans and null can come out. The scalars are those of YAML 1.2's core schema:
`on`, `yes` and `12:30` are text, which is what people mean in `evaluation: {on: test}`.
"""

from __future__ import annotations

import codecs
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import yaml

from llmsched import sanitize
from llmsched.errors import Problem

MAX_BYTES = 256 * 1024
MAX_DEPTH = 32
MAX_ALIASES = 64
MAX_VALUES = 50_000  # over all documents, aliases counted as often as they are used

_INT = re.compile(r"[-+]?[0-9]+", re.ASCII)
_INT_BASED = re.compile(r"0x[0-9a-fA-F]{1,15}|0o[0-7]{1,20}", re.ASCII)
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", re.ASCII)
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", re.ASCII)
_WORDS = {
    word: value for value, words in ((True, "true True TRUE"), (False, "false False FALSE")) for word in words.split()
}
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

Path = tuple[str | int, ...]


@dataclass(slots=True)
class Value:
    """`data` is a scalar, a list or a dict of Values; `place` is (line, column) from 1, `keys` are the keys' places."""

    data: Any
    place: tuple[int, int]
    keys: dict[str, tuple[int, int]] = field(default_factory=dict)
    height: int = 0  # levels below
    size: int = 1  # values in it, aliases expanded

    def plain(self) -> Any:
        if isinstance(self.data, dict):
            return {key: value.plain() for key, value in self.data.items()}
        if isinstance(self.data, list):
            return [value.plain() for value in self.data]
        return self.data


@dataclass(slots=True)
class Document:
    """One document of a file, or one JSON object (`root` is None then, and places are JSON paths)."""

    data: Any
    filename: str = ""
    root: Value | None = None

    def where(self, path: Sequence[str | int], *, of_key: bool = False) -> str:
        """`file:line:column` of the value at `path`, or of its key; as deep as the path can be followed."""
        if self.root is None:
            return self.filename + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
        value, place = self.root, self.root.place
        for part in path:
            if isinstance(value.data, dict) and part in value.data:
                key = value.keys[str(part)]
                value = value.data[part]
                place = key if of_key else value.place
            elif isinstance(value.data, list) and isinstance(part, int) and part < len(value.data):
                value = value.data[part]
                place = value.place
            else:
                break
        return f"{self.filename}:{place[0]}:{place[1]}"


def dotted(path: Path) -> str:
    """`datasets[0].path`: a path as people read it."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")


class _Broken(Exception):
    """The text cannot be read on; what was found so far is reported with it."""


def parse(text: str | bytes, filename: str) -> tuple[list[Document], list[Problem]]:
    """The documents of a YAML text that are not empty, and what is wrong with the text itself."""
    reader = _Reader(filename)
    try:
        roots = list(reader.read(text))
    except _Broken:
        roots = []
    documents = [Document(root.plain(), filename, root) for root in roots if root.data is not None]
    return documents, reader.problems


class _Seen(NamedTuple):
    """`place`: line and column; None: where YAML says."""

    place: tuple[int, int] | None = None
    problem: str = ""
    hint: str = ""


def _what_nobody_sees(text: str | bytes, place: tuple[int, int] | None) -> _Seen:
    """What is probably wrong with a text that is no YAML, where an editor does not show it."""
    if isinstance(text, bytes):
        if text.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return _Seen()
        data = text
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            before = data[: error.start]
            where = before.count(b"\n") + 1, len(before.rpartition(b"\n")[2].decode()) + 1
            return _Seen(where, f"the byte 0x{data[error.start]:02x} is no UTF-8", "Save the file as UTF-8.")
    lines = text.split("\n")
    for number, line in enumerate(lines, 1):
        for character in ("\u00a0", "\u3000", "\u200b", "\ufeff"):
            if character in line.removeprefix("\ufeff" if number == 1 else ""):
                name = f"U+{ord(character):04X}"
                return _Seen(
                    (number, line.index(character) + 1), "", f"There is an invisible {name}: write a plain space."
                )
    row, column = place or (0, 0)
    if 0 < row <= len(lines) and "\t" in lines[row - 1][:column]:
        return _Seen(None, "", "There is a tab: indent with spaces.")
    return _Seen()


class _Reader:
    def __init__(self, filename: str) -> None:
        self.filename = filename
        self.problems: list[Problem] = []
        self.aliases = 0
        self.values = 0

    def read(self, text: str | bytes) -> Iterator[Value]:
        if len(text if isinstance(text, bytes) else text.encode("utf-8", "replace")) > MAX_BYTES:
            self.stop(None, f"the file is larger than {MAX_BYTES // 1024} KiB", "too_large")
        try:
            events = yaml.parse(text, Loader=_LOADER)
            for event in events:
                if isinstance(event, yaml.DocumentStartEvent):
                    yield self.document(events)
        except (yaml.YAMLError, UnicodeError) as error:
            mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
            problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "cannot be read"
            seen = _what_nobody_sees(text, _place(mark) if mark is not None else None)
            self.stop(seen.place or mark, f"not valid YAML: {seen.problem or problem}", hint=seen.hint)

    def stop(self, mark: Any, message: str, code: str = "invalid_spec", hint: str = "") -> None:
        self.note(mark, message, hint, code)
        raise _Broken

    def note(self, mark: Any, message: str, hint: str = "", code: str = "invalid_spec") -> None:
        line, column = mark if isinstance(mark, tuple) else _place(mark) if mark is not None else (1, 1)
        self.problems.append(Problem(f"{self.filename}:{line}:{column}", message, hint, code))

    def document(self, events: Iterator[Any]) -> Value:
        """One document, built on a stack of open lists and maps."""
        anchors: dict[str, Value] = {}
        open_: list[
            tuple[Value, str | None, list[Any]]
        ] = []  # (container, its anchor, [key, key's mark] while one waits)
        for event in events:
            if isinstance(event, yaml.DocumentEndEvent):
                break
            if isinstance(event, (yaml.SequenceEndEvent, yaml.MappingEndEvent)):
                value, anchor, _ = open_.pop()
            elif isinstance(event, (yaml.SequenceStartEvent, yaml.MappingStartEvent)):
                self.refuse_tag(event)
                if len(open_) >= MAX_DEPTH:
                    self.stop(event.start_mark, f"nested deeper than {MAX_DEPTH} levels", "too_large")
                empty: Any = [] if isinstance(event, yaml.SequenceStartEvent) else {}
                open_.append((Value(empty, _place(event.start_mark)), event.anchor, []))
                continue
            elif isinstance(event, yaml.AliasEvent):
                value, anchor = self.alias(event, anchors, len(open_)), None
            else:
                value, anchor = self.scalar(event), event.anchor
            if anchor:
                anchors[anchor] = value
            self.values += 1
            if self.values > MAX_VALUES:
                self.stop(event.start_mark, f"more than {MAX_VALUES} values", "too_large")
            if not open_:
                root = value
            else:
                self.add(open_[-1], value)
        return root

    def add(self, container: tuple[Value, str | None, list[Any]], value: Value) -> None:
        parent, _, waiting = container
        parent.size += value.size
        parent.height = max(parent.height, value.height + 1)
        if isinstance(parent.data, list):
            parent.data.append(value)
        elif not waiting:
            waiting += [self.key(value), value.place]
        else:
            key, place = waiting
            waiting.clear()
            if key in parent.data:
                first = ":".join(map(str, parent.keys[key]))
                self.note(place, f'the key "{key}" is here twice', f"It stands at {first} already.")
            elif key is not None:
                parent.data[key] = value
                parent.keys[key] = place

    def key(self, value: Value) -> str | None:
        if isinstance(value.data, str) and len(value.data) <= 1024:
            if wrong := sanitize.flaw(value.data):
                self.stop(value.place, wrong, "invalid_text")
            if value.data == "<<":
                self.note(value.place, "merge keys (<<) are not read", "Write the keys out.")
                return None
            return value.data
        self.note(value.place, "a key must be text", 'Put quotes around it: "8".')
        return None

    def alias(self, event: Any, anchors: dict[str, Value], depth: int) -> Value:
        value = anchors.get(event.anchor)
        if value is None:
            self.stop(event.start_mark, f"the alias *{event.anchor} has no anchor before it")
            raise AssertionError
        self.aliases += 1
        self.values += value.size
        if self.aliases > MAX_ALIASES or self.values > MAX_VALUES:
            self.stop(event.start_mark, f"more than {MAX_ALIASES} aliases, or too much behind them", "too_large")
        if depth + value.height > MAX_DEPTH:
            self.stop(event.start_mark, f"nested deeper than {MAX_DEPTH} levels", "too_large")
        return value

    def refuse_tag(self, event: Any) -> None:
        if event.tag is not None and event.tag != "!":
            self.note(
                event.start_mark, f"the tag {event.tag[:60]} is not allowed", "Write plain text, numbers and lists."
            )

    def scalar(self, event: Any) -> Value:
        self.refuse_tag(event)
        text = event.value
        data: Any = text
        if wrong := sanitize.flaw(text):
            self.stop(event.start_mark, wrong, "invalid_text")
        if event.implicit[0]:  # plain, without quotes
            if text in ("", "~", "null", "Null", "NULL"):
                data = None
            elif text in _WORDS:
                data = _WORDS[text]
            elif _INT.fullmatch(text) and len(text) <= 19:
                data = int(text)
            elif _INT_BASED.fullmatch(text):
                data = int(text, 0)
            elif _NOT_FINITE.fullmatch(text):
                self.note(event.start_mark, f"{text} is not a finite number")
                data = 0.0
            elif _FLOAT.fullmatch(text):
                data = float(text)
                if not math.isfinite(data) or _INT.fullmatch(text):
                    self.note(event.start_mark, "the number is too large")
                    data = 0
        return Value(data, _place(event.start_mark))


def _place(mark: Any) -> tuple[int, int]:
    return mark.line + 1, mark.column + 1


def from_json(data: Any, where: str) -> tuple[Document, list[Problem]]:
    """The same bounds for JSON data that came over the wire."""
    if (wrong := sanitize.first_flaw(data, where)) is not None:
        return Document(None, where), [Problem(*wrong, code="invalid_text")]
    count, level = 0, [(data, where)]
    for _ in range(MAX_DEPTH + 1):
        count += len(level)
        if not level or count > MAX_VALUES:
            break
        below: list[tuple[Any, str]] = []
        for value, place in level:
            if isinstance(value, dict):
                if any(not isinstance(key, str) for key in value):
                    return Document(None, where), [Problem(place, "a key must be text")]
                below += [(each, f"{place}.{key}") for key, each in value.items()]
            elif isinstance(value, list):
                below += [(each, f"{place}[{index}]") for index, each in enumerate(value)]
            elif not (value is None or isinstance(value, (str, int, float))):
                return Document(None, where), [Problem(place, f"a {type(value).__name__} is not JSON")]
        level = below
    if level:
        message = f"more than {MAX_VALUES} values, or nested deeper than {MAX_DEPTH} levels"
        return Document(None, where), [Problem(where, message, code="too_large")]
    return Document(data, where), []
