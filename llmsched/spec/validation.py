"""pydantic's errors -> sentences with a place, the expected form, and the nearest key. Start reading at `validate`."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from llmsched.errors import Problem
from llmsched.spec import other_words
from llmsched.spec.document import Document, Path, dotted
from llmsched.spec.quantities import PATTERN_WORDS
from llmsched.spec.section import Section, WrongAt
from llmsched.spec.train import PassThrough

MOST = 100  # problems explained: nobody reads more, and a hostile file may have tens of thousands

_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a section with keys",
    "model_type": "a section with keys",
    "model_attributes_type": "a section with keys",
    "none_required": "null",
}
_LIMITS = {
    "greater_than": ("more than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
}


def validate(model: type[BaseModel], title: str, document: Document) -> tuple[Any, list[Problem]]:
    """(the model, nothing) or (None, what is wrong). `title` stands in messages: "a train workload"."""
    if not isinstance(document.data, dict):
        return None, [
            Problem(document.where(()), f"expected {title}: keys and values, not {_kind_of_data(document.data)}")
        ]
    try:
        return model.model_validate(document.data), []
    except ValidationError as error:
        return None, explain(error, model, title, document)


def explain(error: ValidationError, model: type[BaseModel], title: str, document: Document) -> list[Problem]:
    """Every problem once, up to MOST of them. `title` says what is described: "a train workload"."""
    by_place: dict[tuple[Path, str], Problem] = {}
    expected: dict[Path, list[str]] = {}
    everything = error.errors(include_url=False)
    for details in everything[:MOST]:
        path, rest = _real_path(details["loc"], document.data)
        if (kind := details["type"]) in ("extra_forbidden", "missing") and not rest[1:]:
            problem = _key_problem(kind, (*path, *rest), model, title, document)
        elif kind in _EXPECTED or kind == "literal_error":
            words = expected.setdefault(path, [])
            words += [word for word in [_expectation(details)] if word not in words]
            by_place[path, "type"] = _type_problem(details, path, words, document)  # one for all members of a union
            continue
        else:
            problem = _value_problem(details, path, document)
        by_place[path, problem.message] = problem
    if left := everything[MOST:]:
        path = _real_path(left[0]["loc"], document.data)[0]
        by_place[path, "more"] = Problem(
            document.where(path, of_key=True), f"and {len(left)} more problems from here on"
        )
    return list(by_place.values())


def in_order(problems: list[Problem], milder: list[Problem]) -> list[Problem]:
    """All problems as they stand in the file; of two about one key only the graver is said."""
    taken = {_subject(each) for each in problems}
    return sorted([*problems, *(each for each in milder if _subject(each) not in taken)], key=_order)


def _subject(problem: Problem) -> str:
    """The path in quotes with which a message begins."""
    return problem.message.split('"')[1] if problem.message.startswith('"') else problem.where


def nearest(word: str, words: Iterable[str], cutoff: float = 0.6) -> str | None:
    close = difflib.get_close_matches(word, sorted(words), n=1, cutoff=cutoff)
    return close[0] if close else None


def unknown_key(
    key: str, section: type[BaseModel], title: str, root: type[BaseModel], at_root: bool
) -> tuple[str, str, str]:
    """(message, hint, code) for a key that `section` does not have."""
    names = keys_of(section)
    if issubclass(section, PassThrough) and key in section.known:
        instead = _in_our_words(key, section, root) or f"Supported: {', '.join(sorted(names))}."
        return f'"{key}" of {section.library} is not supported', instead, "not_supported_yet"
    message = f'unknown key "{key}" in {title}'
    if ours := _in_our_words(key, section, root):
        return message, ours, "unknown_key"
    elsewhere = sorted(_paths_to(key, root), key=lambda path: path.count(".")) if at_root else []
    suggestion = nearest(key, names, 0.85) or (elsewhere[0] if elsewhere else nearest(key, names))
    if not suggestion and issubclass(section, PassThrough):
        suggestion = nearest(key, section.known)
    if suggestion:
        return message, f'Did you mean "{suggestion}"?', "unknown_key"
    return message, f"Known keys: {', '.join(sorted(names))}.", "unknown_key"


def _in_our_words(key: str, section: type[BaseModel], root: type[BaseModel]) -> str:
    """Where that word of another system leads, from here or from the top; "" for one that leads nowhere."""
    if key in other_words.NOTHING:
        return other_words.NOTHING[key]
    ours = other_words.OURS.get(key)
    if ours is None:
        return ""
    path, note = ours
    last = path.rpartition(".")[2]
    shown = last if _exists(last, section) else path
    return f'Did you mean "{shown}"? {note}'.rstrip() if _exists(shown, section) or _exists(shown, root) else ""


def keys_of(section: type[BaseModel]) -> dict[str, Any]:
    """The keys a section has in a file -> the annotation behind them."""
    return {info.alias or name: info.annotation for name, info in section.model_fields.items()}


def sections_in(annotation: Any) -> list[type[BaseModel]]:
    """The sections inside an annotation such as `list[Dataset] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if isinstance(annotation, types.GenericAlias) or typing.get_args(annotation):
        return [each for part in typing.get_args(annotation) for each in sections_in(part)]
    return []


def _order(problem: Problem) -> tuple[str, list[int], str]:
    name, *numbers = problem.where.rsplit(":", 2)
    return name, [int(number) for number in numbers if number.isdigit()], problem.message


def _real_path(loc: tuple[str | int, ...], data: Any) -> tuple[Path, Path]:
    """The part of pydantic's location that exists in the data, and the rest (a missing key, tags of a union)."""
    for index, part in enumerate(loc):
        try:
            data = data[part]
        except (KeyError, IndexError, TypeError):
            return loc[:index], loc[index:]
    return loc, ()


def _section_at(model: type[BaseModel], path: Path) -> type[BaseModel] | None:
    section: type[BaseModel] | None = model
    for part in path:
        if isinstance(part, str) and section is not None and part in (keys := keys_of(section)):
            section = next(iter(sections_in(keys[part])), None)
    return section


def _key_problem(kind: str, path: Path, model: type[BaseModel], title: str, document: Document) -> Problem:
    *parents, key = path
    inside = title if not parents else f'"{dotted(tuple(parents))}"'
    if kind == "missing":
        return Problem(document.where(parents), f'"{key}" is missing in {inside}', code="missing_key")
    section = _section_at(model, tuple(parents)) or model
    message, hint, code = unknown_key(str(key), section, inside, model, not parents)
    return Problem(document.where(path, of_key=True), message, hint, code)


def _type_problem(details: ErrorDetails, path: Path, words: list[str], document: Document) -> Problem:
    hint = ""
    if details["type"] == "literal_error" and isinstance(details["input"], str):
        choices = [part.strip("'") for part in _expectation(details).removeprefix("one of ").split(", ")]
        close = nearest(details["input"], choices)
        hint = f'Did you mean "{close}"?' if close else ""
    message = f'"{dotted(path)}": expected {" or ".join(words)}{_got(details["input"], path)}'
    return Problem(document.where(path, of_key=_is_about_a_key(details)), message, hint)


def _is_about_a_key(details: ErrorDetails) -> bool:
    return details["loc"][-1:] == ("[key]",)


def _expectation(details: ErrorDetails) -> str:
    if details["type"] != "literal_error":
        return _EXPECTED[details["type"]]
    choices = str(details.get("ctx", {}).get("expected", "")).replace(" or ", ", ")
    return f"one of {choices}" if "," in choices else choices


def _value_problem(details: ErrorDetails, path: Path, document: Document) -> Problem:
    kind, ctx, value = details["type"], details.get("ctx", {}), details["input"]
    if kind == "value_error":
        cause = ctx["error"]
        path = (*path, *cause.path) if isinstance(cause, WrongAt) else path
        message = str(cause)
        if not isinstance(value, (dict, list, Section)) and '"' not in message.split(",")[0]:
            message = f"{message}{_got(value, path)}" if message.startswith("expected") else message
    elif kind in _LIMITS:
        words, key = _LIMITS[kind]
        message = f"expected {words} {ctx[key]:g}{_got(value, path)}"
    elif kind == "string_pattern_mismatch":
        message = f"expected {PATTERN_WORDS.get(ctx['pattern'], ctx['pattern'])}{_got(value, path)}"
    elif kind in ("too_short", "string_too_short"):
        message = "may not be empty" if ctx["min_length"] == 1 else f"expected at least {ctx['min_length']} of them"
    elif kind in ("too_long", "string_too_long"):
        message = f"longer than {ctx['max_length']}"
    else:
        message = details["msg"][0].lower() + details["msg"][1:]
    named = f'"{dotted(path)}": ' if path else ""
    return Problem(document.where(path, of_key=_is_about_a_key(details)), f"{named}{message}")


def _got(value: Any, path: Path) -> str:
    """`, got "abc"`: what was written, short; nothing for an environment value, which may be a secret."""
    if path and path[0] in ("envs", "secrets"):
        return ""
    if isinstance(value, str):
        return f', got "{value[:40]}..."' if len(value) > 40 else f', got "{value}"'
    if isinstance(value, (dict, list)):
        return ", got a section" if isinstance(value, dict) else ", got a list"
    return f", got {'nothing' if value is None else str(value).lower()[:40]}"


def _exists(path: str, section: type[BaseModel]) -> bool:
    current: type[BaseModel] | None = section
    for part in path.split("."):
        if current is None or part not in (keys := keys_of(current)):
            return False
        current = next(iter(sections_in(keys[part])), None)
    return True


def _paths_to(key: str, root: type[BaseModel], levels: int = 3) -> Iterable[str]:
    """Where else in this kind of file there is such a key: `cpus` -> `resources.cpus`."""
    for name, annotation in keys_of(root).items():
        for section in sections_in(annotation):
            if key in keys_of(section):
                yield f"{name}.{key}"
            elif levels > 1:
                yield from (f"{name}.{path}" for path in _paths_to(key, section, levels - 1))


def _kind_of_data(data: Any) -> str:
    return "a list" if isinstance(data, list) else f"{str(data)[:40]!r}"
