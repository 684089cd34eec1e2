"""The options of policies in a cluster file, checked against what each policy says of itself: its class `Options`.

A policy that is not installed here is not looked at: the controller knows it, and checks again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import MISSING, fields
from functools import cache
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints

from pydantic import create_model

from llmsched.core.configuration import PolicyOptions
from llmsched.errors import Problem
from llmsched.policies import registry
from llmsched.spec import validation
from llmsched.spec.document import Document, Path
from llmsched.spec.section import Section

if TYPE_CHECKING:
    from llmsched.spec.cluster import ClusterSpec

Row = tuple[str, str, dict[str, Any], Path]  # family, queue ("": all), options, where they stand


def _rows(spec: ClusterSpec) -> Iterator[Row]:
    """What the file says, those for all first."""
    for family in registry.FAMILIES:
        yield family, "", getattr(spec.policies.options, family), ("policies", "options", family)
    for index, queue in enumerate(spec.queues):
        for family in registry.FAMILIES:
            path = ("queues", index, "policy_options", family)
            yield family, queue.name, getattr(queue.policy_options, family), path


def compiled(spec: ClusterSpec) -> tuple[PolicyOptions, ...]:
    """As the configuration keeps them."""
    return tuple(
        PolicyOptions(family, json.dumps(options, sort_keys=True, separators=(",", ":")), queue)
        for family, queue, options, _ in _rows(spec)
        if options
    )


def check(spec: ClusterSpec, document: Document) -> list[Problem]:
    """What is wrong with them, each at its place."""
    problems: list[Problem] = []
    common: dict[str, dict[str, Any]] = {}
    for family, queue, options, path in _rows(spec):
        name = getattr(spec.policies, family)
        if not options or name not in registry.names(family):
            continue
        common.setdefault(family, {} if queue else options)
        schema = registry.options_of(family, name)
        if schema is None:
            place = document.where(path, of_key=True)
            problems.append(Problem(place, f'the {family} policy "{name}" has no options', code="unknown_key"))
            continue
        part = _part(document, path)
        _, wrong = validation.validate(_section_of(schema), f'the options of "{name}"', part)
        if queue:
            wrong += _for_all(schema, name, family, part)
        if not wrong:
            try:
                registry.made(schema, {**common[family], **options})
            except (TypeError, ValueError) as error:
                wrong = [Problem(document.where(path, of_key=True), f'the options of "{name}": {error}')]
        problems += wrong
    return problems


def _for_all(schema: type, name: str, family: str, part: Document) -> list[Problem]:
    """Options that a queue cannot have of its own."""
    fixed = {each.name for each in fields(schema) if not each.metadata.get("of_queue", True)}
    hint = f"Write it under policies.options.{family}."
    return [
        Problem(part.where((key,), of_key=True), f'"{key}" of "{name}" is the same for all queues', hint)
        for key in part.data
        if key in fixed
    ]


def _part(document: Document, path: Path) -> Document:
    """The section at `path` as a document of its own, with the places of the whole."""
    data, value = document.data, document.root
    for step in path:
        data = data[step]
        value = value.data[step] if value is not None else None
    return Document(data, document.where(path) if value is None else document.filename, value)


@cache
def _section_of(schema: type) -> type[Section]:
    """The same fields as a section: unknown keys and wrong types are found as everywhere."""
    hints = get_type_hints(schema)
    model: dict[str, Any] = {}
    for each in fields(schema):
        default = each.default if each.default_factory is MISSING else each.default_factory()
        model[each.name] = (_listed(hints[each.name]), ... if default is MISSING else default)
    return create_model(schema.__qualname__, __base__=Section, **model)


def _listed(hint: Any) -> Any:
    """A file has lists where Python has tuples."""
    return list[get_args(hint)[0]] if get_origin(hint) is tuple else hint  # type: ignore[misc]
